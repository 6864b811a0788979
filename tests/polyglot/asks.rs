//! What Asks.java does, in Rust.
use std::collections::HashMap;
use std::io::{stdin, Error as IoError};
use std::time::Duration;

use wasmkiln::{v1::ArtifactKey, Client, Error, Options, Reason, Tls};

type Flags = HashMap<String, String>;

#[tokio::main]
async fn main() {
    let words: Vec<String> = std::env::args().collect();
    let mut flags = Flags::new();
    for pair in words[3..].chunks(2) {
        flags.insert(pair[0].clone(), pair[1].clone());
    }
    let cancelled = tokio::sync::watch::Sender::new(false);
    if flags.get("--pause").is_some_and(|what| what == "call") {
        let cancelled = cancelled.clone();
        std::thread::spawn(move || {
            line().unwrap();
            cancelled.send_replace(true);
        });
    }
    let times = flags
        .get("--times")
        .map_or(1, |times| times.parse().unwrap());
    for _ in 0..times {
        let mut ended = cancelled.subscribe();
        let outcome = tokio::select! {
            biased;
            _ = ended.wait_for(|ended| *ended) => {
                say(&["cancelled", "", "", "", ""]);
                continue;
            }
            outcome = ask(&words[1], &words[2], &flags) => outcome,
        };
        if let Err(failure) = outcome {
            tell(&failure);
        }
    }
}

fn tell(failure: &Error) {
    let retry = failure
        .retry_after()
        .map(|delay| delay.as_millis().to_string());
    let cause = failure.metadata().get("cause").map_or("", String::as_str);
    let what = match failure.reason() {
        Reason::UnusableArgument => "unusable",
        reason => reason.as_str(),
    };
    let text = failure.to_string();
    say(&[
        what,
        failure.request_id(),
        &retry.unwrap_or_default(),
        cause,
        &text,
    ]);
}

async fn ask(address: &str, path: &str, flags: &Flags) -> Result<(), Error> {
    let module = std::fs::read(path).unwrap();
    let flag = |name: &str| flags.get(name).map(String::as_str);
    let mut builder = Client::builder(address);
    builder = match flag("--key") {
        Some(key) => builder.trusted_keys(key),
        None => builder.without_signatures(),
    };
    if let Some(file) = flag("--token-file") {
        builder = builder.token_file(file);
    }
    if let Some(file) = flag("--ca") {
        let mut tls = Tls::new().ca(file);
        if let (Some(file), Some(key)) = (flag("--certificate"), flag("--certificate-key")) {
            tls = tls.client_certificate(file, key);
        }
        builder = builder.tls(tls);
    }
    if flag("--store").is_none() {
        builder = builder.without_host_files();
    }
    let client = builder.build()?;
    let mut options = Options::new()
        .engine(flag("--engine").unwrap_or_default())
        .background(flag("--load").is_some())
        .accept_fast(flag("--accept-fast").is_some())
        .skip_cache_lookup(flag("--fresh").is_some());
    if let Some(file) = flag("--compatibility") {
        options = options.for_engine(std::fs::read(file).unwrap())?;
    }
    if let Some(time) = flag("--timeout-ms") {
        options = options.timeout(Duration::from_millis(time.parse().unwrap()));
    }
    if flag("--load").is_some() {
        let loaded = client.load(&module, &options).await?;
        say(&["loaded", "", &loaded.engine, "", &loaded.sha256]);
        return Ok(());
    }
    if let Some(digest) = flag("--missing") {
        let engine = flag("--engine").unwrap_or_default().to_owned();
        let module_sha256 = digest.to_owned();
        let key = ArtifactKey {
            module_sha256,
            engine,
            ..Default::default()
        };
        let missing = client.find_missing(&[key]).await?;
        say(&["missing", "", "", &missing.len().to_string(), ""]);
        return Ok(());
    }
    let artifact = match flag("--digest") {
        Some(digest) => client.compile_digest(digest, &options).await?,
        None => client.compile(&module, &options).await?,
    };
    if flag("--pause") == Some("file") {
        println!("opened");
        line().unwrap();
    }
    let content = artifact.bytes()?;
    artifact.check_unchanged()?;
    let origin = match artifact.path() {
        Some(_) => "FILE",
        None => artifact.origin().as_str_name(),
    };
    let size = content.len().to_string();
    say(&[
        "compiled",
        origin,
        artifact.engine(),
        &size,
        artifact.module_sha256(),
    ]);
    if let Some(out) = flag("--out") {
        std::fs::write(out, &content).unwrap();
    }
    Ok(())
}

fn line() -> Result<String, IoError> {
    let mut line = String::new();
    stdin().read_line(&mut line)?;
    Ok(line)
}

fn say(columns: &[&str]) {
    println!("{}", columns.join("\t").replace('\n', " "));
}

//! Runs a function of a module, by code that a daemon compiled:
//!
//! `cargo run --example host -- ADDRESS KEY.pem MODULE.wasm FUNCTION NUMBER`
//!
//! Without a daemon it compiles the module itself. The function takes an `i32` and returns one.
use std::time::{Duration, Instant};

use wasmkiln::{Artifact, Client, Error, Options};
use wasmtime::{Engine, Instance, Module, Result, Store};

// Longer than it takes to compile here, a daemon is of no use.
const TIMEOUT: Duration = Duration::from_secs(10);

#[tokio::main]
async fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [address, key, path, name, number] = words.as_slice() else {
        eprintln!("usage: host ADDRESS KEY.pem MODULE.wasm FUNCTION NUMBER");
        std::process::exit(2);
    };
    let (wasm, number) = (std::fs::read(path)?, number.parse::<i32>()?);
    let client = Client::builder(address).trusted_keys(key).timeout(TIMEOUT).build()?;
    let engine = Engine::default();
    // What the engine makes of the empty module says what code it loads.
    let shown = engine.precompile_module(b"\0asm\x01\0\0\0")?;
    let began = Instant::now();
    let (module, origin) = match compile(&client, &wasm, &shown).await {
        Ok(artifact) => (load(&engine, &artifact)?, origin(&artifact)),
        Err(error) => {
            eprintln!("{}: {error}", error.reason().as_str());
            (Module::new(&engine, &wasm)?, "compiled here")
        }
    };
    let took = began.elapsed();
    let mut store = Store::new(&engine, ());
    let instance = Instance::new(&mut store, &module, &[])?;
    let function = instance.get_typed_func::<i32, i32>(&mut store, name)?;
    let result = function.call(&mut store, number)?;
    println!("rust host ran {name}({number}) = {result}, {origin}, loaded in {took:.1?}");
    Ok(())
}

async fn compile(client: &Client, wasm: &[u8], shown: &[u8]) -> Result<Artifact, Error> {
    client.compile(wasm, &Options::new().for_engine(shown)?).await
}

fn load(engine: &Engine, artifact: &Artifact) -> Result<Module> {
    // SAFETY: a trusted key signed the code, and only the daemon can write to the file.
    let module = match artifact.path() {
        Some(file) => unsafe { Module::deserialize_file(engine, file)? },
        None => unsafe { Module::deserialize(engine, artifact.bytes()?)? },
    };
    artifact.check_unchanged()?;
    Ok(module)
}

fn origin(artifact: &Artifact) -> &'static str {
    match artifact.path() {
        Some(_) => "mapped from the host store",
        None => artifact.origin().as_str_name(),
    }
}

//! Loads a module by a daemon on this machine, twice, and beside that compiles it itself:
//! `cargo run --release --example saves -- MODULE.wasm ADDRESS`
use std::time::Instant;
use wasmkiln::{Client, Options};
use wasmtime::{Engine, Module, Result};

#[tokio::main]
async fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().collect();
    let (wasm, engine) = (std::fs::read(&words[1])?, Engine::default());
    let client = Client::builder(&words[2]).without_signatures().build()?;
    let shown = engine.precompile_module(b"\0asm\x01\0\0\0")?;
    for call in ["first call", "second call"] {
        let began = Instant::now();
        let artifact = client.compile(&wasm, &Options::new().for_engine(&shown)?).await?;
        let _module = unsafe { Module::deserialize(&engine, artifact.bytes()?)? };
        println!("{call}: {:.1?}, {}", began.elapsed(), artifact.origin().as_str_name());
    }
    let began = Instant::now();
    Module::new(&engine, &wasm)?;
    println!("without a daemon: {:.1?}", began.elapsed());
    Ok(())
}

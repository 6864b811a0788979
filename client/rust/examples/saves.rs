//! Loads a module by a daemon, beside compiling it: `cargo run --example saves -- MODULE.wasm`
use std::time::Instant;
use wasmkiln::{Client, Options};
use wasmtime::{Engine, Module, Result};

#[tokio::main]
async fn main() -> Result<()> {
    let wasm = std::fs::read(std::env::args().nth(1).expect("a module"))?;
    let engine = Engine::default();
    let shown = engine.precompile_module(b"\0asm\x01\0\0\0")?;
    let options = Options::new().for_engine(&shown)?;
    let builder = Client::builder("127.0.0.1:50051").trusted_keys("key.pem");
    let client = builder.build()?;
    for call in ["first call", "second call"] {
        let began = Instant::now();
        let artifact = client.compile(&wasm, &options).await?;
        let _module = unsafe { Module::deserialize(&engine, artifact.bytes()?)? };
        println!("{call}: {:.1?}", began.elapsed());
    }
    let began = Instant::now();
    Module::new(&engine, &wasm)?;
    println!("without a daemon: {:.1?}", began.elapsed());
    Ok(())
}

//! The client for programs without async code: the same methods, which block.
//!
//! They panic inside async code, as all that blocks on tokio does. `tokio::task::spawn_blocking` may
//! call them.

use std::sync::Arc;

use tokio::runtime::Runtime;

use crate::{v1, Artifact, Error, Options};

/// A client of one daemon, whose calls block: build it by
/// [`Builder::build_blocking`](crate::Builder::build_blocking). Clones share one connection.
#[derive(Clone, Debug)]
pub struct Client {
    client: crate::Client,
    runtime: Arc<Running>,
}

/// A runtime that can be dropped in async code too: it does not wait for its threads.
#[derive(Debug)]
struct Running(Option<Runtime>);

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl Client {
    /// Begin to describe a client: see [`crate::Client::builder`].
    pub fn builder(address: impl Into<String>) -> crate::Builder {
        crate::Client::builder(address)
    }

    /// See [`crate::Client::compile`].
    pub fn compile(&self, module: &[u8], options: &Options) -> Result<Artifact, Error> {
        self.run(self.client.compile(module, options))
    }

    /// See [`crate::Client::compile_digest`].
    pub fn compile_digest(&self, sha256: &str, options: &Options) -> Result<Artifact, Error> {
        self.run(self.client.compile_digest(sha256, options))
    }

    /// See [`crate::Client::load`].
    pub fn load(&self, module: &[u8], options: &Options) -> Result<v1::LoadResponse, Error> {
        self.run(self.client.load(module, options))
    }

    /// See [`crate::Client::find_missing`].
    pub fn find_missing(&self, keys: &[v1::ArtifactKey]) -> Result<Vec<v1::ArtifactKey>, Error> {
        self.run(self.client.find_missing(keys))
    }

    /// See [`crate::Client::stats`].
    pub fn stats(&self) -> Result<v1::StatsResponse, Error> {
        self.run(self.client.stats())
    }

    /// See [`crate::Client::capabilities`].
    pub fn capabilities(&self) -> Result<v1::GetCapabilitiesResponse, Error> {
        self.run(self.client.capabilities())
    }

    fn run<A>(
        &self,
        call: impl std::future::Future<Output = Result<A, Error>>,
    ) -> Result<A, Error> {
        let runtime = self.runtime.0.as_ref();
        runtime.expect("it is there until it is dropped").block_on(call)
    }
}

impl crate::Builder {
    /// Return a client whose calls block. Fails as [`Builder::build`](crate::Builder::build) does.
    pub fn build_blocking(self) -> Result<Client, Error> {
        let client = self.build()?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .thread_name("wasmkiln")
            .build()
            .map_err(|why| Error::unusable(format!("cannot start a thread: {why}")))?;
        Ok(Client { client, runtime: Arc::new(Running(Some(runtime))) })
    }
}

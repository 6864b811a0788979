//! The client for programs without async code: the same methods, which block.

use std::sync::Arc;

use crate::{v1, Artifact, Error, Options};

/// A client of one daemon, whose calls block: build it by
/// [`Builder::build_blocking`](crate::Builder::build_blocking). Clones share one connection.
#[derive(Clone, Debug)]
pub struct Client {
    client: crate::Client,
    runtime: Arc<tokio::runtime::Runtime>,
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
        if tokio::runtime::Handle::try_current().is_ok() {
            let what = "cannot block in async code: use wasmkiln::Client there";
            return Err(Error::unusable(what));
        }
        self.runtime.block_on(call)
    }
}

impl crate::Builder {
    /// Return a client whose calls block. Fails as [`Builder::build`](crate::Builder::build) does.
    pub fn build_blocking(self) -> Result<Client, Error> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .thread_name("wasmkiln")
            .build()
            .map_err(|why| Error::unusable(format!("cannot start a thread: {why}")))?;
        Ok(Client {
            client: self.build()?,
            runtime: Arc::new(runtime),
        })
    }
}

//! A client of [wasmkiln](https://github.com/wasmkiln/wasmkiln), a daemon that compiles WebAssembly
//! modules once and serves the native code to every host.
//!
//! ```no_run
//! # async fn run(empty: &[u8], wasm: &[u8]) -> Result<(), wasmkiln::Error> {
//! use wasmkiln::{Client, Options};
//!
//! let kiln = Client::builder("127.0.0.1:50051").trusted_keys("key.pem").build()?;
//! // `empty` is what the host's engine makes of the empty module: it says what code it loads.
//! let options = Options::new().for_engine(empty)?;
//! let artifact = kiln.compile(wasm, &options).await?;
//! println!("{} bytes", artifact.bytes()?.len());
//! # Ok(())
//! # }
//! ```
//!
//! [`Client::compile`] asks by the module's SHA-256 first, and uploads the module only if the
//! daemon lacks it. An artifact that it returns is the one that the call asked for: the client has
//! checked size and SHA-256, compared the header with the call and, with
//! [`Builder::trusted_keys`], verified the signature. On the daemon's own machine the artifact is a
//! file of the daemon's host store, which an engine maps: [`Artifact::path`].
//!
//! Calls for code are retried until their time ends, so that they survive a restart of the daemon.
//! A download, and the upload of a large module, resumes where it was cut.
//!
//! [`Client`] is for programs with tokio. With the feature `blocking`, `blocking::Client` has the
//! same methods for all others. The feature `tls`, on by default, adds connections over TLS.
//!
//! The messages in [`v1`] and [`google`] are structs of plain fields. What they implement of `prost`
//! is not part of this crate's interface, and newer versions have more fields: build one with
//! `..Default::default()`.

#![warn(missing_docs)]

mod artifact;
mod attestation;
#[cfg(feature = "blocking")]
pub mod blocking;
mod client;
mod connection;
mod error;
mod header;
mod host_file;
mod transfer;

pub use artifact::Artifact;
pub use client::{Builder, Client, Options};
#[cfg(feature = "tls")]
pub use connection::Tls;
pub use error::{Code, Error, Reason};
pub use v1::Origin;

pub use generated::google;
pub use generated::wasmkiln::v1;

#[allow(clippy::all, missing_docs)]
#[rustfmt::skip]
mod generated {
    pub mod wasmkiln {
        //! The contract.

        /// The messages of the contract, as `protos/wasmkiln/v1` documents them.
        pub mod v1 {
            include!("generated/wasmkiln.v1.rs");
        }
    }
    /// The messages of Google that those of the contract have.
    pub mod google {
        /// Durations and points in time.
        pub mod protobuf {
            include!("generated/google.protobuf.rs");
        }
        /// What errors consist of.
        pub mod rpc {
            include!("generated/google.rpc.rs");
        }
    }
}

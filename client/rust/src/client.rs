//! A client and its calls.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::uri::PathAndQuery;
use tokio::time::Instant;
use tonic::client::Grpc;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::artifact::Artifact;
use crate::attestation::Keyring;
#[cfg(feature = "tls")]
use crate::connection::Tls;
use crate::connection::{self, Address, Prost};
use crate::error::{Error, Reason};
use crate::header;
use crate::v1;

const TIMEOUT: Duration = Duration::from_secs(60);
// A clock cannot tell the end of Duration::MAX.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(365 * 86_400);
// Four times the default limit of a daemon.
const MAX_ARTIFACT_BYTES: u64 = 1 << 30;
const MAX_MESSAGE_BYTES: usize = 64 << 20;
// FindMissing takes 10,000 keys, and 2 MiB.
const KEYS_AT_ONCE: usize = 1_000;
// The first pause before a retry, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// How to reach a daemon, and what to trust: [`Client::builder`].
#[derive(Clone)]
pub struct Builder {
    address: String,
    keys: Vec<PathBuf>,
    is_unsigned: bool,
    token: String,
    token_file: Option<PathBuf>,
    #[cfg(feature = "tls")]
    tls: Option<Tls>,
    timeout: Duration,
    max_artifact_bytes: u64,
    takes_files: bool,
}

impl std::fmt::Debug for Builder {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The token is nobody's business.
        write!(out, "Builder({:?})", self.address)
    }
}

impl Builder {
    /// Accept only artifacts that one of these keys signed.
    ///
    /// `path` is a PEM file of public keys, as `wasmkilnd keys show --pem` prints one, or a folder
    /// of such files. A key in the folder's `revoked/` does not count. May be called again.
    pub fn trusted_keys(mut self, path: impl Into<PathBuf>) -> Builder {
        self.keys.push(path.into());
        self
    }

    /// Check no signatures: loading an artifact is then running the code of whoever answers at the
    /// address. Size and digest are checked, and the header is compared with the call.
    pub fn without_signatures(mut self) -> Builder {
        self.is_unsigned = true;
        self
    }

    /// Send this token with each call. It goes over TLS or to this machine only.
    pub fn token(mut self, token: impl Into<String>) -> Builder {
        self.token = token.into();
        self
    }

    /// Send the token in this file, which is read at each call, so that a new one counts at once.
    pub fn token_file(mut self, path: impl Into<PathBuf>) -> Builder {
        self.token_file = Some(path.into());
        self
    }

    /// Connect over TLS.
    #[cfg(feature = "tls")]
    pub fn tls(mut self, tls: Tls) -> Builder {
        self.tls = Some(tls);
        self
    }

    /// How long a call may take with all its retries: 60 s unless set, here or in [`Options`].
    pub fn timeout(mut self, timeout: Duration) -> Builder {
        self.timeout = timeout;
        self
    }

    /// Refuse larger artifacts: 1 GiB unless set.
    pub fn max_artifact_bytes(mut self, bytes: u64) -> Builder {
        self.max_artifact_bytes = bytes;
        self
    }

    /// Ask for bytes always. Otherwise, of a daemon on this machine, the client takes files that
    /// root or its own user owns and nobody else can write to.
    pub fn without_host_files(mut self) -> Builder {
        self.takes_files = false;
        self
    }

    /// Return the client, which connects with its first call.
    ///
    /// Fails with [`Reason::UnusableArgument`] for keys or certificates that cannot be read, an
    /// address without a port, a token that would travel unencrypted to another machine, and where
    /// neither [`Builder::trusted_keys`] nor [`Builder::without_signatures`] was called.
    pub fn build(self) -> Result<Client, Error> {
        let address = Address::parse(&self.address)?;
        let keys = match (self.keys.is_empty(), self.is_unsigned) {
            (false, false) => Keyring::read(&self.keys)?,
            (true, true) => Keyring::default(),
            (false, true) => {
                let what = "trusted_keys and without_signatures exclude each other: choose one";
                return Err(Error::unusable(what));
            }
            (true, false) => {
                let what = "cannot check who made an artifact: name trusted_keys, or say that you \
                            do without_signatures";
                return Err(Error::unusable(what));
            }
        };
        let has_token = !self.token.is_empty() || self.token_file.is_some();
        if has_token && !self.is_encrypted() && !address.is_local() {
            let what = format!("cannot send a token to {} in plaintext: use tls", self.address);
            return Err(Error::unusable(what));
        }
        #[cfg(feature = "tls")]
        if let Some(tls) = &self.tls {
            tls.check(&address)?;
        }
        Ok(Client(Arc::new(Inner {
            takes_files: self.takes_files && address.is_local(),
            options: self,
            address,
            keys,
            channel: Mutex::new(None),
            no_file_until_ms: AtomicU64::new(0),
        })))
    }

    #[cfg(feature = "tls")]
    fn is_encrypted(&self) -> bool {
        self.tls.is_some()
    }

    #[cfg(not(feature = "tls"))]
    fn is_encrypted(&self) -> bool {
        false
    }
}

/// For what to compile. The default is for the daemon's default engine with its default settings,
/// and for the daemon's own machine.
#[derive(Clone, Debug, Default)]
pub struct Options {
    pub(crate) engine: String,
    pub(crate) target: String,
    pub(crate) cpu: String,
    pub(crate) settings: BTreeMap<String, String>,
    pub(crate) section: Vec<u8>,
    pub(crate) is_background: bool,
    pub(crate) accept_fast: bool,
    pub(crate) skip_cache_lookup: bool,
    pub(crate) timeout: Option<Duration>,
}

impl Options {
    /// The defaults.
    pub fn new() -> Options {
        Options::default()
    }

    /// An engine's id (`wasmtime-50.0.1`), or a name (`wasmtime`) for its newest version.
    pub fn engine(mut self, engine: impl Into<String>) -> Options {
        self.engine = engine.into();
        self
    }

    /// A target, such as `aarch64-unknown-linux-gnu`.
    pub fn target(mut self, target: impl Into<String>) -> Options {
        self.target = target.into();
        self
    }

    /// A level of CPUs, such as `x86-64-v3`.
    pub fn cpu(mut self, cpu: impl Into<String>) -> Options {
        self.cpu = cpu.into();
        self
    }

    /// A setting of the engine, with names and values as [`Client::capabilities`] lists them:
    /// `setting("consume_fuel", true)`.
    pub fn setting(mut self, name: impl Into<String>, value: impl ToString) -> Options {
        self.settings.insert(name.into(), value.to_string());
        self
    }

    /// Have the daemon choose code that this engine loads: name no engine, target, CPU or setting
    /// then.
    ///
    /// `compiled` is what the host's own wasmtime makes of the empty module
    /// (`engine.precompile_module(b"\0asm\x01\0\0\0")`), any `.cwasm` that it loads, or the section
    /// `.wasmtime.engine` of one. Fails with [`Reason::UnusableArgument`] for other bytes.
    pub fn for_engine(mut self, compiled: impl AsRef<[u8]>) -> Result<Options, Error> {
        self.section = header::section_of(compiled.as_ref())?.to_vec();
        Ok(self)
    }

    /// Let all other calls go first.
    pub fn background(mut self, is_background: bool) -> Options {
        self.is_background = is_background;
        self
    }

    /// Take the code of a fast compiler (`header().is_fast`) until the daemon has optimised code. A
    /// later call gets that.
    pub fn accept_fast(mut self, accept: bool) -> Options {
        self.accept_fast = accept;
        self
    }

    /// Compile even if a tier has the artifact.
    pub fn skip_cache_lookup(mut self, skip: bool) -> Options {
        self.skip_cache_lookup = skip;
        self
    }

    /// How long this call may take with all its retries.
    pub fn timeout(mut self, timeout: Duration) -> Options {
        self.timeout = Some(timeout);
        self
    }
}

/// A client of one daemon. Clones share one connection.
///
/// Its calls are futures for tokio: one that is dropped ends its call. Each fails with an
/// [`Error`], whose [`Reason`] says why.
#[derive(Clone)]
pub struct Client(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) options: Builder,
    pub(crate) address: Address,
    pub(crate) keys: Keyring,
    pub(crate) takes_files: bool,
    // Until when to ask for no file, since the last one was of no use: Unix time in milliseconds.
    pub(crate) no_file_until_ms: AtomicU64,
    channel: Mutex<Option<Channel>>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Client({:?})", self.0.options.address)
    }
}

impl Client {
    /// Begin to describe a client of the daemon at `address`: `host:port`, or `unix:/path`.
    pub fn builder(address: impl Into<String>) -> Builder {
        Builder {
            address: address.into(),
            keys: Vec::new(),
            is_unsigned: false,
            token: String::new(),
            token_file: None,
            #[cfg(feature = "tls")]
            tls: None,
            timeout: TIMEOUT,
            max_artifact_bytes: MAX_ARTIFACT_BYTES,
            takes_files: true,
        }
    }

    /// Return the artifact of a module. Asks by the module's digest, and uploads the module if the
    /// daemon does not have it.
    pub async fn compile(&self, module: &[u8], options: &Options) -> Result<Artifact, Error> {
        self.0.compile(header::sha256_hex(module), Some(module), options).await
    }

    /// Return the artifact of a module that the daemon has, by the SHA-256 of the module's bytes in
    /// lowercase hex. Fails with [`Reason::ModuleNotLoaded`] where the daemon lacks the module.
    pub async fn compile_digest(&self, sha256: &str, options: &Options) -> Result<Artifact, Error> {
        if !header::is_digest(sha256) {
            return Err(Error::unusable("a digest is 64 lowercase hexadecimal digits"));
        }
        self.0.compile(sha256.to_owned(), None, options).await
    }

    /// Validate a module by the engine of the options, and store it in the daemon, so that it can be
    /// compiled by its digest.
    pub async fn load(&self, module: &[u8], options: &Options) -> Result<v1::LoadResponse, Error> {
        self.0.load(module, options).await
    }

    /// Return the keys whose artifacts no tier has, in their order. What a key leaves out is the
    /// daemon's default.
    pub async fn find_missing(
        &self,
        keys: &[v1::ArtifactKey],
    ) -> Result<Vec<v1::ArtifactKey>, Error> {
        let options = Options::new();
        let call = self.0.call(&options, "")?;
        let mut missing = Vec::new();
        for some in keys.chunks(KEYS_AT_ONCE) {
            let mut retries = Retries::new(&call);
            let answer = loop {
                let request = v1::FindMissingRequest { keys: some.to_vec() };
                let sent = self.0.unary(&call, "FindMissing", request);
                match call.within::<v1::FindMissingResponse>(sent).await {
                    Ok(answer) => break answer,
                    Err(failure) => retries.pause(failure, 0).await?,
                }
            };
            missing.extend(answer.missing);
        }
        Ok(missing)
    }

    /// Return the daemon's counters. Asks once: whoever asks how a daemon is wants to hear that it
    /// is away.
    pub async fn stats(&self) -> Result<v1::StatsResponse, Error> {
        let call = self.0.call(&Options::new(), "")?;
        call.within(self.0.unary(&call, "Stats", v1::StatsRequest {})).await
    }

    /// Return what a compile may ask for: engines, targets, settings and limits. Asks once.
    pub async fn capabilities(&self) -> Result<v1::GetCapabilitiesResponse, Error> {
        let call = self.0.call(&Options::new(), "")?;
        call.within(self.0.unary(&call, "GetCapabilities", v1::GetCapabilitiesRequest {})).await
    }
}

/// What the requests of one call share: a deadline, and what they say of themselves.
pub(crate) struct Call {
    address: String,
    id: String,
    metadata: MetadataMap,
    deadline: Instant,
}

impl Call {
    /// Return what comes of a request within the call's time.
    pub(crate) async fn within<A>(
        &self,
        request: impl Future<Output = Result<A, Error>>,
    ) -> Result<A, Error> {
        let outcome = tokio::time::timeout_at(self.deadline, request).await;
        outcome
            .unwrap_or_else(|_| Err(Error::late(&self.address)))
            .map_err(|error| self.named(error))
    }

    pub(crate) fn failed(&self, status: Status) -> Error {
        if Instant::now() >= self.deadline {
            return self.named(Error::late(&self.address));
        }
        self.named(Error::from_status(&status, &self.address))
    }

    pub(crate) fn cut(&self) -> Error {
        self.named(Error::cut(&self.address, "the stream was cut"))
    }

    pub(crate) fn named(&self, error: Error) -> Error {
        error.of_call(&self.id)
    }

    pub(crate) fn request<M>(&self, message: M) -> Request<M> {
        let mut request = Request::new(message);
        *request.metadata_mut() = self.metadata.clone();
        // The daemon ends what nobody waits for. The client's own clock rules.
        let left = self.deadline.saturating_duration_since(Instant::now());
        request.set_timeout(left + Duration::from_millis(100));
        request
    }
}

/// Pauses between the attempts of a call, as docs/reference/api.md has them.
pub(crate) struct Retries<'a> {
    call: &'a Call,
    count: u32,
    most: u64,
    // That nobody answered, which says more than that the time is over.
    away: Option<Error>,
}

impl<'a> Retries<'a> {
    pub(crate) fn new(call: &'a Call) -> Retries<'a> {
        Retries { call, count: 0, most: 0, away: None }
    }

    /// Pause after an attempt that failed, with how many bytes the call has transferred in all.
    ///
    /// Fails if another attempt does not help, or would come too late.
    pub(crate) async fn pause(&mut self, failure: Error, moved: u64) -> Result<(), Error> {
        if moved > self.most {
            (self.count, self.most, self.away) = (0, moved, None);
        }
        if *failure.reason() == Reason::DeadlineExceeded {
            return Err(self.away.take().unwrap_or(failure));
        }
        // What took an upload over gets ten times as long.
        let is_taken_over = *failure.reason() == Reason::UploadInterrupted;
        let first = FIRST_PAUSE * if is_taken_over { 10 } else { 1 };
        let pause = first.saturating_mul(1 << self.count.min(8)).min(LONGEST_PAUSE);
        // Callers do not all come at the same moment.
        let random = f64::from(random() as u32) / f64::from(u32::MAX);
        let pause = pause.mul_f64(0.5 + random / 2.0) + failure.retry_after().unwrap_or_default();
        let left = self.call.deadline.saturating_duration_since(Instant::now());
        if !failure.may_pass() || left <= pause {
            return Err(failure);
        }
        self.count += 1;
        self.away = (*failure.reason() == Reason::ConnectionFailed).then_some(failure);
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

impl Inner {
    /// Begin a call; `module` is the digest of the one that it is about.
    pub(crate) fn call(&self, options: &Options, module: &str) -> Result<Call, Error> {
        let id = header::hex(&random().to_be_bytes());
        let mut metadata = MetadataMap::new();
        let mut say = |name: &'static str, value: &str| -> Result<(), ()> {
            let mut value: MetadataValue<Ascii> = value.parse().map_err(|_| ())?;
            value.set_sensitive(name == "authorization");
            metadata.insert(name, value);
            Ok(())
        };
        let _ = say("x-request-id", &id);
        if options.is_background {
            let _ = say("wasmkiln-priority", "background");
        }
        if !module.is_empty() {
            // A balancer that routes by it sends all calls about a module to the same daemon.
            let _ = say("wasmkiln-module", module);
        }
        let mut token = self.options.token.clone();
        if let Some(path) = &self.options.token_file {
            token = std::fs::read_to_string(path)
                .map_err(|why| Error::unusable(format!("cannot read the token: {why}")))?;
        }
        if !token.trim().is_empty() {
            say("authorization", &format!("Bearer {}", token.trim()))
                .map_err(|()| Error::unusable("cannot use the token: no header can have it"))?;
        }
        let timeout = options.timeout.unwrap_or(self.options.timeout);
        let deadline = Instant::now() + timeout.min(LONGEST_TIMEOUT);
        Ok(Call { address: self.options.address.clone(), id, metadata, deadline })
    }

    /// Return what makes requests, over a connection that is there or comes with the first.
    pub(crate) async fn ready(&self, call: &Call) -> Result<Grpc<Channel>, Error> {
        let channel = {
            let mut held = self.channel.lock().unwrap_or_else(|broken| broken.into_inner());
            held.get_or_insert_with(|| connection::channel(&self.address, self.tls())).clone()
        };
        let mut grpc = Grpc::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
        if let Err(why) = grpc.ready().await {
            // Also where the runtime in which it was made has ended: the next attempt makes another.
            *self.channel.lock().unwrap_or_else(|broken| broken.into_inner()) = None;
            return Err(call.failed(Status::from_error(Box::new(why))));
        }
        Ok(grpc)
    }

    pub(crate) async fn unary<S, R>(&self, call: &Call, name: &str, message: S) -> Result<R, Error>
    where
        S: prost::Message + Send + Sync + 'static,
        R: prost::Message + Default + Send + Sync + 'static,
    {
        let mut grpc = self.ready(call).await?;
        let answer = grpc.unary(call.request(message), path(name), Prost::default()).await;
        answer.map(tonic::Response::into_inner).map_err(|status| call.failed(status))
    }

    #[cfg(feature = "tls")]
    fn tls(&self) -> Option<Tls> {
        self.options.tls.clone()
    }

    #[cfg(not(feature = "tls"))]
    fn tls(&self) -> Option<connection::Tls> {
        None
    }

    pub(crate) fn max_artifact_bytes(&self) -> u64 {
        self.options.max_artifact_bytes
    }
}

/// Return the path of a method of the contract.
pub(crate) fn path(name: &str) -> PathAndQuery {
    let path = format!("/wasmkiln.v1.ModuleService/{name}");
    path.parse().expect("a method of the contract has a path")
}

/// Return random bits: the standard library seeds each of these states.
fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}

//! Where a daemon is, and how to reach it: TCP or a Unix socket, with TLS or without.

use std::future::Future;
use std::io;
use std::pin::Pin;
#[cfg(feature = "tls")]
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::Status;

use crate::error::Error;

const CONNECT: Duration = Duration::from_secs(20);
// An artifact of megabytes fills what HTTP/2 allows by default many times over.
const WINDOW_BYTES: u32 = 4 << 20;

/// Where a daemon listens.
#[derive(Clone, Debug)]
pub(crate) enum Address {
    /// A host with its port.
    Tcp(String),
    /// The path of a Unix socket.
    Unix(String),
}

impl Address {
    pub(crate) fn parse(text: &str) -> Result<Address, Error> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            if path.len() > 1 && path.starts_with('/') {
                return Ok(Address::Unix(path.to_owned()));
            }
        } else {
            let text = text.strip_prefix("dns:").unwrap_or(text);
            let text = text.strip_prefix("///").unwrap_or(text);
            if let Some((host, port)) = text.rsplit_once(':') {
                let inner = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
                let is_host = !host.is_empty() && !host.contains([':', '/', '@', ' ', '[', ']']);
                let is_port = port.parse::<u16>().is_ok_and(|number| number > 0);
                if is_port && !port.starts_with('+') && (is_host || inner.is_some()) {
                    return Ok(Address::Tcp(text.to_owned()));
                }
            }
        }
        Err(Error::unusable(format!("an address is host:port or unix:/path, not {text}")))
    }

    /// Whether it is on this machine: only there may a token go unencrypted, and files count.
    pub(crate) fn is_local(&self) -> bool {
        let Address::Tcp(address) = self else {
            return true;
        };
        let host = self.host();
        let is_v4 = address.parse::<std::net::SocketAddrV4>();
        host == "localhost" || host == "::1" || is_v4.is_ok_and(|found| found.ip().is_loopback())
    }

    fn host(&self) -> &str {
        match self {
            Address::Tcp(address) => {
                let host = address.rsplit_once(':').map_or("", |(host, _)| host);
                host.trim_start_matches('[').trim_end_matches(']')
            }
            Address::Unix(_) => "localhost",
        }
    }
}

/// How to connect over TLS: [`Builder::tls`](crate::Builder::tls).
///
/// The files are read at each connection, so that renewed certificates count.
#[cfg(feature = "tls")]
#[derive(Clone, Debug, Default)]
pub struct Tls {
    ca: Option<std::path::PathBuf>,
    client: Option<(std::path::PathBuf, std::path::PathBuf)>,
    server_name: Option<String>,
}

#[cfg(feature = "tls")]
impl Tls {
    /// TLS that trusts the CAs of this system.
    pub fn new() -> Tls {
        Tls::default()
    }

    /// Trust the CAs in this PEM file, and no others.
    pub fn ca(mut self, file: impl Into<std::path::PathBuf>) -> Tls {
        self.ca = Some(file.into());
        self
    }

    /// Show a client certificate: PEM files of its chain and of its key.
    pub fn client_certificate(
        mut self,
        chain: impl Into<std::path::PathBuf>,
        key: impl Into<std::path::PathBuf>,
    ) -> Tls {
        self.client = Some((chain.into(), key.into()));
        self
    }

    /// Expect this name in the daemon's certificate, instead of the address's host.
    pub fn server_name(mut self, name: impl Into<String>) -> Tls {
        self.server_name = Some(name.into());
        self
    }

    pub(crate) fn check(&self, address: &Address) -> Result<(), Error> {
        self.connector(address).map(drop).map_err(Error::unusable)
    }

    fn connector(
        &self,
        address: &Address,
    ) -> Result<
        (tokio_rustls::TlsConnector, tokio_rustls::rustls::pki_types::ServerName<'static>),
        String,
    > {
        use tokio_rustls::rustls::crypto::ring;
        use tokio_rustls::rustls::pki_types::pem::PemObject;
        use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
        use tokio_rustls::rustls::{ClientConfig, RootCertStore};

        let certificates = |file: &std::path::Path| -> Result<Vec<_>, String> {
            let text = std::fs::read(file).map_err(|why| format!("cannot read {file:?}: {why}"))?;
            let found = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>();
            found
                .ok()
                .filter(|found| !found.is_empty())
                .ok_or_else(|| format!("cannot read {file:?}: expected certificates in PEM"))
        };
        let system = || openssl_probe::probe().cert_file;
        let ca = self.ca.clone().or_else(system);
        let ca = ca.ok_or("cannot find the CAs of this system: name a file by Tls::ca")?;
        let mut roots = RootCertStore::empty();
        let (good, _) = roots.add_parsable_certificates(certificates(&ca)?);
        if good == 0 {
            return Err(format!("cannot use {ca:?}: none of its certificates is a CA"));
        }
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|why| why.to_string())?
            .with_root_certificates(roots);
        let mut config = match &self.client {
            None => config.with_no_client_auth(),
            Some((chain, key)) => {
                // What is wrong with a key is said without its text.
                let secret = PrivateKeyDer::from_pem_file(key)
                    .map_err(|_| format!("cannot read {key:?}: expected a private key in PEM"))?;
                config
                    .with_client_auth_cert(certificates(chain)?, secret)
                    .map_err(|why| format!("cannot use the client certificate {chain:?}: {why}"))?
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        let name = self.server_name.as_deref().unwrap_or(address.host()).to_owned();
        let name = ServerName::try_from(name.clone())
            .map_err(|_| format!("cannot use {name:?} as the name of a server"))?;
        Ok((Arc::new(config).into(), name))
    }
}

#[cfg(not(feature = "tls"))]
#[derive(Clone, Debug)]
pub(crate) enum Tls {}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

#[derive(Clone)]
struct Connector {
    address: Address,
    #[cfg_attr(not(feature = "tls"), allow(dead_code))]
    tls: Option<Tls>,
}

impl Connector {
    async fn connect(self) -> io::Result<TokioIo<Box<dyn Stream>>> {
        let stream: Box<dyn Stream> = match &self.address {
            Address::Unix(path) => Box::new(UnixStream::connect(path).await?),
            Address::Tcp(address) => {
                let stream = TcpStream::connect(address.as_str()).await?;
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
        };
        #[cfg(feature = "tls")]
        if let Some(tls) = &self.tls {
            use crate::error::TLS_FAILS;

            let fails = |why: String| io::Error::other(format!("{TLS_FAILS}: {why}"));
            let (connector, name) = tls.connector(&self.address).map_err(fails)?;
            // rustls calls what no other attempt heals invalid data.
            let stream = connector.connect(name, stream).await.map_err(|why| match why.kind() {
                io::ErrorKind::InvalidData => fails(why.to_string()),
                _ => why,
            })?;
            return Ok(TokioIo::new(Box::new(stream)));
        }
        Ok(TokioIo::new(stream))
    }
}

impl tower_service::Service<Uri> for Connector {
    type Response = TokioIo<Box<dyn Stream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let connecting = self.clone().connect();
        Box::pin(async {
            let late = |_| io::Error::new(io::ErrorKind::TimedOut, "no connection in 20 s");
            tokio::time::timeout(CONNECT, connecting).await.map_err(late)?
        })
    }
}

/// Return a channel, which connects with its first call and again after each cut.
pub(crate) fn channel(address: &Address, tls: Option<Tls>) -> Channel {
    // A proxy in between may route by the authority. TLS is not tonic's business here: so the scheme
    // stands in the origin alone.
    let scheme = if tls.is_some() { "https" } else { "http" };
    let authority = match address {
        Address::Tcp(authority) => authority,
        Address::Unix(_) => "localhost",
    };
    let origin = Uri::builder().scheme(scheme).authority(authority);
    let origin = origin.path_and_query("/").build();
    let origin = origin.unwrap_or_else(|_| Uri::from_static("http://localhost"));
    Endpoint::from_static("http://localhost")
        .origin(origin)
        .user_agent(concat!("wasmkiln-rust/", env!("CARGO_PKG_VERSION")))
        .expect("a name and a version are a header")
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .connect_with_connector_lazy(Connector { address: address.clone(), tls })
}

/// Messages of prost, for the versions of tonic that have no codec for the prost used here.
pub(crate) struct Prost<S, R>(std::marker::PhantomData<(S, R)>);

impl<S, R> Default for Prost<S, R> {
    fn default() -> Self {
        Prost(std::marker::PhantomData)
    }
}

impl<S, R> Codec for Prost<S, R>
where
    S: prost::Message + Send + 'static,
    R: prost::Message + Default + Send + 'static,
{
    type Encode = S;
    type Decode = R;
    type Encoder = Prost<S, R>;
    type Decoder = Prost<S, R>;

    fn encoder(&mut self) -> Self::Encoder {
        Prost::default()
    }

    fn decoder(&mut self) -> Self::Decoder {
        Prost::default()
    }
}

impl<S: prost::Message, R> Encoder for Prost<S, R> {
    type Item = S;
    type Error = Status;

    fn encode(&mut self, message: S, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        message.encode(to).map_err(|why| Status::internal(why.to_string()))
    }
}

impl<S, R: prost::Message + Default> Decoder for Prost<S, R> {
    type Item = R;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<R>, Status> {
        let decoded = R::decode(from);
        decoded
            .map(Some)
            .map_err(|why| Status::data_loss(format!("cannot read the daemon's answer: {why}")))
    }
}

//! Inner mutual TLS, end to end between workloads: the [`Connector`] of the source; and, from
//! its own file, the [`Acceptor`] of the destination.
//!
//! The server is verified by the identity that discovery lists for the chosen endpoint; host names
//! only say where the connection wants to go.

use std::{
    collections::{BTreeSet, HashMap},
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use linkspan_api::v1::StreamCode;
use linkspan_routing::Failure;
use linkspan_trust::{
    CertificateError, MaterialError, MaterialReader, SpiffeId, TrustPolicy, expiry_of, spiffe_id_of,
};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf},
    time::timeout,
};
use tokio_rustls::{TlsConnector, client};

pub use super::inbound::{AcceptError, Accepted, Acceptor, AcceptorLimits};
use super::{
    alpn,
    leg::{Leg, ResultError},
    tcp,
};
use crate::{forward::bytes::Duplex, frame::FrameError, proxy_header::ProxyHeader, target::Target};

/// Client configurations kept; one per identity and protocol, so a source that uses more services
/// than this rebuilds some, which costs microseconds.
const MAX_CONFIGS: usize = 1024;

/// How to reach an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Via {
    /// The endpoint's own address.
    Direct(SocketAddr),
    /// A gateway of the own cluster, which has a tunnel to the endpoint's.
    Gateway(SocketAddr),
}

impl Via {
    /// Where the TCP connection goes.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        match self {
            Self::Direct(address) | Self::Gateway(address) => *address,
        }
    }
}

impl Via {
    fn is_gateway(&self) -> bool {
        matches!(self, Self::Gateway(_))
    }
}

/// Whether the connection was lost, rather than TLS refusing what came over it.
fn is_cut(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(
        error.kind(),
        BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof
    )
}

impl std::fmt::Display for Via {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Direct(address) => write!(f, "{address}"),
            Self::Gateway(address) => write!(f, "gateway {address}"),
        }
    }
}

/// What a source offers to speak inside; never both, because a gateway may cut streams that offer
/// HTTP on suspicion and must not cut others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum InnerAlpn {
    /// `h2`, else `http/1.1`.
    Http,
    /// `linkspan-tcp/1`.
    Tcp,
}

impl InnerAlpn {
    /// Its names, preferred first.
    #[must_use]
    pub fn protocols(self) -> &'static [&'static [u8]] {
        match self {
            Self::Http => &[alpn::H2, alpn::HTTP_1_1],
            Self::Tcp => &[alpn::TCP],
        }
    }
}

/// What both sides agreed to speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Alpn {
    /// HTTP/2.
    Http2,
    /// HTTP/1.1.
    Http1,
    /// Opaque bytes.
    Tcp,
}

impl Alpn {
    /// Of its TLS name; `None` for names that are not spoken inside.
    #[must_use]
    pub fn from_name(name: &[u8]) -> Option<Self> {
        match name {
            alpn::H2 => Some(Self::Http2),
            alpn::HTTP_1_1 => Some(Self::Http1),
            alpn::TCP => Some(Self::Tcp),
            _ => None,
        }
    }
}

/// An endpoint to connect to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Upstream {
    /// How to get there.
    pub via: Via,
    /// What to ask for.
    pub target: Target,
    /// Who must answer.
    pub identity: SpiffeId,
    /// What to offer.
    pub alpn: InnerAlpn,
}

/// Time-outs of connecting.
#[derive(Clone, Copy, Debug)]
pub struct ConnectLimits {
    /// TCP connect, to an endpoint or gateway of the own cluster. Default 1 s.
    pub connect: Duration,
    /// TLS handshake with an endpoint of the own cluster. Default 2 s.
    pub handshake_direct: Duration,
    /// A gateway's answer. Default 4 s: it says within 3.5 s whether it has a stream, whatever the
    /// tunnel does, so that only one that is itself in trouble is silent for longer.
    pub result: Duration,
    /// Gateway's answer and TLS handshake through it: several round trips between clusters. Default 5 s.
    pub handshake_gateway: Duration,
}

impl Default for ConnectLimits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(1),
            handshake_direct: Duration::from_secs(2),
            result: Duration::from_secs(4),
            handshake_gateway: Duration::from_secs(5),
        }
    }
}

/// Why an endpoint could not be connected to.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Our own certificate or bundles do not make a TLS configuration.
    #[error("own TLS material cannot be used")]
    Material(#[from] MaterialError),
    /// The target does not fit into a server name.
    #[error("target name is not valid as a TLS server name")]
    Name,
    /// No TCP connection.
    #[error("cannot connect to {via}")]
    Connect {
        /// Where to.
        via: Via,
        /// Why not.
        source: io::Error,
    },
    /// Connected, but the handshake did not end in time.
    #[error("no handshake with {via} within {waited:?}")]
    Timeout {
        /// Where to.
        via: Via,
        /// How long.
        waited: Duration,
    },
    /// The own gateway, or its tunnel, does not answer.
    #[error("no answer from {via} within {waited:?}")]
    Silent {
        /// Which gateway.
        via: Via,
        /// How long.
        waited: Duration,
    },
    /// A gateway (own or peer's) refused.
    #[error("refused with {}: {message}", code.as_str_name())]
    Refused {
        /// Its reason.
        code: StreamCode,
        /// More of it, for operators.
        message: String,
    },
    /// The gateway's answer is no `StreamResult`, or the connection ended before it.
    #[error("the gateway gave no proper answer")]
    Answer(#[source] FrameError),
    /// TLS failed: wrong identity, no common protocol, cut connection.
    #[error("TLS handshake with {via} failed")]
    Handshake {
        /// Where to.
        via: Via,
        /// Why.
        source: io::Error,
    },
    /// The server's certificate has no usable identity (the verifier should have seen that).
    #[error("peer's certificate")]
    Identity(#[from] CertificateError),
    /// The server chose no protocol.
    #[error("the server chose none of the offered protocols")]
    Alpn,
}

impl ConnectError {
    /// What this means for the endpoint's record.
    #[must_use]
    pub fn failure(&self) -> Failure {
        match self {
            Self::Refused {
                code: StreamCode::EndpointGone,
                ..
            } => Failure::Gone,
            Self::Timeout { .. } | Self::Silent { .. } => Failure::Timeout,
            _ => Failure::Connect,
        }
    }

    /// Whether the endpoint itself is not to blame, but the way to it: own material, the gateway,
    /// or its tunnels. Another gateway may do. A connection through a gateway that was cut within
    /// the handshake counts as such, as any of the hops may have cut it: going another way tells.
    #[must_use]
    pub fn is_path(&self) -> bool {
        use StreamCode::{BadRequest, Busy, Draining, NoTunnel, Unspecified};
        match self {
            Self::Material(_) | Self::Name | Self::Answer(_) | Self::Silent { .. } => true,
            Self::Refused { code, .. } => {
                matches!(code, NoTunnel | Busy | Draining | BadRequest | Unspecified)
            }
            Self::Connect { via, .. } => via.is_gateway(),
            Self::Handshake { via, source } => via.is_gateway() && is_cut(source),
            _ => false,
        }
    }

    fn handshake(via: Via, error: io::Error) -> Self {
        match error.downcast::<ResultError>() {
            Ok(ResultError::Refused { code, message }) => Self::Refused { code, message },
            Ok(ResultError::Frame(error)) => Self::Answer(error),
            Ok(ResultError::Silent(waited)) => Self::Silent { via, waited },
            Err(source) => Self::Handshake { via, source },
        }
    }
}

/// Makes inner connections. One per process; clones of its material follow renewals.
#[derive(Debug)]
pub struct Connector {
    material: MaterialReader,
    limits: ConnectLimits,
    configs: Mutex<Configs>,
}

/// Client configurations of one generation of material.
#[derive(Debug, Default)]
struct Configs {
    generation: u64,
    by_use: HashMap<(SpiffeId, InnerAlpn), Arc<ClientConfig>>,
}

impl Connector {
    /// With this process's certificate and bundles.
    #[must_use]
    pub fn new(material: MaterialReader, limits: ConnectLimits) -> Self {
        Self {
            material,
            limits,
            configs: Mutex::default(),
        }
    }

    /// Connects to an endpoint: TCP, for a gateway the PROXY header, then inner TLS with exactly
    /// the expected identity.
    ///
    /// # Errors
    /// See [`ConnectError`]; nothing but a ClientHello can have reached the endpoint.
    pub async fn connect(&self, upstream: &Upstream) -> Result<Connected, ConnectError> {
        self.connect_traced(upstream, None).await
    }

    /// As [`connect`](Self::connect), telling a gateway the W3C `traceparent` of the connection's span.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub async fn connect_traced(
        &self,
        upstream: &Upstream,
        trace: Option<String>,
    ) -> Result<Connected, ConnectError> {
        let via = upstream.via;
        let config = self.config(&upstream.identity, upstream.alpn)?;
        let name =
            ServerName::try_from(upstream.target.to_string()).map_err(|_| ConnectError::Name)?;
        let tcp = tcp::connect(via.address(), self.limits.connect).await;
        let mut tcp = tcp.map_err(|source| ConnectError::Connect { via, source })?;
        let (waited, leg) = match via {
            Via::Direct(_) => (self.limits.handshake_direct, Leg::direct(tcp)),
            Via::Gateway(_) => {
                let header = ProxyHeader {
                    trace,
                    ..ProxyHeader::default()
                }
                .encode();
                // Fits into the empty send buffer of a new connection, so it does not wait.
                let sent = tcp.write_all(&header).await;
                sent.map_err(|source| ConnectError::Connect { via, source })?;
                (
                    self.limits.handshake_gateway,
                    Leg::gateway(tcp, self.limits.result),
                )
            }
        };
        let handshake = TlsConnector::from(config).connect(name, leg);
        let done = timeout(waited, handshake)
            .await
            .map_err(|_| ConnectError::Timeout { via, waited })?;
        Connected::new(done.map_err(|error| ConnectError::handshake(via, error))?)
    }

    /// The configuration for this use under the current material, from the cache if it is there.
    fn config(
        &self,
        identity: &SpiffeId,
        alpn: InnerAlpn,
    ) -> Result<Arc<ClientConfig>, ConnectError> {
        let material = self.material.current();
        let key = (identity.clone(), alpn);
        {
            let configs = self.configs.lock().unwrap_or_else(PoisonError::into_inner);
            if configs.generation == material.generation()
                && let Some(config) = configs.by_use.get(&key)
            {
                return Ok(config.clone());
            }
        }
        // Built without the lock; if two do it at once, the later one stays.
        let servers = TrustPolicy::Exactly(BTreeSet::from([identity.clone()]));
        let config = Arc::new(material.client_config(servers, alpn.protocols())?);
        let mut configs = self.configs.lock().unwrap_or_else(PoisonError::into_inner);
        if configs.generation < material.generation() || configs.by_use.len() >= MAX_CONFIGS {
            configs.by_use.clear();
        }
        configs.generation = configs.generation.max(material.generation());
        if configs.generation == material.generation() {
            configs.by_use.insert(key, config.clone());
        }
        Ok(config)
    }
}

/// An inner connection to an endpoint whose identity was proved.
#[derive(Debug)]
pub struct Connected {
    stream: client::TlsStream<Leg>,
    peer: SpiffeId,
    expires: SystemTime,
    alpn: Alpn,
}

impl Connected {
    fn new(stream: client::TlsStream<Leg>) -> Result<Self, ConnectError> {
        let session = stream.get_ref().1;
        let chain = session.peer_certificates().unwrap_or_default();
        let (peer, expires) = (spiffe_id_of(chain)?, expiry_of(chain)?);
        let alpn = session
            .alpn_protocol()
            .and_then(Alpn::from_name)
            .ok_or(ConnectError::Alpn)?;
        Ok(Self {
            stream,
            peer,
            expires,
            alpn,
        })
    }

    /// Who answered.
    #[must_use]
    pub fn peer(&self) -> &SpiffeId {
        &self.peer
    }

    /// When the certificate of who answered expires.
    #[must_use]
    pub fn expires(&self) -> SystemTime {
        self.expires
    }

    /// What is spoken.
    #[must_use]
    pub fn alpn(&self) -> Alpn {
        self.alpn
    }
}

impl AsyncRead for Connected {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connected {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

impl Duplex for Connected {
    fn reset(&mut self) {
        self.stream.reset();
    }
}

#[cfg(test)]
mod tests;

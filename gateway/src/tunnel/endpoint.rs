//! The QUIC endpoint: one UDP port for all peers that dial us, and its TLS, rebuilt whenever our
//! certificate, a bundle or a link changes. Connections that are open keep what authenticated them.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use linkspan_runtime::BoxError;
use linkspan_trust::{ClientPolicy, MaterialReader, SpiffeId, TlsMaterial, TrustPolicy};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{EndpointConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};
use tokio::sync::watch;
use tracing::{debug, warn};

use crate::join;
use crate::limits::{Limits, Timers};
use crate::peers::Peers;

/// The application protocol of the tunnel.
pub(crate) const ALPN: &[u8] = b"linkspan-tunnel/1";
/// The name that dialled gateways are asked for; identities are checked, names never are.
pub(crate) const SERVER_NAME: &str = "gateway.linkspan.internal";
/// Datagrams that wait: heartbeats only, so a few suffice.
const DATAGRAM_BUFFER: usize = 64 << 10;

/// What a caller may send before it has proved that it is a peer's gateway: a hello, or what one
/// join carries.
const STRANGER_WINDOW: u64 = 64 << 10;
/// Streams of such a caller: the control stream, or that of its join.
const STRANGER_STREAMS: u32 = 1;

/// The transport parameters of the connections that we dial: they are used once the peer has
/// proved itself.
pub(crate) fn transport(timers: &Timers, limits: &Limits) -> Arc<TransportConfig> {
    Arc::new(parameters(timers, limits))
}

/// Those of callers: anybody may finish a handshake, so what one can make us hold is little until
/// [`widen`].
pub(crate) fn listening(timers: &Timers, limits: &Limits) -> Arc<TransportConfig> {
    let mut transport = parameters(timers, limits);
    transport
        .receive_window(window(STRANGER_WINDOW.min(limits.windows.connection)))
        .max_concurrent_bidi_streams(STRANGER_STREAMS.into());
    Arc::new(transport)
}

/// Those of a dial to join: whoever answers may send as little, on the stream that we open, and
/// says that it takes the join by one of its own.
pub(crate) fn joining() -> Arc<TransportConfig> {
    let mut transport = TransportConfig::default();
    transport
        .receive_window(window(STRANGER_WINDOW))
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(1))
        .datagram_receive_buffer_size(None);
    Arc::new(transport)
}

/// Gives a caller that has proved itself what a peer may use.
pub(crate) fn widen(quic: &quinn::Connection, limits: &Limits) {
    quic.set_receive_window(window(limits.windows.connection));
    quic.set_max_concurrent_bi_streams(streams(limits));
}

fn parameters(timers: &Timers, limits: &Limits) -> TransportConfig {
    let mut transport = TransportConfig::default();
    let idle = IdleTimeout::try_from(timers.idle).unwrap_or(VarInt::MAX.into());
    transport
        .max_idle_timeout(Some(idle))
        .stream_receive_window(window(limits.windows.stream))
        .receive_window(window(limits.windows.connection))
        .send_window(limits.send_window)
        .max_concurrent_bidi_streams(streams(limits))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(Some(DATAGRAM_BUFFER))
        .datagram_send_buffer_size(DATAGRAM_BUFFER)
        // Our own heartbeats keep connections alive, in both directions.
        .keep_alive_interval(None)
        .mtu_discovery_config(Some(MtuDiscoveryConfig::default()))
        .enable_segmentation_offload(true)
        .congestion_controller_factory(Arc::new(quinn::congestion::CubicConfig::default()));
    transport
}

/// One more than asked for: the dialler's control stream.
fn streams(limits: &Limits) -> VarInt {
    limits.streams.saturating_add(1).into()
}

fn window(bytes: u64) -> VarInt {
    VarInt::from_u64(bytes).unwrap_or(VarInt::MAX)
}

/// The listening endpoint; it refuses everybody until it knows a link.
pub(crate) fn listen(socket: UdpSocket) -> std::io::Result<quinn::Endpoint> {
    let runtime = Arc::new(quinn::TokioRuntime);
    quinn::Endpoint::new(EndpointConfig::default(), None, socket, runtime)
}

/// An endpoint for one dial, on a UDP port of its own, so that a load balancer in front of the
/// peer may lead each dial to another replica.
pub(crate) fn dialling(to: SocketAddr) -> std::io::Result<quinn::Endpoint> {
    let any: SocketAddr = match to {
        SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
        SocketAddr::V6(_) => (std::net::Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    quinn::Endpoint::client(any)
}

/// What we require of a peer that we dial: the exact identity of its gateways.
pub(crate) fn client(
    material: &TlsMaterial,
    gateway: &SpiffeId,
    transport: Arc<TransportConfig>,
) -> Result<quinn::ClientConfig, BoxError> {
    let policy = TrustPolicy::Exactly([gateway.clone()].into());
    let tls = material.client_config(policy, &[ALPN])?;
    let mut config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    config.transport_config(transport);
    Ok(config)
}

/// What we require of those who dial us: if they show a certificate, it must be that of a linked
/// peer's gateway, or of one that was unlinked and is to be told. Those who show none may join; on
/// the tunnel they are told so after the handshake.
fn server(
    material: &TlsMaterial,
    peers: &Peers,
    transport: Arc<TransportConfig>,
    retry: Duration,
) -> Result<quinn::ServerConfig, BoxError> {
    let gateways = peers.admitted().cloned().collect();
    let policy = ClientPolicy::Optional(TrustPolicy::Exactly(gateways));
    let tls = material.server_config(policy, &[ALPN, join::ALPN])?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
    // A client's address may change behind a NAT, which is harmless here: the port stays ours.
    config
        .transport_config(transport)
        .retry_token_lifetime(retry);
    Ok(config)
}

/// Keeps the server side's TLS up to date. Ends when the material's writer is gone.
pub(crate) async fn keep_config(
    endpoint: quinn::Endpoint,
    mut material: MaterialReader,
    mut peers: watch::Receiver<Arc<Peers>>,
    transport: Arc<TransportConfig>,
    timers: Timers,
) {
    let mut known = None;
    loop {
        let table = peers.borrow_and_update().clone();
        let current = material.current();
        let gateways: Vec<_> = table.admitted().cloned().collect();
        let wanted = Some((current.generation(), gateways));
        if known != wanted {
            match server(&current, &table, transport.clone(), timers.handshake) {
                Ok(config) => {
                    endpoint.set_server_config(Some(config));
                    debug!(links = table.iter().count(), "tunnel's TLS is up to date");
                }
                Err(error) => warn!(%error, "new TLS material is unusable; keeping the last good"),
            }
            known = wanted;
        }
        let ended = tokio::select! {
            changed = material.changed() => changed.is_err(),
            changed = peers.changed() => changed.is_err(),
        };
        if ended {
            return;
        }
    }
}

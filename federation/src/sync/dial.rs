//! The way to a peer's federation: through one of our own gateways, inside the tunnel.
//!
//! ```text
//! outer TLS (linkspan-control/1, our gateway) │ PROXY v2 │ inner TLS (h2, the peer's federation)
//! ```
//! The gateway sees the inner server name and nothing else; it answers with a `StreamResult`.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use futures_util::future::BoxFuture;
use linkspan_routing::ClusterId;
use linkspan_trust::{MaterialReader, SpiffeId, TrustDomain, TrustPolicy};
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::watch,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::preface::{self, Opened};

const CONTROL_ALPN: &[&[u8]] = &[b"linkspan-control/1"];
const SYNC_ALPN: &[&[u8]] = &[b"h2"];
/// Server name of the outer TLS; gateways are told apart by SPIFFE ID, never by name.
const GATEWAY_NAME: &str = "gateway.linkspan.internal";
/// TCP and outer TLS to a gateway of our own cluster.
const GATEWAY_TIMEOUT: Duration = Duration::from_secs(2);
/// Through the tunnel: two round trips of a slow link and the gateway's own work.
const PEER_TIMEOUT: Duration = Duration::from_secs(5);

/// Any byte stream to a peer.
pub(crate) trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// Whom to dial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Destination {
    pub(crate) cluster: ClusterId,
    pub(crate) federation: SpiffeId,
}

/// Opens authenticated connections to peers' federations; tests replace it.
pub(crate) trait Dial: Send + Sync + 'static {
    fn dial<'a>(&'a self, to: &'a Destination) -> BoxFuture<'a, io::Result<Box<dyn Io>>>;
}

/// One of our gateways, as sync sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GatewayPath {
    pub(crate) egress: SocketAddr,
    /// Peers to which it has a connection that is not suspect.
    pub(crate) up: BTreeSet<ClusterId>,
}

/// Our gateways that take new work, by replica.
pub(crate) type GatewayPaths = BTreeMap<String, GatewayPath>;

/// Dials through our own gateways.
pub(crate) struct ViaGateways {
    pub(crate) domain: TrustDomain,
    pub(crate) material: MaterialReader,
    pub(crate) gateways: watch::Receiver<Arc<GatewayPaths>>,
}

impl Dial for ViaGateways {
    fn dial<'a>(&'a self, to: &'a Destination) -> BoxFuture<'a, io::Result<Box<dyn Io>>> {
        Box::pin(self.any_gateway(to))
    }
}

impl ViaGateways {
    /// The first that works of those that have the peer up, then of the others: they may
    /// just not have reported yet.
    async fn any_gateway(&self, to: &Destination) -> io::Result<Box<dyn Io>> {
        let gateways = Arc::clone(&self.gateways.borrow());
        let mut last = io::Error::new(
            io::ErrorKind::NotConnected,
            "no gateway of this cluster is ready; check that one runs and can reach federation",
        );
        for (replica, path) in in_order(&gateways, &to.cluster, rand::random()) {
            match self.through(path.egress, to).await {
                Ok(stream) => return Ok(stream),
                Err(error) => {
                    tracing::debug!(gateway = replica, peer = %to.cluster, %error, "no way through");
                    last = error;
                }
            }
        }
        Err(last)
    }

    async fn through(&self, egress: SocketAddr, to: &Destination) -> io::Result<Box<dyn Io>> {
        let outer = timeout(GATEWAY_TIMEOUT, self.to_gateway(egress)).await??;
        let inner = timeout(PEER_TIMEOUT, self.to_peer(outer, to)).await??;
        Ok(Box::new(inner))
    }

    async fn to_gateway(&self, egress: SocketAddr) -> io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(egress).await?;
        stream.set_nodelay(true)?;
        let own = TrustPolicy::Exactly(BTreeSet::from([SpiffeId::gateway(&self.domain)]));
        let config = self.material.current().client_config(own, CONTROL_ALPN);
        let config = config.map_err(io::Error::other)?;
        let name = ServerName::try_from(GATEWAY_NAME).map_err(io::Error::other)?;
        TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await
    }

    async fn to_peer(
        &self,
        outer: TlsStream<TcpStream>,
        to: &Destination,
    ) -> io::Result<TlsStream<Opened<TlsStream<TcpStream>>>> {
        let opened = preface::open(outer).await?;
        let config = peer_config(&self.material, to)?;
        TlsConnector::from(Arc::new(config))
            .connect(server_name(to)?, opened)
            .await
    }
}

/// TLS in which the peer must prove to be exactly the federation that the link pins.
pub(crate) fn peer_config(
    material: &MaterialReader,
    to: &Destination,
) -> io::Result<rustls::ClientConfig> {
    let pinned = TrustPolicy::Exactly(BTreeSet::from([to.federation.clone()]));
    material
        .current()
        .client_config(pinned, SYNC_ALPN)
        .map_err(io::Error::other)
}

/// The reserved target name of a peer's federation.
pub(crate) fn server_name(to: &Destination) -> io::Result<ServerName<'static>> {
    let name = format!("federation.{}.linkspan.internal", to.cluster.label());
    ServerName::try_from(name).map_err(io::Error::other)
}

/// Gateways that have `peer` up first; within each group from a random start, so that the
/// links of a cluster spread over its gateways.
fn in_order<'a>(
    gateways: &'a GatewayPaths,
    peer: &ClusterId,
    random: u64,
) -> Vec<(&'a String, &'a GatewayPath)> {
    let mut ordered: Vec<_> = gateways.iter().collect();
    if !ordered.is_empty() {
        let start = random % ordered.len() as u64;
        ordered.rotate_left(start as usize);
    }
    ordered.sort_by_key(|(_, path)| !path.up.contains(peer));
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefers_gateways_that_have_the_peer_up() {
        let west: ClusterId = "west".parse().unwrap();
        let path = |up: bool| GatewayPath {
            egress: "127.0.0.1:1".parse().unwrap(),
            up: up.then(|| west.clone()).into_iter().collect(),
        };
        let gateways: GatewayPaths = [("a", false), ("b", true), ("c", true)]
            .map(|(n, up)| (n.into(), path(up)))
            .into();
        for random in 0..6 {
            let order: Vec<_> = in_order(&gateways, &west, random)
                .into_iter()
                .map(|(name, _)| name)
                .collect();
            assert_eq!(order.len(), 3);
            assert_eq!(order[2], "a");
        }
        assert!(in_order(&GatewayPaths::new(), &west, 7).is_empty());
    }
}

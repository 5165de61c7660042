//! Connecting to an endpoint: directly in the own cluster, through one of its gateways elsewhere.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use linkspan_api::v1::StreamCode;
use linkspan_dataplane::{
    connect::{
        mtls::{Alpn, ConnectError, Connected, Connector, InnerAlpn, Upstream, Via},
        pool::{Dial, Dialled},
    },
    target::Target,
};
use linkspan_routing::{ClusterId, Endpoint, EndpointId, EndpointKey, Failure, ServiceKey};
use linkspan_trust::{MaterialReader, SpiffeId};

use crate::gateways::{BACK_OFF, Gateways, SILENT_BACK_OFF};

/// Gateways tried for one connection; more would only delay the choice of another endpoint.
const MAX_GATEWAYS: usize = 4;
/// Part of the certificates' remaining life after which connections made with them are replaced.
const RETIRE_AFTER: f64 = 0.8;
/// How long an endpoint of the own cluster may take to show that it lives when it is asked, after 1 s
/// of silence, while requests wait: a process that is stopped for 2 s keeps its connections.
const PATIENCE_DIRECT: Duration = Duration::from_secs(2);
/// The same behind gateways, where the question may wait behind what is being uploaded; the gateways
/// find out more quickly that a tunnel is lost, and tell.
const PATIENCE_GATEWAY: Duration = Duration::from_secs(5);
/// No connection is replaced before this age, lest certificates at their end cause one dial after
/// another.
const MIN_LIFE: Duration = Duration::from_secs(10);

/// An endpoint as a connection sees it. When one of these changes, it is another endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Remote {
    pub(crate) id: EndpointId,
    pub(crate) cluster: ClusterId,
    pub(crate) identity: SpiffeId,
    /// Known in the own cluster only.
    pub(crate) address: Option<SocketAddr>,
}

impl Remote {
    /// Which endpoint it is, whatever its identity and address.
    pub(crate) fn key(&self) -> EndpointKey {
        EndpointKey {
            cluster: self.cluster.clone(),
            id: self.id.clone(),
        }
    }
}

impl From<&Endpoint> for Remote {
    fn from(endpoint: &Endpoint) -> Self {
        Self {
            id: endpoint.id.clone(),
            cluster: endpoint.cluster.clone(),
            identity: endpoint.identity.clone(),
            address: endpoint.address,
        }
    }
}

/// Why there is no connection to an endpoint.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    /// The way there failed, or the endpoint did.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// It is in another cluster, and nothing leads there.
    #[error("no gateway leads to cluster {0}; see `linkspan status`")]
    NoGateway(ClusterId),
    /// Two gateways in a row let us through, and both connections were cut in the handshake.
    #[error("the endpoint cuts connections")]
    Cut(#[source] ConnectError),
    /// It speaks something else.
    #[error("the endpoint does not speak HTTP/2 inside of the mesh")]
    NotHttp2,
}

impl DialError {
    /// What this says about the endpoint; nothing if only the way to it failed.
    pub(crate) fn failure(&self) -> Option<Failure> {
        match self {
            Self::Connect(error) if error.is_path() => None,
            Self::Connect(error) => Some(error.failure()),
            Self::NoGateway(_) => None,
            Self::NotHttp2 | Self::Cut(_) => Some(Failure::Connect),
        }
    }

    /// Whether it may mean overload: somebody was too busy, or did not answer in time.
    pub(crate) fn is_overload(&self) -> bool {
        matches!(
            self,
            Self::Connect(
                ConnectError::Timeout { .. }
                    | ConnectError::Refused {
                        code: StreamCode::Busy,
                        ..
                    }
            )
        )
    }

    /// A word for metrics.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::NoGateway(_) => "no_gateway",
            Self::NotHttp2 => "protocol",
            Self::Connect(ConnectError::Refused { .. }) => "refused",
            Self::Connect(ConnectError::Timeout { .. } | ConnectError::Silent { .. }) => "timeout",
            Self::Cut(_) | Self::Connect(ConnectError::Handshake { .. }) => "handshake",
            Self::Connect(_) => "connect",
        }
    }
}

/// Connects to the endpoints of one port of one service.
#[derive(Clone, Debug)]
pub(crate) struct Dialler {
    pub(crate) connector: Arc<Connector>,
    pub(crate) material: MaterialReader,
    pub(crate) gateways: Arc<Gateways>,
    pub(crate) service: ServiceKey,
    pub(crate) port: u16,
}

impl Dialler {
    /// Connects; in another cluster by the first of its gateways that can.
    pub(crate) async fn connect(
        &self,
        remote: &Remote,
        alpn: InnerAlpn,
    ) -> Result<Connected, DialError> {
        match remote.address {
            Some(address) => Ok(self.try_via(remote, Via::Direct(address), alpn).await?),
            None => self.connect_by_gateway(remote, alpn).await,
        }
    }

    async fn connect_by_gateway(
        &self,
        remote: &Remote,
        alpn: InnerAlpn,
    ) -> Result<Connected, DialError> {
        let cluster = &remote.cluster;
        let mut last = None;
        let mut no_tunnel = true;
        for gateway in self
            .gateways
            .towards(cluster, Instant::now())
            .into_iter()
            .take(MAX_GATEWAYS)
        {
            let error = match self.try_via(remote, Via::Gateway(gateway), alpn).await {
                Ok(connected) => return Ok(connected),
                Err(error) => error,
            };
            if !error.is_path() {
                return Err(error.into());
            }
            let cut = |error: &ConnectError| matches!(error, ConnectError::Handshake { .. });
            if cut(&error) && last.as_ref().is_some_and(cut) {
                return Err(DialError::Cut(error));
            }
            let silent = matches!(error, ConnectError::Silent { .. });
            let pause = if silent { SILENT_BACK_OFF } else { BACK_OFF };
            self.gateways
                .failed(gateway, cluster, Instant::now() + pause);
            no_tunnel &= has_no_tunnel(&error);
            last = Some(error);
        }
        if no_tunnel {
            self.gateways.unreachable(cluster, Instant::now());
        }
        Err(last.map_or_else(|| DialError::NoGateway(cluster.clone()), DialError::Connect))
    }

    async fn try_via(
        &self,
        remote: &Remote,
        via: Via,
        alpn: InnerAlpn,
    ) -> Result<Connected, ConnectError> {
        let target = Target {
            endpoint: Some(remote.id.clone()),
            port: self.port,
            service: self.service.clone(),
            cluster: remote.cluster.label(),
        };
        let upstream = Upstream {
            via,
            target,
            identity: remote.identity.clone(),
            alpn,
        };
        self.connector.connect(&upstream).await
    }
}

/// When a connection should be replaced whose certificates expire then.
fn retire_at(expiries: [SystemTime; 2]) -> Option<Instant> {
    let now = SystemTime::now();
    let left = expiries.map(|expiry| expiry.duration_since(now).unwrap_or_default());
    let left = left.into_iter().min().unwrap_or_default();
    Instant::now().checked_add(left.mul_f64(RETIRE_AFTER).max(MIN_LIFE))
}

/// The gateway is gone, or has no way to the cluster.
fn has_no_tunnel(error: &ConnectError) -> bool {
    matches!(
        error,
        ConnectError::Connect { .. }
            | ConnectError::Refused {
                code: StreamCode::NoTunnel,
                ..
            }
    )
}

impl Dial<Remote> for Dialler {
    type Io = Connected;
    type Error = DialError;

    async fn dial(&self, remote: &Remote) -> Result<Dialled<Connected>, DialError> {
        let generation = self.generation(remote);
        let connected = self.connect(remote, InnerAlpn::Http).await?;
        if connected.alpn() != Alpn::Http2 {
            return Err(DialError::NotHttp2);
        }
        let own = self.material.current().svid().not_after();
        Ok(Dialled {
            retire_at: retire_at([own, connected.expires()]),
            io: connected,
            generation,
            patience: Some(if remote.address.is_some() {
                PATIENCE_DIRECT
            } else {
                PATIENCE_GATEWAY
            }),
        })
    }

    /// Of the own SVID and the roots that the endpoint is judged by: another peer's new roots must
    /// not make every sidecar connect anew.
    fn generation(&self, remote: &Remote) -> u64 {
        let material = self.material.current();
        material.generation_towards(remote.identity.trust_domain())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_certificate_that_expires_first_decides() {
        let (hour, day) = (Duration::from_secs(3600), Duration::from_secs(86_400));
        let (now, wall) = (Instant::now(), SystemTime::now());
        let retire = retire_at([wall + day, wall + hour]).expect("a time to come") - now;
        // The clocks go on in between.
        let near = |life: Duration, to: Duration| life.abs_diff(to) < Duration::from_secs(60);
        assert!(near(retire, hour.mul_f64(RETIRE_AFTER)), "{retire:?}");
        let late = retire_at([wall + day, wall - hour]).expect("a time to come") - now;
        assert!(late >= MIN_LIFE && near(late, MIN_LIFE), "{late:?}");
    }
}

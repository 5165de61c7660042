//! Connecting to an endpoint: directly in the own cluster, through one of its gateways elsewhere.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use crate::{
    connect::{
        mtls::{Alpn, ConnectError, Connected, Connector, InnerAlpn, Upstream, Via},
        pool::{Dial, Dialled},
    },
    target::Target,
};
use linkspan_api::v1::StreamCode;
use linkspan_routing::{ClusterId, Endpoint, EndpointId, EndpointKey, Failure, ServiceKey};
use linkspan_runtime::{
    process::chain,
    trace::{Kind, Parent, Span, SpanContext, Tracer},
};
use linkspan_trust::{MaterialReader, SpiffeId};
use tokio::time::timeout_at;

use super::gateways::{BACK_OFF, Gateways, SILENT_BACK_OFF};

/// Gateways tried for one connection; more would only delay the choice of another endpoint.
const MAX_GATEWAYS: usize = 4;
/// How long connecting through gateways may take in all. The first one tried has its whole time, TCP
/// included; if it is silent, the next one has 2 s, which is four times what is usual.
const BY_GATEWAYS: Duration = Duration::from_secs(6);
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
pub(super) struct Remote {
    pub(super) id: EndpointId,
    pub(super) cluster: ClusterId,
    pub(super) identity: SpiffeId,
    /// Known in the own cluster only.
    pub(super) address: Option<SocketAddr>,
}

impl Remote {
    /// Which endpoint it is, whatever its identity and address.
    pub(super) fn key(&self) -> EndpointKey {
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
pub(super) enum DialError {
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
    pub(super) fn failure(&self) -> Option<Failure> {
        match self {
            Self::Connect(error) if error.is_path() => None,
            Self::Connect(error) => Some(error.failure()),
            Self::NoGateway(_) => None,
            Self::NotHttp2 | Self::Cut(_) => Some(Failure::Connect),
        }
    }

    /// Whether it may mean overload: somebody was too busy, or did not answer in time.
    pub(super) fn is_overload(&self) -> bool {
        matches!(
            self,
            Self::Connect(
                ConnectError::Timeout { .. }
                    | ConnectError::Silent { .. }
                    | ConnectError::Refused {
                        code: StreamCode::Busy,
                        ..
                    }
            )
        )
    }

    /// A word for metrics.
    pub(super) fn reason(&self) -> &'static str {
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
pub(super) struct Dialler {
    pub(super) connector: Arc<Connector>,
    pub(super) tracer: Tracer,
    pub(super) material: MaterialReader,
    pub(super) gateways: Arc<Gateways>,
    pub(super) service: ServiceKey,
    pub(super) port: u16,
}

impl Dialler {
    /// Connects; in another cluster by the first of its gateways that can.
    pub(super) async fn connect(
        &self,
        remote: &Remote,
        alpn: InnerAlpn,
        span: Option<SpanContext>,
    ) -> Result<Connected, DialError> {
        match remote.address {
            Some(address) => {
                let direct = Via::Direct(address);
                Ok(self.try_via(remote, direct, alpn, span).await?)
            }
            None => {
                let attempt = |gateway| self.try_via(remote, Via::Gateway(gateway), alpn, span);
                by_gateways(&self.gateways, &remote.cluster, attempt).await
            }
        }
    }

    async fn try_via(
        &self,
        remote: &Remote,
        via: Via,
        alpn: InnerAlpn,
        span: Option<SpanContext>,
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
        let trace = span.map(|span| span.to_string());
        self.connector.connect_traced(&upstream, trace).await
    }

    /// Of a connection that is made because of `cause`.
    fn span(&self, remote: &Remote, cause: Option<SpanContext>) -> Span {
        let Some(cause) = cause else {
            return Span::unrecorded();
        };
        let (mut span, _) = self
            .tracer
            .begin(Parent::Own(cause), Kind::Internal, "connect");
        span.text("linkspan.destination.cluster", &remote.cluster);
        span.text("linkspan.destination.endpoint", &remote.id);
        span.text("linkspan.destination.service", &self.service);
        span
    }
}

/// When a connection should be replaced whose certificates expire then.
fn retire_at(expiries: [SystemTime; 2]) -> Option<Instant> {
    let now = SystemTime::now();
    let left = expiries.map(|expiry| expiry.duration_since(now).unwrap_or_default());
    let left = left.into_iter().min().unwrap_or_default();
    Instant::now().checked_add(left.mul_f64(RETIRE_AFTER).max(MIN_LIFE))
}

/// Makes `attempt`s with one gateway that leads to `cluster` after the other.
async fn by_gateways<T, F>(
    gateways: &Gateways,
    cluster: &ClusterId,
    attempt: impl Fn(SocketAddr) -> F,
) -> Result<T, DialError>
where
    F: Future<Output = Result<T, ConnectError>>,
{
    let until = tokio::time::Instant::now() + BY_GATEWAYS;
    let mut misses = Vec::new();
    let candidates = gateways.towards(cluster, Instant::now());
    for gateway in candidates.into_iter().take(MAX_GATEWAYS) {
        let Ok(attempted) = timeout_at(until, attempt(gateway)).await else {
            // It has not had its time, so that nothing is held against it.
            misses.push(ConnectError::Silent {
                via: Via::Gateway(gateway),
                waited: BY_GATEWAYS,
            });
            break;
        };
        let error = match attempted {
            Ok(connected) => return Ok(connected),
            Err(error) if error.is_path() => error,
            Err(error) => return Err(error.into()),
        };
        let cut = |error: &ConnectError| matches!(error, ConnectError::Handshake { .. });
        if cut(&error) && misses.last().is_some_and(cut) {
            return Err(DialError::Cut(error));
        }
        let pause = if is_silent(&error) {
            SILENT_BACK_OFF
        } else {
            BACK_OFF
        };
        gateways.failed(gateway, cluster, Instant::now() + pause);
        misses.push(error);
    }
    if is_unreachable(&misses) {
        gateways.unreachable(cluster, Instant::now());
    }
    let last = misses.pop();
    Err(last.map_or_else(|| DialError::NoGateway(cluster.clone()), DialError::Connect))
}

/// Whether these answers of all gateways mean that none leads to the cluster. One that is silent
/// says nothing, neither that it does.
fn is_unreachable(misses: &[ConnectError]) -> bool {
    let mut told = misses.iter().filter(|error| !is_silent(error)).peekable();
    (misses.is_empty() || told.peek().is_some()) && told.all(has_no_tunnel)
}

fn is_silent(error: &ConnectError) -> bool {
    matches!(error, ConnectError::Silent { .. })
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

    async fn dial(
        &self,
        remote: &Remote,
        cause: Option<SpanContext>,
    ) -> Result<Dialled<Connected>, DialError> {
        let generation = self.generation(remote);
        let mut span = self.span(remote, cause);
        let connected = self.connect(remote, InnerAlpn::Http, span.context()).await;
        let connected = connected.inspect_err(|error| span.fail(chain(error)))?;
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
            span: span.context(),
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
    use crate::{connect::mtls::ConnectLimits, discover::GatewayInfo};
    use tokio::time::sleep;

    use super::*;

    fn west() -> ClusterId {
        "west".parse().unwrap()
    }

    fn address(port: u16) -> SocketAddr {
        ([127, 0, 0, 1], port).into()
    }

    /// So many gateways that lead to west, the first of which is tried first.
    fn gateways(count: u16) -> Gateways {
        let gateways = Gateways::default();
        let known: Vec<_> = (0..count)
            .map(|port| GatewayInfo {
                replica: port.to_string(),
                egress: address(port),
                reachable: [west()].into(),
                draining: false,
            })
            .collect();
        gateways.update(&known, Instant::now());
        gateways
    }

    fn refused(code: StreamCode) -> ConnectError {
        let message = String::new();
        ConnectError::Refused { code, message }
    }

    /// As one behaves that takes connections and no more.
    async fn silence(gateway: SocketAddr) -> ConnectError {
        let waited = ConnectLimits::default().result;
        sleep(waited).await;
        let via = Via::Gateway(gateway);
        ConnectError::Silent { via, waited }
    }

    #[tokio::test(start_paused = true)]
    async fn silent_gateways_delay_a_call_by_a_bounded_time() {
        let (gateways, began) = (gateways(4), tokio::time::Instant::now());
        let attempt = async |gateway| Err::<(), _>(silence(gateway).await);
        let error = by_gateways(&gateways, &west(), attempt).await.unwrap_err();
        assert_eq!(began.elapsed(), BY_GATEWAYS);
        assert!(error.failure().is_none(), "no endpoint is to blame");
        assert!(error.is_overload(), "each such retry takes from the budget");
        // The second one has not had its time, and is the first choice but for its turn.
        let next = gateways.towards(&west(), Instant::now());
        assert_eq!(next, [1, 2, 3, 0].map(address));
    }

    #[tokio::test(start_paused = true)]
    async fn a_good_gateway_is_found_after_a_silent_one() {
        let gateways = gateways(2);
        let attempt = async |gateway| {
            if gateway == address(0) {
                return Err(silence(gateway).await);
            }
            // A lost packet, and round trips of 250 ms.
            sleep(Duration::from_millis(1_500)).await;
            Ok(gateway)
        };
        let found = by_gateways(&gateways, &west(), attempt).await.unwrap();
        assert_eq!(found, address(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_gateway_does_not_hide_that_no_other_leads_there() {
        for (all_silent, reach) in [(false, false), (true, true)] {
            let gateways = gateways(2);
            let attempt = async |gateway| {
                if all_silent || gateway == address(0) {
                    return Err::<(), _>(silence(gateway).await);
                }
                Err(refused(StreamCode::NoTunnel))
            };
            by_gateways(&gateways, &west(), attempt).await.unwrap_err();
            assert_eq!(gateways.reach(&west(), Instant::now()), reach);
        }
    }

    #[test]
    fn any_other_answer_tells_that_a_cluster_can_be_reached() {
        let no_tunnel = || refused(StreamCode::NoTunnel);
        assert!(is_unreachable(&[]) && is_unreachable(&[no_tunnel(), no_tunnel()]));
        assert!(!is_unreachable(&[no_tunnel(), refused(StreamCode::Busy)]));
    }

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

//! What is known about a service: its ports, the clusters that offer it, its endpoints.
//!
//! These are values, made by discovery from records that are already checked; a change is a
//! new value.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use linkspan_trust::SpiffeId;
use serde::{Deserialize, Serialize};

use crate::ids::{ClusterId, EndpointId, ServiceKey};
use crate::policy::FailoverPolicy;

/// Heaviest endpoint weight; larger ones count as this.
pub const MAX_WEIGHT: u32 = 128;

/// Where something runs. An empty part is unknown, and unknown is never the same as anything.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Locality {
    /// The region, e.g. `eu-central-1`.
    #[serde(default)]
    pub region: Arc<str>,
    /// The zone in that region, e.g. `eu-central-1a`.
    #[serde(default)]
    pub zone: Arc<str>,
}

impl Locality {
    /// A locality of these names.
    pub fn new(region: &str, zone: &str) -> Self {
        Self {
            region: Arc::from(region),
            zone: Arc::from(zone),
        }
    }

    /// A locality of which nothing is known.
    pub fn unknown() -> Self {
        Self::new("", "")
    }
}

impl Default for Locality {
    fn default() -> Self {
        Self::unknown()
    }
}

impl fmt::Display for Locality {
    /// `region/zone`, with `?` for what is unknown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = |part: &Arc<str>| {
            if part.is_empty() {
                Arc::from("?")
            } else {
                part.clone()
            }
        };
        write!(f, "{}/{}", known(&self.region), known(&self.zone))
    }
}

/// What the application speaks on a port.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "camelCase")]
pub enum AppProtocol {
    /// Not declared: look at the first bytes.
    #[default]
    Detect,
    /// Opaque bytes.
    Tcp,
    /// HTTP/1.1.
    Http,
    /// HTTP/2, and so gRPC.
    Http2,
}

/// A port of a service.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServicePort {
    /// Its name, where it has one.
    pub name: Option<Arc<str>>,
    /// The *Service* port, never a workload's own port.
    pub port: u16,
    /// What is spoken there.
    pub app_protocol: AppProtocol,
}

/// One workload that serves a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Stands for the workload's UID.
    pub id: EndpointId,
    /// The cluster it runs in.
    pub cluster: ClusterId,
    /// Where it runs.
    pub locality: Locality,
    /// Whom its certificate must name.
    pub identity: SpiffeId,
    /// Whether it wants traffic.
    pub ready: bool,
    /// Relative weight, 1 to [`MAX_WEIGHT`]; 0 is read as 1.
    pub weight: u32,
    /// Where inner mTLS is accepted; known for endpoints of the own cluster that have a sidecar only.
    /// Gateways lead to the others.
    pub address: Option<SocketAddr>,
    /// Greater after each restart; 0 if unknown. See [`is_restart`].
    pub incarnation: u64,
    /// The labels of its workload, as far as somebody asks for them: a proxy knows those that
    /// the policy of the service names.
    pub labels: BTreeMap<String, String>,
}

/// Whether an endpoint that was known by the incarnation `before` is another process `now`. Nothing
/// follows where either is unknown, as those who tell may be of different versions.
pub fn is_restart(before: u64, now: u64) -> bool {
    before != 0 && now > before
}

/// Names an endpoint: ids are made of UIDs, which are distinct within their cluster only.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointKey {
    /// The cluster it runs in.
    pub cluster: ClusterId,
    /// Its id there.
    pub id: EndpointId,
}

impl EndpointKey {
    /// Whether it names that endpoint.
    pub fn is(&self, endpoint: &Endpoint) -> bool {
        self.id == endpoint.id && self.cluster == endpoint.cluster
    }
}

impl Endpoint {
    /// What names it.
    pub fn key(&self) -> EndpointKey {
        EndpointKey {
            cluster: self.cluster.clone(),
            id: self.id.clone(),
        }
    }

    /// Whether it has a sidecar. Without one, gateways of its cluster take its calls, under an
    /// identity that says so.
    pub fn is_meshed(&self) -> bool {
        self.identity != SpiffeId::unmeshed_server(self.identity.trust_domain())
    }

    /// The weight as it counts: 1 to [`MAX_WEIGHT`].
    pub fn effective_weight(&self) -> u32 {
        self.weight.clamp(1, MAX_WEIGHT)
    }
}

/// What one cluster offers of a service.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClusterCapacity {
    /// How many endpoints each locality is expected to have when all is well.
    pub localities: Vec<(Locality, u32)>,
    /// Service ports that this cluster exposes.
    pub ports: Vec<u16>,
}

/// How traffic comes home after a failover.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FailbackConfig {
    /// How long a priority must have been better before traffic returns. Default 30 s.
    pub hold: Duration,
    /// How long the return then takes. Default 30 s.
    pub ramp: Duration,
}

/// Longer hold-downs and ramps count as this; it keeps sums of times defined.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);

impl FailbackConfig {
    /// Hold-down and ramp as they count.
    pub(crate) fn bounded(self) -> (Duration, Duration) {
        (self.hold.min(LONGEST), self.ramp.min(LONGEST))
    }
}

impl Default for FailbackConfig {
    fn default() -> Self {
        Self {
            hold: Duration::from_secs(30),
            ramp: Duration::from_secs(30),
        }
    }
}

/// A service, merged over the clusterset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Which service.
    pub key: ServiceKey,
    /// The union of the ports of all clusters.
    pub ports: Vec<ServicePort>,
    /// What each cluster offers.
    pub clusters: BTreeMap<ClusterId, ClusterCapacity>,
    /// All endpoints, ready or not.
    pub endpoints: Vec<Arc<Endpoint>>,
    /// How traffic comes home.
    pub failback: FailbackConfig,
    /// What is said about priorities and shares; none: the order of nearness.
    pub policy: Option<Arc<FailoverPolicy>>,
    /// Clusters that get no requests while anything else is healthy.
    pub drained: BTreeSet<ClusterId>,
}

/// Where the caller is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Its own cluster.
    pub cluster: ClusterId,
    /// Its own region and zone.
    pub locality: Locality,
}

/// Whether the endpoints of each linked cluster may be used now. A cluster that is absent,
/// other than the caller's own, may not.
pub type UsablePeers = BTreeMap<ClusterId, bool>;

//! A service to test with: clusters `east` (the caller's) and others, and a hand-held clock.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::ids::{ClusterId, EndpointId, ServiceKey};
use crate::model::{
    AppProtocol, ClusterCapacity, Endpoint, FailbackConfig, Locality, Place, Service, ServicePort,
    UsablePeers,
};

/// Builds a service endpoint by endpoint.
#[derive(Debug, Clone)]
pub(crate) struct Fixture {
    service: Service,
    pub(crate) peers: UsablePeers,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        let service = Service {
            key: ServiceKey::new("shop", "checkout").unwrap(),
            ports: vec![ServicePort {
                name: None,
                port: 80,
                app_protocol: AppProtocol::Http2,
            }],
            clusters: BTreeMap::new(),
            endpoints: Vec::new(),
            failback: FailbackConfig::default(),
            policy: None,
            drained: BTreeSet::new(),
        };
        Self {
            service,
            peers: UsablePeers::new(),
        }
    }

    /// Adds `count` ready endpoints and expects as many.
    pub(crate) fn with(mut self, cluster: &str, zone: &str, count: u32) -> Self {
        let cluster: ClusterId = cluster.parse().unwrap();
        let locality = locality(zone);
        for at in 0..count {
            let id = endpoint_id(cluster.as_str(), zone, at);
            self.service.endpoints.push(Arc::new(Endpoint {
                id,
                cluster: cluster.clone(),
                locality: locality.clone(),
                identity: format!("spiffe://{cluster}.test/ns/shop/sa/checkout")
                    .parse()
                    .unwrap(),
                ready: true,
                weight: 1,
                address: None,
                incarnation: 0,
                labels: BTreeMap::new(),
            }));
        }
        self.peers.insert(cluster.clone(), true);
        let capacity = self.service.clusters.entry(cluster).or_default();
        capacity.localities.push((locality, count));
        capacity.ports = vec![80];
        self
    }

    /// Changes one endpoint.
    pub(crate) fn change(&mut self, id: &EndpointId, change: impl FnOnce(&mut Endpoint)) {
        let endpoint = self
            .service
            .endpoints
            .iter_mut()
            .find(|e| e.id == *id)
            .unwrap();
        change(Arc::make_mut(endpoint));
    }

    pub(crate) fn capacity(&mut self, cluster: &str) -> &mut ClusterCapacity {
        self.service.clusters.get_mut(cluster).unwrap()
    }

    pub(crate) fn service(&self) -> Service {
        self.service.clone()
    }

    pub(crate) fn edit(&mut self) -> &mut Service {
        &mut self.service
    }
}

/// `eu/zone`, or unknown for an empty zone.
pub(crate) fn locality(zone: &str) -> Locality {
    if zone.is_empty() {
        Locality::unknown()
    } else {
        Locality::new("eu", zone)
    }
}

/// The id of an endpoint that [`Fixture::with`] made.
pub(crate) fn endpoint_id(cluster: &str, zone: &str, at: u32) -> EndpointId {
    EndpointId::from_uid(&format!("{cluster}-{zone}-{at}"))
}

/// A caller in zone `a` of `east`.
pub(crate) fn place() -> Place {
    Place {
        cluster: "east".parse().unwrap(),
        locality: locality("a"),
    }
}

/// SplitMix64: random enough, and the same in every run.
pub(crate) fn random(mut state: u64) -> impl FnMut() -> u64 {
    move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
}

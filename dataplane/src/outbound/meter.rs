//! Where a destination counts: on each path to its endpoints, looked up when it is first used.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
};

use linkspan_routing::{
    Choice, Endpoint, EndpointKey, Locality, PickReason, Place, Service, ServiceKey,
};
use linkspan_runtime::telemetry::{
    ConnectionHandles, Direction, End, Path, RequestHandles, RouteHandles, TrafficMetrics, Why,
};
use linkspan_trust::{SpiffeId, WorkloadId};

/// What the paths of one destination have in common.
#[derive(Debug)]
struct Shared {
    traffic: TrafficMetrics,
    source: Owned,
    service: ServiceKey,
}

/// One end of a path.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Owned {
    cluster: String,
    workload: Option<WorkloadId>,
    locality: String,
}

impl Owned {
    fn new(cluster: &str, id: &SpiffeId, locality: &Locality) -> Self {
        Self {
            cluster: cluster.to_owned(),
            workload: id.workload_id(),
            locality: locality_label(locality),
        }
    }

    fn of(endpoint: &Endpoint) -> Self {
        let cluster = endpoint.cluster.as_str();
        Self::new(cluster, &endpoint.identity, &endpoint.locality)
    }

    fn end(&self) -> End<'_> {
        let workload = self.workload.as_ref();
        End {
            cluster: &self.cluster,
            namespace: workload.map_or("", WorkloadId::namespace),
            workload: workload.map_or("", WorkloadId::service_account),
            locality: &self.locality,
        }
    }
}

/// `region/zone`; empty where nothing is known.
pub(crate) fn locality_label(locality: &Locality) -> String {
    match *locality == Locality::unknown() {
        true => String::new(),
        false => format!("{}/{}", locality.region, locality.zone),
    }
}

/// Where calls to endpoints of one workload in one place count.
#[derive(Debug)]
pub(super) struct PathMeter {
    shared: Arc<Shared>,
    destination: Owned,
    requests: OnceLock<Arc<RequestHandles>>,
    connections: OnceLock<Arc<ConnectionHandles>>,
    route: OnceLock<Arc<RouteHandles>>,
}

impl PathMeter {
    fn new(shared: Arc<Shared>, destination: Owned) -> Self {
        Self {
            shared,
            destination,
            requests: OnceLock::new(),
            connections: OnceLock::new(),
            route: OnceLock::new(),
        }
    }

    fn path(&self) -> Path<'_> {
        let service = &self.shared.service;
        Path {
            direction: Direction::Outbound,
            source: self.shared.source.end(),
            destination: self.destination.end(),
            namespace: &service.namespace,
            service: &service.name,
        }
    }

    pub(super) fn requests(&self) -> &Arc<RequestHandles> {
        let look = || self.shared.traffic.requests(&self.path());
        self.requests.get_or_init(look)
    }

    pub(super) fn connections(&self) -> &Arc<ConnectionHandles> {
        let look = || self.shared.traffic.connections(&self.path());
        self.connections.get_or_init(look)
    }

    pub(super) fn route(&self) -> &RouteHandles {
        self.route.get_or_init(|| {
            let service = &self.shared.service;
            let service = (&*service.namespace, &*service.name);
            self.shared
                .traffic
                .route(&self.destination.cluster, service)
        })
    }

    /// Counts that one of these endpoints was chosen.
    pub(super) fn chosen(&self, reason: &PickReason) {
        let why = match reason.choice {
            Choice::Share if reason.spilled => Why::Spill,
            Choice::Share => Why::Share,
            Choice::NextPriority => Why::Next,
            Choice::Trial => Why::Trial,
            Choice::Panic => Why::Panic,
        };
        self.route().chosen(why).inc();
    }
}

/// The paths of one destination; made anew with what discovery tells.
#[derive(Debug)]
pub(super) struct Paths {
    by_endpoint: HashMap<EndpointKey, Arc<PathMeter>>,
    distinct: HashMap<Owned, Arc<PathMeter>>,
}

impl Paths {
    /// To the endpoints of `service`; what has been looked up for those `before` is kept.
    pub(super) fn new(meter: &Meter, service: &Service, before: Option<&Self>) -> Self {
        let mut distinct: HashMap<Owned, Arc<PathMeter>> = HashMap::new();
        let mut path = |endpoint: &Endpoint| {
            let end = Owned::of(endpoint);
            let known = before.and_then(|before| before.distinct.get(&end)).cloned();
            let make = || Arc::new(PathMeter::new(Arc::clone(&meter.shared), end.clone()));
            let path = distinct.entry(end.clone());
            Arc::clone(path.or_insert_with(|| known.unwrap_or_else(make)))
        };
        let endpoints = service.endpoints.iter();
        let by_endpoint = endpoints
            .map(|endpoint| (endpoint.key(), path(endpoint)))
            .collect();
        Self {
            by_endpoint,
            distinct,
        }
    }

    /// The path to that endpoint.
    fn to(&self, endpoint: &Endpoint) -> Option<&Arc<PathMeter>> {
        self.by_endpoint.get(&endpoint.key())
    }
}

/// Where a destination counts.
#[derive(Debug)]
pub(super) struct Meter {
    shared: Arc<Shared>,
    /// What reaches no endpoint.
    pub(super) nowhere: Arc<PathMeter>,
}

impl Meter {
    /// For calls of `own`, which is at `place`, to a service.
    pub(super) fn new(
        traffic: TrafficMetrics,
        (own, place): (&SpiffeId, &Place),
        service: &ServiceKey,
    ) -> Self {
        let shared = Arc::new(Shared {
            traffic,
            source: Owned::new(place.cluster.as_str(), own, &place.locality),
            service: service.clone(),
        });
        let nowhere = PathMeter::new(Arc::clone(&shared), Owned::default());
        Self {
            shared,
            nowhere: Arc::new(nowhere),
        }
    }

    /// Where calls to that endpoint count. One that is no longer listed, but still answers, or was
    /// chosen just before, counts where it did.
    pub(super) fn path(&self, listed: Option<&Paths>, endpoint: &Endpoint) -> Arc<PathMeter> {
        let path = listed.and_then(|listed| listed.to(endpoint)).cloned();
        path.unwrap_or_else(|| {
            let shared = Arc::clone(&self.shared);
            Arc::new(PathMeter::new(shared, Owned::of(endpoint)))
        })
    }
}

#[cfg(test)]
mod tests {
    use linkspan_routing::EndpointId;
    use linkspan_runtime::telemetry::Registry;

    use super::*;

    fn endpoint() -> Endpoint {
        Endpoint {
            id: EndpointId::from_uid("e"),
            cluster: "west".parse().unwrap(),
            locality: Locality::unknown(),
            identity: linkspan_trust::testing::workload("west.test", "shop", "checkout"),
            ready: true,
            weight: 1,
            address: None,
            incarnation: 0,
            labels: Default::default(),
        }
    }

    #[test]
    fn an_endpoint_that_is_listed_no_more_counts_where_it_did() {
        let own = linkspan_trust::testing::workload("east.test", "shop", "frontend");
        let place = Place {
            cluster: "east".parse().unwrap(),
            locality: Locality::unknown(),
        };
        let traffic = TrafficMetrics::register(&Registry::new()).unwrap();
        let service = ServiceKey::new("shop", "checkout").unwrap();
        let meter = Meter::new(traffic, (&own, &place), &service);
        let endpoint = endpoint();
        let mut known = Service {
            key: service.clone(),
            ports: Vec::new(),
            clusters: Default::default(),
            endpoints: vec![Arc::new(endpoint.clone())],
            failback: Default::default(),
            policy: None,
            drained: Default::default(),
        };
        let listed = Paths::new(&meter, &known, None);
        meter.path(Some(&listed), &endpoint).requests().failed.inc();
        known.endpoints.clear();
        let without = Paths::new(&meter, &known, Some(&listed));
        for listed in [Some(&without), None] {
            let path = meter.path(listed, &endpoint);
            path.requests().failed.inc();
            path.route().chosen(Why::Share).inc();
        }
        let path = meter.path(Some(&listed), &endpoint);
        assert_eq!(path.requests().failed.get(), 3);
        assert_eq!(path.route().chosen(Why::Share).get(), 2);
        assert_eq!(meter.nowhere.requests().failed.get(), 0);
    }
}

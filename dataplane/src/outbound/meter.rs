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
            let end = Owned::new(
                endpoint.cluster.as_str(),
                &endpoint.identity,
                &endpoint.locality,
            );
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
    pub(super) fn to(&self, endpoint: &Endpoint) -> Option<&Arc<PathMeter>> {
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
}

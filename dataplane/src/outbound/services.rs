//! The services that a source calls: for each port one destination, with its balancer and its
//! connections, kept in step with discovery by one task.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::{
    connect::{
        mtls::Connector,
        pool::{Pool, PoolLimits},
    },
    discover::Snapshot,
    forward::http::RetryBudget,
};
use arc_swap::{ArcSwap, ArcSwapOption};
use linkspan_routing::{
    AppProtocol, Balancer, ClusterId, Endpoint, EndpointKey, Place, Service, ServiceKey, Share,
    UsablePeers,
};
use linkspan_runtime::{stop::Stop, telemetry::TrafficMetrics, trace::Tracer};
use linkspan_trust::MaterialReader;
use tokio::{
    sync::{Notify, watch},
    time::{sleep_until, timeout, timeout_at},
};
use tracing::info;

use super::{
    dial::{Dialler, Remote},
    gateways::Gateways,
    meter::{Meter, PathMeter, Paths},
    restarts::Restarts,
    told::Told,
};

/// How often unused connections are looked for.
const SWEEP: Duration = Duration::from_secs(5);
/// How long others may take to see connections close that carry nothing any more.
const FAREWELL: Duration = Duration::from_secs(1);

/// One port of one service, as a source calls it.
#[derive(Debug)]
pub struct Destination {
    pub(super) service: ServiceKey,
    pub(super) port: u16,
    pub(super) balancer: Balancer,
    pub(super) pool: Pool<Remote, Dialler>,
    pub(super) budget: RetryBudget,
    pub(super) metrics: Meter,
    known: ArcSwapOption<Known>,
    /// Locked by updates only.
    restarts: Mutex<Restarts>,
    /// Counts what may have changed a choice.
    changes: watch::Sender<u64>,
}

/// What discovery says of a destination now.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) service: Arc<Service>,
    /// What is spoken there; none if the service has no such port.
    pub(super) protocol: Option<AppProtocol>,
    paths: Paths,
}

impl Known {
    /// Endpoints in these clusters.
    pub(super) fn endpoints_in<'a>(
        &'a self,
        clusters: &'a [ClusterId],
    ) -> impl Iterator<Item = EndpointKey> + 'a {
        let endpoints = self.service.endpoints.iter();
        endpoints
            .filter(|endpoint| clusters.contains(&endpoint.cluster))
            .map(|found| found.key())
    }
}

impl Destination {
    /// What is known; none before discovery has told, or after it has withdrawn the service.
    pub(super) fn known(&self) -> Option<Arc<Known>> {
        self.known.load_full()
    }

    /// Waits until something is known, at most until then. Cancel-safe.
    pub(super) async fn known_by(&self, deadline: tokio::time::Instant) -> Option<Arc<Known>> {
        let mut changes = self.changes.subscribe();
        loop {
            if let Some(known) = self.known() {
                return Some(known);
            }
            timeout_at(deadline, changes.changed()).await.ok()?.ok()?;
        }
    }

    /// Where calls to that endpoint count.
    pub(super) fn path(&self, endpoint: &Endpoint) -> Arc<PathMeter> {
        let known = self.known();
        self.metrics
            .path(known.as_ref().map(|known| &known.paths), endpoint)
    }

    /// Follows changes that may make another choice possible.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Where its requests go now, and why.
    #[must_use]
    pub fn shares(&self) -> Vec<Share> {
        self.balancer.explain()
    }

    /// Endpoints with open connections, and the requests in flight on each of these.
    #[must_use]
    pub fn connections(&self) -> Vec<(EndpointKey, Vec<usize>)> {
        let used = self.pool.usage().into_iter();
        used.map(|(remote, in_flight)| (remote.key(), in_flight))
            .collect()
    }

    fn update(&self, now: Instant, service: &Arc<Service>, peers: &UsablePeers) {
        self.balancer.update(now, service, peers);
        let port = service.ports.iter().find(|port| port.port == self.port);
        let before = self.known();
        let before = before.as_ref().map(|known| &known.paths);
        let paths = Paths::new(&self.metrics, service, before);
        self.known.store(Some(Arc::new(Known {
            service: Arc::clone(service),
            protocol: port.map(|port| port.app_protocol),
            paths,
        })));
        let listed: HashSet<Remote> = service
            .endpoints
            .iter()
            .map(|endpoint| Remote::from(&**endpoint))
            .collect();
        // Connections do not outlive the process that they lead to.
        let restarted = self.restarts().note(&service.endpoints);
        self.pool
            .retain(|remote| listed.contains(remote) && !restarted.contains(&remote.key()));
        self.note_change();
    }

    fn forget(&self) {
        if self.known.swap(None).is_some() {
            info!(service = %self.service, "service is no longer known");
            self.restarts().note(&[]);
            self.pool.retain(|_| false);
            self.note_change();
        }
    }

    fn restarts(&self) -> MutexGuard<'_, Restarts> {
        // Each change leaves it whole.
        self.restarts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note_change(&self) {
        self.changes
            .send_modify(|count| *count = count.wrapping_add(1));
    }
}

/// Destinations by service and port.
type ByPort = BTreeMap<(ServiceKey, u16), Arc<Destination>>;

/// All destinations of a source.
#[derive(Debug)]
pub struct Services {
    by_port: ArcSwap<ByPort>,
    /// There may be destinations that know nothing yet.
    followed: Notify,
    gateways: Arc<Gateways>,
    means: Means,
}

/// What destinations are made with.
#[derive(Debug)]
pub struct Means {
    /// With which identity they are called.
    pub material: MaterialReader,
    /// Makes the connections, with the same.
    pub connector: Arc<Connector>,
    /// Counts.
    pub traffic: TrafficMetrics,
    /// Records.
    pub tracer: Tracer,
    /// Where the source is.
    pub place: Place,
    /// Tells this source from others, so that they prefer different endpoints.
    pub seed: u64,
    /// Connections to each endpoint.
    pub limits: PoolLimits,
    /// The gateway that is used before others towards other clusters, where there is one.
    pub nearest_gateway: Option<SocketAddr>,
}

impl Services {
    /// One destination for each of `ports`; nothing is known of them yet.
    #[must_use]
    pub fn new(ports: impl IntoIterator<Item = (ServiceKey, u16)>, means: Means) -> Self {
        let this = Self {
            by_port: ArcSwap::default(),
            followed: Notify::new(),
            gateways: Arc::new(Gateways::with_nearest(means.nearest_gateway)),
            means,
        };
        this.follow(ports.into_iter().collect());
        this
    }

    /// Has one destination for each of `ports` and no other. Those that go close their connections
    /// once these carry nothing. One call at a time.
    pub fn follow(&self, ports: BTreeSet<(ServiceKey, u16)>) {
        let before = self.by_port.load();
        let one = |(service, port): (ServiceKey, u16)| {
            let kept = before.get(&(service.clone(), port)).cloned();
            let make = || destination(service.clone(), port, &self.means, &self.gateways);
            let made = kept.unwrap_or_else(|| Arc::new(make()));
            ((service, port), made)
        };
        let next: ByPort = ports.into_iter().map(one).collect();
        for (port, gone) in before.iter() {
            if !next.contains_key(port) {
                gone.forget();
            }
        }
        self.by_port.store(Arc::new(next));
        self.followed.notify_one();
    }

    /// The destination for a port of a service.
    #[must_use]
    pub fn destination(&self, service: &ServiceKey, port: u16) -> Option<Arc<Destination>> {
        self.by_port.load().get(&(service.clone(), port)).cloned()
    }

    fn all(&self) -> Vec<Arc<Destination>> {
        self.by_port.load().values().cloned().collect()
    }

    /// What the debug face shows.
    #[must_use]
    pub fn dump(&self) -> serde_json::Value {
        let destination = |destination: Arc<Destination>| {
            let connections = destination
                .connections()
                .into_iter()
                .map(|(endpoint, in_flight)| {
                    serde_json::json!({
                        "endpoint": endpoint.id,
                        "cluster": endpoint.cluster,
                        "inFlight": in_flight,
                    })
                });
            serde_json::json!({
                "service": destination.service,
                "port": destination.port,
                "known": destination.known().is_some(),
                "shares": destination.shares(),
                "connections": connections.collect::<Vec<_>>(),
            })
        };
        self.all().into_iter().map(destination).collect()
    }
}

fn destination(
    service: ServiceKey,
    port: u16,
    means: &Means,
    gateways: &Arc<Gateways>,
) -> Destination {
    let dialler = Dialler {
        connector: Arc::clone(&means.connector),
        tracer: means.tracer.clone(),
        material: means.material.clone(),
        gateways: Arc::clone(gateways),
        service: service.clone(),
        port,
    };
    let own = means.material.current().svid().id().clone();
    Destination {
        balancer: Balancer::new(means.place.clone(), port, means.seed),
        pool: Pool::new(dialler, means.limits),
        budget: RetryBudget::new(Instant::now()),
        metrics: Meter::new(means.traffic.clone(), (&own, &means.place), &service),
        known: ArcSwapOption::empty(),
        restarts: Mutex::default(),
        changes: watch::Sender::new(0),
        service,
        port,
    }
}

/// Keeps destinations in step with discovery; sole caller of their updates.
#[derive(Debug)]
pub struct Driver {
    services: Arc<Services>,
    snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    own: ClusterId,
    applied: Option<Applied>,
    told: Told,
}

/// What was applied last.
#[derive(Debug)]
struct Applied {
    snapshot: Arc<Snapshot>,
    peers: UsablePeers,
}

impl Driver {
    /// One that has applied nothing yet. Its caller is in cluster `own`.
    #[must_use]
    pub fn new(
        services: Arc<Services>,
        snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
        own: ClusterId,
    ) -> Self {
        Self {
            services,
            snapshots,
            own,
            applied: None,
            told: Told::default(),
        }
    }

    /// Applies snapshots, and what time and connecting teach, until the stop aborts.
    pub async fn run(mut self, stop: Stop) {
        let mut sweep = Instant::now() + SWEEP;
        loop {
            let due = self.apply(Instant::now()).min(sweep);
            tokio::select! {
                () = stop.aborted() => return self.close().await,
                changed = self.snapshots.changed() => if changed.is_err() {
                    // Discovery has ended with the process; what is known stays.
                    stop.aborted().await;
                    return self.close().await;
                },
                () = self.services.gateways.learnt_more() => {}
                () = self.services.followed.notified() => {}
                () = sleep_until(due.into()) => {}
            }
            if Instant::now() >= sweep {
                self.sweep();
                sweep = Instant::now() + SWEEP;
            }
        }
    }

    /// Brings all destinations up to this time; returns when to do so again.
    fn apply(&mut self, now: Instant) -> Instant {
        let snapshot = self.snapshots.borrow_and_update().clone();
        if let Some(snapshot) = snapshot {
            self.services.gateways.update(&snapshot.gateways, now);
            let peers = self.peers(&snapshot, now);
            let lost = self.lost(&peers);
            self.tell(&peers, &lost, now);
            for destination in self.services.all() {
                self.apply_to(&destination, now, &snapshot, &peers);
                if !lost.is_empty() {
                    destination
                        .pool
                        .abandon(|remote| lost.contains(&remote.cluster));
                }
            }
            self.applied = Some(Applied { snapshot, peers });
        }
        self.next_change(now)
    }

    /// Which peers may be used: those that discovery has up, and to which a gateway leads.
    fn peers(&self, snapshot: &Snapshot, now: Instant) -> UsablePeers {
        let mut peers = snapshot.usable_peers();
        for (cluster, usable) in &mut peers {
            *usable &= self.services.gateways.reach(cluster, now);
        }
        peers
    }

    /// Peers that were usable and are no longer.
    fn lost(&self, peers: &UsablePeers) -> BTreeSet<ClusterId> {
        let Some(applied) = &self.applied else {
            return BTreeSet::new();
        };
        let usable = |peers: &UsablePeers, cluster: &ClusterId| {
            *cluster == self.own || peers.get(cluster).copied().unwrap_or(false)
        };
        let before = applied.peers.keys();
        before
            .filter(|cluster| usable(&applied.peers, cluster) && !usable(peers, cluster))
            .cloned()
            .collect()
    }

    fn tell(&mut self, peers: &UsablePeers, lost: &BTreeSet<ClusterId>, now: Instant) {
        for cluster in lost {
            if self.told.lost(cluster, now) {
                info!(%cluster, "cluster is unusable; sending its requests elsewhere");
            }
        }
        for cluster in self.told.back(peers, now) {
            info!(%cluster, "cluster is usable again");
        }
    }

    fn apply_to(
        &self,
        destination: &Destination,
        now: Instant,
        snapshot: &Snapshot,
        peers: &UsablePeers,
    ) {
        let Some(service) = snapshot.services.get(&destination.service) else {
            return destination.forget();
        };
        let same = self.applied.as_ref().is_some_and(|applied| {
            applied.peers == *peers
                && applied
                    .snapshot
                    .services
                    .get(&destination.service)
                    .is_some_and(|before| Arc::ptr_eq(before, service))
        });
        // A destination may be younger than what it is to know.
        if !same || destination.known().is_none() {
            destination.update(now, service, peers);
        }
    }

    /// Says goodbye on all connections; nobody calls any more.
    async fn close(&self) {
        let all = self.services.all();
        all.iter().for_each(|to| to.pool.retain(|_| false));
        let closing = async {
            for to in &all {
                to.pool.close().await;
            }
        };
        // Whoever does not take it in time goes without.
        let _ = timeout(FAREWELL, closing).await;
    }

    fn next_change(&self, now: Instant) -> Instant {
        let all = self.services.all();
        let balancers = all.iter().filter_map(|to| to.balancer.refresh(now));
        // A little late rather than early, so that what is due has come.
        let balancers = balancers.map(|wait| now + wait + Duration::from_millis(1));
        let gateways = self.services.gateways.next_change(now);
        balancers.chain(gateways).min().unwrap_or(now + SWEEP)
    }

    fn sweep(&self) {
        for destination in self.services.all() {
            destination.pool.sweep(Instant::now());
        }
        self.services.means.traffic.sweep(Instant::now());
    }
}

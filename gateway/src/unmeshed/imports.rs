//! Calls of clients without a sidecar: the certificate for them, the destinations, the ports.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use linkspan_dataplane::connect::mtls::{ConnectLimits, Connector};
use linkspan_dataplane::connect::pool::PoolLimits;
use linkspan_dataplane::discover::{GatewayInfo, Registration, Snapshot};
use linkspan_dataplane::outbound::{self, Driver, Services, Source, SourceCell};
use linkspan_routing::{ClusterId, Place};
use linkspan_runtime::stop::Stop;
use linkspan_runtime::telemetry::TrafficMetrics;
use linkspan_runtime::trace::Tracer;
use linkspan_trust::MaterialReader;
use tokio::sync::watch;
use tokio::time::sleep;

use super::listeners::{Listeners, Means, Ports};
use super::view::view;
use crate::admit::{Reach, allowed};
use crate::config::{Config, ImportsConfig};
use crate::peers::Peers;
use crate::registration;

/// Between tries to open a port that is taken.
const RETRY: Duration = Duration::from_secs(5);

/// Serves clients without a sidecar.
pub(crate) struct Imports {
    pub(crate) config: Config,
    pub(crate) imports: ImportsConfig,
    /// Where this gateway's own egress is reached.
    pub(crate) egress: SocketAddr,
    pub(crate) snapshot: watch::Receiver<Option<Arc<Snapshot>>>,
    pub(crate) peers: watch::Receiver<Arc<Peers>>,
    pub(crate) reach: watch::Receiver<Arc<Reach>>,
    pub(crate) registration: watch::Sender<Registration>,
    pub(crate) traffic: TrafficMetrics,
    pub(crate) tracer: Tracer,
    pub(crate) source: SourceCell,
    pub(crate) stop: Stop,
}

impl Imports {
    /// Serves from when there is a certificate for them until the stop drains, then until no
    /// connection is left or it aborts.
    pub(crate) async fn run(mut self, mut material: watch::Receiver<Option<MaterialReader>>) {
        let reader = tokio::select! {
            () = self.stop.draining() => return,
            reader = material.wait_for(Option::is_some) => reader.ok().and_then(|reader| reader.clone()),
        };
        // It ends only with those who would fetch it.
        let Some(reader) = reader else { return };
        let services = Arc::new(Services::new([], self.means(reader.clone())));
        self.source.set(Source::new(reader, Arc::clone(&services)));
        let (views, known) = watch::channel(None);
        let driver = Driver::new(Arc::clone(&services), known, self.config.cluster.clone());
        // Destinations serve until the last connection has ended, and no longer.
        let stop = self.stop.child();
        let following = async {
            self.follow(&services, &views).await;
            stop.abort();
        };
        tokio::join!(driver.run(stop.clone()), following);
    }

    fn means(&self, material: MaterialReader) -> outbound::Means {
        let config = &self.config;
        outbound::Means {
            connector: Arc::new(Connector::new(material.clone(), ConnectLimits::default())),
            material,
            traffic: self.traffic.clone(),
            tracer: self.tracer.clone(),
            place: Place {
                cluster: config.cluster.clone(),
                locality: config.locality.clone(),
            },
            seed: seed(&config.replica),
            limits: PoolLimits::default(),
            nearest_gateway: Some(self.egress),
        }
    }

    /// Keeps destinations and ports what the newest snapshot says.
    async fn follow(&mut self, services: &Services, views: &watch::Sender<Option<Arc<Snapshot>>>) {
        let mut listeners = Listeners::new(Means {
            listen: self.imports.listen,
            source: self.source.clone(),
            idle: self.imports.idle,
            access_log: self.imports.access_log,
            grace: self.config.drain_grace,
            connections: self.config.limits.imports,
            stop: self.stop.clone(),
        });
        let mut seen: Option<Seen> = None;
        while !self.stop.is_draining() {
            let snapshot = self.snapshot.borrow_and_update().clone();
            let own = self.own();
            if let Some(snapshot) = &snapshot {
                let reach = self.reach.borrow_and_update().clone();
                let now = Seen {
                    snapshot: Arc::clone(snapshot),
                    own,
                    reach,
                };
                if !seen.as_ref().is_some_and(|seen| seen.is(&now)) {
                    let ports = snapshot.imports.iter();
                    services.follow(ports.map(|of| (of.service.clone(), of.port)).collect());
                    let view = view(snapshot, &now.own, allowed(snapshot, &now.reach));
                    views.send_replace(Some(Arc::new(view)));
                    seen = Some(now);
                }
                listeners.follow(&snapshot.imports).await;
            }
            let ports = listeners.ports();
            let imports = snapshot
                .as_ref()
                .map(|snapshot| snapshot.imports.as_slice());
            if imports.is_some_and(|imports| listeners.misses(imports)) {
                continue;
            }
            let retry = !ports.failed.is_empty();
            registration::listening(&self.registration, &ports.open, &ports.failed);
            tokio::select! {
                () = self.stop.draining() => {}
                changed = self.snapshot.changed() => if changed.is_err() { break },
                changed = self.peers.changed() => if changed.is_err() { break },
                changed = self.reach.changed() => if changed.is_err() { break },
                () = listeners.closed() => {}
                () = sleep(RETRY), if retry => {}
            }
        }
        self.stop.draining().await;
        while !listeners.ports().open.is_empty() {
            listeners.closed().await;
        }
        let Ports { open, failed } = listeners.ports();
        registration::listening(&self.registration, &open, &failed);
        listeners.ended().await;
    }

    /// This gateway, with the peers that it has up.
    fn own(&mut self) -> GatewayInfo {
        let peers = self.peers.borrow_and_update().clone();
        let up = peers.iter().filter(|peer| peer.is_up());
        let mut reachable: BTreeSet<ClusterId> = up.map(|peer| peer.link.cluster.clone()).collect();
        let snapshot = self.snapshot.borrow();
        // To servers without a sidecar gateways lead in their own cluster, too.
        if snapshot.as_ref().is_some_and(|of| !of.servers.is_empty()) {
            reachable.insert(self.config.cluster.clone());
        }
        GatewayInfo {
            replica: self.config.replica.to_string(),
            egress: self.egress,
            reachable,
            draining: false,
        }
    }
}

/// Of what the view was made.
struct Seen {
    snapshot: Arc<Snapshot>,
    own: GatewayInfo,
    reach: Arc<Reach>,
}

impl Seen {
    fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.snapshot, &other.snapshot)
            && Arc::ptr_eq(&self.reach, &other.reach)
            && self.own == other.own
    }
}

/// A number that differs between replicas and stays with each of them (FNV-1a of its name).
fn seed(replica: &str) -> u64 {
    replica.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

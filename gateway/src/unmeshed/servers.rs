//! Calls for servers without a sidecar: inner mTLS ends here, and what a sidecar would check is
//! checked here; from here to the server it is plain text.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use linkspan_dataplane::discover::{InboundService, PeerInfo, Snapshot, UnmeshedServer};
use linkspan_dataplane::forward::http::serve::ServeLimits;
use linkspan_dataplane::inbound::{Application, Inbound, Means, Own, Rules};
use linkspan_routing::{ClusterId, EndpointId, Locality};
use linkspan_runtime::stop::Stop;
use linkspan_runtime::telemetry::TrafficMetrics;
use linkspan_runtime::trace::Tracer;
use linkspan_trust::{MaterialReader, TrustDomain};
use tokio::sync::{Semaphore, watch};
use tokio::time::interval;
use tracing::info;

use crate::config::ServersConfig;

/// How often unused connections to servers are looked for.
const SWEEP: Duration = Duration::from_secs(1);

/// Requests at a time over one HTTP/2 connection: the caller may be any workload of a peer.
const STREAMS: u32 = 100;
/// Largest head of a request, bytes.
const HEAD: u32 = 16 * 1024;
/// Bytes of all bodies of a connection that may be under way before they are read.
const WINDOW: u32 = 1024 * 1024;
/// Requests that wait for their answers: with their heads, 128 MiB at worst, in the process that
/// carries every link.
const MAX_REQUESTS: usize = 8_192;

/// Who takes the calls for each server. Empty until there is a certificate for them.
pub(crate) type Table = Arc<BTreeMap<EndpointId, Inbound>>;

/// Takes the calls for servers without a sidecar.
pub(crate) struct Servers {
    pub(crate) cluster: ClusterId,
    pub(crate) trust_domain: TrustDomain,
    pub(crate) config: ServersConfig,
    pub(crate) snapshot: watch::Receiver<Option<Arc<Snapshot>>>,
    pub(crate) traffic: TrafficMetrics,
    pub(crate) tracer: Tracer,
    pub(crate) table: watch::Sender<Table>,
    pub(crate) stop: Stop,
}

/// What all servers have in common.
struct Shared {
    material: MaterialReader,
    requests: Arc<Semaphore>,
}

/// A server, and who takes its calls.
struct Known {
    server: UnmeshedServer,
    inbound: Inbound,
}

impl Servers {
    /// Serves from when there is a certificate for them until the stop aborts.
    pub(crate) async fn run(mut self, mut material: watch::Receiver<Option<MaterialReader>>) {
        let reader = tokio::select! {
            () = self.stop.aborted() => return,
            reader = material.wait_for(Option::is_some) => reader.ok().and_then(|reader| reader.clone()),
        };
        // It ends only with those who would fetch it.
        let Some(material) = reader else { return };
        let requests = Arc::new(Semaphore::new(MAX_REQUESTS));
        let shared = Shared { material, requests };
        let mut known = BTreeMap::new();
        let (mut sweep, mut last) = (interval(SWEEP), None);
        loop {
            let newest = self.snapshot.borrow_and_update().clone();
            if let Some(newest) = newest.filter(|newest| is_news(last.as_ref(), newest)) {
                self.follow(&mut known, &newest, &shared).await;
                last = Some(newest);
            }
            tokio::select! {
                () = self.stop.aborted() => break,
                changed = self.snapshot.changed() => if changed.is_err() { break },
                now = sweep.tick() => {
                    let now: Instant = now.into_std();
                    known.values().for_each(|known: &Known| known.inbound.sweep(now));
                }
            }
        }
        close(known).await;
    }

    /// Keeps those who take calls what the snapshot says.
    async fn follow(
        &self,
        known: &mut BTreeMap<EndpointId, Known>,
        snapshot: &Snapshot,
        shared: &Shared,
    ) {
        let mut next = BTreeMap::new();
        for server in &snapshot.servers {
            let kept = known.remove(&server.id);
            let same = kept.filter(|kept| kept.server.addresses == server.addresses);
            let inbound = match same {
                Some(same) => same.inbound,
                None => {
                    info!(service = %server.service, endpoint = %server.id, "calls are taken for a server without a sidecar");
                    self.inbound(server, shared)
                }
            };
            inbound.apply(rules(snapshot, server));
            let server = server.clone();
            next.insert(server.id.clone(), Known { server, inbound });
        }
        // What runs goes on; whoever asks for more is sent elsewhere.
        let gone = std::mem::replace(known, next);
        for gone in gone.values() {
            gone.inbound.apply(Rules::default());
        }
        let table = known.iter();
        let table = table.map(|(id, known)| (id.clone(), known.inbound.clone()));
        self.table.send_replace(Arc::new(table.collect()));
        close(gone).await;
    }

    fn inbound(&self, server: &UnmeshedServer, shared: &Shared) -> Inbound {
        Inbound::new(Means {
            material: shared.material.clone(),
            own: Own {
                endpoint: server.id.clone(),
                cluster: self.cluster.label(),
                trust_domain: self.trust_domain.clone(),
            },
            cluster: self.cluster.clone(),
            locality: Locality::unknown(),
            application: Application::There(server.addresses.clone()),
            traffic: self.traffic.clone(),
            tracer: self.tracer.clone(),
            idle: self.config.idle,
            access_log: self.config.access_log,
            limits: ServeLimits {
                streams: STREAMS,
                connection_window: WINDOW,
                head: HEAD,
                ..ServeLimits::default()
            },
            requests: Some(Arc::clone(&shared.requests)),
            stop: self.stop.clone(),
        })
    }
}

fn is_news(last: Option<&Arc<Snapshot>>, newest: &Arc<Snapshot>) -> bool {
    last.is_none_or(|last| !Arc::ptr_eq(last, newest))
}

/// Closes their connections to the servers; takes a second at most.
async fn close(gone: BTreeMap<EndpointId, Known>) {
    join_all(gone.values().map(|gone| gone.inbound.close())).await;
}

/// Whom a server admits.
fn rules(snapshot: &Snapshot, server: &UnmeshedServer) -> Rules {
    let services = snapshot.inbound.iter();
    let services: Vec<InboundService> = services
        .filter(|of| of.key == server.service)
        .cloned()
        .collect();
    let peers = snapshot.links.iter().map(|link| PeerInfo {
        cluster: link.cluster.clone(),
        trust_domain: link.trust_domain.clone(),
        usable: true,
        stale: false,
    });
    Rules {
        services,
        peers: peers.collect(),
    }
}

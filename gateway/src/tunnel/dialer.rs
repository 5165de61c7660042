//! Keeps links connected: one task per link that carries out what its [`Plan`] decides.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use linkspan_dataplane::discover::LinkInfo;
use linkspan_routing::ClusterId;
use linkspan_runtime::process::chain;
use linkspan_runtime::stop::Stop;
use linkspan_runtime::{BoxError, telemetry::LinkHandles};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;
use tracing::{debug, info, warn};

use super::Tunnel;
use super::close::{self, CloseCode};
use super::connection::Connection;
use super::lookup::{Answer, Lookup};
use super::plan::{Held, Outcome, Plan, Purpose, Step};
use super::{endpoint, handshake, surplus};
use crate::peers::{Peer, Peers};

/// Names are resolved this many times more often while an address fails.
const FAILING: u32 = 6;

/// Runs a dialler for each link, until the stop drains.
pub(crate) async fn run(tunnel: Arc<Tunnel>, stop: Stop) {
    let mut peers = tunnel.watch_peers();
    let mut diallers: BTreeMap<ClusterId, AbortHandle> = BTreeMap::new();
    let mut tasks = JoinSet::new();
    loop {
        let linked: BTreeSet<_> = clusters(&peers.borrow_and_update());
        diallers.retain(|cluster, dialler| {
            let stays = linked.contains(cluster) && !dialler.is_finished();
            if !stays {
                dialler.abort();
            }
            stays
        });
        for cluster in linked {
            diallers
                .entry(cluster.clone())
                .or_insert_with(|| tasks.spawn(Dialler::new(tunnel.clone(), cluster).run()));
        }
        tokio::select! {
            () = stop.draining() => return,
            changed = peers.changed() => if changed.is_err() { return },
            Some(ended) = tasks.join_next() => drop(ended),
        }
    }
}

fn clusters(peers: &Peers) -> BTreeSet<ClusterId> {
    peers.iter().map(|peer| peer.link.cluster.clone()).collect()
}

struct Dialler {
    tunnel: Arc<Tunnel>,
    cluster: ClusterId,
    peers: watch::Receiver<Arc<Peers>>,
    metrics: LinkHandles,
    plan: Plan,
    held: Held,
    lookup: Lookup,
    surplus: surplus::Surplus,
    /// Addresses whose failure has been logged, until they work again.
    failing: BTreeSet<SocketAddr>,
    tries: JoinSet<(SocketAddr, Result<Outcome, BoxError>)>,
}

impl Dialler {
    fn new(tunnel: Arc<Tunnel>, cluster: ClusterId) -> Self {
        Self {
            peers: tunnel.watch_peers(),
            metrics: tunnel.link_metrics(&cluster),
            tunnel,
            cluster,
            plan: Plan::new(now()),
            held: Held::default(),
            lookup: Lookup::default(),
            surplus: surplus::Surplus::default(),
            failing: BTreeSet::new(),
            tries: JoinSet::new(),
        }
    }

    /// Ends when the peer is no longer linked.
    async fn run(mut self) {
        loop {
            let table = self.peers.borrow_and_update().clone();
            let Some(peer) = table.get(&self.cluster) else {
                return;
            };
            self.look(peer);
            self.lookup.look(&peer.link, now(), self.resolve_every());
            let wait = self.step(&peer.link).min(self.next_look());
            tokio::select! {
                changed = self.peers.changed() => if changed.is_err() { return },
                Some(ended) = self.tries.join_next() => if let Ok((address, outcome)) = ended {
                    self.ended(address, outcome);
                },
                answer = self.lookup.answer() => self.resolved(&answer),
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Takes notice of what connections there are.
    fn look(&mut self, peer: &Peer) {
        let held = peer.held();
        for replica in self
            .held
            .data
            .iter()
            .filter(|replica| !held.data.contains(replica))
        {
            self.plan.lost(now(), replica);
        }
        self.held = held;
        let own = &self.tunnel.own().cluster;
        for connection in self
            .surplus
            .due(now(), self.tunnel.timers().surplus, own, peer)
        {
            connection.leave(CloseCode::Surplus);
        }
    }

    /// Dials what the link's addresses lead to now.
    fn resolved(&mut self, answer: &Answer) {
        let refused = &answer.found.refused;
        if answer.is_new && !refused.is_empty() {
            let peer = &self.cluster;
            warn!(%peer, ?refused, "the link's addresses lead to this machine and are not dialled; \
                set `allowLoopback: true` in the ClusterLink if that is meant");
        }
        self.plan.set_addresses(now(), &answer.found.addresses);
    }

    fn resolve_every(&self) -> Duration {
        let every = self.tunnel.timers().resolve;
        if self.plan.is_failing() {
            every / FAILING
        } else {
            every
        }
    }

    /// When to look again although nothing changed: names are to be resolved, or surplus is due.
    fn next_look(&self) -> Duration {
        self.resolve_every().min(self.tunnel.timers().surplus)
    }

    /// Starts what the plan wants now; how long it wants to wait before its next step.
    fn step(&mut self, link: &Arc<LinkInfo>) -> Duration {
        loop {
            match self.plan.next(now(), &self.held) {
                Step::Wait(wait) => return wait,
                Step::Idle => return Duration::MAX,
                Step::Dial(address, purpose) => {
                    let (tunnel, link) = (self.tunnel.clone(), link.clone());
                    self.tries.spawn(async move {
                        (address, dial(&tunnel, &link, address, purpose).await)
                    });
                }
            }
        }
    }

    fn ended(&mut self, address: SocketAddr, outcome: Result<Outcome, BoxError>) {
        let outcome = match outcome {
            Ok(outcome) => {
                self.worked(address);
                outcome
            }
            Err(error) => {
                self.failed(address, &error);
                Outcome::Failed
            }
        };
        self.plan.ended(now(), address, outcome, rand::random());
    }

    fn worked(&mut self, address: SocketAddr) {
        self.metrics.dials_ok.inc();
        if self.failing.remove(&address) {
            info!(peer = %self.cluster, %address, "peer's gateway answers again");
        }
    }

    /// The first failure is news, the ones after it are not.
    fn failed(&mut self, address: SocketAddr, error: &BoxError) {
        self.metrics.dials_failed.inc();
        let (peer, error) = (&self.cluster, chain(error.as_ref()));
        self.failing.retain(|address| self.plan.knows(*address));
        if self.failing.insert(address) {
            warn!(%peer, %address, error, "peer's gateway cannot be reached; trying on");
        } else {
            debug!(%peer, %address, error, "peer's gateway still cannot be reached");
        }
    }
}

/// One try: handshake, hellos, session.
async fn dial(
    tunnel: &Arc<Tunnel>,
    link: &LinkInfo,
    address: SocketAddr,
    purpose: Purpose,
) -> Result<Outcome, BoxError> {
    let endpoint = endpoint::dialling(address)?;
    let quic = shake_hands(tunnel, &endpoint, link, address).await?;
    let (own, limit) = (tunnel.own(), tunnel.timers().hello);
    let greeted = handshake::dial(&quic, own, &link.cluster, purpose, limit).await;
    let (hello, control) = match greeted {
        Ok(greeted) => greeted,
        Err(refused) => {
            let closed = quic.close_reason();
            if let Some(invitation) = closed.as_ref().and_then(close::unlinked_of) {
                tunnel.unlinked(&link.cluster, invitation).await;
            }
            close::close(&quic, refused.code());
            return Err(refused.into());
        }
    };
    let replica = hello.replica.clone();
    let surplus = is_surplus(tunnel, link, purpose, &replica);
    let connection: Arc<Connection> = tunnel.start(quic, hello, control, Some(endpoint));
    if surplus {
        connection.leave(CloseCode::Surplus);
        return Ok(Outcome::Surplus(replica));
    }
    Ok(Outcome::Connected(replica))
}

async fn shake_hands(
    tunnel: &Tunnel,
    endpoint: &quinn::Endpoint,
    link: &LinkInfo,
    address: SocketAddr,
) -> Result<quinn::Connection, BoxError> {
    let config = endpoint::client(&tunnel.material(), &link.gateway, tunnel.transport())?;
    let connecting = endpoint.connect_with(config, address, endpoint::SERVER_NAME)?;
    let limit = tunnel.timers().handshake;
    let shaken = timeout(limit, connecting).await;
    Ok(
        shaken
            .map_err(|_| format!("no answer within {limit:?}; is its UDP port open to us?"))??,
    )
}

/// Whether another connection does this one's work already.
fn is_surplus(tunnel: &Tunnel, link: &LinkInfo, purpose: Purpose, replica: &str) -> bool {
    let peers = tunnel.peers();
    let own = &tunnel.own().cluster;
    peers.get(&link.cluster).is_some_and(|peer| {
        let rivals = peer
            .usable(purpose)
            .filter(|held| surplus::rivals(held, purpose, replica));
        rivals
            .into_iter()
            .any(|held| !held.state().retiring && (held.dialled || link.cluster < *own))
    })
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

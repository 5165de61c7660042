//! The peer table: which clusters are linked, and which connections there are to each.
//!
//! One task writes it, from the links of the newest snapshot and from what the sessions report;
//! everybody else reads an `Arc<Peers>`. The same task tells federation which peers are up.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use linkspan_api::v1;
use linkspan_dataplane::discover::{LinkInfo, Snapshot};
use linkspan_routing::{ClusterId, ClusterLabel};
use linkspan_runtime::telemetry::{LinkLabels, LinkMetrics};
use linkspan_trust::SpiffeId;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{debug, info};

use crate::tunnel::close::{self, CloseCode};
use crate::tunnel::connection::{Connection, State};
use crate::tunnel::handshake;
use crate::tunnel::plan::{Held, Purpose};

/// Reports of sessions that wait for the table's task. It never waits for anybody, so that a
/// full channel only slows the sessions that report, for a moment.
const REPORTS: usize = 256;
/// Round-trip times are refreshed this often where nothing else changes.
const REFRESH: Duration = Duration::from_secs(5);

/// All linked peers at one moment.
#[derive(Clone, Debug, Default)]
pub struct Peers {
    by_id: BTreeMap<ClusterId, Peer>,
    by_label: BTreeMap<ClusterLabel, ClusterId>,
    /// Gateways of clusters that were unlinked and may not know it, and the invitations of which
    /// the links came.
    unlinked: BTreeMap<SpiffeId, String>,
}

/// One linked peer.
#[derive(Clone, Debug)]
pub struct Peer {
    /// What is declared.
    pub link: Arc<LinkInfo>,
    /// What there is, suspect and draining connections included.
    pub connections: Vec<Arc<Connection>>,
    /// Its gateway said that it has removed a link: that which came of this invitation, or one that
    /// was declared if it is empty. Whether that is this link, federation knows.
    pub removed: Option<String>,
}

impl Peers {
    /// The peer of that id.
    #[must_use]
    pub fn get(&self, cluster: &ClusterId) -> Option<&Peer> {
        self.by_id.get(cluster)
    }

    /// The peer whose id has that label.
    #[must_use]
    pub fn by_label(&self, label: &ClusterLabel) -> Option<&Peer> {
        self.by_id.get(self.by_label.get(label)?)
    }

    /// The peer whose gateways have that identity.
    #[must_use]
    pub fn by_gateway(&self, id: &SpiffeId) -> Option<&Peer> {
        self.by_id.values().find(|peer| peer.link.gateway == *id)
    }

    /// If these are the gateways of a cluster that was unlinked and may not know it: the invitation
    /// of which the link came, empty where it was declared.
    #[must_use]
    pub fn unlinked(&self, gateway: &SpiffeId) -> Option<&str> {
        self.unlinked.get(gateway).map(String::as_str)
    }

    /// The gateways that may finish a handshake: the peers', and those that are to be told.
    pub fn admitted(&self) -> impl Iterator<Item = &SpiffeId> {
        let peers = self.by_id.values().map(|peer| &peer.link.gateway);
        peers.chain(self.unlinked.keys())
    }

    /// All peers, by id.
    pub fn iter(&self) -> impl Iterator<Item = &Peer> {
        self.by_id.values()
    }

    /// Replaces the links; gives the connections that no longer belong to one.
    fn set_links(&mut self, links: &[LinkInfo]) -> Vec<Arc<Connection>> {
        let mut former = std::mem::take(&mut self.by_id);
        let mut orphans = Vec::new();
        for link in links {
            let (connections, removed) = match former.remove(&link.cluster) {
                Some(peer) if same_peer(&peer.link, link) => (peer.connections, peer.removed),
                Some(peer) => {
                    orphans.extend(peer.connections);
                    (Vec::new(), None)
                }
                None => (Vec::new(), None),
            };
            let peer = Peer {
                link: Arc::new(link.clone()),
                connections,
                removed,
            };
            self.by_id.insert(link.cluster.clone(), peer);
        }
        orphans.extend(former.into_values().flat_map(|peer| peer.connections));
        let label = |id: &ClusterId| (id.label(), id.clone());
        self.by_label = self.by_id.keys().map(label).collect();
        orphans
    }

    fn add(&mut self, connection: Arc<Connection>, limit: usize) -> Result<(), CloseCode> {
        let peer = self
            .by_id
            .get_mut(&connection.cluster)
            .ok_or(CloseCode::NotLinked)?;
        // Since the handshake the cluster may have been linked anew, with other gateways.
        let proven = handshake::identity(&connection.quic).ok();
        if proven.as_ref() != Some(&peer.link.gateway) {
            return Err(CloseCode::NotLinked);
        }
        if peer.connections.len() >= limit {
            return Err(CloseCode::Limit);
        }
        peer.connections.push(connection);
        // Linked anew at the other side, and accepted again.
        peer.removed = None;
        Ok(())
    }

    fn remove(&mut self, connection: &Connection) {
        if let Some(peer) = self.by_id.get_mut(&connection.cluster) {
            peer.connections.retain(|held| held.id != connection.id);
        }
    }

    fn health(&self) -> v1::LinkHealth {
        v1::LinkHealth {
            peers: self.by_id.values().map(Peer::health).collect(),
        }
    }
}

/// Whether a changed declaration still means the peer to which the connections lead.
fn same_peer(old: &LinkInfo, new: &LinkInfo) -> bool {
    old.gateway == new.gateway && old.trust_domain == new.trust_domain
}

impl Peer {
    /// Connections that may carry new streams for that purpose.
    pub fn usable(&self, purpose: Purpose) -> impl Iterator<Item = &Arc<Connection>> {
        let for_it = move |of: &&Arc<Connection>| of.purpose == purpose && of.state().usable();
        self.connections.iter().filter(for_it)
    }

    /// Whether streams of workloads can be opened to the peer now.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.usable(Purpose::Data).next().is_some()
    }

    /// What the dialler needs to know.
    #[must_use]
    pub fn held(&self) -> Held {
        let fresh = |purpose| self.usable(purpose).filter(|held| !held.state().retiring);
        let told = self.connections.iter().filter(|held| !held.state().suspect);
        Held {
            data: fresh(Purpose::Data)
                .map(|held| held.replica.clone())
                .collect(),
            sync: fresh(Purpose::Sync).next().is_some(),
            ready: told.map(|held| held.state().ready).max().unwrap_or(0),
        }
    }

    /// Smoothed round-trip time of the best connection.
    #[must_use]
    pub fn rtt(&self) -> Option<Duration> {
        let clear = self.connections.iter().filter(|held| !held.state().suspect);
        clear.map(|held| held.rtt()).min()
    }

    fn health(&self) -> v1::PeerHealth {
        let micros = |rtt: Duration| u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX);
        v1::PeerHealth {
            cluster: self.link.cluster.to_string(),
            up: self.is_up(),
            connections: u32::try_from(self.connections.len()).unwrap_or(u32::MAX),
            rtt_micros: self.rtt().map_or(0, micros),
            removed: self.removed.is_some(),
            removed_invitation: self.removed.clone().unwrap_or_default(),
        }
    }
}

#[derive(Debug)]
enum Report {
    Opened(Arc<Connection>, oneshot::Sender<Result<(), CloseCode>>),
    Changed,
    Closed(Arc<Connection>),
    Unlinked(ClusterId, String),
}

/// How sessions report to the table.
#[derive(Clone, Debug)]
pub(crate) struct Reporter(mpsc::Sender<Report>);

impl Reporter {
    /// Adds a connection; refused if the peer is not (any more) linked or has too many.
    pub(crate) async fn opened(&self, connection: Arc<Connection>) -> Result<(), CloseCode> {
        let (answer, added) = oneshot::channel();
        if self
            .0
            .send(Report::Opened(connection, answer))
            .await
            .is_err()
        {
            return Err(CloseCode::Gone);
        }
        added.await.unwrap_or(Err(CloseCode::Gone))
    }

    /// A connection's state has changed.
    pub(crate) async fn changed(&self) {
        // A table that has ended needs no reports.
        let _ = self.0.send(Report::Changed).await;
    }

    /// A gateway of `cluster`, having proved itself, said that the link is removed that came of
    /// `invitation`, or if it is empty, one that was declared.
    pub(crate) async fn unlinked(&self, cluster: &ClusterId, invitation: String) {
        let report = Report::Unlinked(cluster.clone(), invitation);
        let _ = self.0.send(report).await;
    }

    /// A connection has ended.
    pub(crate) async fn closed(&self, connection: Arc<Connection>) {
        let _ = self.0.send(Report::Closed(connection)).await;
    }
}

/// The sole writer of the peer table.
#[derive(Debug)]
pub(crate) struct Table {
    peers: Peers,
    limit: usize,
    reports: mpsc::Receiver<Report>,
    snapshot: watch::Receiver<Option<Arc<Snapshot>>>,
    published: watch::Sender<Arc<Peers>>,
    health: watch::Sender<v1::LinkHealth>,
    metrics: LinkMetrics,
}

impl Table {
    /// An empty table; `limit` is the most connections that one link may have.
    pub(crate) fn new(
        limit: usize,
        snapshot: watch::Receiver<Option<Arc<Snapshot>>>,
        published: watch::Sender<Arc<Peers>>,
        health: watch::Sender<v1::LinkHealth>,
        metrics: LinkMetrics,
    ) -> (Self, Reporter) {
        let (reporter, reports) = mpsc::channel(REPORTS);
        let peers = Peers::default();
        (
            Self {
                peers,
                limit,
                reports,
                snapshot,
                published,
                health,
                metrics,
            },
            Reporter(reporter),
        )
    }

    /// Runs until it is dropped; ends early only when every session and the snapshots are gone.
    pub(crate) async fn run(mut self) {
        let mut refresh = tokio::time::interval(REFRESH);
        self.take_links();
        loop {
            // Each arm is cancel-safe: channels and an interval.
            tokio::select! {
                report = self.reports.recv() => match report {
                    Some(report) => self.take(report),
                    None => return,
                },
                changed = self.snapshot.changed() => match changed {
                    Ok(()) => self.take_links(),
                    Err(_) => return,
                },
                _ = refresh.tick() => self.report(true),
            }
        }
    }

    fn take_links(&mut self) {
        let Some(snapshot) = self.snapshot.borrow_and_update().clone() else {
            return;
        };
        let stays = |peer: &Peer| {
            snapshot
                .links
                .iter()
                .any(|link| link.cluster == peer.link.cluster)
        };
        for gone in self.peers.iter().filter(|peer| !stays(peer)) {
            self.metrics.forget(&LinkLabels {
                peer: gone.link.cluster.as_str(),
            });
        }
        self.peers.unlinked = snapshot.tombstones.clone();
        for orphan in self.peers.set_links(&snapshot.links) {
            info!(peer = %orphan.cluster, replica = %orphan.replica, "link removed; closing its connection");
            let identity = handshake::identity(&orphan.quic).ok();
            match identity.and_then(|id| self.peers.unlinked(&id).map(str::to_owned)) {
                Some(invitation) => close::unlinked(&orphan.quic, &invitation),
                None => orphan.close(CloseCode::Removed),
            }
        }
        self.publish();
    }

    fn take(&mut self, report: Report) {
        match report {
            Report::Opened(connection, answer) => {
                let added = self.peers.add(connection.clone(), self.limit);
                self.publish();
                if answer.send(added).is_err() && added.is_ok() {
                    debug!(peer = %connection.cluster, "the session ended before it began");
                    self.peers.remove(&connection);
                }
            }
            Report::Changed => {}
            Report::Closed(connection) => self.peers.remove(&connection),
            Report::Unlinked(cluster, invitation) => {
                if let Some(peer) = self.peers.by_id.get_mut(&cluster) {
                    info!(peer = %cluster, invitation, "the peer says that it has removed the link");
                    peer.removed = Some(invitation);
                }
            }
        }
        self.publish();
    }

    fn publish(&self) {
        self.published.send_replace(Arc::new(self.peers.clone()));
        self.report(false);
    }

    /// Shows a peer's connections; with `refresh` also what their paths are like.
    fn measure(&self, peer: &Peer, refresh: bool) {
        let handles = self.metrics.link(&LinkLabels {
            peer: peer.link.cluster.as_str(),
        });
        handles.up.set(peer.is_up().into());
        let states: Vec<_> = peer.connections.iter().map(|held| held.state()).collect();
        let count = |so: fn(&State) -> bool| {
            let counted = states.iter().filter(|state| so(state)).count();
            i64::try_from(counted).unwrap_or(i64::MAX)
        };
        let suspect = |state: &State| state.suspect;
        let draining = |state: &State| state.draining && !state.suspect;
        handles.suspect.set(count(suspect));
        handles.draining.set(count(draining));
        handles
            .clear
            .set(count(|state| !state.suspect && !state.draining));
        handles
            .rtt_seconds
            .set(peer.rtt().unwrap_or_default().as_secs_f64());
        if refresh {
            let paths = peer.connections.iter().map(|held| held.quic.stats().path);
            let narrowest = paths.map(|path| path.current_mtu).min();
            handles.mtu.set(narrowest.unwrap_or_default().into());
        }
    }

    /// Tells federation; a round-trip time alone is news only when `refresh` says so.
    fn report(&self, refresh: bool) {
        let health = self.peers.health();
        for peer in self.peers.iter() {
            self.measure(peer, refresh);
        }
        self.health.send_if_modified(|told| {
            let news = if refresh {
                *told != health
            } else {
                !same_but_rtt(told, &health)
            };
            if news {
                *told = health;
            }
            news
        });
    }
}

fn same_but_rtt(old: &v1::LinkHealth, new: &v1::LinkHealth) -> bool {
    let timeless = |health: &v1::LinkHealth| -> Vec<_> {
        let parts = health.peers.iter();
        parts
            .map(|peer| {
                (
                    peer.cluster.clone(),
                    peer.up,
                    peer.connections,
                    peer.removed,
                    peer.removed_invitation.clone(),
                )
            })
            .collect()
    };
    timeless(old) == timeless(new)
}

//! All that the controller owns, and what each input does to it.

use std::{
    ops::RangeInclusive,
    sync::Arc,
    time::{Duration, Instant},
};

use linkspan_core::{
    ClusterId, FailbackConfig, Locality, OwnCluster,
    capacity::{HighWater, KeptMark, Seen},
    declared::Declared,
    derived::Deriver,
    gateways::Gateways,
    history::History,
    hold::{LINK_GRACE, RemovalHold},
    imports::{KeptPort, PortBook},
    join::LinkBook,
    peer::{Decision, Event, Hangup, Now, PeerSettings, PeerState},
    peers::{Decisions, Journals, Peers, PeersView},
    plan::{Known, listed, listed_by_peers, plan},
    workloads::{Owned, Registration, Workloads},
};
use linkspan_runtime::telemetry::{FederationMetrics, IntCounter, LinkLabels};
use linkspan_trust::Bundle;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;
use tonic::Status;

use super::{
    input::{Input, Member, Shown},
    links::Links,
    world::{World, bundles, buried, live_gateways},
    young::Young,
};
use crate::{
    home::{KeptPeers, Newest},
    state::{Remembered, Troubles, roots::Kept},
    sync::{Context, Heard},
};

/// How often a plan is made although nothing happened: high-water marks decay.
const REPLAN: Duration = Duration::from_secs(5);

/// How often it is looked which uids are nobody's any more: each of them is.
const LOOK_AT_OWNERS: Duration = Duration::from_secs(600);

/// What a controller starts with.
pub(crate) struct Foundation {
    pub(crate) own: OwnCluster,
    pub(crate) own_bundle: Bundle,
    pub(crate) failback: FailbackConfig,
    pub(crate) peers: PeerSettings,
    pub(crate) lease: Duration,
    /// For how long a uid stays whose it was: longer than a certificate lives.
    pub(crate) keep_owners: Duration,
    /// Whether there was a life before this one, of which others still hold something.
    pub(crate) restarted: bool,
    /// What was known before the restart.
    pub(crate) remembered: Remembered,
    /// Numbers that may stand for imports.
    pub(crate) import_ports: RangeInclusive<u16>,
    /// Set where the home holds what is derived from imports: where its callers mostly are.
    pub(crate) derives: Option<Locality>,
    pub(crate) context: Context,
    pub(crate) tasks: TaskTracker,
    pub(crate) metrics: FederationMetrics,
    /// Which links are pending, and which were removed.
    pub(crate) book: watch::Receiver<Arc<LinkBook>>,
    /// Where the registrations that count go, to be kept on disk.
    pub(crate) persist: watch::Sender<Arc<Vec<Registration>>>,
    /// Where announced roots go, likewise.
    pub(crate) persist_roots: watch::Sender<Arc<Vec<Kept>>>,
    /// Where the owners of uids go, likewise.
    pub(crate) persist_owned: watch::Sender<Arc<Vec<Owned>>>,
    /// Where the marks of capacity go, likewise.
    pub(crate) persist_marks: watch::Sender<Arc<Vec<KeptMark>>>,
    /// Where the last records of peers go, likewise.
    pub(crate) persist_journal: watch::Sender<Newest>,
    /// Where the ports of imports go, likewise.
    pub(crate) persist_ports: watch::Sender<Arc<Vec<KeptPort>>>,
    /// Those that a restart would find.
    pub(crate) kept_ports: watch::Receiver<Arc<Vec<KeptPort>>>,
    /// What cannot be kept.
    pub(crate) troubles: Troubles,
}

/// The registries, the peers, and the last plan.
pub(crate) struct State {
    pub(super) own: OwnCluster,
    own_bundle: Bundle,
    failback: FailbackConfig,
    restarted: bool,
    /// As declared; which links are pending is not known there.
    source: Option<Arc<Declared>>,
    pub(super) book: watch::Receiver<Arc<LinkBook>>,
    pub(super) declared: Option<Arc<Declared>>,
    pub(super) workloads: Workloads,
    pub(super) gateways: Gateways,
    young: Young,
    pub(super) peers: Peers,
    high_water: HighWater,
    seen: Seen,
    history: History,
    import_ports: PortBook,
    deriver: Option<Deriver>,
    /// Made with the first declared links.
    hold: Option<RemovalHold>,
    pub(super) links: Links,
    metrics: FederationMetrics,
    persist: watch::Sender<Arc<Vec<Registration>>>,
    persist_roots: watch::Sender<Arc<Vec<Kept>>>,
    persist_owned: watch::Sender<Arc<Vec<Owned>>>,
    persist_marks: watch::Sender<Arc<Vec<KeptMark>>>,
    persist_journal: watch::Sender<Newest>,
    persist_ports: watch::Sender<Arc<Vec<KeptPort>>>,
    kept_ports: watch::Receiver<Arc<Vec<KeptPort>>>,
    /// Changes of the owners of uids when these were kept last.
    kept_owners: u64,
    /// For how long a uid stays whose it was, and when that was looked at last.
    keep_owners: Duration,
    owners_seen: Option<Instant>,
    /// What cannot be kept.
    pub(super) troubles: Troubles,
    dirty: bool,
    planned: Option<Now>,
    pub(super) last: Arc<World>,
    pub(super) started: Now,
}

impl State {
    pub(crate) fn new(foundation: Foundation, now: Now) -> Self {
        let f = foundation;
        let mut workloads = Workloads::new(f.lease);
        workloads.restore_owners(f.remembered.owned);
        workloads.restore(f.remembered.registrations, now.instant);
        let mut peers = Peers::new(f.peers);
        peers.restore(f.remembered.announced);
        let deriver = f.derives.map(|locality| Deriver::new(&f.own, locality));
        Self {
            own: f.own,
            own_bundle: f.own_bundle,
            failback: f.failback,
            restarted: f.restarted,
            source: None,
            book: f.book,
            declared: None,
            workloads,
            gateways: Gateways::new(),
            young: Young::default(),
            peers,
            high_water: HighWater::restored(f.remembered.marks, now),
            seen: Seen::new(),
            history: History::new(),
            import_ports: PortBook::new(f.import_ports, f.remembered.import_ports),
            deriver,
            hold: None,
            links: Links::new(f.context, f.tasks),
            metrics: f.metrics,
            persist: f.persist,
            persist_roots: f.persist_roots,
            persist_owned: f.persist_owned,
            persist_marks: f.persist_marks,
            persist_journal: f.persist_journal,
            persist_ports: f.persist_ports,
            kept_ports: f.kept_ports,
            kept_owners: 0,
            keep_owners: f.keep_owners,
            owners_seen: None,
            troubles: f.troubles,
            dirty: false,
            planned: None,
            last: Arc::default(),
            started: now,
        }
    }

    /// Which ports of imports a restart would find.
    pub(super) fn kept_ports(&self) -> watch::Receiver<Arc<Vec<KeptPort>>> {
        self.kept_ports.clone()
    }

    /// More ports of imports can be told.
    pub(super) fn note_kept_ports(&mut self) {
        self.dirty = true;
    }

    /// Takes in what peers told before a restart; before anything is declared.
    pub(super) fn remember(&mut self, journals: Journals) {
        self.peers.remember(journals);
    }

    /// Takes in what is declared now.
    pub(super) fn declare(&mut self, declared: Arc<Declared>, now: Now) {
        self.source = Some(Arc::clone(&declared));
        let declared = self.with_pending(declared);
        self.hold.get_or_insert_with(|| match self.restarted {
            true => RemovalHold::new(declared.links.keys().cloned(), LINK_GRACE, now.instant),
            false => RemovalHold::released(),
        });
        if let Some(former) = &self.declared {
            self.young
                .declare(former, &declared, &self.gateways, now.instant);
        }
        let decisions = self.peers.relink(&declared.links, now);
        self.forget_unlinked(&declared);
        self.declared = Some(declared);
        self.act(decisions);
        // A new link may be up already.
        self.observe_tunnels(now);
        self.dirty = true;
    }

    /// Counts what could not be read.
    pub(super) fn source_errors(&self) -> IntCounter {
        self.metrics.source_errors.clone()
    }

    /// The book of links, to follow.
    pub(super) fn book(&self) -> watch::Receiver<Arc<LinkBook>> {
        self.book.clone()
    }

    /// Takes in what the book of links says now.
    pub(super) fn consult_book(&mut self, now: Now) {
        if let Some(declared) = self.source.clone() {
            self.declare(declared, now);
        }
    }

    /// With the links marked that no tunnel has proved yet, or that are being removed; without those
    /// that have just been.
    fn with_pending(&mut self, declared: Arc<Declared>) -> Arc<Declared> {
        let book = Arc::clone(&self.book.borrow_and_update());
        let pending = |link: &linkspan_core::Link| {
            let joined = book.joined(&link.cluster, &link.trust_domain);
            joined.is_some_and(|joined| !joined.is_active())
        };
        let gone = |link: &linkspan_core::Link| book.has_just_ended(&link.trust_domain);
        let mut links = declared.links.values();
        if !links.any(|link| pending(link) || gone(link)) {
            return declared;
        }
        let mut marked = Declared::clone(&declared);
        marked.links.retain(|_, link| !gone(link));
        for link in marked.links.values_mut() {
            link.pending = pending(link);
        }
        Arc::new(marked)
    }

    fn forget_unlinked(&self, declared: &Declared) {
        let former = self.declared.iter().flat_map(|former| former.links.keys());
        for cluster in former.filter(|cluster| !declared.links.contains_key(*cluster)) {
            self.metrics.forget(&LinkLabels {
                peer: cluster.as_str(),
            });
        }
    }

    /// Takes in one thing that happened.
    pub(super) fn handle(&mut self, input: Input, now: Now) {
        match input {
            Input::Workload(registration, session, verdict) => {
                let heard = self.workloads.register(registration, session, now.instant);
                self.dirty |= heard.as_ref().is_ok_and(|changed| *changed);
                let _ = verdict.send(heard.map(drop).map_err(refused));
            }
            Input::Gateway(registration, session, verdict) => {
                let heard = self.gateways.register(registration, session, now.instant);
                if heard.as_ref().is_ok_and(|changed| *changed) {
                    self.observe_tunnels(now);
                    self.dirty = true;
                }
                let _ = verdict.send(heard.map(drop).map_err(refused));
            }
            Input::Health(replica, session, health) => {
                if self.gateways.report(&replica, session, health) {
                    self.observe_tunnels(now);
                    self.dirty = true;
                }
            }
            Input::Reach(addresses) => self.dirty |= self.gateways.reached_at(addresses),
            Input::Disconnected(Member::Workload(uid), session) => {
                self.workloads.disconnect(&uid, session, now.instant);
            }
            Input::Disconnected(Member::Gateway(replica), session) => {
                self.gateways.disconnect(&replica, session, now.instant);
            }
            Input::Subscription(cluster, reply) => {
                if let Some(peer) = self.peers.get(&cluster) {
                    let _ = reply.send(peer.subscription());
                }
            }
            Input::Heard(heard) => self.heard(heard, now),
            Input::SyncLost(cluster, stream, reason) => self.lost(&cluster, stream, reason, now),
            Input::Status(reply) => drop(reply.send(self.status(now))),
            Input::Services(reply) => drop(reply.send(self.service_list(now))),
            Input::Shown(service, cluster, reply) => {
                let _ = reply.send(Shown {
                    past: self.history.of(&service),
                    localities: self.localities(&cluster),
                });
            }
        }
    }

    fn heard(&mut self, heard: Heard, now: Now) {
        let mut verdict = Ok(());
        for event in heard.events {
            // Checked before each: an event may end the stream to which the next belongs.
            if !self.links.is_current(&heard.peer, heard.stream) {
                verdict = verdict.and(Err(Hangup::Removed));
                break;
            }
            let decision = self.peers.handle(&heard.peer, event, now);
            if let Some(hangup) = &decision.hangup {
                verdict = Err(hangup.clone());
            }
            self.act(vec![(heard.peer.clone(), decision)]);
        }
        if self
            .peers
            .get(&heard.peer)
            .is_some_and(|peer| peer.state() == PeerState::Live)
        {
            self.links.note(&heard.peer, None);
        }
        let _ = heard.reply.send(verdict);
    }

    fn lost(&mut self, cluster: &ClusterId, stream: u64, reason: String, now: Now) {
        if self.links.is_current(cluster, stream) {
            self.links.note(cluster, Some(reason));
            let decision = self.peers.handle(cluster, Event::Lost, now);
            self.act(vec![(cluster.clone(), decision)]);
        }
    }

    /// Lets leases lapse and clocks run.
    pub(super) fn tick(&mut self, now: Now) {
        self.dirty |= self.workloads.tick(now.instant);
        let looked = self.owners_seen.unwrap_or(self.started.instant);
        if now.instant.saturating_duration_since(looked) >= LOOK_AT_OWNERS {
            self.owners_seen = Some(now.instant);
            self.workloads.forget_owners(now.wall, self.keep_owners);
        }
        if self.gateways.tick(now.instant) {
            self.observe_tunnels(now);
            self.dirty = true;
        }
        let decisions = self.peers.tick(now);
        self.act(decisions);
        let last = self.planned.map_or(self.started, |planned| planned);
        self.dirty |= now.instant.saturating_duration_since(last.instant) >= REPLAN;
        self.dirty |= self.hold.as_ref().is_some_and(RemovalHold::holds);
    }

    fn observe_tunnels(&mut self, now: Now) {
        let decisions = self.peers.observe(&self.gateways, now);
        self.act(decisions);
    }

    fn act(&mut self, decisions: Decisions) {
        for (
            cluster,
            Decision {
                hangup,
                subscribe,
                changed,
            },
        ) in decisions
        {
            if let Some(reason) = hangup {
                tracing::info!(peer = %cluster, %reason, "closing the sync stream");
                self.links.hang_up(&cluster);
            }
            self.dirty |= changed | subscribe;
        }
    }

    /// Whether anything happened since the last plan.
    pub(super) fn wants_plan(&self) -> bool {
        self.dirty && self.declared.is_some()
    }

    /// Makes a new world if anything happened, and publishes it if it differs.
    pub(super) fn publish(&mut self, worlds: &watch::Sender<Arc<World>>, now: Now) {
        let Some(declared) = self.declared.clone() else {
            return;
        };
        if !std::mem::take(&mut self.dirty) {
            return;
        }
        self.links
            .follow(declared.links.keys().cloned(), &self.peers);
        let world = self.world(declared, now);
        self.planned = Some(now);
        self.persist(now);
        self.persist_journal(now);
        let next = World {
            generation: self.last.generation,
            ..world
        };
        if *self.last != next {
            self.last = Arc::new(World {
                generation: next.generation + 1,
                ..next
            });
            self.history.observe(&self.last.desired, now.instant);
            worlds.send_replace(Arc::clone(&self.last));
        }
    }

    fn world(&mut self, declared: Arc<Declared>, now: Now) -> World {
        let peers = self.peers.view(now);
        self.high_water
            .observe(&listed(&declared, &self.workloads), now.instant);
        self.seen.observe(&listed_by_peers(&peers), now.instant);
        let mut desired = plan(
            &Known {
                own: &self.own,
                failback: self.failback,
                declared: &declared,
                workloads: &self.workloads,
                gateways: &self.gateways,
                peers: &peers,
                high_water: &self.high_water,
                seen: &self.seen,
            },
            now,
        );
        self.measure(&peers, desired.problems.len());
        let own_settled = self.workloads.settled();
        let settled = self.settled(own_settled, &peers, now);
        self.import_ports
            .assign(&mut desired, &self.gateways, !settled, now.wall);
        PortBook::tell_only_kept(&mut desired, &self.kept_ports.borrow());
        if let Some(deriver) = &mut self.deriver {
            deriver.derive(&mut desired, &declared, &self.gateways, now.instant);
        }
        let bundles = bundles(&self.own.trust_domain, &self.own_bundle, &desired);
        let buried = buried(&self.book.borrow(), &declared);
        self.young.observe(&self.gateways, now.instant);
        let removed = self
            .young
            .removed(&declared, &self.gateways, &self.book.borrow());
        World {
            generation: 0,
            settled,
            own_settled,
            declared,
            desired,
            gateways: live_gateways(&self.gateways),
            own_bundle: Some(self.own_bundle.clone()),
            bundles,
            own_addresses: self.gateways.tunnel_addresses(),
            buried,
            removed,
            stale: self.young.stale(),
        }
    }

    fn settled(&mut self, own_settled: bool, peers: &PeersView, now: Now) -> bool {
        let Some(hold) = &mut self.hold else {
            return false;
        };
        if hold.observe(own_settled, peers, now.instant) {
            tracing::info!("all are back after the restart; removals are sent again");
        }
        !hold.holds()
    }

    fn measure(&self, peers: &PeersView, problems: usize) {
        self.metrics.plans.inc();
        let troubles = self.troubles.list().len();
        self.metrics
            .state_troubles
            .set(i64::try_from(troubles).unwrap_or(i64::MAX));
        self.metrics
            .resource_problems
            .set(i64::try_from(problems).unwrap_or(i64::MAX));
        for (cluster, peer) in peers {
            let handles = self.metrics.peer(&LinkLabels {
                peer: cluster.as_str(),
            });
            handles.live.set(i64::from(peer.state == PeerState::Live));
            handles.usable.set(i64::from(peer.usable));
            let counted = handles.refused.get();
            handles
                .refused
                .inc_by(peer.refused_total.saturating_sub(counted));
            handles
                .records
                .set(i64::try_from(peer.records.len()).unwrap_or(i64::MAX));
            let age = peer.record_age.unwrap_or_default();
            handles.age_seconds.set(age.as_secs_f64());
        }
    }

    /// Has what peers told last kept; whoever keeps it looks whether it is new.
    pub(super) fn persist_journal(&self, now: Now) {
        if let Some(declared) = &self.declared {
            let kept = KeptPeers {
                peers: self.peers.kept(now),
                links_in_doubt: declared.links_in_doubt,
            };
            self.persist_journal.send_replace(Some(Arc::new(kept)));
        }
    }

    /// Has the registrations that count, the owners of uids, announced roots, and how many
    /// endpoints there were kept on disk.
    pub(super) fn persist(&mut self, now: Now) {
        self.persist_marks.send_if_modified(|last| {
            let newest = self.high_water.kept(now);
            let news = self.declared.is_some() && **last != newest;
            if news {
                *last = Arc::new(newest);
            }
            news
        });
        // Before links are declared, what was restored is all that there is.
        if self.declared.is_some() {
            let newest: Vec<_> = self.peers.announced().map(|of| Kept::from(&of)).collect();
            self.persist_roots.send_if_modified(|last| {
                let news = **last != newest;
                *last = Arc::new(newest);
                news
            });
        }
        self.persist_ports.send_if_modified(|last| {
            let newest = self.import_ports.kept();
            let news = **last != newest;
            *last = Arc::new(newest);
            news
        });
        let others_count = self.persist.send_if_modified(|last| {
            let news = !self.workloads.counting().eq(last.iter());
            if news {
                *last = Arc::new(self.workloads.counting().cloned().collect());
            }
            news
        });
        let changes = self.workloads.owners_changes();
        if std::mem::replace(&mut self.kept_owners, changes) != changes || others_count {
            let newest = self.workloads.owned();
            self.persist_owned.send_if_modified(|last| {
                let news = **last != newest;
                *last = Arc::new(newest);
                news
            });
        }
    }
}

fn refused(error: impl std::fmt::Display) -> Status {
    Status::failed_precondition(error.to_string())
}

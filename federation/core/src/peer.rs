//! One peer as a state machine: events in, decisions out.
//!
//! ```text
//! Pending ─tunnel─► Connecting ─Begin─► Syncing ─Complete─► Live
//!    ▲                                     ▲   ◄──Begin──────┤
//!    └── withdrawn ◄─ Stale ◄─ lost, silent ┴─────────────────┘      (any) ─► Removed
//! ```
//!
//! Two clocks run apart. *Link health*: the peer is usable while any gateway has it up.
//! *Record age*: how long ago its federation was last heard; old records are kept and
//! marked stale. They are withdrawn when no tunnel has been up and nothing was heard for
//! `stale_ttl`, or at `record_cap` whatever the tunnels say.
//!
//! Stopping is not removing: a federation that stops just drops this value. Nothing that
//! a peer told is deleted before its next `Complete`: a new snapshot is staged beside the
//! records in force and takes their place whole.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::announced::{Announced, declaration};
use crate::delta::{Known, RecordHash};
use crate::journal::{Keep, Kept};
use crate::model::{Bundle, Link};
use crate::record::{BUNDLE_KEY, PeerRecords, ReceivedRecord, RecordBody, Refusal};

mod events;
#[cfg(test)]
mod tests;
mod view;

pub use events::{Begin, Decision, Event, Hangup, Now, PeerSettings};
pub use view::{PeerState, PeerView};

use view::{Refusals, shown};

/// Where a peer stands; each state holds what it knows.
#[derive(Clone, Debug)]
enum State {
    Pending,
    Connecting,
    Syncing(Box<Syncing>),
    Live { heard: Instant },
    Stale { heard: Instant },
    Removed,
}

#[derive(Clone, Debug)]
struct Syncing {
    heard: Instant,
    /// When the records in force were last confirmed; `None` where there are none.
    confirmed: Option<Instant>,
    staged: PeerRecords,
}

#[derive(Clone, Copy, Debug)]
enum Tunnel {
    Up { gateways: u32 },
    Down { since: Instant },
}

/// What a subscription tells the peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubscriptionStart {
    /// Records held.
    pub known: Known<String>,
    /// The highest epoch seen; 0 if none.
    pub epoch: u64,
    /// The peer may be authenticated by one of these only: what an operator has just dropped
    /// must not bring itself back.
    pub roots: Vec<Bundle>,
}

/// One peer.
#[derive(Clone, Debug)]
pub struct Peer {
    link: Arc<Link>,
    settings: Arc<PeerSettings>,
    state: State,
    tunnel: Tunnel,
    records: Arc<PeerRecords>,
    /// What the peer announced of its roots upon the present declaration.
    announced: Option<Bundle>,
    epoch: u64,
    completed: bool,
    refusals: Refusals,
    /// Why the last stream was closed, until one completes.
    trouble: Option<Hangup>,
    /// Why nothing is known from before a restart, until a stream completes.
    forgotten: Option<String>,
}

impl Peer {
    /// A link that was just declared, or found declared at start.
    pub fn new(link: Link, settings: Arc<PeerSettings>, now: Now) -> Self {
        Self {
            link: Arc::new(link),
            settings,
            state: State::Pending,
            tunnel: Tunnel::Down { since: now.instant },
            records: Arc::default(),
            announced: None,
            epoch: 0,
            completed: false,
            refusals: Refusals::default(),
            trouble: None,
            forgotten: None,
        }
    }

    /// Takes in what the peer announced before a restart, unless the link declares other roots
    /// now than then.
    pub fn restore(&mut self, announced: Announced) {
        if announced.on == declaration(&self.link) {
            self.announced = Some(announced.bundle);
        }
    }

    /// What to keep for [`Peer::restore`].
    pub fn announced(&self) -> Option<Announced> {
        Some(Announced {
            cluster: self.link.cluster.clone(),
            on: declaration(&self.link),
            bundle: self.announced.clone()?,
        })
    }

    /// The same, with what the peer told before a restart. Its age goes on from when it was last
    /// confirmed; the tunnel counts as lost just now.
    pub fn restored(link: Link, settings: Arc<PeerSettings>, kept: Kept, now: Now) -> Self {
        let age = now.wall.duration_since(kept.confirmed).unwrap_or_default();
        let heard = now.instant.checked_sub(age).unwrap_or(now.instant);
        let state = match kept.records.is_empty() {
            true => State::Pending,
            false => State::Stale { heard },
        };
        let mut peer = Self {
            state,
            epoch: kept.epoch,
            records: kept.records,
            ..Self::new(link, settings, now)
        };
        peer.note_roots();
        peer
    }

    /// A peer of which nothing is known from before a restart, for this reason.
    pub fn forgotten(link: Link, settings: Arc<PeerSettings>, why: String, now: Now) -> Self {
        Self {
            forgotten: Some(why),
            ..Self::new(link, settings, now)
        }
    }

    /// What is to outlive a restart.
    pub fn keep(&self, now: Now) -> Keep {
        let Some(confirmed) = self.confirmed() else {
            // Not heard yet: it may have been before the restart.
            return Keep::AsItIs;
        };
        if self.records.is_empty() {
            return Keep::Nothing;
        }
        let age = now.instant.saturating_duration_since(confirmed);
        Keep::This(Kept {
            trust_domain: self.link.trust_domain.clone(),
            epoch: self.epoch,
            confirmed: now.wall.checked_sub(age).unwrap_or(now.wall),
            records: Arc::clone(&self.records),
        })
    }

    /// The link.
    pub fn link(&self) -> &Arc<Link> {
        &self.link
    }

    /// The state's name.
    pub fn state(&self) -> PeerState {
        match self.state {
            State::Pending => PeerState::Pending,
            State::Connecting => PeerState::Connecting,
            State::Syncing(_) => PeerState::Syncing,
            State::Live { .. } => PeerState::Live,
            State::Stale { .. } => PeerState::Stale,
            State::Removed => PeerState::Removed,
        }
    }

    /// What to tell the peer when a sync stream is opened.
    pub fn subscription(&self) -> SubscriptionStart {
        SubscriptionStart {
            known: self.records.known(),
            epoch: self.epoch,
            roots: self
                .announced
                .iter()
                .chain([&self.link.bundle])
                .cloned()
                .collect(),
        }
    }

    /// Whether a sync stream should be open or being opened.
    pub fn wants_sync(&self) -> bool {
        !matches!(self.state, State::Removed) && self.usable()
    }

    fn usable(&self) -> bool {
        matches!(self.tunnel, Tunnel::Up { .. })
    }

    /// How it looks now.
    pub fn view(&self, now: Now) -> PeerView {
        let problems = self.refusals.newest.iter().cloned();
        let trouble = self.trouble.iter().map(ToString::to_string);
        PeerView {
            link: Arc::clone(&self.link),
            state: self.state(),
            usable: self.usable() && !matches!(self.state, State::Removed),
            stale: !matches!(self.state, State::Live { .. }),
            completed: self.completed,
            record_age: self
                .confirmed()
                .map(|at| now.instant.saturating_duration_since(at)),
            epoch: self.epoch,
            records: Arc::clone(&self.records),
            announced: self.announced.clone(),
            refused: self.refusals.count,
            refused_total: self.refusals.total,
            problems: self
                .forgotten
                .iter()
                .cloned()
                .chain(trouble)
                .chain(problems)
                .collect(),
        }
    }

    /// How many gateways have the peer up.
    pub fn gateways_up(&self) -> u32 {
        match self.tunnel {
            Tunnel::Up { gateways } => gateways,
            Tunnel::Down { .. } => 0,
        }
    }

    /// What to do about an event.
    pub fn handle(&mut self, event: Event, now: Now) -> Decision {
        if matches!(self.state, State::Removed) {
            return Decision {
                hangup: Some(Hangup::Removed),
                ..Decision::default()
            };
        }
        match event {
            Event::Tunnel { gateways_up } => self.handle_tunnel(gateways_up, now),
            Event::Lost => self.lose(now),
            Event::Tick => self.tick(now),
            Event::Begin(begin) => match self.check_begin(&begin, now) {
                Ok(()) => self.begin(begin.epoch, now),
                Err(hangup) => self.hang_up(hangup, now),
            },
            message => match self.handle_message(message, now) {
                Ok(changed) => Decision {
                    changed,
                    ..Decision::default()
                },
                Err(hangup) => self.hang_up(hangup, now),
            },
        }
    }

    /// The declaration has changed.
    pub fn relink(&mut self, link: Link, now: Now) -> Decision {
        if *self.link == link {
            return Decision::default();
        }
        let former = std::mem::replace(&mut self.link, Arc::new(link));
        if former.trust_domain != self.link.trust_domain {
            // Whoever spoke before was somebody else.
            self.records = Arc::default();
            self.announced = None;
            self.epoch = 0;
        } else if former.imports != self.link.imports {
            Arc::make_mut(&mut self.records).retain_allowed(&self.link);
        }
        if former.bundle != self.link.bundle {
            // Declared anew on purpose; what was announced under the old roots counts no more.
            Arc::make_mut(&mut self.records).remove(BUNDLE_KEY);
            self.announced = None;
        }
        let same_peer = Link {
            addresses: self.link.addresses.clone(),
            made_by: self.link.made_by,
            pending: self.link.pending,
            ..(*former).clone()
        };
        if same_peer == *self.link {
            return Decision {
                changed: true,
                ..Decision::default()
            };
        }
        let decision = self.hang_up(Hangup::Relinked, now);
        self.trouble = None;
        Decision {
            changed: true,
            ..decision
        }
    }

    /// The link was removed: everything that came of it goes at once.
    pub fn remove(&mut self) -> Decision {
        self.state = State::Removed;
        self.records = Arc::default();
        Decision {
            hangup: Some(Hangup::Removed),
            subscribe: false,
            changed: true,
        }
    }

    fn handle_tunnel(&mut self, gateways: u32, now: Now) -> Decision {
        let was_usable = self.usable();
        match (gateways, self.tunnel) {
            (0, Tunnel::Up { .. }) => self.tunnel = Tunnel::Down { since: now.instant },
            (0, Tunnel::Down { .. }) => {}
            (gateways, _) => self.tunnel = Tunnel::Up { gateways },
        }
        let changed = was_usable != self.usable();
        match (&self.state, self.usable()) {
            (State::Pending, true) => {
                self.state = State::Connecting;
                Decision {
                    subscribe: true,
                    changed,
                    ..Decision::default()
                }
            }
            (State::Stale { .. }, true) => Decision {
                subscribe: changed,
                changed,
                ..Decision::default()
            },
            (State::Connecting, false) => {
                self.state = State::Pending;
                Decision {
                    hangup: Some(Hangup::NoTunnel),
                    changed,
                    ..Decision::default()
                }
            }
            // A live stream is left to its own time-out: what is suspect may yet recover.
            _ => Decision {
                changed,
                ..Decision::default()
            },
        }
    }

    fn check_begin(&self, begin: &Begin, now: Now) -> Result<(), Hangup> {
        if begin.cluster != self.link.cluster.as_str() {
            let found = shown(&begin.cluster);
            return Err(Hangup::WrongCluster {
                expected: self.link.cluster.clone(),
                found,
            });
        }
        if begin.clusterset != self.settings.clusterset {
            let found = shown(&begin.clusterset);
            return Err(Hangup::WrongClusterset {
                expected: self.settings.clusterset.clone(),
                found,
            });
        }
        if begin.epoch < self.epoch {
            return Err(Hangup::OldEpoch {
                held: self.epoch,
                offered: begin.epoch,
            });
        }
        let (off, direction) = match begin.clock.duration_since(now.wall) {
            Ok(ahead) => (ahead, "ahead of ours"),
            Err(behind) => (behind.duration(), "behind ours"),
        };
        if off > self.settings.max_skew {
            return Err(Hangup::Skew { off, direction });
        }
        Ok(())
    }

    fn begin(&mut self, epoch: u64, now: Now) -> Decision {
        let changed = matches!(self.state, State::Live { .. });
        self.epoch = epoch;
        self.refusals.begin();
        self.state = State::Syncing(Box::new(Syncing {
            heard: now.instant,
            confirmed: self.confirmed(),
            staged: PeerRecords::default(),
        }));
        Decision {
            changed,
            ..Decision::default()
        }
    }

    /// A message that can only come within a snapshot or after it.
    fn handle_message(&mut self, message: Event, now: Now) -> Result<bool, Hangup> {
        match &mut self.state {
            State::Syncing(syncing) => syncing.heard = now.instant,
            State::Live { heard } => *heard = now.instant,
            _ => {
                return Err(Hangup::OutOfOrder(
                    "a record before the beginning of a snapshot",
                ));
            }
        }
        match message {
            Event::Record(record) => Ok(self.record(*record, now)),
            Event::Undecodable { key, problem } => {
                let problem = shown(&problem);
                self.refuse(&key, &Refusal::Malformed(problem));
                Ok(false)
            }
            Event::Unchanged { key, hash } => self.unchanged(&key, hash).map(|()| false),
            Event::Remove { key } => Ok(self.remove_record(&key)),
            Event::Complete => self.complete(now).map(|()| true),
            // Heartbeats are heard; the other events never come here.
            _ => Ok(false),
        }
    }

    fn record(&mut self, record: ReceivedRecord, now: Now) -> bool {
        let key = record.key.clone();
        if let Err(refusal) = self.check_roots(&record.body) {
            self.refuse(&key, &refusal);
            return false;
        }
        let quotas = &self.settings.quotas;
        let accepted = match &mut self.state {
            // What is held already keeps the time of its first receipt.
            State::Syncing(syncing) if self.records.holds(&key, record.hash) => {
                let carried = syncing.staged.carry(&self.records, &key, quotas);
                carried.map(|()| false)
            }
            State::Syncing(syncing) => {
                let staged = &mut syncing.staged;
                let accepted = staged.accept(&self.link, quotas, record, now.wall);
                accepted.map(|_| false)
            }
            _ => Arc::make_mut(&mut self.records).accept(&self.link, quotas, record, now.wall),
        };
        let changed = accepted.unwrap_or_else(|refusal| {
            self.refuse(&key, &refusal);
            false
        });
        self.note_roots();
        changed
    }

    /// Roots never give way to older ones, whatever was said or left out meanwhile.
    fn check_roots(&self, body: &RecordBody) -> Result<(), Refusal> {
        match (body, &self.announced) {
            (RecordBody::Bundle(offered), Some(held)) if held.sequence > offered.sequence => {
                Err(Refusal::OldBundle {
                    held: held.sequence,
                    offered: offered.sequence,
                })
            }
            _ => Ok(()),
        }
    }

    /// Remembers the roots in force, if the peer announced any.
    fn note_roots(&mut self) {
        if let Some(bundle) = self.records.bundle()
            && self.announced.as_ref() != Some(bundle)
        {
            self.announced = Some(bundle.clone());
        }
    }

    /// Counts a refusal. What was good under that key before stays, within the quotas.
    fn refuse(&mut self, key: &str, refusal: &Refusal) {
        self.refusals.add(key, refusal);
        if let State::Syncing(syncing) = &mut self.state {
            let quotas = &self.settings.quotas;
            let _ = syncing.staged.carry(&self.records, key, quotas);
        }
    }

    fn unchanged(&mut self, key: &str, hash: RecordHash) -> Result<(), Hangup> {
        let State::Syncing(syncing) = &mut self.state else {
            return Err(Hangup::OutOfOrder("an unchanged record after the snapshot"));
        };
        if !self.records.holds(key, hash) {
            return Err(Hangup::NotHeld(shown(key)));
        }
        let quotas = &self.settings.quotas;
        if let Err(refusal) = syncing.staged.carry(&self.records, key, quotas) {
            self.refuse(key, &refusal);
        }
        Ok(())
    }

    fn remove_record(&mut self, key: &str) -> bool {
        match &mut self.state {
            State::Syncing(syncing) => {
                syncing.staged.remove(key);
                false
            }
            _ => Arc::make_mut(&mut self.records).remove(key),
        }
    }

    fn complete(&mut self, now: Now) -> Result<(), Hangup> {
        match std::mem::replace(&mut self.state, State::Live { heard: now.instant }) {
            State::Syncing(syncing) => {
                self.records = Arc::new(syncing.staged);
                self.note_roots();
                self.completed = true;
                self.trouble = None;
                self.forgotten = None;
                Ok(())
            }
            other => {
                self.state = other;
                Err(Hangup::OutOfOrder("a second end of the snapshot"))
            }
        }
    }

    fn hang_up(&mut self, hangup: Hangup, now: Now) -> Decision {
        self.trouble = Some(hangup.clone());
        Decision {
            hangup: Some(hangup),
            ..self.lose(now)
        }
    }

    /// There is no sync stream any more.
    fn lose(&mut self, _: Now) -> Decision {
        let changed = matches!(self.state, State::Live { .. });
        self.state = match self.confirmed() {
            Some(heard) if !self.records.is_empty() => State::Stale { heard },
            _ if self.usable() => State::Connecting,
            _ => State::Pending,
        };
        Decision {
            subscribe: self.usable(),
            changed,
            ..Decision::default()
        }
    }

    fn tick(&mut self, now: Now) -> Decision {
        let age = |at: Instant| now.instant.saturating_duration_since(at);
        if self
            .confirmed()
            .is_some_and(|at| self.too_old(age(at), now))
        {
            self.records = Arc::default();
            let decision = self.hang_up(Hangup::Withdrawn, now);
            return Decision {
                changed: true,
                ..decision
            };
        }
        let heard = match &self.state {
            State::Syncing(syncing) => Some(syncing.heard),
            State::Live { heard } => Some(*heard),
            _ => None,
        };
        match heard {
            Some(heard) if age(heard) > self.settings.silence => self.hang_up(Hangup::Silent, now),
            _ => Decision::default(),
        }
    }

    /// Whether records confirmed `age` ago must go.
    fn too_old(&self, age: Duration, now: Now) -> bool {
        let down = match self.tunnel {
            Tunnel::Up { .. } => Duration::ZERO,
            Tunnel::Down { since } => now.instant.saturating_duration_since(since),
        };
        !self.records.is_empty()
            && (age >= self.settings.record_cap || age.min(down) >= self.settings.stale_ttl)
    }

    /// When the records in force were last known to be right.
    fn confirmed(&self) -> Option<Instant> {
        match &self.state {
            State::Live { heard } | State::Stale { heard } => Some(*heard),
            State::Syncing(syncing) => syncing.confirmed,
            State::Pending | State::Connecting | State::Removed => None,
        }
    }
}

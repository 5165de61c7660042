//! How a peer looks from outside: its state's name, its records, what is wrong with it.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::model::{Bundle, Link};
use crate::record::{PeerRecords, Refusal};

/// Name of a peer's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PeerState {
    /// No gateway has reached the peer, and none of its records are held.
    Pending,
    /// A gateway has the peer up; its federation has not answered yet.
    Connecting,
    /// A snapshot is arriving.
    Syncing,
    /// Changes arrive as they happen.
    Live,
    /// Records are held, but the peer's federation is silent.
    Stale,
    /// The link was removed.
    Removed,
}

impl fmt::Display for PeerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A peer as planning and status see it.
#[derive(Clone, Debug)]
pub struct PeerView {
    /// The link.
    pub link: Arc<Link>,
    /// The state's name.
    pub state: PeerState,
    /// Whether any gateway has the peer up: its endpoints may be used.
    pub usable: bool,
    /// Whether the records are not being kept up to date.
    pub stale: bool,
    /// Whether the peer has sent `Complete` since this federation started.
    pub completed: bool,
    /// Since the peer's federation was last heard; `None` where nothing is held.
    pub record_age: Option<Duration>,
    /// The highest epoch seen; 0 if none.
    pub epoch: u64,
    /// The records in force.
    pub records: Arc<PeerRecords>,
    /// The roots that the peer announced upon what the link declares; they outlive its records.
    pub announced: Option<Bundle>,
    /// Records refused since the last snapshot began.
    pub refused: u64,
    /// Records refused since the link was declared, or federation started.
    pub refused_total: u64,
    /// What is wrong with the peer, newest last; bounded.
    pub problems: Vec<String>,
}

impl PeerView {
    /// The roots that count for the peer: those it announced over the link, else those declared.
    pub fn bundle(&self) -> &Bundle {
        match &self.announced {
            Some(announced) if announced.sequence >= self.link.bundle.sequence => announced,
            _ => &self.link.bundle,
        }
    }
}

/// Refused records: how many since the last snapshot began, and the newest few.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Refusals {
    pub(super) count: u64,
    pub(super) total: u64,
    pub(super) newest: VecDeque<String>,
}

/// Refused records that are shown with their reason.
pub(super) const SHOWN_REFUSALS: usize = 16;
/// Characters of a peer's own text that are shown.
const SHOWN_TEXT: usize = 120;

impl Refusals {
    /// A snapshot begins: what was refused before may be good now.
    pub(super) fn begin(&mut self) {
        *self = Self {
            total: self.total,
            ..Self::default()
        };
    }

    pub(super) fn add(&mut self, key: &str, reason: &Refusal) {
        self.count += 1;
        self.total += 1;
        if self.newest.len() == SHOWN_REFUSALS {
            self.newest.pop_front();
        }
        let key = shown(key);
        self.newest
            .push_back(format!("record {key} was refused: {reason}"));
    }
}

/// A peer's own text, short and without control characters.
pub(super) fn shown(text: &str) -> String {
    text.escape_debug().take(SHOWN_TEXT).collect()
}

impl PeerView {
    /// Whether it holds records that nobody has kept up to date for `age` or longer.
    pub fn stale_for(&self, age: Duration) -> bool {
        self.stale && self.record_age.is_some_and(|since| since >= age)
    }
}

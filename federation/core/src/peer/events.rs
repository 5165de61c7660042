//! What a peer's state machine is told and what it answers.

use std::time::{Duration, Instant, SystemTime};

use crate::delta::RecordHash;
use crate::model::ClusterId;
use crate::record::{Quotas, ReceivedRecord};

/// The two clocks at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// For ages and deadlines.
    pub instant: Instant,
    /// For times that others wrote down.
    pub wall: SystemTime,
}

/// What all peers have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerSettings {
    /// The own clusterset; a peer of another is refused.
    pub clusterset: String,
    /// How long records outlive the last tunnel. Default 5 min.
    pub stale_ttl: Duration,
    /// How long records outlive the last word of the peer's federation. Default 24 h.
    pub record_cap: Duration,
    /// How long a sync stream may be silent; heartbeats come every second. Default 3 s.
    pub silence: Duration,
    /// How far the peer's clock may be off. Default 5 min.
    pub max_skew: Duration,
    /// How much each peer may contribute.
    pub quotas: Quotas,
}

impl PeerSettings {
    /// The defaults for a clusterset.
    pub fn new(clusterset: impl Into<String>) -> Self {
        Self {
            clusterset: clusterset.into(),
            stale_ttl: Duration::from_secs(5 * 60),
            record_cap: Duration::from_secs(24 * 60 * 60),
            silence: Duration::from_secs(3),
            max_skew: Duration::from_secs(5 * 60),
            quotas: Quotas::default(),
        }
    }
}

/// What happens to a peer.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// How many gateways have the peer up now.
    Tunnel {
        /// Their number.
        gateways_up: u32,
    },
    /// The peer's federation began a snapshot.
    Begin(Begin),
    /// A record, whole.
    Record(Box<ReceivedRecord>),
    /// A record that could not be decoded.
    Undecodable {
        /// Its key.
        key: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A record that we said we know and that has not changed.
    Unchanged {
        /// Its key.
        key: String,
        /// Its hash.
        hash: RecordHash,
    },
    /// A record is no more.
    Remove {
        /// Its key.
        key: String,
    },
    /// All records have been named.
    Complete,
    /// The peer's federation is there.
    Heartbeat,
    /// The sync stream ended, or could not be opened.
    Lost,
    /// Time has passed.
    Tick,
}

/// First message of a sync stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Begin {
    /// The peer's cluster id as it says.
    pub cluster: String,
    /// Its clusterset as it says.
    pub clusterset: String,
    /// Its epoch.
    pub epoch: u64,
    /// Its wall clock.
    pub clock: SystemTime,
}

/// What is to be done about an event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Decision {
    /// Close the sync stream, if one is open, for this reason.
    pub hangup: Option<Hangup>,
    /// Open a sync stream with [`Peer::subscription`](super::Peer::subscription) (the caller paces its tries).
    pub subscribe: bool,
    /// What is planned with has changed: records, usability or staleness.
    pub changed: bool,
}

/// Why a sync stream is closed from this side.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Hangup {
    /// The peer says it is another cluster.
    #[error(
        "cluster `{expected}` is linked but its federation says it is `{found}`; check the ClusterLink's name"
    )]
    WrongCluster {
        /// The link's.
        expected: ClusterId,
        /// What it says.
        found: String,
    },
    /// The peer is of another clusterset.
    #[error(
        "the peer is of clusterset `{found}`, this cluster of `{expected}`; only clusters of one clusterset can be linked"
    )]
    WrongClusterset {
        /// Ours.
        expected: String,
        /// Its.
        found: String,
    },
    /// The peer has gone back in time.
    #[error(
        "the peer's epoch is {offered} but {held} was seen; an old replica or a restored backup is answering"
    )]
    OldEpoch {
        /// Highest seen.
        held: u64,
        /// What it offers.
        offered: u64,
    },
    /// The clocks differ too much.
    #[error("the peer's clock is {off:?} {direction}; set the clocks of both clusters (NTP)")]
    Skew {
        /// By how much.
        off: Duration,
        /// `ahead of ours` or `behind ours`.
        direction: &'static str,
    },
    /// A message that cannot come now.
    #[error("the peer sent {0} out of order")]
    OutOfOrder(&'static str),
    /// An unchanged record that is not held.
    #[error("the peer says that record {0:?} is unchanged, but it is not held")]
    NotHeld(String),
    /// Nothing was heard for too long.
    #[error("the peer's federation has been silent")]
    Silent,
    /// The tunnel is gone.
    #[error("no gateway has the peer up")]
    NoTunnel,
    /// The records were given up.
    #[error("the peer's records are too old and were withdrawn")]
    Withdrawn,
    /// The link has changed.
    #[error("the link was changed")]
    Relinked,
    /// The link was removed.
    #[error("the link was removed")]
    Removed,
}

//! Removals are held back after a restart.
//!
//! A federation that has just started knows less than it did: workloads have not all
//! reconnected, peers have not sent their snapshots. What it does not know is not gone.
//! So discovery sends sidecars no removal, and ends none of their snapshots with `Complete`, until
//! every workload known from before has reconnected or lapsed, and every link has sent `Complete`
//! or its grace has passed.
//!
//! Peers and our own gateways are told only what is our own, so that for them the workloads alone
//! are waited for ([`crate::workloads::Workloads::settled`]): two federations that restart together
//! would otherwise each withhold the `Complete` that the other waits for, and gateways that start
//! with them the tunnel through which it comes.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::model::ClusterId;
use crate::peer::PeerView;
use crate::peers::PeersView;

#[cfg(test)]
mod tests;

/// Grace of a link after a restart: long enough for gateways to reconnect and a peer to
/// answer twice over, short enough that a new proxy is not kept waiting by a cut link.
pub const LINK_GRACE: Duration = Duration::from_secs(15);

/// The hold of one start.
#[derive(Clone, Debug)]
pub struct RemovalHold {
    state: State,
}

#[derive(Clone, Debug)]
enum State {
    Held {
        links: BTreeSet<ClusterId>,
        grace_ends: Instant,
    },
    Released,
}

impl RemovalHold {
    /// Begins at start, with the links that are declared then.
    pub fn new(links: impl IntoIterator<Item = ClusterId>, grace: Duration, now: Instant) -> Self {
        Self {
            state: State::Held {
                links: links.into_iter().collect(),
                grace_ends: now + grace,
            },
        }
    }

    /// For a federation that has nothing to remember: the first start of a cluster.
    pub fn released() -> Self {
        Self {
            state: State::Released,
        }
    }

    /// Looks whether the hold is over. True where it ended with this look.
    pub fn observe(&mut self, workloads_settled: bool, peers: &PeersView, now: Instant) -> bool {
        let State::Held { links, grace_ends } = &self.state else {
            return false;
        };
        // A link that is no longer declared is not waited for.
        let waits = |link| {
            peers
                .get(link)
                .is_some_and(|peer: &PeerView| !peer.completed)
        };
        let links_settled = now >= *grace_ends || !links.iter().any(waits);
        if workloads_settled && links_settled {
            self.state = State::Released;
            return true;
        }
        false
    }

    /// Whether removals and `Complete` are held back.
    pub fn holds(&self) -> bool {
        matches!(self.state, State::Held { .. })
    }

    /// When [`RemovalHold::observe`] should look again though nothing has happened.
    pub fn grace_ends(&self) -> Option<Instant> {
        match &self.state {
            State::Held { grace_ends, .. } => Some(*grace_ends),
            State::Released => None,
        }
    }
}

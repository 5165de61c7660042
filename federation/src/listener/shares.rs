//! How many connections each identity holds, so that none of them shuts out the others.

use linkspan_runtime::places::{Place, Places};
use linkspan_trust::{SpiffeId, TrustDomain};

/// Connections of one identity of the own trust domain: all replicas of one thing, twice over,
/// and a quarter of what there is room for.
const MAX_OWN: usize = 4_096;
/// Connections of a peer's federation: it holds one, and others while it reconnects.
const MAX_PEER: usize = 32;

/// One connection of an identity; counts until it is dropped.
pub(super) type Share = Place<SpiffeId>;

/// Connections by identity. How many there are in all is bounded before anybody has one.
#[derive(Clone)]
pub(super) struct Shares {
    own: TrustDomain,
    ours: Places<SpiffeId>,
    peers: Places<SpiffeId>,
}

impl Shares {
    pub(super) fn new(own: TrustDomain) -> Self {
        Self {
            own,
            ours: Places::new(usize::MAX, MAX_OWN),
            peers: Places::new(usize::MAX, MAX_PEER),
        }
    }

    /// Whether it is of our own trust domain, and not a peer.
    pub(super) fn is_own(&self, id: &SpiffeId) -> bool {
        *id.trust_domain() == self.own
    }

    /// One more connection of `id`; `None` where it has all that it may.
    pub(super) fn take(&self, id: &SpiffeId) -> Option<Share> {
        let places = match self.is_own(id) {
            true => &self.ours,
            false => &self.peers,
        };
        places.take(id).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_has_a_smaller_share_than_our_own_and_gets_it_back() {
        let shares = Shares::new("east.test".parse().unwrap());
        let federation = |domain: &str| SpiffeId::federation(&domain.parse().unwrap());
        let (east, west, north) = (
            federation("east.test"),
            federation("west.test"),
            federation("north.test"),
        );
        let mut taken: Vec<_> = (0..MAX_PEER).map(|_| shares.take(&west).unwrap()).collect();
        assert!(shares.take(&west).is_none());
        let _other = shares.take(&north).unwrap();
        taken.pop();
        taken.push(shares.take(&west).unwrap());
        let own: Vec<_> = (0..MAX_OWN).map(|_| shares.take(&east).unwrap()).collect();
        assert!(shares.take(&east).is_none());
        drop(own);
        assert!(shares.take(&east).is_some());
    }
}

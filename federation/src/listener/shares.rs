//! How many connections each identity holds, so that none of them shuts out the others.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use linkspan_trust::{SpiffeId, TrustDomain};

/// Connections of one identity of the own trust domain: all replicas of one thing, twice over,
/// and a quarter of what there is room for.
const MAX_OWN: usize = 4_096;
/// Connections of a peer's federation: it holds one, and others while it reconnects.
const MAX_PEER: usize = 32;

/// Connections by identity.
#[derive(Clone)]
pub(super) struct Shares {
    own: TrustDomain,
    held: Arc<Mutex<HashMap<SpiffeId, usize>>>,
}

/// One connection of an identity; counts until it is dropped.
pub(super) struct Share {
    of: SpiffeId,
    held: Arc<Mutex<HashMap<SpiffeId, usize>>>,
}

impl Shares {
    pub(super) fn new(own: TrustDomain) -> Self {
        Self {
            own,
            held: Arc::default(),
        }
    }

    /// Whether it is of our own trust domain, and not a peer.
    pub(super) fn is_own(&self, id: &SpiffeId) -> bool {
        *id.trust_domain() == self.own
    }

    /// One more connection of `id`; `None` where it has all that it may.
    pub(super) fn take(&self, id: &SpiffeId) -> Option<Share> {
        let most = match self.is_own(id) {
            true => MAX_OWN,
            false => MAX_PEER,
        };
        let mut held = lock(&self.held);
        let count = held.entry(id.clone()).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Share {
            of: id.clone(),
            held: Arc::clone(&self.held),
        })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut held = lock(&self.held);
        if let Some(count) = held.get_mut(&self.of) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.of);
            }
        }
    }
}

fn lock(held: &Mutex<HashMap<SpiffeId, usize>>) -> MutexGuard<'_, HashMap<SpiffeId, usize>> {
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_identity_has_a_share_of_its_own_and_gets_it_back() {
        let shares = Shares::new("east.test".parse().unwrap());
        let west = SpiffeId::federation(&"west.test".parse().unwrap());
        let north = SpiffeId::federation(&"north.test".parse().unwrap());
        let mut taken: Vec<_> = (0..MAX_PEER).map(|_| shares.take(&west).unwrap()).collect();
        assert!(shares.take(&west).is_none());
        let _other = shares.take(&north).unwrap();
        taken.pop();
        taken.push(shares.take(&west).unwrap());
        drop(taken);
        assert_eq!(
            lock(&shares.held).len(),
            1,
            "only what is held is remembered"
        );
    }
}

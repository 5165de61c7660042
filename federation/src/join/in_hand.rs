//! Links whose removal is in somebody's hand: the keeper leaves these alone.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use linkspan_core::ClusterId;

type Counts = BTreeMap<ClusterId, usize>;

/// The links that are in hand.
#[derive(Clone, Default)]
pub(crate) struct InHand(Arc<Mutex<Counts>>);

/// One link is in hand until this is dropped.
pub(crate) struct Hold {
    cluster: ClusterId,
    all: InHand,
}

impl InHand {
    /// Takes the link to `cluster` in hand; several may.
    pub(crate) fn take(&self, cluster: &ClusterId) -> Hold {
        *self.lock().entry(cluster.clone()).or_default() += 1;
        Hold {
            cluster: cluster.clone(),
            all: self.clone(),
        }
    }

    /// Whether anybody has it.
    pub(crate) fn has(&self, cluster: &ClusterId) -> bool {
        self.lock().contains_key(cluster)
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut all = self.all.lock();
        if let Some(count) = all.get_mut(&self.cluster) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.cluster);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_in_hand_until_the_last_lets_go() {
        let (all, west) = (InHand::default(), "west".parse().unwrap());
        let (one, other) = (all.take(&west), all.take(&west));
        drop(one);
        assert!(all.has(&west));
        drop(other);
        assert!(!all.has(&west));
    }
}

//! Which clusters operators have been told to be unusable. Pure.
//!
//! A cluster to which no gateway has a tunnel, but which discovery calls usable, is tried once a
//! second and found unusable once a second; that is one piece of news, not many.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use linkspan_routing::{ClusterId, UsablePeers};

/// How long a cluster must have been usable to be called so again: several times as long as one
/// that is merely tried looks usable.
const STEADY: Duration = Duration::from_secs(10);

/// What has been told.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// Unusable clusters, and since when each has been usable again.
    unusable: BTreeMap<ClusterId, Option<Instant>>,
}

impl Told {
    /// A cluster was lost; whether that is news.
    pub(super) fn lost(&mut self, cluster: &ClusterId, now: Instant) -> bool {
        let known = self.unusable.insert(cluster.clone(), None);
        known.is_none_or(|since| since.is_some_and(|since| is_steady(since, now)))
    }

    /// The clusters of which it is news that they are usable again. To be called with what is the
    /// case, every few seconds at least.
    pub(super) fn back(&mut self, peers: &UsablePeers, now: Instant) -> BTreeSet<ClusterId> {
        let mut back = BTreeSet::new();
        self.unusable.retain(|cluster, since| {
            let Some(usable) = peers.get(cluster) else {
                // No longer linked.
                return false;
            };
            *since = usable.then(|| since.unwrap_or(now));
            let steady = since.is_some_and(|since| is_steady(since, now));
            if steady {
                back.insert(cluster.clone());
            }
            !steady
        });
        back
    }
}

fn is_steady(since: Instant, now: Instant) -> bool {
    now.saturating_duration_since(since) >= STEADY
}

#[cfg(test)]
mod tests {
    use super::*;

    fn west(usable: bool) -> UsablePeers {
        [("west".parse().unwrap(), usable)].into()
    }

    #[test]
    fn a_cluster_that_is_tried_every_second_is_told_of_once() {
        let (mut told, start) = (Told::default(), Instant::now());
        let cluster = "west".parse().unwrap();
        let lines = (0..60).filter(|second| {
            let now = start + Duration::from_secs(*second);
            let news = told.lost(&cluster, now) | !told.back(&west(false), now).is_empty();
            let later = now + Duration::from_millis(999);
            news | !told.back(&west(true), later).is_empty()
        });
        assert_eq!(lines.count(), 1);
    }

    #[test]
    fn both_changes_are_told() {
        let (mut told, start) = (Told::default(), Instant::now());
        let cluster = "west".parse().unwrap();
        for round in 0..3 {
            let now = start + STEADY * 2 * round;
            assert!(told.lost(&cluster, now));
            assert!(told.back(&west(true), now).is_empty());
            assert_eq!(told.back(&west(true), now + STEADY).len(), 1);
            assert!(told.back(&west(true), now + STEADY).is_empty());
        }
    }

    #[test]
    fn what_is_no_longer_linked_is_forgotten() {
        let (mut told, now) = (Told::default(), Instant::now());
        told.lost(&"west".parse().unwrap(), now);
        assert!(told.back(&UsablePeers::new(), now).is_empty() && told.unusable.is_empty());
    }
}

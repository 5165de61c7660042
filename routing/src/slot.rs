//! Which priority an endpoint belongs to: the tiers of a policy's order first, then the default
//! order of nearness, then what is only used in need.

use std::collections::BTreeMap;

use crate::ids::ClusterId;
use crate::locality::{RANKS, Rank};
use crate::model::{Locality, Place, Service};
use crate::policy::{MAX_ORDER, Unlisted};

/// How many slots there are.
pub(crate) const SLOTS: usize = MAX_ORDER + RANKS + 2;

/// One value for each slot, first priority first.
pub(crate) type PerSlot<T> = [T; SLOTS];

/// A place in the sequence of priorities. Each slot that is expected to have endpoints is one
/// priority, so priorities are numbered without gaps while slots are not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Slot(u8);

impl Slot {
    /// Clusters that are to be avoided while others can take everything.
    pub(crate) const AVOIDED: Self = Self((MAX_ORDER + RANKS) as u8);
    /// Drained clusters: used when nothing else is healthy at all.
    pub(crate) const DRAINED: Self = Self((MAX_ORDER + RANKS + 1) as u8);

    fn listed(tier: usize) -> Self {
        Self(tier.min(MAX_ORDER - 1) as u8)
    }

    fn unlisted(rank: Rank) -> Self {
        Self((MAX_ORDER + rank.index()) as u8)
    }

    /// All slots, first priority first.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        (0..SLOTS).map(|at| Self(at as u8))
    }

    /// Its place in a [`PerSlot`].
    pub(crate) fn index(self) -> usize {
        usize::from(self.0)
    }

    /// Which entry of the policy's order it stands for, counted from 1.
    pub(crate) fn position_in_order(self) -> Option<usize> {
        (self.index() < MAX_ORDER).then(|| self.index() + 1)
    }
}

/// The slot of an endpoint there with these labels; none if the policy excludes it.
pub(crate) fn slot_of(
    service: &Service,
    place: &Place,
    cluster: &ClusterId,
    locality: &Locality,
    labels: &BTreeMap<String, String>,
) -> Option<Slot> {
    let nearness = || Slot::unlisted(Rank::of(place, cluster, locality));
    let Some(policy) = &service.policy else {
        let drained = service.drained.contains(cluster);
        return Some(if drained { Slot::DRAINED } else { nearness() });
    };
    let slot = match policy.tier(place, cluster, locality, labels) {
        Some(tier) => Slot::listed(tier),
        None if policy.unlisted == Unlisted::Exclude => return None,
        None => nearness(),
    };
    // What is said of a cluster goes before what is said of its endpoints.
    if policy.excluded.contains(cluster) {
        None
    } else if service.drained.contains(cluster) {
        Some(Slot::DRAINED)
    } else if policy.avoided.contains(cluster) {
        Some(Slot::AVOIDED)
    } else {
        Some(slot)
    }
}

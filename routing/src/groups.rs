//! The parts of a service that `explain` names one by one: each cluster's locality, and within
//! it the endpoints of each priority where labels tell them apart.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use crate::ids::ClusterId;
use crate::locality::Rank;
use crate::model::{Endpoint, Locality, Place, Service, UsablePeers};
use crate::slot::{Slot, slot_of};

/// A cluster's locality as the plan knows it.
#[derive(Debug, Clone)]
pub(crate) struct Group {
    pub(crate) rank: Rank,
    /// Its priority; none if the policy excludes it.
    pub(crate) slot: Option<Slot>,
    pub(crate) cluster: ClusterId,
    pub(crate) locality: Locality,
    pub(crate) standing: Standing,
    /// Whether it is in another cluster than the caller.
    pub(crate) remote: bool,
    /// Its weight within its priority, where the policy gives weights.
    pub(crate) weight: u32,
    pub(crate) available: u32,
    pub(crate) ejected: u32,
    pub(crate) not_ready: u32,
    pub(crate) expected: u32,
}

/// Whether a cluster's endpoints may be used at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    Usable,
    PeerUnusable,
    PortNotExposed,
    /// The policy excludes it.
    Excluded,
}

impl Standing {
    /// Whether what is expected there is part of what its priority should have.
    pub(crate) fn counts(self) -> bool {
        matches!(self, Self::Usable | Self::PeerUnusable)
    }
}

/// What tells groups apart.
type Key<'a> = (&'a ClusterId, &'a Locality, Option<Slot>);

/// All groups of a service, first priority first, and the group of each distinct endpoint.
pub(crate) struct Grouping<'a> {
    pub(crate) groups: Vec<Group>,
    pub(crate) members: Vec<(&'a Arc<Endpoint>, usize)>,
}

/// Where the caller is, what it calls and whom it reaches.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    pub(crate) place: &'a Place,
    pub(crate) port: u16,
    pub(crate) peers: &'a UsablePeers,
}

impl View<'_> {
    /// Whether a cluster's endpoints may be used.
    pub(crate) fn usable(&self, cluster: &ClusterId) -> bool {
        *cluster == self.place.cluster || self.peers.get(cluster).copied().unwrap_or(false)
    }

    /// Sorts what the service has into groups.
    pub(crate) fn grouping<'a>(&self, service: &'a Service) -> Grouping<'a> {
        let endpoints: Vec<_> = distinct(service)
            .map(|endpoint| (endpoint, self.key(service, endpoint)))
            .collect();
        let mut listed: BTreeMap<Key<'_>, u32> = BTreeMap::new();
        for (_, key) in &endpoints {
            *listed.entry(*key).or_default() += 1;
        }
        let expected = self.expected(service, &listed);
        let mut groups: Vec<Group> = expected
            .into_iter()
            .filter(|(_, expected)| *expected > 0)
            .map(|(key, expected)| self.group(service, key, expected))
            .collect();
        // Those that are excluded come last.
        groups.sort_by_key(|group| (group.slot.is_none(), group.slot));
        let index: BTreeMap<_, _> = groups
            .iter()
            .enumerate()
            .map(|(at, group)| ((&group.cluster, &group.locality, group.slot), at))
            .collect();
        let members = endpoints
            .iter()
            .filter_map(|(endpoint, key)| Some((*endpoint, *index.get(key)?)))
            .collect();
        Grouping { groups, members }
    }

    fn key<'a>(&self, service: &Service, endpoint: &'a Endpoint) -> Key<'a> {
        let (cluster, locality) = (&endpoint.cluster, &endpoint.locality);
        let slot = slot_of(service, self.place, cluster, locality, &endpoint.labels);
        (cluster, locality, slot)
    }

    /// What each group should have. Capacity is announced per locality: what a locality expects
    /// beyond what it lists is shared among its groups in proportion to what they list.
    fn expected<'a>(
        &self,
        service: &'a Service,
        listed: &BTreeMap<Key<'a>, u32>,
    ) -> BTreeMap<Key<'a>, u32> {
        let mut announced: BTreeMap<(&ClusterId, &Locality), u32> = BTreeMap::new();
        for (cluster, capacity) in &service.clusters {
            for (locality, count) in &capacity.localities {
                let sum = announced.entry((cluster, locality)).or_default();
                *sum = sum.saturating_add(*count);
            }
        }
        let mut expected = listed.clone();
        for ((cluster, locality), announced) in announced {
            let of = |key: &&Key<'_>| (key.0, key.1) == (cluster, locality);
            let keys: Vec<Key<'a>> = listed.keys().filter(of).copied().collect();
            let all: u32 = keys.iter().map(|key| listed[key]).sum();
            let missing = announced.saturating_sub(all);
            if keys.is_empty() {
                let labels = BTreeMap::new();
                let slot = slot_of(service, self.place, cluster, locality, &labels);
                expected.insert((cluster, locality, slot), missing);
            }
            let mut left = missing;
            for (at, key) in keys.iter().enumerate() {
                let part = u64::from(missing) * u64::from(listed[key]) / u64::from(all.max(1));
                let last = at + 1 == keys.len();
                let part = if last { left } else { part as u32 };
                left -= part;
                let sum = expected.entry(*key).or_default();
                *sum = sum.saturating_add(part);
            }
        }
        expected
    }

    fn group(&self, service: &Service, key: Key<'_>, expected: u32) -> Group {
        let (cluster, locality, slot) = key;
        let policy = service.policy.as_deref();
        Group {
            rank: Rank::of(self.place, cluster, locality),
            slot,
            standing: self.standing(service, cluster, slot),
            remote: *cluster != self.place.cluster,
            weight: policy.map_or(1, |policy| policy.weight(self.place, cluster, locality)),
            cluster: cluster.clone(),
            locality: locality.clone(),
            available: 0,
            ejected: 0,
            not_ready: 0,
            expected,
        }
    }

    fn standing(&self, service: &Service, cluster: &ClusterId, slot: Option<Slot>) -> Standing {
        let capacity = service.clusters.get(cluster);
        if !capacity.is_some_and(|capacity| capacity.ports.contains(&self.port)) {
            Standing::PortNotExposed
        } else if slot.is_none() {
            Standing::Excluded
        } else if self.usable(cluster) {
            Standing::Usable
        } else {
            Standing::PeerUnusable
        }
    }
}

/// The endpoints of a service, each cluster and id once.
fn distinct(service: &Service) -> impl Iterator<Item = &Arc<Endpoint>> {
    let mut seen = HashSet::new();
    service
        .endpoints
        .iter()
        .filter(move |one| seen.insert((&one.cluster, &one.id)))
}

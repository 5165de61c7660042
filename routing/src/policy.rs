//! What an operator says about priorities and shares: the failover policy of a service, as a
//! source needs it. Where nothing is said, the order of nearness stands.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Serialize;

use crate::ids::ClusterId;
use crate::model::{Locality, Place};

/// Most tiers that an order may list.
pub const MAX_ORDER: usize = 10;
/// The overprovisioning factor where none is said, in percent.
pub const DEFAULT_OVERPROVISIONING: u32 = 140;

/// How the choice of a destination differs from the default for one service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailoverPolicy {
    /// Whose it is, for people: `namespace/name` of the resource.
    pub name: Arc<str>,
    /// Tiers, first one first; an endpoint belongs to the first that it fits. At most
    /// [`MAX_ORDER`]; more are not looked at.
    pub order: Vec<TierMatch>,
    /// What becomes of endpoints that fit none of `order`.
    pub unlisted: Unlisted,
    /// How much of its priority each locality takes; empty: in proportion to its endpoints.
    pub weights: Vec<LocalityWeight>,
    /// A priority is healthy while at least 1/factor of it is available; in percent, 100 or more.
    pub overprovisioning: u32,
    /// The part of requests that may leave the caller's cluster, retries included; in percent.
    pub max_remote_share: Option<u32>,
    /// Clusters to be used only when all others cannot take everything (stale ones).
    pub avoided: BTreeSet<ClusterId>,
    /// Clusters that are not to be used at all (stale ones).
    pub excluded: BTreeSet<ClusterId>,
}

impl Default for FailoverPolicy {
    fn default() -> Self {
        Self {
            name: Arc::from(""),
            order: Vec::new(),
            unlisted: Unlisted::Last,
            weights: Vec::new(),
            overprovisioning: DEFAULT_OVERPROVISIONING,
            max_remote_share: None,
            avoided: BTreeSet::new(),
            excluded: BTreeSet::new(),
        }
    }
}

/// What becomes of endpoints that an order does not list.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Unlisted {
    /// They come after all tiers, in the default order among themselves.
    #[default]
    Last,
    /// They are not used.
    Exclude,
}

/// One tier of an order: endpoints that fit all that is said. What is left empty fits all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct TierMatch {
    /// Clusters.
    pub area: Area,
    /// Labels that the workload must carry.
    pub labels: BTreeMap<String, String>,
}

/// Some clusters, regions and zones; an empty list stands for all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Area {
    /// Clusters.
    pub clusters: Vec<Named<ClusterId>>,
    /// Regions.
    pub regions: Vec<Named<Arc<str>>>,
    /// Zones; a name means that zone in whichever region.
    pub zones: Vec<Named<Arc<str>>>,
}

/// Something by its name, or the caller's own.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Named<T> {
    /// The caller's own.
    Own,
    /// That of this name.
    Name(T),
}

/// A locality's part of its priority.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LocalityWeight {
    /// Which localities.
    pub area: Area,
    /// Relative weight of each of them.
    pub weight: u32,
}

impl FailoverPolicy {
    /// The first tier that an endpoint there with these labels fits.
    pub(crate) fn tier(
        &self,
        place: &Place,
        cluster: &ClusterId,
        locality: &Locality,
        labels: &BTreeMap<String, String>,
    ) -> Option<usize> {
        let fits = |tier: &TierMatch| {
            tier.area.contains(place, cluster, locality)
                && tier
                    .labels
                    .iter()
                    .all(|(name, value)| labels.get(name) == Some(value))
        };
        self.order.iter().take(MAX_ORDER).position(fits)
    }

    /// The weight of a locality, by the first entry that fits it; 1 where none does.
    pub(crate) fn weight(&self, place: &Place, cluster: &ClusterId, locality: &Locality) -> u32 {
        self.weights
            .iter()
            .find(|entry| entry.area.contains(place, cluster, locality))
            .map_or(1, |entry| entry.weight)
    }

    /// The labels that decide about tiers.
    pub fn label_keys(&self) -> BTreeSet<&str> {
        let keys = self.order.iter().flat_map(|tier| tier.labels.keys());
        keys.map(String::as_str).collect()
    }
}

impl Area {
    /// Whether a cluster's locality is in it, seen from `place`.
    pub(crate) fn contains(&self, place: &Place, cluster: &ClusterId, locality: &Locality) -> bool {
        let same = |own: &str, other: &str| !own.is_empty() && own == other;
        let own_region = same(&place.locality.region, &locality.region);
        let own_zone = own_region && same(&place.locality.zone, &locality.zone);
        fits(&self.clusters, *cluster == place.cluster, cluster)
            && fits(&self.regions, own_region, &locality.region)
            && fits(&self.zones, own_zone, &locality.zone)
    }
}

fn fits<T: PartialEq>(wanted: &[Named<T>], is_own: bool, found: &T) -> bool {
    wanted.is_empty()
        || wanted.iter().any(|one| match one {
            Named::Own => is_own,
            Named::Name(name) => name == found,
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{locality, place};

    fn cluster(name: &str) -> ClusterId {
        name.parse().unwrap()
    }

    fn area(clusters: &[&str], zones: &[&str]) -> Area {
        let named = |name: &&str| match *name {
            "Own" => Named::Own,
            other => Named::Name(other.to_owned()),
        };
        let clusters = clusters.iter().map(named).map(|of| match of {
            Named::Own => Named::Own,
            Named::Name(name) => Named::Name(cluster(&name)),
        });
        let zones = zones.iter().map(named).map(|of| match of {
            Named::Own => Named::Own,
            Named::Name(name) => Named::Name(Arc::from(name)),
        });
        Area {
            clusters: clusters.collect(),
            regions: Vec::new(),
            zones: zones.collect(),
        }
    }

    fn tier(area: Area, labels: &[(&str, &str)]) -> TierMatch {
        let labels = labels.iter().map(|(k, v)| (k.to_string(), v.to_string()));
        TierMatch {
            area,
            labels: labels.collect(),
        }
    }

    #[test]
    fn an_endpoint_is_of_the_first_tier_that_it_fits_in_everything() {
        let policy = FailoverPolicy {
            order: vec![
                tier(area(&["Own"], &["Own"]), &[("version", "v2")]),
                tier(area(&["west", "north"], &[]), &[]),
                tier(area(&["Own"], &[]), &[]),
            ],
            ..FailoverPolicy::default()
        };
        let v2 = BTreeMap::from([("version".to_owned(), "v2".to_owned())]);
        let none = BTreeMap::new();
        let at = |name: &str, zone: &str, labels| {
            policy.tier(&place(), &cluster(name), &locality(zone), labels)
        };
        assert_eq!(at("east", "a", &v2), Some(0));
        assert_eq!(at("east", "b", &v2), Some(2));
        assert_eq!(at("east", "a", &none), Some(2));
        assert_eq!(at("west", "a", &none), Some(1));
        assert_eq!(at("south", "a", &v2), None);
        assert_eq!(policy.label_keys(), BTreeSet::from(["version"]));
    }

    #[test]
    fn own_is_never_what_is_unknown() {
        let own = area(&[], &["Own"]);
        assert!(own.contains(&place(), &cluster("west"), &locality("a")));
        assert!(!own.contains(&place(), &cluster("west"), &locality("b")));
        let nowhere = Place {
            locality: Locality::unknown(),
            ..place()
        };
        assert!(!own.contains(&nowhere, &cluster("west"), &Locality::unknown()));
    }

    #[test]
    fn weights_are_those_of_the_first_entry_that_fits_and_else_one() {
        let policy = FailoverPolicy {
            weights: vec![
                LocalityWeight {
                    area: area(&["west"], &["a"]),
                    weight: 7,
                },
                LocalityWeight {
                    area: area(&["west"], &[]),
                    weight: 3,
                },
            ],
            ..FailoverPolicy::default()
        };
        let of = |name: &str, zone| policy.weight(&place(), &cluster(name), &locality(zone));
        assert_eq!(
            (of("west", "a"), of("west", "b"), of("east", "a")),
            (7, 3, 1)
        );
    }
}

//! How near an endpoint is to the caller: the default order of priorities.

use std::fmt;

use serde::Serialize;

use crate::ids::ClusterId;
use crate::model::{Locality, Place};

/// How many ranks there are.
pub(crate) const RANKS: usize = 6;

/// Nearness to the caller. Where no policy orders them otherwise, each rank that is expected to
/// have endpoints is one priority; the own cluster comes before all others, however near those
/// are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Rank {
    /// Own cluster, same region and zone.
    OwnZone,
    /// Own cluster, same region.
    OwnRegion,
    /// Own cluster, elsewhere or unknown.
    OwnCluster,
    /// Another cluster, same region and zone.
    PeerZone,
    /// Another cluster, same region.
    PeerRegion,
    /// Another cluster, elsewhere or unknown.
    Peer,
}

impl Rank {
    /// All ranks, nearest first.
    pub const ALL: [Self; RANKS] = [
        Self::OwnZone,
        Self::OwnRegion,
        Self::OwnCluster,
        Self::PeerZone,
        Self::PeerRegion,
        Self::Peer,
    ];

    /// The rank of a cluster's locality, seen from `place`.
    pub fn of(place: &Place, cluster: &ClusterId, locality: &Locality) -> Self {
        let same = |a: &str, b: &str| !a.is_empty() && a == b;
        let region = same(&place.locality.region, &locality.region);
        let zone = region && same(&place.locality.zone, &locality.zone);
        match (*cluster == place.cluster, region, zone) {
            (true, _, true) => Self::OwnZone,
            (true, true, false) => Self::OwnRegion,
            (true, false, false) => Self::OwnCluster,
            (false, _, true) => Self::PeerZone,
            (false, true, false) => Self::PeerRegion,
            (false, false, false) => Self::Peer,
        }
    }

    /// Its place among all ranks.
    pub(crate) fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for Rank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OwnZone => "own cluster, same zone",
            Self::OwnRegion => "own cluster, same region",
            Self::OwnCluster => "own cluster",
            Self::PeerZone => "other cluster, same zone",
            Self::PeerRegion => "other cluster, same region",
            Self::Peer => "other cluster",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rank(own: (&str, &str), cluster: &str, region: &str, zone: &str) -> Rank {
        let place = Place {
            cluster: "east".parse().unwrap(),
            locality: Locality::new(own.0, own.1),
        };
        Rank::of(
            &place,
            &cluster.parse().unwrap(),
            &Locality::new(region, zone),
        )
    }

    #[test]
    fn own_cluster_comes_first_then_zone_then_region() {
        let own = ("eu", "a");
        assert_eq!(rank(own, "east", "eu", "a"), Rank::OwnZone);
        assert_eq!(rank(own, "east", "eu", "b"), Rank::OwnRegion);
        assert_eq!(rank(own, "east", "us", "a"), Rank::OwnCluster);
        assert_eq!(rank(own, "west", "eu", "a"), Rank::PeerZone);
        assert_eq!(rank(own, "west", "eu", "b"), Rank::PeerRegion);
        assert_eq!(rank(own, "west", "us", "a"), Rank::Peer);
        assert!(Rank::ALL.is_sorted());
    }

    #[test]
    fn unknown_is_not_the_same_as_unknown() {
        assert_eq!(rank(("", ""), "east", "", ""), Rank::OwnCluster);
        assert_eq!(rank(("eu", ""), "east", "eu", ""), Rank::OwnRegion);
        assert_eq!(rank(("", "a"), "west", "", "a"), Rank::Peer);
        assert_eq!(rank(("eu", "a"), "west", "", ""), Rank::Peer);
    }
}

//! Where requests would go, and why: read from the very plan that requests use.

use std::fmt;

use serde::Serialize;

use crate::ids::ClusterId;
use crate::locality::{PerRank, Rank};
use crate::model::Locality;
use crate::plan::Plan;

/// What one cluster's locality gets of a service's load from here.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Share {
    /// Its priority, 0 first. Priorities that expect no endpoints are not counted.
    pub priority: usize,
    /// Nearness, which makes the priority.
    pub rank: Rank,
    /// The cluster.
    pub cluster: ClusterId,
    /// The region and zone.
    pub locality: Locality,
    /// The part of all requests, 0 to 1.
    pub share: f64,
    /// Endpoints that can take requests.
    pub endpoints_available: u32,
    /// Endpoints that it should have.
    pub endpoints_expected: u32,
    /// Endpoints that outlier detection has taken out of rotation.
    pub endpoints_ejected: u32,
    /// Why the share is what it is.
    pub why: Why,
}

/// Why a locality gets its share.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", tag = "reason")]
pub enum Why {
    /// The nearest priority takes what its health allows.
    Nearest {
        /// The health of the priority, 0 to 1.
        health: f64,
    },
    /// Nearer priorities cannot take everything.
    SpillOver {
        /// The health of the priority, 0 to 1.
        health: f64,
    },
    /// Nearer priorities take everything.
    NotNeeded,
    /// Recovered, and coming back by and by.
    HeldBack {
        /// The real health of the priority, 0 to 1.
        health: f64,
        /// The health that counts for now, 0 to 1.
        counted: f64,
    },
    /// Nothing is healthy anywhere; ejected endpoints are all there is.
    Panic,
    /// No endpoint is ready and in rotation.
    NoneAvailable,
    /// Available, but this source uses a subset of the priority, in which it has no endpoint.
    OutsideSubset,
    /// No gateway has a usable connection to the cluster.
    PeerUnusable,
    /// The cluster does not expose the port.
    PortNotExposed,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |part: &f64| part * 100.0;
        match self {
            Self::Nearest { health } => {
                write!(f, "nearest priority, {:.0} % healthy", percent(health))
            }
            Self::SpillOver { health } => write!(
                f,
                "spill-over from nearer priorities; this one is {:.0} % healthy",
                percent(health)
            ),
            Self::NotNeeded => f.write_str("nearer priorities take everything"),
            Self::HeldBack { health, counted } => write!(
                f,
                "back at {:.0} % health, counted as {:.0} % while traffic returns",
                percent(health),
                percent(counted)
            ),
            Self::Panic => f.write_str("panic: nothing is healthy, ejected endpoints are used"),
            Self::NoneAvailable => f.write_str("no endpoint is ready and in rotation"),
            Self::OutsideSubset => f.write_str("not in the subset that this source uses"),
            Self::PeerUnusable => f.write_str("no gateway has a usable connection to the cluster"),
            Self::PortNotExposed => f.write_str("the cluster does not expose the port"),
        }
    }
}

/// A cluster's locality as the plan knows it.
#[derive(Debug, Clone)]
pub(crate) struct Group {
    pub(crate) rank: Rank,
    pub(crate) cluster: ClusterId,
    pub(crate) locality: Locality,
    pub(crate) standing: Standing,
    pub(crate) available: u32,
    pub(crate) ejected: u32,
    pub(crate) expected: u32,
}

impl Group {
    pub(crate) fn key(&self) -> (&ClusterId, &Locality) {
        (&self.cluster, &self.locality)
    }
}

/// Whether a cluster's endpoints may be used at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    Usable,
    PeerUnusable,
    PortNotExposed,
}

impl Plan {
    /// The shares as of the time at which the plan was built.
    pub(crate) fn explain(&self) -> Vec<Share> {
        let shares = self.shares(self.built);
        let counted = self.counted(self.built);
        let explain = |group| self.explain_group(group, &shares, &counted);
        self.groups.iter().map(explain).collect()
    }

    fn explain_group(&self, group: &Group, shares: &PerRank<f64>, counted: &PerRank<f64>) -> Share {
        let rank = group.rank.index();
        let priority = self
            .tiers
            .iter()
            .filter(|tier| tier.rank < group.rank)
            .count();
        let part = self.part_of_tier(priority, group);
        Share {
            priority,
            rank: group.rank,
            cluster: group.cluster.clone(),
            locality: group.locality.clone(),
            share: shares[rank] * part,
            endpoints_available: group.available,
            endpoints_expected: group.expected,
            endpoints_ejected: group.ejected,
            why: why(
                group,
                priority,
                part,
                shares[rank],
                (self.health[rank], counted[rank]),
            ),
        }
    }

    /// The part that a group has of its priority's candidates, by weight.
    fn part_of_tier(&self, priority: usize, group: &Group) -> f64 {
        let Some(tier) = self
            .tiers
            .get(priority)
            .filter(|tier| tier.rank == group.rank)
        else {
            return 0.0;
        };
        let (mut own, mut all) = (0u32, 0u32);
        for candidate in &tier.candidates {
            let endpoint = &candidate.endpoint;
            all += candidate.weight;
            if (&endpoint.cluster, &endpoint.locality) == group.key() {
                own += candidate.weight;
            }
        }
        if all == 0 {
            0.0
        } else {
            f64::from(own) / f64::from(all)
        }
    }
}

/// Why a group that is `part` of its priority, which has this share, gets what it gets.
fn why(
    group: &Group,
    priority: usize,
    part: f64,
    share: f64,
    (health, counted): (f64, f64),
) -> Why {
    match group.standing {
        Standing::PortNotExposed => return Why::PortNotExposed,
        Standing::PeerUnusable => return Why::PeerUnusable,
        Standing::Usable => {}
    }
    if part == 0.0 {
        let available = group.available > 0;
        if available {
            Why::OutsideSubset
        } else {
            Why::NoneAvailable
        }
    } else if health == 0.0 {
        Why::Panic
    } else if counted < health {
        Why::HeldBack { health, counted }
    } else if share == 0.0 {
        Why::NotNeeded
    } else if priority == 0 {
        Why::Nearest { health }
    } else {
        Why::SpillOver { health }
    }
}

//! Where requests would go, and why: read from the very plan that requests use.

use std::fmt;

use serde::Serialize;

use crate::draw::Masses;
use crate::groups::{Group, Standing};
use crate::ids::ClusterId;
use crate::locality::Rank;
use crate::model::Locality;
use crate::pick::Candidate;
use crate::plan::{Plan, Tier};
use crate::priority::EPSILON;
use crate::slot::Slot;

/// What one cluster's locality gets of a service's load from here.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Share {
    /// Its priority, 0 first. Priorities that expect no endpoints are not counted.
    pub priority: usize,
    /// Which entry of the policy's order makes the priority, counted from 1; none where
    /// nearness does.
    pub listed: Option<usize>,
    /// Nearness to the caller.
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
    /// Endpoints that are listed and want no requests.
    pub endpoints_not_ready: u32,
    /// Endpoints of the whole priority that can take requests.
    pub priority_available: u32,
    /// Endpoints that the whole priority should have.
    pub priority_expected: u32,
    /// The factor by which a priority may be short of endpoints and still take everything.
    pub overprovisioning: f64,
    /// Why the share is what it is.
    pub why: Why,
}

/// Why a locality gets its share.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", tag = "reason")]
pub enum Why {
    /// The first priority takes what its health allows.
    Nearest {
        /// The health of the priority, 0 to 1.
        health: f64,
    },
    /// Priorities before it cannot take everything.
    SpillOver {
        /// The health of the priority, 0 to 1.
        health: f64,
    },
    /// Priorities before it take everything.
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
    /// The policy excludes it.
    Excluded,
    /// The policy has the cluster avoided, and others take everything.
    Avoided,
    /// The cluster is drained, and something else is healthy.
    Drained,
    /// The cluster is drained, and nothing else is healthy.
    LastResort,
    /// The policy lets no more than this leave the caller's cluster: more of it stays at home
    /// than `wanted`, and less of it goes elsewhere.
    Capped {
        /// The share without the cap, 0 to 1.
        wanted: f64,
        /// The cap, in percent.
        percent: u32,
    },
}

impl Share {
    /// Why, with the numbers behind it, in words: health by overprovisioning, and who is missing.
    pub fn reason(&self) -> String {
        let mut reason = self.why.to_string();
        if matches!(self.why, Why::Nearest { .. } | Why::SpillOver { .. })
            && self.priority_available < self.priority_expected
        {
            reason.push_str(&format!(
                " ({} of {} × {})",
                self.priority_available, self.priority_expected, self.overprovisioning
            ));
        }
        for (count, what) in [
            (self.endpoints_not_ready, "not ready"),
            (self.endpoints_ejected, "ejected"),
        ] {
            if count > 0 {
                reason.push_str(&format!("; {count} {what}"));
            }
        }
        reason
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |part: &f64| part * 100.0;
        match self {
            Self::Nearest { health } => {
                write!(f, "first priority, {:.0} % healthy", percent(health))
            }
            Self::SpillOver { health } => write!(
                f,
                "spill-over from priorities before it; this one is {:.0} % healthy",
                percent(health)
            ),
            Self::NotNeeded => f.write_str("priorities before it take everything"),
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
            Self::Excluded => f.write_str("excluded by the failover policy"),
            Self::Avoided => f.write_str("avoided while its records are stale; others suffice"),
            Self::Drained => f.write_str("drained"),
            Self::LastResort => f.write_str("drained, but nothing else is healthy"),
            Self::Capped {
                wanted,
                percent: cap,
            } => write!(
                f,
                "capped: at most {cap} % may leave the cluster; without that {:.1} %",
                percent(wanted)
            ),
        }
    }
}

impl Plan {
    /// The shares as of the time at which the plan was built.
    pub(crate) fn explain(&self) -> Vec<Share> {
        let masses = self.masses(self.built);
        let (shares, counted) = (self.shares(self.built), self.counted(self.built));
        let explain = |at: usize, group: &Group| {
            let slot = group.slot.map(|slot| slot.index());
            let given = Given {
                // A priority that expects nothing is none, and what is excluded is in none.
                priority: self
                    .tiers
                    .iter()
                    .filter(|t| Some(t.slot) < group.slot)
                    .count(),
                part: self.part_of_tier(at, group, |tier, pool| tier.pools[pool].part),
                back: slot.map_or(1.0, |slot| self.back(at, group, shares[slot])),
                wanted: slot.map_or(0.0, |slot| {
                    let share = shares[slot];
                    let part = |tier: &Tier, pool| tier.part(pool, share, self.built);
                    share * self.part_of_tier(at, group, part)
                }),
                share: self.share_of(at, group, &masses),
                health: slot.map_or(0.0, |slot| self.health[slot]),
                counted: slot.map_or(0.0, |slot| counted[slot]),
            };
            self.explain_group(group, given)
        };
        let groups = self.groups.iter().enumerate();
        groups.map(|(at, group)| explain(at, group)).collect()
    }

    fn explain_group(&self, group: &Group, given: Given) -> Share {
        let peers = || {
            let same = |of: &&Group| of.slot == group.slot && of.slot.is_some();
            let counts = |of: &&Group| of.standing != Standing::PortNotExposed;
            self.groups.iter().filter(same).filter(counts)
        };
        Share {
            priority: given.priority,
            listed: group.slot.and_then(Slot::position_in_order),
            rank: group.rank,
            cluster: group.cluster.clone(),
            locality: group.locality.clone(),
            share: given.share,
            endpoints_available: group.available,
            endpoints_expected: group.expected,
            endpoints_ejected: group.ejected,
            endpoints_not_ready: group.not_ready,
            priority_available: peers().map(|of| of.available).sum(),
            priority_expected: peers().map(|of| of.expected).sum(),
            overprovisioning: self.overprovisioning,
            why: why(group, &given, self.cap.as_ref().map(|cap| cap.percent)),
        }
    }

    /// What a group gets of all requests.
    fn share_of(&self, at: usize, group: &Group, masses: &Masses) -> f64 {
        let Some(tier) = self.tiers.iter().position(|of| Some(of.slot) == group.slot) else {
            return 0.0;
        };
        let pools = self.tiers[tier].pools.iter().zip(&masses.pools[tier]);
        let reserve = self.tiers[tier].reserve.iter().zip(&masses.reserve[tier]);
        pools
            .chain(reserve)
            .map(|(pool, mass)| mass * part_of_pool(&pool.candidates, pool.group, at))
            .sum()
    }

    /// The part that a group has of its priority, if each pool has this part of it.
    fn part_of_tier(&self, at: usize, group: &Group, part: impl Fn(&Tier, usize) -> f64) -> f64 {
        let tier = self.tiers.iter().find(|tier| Some(tier.slot) == group.slot);
        let Some(tier) = tier else { return 0.0 };
        let pools = tier.pools.iter().enumerate();
        pools
            .map(|(pool, of)| part(tier, pool) * part_of_pool(&of.candidates, of.group, at))
            .sum()
    }

    /// How much of its part of its priority, which takes `share`, a group takes, if it comes back
    /// from a drain; else 1.
    fn back(&self, at: usize, group: &Group, share: f64) -> f64 {
        let returning = |tier: &Tier, pool: usize| {
            let returns = tier.pools[pool].returning.is_some();
            f64::from(u8::from(returns))
        };
        let whole = |tier: &Tier, pool: usize| tier.pools[pool].part * returning(tier, pool);
        let now =
            |tier: &Tier, pool: usize| tier.part(pool, share, self.built) * returning(tier, pool);
        match self.part_of_tier(at, group, whole) {
            0.0 => 1.0,
            whole => self.part_of_tier(at, group, now) / whole,
        }
    }
}

/// The part that a group has of a pool: all of its own; by weight of one that several share.
fn part_of_pool(candidates: &[Candidate], of: Option<usize>, group: usize) -> f64 {
    if let Some(of) = of {
        return f64::from(u8::from(of == group));
    }
    let sum = |own: &dyn Fn(&&Candidate) -> bool| -> u32 {
        candidates.iter().filter(|c| own(c)).map(|c| c.weight).sum()
    };
    match sum(&|_| true) {
        0 => 0.0,
        all => f64::from(sum(&|c| c.group == group)) / f64::from(all),
    }
}

/// What a group is given, and what its priority comes to.
struct Given {
    priority: usize,
    /// Of the priority.
    part: f64,
    /// How much of that it takes while it comes back from a drain.
    back: f64,
    /// Of all requests before the cap.
    wanted: f64,
    /// The group's share of all requests.
    share: f64,
    health: f64,
    counted: f64,
}

/// Why a group gets what it gets.
fn why(group: &Group, given: &Given, cap: Option<u32>) -> Why {
    match group.standing {
        Standing::PortNotExposed => return Why::PortNotExposed,
        Standing::PeerUnusable => return Why::PeerUnusable,
        Standing::Excluded => return Why::Excluded,
        Standing::Usable => {}
    }
    let Given {
        health,
        counted,
        wanted,
        back,
        ..
    } = *given;
    let drained = group.slot == Some(Slot::DRAINED);
    if given.part == 0.0 {
        match group.available {
            // Nothing may leave, and nobody else is at home.
            _ if given.share > 0.0 => Why::Panic,
            0 => Why::NoneAvailable,
            _ => Why::OutsideSubset,
        }
    } else if drained && given.share == 0.0 {
        Why::Drained
    } else if health == 0.0 {
        Why::Panic
    } else if drained {
        Why::LastResort
    } else if let Some(percent) = cap.filter(|_| (given.share - wanted).abs() > EPSILON) {
        Why::Capped { wanted, percent }
    } else if counted < health {
        Why::HeldBack { health, counted }
    } else if back < 1.0 - EPSILON {
        let counted = health * back;
        Why::HeldBack { health, counted }
    } else if given.share == 0.0 {
        match group.slot == Some(Slot::AVOIDED) {
            true => Why::Avoided,
            false => Why::NotNeeded,
        }
    } else if given.priority == 0 {
        Why::Nearest { health }
    } else {
        Why::SpillOver { health }
    }
}

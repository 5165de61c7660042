//! One immutable answer to "who could take a request now": everything that [`crate::Balancer`]
//! decides when something changes, so that a single request only has to look.

use std::fmt;
use std::time::Instant;

use crate::balancer::NoEndpoint;
use crate::explain::Group;
use crate::failback::Curve;
use crate::locality::{PerRank, Rank};
use crate::model::EndpointKey;
use crate::pick::{Candidate, better_of_two, unit};
use crate::priority::{loads, relieve};

/// The whole plan.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Priorities that expect endpoints, first one first.
    pub(crate) tiers: Vec<Tier>,
    /// The real health of each rank.
    pub(crate) health: PerRank<f64>,
    /// How load is shared among ranks; sums to 1 or is all 0. While health comes back this is
    /// the share at the time of building.
    pub(crate) shares: PerRank<f64>,
    /// The health that counts, while that of some rank is coming back.
    pub(crate) damped: Option<PerRank<Curve>>,
    /// Nothing is healthy: the candidates are ejected endpoints.
    pub(crate) panic: bool,
    /// Half-open endpoints, or such as will be, that may get a request to prove themselves.
    pub(crate) trials: Vec<Trial>,
    /// For `explain`: all localities that offer the service.
    pub(crate) groups: Vec<Group>,
    /// When this was decided.
    pub(crate) built: Instant,
    /// What to say when there is no candidate at all.
    pub(crate) vacancy: NoEndpoint,
}

/// One priority.
#[derive(Debug)]
pub(crate) struct Tier {
    pub(crate) rank: Rank,
    /// Chosen among in the first place.
    pub(crate) candidates: Vec<Candidate>,
    /// Ejected endpoints, re-admitted after all others because total health is below 1.
    pub(crate) reserve: Vec<Candidate>,
}

/// An ejected endpoint and when it may be tried.
#[derive(Debug)]
pub(crate) struct Trial {
    pub(crate) tier: usize,
    pub(crate) candidate: Candidate,
    pub(crate) from: Instant,
}

/// How an endpoint came to be chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Choice {
    /// By its priority's share of the load.
    Share,
    /// Because all endpoints of the priority drawn had been tried by this request.
    NextPriority,
    /// An ejected endpoint whose time is over, to prove itself.
    Trial,
    /// An ejected endpoint, since nothing healthy is left.
    Panic,
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Share => "by share",
            Self::NextPriority => "nothing else left to try",
            Self::Trial => "on trial",
            Self::Panic => "panic",
        })
    }
}

/// What [`Plan::choose`] found.
pub(crate) struct Chosen<'a> {
    pub(crate) tier: usize,
    pub(crate) candidate: &'a Candidate,
    pub(crate) choice: Choice,
}

impl Plan {
    /// The health of each rank that counts at this time.
    pub(crate) fn counted(&self, now: Instant) -> PerRank<f64> {
        match &self.damped {
            Some(damped) => relieve(&self.health, &damped.map(|curve| curve.at(now))),
            None => self.health,
        }
    }

    /// The shares at this time.
    pub(crate) fn shares(&self, now: Instant) -> PerRank<f64> {
        match &self.damped {
            Some(_) => loads(&self.counted(now)),
            None => self.shares,
        }
    }

    /// Chooses an endpoint that is not in `exclude`.
    pub(crate) fn choose(
        &self,
        now: Instant,
        random: &mut impl FnMut() -> u64,
        exclude: &[EndpointKey],
    ) -> Result<Chosen<'_>, NoEndpoint> {
        // A request that has failed somewhere already is not one to try things with.
        if exclude.is_empty()
            && let Some(trial) = self.trial(now)
        {
            return Ok(trial);
        }
        let drawn = self.draw_tier(now, unit(random()));
        let others = (drawn + 1..self.tiers.len()).chain(0..drawn);
        for tier in std::iter::once(drawn).chain(others) {
            let Some(candidates) = self.tiers.get(tier).map(|tier| &tier.candidates) else {
                break;
            };
            if let Some(candidate) = better_of_two(candidates, now, random, exclude) {
                let choice = match (self.panic, tier == drawn) {
                    (true, _) => Choice::Panic,
                    (false, true) => Choice::Share,
                    (false, false) => Choice::NextPriority,
                };
                return Ok(Chosen {
                    tier,
                    candidate,
                    choice,
                });
            }
        }
        self.reserve(now, random, exclude)
            .ok_or_else(|| self.refusal())
    }

    /// A half-open endpoint that has no request under way; takes its place on trial.
    fn trial(&self, now: Instant) -> Option<Chosen<'_>> {
        let due = |trial: &&Trial| now >= trial.from && trial.candidate.vitals.begin_trial();
        let Trial {
            tier, candidate, ..
        } = self.trials.iter().find(due)?;
        Some(Chosen {
            tier: *tier,
            candidate,
            choice: Choice::Trial,
        })
    }

    /// The priority at this point of the unit interval.
    fn draw_tier(&self, now: Instant, point: f64) -> usize {
        let shares = self.shares(now);
        let mut below = 0.0;
        let mut last = 0;
        for (at, tier) in self.tiers.iter().enumerate() {
            let share = shares[tier.rank.index()];
            if share > 0.0 {
                last = at;
                below += share;
                if point < below {
                    break;
                }
            }
        }
        last
    }

    fn reserve(
        &self,
        now: Instant,
        random: &mut impl FnMut() -> u64,
        exclude: &[EndpointKey],
    ) -> Option<Chosen<'_>> {
        self.tiers
            .iter()
            .enumerate()
            .find_map(|(tier, Tier { reserve, .. })| {
                let candidate = better_of_two(reserve, now, random, exclude)?;
                Some(Chosen {
                    tier,
                    candidate,
                    choice: Choice::Panic,
                })
            })
    }

    fn refusal(&self) -> NoEndpoint {
        let any = |tier: &Tier| !tier.candidates.is_empty() || !tier.reserve.is_empty();
        if self.tiers.iter().any(any) {
            NoEndpoint::AllExcluded
        } else {
            self.vacancy.clone()
        }
    }
}

//! One immutable answer to "who could take a request now": everything that [`crate::Balancer`]
//! decides when something changes, so that a single request only has to look.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use crate::allowance::Allowance;
use crate::balancer::NoEndpoint;
use crate::failback::Curve;
use crate::groups::Group;
use crate::model::EndpointKey;
use crate::pick::{Candidate, better_of_two, unit};
use crate::pool::Pool;
use crate::priority::{loads, relieve};
use crate::slot::{PerSlot, Slot};

/// The whole plan.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Priorities that expect endpoints, first one first.
    pub(crate) tiers: Vec<Tier>,
    /// The real health of each slot.
    pub(crate) health: PerSlot<f64>,
    /// How load is shared among slots; sums to 1 or is all 0. While health comes back this is
    /// the share at the time of building.
    pub(crate) shares: PerSlot<f64>,
    /// The health that counts, while that of some slot is coming back.
    pub(crate) damped: Option<PerSlot<Curve>>,
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
    /// What may leave the caller's cluster; none: everything.
    pub(crate) cap: Option<Cap>,
    /// The overprovisioning factor that healths were made with.
    pub(crate) overprovisioning: f64,
}

/// How much may leave the caller's cluster.
#[derive(Debug)]
pub(crate) struct Cap {
    pub(crate) percent: u32,
    pub(crate) allowance: Arc<Allowance>,
}

/// One priority.
#[derive(Debug)]
pub(crate) struct Tier {
    pub(crate) slot: Slot,
    /// Chosen among in the first place.
    pub(crate) pools: Vec<Pool>,
    /// Ejected endpoints, re-admitted after all others because total health is below 1, or
    /// because what may not leave has nowhere else to go.
    pub(crate) reserve: Vec<Pool>,
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
    /// The health of each slot that counts at this time.
    pub(crate) fn counted(&self, now: Instant) -> PerSlot<f64> {
        match &self.damped {
            Some(damped) => relieve(&self.health, &damped.map(|curve| curve.at(now))),
            None => self.health,
        }
    }

    /// The shares at this time.
    pub(crate) fn shares(&self, now: Instant) -> PerSlot<f64> {
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
        if exclude.is_empty() {
            if let Some(cap) = &self.cap {
                cap.allowance.earn(cap.percent);
            }
            if let Some(trial) = self.trial(now) {
                return Ok(self.leaving(trial));
            }
        }
        let drawn = self.draw(now, unit(random()));
        let abroad = drawn.is_some() && self.affords_abroad();
        let mut search = Search {
            now,
            random,
            exclude,
            abroad,
        };
        let found = match drawn {
            Some((tier, pool)) => self.from(tier, Some(pool), &mut search),
            None => self.from(0, None, &mut search),
        };
        match found.or_else(|| self.reserve(&mut search)) {
            Some(chosen) => Ok(self.leaving(chosen)),
            None => Err(self.refusal(abroad)),
        }
    }

    /// The pool drawn, then what else its priority has, then the priorities after it, then
    /// those before.
    fn from<R: FnMut() -> u64>(
        &self,
        drawn: usize,
        pool: Option<usize>,
        search: &mut Search<'_, R>,
    ) -> Option<Chosen<'_>> {
        let others = (drawn + 1..self.tiers.len()).chain(0..drawn);
        for at in std::iter::once(drawn).chain(others) {
            let tier = self.tiers.get(at)?;
            let first = pool.filter(|_| at == drawn);
            if let Some(candidate) = search.among(&tier.pools, first) {
                let choice = match (self.panic, at == drawn) {
                    (true, _) => Choice::Panic,
                    (false, true) => Choice::Share,
                    (false, false) => Choice::NextPriority,
                };
                return Some(Chosen {
                    tier: at,
                    candidate,
                    choice,
                });
            }
        }
        None
    }

    /// A half-open endpoint that has no request under way; takes its place on trial.
    fn trial(&self, now: Instant) -> Option<Chosen<'_>> {
        let abroad = self.affords_abroad();
        let due = |trial: &&Trial| {
            let candidate = &trial.candidate;
            now >= trial.from && (abroad || !candidate.remote) && candidate.vitals.begin_trial()
        };
        let Trial {
            tier, candidate, ..
        } = self.trials.iter().find(due)?;
        Some(Chosen {
            tier: *tier,
            candidate,
            choice: Choice::Trial,
        })
    }

    fn reserve<R: FnMut() -> u64>(&self, search: &mut Search<'_, R>) -> Option<Chosen<'_>> {
        self.tiers
            .iter()
            .enumerate()
            .find_map(|(tier, Tier { reserve, .. })| {
                let candidate = search.among(reserve, None)?;
                Some(Chosen {
                    tier,
                    candidate,
                    choice: Choice::Panic,
                })
            })
    }

    fn affords_abroad(&self) -> bool {
        self.cap.as_ref().is_none_or(|cap| cap.allowance.affords())
    }

    /// Counts a choice that leaves the caller's cluster against the cap.
    fn leaving<'a>(&self, chosen: Chosen<'a>) -> Chosen<'a> {
        if let Some(cap) = self.cap.as_ref().filter(|_| chosen.candidate.remote) {
            // Two at once may take the last one; the next then waits the longer.
            cap.allowance.spend();
        }
        chosen
    }

    fn refusal(&self, abroad: bool) -> NoEndpoint {
        let pools = || {
            self.tiers
                .iter()
                .flat_map(|t| t.pools.iter().chain(&t.reserve))
        };
        match &self.cap {
            Some(cap) if !abroad && pools().any(|pool| pool.remote) => {
                NoEndpoint::RemoteShareUsed {
                    percent: cap.percent,
                }
            }
            _ if pools().next().is_some() => NoEndpoint::AllExcluded,
            _ => self.vacancy.clone(),
        }
    }
}

/// What one choice goes by.
struct Search<'a, R> {
    now: Instant,
    random: &'a mut R,
    exclude: &'a [EndpointKey],
    /// Whether it may leave the caller's cluster.
    abroad: bool,
}

impl<R: FnMut() -> u64> Search<'_, R> {
    /// A candidate of one of these pools: of `first` if that has one.
    fn among<'p>(&mut self, pools: &'p [Pool], first: Option<usize>) -> Option<&'p Candidate> {
        let start = match first {
            Some(first) => first,
            None => self.start(pools)?,
        };
        let order = (start..pools.len()).chain(0..start);
        order
            .map(|at| &pools[at])
            .filter(|pool| self.abroad || !pool.remote)
            .find_map(|pool| better_of_two(&pool.candidates, self.now, self.random, self.exclude))
    }

    /// A pool drawn by its part, among those that may be used.
    fn start(&mut self, pools: &[Pool]) -> Option<usize> {
        let allowed = |pool: &&Pool| self.abroad || !pool.remote;
        let sum: f64 = pools.iter().filter(allowed).map(|pool| pool.part).sum();
        let mut usable = pools.iter().enumerate().filter(|(_, pool)| allowed(pool));
        let (only, _) = usable.next()?;
        if usable.next().is_none() {
            return Some(only);
        }
        let mut left = unit((self.random)()) * sum;
        let allowed = |pool: &&Pool| self.abroad || !pool.remote;
        for (at, pool) in pools.iter().enumerate().filter(|(_, pool)| allowed(pool)) {
            left -= pool.part;
            if left < 0.0 {
                return Some(at);
            }
        }
        Some(only)
    }
}

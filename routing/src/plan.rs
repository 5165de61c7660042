//! One immutable answer to "who could take a request now": everything that [`crate::Balancer`]
//! decides when something changes, so that a single request only has to look.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use crate::allowance::Allowance;
use crate::balancer::{NoEndpoint, Try};
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
    /// The health that it has without the clusters that come back from a drain, while some do.
    pub(crate) settled: Option<f64>,
}

impl Tier {
    /// The part that a pool takes of this priority's load, which is `share` of all.
    pub(crate) fn part(&self, pool: usize, share: f64, now: Instant) -> f64 {
        let of = &self.pools[pool];
        let Some(settled) = self.settled.filter(|_| share > 0.0) else {
            return of.part;
        };
        let returning = || self.pools.iter().filter(|pool| pool.returning.is_some());
        let whole: f64 = returning().map(|pool| pool.part).sum();
        // What the others cannot take is not held back.
        let least = ((1.0 - settled / share) / whole).clamp(0.0, 1.0);
        let counted = |pool: &Pool| {
            let back = pool.returning.map_or(1.0, |curve| curve.at(now));
            pool.part * back.max(least)
        };
        match of.returning {
            Some(_) => counted(of),
            None => of.part * (1.0 - returning().map(counted).sum::<f64>()) / (1.0 - whole),
        }
    }
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

    /// Chooses an endpoint for this try.
    pub(crate) fn choose(
        &self,
        now: Instant,
        random: &mut impl FnMut() -> u64,
        of: Try<'_>,
    ) -> Result<Chosen<'_>, NoEndpoint> {
        let (exclude, first) = match of {
            Try::First => (&[][..], true),
            // What has failed somewhere already is not to try things with.
            Try::Again(tried) => (tried, false),
        };
        if let Some(trial) = first.then(|| self.trial(now)).flatten() {
            return Ok(trial);
        }
        let drawn = self.draw(now, unit(random()));
        // A first try keeps to its share; a retry, which shares do not know, may leave on what
        // is saved up where home has nothing for it.
        let ranges: &[Range] = match (drawn, first) {
            (Some(_), _) => &[Range::Everywhere, Range::Home],
            (None, true) => &[Range::Home],
            (None, false) => &[Range::Home, Range::Everywhere],
        };
        let mut search = Search {
            now,
            random,
            exclude,
            range: Range::Home,
        };
        let mut ventured = false;
        for range in ranges {
            if *range == Range::Everywhere && !self.affords_abroad() {
                continue;
            }
            search.range = *range;
            match self.find(drawn, &mut search) {
                Some(chosen) if self.pays(chosen.candidate) => return Ok(chosen),
                // Somebody else has taken the last one meanwhile.
                Some(_) => {}
                None => ventured |= *range == Range::Everywhere,
            }
        }
        Err(self.refusal(ventured))
    }

    fn find<R: FnMut() -> u64>(
        &self,
        drawn: Option<(usize, usize)>,
        search: &mut Search<'_, R>,
    ) -> Option<Chosen<'_>> {
        let found = match drawn {
            Some((tier, pool)) => self.from(tier, Some(pool), search),
            None => self.from(0, None, search),
        };
        found.or_else(|| self.reserve(search))
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
        let due = |trial: &&Trial| {
            let candidate = &trial.candidate;
            let affordable = !candidate.remote || self.affords_abroad();
            now >= trial.from && affordable && candidate.vitals.begin_trial()
        };
        let Trial {
            tier, candidate, ..
        } = self.trials.iter().find(due)?;
        if !self.pays(candidate) {
            candidate.vitals.end_trial();
            return None;
        }
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

    /// Counts a choice against the cap if it leaves the caller's cluster; false if it may not.
    fn pays(&self, candidate: &Candidate) -> bool {
        let cap = self.cap.as_ref().filter(|_| candidate.remote);
        cap.is_none_or(|cap| cap.allowance.spend())
    }

    /// Why there is nothing; `ventured` if it was looked for in other clusters, too.
    fn refusal(&self, ventured: bool) -> NoEndpoint {
        let mut pools = self
            .tiers
            .iter()
            .flat_map(|tier| tier.pools.iter().chain(&tier.reserve))
            .peekable();
        if pools.peek().is_none() {
            return self.vacancy.clone();
        }
        match &self.cap {
            // Who has tried all there is at home may do so again.
            Some(cap) if !ventured && pools.all(|pool| pool.remote) => {
                NoEndpoint::RemoteShareUsed {
                    percent: cap.percent,
                }
            }
            _ => NoEndpoint::AllExcluded,
        }
    }
}

/// What one choice goes by.
struct Search<'a, R> {
    now: Instant,
    random: &'a mut R,
    exclude: &'a [EndpointKey],
    range: Range,
}

/// How far a choice may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Range {
    /// Within the caller's cluster.
    Home,
    Everywhere,
}

impl Range {
    fn covers(self, pool: &Pool) -> bool {
        self == Self::Everywhere || !pool.remote
    }
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
            .filter(|pool| self.range.covers(pool))
            .find_map(|pool| better_of_two(&pool.candidates, self.now, self.random, self.exclude))
    }

    /// A pool drawn by its part, among those that may be used.
    fn start(&mut self, pools: &[Pool]) -> Option<usize> {
        let range = self.range;
        let allowed = |pool: &&Pool| range.covers(pool);
        let sum: f64 = pools.iter().filter(allowed).map(|pool| pool.part).sum();
        let mut usable = pools.iter().enumerate().filter(|(_, pool)| allowed(pool));
        let (only, _) = usable.next()?;
        if usable.next().is_none() {
            return Some(only);
        }
        let mut left = unit((self.random)()) * sum;
        for (at, pool) in pools.iter().enumerate().filter(|(_, pool)| allowed(pool)) {
            left -= pool.part;
            if left < 0.0 {
                return Some(at);
            }
        }
        Some(only)
    }
}

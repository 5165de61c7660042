//! From the shares of priorities to the pool that one request draws, and to what each pool gets:
//! the same arithmetic for both, so that an explanation is what is done.

use std::time::Instant;

use crate::plan::{Plan, Tier};
use crate::pool::Pool;
use crate::priority::EPSILON;
use crate::slot::PerSlot;

/// How the load is shared among pools at one time.
pub(crate) struct Split {
    now: Instant,
    shares: PerSlot<f64>,
    /// What home's and other clusters' masses are multiplied with to keep to the cap.
    home: f64,
    remote: f64,
}

impl Split {
    /// The part of all requests that a pool takes.
    fn mass(&self, tier: &Tier, pool: usize) -> f64 {
        let remote = tier.pools[pool].remote;
        let scale = if remote { self.remote } else { self.home };
        let share = self.shares[tier.slot.index()];
        share * tier.part(pool, share, self.now) * scale
    }
}

impl Plan {
    /// The split at this time. Where more would leave than may, what may is shared among other
    /// clusters as before, and home takes the rest.
    pub(crate) fn split(&self, now: Instant) -> Split {
        let mut split = Split {
            now,
            shares: self.shares(now),
            home: 1.0,
            remote: 1.0,
        };
        let Some(cap) = &self.cap else { return split };
        let (mut home, mut remote) = (0.0, 0.0);
        for tier in &self.tiers {
            for (at, pool) in tier.pools.iter().enumerate() {
                *if pool.remote { &mut remote } else { &mut home } += split.mass(tier, at);
            }
        }
        let part = f64::from(cap.percent) / 100.0;
        if remote > part + EPSILON {
            split.remote = part / remote;
            split.home = if home > 0.0 { (1.0 - part) / home } else { 1.0 };
        }
        split
    }

    /// The tier and pool at this point of the unit interval; none where the cap leaves it to
    /// home, which has no share of its own.
    pub(crate) fn draw(&self, now: Instant, point: f64) -> Option<(usize, usize)> {
        let split = self.split(now);
        let mut below = 0.0;
        let mut last = None;
        for (at, tier) in self.tiers.iter().enumerate() {
            for pool in 0..tier.pools.len() {
                let mass = split.mass(tier, pool);
                if mass > 0.0 {
                    last = Some((at, pool));
                    below += mass;
                    if point < below {
                        return last;
                    }
                }
            }
        }
        // Nothing lacks but what rounding has taken.
        last.filter(|_| below > 1.0 - EPSILON)
    }

    /// What each pool gets of all requests: by its share, and by the cap where home has none.
    pub(crate) fn masses(&self, now: Instant) -> Masses {
        let split = self.split(now);
        let of = |tier: &Tier| {
            let pools = 0..tier.pools.len();
            pools.map(|pool| split.mass(tier, pool)).collect()
        };
        let nothing = |tier: &Tier| vec![0.0; tier.reserve.len()];
        let mut masses = Masses {
            pools: self.tiers.iter().map(of).collect(),
            reserve: self.tiers.iter().map(nothing).collect(),
        };
        let rest = 1.0 - masses.pools.iter().flatten().sum::<f64>();
        if self.cap.is_some() && rest > EPSILON {
            let home = |pools: &[Pool]| pools.iter().any(|pool| !pool.remote);
            let mut tiers = self.tiers.iter().zip(&mut masses.pools);
            let mut reserves = self.tiers.iter().zip(&mut masses.reserve);
            if let Some((tier, masses)) = tiers.find(|(tier, _)| home(&tier.pools)) {
                give_home(rest, &tier.pools, masses);
            } else if let Some((tier, masses)) = reserves.find(|(tier, _)| home(&tier.reserve)) {
                give_home(rest, &tier.reserve, masses);
            }
        }
        masses
    }
}

/// What each pool gets of all requests, in the order of tiers and pools.
pub(crate) struct Masses {
    pub(crate) pools: Vec<Vec<f64>>,
    /// The same of ejected endpoints that are asked because nothing may leave.
    pub(crate) reserve: Vec<Vec<f64>>,
}

/// Shares `rest` among the pools at home.
fn give_home(rest: f64, pools: &[Pool], masses: &mut [f64]) {
    let home = |pool: &&Pool| !pool.remote;
    let parts: f64 = pools.iter().filter(home).map(|pool| pool.part).sum();
    for (pool, mass) in pools.iter().zip(masses).filter(|(pool, _)| home(pool)) {
        *mass += rest * pool.part / parts;
    }
}

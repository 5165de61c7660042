//! From the shares of priorities to the pool that one request draws, and to what each pool gets:
//! the same arithmetic for both, so that an explanation is what is done.

use std::time::Instant;

use crate::plan::{Plan, Tier};
use crate::priority::EPSILON;
use crate::slot::PerSlot;

/// How the load is shared among pools at one time.
pub(crate) struct Split {
    shares: PerSlot<f64>,
    /// What home's and other clusters' masses are multiplied with to keep to the cap.
    home: f64,
    remote: f64,
}

impl Split {
    /// The part of all requests that a pool takes.
    fn mass(&self, tier: &Tier, pool: usize) -> f64 {
        let pool = &tier.pools[pool];
        let scale = if pool.remote { self.remote } else { self.home };
        self.shares[tier.slot.index()] * pool.part * scale
    }
}

impl Plan {
    /// The split at this time. Where more would leave than may, what may is shared among other
    /// clusters as before, and home takes the rest.
    pub(crate) fn split(&self, now: Instant) -> Split {
        let mut split = Split {
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
    /// In the order of tiers and pools.
    pub(crate) fn masses(&self, now: Instant) -> Vec<Vec<f64>> {
        let split = self.split(now);
        let of = |tier: &Tier| {
            let pools = 0..tier.pools.len();
            pools.map(|pool| split.mass(tier, pool)).collect()
        };
        let mut masses: Vec<Vec<f64>> = self.tiers.iter().map(of).collect();
        let sum: f64 = masses.iter().flatten().sum();
        let rest = 1.0 - sum;
        if self.cap.is_some() && sum > 0.0 && rest > EPSILON {
            let has_home = |tier: &Tier| tier.pools.iter().any(|pool| !pool.remote);
            if let Some(at) = self.tiers.iter().position(has_home) {
                let tier = &self.tiers[at];
                let home = || tier.pools.iter().enumerate().filter(|(_, of)| !of.remote);
                let parts: f64 = home().map(|(_, pool)| pool.part).sum();
                home().for_each(|(pool, of)| masses[at][pool] += rest * of.part / parts);
            }
        }
        masses
    }
}

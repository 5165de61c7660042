//! Endpoints among which load decides: a whole priority, or one locality of it where a policy
//! says how much each locality gets.

use crate::failback::Curve;
use crate::pick::{Candidate, subset};

/// Some candidates of one priority.
#[derive(Debug, Clone)]
pub(crate) struct Pool {
    /// The group that it is of; none where it may have several.
    pub(crate) group: Option<usize>,
    /// The part of its priority that it takes; all parts of a priority sum to 1.
    pub(crate) part: f64,
    /// How much of its part it takes by now, if its cluster comes back from a drain.
    pub(crate) returning: Option<Curve>,
    /// Whether it is in another cluster; false where it may be in several.
    pub(crate) remote: bool,
    /// This source's subset.
    pub(crate) candidates: Vec<Candidate>,
}

/// What a pool is made of.
#[derive(Debug)]
pub(crate) struct Ingredients {
    pub(crate) group: Option<usize>,
    pub(crate) returning: Option<Curve>,
    /// What it takes, relative to the others of its priority.
    pub(crate) amount: f64,
    pub(crate) candidates: Vec<Candidate>,
}

impl Pool {
    /// The pools of one priority.
    pub(crate) fn of(all: impl IntoIterator<Item = Ingredients>, seed: u64) -> Vec<Self> {
        let mut pools: Vec<_> = all
            .into_iter()
            .filter(|of| !of.candidates.is_empty())
            .map(|of| Self {
                group: of.group,
                part: of.amount,
                returning: of.returning,
                remote: of.group.is_some() && of.candidates.iter().any(|one| one.remote),
                candidates: shortlist(of.candidates, seed),
            })
            .collect();
        let sum: f64 = pools.iter().map(|pool| pool.part).sum();
        for pool in &mut pools {
            pool.part /= sum;
        }
        pools
    }
}

/// What candidates take where nothing else is said.
pub(crate) fn weight(candidates: &[Candidate]) -> f64 {
    let weights = candidates.iter().map(|one| f64::from(one.weight));
    weights.sum()
}

/// This source's subset, with weights relative to one another.
fn shortlist(mut candidates: Vec<Candidate>, seed: u64) -> Vec<Candidate> {
    subset(&mut candidates, seed, |candidate| &candidate.endpoint.id);
    let sum: u32 = candidates.iter().map(|candidate| candidate.weight).sum();
    let mean = sum as f32 / candidates.len().max(1) as f32;
    for candidate in &mut candidates {
        candidate.capacity = candidate.weight as f32 / mean;
    }
    candidates
}

//! Endpoints among which load decides: a whole priority, or one locality of it where a policy
//! says how much each locality gets.

use crate::pick::{Candidate, subset};

/// Some candidates of one priority.
#[derive(Debug, Clone)]
pub(crate) struct Pool {
    /// The group that it is of; none where it is the whole priority.
    pub(crate) group: Option<usize>,
    /// The part of its priority that it takes; all parts of a priority sum to 1.
    pub(crate) part: f64,
    /// Whether it is in another cluster; false where it is the whole priority.
    pub(crate) remote: bool,
    /// This source's subset.
    pub(crate) candidates: Vec<Candidate>,
}

impl Pool {
    /// One of them all; none if there are none.
    pub(crate) fn whole(candidates: Vec<Candidate>, seed: u64) -> Vec<Self> {
        if candidates.is_empty() {
            return Vec::new();
        }
        vec![Self {
            group: None,
            part: 1.0,
            remote: false,
            candidates: shortlist(candidates, seed),
        }]
    }

    /// One of each group, which takes its priority in proportion to `amount`.
    pub(crate) fn of_groups(
        groups: impl IntoIterator<Item = (usize, Vec<Candidate>)>,
        amount: impl Fn(usize, &[Candidate]) -> f64,
        seed: u64,
    ) -> Vec<Self> {
        let mut pools: Vec<_> = groups
            .into_iter()
            .map(|(group, candidates)| Self {
                group: Some(group),
                part: amount(group, &candidates),
                remote: candidates.iter().any(|candidate| candidate.remote),
                candidates: shortlist(candidates, seed),
            })
            .collect();
        let sum: f64 = pools.iter().map(|pool| pool.part).sum();
        for pool in &mut pools {
            pool.part /= sum;
        }
        pools
    }
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

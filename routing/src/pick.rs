//! Which endpoint of a priority: a stable subset per source, then the better of two.

use std::sync::Arc;
use std::time::Instant;

use crate::health::Vitals;
use crate::ids::EndpointId;
use crate::load::costs;
use crate::locality::Rank;
use crate::model::{Endpoint, EndpointKey};

/// How many endpoints of a priority one source uses: enough to spread, few enough that
/// connections stay warm and their number grows with the sources, not with their square.
pub const SUBSET: usize = 20;

/// The second choice must be better by this factor; nearer costs are equal, and the first
/// choice, drawn by weight alone, stands.
const BETTER: f32 = 1.1;

/// An endpoint that may be chosen.
#[derive(Debug, Clone)]
pub(crate) struct Candidate {
    pub(crate) endpoint: Arc<Endpoint>,
    pub(crate) vitals: Arc<Vitals>,
    pub(crate) weight: u32,
    /// The weight relative to the mean of all candidates of the pool.
    pub(crate) capacity: f32,
    /// Index of its group.
    pub(crate) group: usize,
    pub(crate) rank: Rank,
    /// Whether it is in another cluster than the caller.
    pub(crate) remote: bool,
}

/// Keeps the [`SUBSET`] items that this source ranks highest. Every source ranks differently;
/// an item that comes or goes moves at most one other.
pub(crate) fn subset<T>(items: &mut Vec<T>, seed: u64, id: impl Fn(&T) -> &EndpointId) {
    if items.len() > SUBSET {
        let key = |item: &T| std::cmp::Reverse(score(seed, id(item)));
        items.select_nth_unstable_by_key(SUBSET - 1, key);
        items.truncate(SUBSET);
    }
}

/// Rendezvous hash of an endpoint for a source: FNV-1a, then the finalizer of SplitMix64.
fn score(seed: u64, id: &EndpointId) -> u64 {
    let mut hash = seed ^ 0xcbf2_9ce4_8422_2325;
    for byte in id.as_str().bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash = (hash ^ hash >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ hash >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ hash >> 31
}

/// Draws two candidates by weight and takes the one that costs less. None if all are excluded.
pub(crate) fn better_of_two<'a>(
    candidates: &'a [Candidate],
    now: Instant,
    random: &mut impl FnMut() -> u64,
    exclude: &[EndpointKey],
) -> Option<&'a Candidate> {
    let first = draw(candidates, None, random, exclude)?;
    let Some(second) = draw(candidates, Some(first), random, exclude) else {
        return Some(&candidates[first]);
    };
    let (first, second) = (&candidates[first], &candidates[second]);
    let load = |c: &'a Candidate| (&c.vitals.load, c.capacity);
    let (cost_first, cost_second) = costs(now, load(first), load(second));
    Some(if cost_second * BETTER < cost_first {
        second
    } else {
        first
    })
}

/// Draws one candidate by weight, but none of `exclude` and not the one at `other`.
fn draw(
    candidates: &[Candidate],
    other: Option<usize>,
    random: &mut impl FnMut() -> u64,
    exclude: &[EndpointKey],
) -> Option<usize> {
    let eligible = || {
        candidates
            .iter()
            .enumerate()
            .filter(move |(at, candidate)| {
                Some(*at) != other && !exclude.iter().any(|key| key.is(&candidate.endpoint))
            })
    };
    let total: u64 = eligible()
        .map(|(_, candidate)| u64::from(candidate.weight))
        .sum();
    if total == 0 {
        return None;
    }
    let mut left = below(random(), total);
    for (at, candidate) in eligible() {
        let weight = u64::from(candidate.weight);
        if left < weight {
            return Some(at);
        }
        left -= weight;
    }
    None
}

/// A random number below `bound`, from 64 random bits.
fn below(random: u64, bound: u64) -> u64 {
    ((u128::from(random) * u128::from(bound)) >> 64) as u64
}

/// A random number in [0, 1), from 64 random bits.
pub(crate) fn unit(random: u64) -> f64 {
    (random >> 11) as f64 / (1u64 << 53) as f64
}

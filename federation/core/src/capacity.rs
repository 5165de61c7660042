//! How many endpoints a cluster is expected to have: the denominator of its health.
//!
//! A cluster that has lost two of three endpoints must look one third healthy, although
//! it lists just one. So each locality remembers the most it has had, as a mark that
//! falls to nothing over ten minutes in a straight line; what is listed now is the least
//! that is expected.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::model::{Locality, ServiceKey};

#[cfg(test)]
mod tests;

/// How long a mark takes to fall to nothing.
pub const DECAY: Duration = Duration::from_secs(600);

/// Most localities of one service: a workload names its own, and peers refuse more.
pub(crate) const MAX_LOCALITIES: usize = 100;

/// How often a peer may claim to have had what it lists now: one that lost three quarters of its
/// endpoints still looks as ill as it is.
const BELIEVED_FACTOR: u64 = 4;
/// What a peer may claim of a service of which it lists few endpoints or none.
const BELIEVED_LEAST: u64 = 64;

/// Endpoints listed now, by service and locality.
pub type Listed = BTreeMap<ServiceKey, BTreeMap<Locality, u32>>;

/// The greater of what is listed and what is claimed, by locality.
pub(crate) fn at_least(
    listed: &BTreeMap<Locality, u32>,
    claimed: &[(Locality, u32)],
) -> Vec<(Locality, u32)> {
    let mut counts = listed.clone();
    for (locality, claim) in claimed {
        let count = counts.entry(locality.clone()).or_default();
        *count = (*count).max(*claim);
    }
    counts.into_iter().collect()
}

/// As [`at_least`], of a peer: with one number it could make a whole priority look ill. So of all
/// its localities together no more is believed than the greater of four times what it lists and
/// 64; claims beyond that shrink in proportion.
pub(crate) fn believed(
    listed: &BTreeMap<Locality, u32>,
    claimed: &[(Locality, u32)],
) -> Vec<(Locality, u32)> {
    let mut counts = at_least(listed, claimed);
    let has = |locality: &Locality| listed.get(locality).copied().unwrap_or(0);
    let total: u64 = listed.values().map(|count| u64::from(*count)).sum();
    let excess: u64 = counts
        .iter()
        .map(|(locality, count)| u64::from(count - has(locality)))
        .sum();
    let room = (total * BELIEVED_FACTOR).max(BELIEVED_LEAST) - total;
    if excess > room {
        for (locality, count) in &mut counts {
            let share = u128::from(*count - has(locality)) * u128::from(room) / u128::from(excess);
            // No greater than the claim that it is a part of.
            *count = has(locality) + u32::try_from(share).unwrap_or(u32::MAX - has(locality));
        }
        counts.retain(|(_, count)| *count > 0);
    }
    counts
}

#[derive(Clone, Copy, Debug)]
struct Mark {
    peak: u32,
    at: Instant,
}

impl Mark {
    /// What the mark is worth now, rounded up.
    fn worth(&self, now: Instant) -> u32 {
        let age = now.saturating_duration_since(self.at);
        let Some(left) = DECAY.checked_sub(age) else {
            return 0;
        };
        let worth = (u128::from(self.peak) * left.as_millis()).div_ceil(DECAY.as_millis());
        u32::try_from(worth).unwrap_or(self.peak)
    }
}

/// The marks of this cluster's services.
#[derive(Clone, Debug, Default)]
pub struct HighWater {
    marks: BTreeMap<ServiceKey, BTreeMap<Locality, Mark>>,
}

impl HighWater {
    /// No marks.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in what is listed now. Call it whenever that changes, and before each plan.
    /// Marks of services that are no longer declared go at once.
    pub fn observe(&mut self, listed: &Listed, now: Instant) {
        self.marks.retain(|service, marks| {
            marks.retain(|_, mark| mark.worth(now) > 0);
            listed.contains_key(service)
        });
        for (service, localities) in listed {
            let marks = self.marks.entry(service.clone()).or_default();
            for (locality, count) in localities.iter().filter(|(_, count)| **count > 0) {
                if marks.len() >= MAX_LOCALITIES && !marks.contains_key(locality) {
                    continue;
                }
                let mark = marks
                    .entry(locality.clone())
                    .or_insert(Mark { peak: 0, at: now });
                if *count >= mark.worth(now) {
                    *mark = Mark {
                        peak: *count,
                        at: now,
                    };
                }
            }
        }
    }

    /// What is expected of each locality of `service`: the greater of what is listed and the
    /// mark. Of too many localities those with most are told.
    pub fn expected(
        &self,
        service: &ServiceKey,
        listed: &BTreeMap<Locality, u32>,
        now: Instant,
    ) -> Vec<(Locality, u32)> {
        let mut expected = listed.clone();
        for (locality, mark) in self.marks.get(service).into_iter().flatten() {
            let count = expected.entry(locality.clone()).or_default();
            *count = (*count).max(mark.worth(now));
        }
        expected.retain(|_, count| *count > 0);
        let mut expected: Vec<_> = expected.into_iter().collect();
        if expected.len() > MAX_LOCALITIES {
            expected.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
            expected.truncate(MAX_LOCALITIES);
            expected.sort();
        }
        expected
    }
}

//! How many endpoints a cluster is expected to have: the denominator of its health.
//!
//! A cluster that has lost two of three endpoints must look one third healthy, although
//! it lists just one. So each locality remembers the most it has had, as a mark that
//! falls to nothing over ten minutes in a straight line; what is listed now is the least
//! that is expected.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::model::{ClusterId, Locality, ServiceKey};
use crate::peer::Now;

#[cfg(test)]
mod tests;

/// How long a mark takes to fall to nothing.
pub const DECAY: Duration = Duration::from_secs(600);

/// A mark that was raised within this time is steady: plans, which raise it, are made more often.
const STEADY: Duration = Duration::from_secs(30);

/// Most localities of one service: a workload names its own, and peers refuse more.
pub(crate) const MAX_LOCALITIES: usize = 100;

/// How often a peer may claim to have had the most that it was seen to list: one that lost three
/// quarters of its endpoints before we knew it still looks as ill as it is.
const BELIEVED_FACTOR: u32 = 4;

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

/// As [`at_least`], of a peer: with one number it could make a whole priority look ill, and so draw
/// traffic to another one. So it is believed up to four times what it was `seen` to list, in each
/// locality and in all; a locality where it never listed anything counts nothing. What goes beyond
/// that in all shrinks in proportion.
pub(crate) fn believed(
    listed: &BTreeMap<Locality, u32>,
    claimed: &[(Locality, u32)],
    seen: &SeenOf,
) -> Vec<(Locality, u32)> {
    let has = |locality: &Locality| listed.get(locality).copied().unwrap_or(0);
    let bounded: Vec<_> = claimed
        .iter()
        .map(|(locality, claim)| {
            let had = seen.by_locality.get(locality).copied().unwrap_or(0);
            let most = had.max(has(locality)).saturating_mul(BELIEVED_FACTOR);
            (locality.clone(), (*claim).min(most))
        })
        .collect();
    let mut counts = at_least(listed, &bounded);
    let total: u64 = listed.values().map(|count| u64::from(*count)).sum();
    let excess: u64 = counts
        .iter()
        .map(|(locality, count)| u64::from(count - has(locality)))
        .sum();
    let room = u64::from(seen.in_all).max(total) * u64::from(BELIEVED_FACTOR) - total;
    if excess > room {
        for (locality, count) in &mut counts {
            let share = u128::from(*count - has(locality)) * u128::from(room) / u128::from(excess);
            // No greater than the claim that it is a part of.
            *count = has(locality) + u32::try_from(share).unwrap_or(u32::MAX - has(locality));
        }
    }
    counts.retain(|(_, count)| *count > 0);
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

    /// Rises to `count` where the mark is worth no more.
    fn raise(&mut self, count: u32, now: Instant) {
        if count >= self.worth(now) {
            *self = Self {
                peak: count,
                at: now,
            };
        }
    }
}

/// A mark as it is kept over a restart: a federation that forgot its dead would call what is left
/// healthy, and send it everything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptMark {
    service: ServiceKey,
    locality: Locality,
    peak: u32,
    /// When so many were listed last, seconds of Unix time. `None`: until the end. So what is kept
    /// of a service that loses nothing stays the same, and is not written for its time only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    at_unix: Option<u64>,
}

/// The marks of one cluster's services.
#[derive(Clone, Debug, Default)]
pub struct HighWater {
    marks: BTreeMap<ServiceKey, BTreeMap<Locality, Mark>>,
}

impl HighWater {
    /// No marks.
    pub fn new() -> Self {
        Self::default()
    }

    /// The marks that were kept before a restart, as old as the wall clock says they are; those
    /// that were steady are new.
    pub fn restored(kept: Vec<KeptMark>, now: Now) -> Self {
        let mut marks: BTreeMap<ServiceKey, BTreeMap<Locality, Mark>> = BTreeMap::new();
        for KeptMark {
            service,
            locality,
            peak,
            at_unix,
        } in kept
        {
            let then = at_unix.and_then(|at| UNIX_EPOCH.checked_add(Duration::from_secs(at)));
            // Of a mark from the future, the clock went back: it is as good as new.
            let age = then.and_then(|then| now.wall.duration_since(then).ok());
            // The monotonic clock may be younger than the mark: the machine was restarted.
            let at = now.instant.checked_sub(age.unwrap_or_default());
            let mark = Mark {
                peak,
                at: at.unwrap_or(now.instant),
            };
            marks.entry(service).or_default().insert(locality, mark);
        }
        Self { marks }
    }

    /// What is to be kept, in order.
    pub fn kept(&self, now: Now) -> Vec<KeptMark> {
        let unix = now.wall.duration_since(UNIX_EPOCH).unwrap_or_default();
        let kept = |service: &ServiceKey, locality: &Locality, mark: &Mark| {
            let age = now.instant.saturating_duration_since(mark.at);
            KeptMark {
                service: service.clone(),
                locality: locality.clone(),
                peak: mark.peak,
                at_unix: (age >= STEADY).then(|| unix.saturating_sub(age).as_secs()),
            }
        };
        let services = self.marks.iter();
        services
            .flat_map(|(service, marks)| {
                marks
                    .iter()
                    .map(move |(locality, mark)| kept(service, locality, mark))
            })
            .collect()
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
                marks
                    .entry(locality.clone())
                    .or_insert(Mark { peak: 0, at: now })
                    .raise(*count, now);
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

/// The marks of peers, by what was seen of them: the measure of what they claim.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    peers: BTreeMap<ClusterId, Witnessed>,
}

#[derive(Clone, Debug, Default)]
struct Witnessed {
    by_locality: HighWater,
    /// Marks of their own: endpoints that wander through localities must not add up.
    in_all: BTreeMap<ServiceKey, Mark>,
}

/// The most endpoints of one service that a peer was seen to list lately.
#[derive(Clone, Debug, Default)]
pub(crate) struct SeenOf {
    by_locality: BTreeMap<Locality, u32>,
    in_all: u32,
}

impl Seen {
    /// Nothing seen.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in what each peer lists now; who is no longer named is forgotten, and so is a service
    /// that a peer no longer exports. Call it before each plan.
    pub fn observe(&mut self, listed: &BTreeMap<ClusterId, Listed>, now: Instant) {
        self.peers.retain(|cluster, _| listed.contains_key(cluster));
        for (cluster, listed) in listed {
            let peer = self.peers.entry(cluster.clone()).or_default();
            peer.by_locality.observe(listed, now);
            peer.in_all
                .retain(|service, _| listed.contains_key(service));
            for (service, localities) in listed {
                let count = localities
                    .values()
                    .fold(0, |sum: u32, count| sum.saturating_add(*count));
                peer.in_all
                    .entry(service.clone())
                    .or_insert(Mark { peak: 0, at: now })
                    .raise(count, now);
            }
        }
    }

    /// What was seen of `service` at `cluster`.
    pub(crate) fn of(&self, cluster: &ClusterId, service: &ServiceKey, now: Instant) -> SeenOf {
        let Some(peer) = self.peers.get(cluster) else {
            return SeenOf::default();
        };
        let expected = peer.by_locality.expected(service, &BTreeMap::new(), now);
        SeenOf {
            by_locality: expected.into_iter().collect(),
            in_all: peer.in_all.get(service).map_or(0, |mark| mark.worth(now)),
        }
    }
}

//! Outlier detection: when the answers of an endpoint take it out of rotation, and when it may
//! prove itself again.
//!
//! One failed connect or one reset ejects; so do five errors (5xx answers or time-outs) in a
//! row. An ejection lasts 5 s, each further one twice as long up to 60 s; 60 s of good service
//! make it forgotten. After its time the endpoint is *half-open*: it gets one request at a
//! time, does not yet count as available, and returns with the first good answer.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::load::Load;
use crate::model::is_restart;

/// Errors in a row that eject.
pub const CONSECUTIVE_ERRORS: u32 = 5;
/// How long a first ejection lasts.
pub const BASE_EJECTION: Duration = Duration::from_secs(5);
/// How long an ejection lasts at most.
pub const MAX_EJECTION: Duration = Duration::from_secs(60);
/// Good service for this long makes the next ejection a first one again.
pub const FORGET_EJECTIONS: Duration = Duration::from_secs(60);

/// How a request to an endpoint failed. What the *caller* ended (a cancelled request) is none
/// of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Failure {
    /// No connection: refused, timed out, or not the identity that was expected.
    Connect,
    /// The connection or stream broke off.
    Reset,
    /// The endpoint is no more; our snapshot is behind. Says nothing about an endpoint's health.
    Gone,
    /// No answer in time.
    Timeout,
    /// An answer with a status of 500 or above, or gRPC's equivalent.
    Status5xx,
}

impl Failure {
    /// Whether one such failure ejects.
    pub(crate) fn ejects_at_once(self) -> bool {
        matches!(self, Self::Connect | Self::Reset)
    }
}

/// The ejections of one endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Outlier {
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    /// Never ejected, or long ago.
    #[default]
    Clean,
    /// In rotation again after that many ejections in short succession.
    Returned { since: Instant, ejections: u32 },
    /// Out of rotation; half-open from `until` on.
    Ejected { until: Instant, ejections: u32 },
}

impl Outlier {
    /// Takes the endpoint out of rotation.
    pub(crate) fn eject(&mut self, now: Instant) {
        let before = match self.state {
            State::Clean => 0,
            State::Returned { since, .. }
                if now.saturating_duration_since(since) >= FORGET_EJECTIONS =>
            {
                0
            }
            State::Returned { ejections, .. } | State::Ejected { ejections, .. } => ejections,
        };
        let until = now + ejection_time(before);
        self.state = State::Ejected {
            until,
            ejections: before.saturating_add(1),
        };
    }

    /// Puts the endpoint back into rotation.
    pub(crate) fn restore(&mut self, now: Instant) {
        if let State::Ejected { ejections, .. } = self.state {
            self.state = State::Returned {
                since: now,
                ejections,
            };
        }
    }

    /// When the endpoint may be tried again; none if it is in rotation.
    pub(crate) fn ejected_until(&self) -> Option<Instant> {
        match self.state {
            State::Ejected { until, .. } => Some(until),
            State::Clean | State::Returned { .. } => None,
        }
    }
}

/// What requests write about an endpoint without a lock. It outlives changes of the endpoint's
/// records, and requests in flight may outlive the endpoint.
#[derive(Debug)]
pub(crate) struct Vitals {
    pub(crate) load: Load,
    /// Errors in a row.
    errors: AtomicU32,
    /// Copy of the outlier state, so that stragglers of one loss need no lock to find out that
    /// it is known.
    ejected: AtomicBool,
    /// A half-open endpoint's one request is under way.
    on_trial: AtomicBool,
    /// What earlier incarnations do no longer counts.
    acquitted: AtomicU64,
}

impl Vitals {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            load: Load::new(now),
            errors: AtomicU32::new(0),
            ejected: AtomicBool::new(false),
            on_trial: AtomicBool::new(false),
            acquitted: AtomicU64::new(0),
        }
    }

    /// Counts an error; whether it is the one that ejects.
    pub(crate) fn count_error(&self) -> bool {
        self.errors.fetch_add(1, Relaxed) + 1 >= CONSECUTIVE_ERRORS
    }

    /// A good answer ends a row of errors.
    pub(crate) fn end_errors(&self) {
        // Read first: in the usual case the line stays shared between all cores.
        if self.errors.load(Relaxed) != 0 {
            self.errors.store(0, Relaxed);
        }
    }

    pub(crate) fn is_ejected(&self) -> bool {
        self.ejected.load(Relaxed)
    }

    pub(crate) fn set_ejected(&self, ejected: bool) {
        self.ejected.store(ejected, Relaxed);
        self.end_errors();
    }

    /// Back in rotation, and what was done before this incarnation does not count.
    pub(crate) fn acquit(&self, incarnation: u64) {
        self.acquitted.store(incarnation, Relaxed);
        self.set_ejected(false);
    }

    /// Whether what this incarnation does no longer counts.
    pub(crate) fn is_acquitted(&self, incarnation: u64) -> bool {
        is_restart(incarnation, self.acquitted.load(Relaxed))
    }

    /// Takes the one place on trial; false if it is taken.
    pub(crate) fn begin_trial(&self) -> bool {
        !self.on_trial.load(Relaxed) && !self.on_trial.swap(true, Relaxed)
    }

    pub(crate) fn end_trial(&self) {
        self.on_trial.store(false, Relaxed);
    }
}

/// How long the ejection after `before` earlier ones lasts.
fn ejection_time(before: u32) -> Duration {
    // 2^4 is past the ceiling already; the bound keeps the shift defined.
    BASE_EJECTION
        .saturating_mul(1 << before.min(4))
        .min(MAX_EJECTION)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn ejections_double_up_to_a_minute() {
        let now = Instant::now();
        let mut outlier = Outlier::default();
        for expected in [5, 10, 20, 40, 60, 60] {
            outlier.eject(now);
            assert_eq!(outlier.ejected_until(), Some(now + seconds(expected)));
            outlier.restore(now);
            assert_eq!(outlier.ejected_until(), None);
        }
    }

    #[test]
    fn a_minute_of_good_service_is_forgiveness() {
        let now = Instant::now();
        let mut outlier = Outlier::default();
        outlier.eject(now);
        outlier.restore(now + seconds(5));
        outlier.eject(now + seconds(65));
        assert_eq!(outlier.ejected_until(), Some(now + seconds(70)));
    }

    #[test]
    fn a_failed_trial_doubles_the_time() {
        let now = Instant::now();
        let mut outlier = Outlier::default();
        outlier.eject(now);
        outlier.eject(now + seconds(5));
        assert_eq!(outlier.ejected_until(), Some(now + seconds(15)));
    }
}

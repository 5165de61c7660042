//! How often plans are made.

use std::time::Duration;

use tokio::time::Instant;

/// Least time between two plans. A plan looks at all that is known, so that a peer or a proxy
/// that changes its mind all the time must not keep the controller planning and every stream
/// sending; it is far below what a failover may take.
const GAP: Duration = Duration::from_millis(50);

/// Lets the first change through at once, and gathers what follows it closely.
#[derive(Debug)]
pub(super) struct Pace {
    due: Instant,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self { due: now }
    }

    /// When the next plan may be made.
    pub(super) fn due(&self) -> Instant {
        self.due
    }

    /// Whether one may be made now.
    pub(super) fn allows(&self, now: Instant) -> bool {
        now >= self.due
    }

    /// A plan was finished: the time that it took is not counted as rest.
    pub(super) fn planned(&mut self, now: Instant) {
        self.due = now + GAP;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_change_is_planned_at_once_and_a_flood_every_50_milliseconds() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let mut plans = Vec::new();
        for millis in 0..=120 {
            let now = start + Duration::from_millis(millis);
            if pace.allows(now) {
                plans.push(millis);
                pace.planned(now);
            }
        }
        assert_eq!(plans, [0, 50, 100]);
    }

    #[test]
    fn a_change_after_a_quiet_time_is_planned_at_once() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        pace.planned(start);
        assert!(!pace.allows(start + Duration::from_millis(49)));
        assert!(pace.allows(start + Duration::from_secs(1)));
    }
}

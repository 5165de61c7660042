//! Damped failback: a priority that lost endpoints and got them back counts with the health it
//! had left for a hold-down time, then with more and more of its new health.
//!
//! Nothing is damped before a first loss, so that a service may start endpoint by endpoint, and
//! losses count at once.

use std::time::{Duration, Instant};

use crate::model::FailbackConfig;
use crate::priority::EPSILON;

/// The damped health of one priority.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Failback {
    available: u32,
    health: f64,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Default)]
enum State {
    /// Counts with its real health.
    #[default]
    Free,
    /// Has lost some of `before`; counts with its real health as long as that does not rise.
    Reduced { before: f64 },
    /// Comes back to a health of `before` or at least in that direction.
    Rising { before: f64, curve: Curve },
}

/// A health over time: `from` until `start`, then a straight line to `to`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Curve {
    pub(crate) from: f64,
    pub(crate) to: f64,
    pub(crate) start: Instant,
    pub(crate) ramp: Duration,
}

impl Curve {
    /// A health that does not change.
    pub(crate) fn flat(health: f64, now: Instant) -> Self {
        Self {
            from: health,
            to: health,
            start: now,
            ramp: Duration::ZERO,
        }
    }

    /// The health at this time.
    pub(crate) fn at(&self, now: Instant) -> f64 {
        if now < self.start {
            return self.from;
        }
        let since = now - self.start;
        if since >= self.ramp {
            return self.to;
        }
        self.from + (self.to - self.from) * since.as_secs_f64() / self.ramp.as_secs_f64()
    }

    /// Whether the health still changes.
    pub(crate) fn moves(&self, now: Instant) -> bool {
        self.from != self.to && now < self.start + self.ramp
    }
}

impl Failback {
    /// Takes note of a priority's real health, and of how many endpoints are behind it.
    pub(crate) fn observe(
        &mut self,
        now: Instant,
        config: FailbackConfig,
        available: u32,
        health: f64,
    ) {
        let shown = self.curve(now).at(now).min(health);
        // Only a loss of endpoints starts damping: a health that falls because more endpoints
        // are expected is growth, and what follows is the growth arriving.
        let lost = available < self.available && health < self.health - EPSILON;
        let (hold, ramp) = config.bounded();
        let held = Curve {
            from: shown,
            to: health,
            start: now + hold,
            ramp,
        };
        self.state = match self.state {
            State::Free if !lost => State::Free,
            State::Free => State::Reduced {
                before: self.health,
            },
            State::Reduced { before } | State::Rising { before, .. }
                if health <= shown + EPSILON =>
            {
                let back = !lost && health >= before - EPSILON;
                if back {
                    State::Free
                } else {
                    State::Reduced { before }
                }
            }
            State::Reduced { before } => State::Rising {
                before,
                curve: held,
            },
            State::Rising { before, .. } if lost => State::Rising {
                before,
                curve: held,
            },
            State::Rising { before, curve } if now < curve.start => State::Rising {
                before,
                curve: Curve {
                    to: health,
                    ..curve
                },
            },
            State::Rising { before, curve } if (curve.to - health).abs() <= EPSILON => {
                State::Rising { before, curve }
            }
            // The goal moved while underway: on from here, without another hold-down.
            State::Rising { before, .. } => State::Rising {
                before,
                curve: Curve { start: now, ..held },
            },
        };
        self.available = available;
        self.health = health;
    }

    /// The health to count with from now on, if nothing else happens.
    pub(crate) fn curve(&self, now: Instant) -> Curve {
        match self.state {
            State::Rising { curve, .. } => curve,
            State::Free | State::Reduced { .. } => Curve::flat(self.health, now),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CONFIG: FailbackConfig = FailbackConfig {
        hold: Duration::from_secs(30),
        ramp: Duration::from_secs(20),
    };

    struct Script {
        start: Instant,
        failback: Failback,
    }

    impl Script {
        fn new() -> Self {
            Self {
                start: Instant::now(),
                failback: Failback::default(),
            }
        }

        fn see(&mut self, second: u64, available: u32, health: f64) -> f64 {
            let now = self.start + Duration::from_secs(second);
            self.failback.observe(now, CONFIG, available, health);
            self.at(second)
        }

        fn at(&self, second: u64) -> f64 {
            let now = self.start + Duration::from_secs(second);
            self.failback.curve(now).at(now)
        }
    }

    #[test]
    fn start_up_is_not_damped() {
        let mut script = Script::new();
        assert_eq!(script.see(0, 0, 0.0), 0.0);
        assert_eq!(script.see(1, 1, 0.4), 0.4);
        assert_eq!(script.see(2, 2, 0.9), 0.9);
        // A third endpoint is listed but not ready yet: expected grows, nothing is lost.
        assert_eq!(script.see(3, 2, 0.6), 0.6);
        assert_eq!(script.see(4, 3, 1.0), 1.0);
    }

    #[test]
    fn losses_count_at_once_and_returns_after_hold_and_ramp() {
        let mut script = Script::new();
        script.see(0, 3, 1.0);
        assert_eq!(script.see(1, 1, 0.5), 0.5);
        assert_eq!(script.see(2, 3, 1.0), 0.5);
        assert_eq!(script.at(32), 0.5);
        assert_eq!(script.at(42), 0.75);
        assert_eq!(script.at(52), 1.0);
        // All is as before: the next growth is free.
        assert_eq!(script.see(60, 3, 1.0), 1.0);
        assert_eq!(script.failback.state, State::Free);
    }

    #[test]
    fn a_loss_during_the_hold_begins_it_anew() {
        let mut script = Script::new();
        script.see(0, 3, 1.0);
        script.see(1, 1, 0.5);
        script.see(10, 3, 1.0);
        assert_eq!(script.see(20, 2, 0.9), 0.5);
        assert_eq!(script.at(49), 0.5);
        assert!((script.at(60) - 0.7).abs() < 1e-9);
    }

    #[test]
    fn endpoints_returning_one_by_one_share_one_hold() {
        let mut script = Script::new();
        script.see(0, 3, 1.0);
        script.see(1, 0, 0.0);
        script.see(10, 1, 0.5);
        script.see(15, 2, 0.9);
        script.see(20, 3, 1.0);
        assert_eq!(script.at(40), 0.0);
        assert_eq!(script.at(50), 0.5);
        assert_eq!(script.at(60), 1.0);
    }

    #[test]
    fn a_goal_that_rises_during_the_ramp_makes_no_jump() {
        let mut script = Script::new();
        script.see(0, 3, 1.0);
        script.see(1, 0, 0.0);
        script.see(10, 1, 0.4);
        let before = script.at(50);
        assert_eq!(script.see(50, 3, 1.0), before);
        assert_eq!(script.at(70), 1.0);
    }

    #[test]
    fn a_return_in_two_parts_is_damped_twice() {
        let mut script = Script::new();
        script.see(0, 3, 1.0);
        script.see(1, 1, 0.5);
        script.see(2, 2, 0.9);
        assert_eq!(script.see(60, 2, 0.9), 0.9);
        assert_eq!(script.see(61, 3, 1.0), 0.9);
        assert_eq!(script.at(120), 1.0);
    }

    proptest! {
        #[test]
        fn never_above_the_real_health_and_there_after_hold_and_ramp(
            steps in proptest::collection::vec((0u64..40, 0u32..6), 1..30)
        ) {
            let mut script = Script::new();
            let mut second = 0;
            let mut health = 0.0;
            for (wait, available) in steps {
                second += wait;
                prop_assert!(script.at(second) <= health + 1e-9);
                health = crate::priority::health(available, 5, 1.4);
                prop_assert!(script.see(second, available, health) <= health + 1e-9);
            }
            prop_assert!((script.at(second + 50) - health).abs() < 1e-9);
        }
    }
}

//! How long to wait before the next try: exponential, fully jittered, with a ceiling.

use std::time::Duration;

/// Grows with each [`next`](Self::next) until [`reset`](Self::reset), which only real success deserves.
#[derive(Clone, Debug)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    ceiling: Duration,
}

impl Backoff {
    /// The first wait is at most `min`; no wait exceeds `max`.
    #[must_use]
    pub fn new(min: Duration, max: Duration) -> Self {
        let min = min.min(max);
        Self {
            min,
            max,
            ceiling: min,
        }
    }

    /// The next wait, spread by `random` (0.0 to 1.0) between half of `min` and a ceiling that
    /// doubles each time. Never zero unless `min` is, so that a failing peer is not hammered.
    pub fn next(&mut self, random: f64) -> Duration {
        let random = if random.is_finite() {
            random.clamp(0.0, 1.0)
        } else {
            1.0
        };
        let floor = self.min / 2;
        let wait = floor + (self.ceiling - floor).mul_f64(random);
        self.ceiling = self.ceiling.saturating_mul(2).min(self.max);
        wait
    }

    /// Starts over.
    pub fn reset(&mut self) {
        self.ceiling = self.min;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_the_ceiling_and_starts_over() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(350));
        let waits: Vec<_> = (0..4).map(|_| backoff.next(1.0).as_millis()).collect();
        assert_eq!(waits, [100, 200, 350, 350]);
        assert_eq!(backoff.next(0.0), Duration::from_millis(50));
        backoff.reset();
        assert_eq!(backoff.next(1.0), Duration::from_millis(100));
        assert!(backoff.next(f64::NAN) <= Duration::from_millis(350));
    }
}

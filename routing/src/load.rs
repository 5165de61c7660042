//! What a source knows of an endpoint's load: its own requests in flight and how long answers
//! take. All atomics; written by every request, read by every choice.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// A slower answer moves the estimate this part of the way up at once: four slow answers are
/// 70 % of the way, and one slow answer among many does not empty an endpoint.
const RISE: f32 = 0.25;
/// A faster answer moves the estimate at least this part of the way down.
const FALL: f32 = 1.0 / 16.0;
/// Time constant with which an estimate loses its weight while no answer renews it.
const FADE: Duration = Duration::from_secs(3);
/// Added to each estimate: differences far below it are noise of scheduling, not of endpoints.
const FLOOR_MICROS: f32 = 1000.0;

/// One endpoint's load.
#[derive(Debug)]
pub(crate) struct Load {
    in_flight: AtomicU32,
    /// The estimate in microseconds (`f32`, high half; 0 = none yet) and when it was renewed, in
    /// milliseconds after `start` (wrapping, low half): one word, so that they agree.
    latency: AtomicU64,
    start: Instant,
}

/// An estimate of the time an answer takes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Latency {
    micros: f32,
    /// 1 when just renewed, towards 0 as it ages.
    weight: f32,
}

impl Load {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            in_flight: AtomicU32::new(0),
            latency: AtomicU64::new(0),
            start: now,
        }
    }

    /// Counts one more request in flight, until [`Self::end`].
    pub(crate) fn begin(&self) {
        self.in_flight.fetch_add(1, Relaxed);
    }

    pub(crate) fn end(&self) {
        self.in_flight.fetch_sub(1, Relaxed);
    }

    pub(crate) fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }

    /// Learns from an answer that took `took`.
    pub(crate) fn answered(&self, now: Instant, took: Duration) {
        self.learn(now, took, true);
    }

    /// Learns from an error that took `took`: it may make the endpoint look slower, never
    /// faster, or one that fails fast would attract everything.
    pub(crate) fn erred(&self, now: Instant, took: Duration) {
        self.learn(now, took, false);
    }

    fn learn(&self, now: Instant, took: Duration, may_fall: bool) {
        let sample = (took.as_secs_f32() * 1e6).max(1.0);
        let at = self.millis(now);
        let step = |word| {
            let (old, since) = unpack(word);
            if old == 0.0 {
                return may_fall.then(|| pack(sample, at));
            }
            let part = if sample > old {
                RISE
            } else if may_fall {
                FALL.max(1.0 - fade(at.wrapping_sub(since)))
            } else {
                return None;
            };
            Some(pack(old + (sample - old) * part, at))
        };
        // Refused only where there is nothing to learn.
        let _ = self.latency.fetch_update(Relaxed, Relaxed, step);
    }

    /// The estimate now; none before the first answer.
    pub(crate) fn latency(&self, now: Instant) -> Option<Latency> {
        let (micros, since) = unpack(self.latency.load(Relaxed));
        // Another request may have been answered after our `now`: that is age 0, not an age of
        // 49 days.
        let age = self.millis(now).wrapping_sub(since);
        let age = if age > u32::MAX / 2 { 0 } else { age };
        (micros > 0.0).then(|| Latency {
            micros,
            weight: fade(age),
        })
    }

    fn millis(&self, now: Instant) -> u32 {
        now.saturating_duration_since(self.start).as_millis() as u32
    }
}

/// What each of two endpoints would cost the next request: expected latency × (requests in
/// flight + 1). `capacity` is the endpoint's weight relative to its rivals'.
///
/// Latencies are compared only as far as they are known. While one endpoint has never answered,
/// both count as equally fast. The part by which an endpoint is slower than the other fades with
/// the age of its estimate, so one that was slow is tried again, and neither a new nor a
/// long-idle endpoint looks *faster* than its rival, which would draw a burst to it.
pub(crate) fn costs(now: Instant, a: (&Load, f32), b: (&Load, f32)) -> (f32, f32) {
    let (slow_a, slow_b) = match (a.0.latency(now), b.0.latency(now)) {
        (Some(a), Some(b)) => {
            let better = a.micros.min(b.micros);
            let faded = |l: Latency| better + (l.micros - better) * l.weight;
            (faded(a), faded(b))
        }
        _ => (0.0, 0.0),
    };
    let cost = |latency: f32, (load, capacity): (&Load, f32)| {
        (latency + FLOOR_MICROS) * (load.in_flight() as f32 / capacity + 1.0)
    };
    (cost(slow_a, a), cost(slow_b, b))
}

/// What is left of an estimate's weight after `millis` without an answer.
fn fade(millis: u32) -> f32 {
    (-(millis as f32) / FADE.as_millis() as f32).exp()
}

fn pack(micros: f32, millis: u32) -> u64 {
    u64::from(micros.to_bits()) << 32 | u64::from(millis)
}

fn unpack(word: u64) -> (f32, u32) {
    (f32::from_bits((word >> 32) as u32), word as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn millis(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn estimate(load: &Load, now: Instant) -> f32 {
        load.latency(now).unwrap().micros / 1000.0
    }

    #[test]
    fn rises_fast_and_falls_slowly() {
        let now = Instant::now();
        let load = Load::new(now);
        load.answered(now, millis(2));
        load.answered(now, millis(22));
        assert_eq!(estimate(&load, now), 7.0);
        load.answered(now, millis(2));
        assert!(estimate(&load, now) > 6.5);
    }

    #[test]
    fn an_error_never_makes_an_endpoint_look_faster() {
        let now = Instant::now();
        let load = Load::new(now);
        load.erred(now, millis(1));
        assert_eq!(load.latency(now), None);
        load.answered(now, millis(20));
        load.erred(now, millis(1));
        assert_eq!(estimate(&load, now), 20.0);
        load.erred(now, millis(100));
        assert_eq!(estimate(&load, now), 40.0);
    }

    #[test]
    fn an_old_estimate_counts_less_but_never_below_the_rival() {
        let now = Instant::now();
        let (slow, fast) = (Load::new(now), Load::new(now));
        slow.answered(now, millis(40));
        fast.answered(now, millis(2));
        let (fresh, rival) = costs(now, (&slow, 1.0), (&fast, 1.0));
        assert!(fresh > 10.0 * rival);
        let later = now + millis(60_000);
        fast.answered(later, millis(2));
        let (old, rival) = costs(later, (&slow, 1.0), (&fast, 1.0));
        assert!(old >= rival && old < 1.01 * rival);
    }

    #[test]
    fn a_new_endpoint_is_compared_by_requests_in_flight_alone() {
        let now = Instant::now();
        let (known, new) = (Load::new(now), Load::new(now));
        known.answered(now, millis(500));
        let (a, b) = costs(now, (&known, 1.0), (&new, 1.0));
        assert_eq!(a, b);
        new.begin();
        let (a, b) = costs(now, (&known, 1.0), (&new, 1.0));
        assert_eq!(b, 2.0 * a);
        new.end();
        assert_eq!(new.in_flight(), 0);
    }

    #[test]
    fn an_answer_from_the_future_is_fresh() {
        let now = Instant::now();
        let load = Load::new(now);
        load.answered(now + millis(50), millis(2));
        assert_eq!(load.latency(now).unwrap().weight, 1.0);
    }
}

//! How much one peer may say in a time: token buckets of bytes and of messages, pure.
//!
//! A peer that says more is read more slowly, which its own connection makes it feel; one that
//! goes on for [`PATIENCE`] is hung up on. What one bucket lacks is waited for, so that an honest
//! peer with much to say is late and nothing else.

use std::time::{Duration, Instant};

/// How long a peer may be above its rates before its stream is closed.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
/// A peer is no longer above its rates once it has saved up as much as it may say in this time.
const RECOVERED: f64 = 1.0;

/// A rate and how far it may be exceeded at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rate {
    pub(super) burst: f64,
    pub(super) per_second: f64,
}

/// What a peer may say.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rates {
    pub(super) bytes: Rate,
    pub(super) messages: Rate,
}

impl Rates {
    /// A snapshot of all that the quota of records admits (16 MiB, 22,000 records) passes twice at
    /// once, with room for what carries it; then 1 MiB and 4,000 messages a second, which is more
    /// than a cluster with all of its 20,000 endpoints restarting within a minute has to say.
    pub(super) const PEER: Self = Self {
        bytes: Rate {
            burst: 40.0 * MIB,
            per_second: MIB,
        },
        messages: Rate {
            burst: 50_000.0,
            per_second: 4_000.0,
        },
    };
    /// As subscriber a peer says what it knows (at most 8 MiB), and acknowledges what it gets,
    /// which is no more than we send.
    pub(super) const SUBSCRIBER: Self = Self {
        bytes: Rate {
            burst: 40.0 * MIB,
            per_second: MIB,
        },
        messages: Rate {
            burst: 50_000.0,
            per_second: 4_000.0,
        },
    };
}

const MIB: f64 = 1024.0 * 1024.0;

/// What to do after something was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pace {
    /// Read on.
    Go,
    /// Read on after this time.
    Wait(Duration),
    /// It has been too much for too long.
    Close,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    rate: Rate,
    /// Below zero: what was read already and must be waited for.
    level: f64,
}

impl Bucket {
    fn full(rate: Rate) -> Self {
        Self {
            rate,
            level: rate.burst,
        }
    }

    fn refill(&mut self, passed: f64) {
        self.level = (self.level + passed * self.rate.per_second).min(self.rate.burst);
    }

    fn has_recovered(&self) -> bool {
        self.level >= (self.rate.per_second * RECOVERED).min(self.rate.burst)
    }

    fn is_full_after(&self, passed: f64) -> bool {
        self.level + passed * self.rate.per_second >= self.rate.burst
    }

    fn debt(&self) -> Duration {
        Duration::from_secs_f64((-self.level / self.rate.per_second).max(0.0))
    }
}

/// The account of one peer, over all its streams.
#[derive(Clone, Copy, Debug)]
pub(super) struct Meter {
    bytes: Bucket,
    messages: Bucket,
    at: Instant,
    /// Since when it has been above its rates without recovering.
    above: Option<Instant>,
}

impl Meter {
    pub(super) fn new(rates: Rates, now: Instant) -> Self {
        Self {
            bytes: Bucket::full(rates.bytes),
            messages: Bucket::full(rates.messages),
            at: now,
            above: None,
        }
    }

    /// Takes in what was read.
    pub(super) fn charge(&mut self, bytes: usize, messages: usize, now: Instant) -> Pace {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = self.at.max(now);
        let mut debt = Duration::ZERO;
        let mut recovered = true;
        for (bucket, count) in [(&mut self.bytes, bytes), (&mut self.messages, messages)] {
            bucket.refill(passed);
            recovered &= bucket.has_recovered();
            // Exact below 2^53, which no count of bytes in memory reaches.
            #[allow(clippy::cast_precision_loss)]
            let count = count as f64;
            bucket.level -= count;
            debt = debt.max(bucket.debt());
        }
        if recovered {
            self.above = None;
        }
        if debt.is_zero() {
            return Pace::Go;
        }
        let since = *self.above.get_or_insert(now);
        if now.saturating_duration_since(since) >= PATIENCE {
            // It begins anew on its next stream, with an empty bucket.
            self.above = None;
            return Pace::Close;
        }
        Pace::Wait(debt)
    }

    /// Whether it is as good as new: only then may it be forgotten.
    pub(super) fn is_full(&self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.bytes.is_full_after(passed) && self.messages.is_full_after(passed)
    }

    /// What must be waited for before anything more is taken from the peer.
    pub(super) fn debt(&self, now: Instant) -> Duration {
        let debt = self.bytes.debt().max(self.messages.debt());
        debt.saturating_sub(now.saturating_duration_since(self.at))
    }
}

#[cfg(test)]
mod tests {
    use linkspan_core::record::Quotas;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn meter(now: Instant) -> Meter {
        Meter::new(Rates::PEER, now)
    }

    #[test]
    fn an_honest_snapshot_of_the_whole_quota_passes_at_once() {
        let now = Instant::now();
        let mut meter = meter(now);
        let quotas = Quotas::default();
        let records = quotas.services + quotas.endpoints + 2;
        for _ in 0..2 {
            assert_eq!(meter.charge(quotas.bytes, records, now), Pace::Go);
        }
    }

    #[test]
    fn what_is_too_much_is_waited_for() {
        let now = Instant::now();
        let mut meter = meter(now);
        assert_eq!(meter.charge(40 << 20, 0, now), Pace::Go);
        let half = Duration::from_millis(500);
        assert_eq!(meter.charge(1 << 19, 0, now), Pace::Wait(half));
        assert_eq!(meter.debt(now), half);
        assert_eq!(meter.debt(now + half), Duration::ZERO);
        assert_eq!(meter.charge(0, 0, now + half), Pace::Go);
        assert_eq!(meter.charge(0, 50_000, now + half), Pace::Go);
        assert_eq!(meter.charge(0, 4_000, now + half), Pace::Wait(SECOND));
    }

    /// One that says `factor` times the rate, as fast as it is read, for that long.
    fn flood(meter: &mut Meter, start: Instant, lasting: Duration, factor: f64) -> Pace {
        let mut now = start;
        while now < start + lasting {
            now += Duration::from_millis(100);
            // No peer writes more than this in that time.
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            let bytes = (MIB / 10.0 * factor) as usize;
            match meter.charge(bytes, 1, now) {
                Pace::Go => {}
                Pace::Wait(wait) => now += wait,
                Pace::Close => return Pace::Close,
            }
        }
        Pace::Go
    }

    #[test]
    fn one_that_stays_above_its_rates_is_closed() {
        let now = Instant::now();
        let mut above = meter(now);
        assert_eq!(above.charge(40 << 20, 0, now), Pace::Go);
        assert_eq!(flood(&mut above, now, PATIENCE * 2, 3.0), Pace::Close);
        let mut below = meter(now);
        assert_eq!(below.charge(40 << 20, 0, now), Pace::Go);
        assert_eq!(flood(&mut below, now, PATIENCE * 20, 0.9), Pace::Go);
    }

    #[test]
    fn one_that_recovers_has_all_patience_again() {
        let mut now = Instant::now();
        let mut meter = meter(now);
        assert_eq!(meter.charge(40 << 20, 0, now), Pace::Go);
        for _ in 0..10 {
            let end = flood(&mut meter, now, PATIENCE * 2 / 3, 3.0);
            assert_eq!(end, Pace::Go);
            now += PATIENCE + 5 * SECOND;
        }
    }

    #[test]
    fn a_clock_that_stands_still_gives_nothing_away() {
        let now = Instant::now();
        let mut meter = meter(now);
        for _ in 0..3 {
            let _ = meter.charge(40 << 20, 0, now);
        }
        assert_eq!(meter.debt(now), 80 * SECOND);
    }
}

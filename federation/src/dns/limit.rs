//! How many answers one source gets over UDP, whose senders nobody has proved.

use std::{
    collections::HashMap,
    net::IpAddr,
    time::{Duration, Instant},
};

/// Answers per second to one source: a cluster's own DNS forwards for all its pods, and keeps what it
/// was told for some seconds.
const PER_SECOND: f64 = 2_000.0;
/// Answers at once.
const BURST: f64 = 4_000.0;
/// Sources remembered: each node's own DNS, and pods that ask by themselves.
const MAX_SOURCES: usize = 8_192;
/// How often it is looked which sources are idle, where there is no room for more: looking at all of
/// them for each packet would be what a flood wants.
const LOOK: Duration = Duration::from_secs(1);

struct Bucket {
    left: f64,
    at: Instant,
}

impl Bucket {
    fn refill(&mut self, rate: Rate, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + passed * rate.per_second).min(rate.burst);
        self.at = now;
    }
}

/// How much one source gets.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rate {
    pub(super) per_second: f64,
    pub(super) burst: f64,
}

impl Default for Rate {
    fn default() -> Self {
        Self {
            per_second: PER_SECOND,
            burst: BURST,
        }
    }
}

/// Answers that each source still gets.
#[derive(Default)]
pub(super) struct Limit {
    rate: Rate,
    buckets: HashMap<IpAddr, Bucket>,
    looked: Option<Instant>,
}

impl Limit {
    #[cfg(test)]
    pub(super) fn new(rate: Rate) -> Self {
        Self {
            rate,
            ..Self::default()
        }
    }

    /// Whether `source` gets an answer with all that it asked for. Sources beyond those that there is
    /// room for do not.
    pub(super) fn admit(&mut self, source: IpAddr, now: Instant) -> bool {
        let source = network(source);
        if !self.buckets.contains_key(&source) && self.buckets.len() >= MAX_SOURCES {
            self.forget_idle(now);
            if self.buckets.len() >= MAX_SOURCES {
                return false;
            }
        }
        let full = Bucket {
            left: self.rate.burst,
            at: now,
        };
        let bucket = self.buckets.entry(source).or_insert(full);
        bucket.refill(self.rate, now);
        let admitted = bucket.left >= 1.0;
        if admitted {
            bucket.left -= 1.0;
        }
        admitted
    }

    /// A full bucket says nothing that a new one would not.
    fn forget_idle(&mut self, now: Instant) {
        let recent = |at: Instant| now.saturating_duration_since(at) < LOOK;
        if self.looked.is_some_and(recent) {
            return;
        }
        self.looked = Some(now);
        let rate = self.rate;
        self.buckets.retain(|_, bucket| {
            bucket.refill(rate, now);
            bucket.left < rate.burst
        });
    }
}

/// One who has an IPv6 address has all those of its network.
fn network(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V6(ip) => {
            let [a, b, c, d, ..] = ip.segments();
            IpAddr::from([a, b, c, d, 0, 0, 0, 0])
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(n: u32) -> IpAddr {
        IpAddr::from(n.to_be_bytes())
    }

    #[test]
    fn a_burst_passes_then_the_rate_holds_for_that_source_only() {
        let (mut limit, now) = (Limit::default(), Instant::now());
        assert!((0..4_000).all(|_| limit.admit(source(1), now)));
        assert!(!limit.admit(source(1), now));
        assert!(limit.admit(source(2), now));
        let later = now + Duration::from_millis(1);
        assert!(limit.admit(source(1), later) && limit.admit(source(1), later));
        assert!(!limit.admit(source(1), later));
    }

    #[test]
    fn addresses_of_one_network_are_one_source() {
        let (mut limit, now) = (Limit::default(), Instant::now());
        let host = |n: u16| IpAddr::from([0xfd00, 0, 0, 1, 0, 0, 0, n]);
        assert!((0..4_000).all(|n| limit.admit(host(n), now)));
        assert!(!limit.admit(host(4_000), now));
        assert!(limit.admit(IpAddr::from([0xfd00, 0, 0, 2, 0, 0, 0, 1]), now));
    }

    #[test]
    fn sources_are_bounded_and_idle_ones_forgotten() {
        let (mut limit, now) = (Limit::default(), Instant::now());
        for n in 0..MAX_SOURCES {
            assert!(limit.admit(source(n as u32), now));
        }
        assert!(!limit.admit(source(u32::MAX), now));
        assert!(
            !limit.admit(source(u32::MAX), now + LOOK / 2),
            "looked already"
        );
        assert!(limit.admit(source(u32::MAX), now + LOOK));
        assert_eq!(limit.buckets.len(), 1);
    }
}

//! How often one address may ask for certificates.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::Mutex,
    time::{Duration, Instant},
};

/// Requests at once from one address: a machine on which a hundred workloads start together.
const BURST: f64 = 200.0;
/// Requests per second after that; each costs one signature check and one signature.
const PER_SECOND: f64 = 20.0;
/// Addresses remembered. When all are busy, new ones share the refusal: memory stays bounded.
const MAX_ADDRESSES: usize = 8_192;

struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Bucket {
    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + passed * PER_SECOND).min(BURST);
        self.at = now;
    }
}

/// A token bucket per source address.
#[derive(Default)]
pub(crate) struct Limiter {
    buckets: Mutex<HashMap<IpAddr, Bucket>>,
}

impl Limiter {
    /// Takes one request of `address`, or says how long to wait.
    pub(crate) fn admit(&self, address: IpAddr, now: Instant) -> Result<(), Duration> {
        let mut buckets = self
            .buckets
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        if !buckets.contains_key(&address) && buckets.len() >= MAX_ADDRESSES {
            forget_idle(&mut buckets, now);
            if buckets.len() >= MAX_ADDRESSES {
                return Err(Duration::from_secs(1));
            }
        }
        let bucket = buckets.entry(address).or_insert(Bucket {
            tokens: BURST,
            at: now,
        });
        bucket.refill(now);
        if bucket.tokens < 1.0 {
            return Err(Duration::from_secs_f64((1.0 - bucket.tokens) / PER_SECOND));
        }
        bucket.tokens -= 1.0;
        Ok(())
    }
}

/// A full bucket says nothing that a new one would not.
fn forget_idle(buckets: &mut HashMap<IpAddr, Bucket>, now: Instant) {
    buckets.retain(|_, bucket| {
        bucket.refill(now);
        bucket.tokens < BURST
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u32) -> IpAddr {
        IpAddr::from(last.to_be_bytes())
    }

    #[test]
    fn a_burst_passes_then_the_rate_holds_for_that_address_only() {
        let limiter = Limiter::default();
        let now = Instant::now();
        for _ in 0..200 {
            limiter.admit(address(1), now).unwrap();
        }
        let wait = limiter.admit(address(1), now).unwrap_err();
        assert!(wait <= Duration::from_millis(50));
        limiter.admit(address(2), now).unwrap();
        limiter.admit(address(1), now + wait).unwrap();
    }

    #[test]
    fn memory_is_bounded_and_idle_addresses_are_forgotten() {
        let limiter = Limiter::default();
        let now = Instant::now();
        for last in 0..8_192 {
            limiter.admit(address(last), now).unwrap();
        }
        assert!(limiter.admit(address(9_999_999), now).is_err());
        limiter
            .admit(address(9_999_999), now + Duration::from_secs(1))
            .unwrap();
    }
}

//! How often one address may come to join; pure.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Joins at once from one address: retries of somebody who links several clusters from behind one.
const BURST: u32 = 20;
/// After that one more in this time: guessing gains nothing, so this only bounds the work.
const EVERY: Duration = Duration::from_secs(1);
/// Addresses remembered; when all are busy, new ones share the refusal.
const MOST: usize = 4_096;

/// A token bucket per address, as the time at which it will be full again.
#[derive(Debug, Default)]
pub(super) struct Limiter {
    full_at: HashMap<IpAddr, Instant>,
}

impl Limiter {
    /// Whether one more of `address`, of which each source has one, is admitted now.
    pub(super) fn admit(&mut self, address: IpAddr, now: Instant) -> bool {
        if self.full_at.len() >= MOST {
            self.full_at.retain(|_, full_at| *full_at > now);
        }
        if self.full_at.len() >= MOST && !self.full_at.contains_key(&address) {
            return false;
        }
        let full_at = self.full_at.entry(address).or_insert(now);
        let after = (*full_at).max(now) + EVERY;
        if after.saturating_duration_since(now) > EVERY * BURST {
            return false;
        }
        *full_at = after;
        true
    }
}

#[cfg(test)]
mod tests {
    use linkspan_runtime::places::source;

    use super::*;

    #[test]
    fn a_burst_passes_then_the_rate_holds_for_that_address_only() {
        let (mut limiter, now) = (Limiter::default(), Instant::now());
        let (one, other) = ([192, 0, 2, 1].into(), [192, 0, 2, 2].into());
        assert!((0..BURST).all(|_| limiter.admit(one, now)));
        assert!(!limiter.admit(one, now));
        assert!(limiter.admit(other, now));
        assert!(limiter.admit(one, now + EVERY));
        assert!(!limiter.admit(one, now + EVERY));
    }

    #[test]
    fn addresses_of_one_ipv6_network_count_as_one() {
        let (mut limiter, now) = (Limiter::default(), Instant::now());
        let host = |last: u16| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, last]);
        assert!((0..BURST as u16).all(|last| limiter.admit(source(host(last)), now)));
        assert!(!limiter.admit(source(host(999)), now));
    }

    #[test]
    fn memory_is_bounded_and_idle_addresses_are_forgotten() {
        let (mut limiter, now) = (Limiter::default(), Instant::now());
        for host in 0..MOST as u32 {
            assert!(limiter.admit(IpAddr::from(host.to_be_bytes()), now));
        }
        let late = IpAddr::from([203, 0, 113, 1]);
        assert!(!limiter.admit(late, now));
        assert!(limiter.admit(late, now + EVERY));
        assert!(limiter.full_at.len() <= MOST);
    }
}

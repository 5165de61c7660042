//! How often each source may ask: a token bucket for each, in bounded memory. Time is an argument.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::places::source;

/// What one source may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Requests at once.
    pub burst: u32,
    /// After those, one more in this time.
    pub every: Duration,
    /// Sources remembered. While all of them are busy, new ones are refused: memory stays bounded.
    pub sources: usize,
}

/// A token bucket for each source, where the addresses of one IPv6 network (/64) are one.
#[derive(Debug)]
pub struct Limiter {
    rate: Rate,
    /// When each bucket will be full again; one that is full says no more than none.
    full_at: Mutex<HashMap<IpAddr, Instant>>,
}

impl Limiter {
    /// All buckets full.
    #[must_use]
    pub fn new(rate: Rate) -> Self {
        Self {
            rate,
            full_at: Mutex::default(),
        }
    }

    /// Takes one request of `address`.
    ///
    /// # Errors
    /// After which time it may ask again.
    pub fn admit(&self, address: IpAddr, now: Instant) -> Result<(), Duration> {
        let Rate { burst, every, .. } = self.rate;
        let source = source(address);
        let mut full_at = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.has_room(&mut full_at, source, now) {
            return Err(every);
        }
        let bucket = full_at.entry(source).or_insert(now);
        let after = (*bucket).max(now) + every;
        let over = after
            .saturating_duration_since(now)
            .checked_sub(every * burst);
        match over.filter(|over| !over.is_zero()) {
            Some(wait) => Err(wait),
            None => {
                *bucket = after;
                Ok(())
            }
        }
    }

    fn has_room(
        &self,
        full_at: &mut HashMap<IpAddr, Instant>,
        source: IpAddr,
        now: Instant,
    ) -> bool {
        if full_at.len() < self.rate.sources || full_at.contains_key(&source) {
            return true;
        }
        full_at.retain(|_, full_at| *full_at > now);
        full_at.len() < self.rate.sources
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate {
        burst: 20,
        every: Duration::from_millis(50),
        sources: 100,
    };

    fn host(number: u32) -> IpAddr {
        IpAddr::from(number.to_be_bytes())
    }

    fn burst(limiter: &Limiter, address: impl Fn(u32) -> IpAddr, now: Instant) {
        for number in 0..RATE.burst {
            limiter.admit(address(number), now).unwrap();
        }
    }

    #[test]
    fn a_burst_passes_then_the_rate_holds_for_that_source_only() {
        let (limiter, now) = (Limiter::new(RATE), Instant::now());
        burst(&limiter, |_| host(1), now);
        let wait = limiter.admit(host(1), now).unwrap_err();
        assert_eq!(wait, RATE.every);
        limiter.admit(host(2), now).unwrap();
        limiter.admit(host(1), now + wait / 2).unwrap_err();
        limiter.admit(host(1), now + wait).unwrap();
        limiter.admit(host(1), now + wait).unwrap_err();
    }

    #[test]
    fn a_source_that_rests_has_its_burst_again_and_no_more() {
        let (limiter, now) = (Limiter::new(RATE), Instant::now());
        burst(&limiter, |_| host(1), now);
        let later = now + RATE.every * RATE.burst * 3;
        burst(&limiter, |_| host(1), later);
        limiter.admit(host(1), later).unwrap_err();
    }

    #[test]
    fn addresses_of_one_ipv6_network_are_one_source() {
        let (limiter, now) = (Limiter::new(RATE), Instant::now());
        let of = |net, host: u32| IpAddr::from([0x2001, 0xdb8, 0, net, 0, 0, 0, host as u16]);
        burst(&limiter, |host| of(1, host), now);
        limiter.admit(of(1, 999), now).unwrap_err();
        limiter.admit(of(2, 1), now).unwrap();
    }

    #[test]
    fn memory_is_bounded_and_idle_sources_are_forgotten() {
        let (limiter, now) = (Limiter::new(RATE), Instant::now());
        for number in 0..RATE.sources as u32 {
            limiter.admit(host(number), now).unwrap();
        }
        let late = host(999);
        let wait = limiter.admit(late, now).unwrap_err();
        limiter.admit(late, now + wait).unwrap();
        assert!(limiter.full_at.lock().unwrap().len() <= RATE.sources);
    }
}

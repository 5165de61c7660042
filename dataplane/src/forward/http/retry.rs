//! Whether a request may be sent once more.
//!
//! * What a failure *proves* decides first: a request that was provably not processed may always be
//!   repeated, any other only if it is idempotent ([`is_idempotent`]).
//! * A request whose connection, endpoint or link was lost is sent elsewhere outside of any budget:
//!   such a loss hits many requests at once and ends with the next choice. Bounded by the number of
//!   tries alone.
//! * What an endpoint *answers* (it refuses, it is busy) or does not answer in time may mean
//!   overload, and is repeated within a [`RetryBudget`], so that retries never multiply load.

use std::{
    sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

use http::{HeaderMap, HeaderName, Method};

/// Retries per request in the recent past, as a fraction: one in five.
const REQUESTS_PER_RETRY: i64 = 5;
/// Retries per second that are always allowed, so that a quiet service can retry at all.
const MIN_RETRIES_PER_SECOND: i64 = 10;
/// Most retries saved up: what ten seconds of a quiet service give, or 500 recent requests.
const MOST_SAVED: i64 = 100;

/// How long the steady part takes to give a fifth of a retry: 20 ms.
const MILLIS_PER_FIFTH: u64 = 1000 / (MIN_RETRIES_PER_SECOND * REQUESTS_PER_RETRY).unsigned_abs();

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Whether processing a request twice has the effect of processing it once: its method says so
/// (RFC 9110 §9.2.2), or the client does, by an `idempotency-key`.
///
/// gRPC sends everything by POST, so that its calls are repeated only when provably not processed
/// (or with that header).
#[must_use]
pub fn is_idempotent(method: &Method, headers: &HeaderMap) -> bool {
    let by_method = matches!(
        *method,
        Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE
    );
    by_method || headers.contains_key(IDEMPOTENCY_KEY)
}

/// How many retries there may be: one for five recent requests, and always ten a second. Shared
/// by all requests to one destination; one atomic addition for each request, no lock.
#[derive(Debug)]
pub struct RetryBudget {
    began: Instant,
    /// Milliseconds since `began` up to which the steady part has been added.
    filled: AtomicU64,
    /// In fifths of a retry.
    saved: AtomicI64,
}

impl RetryBudget {
    /// One that allows what a quiet service may use at once.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        let saved = AtomicI64::new(MIN_RETRIES_PER_SECOND * REQUESTS_PER_RETRY);
        Self {
            began: now,
            filled: AtomicU64::new(0),
            saved,
        }
    }

    /// Notes a request (not a retry).
    pub fn request(&self) {
        if self.saved.load(Relaxed) < MOST_SAVED * REQUESTS_PER_RETRY {
            self.saved.fetch_add(1, Relaxed);
        }
    }

    /// Takes one retry; false if there is none left.
    #[must_use]
    pub fn take(&self, now: Instant) -> bool {
        self.fill(now);
        let take = |saved: i64| {
            saved
                .checked_sub(REQUESTS_PER_RETRY)
                .filter(|left| *left >= 0)
        };
        self.saved.fetch_update(Relaxed, Relaxed, take).is_ok()
    }

    fn fill(&self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.began);
        let elapsed = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
        // Whole steps only, so that nothing is lost however often this is called.
        let elapsed = elapsed - elapsed % MILLIS_PER_FIFTH;
        let before = self.filled.fetch_max(elapsed, Relaxed);
        let millis = i64::try_from(elapsed.saturating_sub(before)).unwrap_or(i64::MAX);
        let gain = millis / MILLIS_PER_FIFTH.cast_signed();
        let most = MOST_SAVED * REQUESTS_PER_RETRY;
        let add = |saved: i64| Some(saved.saturating_add(gain).min(most.max(saved)));
        // The closure never refuses.
        let _ = self.saved.fetch_update(Relaxed, Relaxed, add);
    }
}

/// How long to wait before choosing again when every choice has failed once: doubles from 10 ms to
/// 320 ms, spread by `random` (0.0 to 1.0).
#[must_use]
pub fn pause(round: u32, random: f64) -> Duration {
    let ceiling = Duration::from_millis(10 << round.min(5));
    ceiling.mul_f64(0.5 + random.clamp(0.0, 1.0) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idempotent_by_method_or_by_word_of_the_client() {
        let none = HeaderMap::new();
        for method in [
            Method::GET,
            Method::HEAD,
            Method::OPTIONS,
            Method::PUT,
            Method::DELETE,
        ] {
            assert!(is_idempotent(&method, &none), "{method}");
        }
        for method in [Method::POST, Method::PATCH] {
            assert!(!is_idempotent(&method, &none), "{method}");
        }
        let mut key = HeaderMap::new();
        key.insert("idempotency-key", "1".parse().unwrap());
        assert!(is_idempotent(&Method::POST, &key));
    }

    #[test]
    fn retries_are_a_fifth_of_requests() {
        let now = Instant::now();
        let budget = RetryBudget::new(now);
        let first = (0..100).take_while(|_| budget.take(now)).count();
        assert_eq!(first, 10);
        (0..50).for_each(|_| budget.request());
        assert_eq!((0..100).take_while(|_| budget.take(now)).count(), 10);
    }

    #[test]
    fn a_quiet_service_may_retry_and_savings_are_bounded() {
        let now = Instant::now();
        let budget = RetryBudget::new(now);
        while budget.take(now) {}
        let later = now + Duration::from_millis(500);
        assert_eq!((0..100).take_while(|_| budget.take(later)).count(), 5);
        (0..100_000).for_each(|_| budget.request());
        let much_later = now + Duration::from_secs(3600);
        let all = (0..1000).take_while(|_| budget.take(much_later)).count();
        assert_eq!(all, usize::try_from(MOST_SAVED).unwrap());
    }

    #[test]
    fn the_steady_part_comes_however_often_it_is_asked_for() {
        let now = Instant::now();
        let budget = RetryBudget::new(now);
        while budget.take(now) {}
        let second = (1..=125).map(|step| now + Duration::from_millis(step * 8));
        assert_eq!(second.filter(|at| budget.take(*at)).count(), 10);
    }

    #[test]
    fn pauses_grow_and_stay_short() {
        assert_eq!(pause(0, 1.0), Duration::from_millis(10));
        assert_eq!(pause(99, 1.0), Duration::from_millis(320));
        assert_eq!(pause(0, 0.0), Duration::from_millis(5));
    }
}

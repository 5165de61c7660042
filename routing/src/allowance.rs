//! The cap on what may leave the caller's cluster: `maxRemoteShare`, retries included.
//!
//! Shares keep to the cap by themselves, since each first try is drawn by them. What shares do
//! not know are retries and whatever is sent on because nothing else is left; so every request
//! earns its part of a try abroad, and every try abroad takes a whole one.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// A whole try, in the unit of [`Allowance::credit`].
const WHOLE: u32 = 100;
/// Most tries that are saved up: a loss is followed by this many retries abroad at once, and
/// over any time tries abroad stay below the cap's part of all requests plus these.
const SAVED: u32 = 100;

/// What may still go to other clusters.
#[derive(Debug)]
pub(crate) struct Allowance {
    /// Hundredths of a try.
    credit: AtomicU32,
}

impl Default for Allowance {
    fn default() -> Self {
        Self {
            credit: AtomicU32::new(SAVED * WHOLE),
        }
    }
}

impl Allowance {
    /// A new request: it earns `percent` of a try. Where nothing may leave, nothing is saved.
    pub(crate) fn earn(&self, percent: u32) {
        let more = |credit: u32| match percent {
            0 => Some(0),
            some => Some((credit + some.min(WHOLE)).min(SAVED * WHOLE)),
        };
        // Always some: never refused.
        let _ = self.credit.fetch_update(Relaxed, Relaxed, more);
    }

    /// Whether there is a whole try to be had.
    pub(crate) fn affords(&self) -> bool {
        self.credit.load(Relaxed) >= WHOLE
    }

    /// Takes one whole try; false if there is none.
    pub(crate) fn spend(&self) -> bool {
        let less = |credit: u32| credit.checked_sub(WHOLE);
        self.credit.fetch_update(Relaxed, Relaxed, less).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tries_abroad_stay_below_the_cap_plus_what_was_saved() {
        let allowance = Allowance::default();
        let mut spent = 0;
        for _ in 0..10_000 {
            allowance.earn(30);
            // Each request would go abroad five times.
            spent += (0..5).filter(|_| allowance.spend()).count();
        }
        assert!((3_000..=3_000 + SAVED as usize).contains(&spent), "{spent}");
        assert!(!allowance.affords());
    }

    #[test]
    fn where_nothing_may_leave_nothing_does() {
        let allowance = Allowance::default();
        allowance.earn(0);
        assert!(!allowance.affords() && !allowance.spend());
    }
}

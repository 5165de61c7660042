//! The cap on what may leave the caller's cluster: `maxRemoteShare`, retries included.
//!
//! Shares keep to the cap by themselves, since each first try is drawn by them. What shares do
//! not know are retries and whatever is sent on because nothing else is left; so every request
//! earns its part of a try abroad, once, and every try abroad takes a whole one.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// A whole try, in the unit of [`Allowance::credit`].
const WHOLE: u32 = 100;
/// Most tries that are saved up: a loss is followed by this many retries abroad at once, and
/// over any time tries abroad stay below the cap's part of all requests plus these.
const SAVED: u32 = 100;

/// What may leave where nothing is said.
const UNCAPPED: u32 = u32::MAX;

/// What may still go to other clusters. Outlives policies, so that setting one anew does not
/// save up anew.
#[derive(Debug)]
pub(crate) struct Allowance {
    /// What each request earns, in percent of a try.
    percent: AtomicU32,
    /// Hundredths of a try.
    credit: AtomicU32,
}

impl Default for Allowance {
    fn default() -> Self {
        Self {
            percent: AtomicU32::new(UNCAPPED),
            credit: AtomicU32::new(SAVED * WHOLE),
        }
    }
}

impl Allowance {
    /// Sets what may leave, in percent. Where nothing may, nothing is saved.
    pub(crate) fn cap(&self, percent: Option<u32>) {
        let percent = percent.map_or(UNCAPPED, |percent| percent.min(WHOLE));
        self.percent.store(percent, Relaxed);
        if percent == 0 {
            self.credit.store(0, Relaxed);
        }
    }

    /// A new request: it earns its part of a try.
    pub(crate) fn earn(&self) {
        let percent = self.percent.load(Relaxed);
        if percent == UNCAPPED {
            return;
        }
        let more = |credit: u32| {
            let full = credit >= SAVED * WHOLE || percent == 0;
            (!full).then(|| (credit + percent).min(SAVED * WHOLE))
        };
        // Refused where it changes nothing, so that the line stays shared between all cores.
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
        allowance.cap(Some(30));
        let mut spent = 0;
        for _ in 0..10_000 {
            allowance.earn();
            // Each request would go abroad five times.
            spent += (0..5).filter(|_| allowance.spend()).count();
        }
        assert!((3_000..=3_000 + SAVED as usize).contains(&spent), "{spent}");
        assert!(!allowance.affords());
    }

    #[test]
    fn where_nothing_may_leave_nothing_does() {
        let allowance = Allowance::default();
        allowance.cap(Some(0));
        allowance.earn();
        assert!(!allowance.affords() && !allowance.spend());
    }

    #[test]
    fn a_cap_that_is_set_anew_gives_nothing_anew() {
        let allowance = Allowance::default();
        allowance.cap(Some(10));
        while allowance.spend() {}
        allowance.cap(None);
        (0..1000).for_each(|_| allowance.earn());
        allowance.cap(Some(10));
        assert!(!allowance.affords());
    }
}

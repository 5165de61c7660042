//! When is a connection suspect? The heartbeat machine, without a clock or a socket of its own.
//!
//! Each side sends a heartbeat every interval and says in it how long it has not heard the
//! other. A connection becomes *suspect* when five heartbeats in a row are missing, or when the
//! other side says that it has not heard us for as long; it is *clear* again after three in a
//! row. Suspicion says nothing about the connection's life: that ends by QUIC's own idle
//! time-out, so that a path which returns finds its connections still there.
//!
//! Time in which our own task ran late is not the peer's silence: the owner calls
//! [`Detector::tick`] at every interval of [`Rhythm::tick`], and what a tick comes too late is
//! taken off the silence. A process that was stopped for ten seconds suspects nobody.

use std::time::{Duration, Instant};

/// How often heartbeats are sent and how many make a judgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rhythm {
    /// Between two heartbeats of one side. Default 500 ms.
    pub interval: Duration,
    /// So many missing in a row make a connection suspect. Default 5.
    pub missed: u32,
    /// So many in a row make it clear again. Default 3.
    pub in_a_row: u32,
}

impl Default for Rhythm {
    fn default() -> Self {
        Self {
            interval: Duration::from_millis(500),
            missed: 5,
            in_a_row: 3,
        }
    }
}

impl Rhythm {
    /// How often the owner must call [`Detector::tick`]: twice per heartbeat, so that a
    /// suspicion is at most half an interval late.
    #[must_use]
    pub fn tick(&self) -> Duration {
        self.interval / 2
    }

    /// The silence that makes a connection suspect.
    #[must_use]
    pub fn limit(&self) -> Duration {
        self.interval * self.missed
    }
}

/// What a call changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The connection has just become suspect.
    Suspect(Reason),
    /// The connection is clear again.
    Clear,
}

/// Why a connection is suspect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// We have not heard the other side.
    Silent,
    /// The other side says that it has not heard us.
    Unheard,
}

/// The state of one connection's heartbeats.
#[derive(Clone, Debug)]
pub struct Detector {
    rhythm: Rhythm,
    heard: Instant,
    ticked: Instant,
    /// Lateness of our own ticks since the last heartbeat was heard.
    forgiven: Duration,
    suspect: bool,
    /// Heartbeats in a row, counted while suspect.
    row: u32,
    /// When the last heartbeat that counts for the row came.
    counted: Option<Instant>,
}

impl Detector {
    /// A connection that has just been established counts as heard now.
    #[must_use]
    pub fn new(rhythm: Rhythm, now: Instant) -> Self {
        Self {
            rhythm,
            heard: now,
            ticked: now,
            forgiven: Duration::ZERO,
            suspect: false,
            row: 0,
            counted: None,
        }
    }

    /// Whether the connection is suspect.
    #[must_use]
    pub fn is_suspect(&self) -> bool {
        self.suspect
    }

    /// How long the other side has been silent, our own lateness taken off.
    #[must_use]
    pub fn silence(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.heard)
            .saturating_sub(self.forgiven)
    }

    /// Our clock has moved by one tick, or by more where we ran late.
    pub fn tick(&mut self, now: Instant) -> Option<Change> {
        let late = now
            .saturating_duration_since(self.ticked)
            .saturating_sub(self.rhythm.tick());
        self.forgiven += late;
        self.ticked = self.ticked.max(now);
        if self.silence(now) <= self.rhythm.limit() {
            return None;
        }
        self.row = 0;
        self.become_suspect(Reason::Silent)
    }

    /// A heartbeat came, in which the other side says how long it has not heard us.
    pub fn heard(&mut self, now: Instant, unheard: Duration) -> Option<Change> {
        let gap = self.silence(now);
        self.heard = self.heard.max(now);
        self.forgiven = Duration::ZERO;
        if unheard > self.rhythm.limit() {
            self.row = 0;
            return self.become_suspect(Reason::Unheard);
        }
        self.suspect.then(|| self.count(now, gap)).flatten()
    }

    fn become_suspect(&mut self, reason: Reason) -> Option<Change> {
        if self.suspect {
            return None;
        }
        self.suspect = true;
        self.counted = None;
        Some(Change::Suspect(reason))
    }

    /// Counts towards clearing. Heartbeats that come in one burst, as they do from a queue that
    /// empties, prove one moment only and count once; a missing one starts the row anew.
    fn count(&mut self, now: Instant, gap: Duration) -> Option<Change> {
        let burst = self
            .counted
            .is_some_and(|last| now.saturating_duration_since(last) < self.rhythm.tick());
        if burst {
            return None;
        }
        self.counted = Some(now);
        self.row = if gap > self.rhythm.interval * 2 {
            1
        } else {
            self.row + 1
        };
        if self.row < self.rhythm.in_a_row {
            return None;
        }
        self.suspect = false;
        self.row = 0;
        Some(Change::Clear)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RHYTHM: Rhythm = Rhythm {
        interval: Duration::from_millis(500),
        missed: 5,
        in_a_row: 3,
    };

    /// A hand-held clock in front of a detector.
    struct Held {
        detector: Detector,
        now: Instant,
    }

    impl Held {
        fn new() -> Self {
            let now = Instant::now();
            Self {
                detector: Detector::new(RHYTHM, now),
                now,
            }
        }

        fn ticks(&mut self, count: u32) -> Vec<Change> {
            (0..count)
                .filter_map(|_| self.late_tick(Duration::ZERO))
                .collect()
        }

        fn late_tick(&mut self, late: Duration) -> Option<Change> {
            self.now += RHYTHM.tick() + late;
            self.detector.tick(self.now)
        }

        fn heard(&mut self) -> Option<Change> {
            self.detector.heard(self.now, Duration::ZERO)
        }
    }

    #[test]
    fn suspects_after_five_missing_and_not_before() {
        let mut held = Held::new();
        assert_eq!(held.ticks(10), []);
        assert_eq!(held.ticks(1), [Change::Suspect(Reason::Silent)]);
        assert!(held.detector.is_suspect());
        assert_eq!(held.ticks(20), [], "told once");
    }

    #[test]
    fn clears_after_three_in_a_row() {
        let mut held = Held::new();
        held.ticks(11);
        assert_eq!(held.heard(), None);
        held.ticks(2);
        assert_eq!(held.heard(), None);
        held.ticks(2);
        assert_eq!(held.heard(), Some(Change::Clear));
    }

    #[test]
    fn a_burst_counts_once() {
        let mut held = Held::new();
        held.ticks(11);
        for _ in 0..20 {
            assert_eq!(held.heard(), None);
        }
        assert!(held.detector.is_suspect());
    }

    #[test]
    fn a_gap_starts_the_row_anew() {
        let mut held = Held::new();
        held.ticks(11);
        held.heard();
        held.ticks(2);
        held.heard();
        held.ticks(6);
        assert_eq!(held.heard(), None, "third, but not in a row");
        held.ticks(2);
        assert_eq!(held.heard(), None);
        held.ticks(2);
        assert_eq!(held.heard(), Some(Change::Clear));
    }

    #[test]
    fn the_other_sides_word_makes_suspect_at_once() {
        let mut held = Held::new();
        let unheard = RHYTHM.limit() + Duration::from_millis(1);
        let change = held.detector.heard(held.now, unheard);
        assert_eq!(change, Some(Change::Suspect(Reason::Unheard)));
    }

    #[test]
    fn our_own_lateness_is_forgiven() {
        let mut held = Held::new();
        assert_eq!(held.late_tick(Duration::from_secs(60)), None);
        assert_eq!(held.ticks(9), []);
        assert_eq!(held.ticks(1), [Change::Suspect(Reason::Silent)]);
    }

    proptest! {
        /// Whatever the lateness of our ticks, a peer that sends in time is never suspected.
        #[test]
        fn never_suspects_a_peer_that_sends(lates in prop::collection::vec(0u64..5_000, 1..60)) {
            let mut held = Held::new();
            for late in lates {
                prop_assert_eq!(held.late_tick(Duration::from_millis(late)), None);
                prop_assert_eq!(held.late_tick(Duration::ZERO), None);
                held.heard();
            }
        }

        /// Whatever came before, silence is noticed within the limit and one tick.
        #[test]
        fn silence_is_always_noticed(beats in prop::collection::vec(1u32..30, 0..40)) {
            let mut held = Held::new();
            for beat in beats {
                held.ticks(beat);
                held.heard();
            }
            held.ticks(11);
            prop_assert!(held.detector.is_suspect());
        }

        /// Whatever came before, three in time clear.
        #[test]
        fn three_in_time_always_clear(beats in prop::collection::vec((1u32..30, 0u64..6_000), 0..40)) {
            let mut held = Held::new();
            for (beat, unheard) in beats {
                held.ticks(beat);
                held.detector.heard(held.now, Duration::from_millis(unheard));
            }
            for _ in 0..4 {
                held.ticks(2);
                held.heard();
            }
            prop_assert!(!held.detector.is_suspect());
        }
    }
}

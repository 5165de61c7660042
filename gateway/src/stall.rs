//! Readers that have stopped reading, and what a connection does about them.
//!
//! A stream is *stalled* when our write to its TCP side has been blocked for [`STALLED`]. What
//! the peer has sent on it lies in the connection's window, so that enough stalled streams
//! would stop all others. When they can fill more than half of it, new streams go elsewhere and
//! those stalled longest are reset until the rest fits.

use std::time::Duration;

/// A write blocked for this long makes a stream stalled.
pub const STALLED: Duration = Duration::from_secs(1);

/// The windows of a connection, bytes.
#[derive(Clone, Copy, Debug)]
pub struct Windows {
    /// What the peer may send on one stream before we read.
    pub stream: u64,
    /// What it may send on all streams together.
    pub connection: u64,
}

/// What to do about stalled streams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict<K> {
    /// New streams should use another connection.
    pub crowded: bool,
    /// These are reset, the longest stalled first.
    pub reset: Vec<K>,
}

/// Judges the streams of one connection by how long each has been blocked.
pub fn judge<K: Copy + Ord>(blocked: &[(K, Duration)], windows: Windows) -> Verdict<K> {
    let mut stalled: Vec<_> = blocked
        .iter()
        .filter(|(_, since)| *since >= STALLED)
        .collect();
    let allowed = windows.connection / 2 / windows.stream.max(1);
    let excess = stalled
        .len()
        .saturating_sub(usize::try_from(allowed).unwrap_or(usize::MAX));
    stalled.sort_by_key(|(key, since)| (std::cmp::Reverse(*since), *key));
    let reset = stalled[..excess].iter().map(|(key, _)| *key).collect();
    Verdict {
        crowded: excess > 0,
        reset,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WINDOWS: Windows = Windows {
        stream: 1 << 20,
        connection: 8 << 20,
    };

    fn blocked(millis: &[u64]) -> Vec<(usize, Duration)> {
        millis
            .iter()
            .map(|millis| Duration::from_millis(*millis))
            .enumerate()
            .collect()
    }

    #[test]
    fn half_of_the_window_is_tolerated() {
        let verdict = judge(&blocked(&[5_000, 5_000, 5_000, 5_000]), WINDOWS);
        assert_eq!(
            verdict,
            Verdict {
                crowded: false,
                reset: vec![]
            }
        );
    }

    #[test]
    fn the_longest_stalled_are_reset_until_the_rest_fits() {
        let verdict = judge(
            &blocked(&[1_000, 4_000, 2_000, 3_000, 9_000, 1_500]),
            WINDOWS,
        );
        assert_eq!(
            verdict,
            Verdict {
                crowded: true,
                reset: vec![4, 1]
            }
        );
    }

    #[test]
    fn a_short_block_is_no_stall() {
        assert_eq!(
            judge(&blocked(&[999; 100]), WINDOWS).reset,
            Vec::<usize>::new()
        );
    }

    proptest! {
        #[test]
        fn what_stays_always_fits(millis in prop::collection::vec(0u64..5_000, 0..300)) {
            let verdict = judge(&blocked(&millis), WINDOWS);
            let stalled = millis.iter().filter(|millis| **millis >= 1_000).count();
            let left = (stalled - verdict.reset.len()) as u64;
            prop_assert!(left * WINDOWS.stream <= WINDOWS.connection / 2);
        }
    }
}

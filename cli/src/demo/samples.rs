//! What became of the requests: windows, shares and percentiles.

use std::{collections::HashMap, time::Duration};

use serde::Serialize;

use crate::apps::report::{Batch, Moment, Outcome};

/// Samples kept at most: a quarter of an hour of the load; older ones go first.
const MAX_SAMPLES: usize = 200_000;

/// The clusters of the demo.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// Where the load is.
    East,
    /// Where it fails over to.
    West,
}

impl Side {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::East, Self::West];

    /// The cluster id.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::East => "east",
            Self::West => "west",
        }
    }

    /// The peer.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::East => Self::West,
            Self::West => Self::East,
        }
    }
}

/// Which process has which nonce, and when it ended.
#[derive(Debug, Default)]
pub struct Instances {
    known: HashMap<String, (Side, Option<Moment>)>,
}

impl Instances {
    /// A process was started.
    pub fn started(&mut self, nonce: &str, side: Side) {
        self.known.insert(nonce.to_owned(), (side, None));
    }

    /// It was seen to have ended.
    pub fn ended(&mut self, nonce: &str, at: Moment) {
        if let Some((_, ended)) = self.known.get_mut(nonce) {
            *ended = Some(at);
        }
    }

    /// Where an answer came from. A process that had ended before the request began cannot
    /// have answered it.
    ///
    /// # Errors
    /// Why the answer is not to be believed.
    pub fn side_of(&self, nonce: &str, begun: Moment) -> Result<Side, String> {
        match self.known.get(nonce) {
            None => Err("answered by a process that nobody started".to_owned()),
            Some((_, Some(ended))) if begun > *ended => {
                Err("answered by a process that had ended before".to_owned())
            }
            Some((side, _)) => Ok(*side),
        }
    }
}

#[derive(Clone, Debug)]
struct Sample {
    begun: Moment,
    took: Duration,
    answer: Result<Side, String>,
}

/// All requests settled so far.
#[derive(Debug, Default)]
pub struct Samples {
    all: Vec<Sample>,
    settled_before: Moment,
    last: bool,
}

impl Samples {
    /// Takes in what the frontend reports.
    pub fn add(&mut self, batch: Batch, instances: &Instances) {
        self.settled_before = batch.settled_before;
        self.last |= batch.last;
        let samples = batch.outcomes.into_iter();
        self.all
            .extend(samples.map(|outcome| sample(outcome, instances)));
        if self.all.len() > MAX_SAMPLES {
            self.all.drain(..MAX_SAMPLES / 10);
        }
    }

    /// Every request that began before this moment is settled.
    #[must_use]
    pub fn settled_before(&self) -> Moment {
        self.settled_before
    }

    /// The load has ended.
    #[must_use]
    pub fn ended(&self) -> bool {
        self.last
    }

    /// The requests that began within `[from, to)`.
    #[must_use]
    pub fn window(&self, from: Moment, to: Moment) -> Window {
        let mut window = Window::default();
        let mut times = Vec::new();
        let within = self
            .all
            .iter()
            .filter(|sample| from <= sample.begun && sample.begun < to);
        for sample in within {
            window.requests += 1;
            match &sample.answer {
                Ok(side) => {
                    *window.side_mut(*side) += 1;
                    times.push(sample.took);
                }
                Err(why) => {
                    window.failed += 1;
                    window.first_failure.get_or_insert_with(|| why.clone());
                }
            }
        }
        times.sort_unstable();
        window.p50 = percentile(&times, 50);
        window.p99 = percentile(&times, 99);
        window.slowest = times.last().copied().unwrap_or_default();
        window
    }
}

fn sample(outcome: Outcome, instances: &Instances) -> Sample {
    let answer = outcome
        .answer
        .and_then(|nonce| instances.side_of(&nonce, outcome.begun));
    Sample {
        begun: outcome.begun,
        took: Duration::from_micros(outcome.took),
        answer,
    }
}

/// The nearest-rank percentile of sorted times; zero if there are none.
fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let rank = (sorted.len() * percent).div_ceil(100);
    let index = rank.saturating_sub(1);
    sorted.get(index).copied().unwrap_or_default()
}

/// A summary of some requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// How many began.
    pub requests: u64,
    /// How many of them have no good answer.
    pub failed: u64,
    /// How many were answered by each side.
    pub east: u64,
    /// See `east`.
    pub west: u64,
    /// Times of good answers.
    pub p50: Duration,
    /// See `p50`.
    pub p99: Duration,
    /// See `p50`.
    pub slowest: Duration,
    /// Why the first one failed.
    pub first_failure: Option<String>,
}

impl Window {
    fn side_mut(&mut self, side: Side) -> &mut u64 {
        match side {
            Side::East => &mut self.east,
            Side::West => &mut self.west,
        }
    }

    /// Share of the answers that came from a side, in percent; none without answers.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52 requests")]
    pub fn share(&self, side: Side) -> Option<f64> {
        let answered = self.east + self.west;
        let count = match side {
            Side::East => self.east,
            Side::West => self.west,
        };
        (answered > 0).then(|| 100.0 * count as f64 / answered as f64)
    }
}

/// Milliseconds with microseconds behind the point.
#[must_use]
pub fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instances() -> Instances {
        let mut instances = Instances::default();
        instances.started("e", Side::East);
        instances.started("w", Side::West);
        instances
    }

    fn outcome(begun: u64, took: u64, answer: Result<&str, &str>) -> Outcome {
        Outcome {
            begun: Moment(begun),
            took,
            answer: answer.map(str::to_owned).map_err(str::to_owned),
        }
    }

    fn samples(outcomes: Vec<Outcome>) -> Samples {
        let mut samples = Samples::default();
        let batch = Batch {
            outcomes,
            ..Batch::default()
        };
        samples.add(batch, &instances());
        samples
    }

    #[test]
    fn a_window_holds_what_began_in_it_whenever_it_was_settled() {
        let samples = samples(vec![
            outcome(9, 100, Ok("e")),
            outcome(10, 5_000, Ok("e")),
            outcome(19, 1_000, Ok("w")),
            outcome(20, 7_000, Ok("w")),
        ]);
        let window = samples.window(Moment(10), Moment(20));
        assert_eq!((window.requests, window.failed), (2, 0));
        assert_eq!((window.east, window.west), (1, 1));
        assert_eq!(window.slowest, Duration::from_millis(5));
        assert_eq!(window.share(Side::West), Some(50.0));
        assert_eq!(
            samples.window(Moment(100), Moment(200)).share(Side::East),
            None
        );
    }

    #[test]
    fn failures_count_as_requests_but_not_as_times() {
        let samples = samples(vec![
            outcome(1, 10, Ok("e")),
            outcome(2, 10_000_000, Err("no answer")),
        ]);
        let window = samples.window(Moment(0), Moment(10));
        assert_eq!((window.requests, window.failed, window.east), (2, 1, 1));
        assert_eq!(window.slowest, Duration::from_micros(10));
        assert_eq!(window.first_failure.as_deref(), Some("no answer"));
    }

    #[test]
    fn an_answer_of_an_unknown_or_dead_process_is_a_failure() {
        let mut instances = instances();
        instances.ended("e", Moment(50));
        assert_eq!(instances.side_of("e", Moment(50)), Ok(Side::East));
        assert!(instances.side_of("e", Moment(51)).is_err());
        assert!(instances.side_of("x", Moment(1)).is_err());
        let samples = samples(vec![outcome(1, 1, Ok("x"))]);
        assert_eq!(samples.window(Moment(0), Moment(9)).failed, 1);
    }

    #[test]
    fn percentiles_are_nearest_rank() {
        let times: Vec<_> = (1..=200).map(Duration::from_millis).collect();
        assert_eq!(percentile(&times, 50), Duration::from_millis(100));
        assert_eq!(percentile(&times, 99), Duration::from_millis(198));
        assert_eq!(percentile(&times, 100), Duration::from_millis(200));
        assert_eq!(percentile(&times[..1], 50), Duration::from_millis(1));
        assert_eq!(percentile(&[], 99), Duration::ZERO);
    }
}

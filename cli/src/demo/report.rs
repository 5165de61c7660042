//! What a tour found: the JSON document, and the same in words.

use std::collections::BTreeMap;

use serde::Serialize;

/// The head of the table of steps.
pub const HEADER: &str = "step                                east   west failed     slowest";

/// Threads for each core above which a step may fail for want of time alone; a tour by itself
/// comes to about one.
const OVERLOADED: f64 = 3.0;

/// The whole tour.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Every step held.
    pub ok: bool,
    /// Seed of what was random.
    pub seed: u64,
    /// Seconds from the first process to the end of the last step.
    pub seconds: f64,
    /// Requests of all steps.
    pub requests: u64,
    /// Those without a good answer.
    pub failed: u64,
    /// Median time of good answers.
    pub p50_ms: f64,
    /// 99th percentile of them.
    pub p99_ms: f64,
    /// The steps, in order.
    pub steps: Vec<StepReport>,
    /// All ports, by process and purpose.
    pub ports: BTreeMap<String, u16>,
    /// How many threads wanted each core in the last minute, ours among them.
    pub load_per_core: f64,
    /// Why the tour ended early, if it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// One step.
#[derive(Clone, Debug, Default, Serialize)]
pub struct StepReport {
    /// From 1.
    pub number: usize,
    /// What happens in it.
    pub name: String,
    /// Everything that must hold in it did.
    pub ok: bool,
    /// Requests that began in it.
    pub requests: u64,
    /// Those without a good answer.
    pub failed: u64,
    /// Good answers by cluster.
    pub answered: Answered,
    /// The slowest answer among requests that began from 1 s before the fault to 5 s after
    /// it; of the whole step where there is no fault.
    pub slowest_ms: f64,
    /// Whether the fault was seen to have happened; null where there is none.
    pub fault_observed: Option<bool>,
    /// What was seen, and first what did not hold.
    pub detail: String,
}

/// Good answers by cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Answered {
    /// From east.
    pub east: u64,
    /// From west.
    pub west: u64,
}

impl StepReport {
    /// One line of numbers.
    #[must_use]
    pub fn line(&self) -> String {
        format!(
            "east {}, west {}, failed {}, slowest {:.0} ms",
            self.answered.east, self.answered.west, self.failed, self.slowest_ms
        )
    }

    /// One row of the table under [`HEADER`].
    #[must_use]
    pub fn row(&self) -> String {
        format!(
            "{:<33} {:>6} {:>6} {:>6} {:>8.0} ms",
            self.name, self.answered.east, self.answered.west, self.failed, self.slowest_ms
        )
    }
}

impl Report {
    /// A tour that could not even begin.
    #[must_use]
    pub fn of_nothing(seed: u64, error: &anyhow::Error) -> Self {
        Self {
            seed,
            error: Some(format!("{error:#}")),
            ..Self::default()
        }
    }

    /// The last lines of a tour.
    #[must_use]
    pub fn summary(&self) -> String {
        let mut text = format!(
            "{}: {} requests, {} failed, p50 {:.1} ms, p99 {:.1} ms, in {:.0} s (seed {})",
            if self.ok {
                "every step held"
            } else {
                "NOT every step held"
            },
            self.requests,
            self.failed,
            self.p50_ms,
            self.p99_ms,
            self.seconds,
            self.seed
        );
        if !self.ok && self.load_per_core > OVERLOADED {
            text.push_str(&format!(
                "\nthis machine has other work to do ({:.0} threads for each core): what did not \
                 come in time may come when it has less; try again then",
                self.load_per_core
            ));
        }
        text
    }
}

/// The load of the last minute by core; 0 where the kernel does not tell.
#[must_use]
pub fn load_per_core() -> f64 {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load: f64 = load
        .split_whitespace()
        .next()
        .and_then(|load| load.parse().ok())
        .unwrap_or(0.0);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    #[expect(clippy::cast_precision_loss, reason = "no machine has so many cores")]
    let per_core = load / cores as f64;
    (per_core * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_fits_a_narrow_terminal_below_its_header() {
        let step = StepReport {
            name: "the link is a black hole, returns".into(),
            requests: 12_345,
            answered: Answered {
                east: 12_345,
                west: 12_345,
            },
            slowest_ms: 1234.5,
            ..StepReport::default()
        };
        assert_eq!(step.row().len(), HEADER.len());
        assert!(step.row().len() <= 74, "{}", step.row().len());
        for name in super::super::tour::STEPS {
            assert!(name.len() <= 33, "{name}");
        }
    }

    #[test]
    fn a_failure_on_an_overloaded_machine_says_so() {
        let report = |ok, load_per_core| Report {
            ok,
            load_per_core,
            ..Report::default()
        };
        assert!(
            report(false, 12.0)
                .summary()
                .contains("12 threads for each core")
        );
        assert!(!report(false, 1.0).summary().contains("threads"));
        assert!(!report(true, 12.0).summary().contains("threads"));
    }

    #[test]
    fn the_document_has_the_promised_fields() {
        let report = Report {
            steps: vec![StepReport::default()],
            ..Report::default()
        };
        let json = serde_json::to_value(report).expect("JSON");
        for field in ["requests", "failed", "p50_ms", "p99_ms", "ports", "ok"] {
            assert!(json.get(field).is_some(), "{field}");
        }
        for field in [
            "name",
            "ok",
            "requests",
            "failed",
            "answered",
            "slowest_ms",
            "fault_observed",
            "detail",
        ] {
            assert!(json["steps"][0].get(field).is_some(), "{field}");
        }
        assert!(json["steps"][0]["answered"].get("west").is_some());
    }
}

//! How requests of one client connection spread over six endpoints, one of them slow at the end.

use std::net::SocketAddr;

use anyhow::Result;
use serde::Serialize;

use crate::{
    load::{Load, Pace, Summary},
    output::{Report, progress, table, verdict},
    own,
    place::Place,
    world::World,
};

/// Endpoints.
const ENDPOINTS: u32 = 6;
/// What each of them takes, in milliseconds.
const DELAY_MS: u64 = 2;
/// What the slow one takes.
const SLOW_MS: u64 = 20;
/// Requests in flight on the one connection.
const IN_FLIGHT: usize = 32;
/// Bounds of a share as a multiple of the fair one.
const FAIR: std::ops::RangeInclusive<f64> = 0.5..=1.5;
/// What the slow one's must stay below.
const SLOW_SHARE: f64 = 0.3;

/// Options of `spread`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  linkspan-bench spread
  linkspan-bench spread --seconds 20 -o json")]
pub struct Args {
    /// Seconds of each measurement, after one second that does not count
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
}

/// The result.
#[derive(Debug, Serialize)]
pub struct Spread {
    cases: Vec<Case>,
    holds: bool,
}

#[derive(Debug, Serialize)]
struct Case {
    name: &'static str,
    requests: u64,
    endpoints: Vec<Share>,
    holds: bool,
}

#[derive(Debug, Serialize)]
struct Share {
    endpoint: String,
    /// Share of the answers, as a multiple of the fair one.
    of_fair: f64,
    /// What it must be.
    bound: &'static str,
    holds: bool,
}

/// Measures.
///
/// # Errors
/// When the clusters do not come up or a request fails.
pub async fn run(args: &Args) -> Result<Spread> {
    progress("starting two clusters with six origins");
    let mut world = World::start(&Place::new(), 1, ENDPOINTS, DELAY_MS).await?;
    let mut cases = Vec::new();
    // A caller of its own for each case: none has learned anything from the one before.
    let (near, far) = (world.near().await?, world.far().await?);
    cases.push(case("six local", near, args, None).await?);
    cases.push(case("six behind the tunnel", far, args, None).await?);
    let slow = format!("origin-{ENDPOINTS}");
    world.slow_down(&slow, SLOW_MS).await?;
    let (near, far) = (world.near().await?, world.far().await?);
    cases.push(case("six local, one slow", near, args, Some(&slow)).await?);
    cases.push(case("six behind the tunnel, one slow", far, args, Some(&slow)).await?);
    Ok(Spread {
        holds: cases.iter().all(|case| case.holds),
        cases,
    })
}

async fn case(
    name: &'static str,
    target: SocketAddr,
    args: &Args,
    slow: Option<&str>,
) -> Result<Case> {
    progress(&format!("measuring: {name}"));
    let load = Load {
        target,
        connections: 1,
        pace: Pace::closed(IN_FLIGHT),
        warmup_ms: 1000,
        measure_ms: args.seconds * 1000,
    };
    Ok(judge(name, &own::load(&load, None).await?, slow))
}

fn judge(name: &'static str, found: &Summary, slow: Option<&str>) -> Case {
    #[allow(clippy::cast_precision_loss)]
    let fair = found.requests as f64 / f64::from(ENDPOINTS);
    let share = |number| {
        let endpoint = format!("origin-{number}");
        let answered = found.answered.get(&endpoint).copied().unwrap_or_default();
        #[allow(clippy::cast_precision_loss)]
        let of_fair = answered as f64 / fair;
        let (bound, holds) = match slow {
            None => ("0.5 to 1.5", FAIR.contains(&of_fair)),
            Some(slow) if slow == endpoint => ("below 0.3", of_fair < SLOW_SHARE),
            Some(_) => ("any", true),
        };
        Share {
            endpoint,
            of_fair,
            bound,
            holds,
        }
    };
    let endpoints: Vec<_> = (1..=ENDPOINTS).map(share).collect();
    Case {
        name,
        requests: found.requests,
        holds: endpoints.iter().all(|share| share.holds),
        endpoints,
    }
}

impl Report for Spread {
    fn holds(&self) -> bool {
        self.holds
    }

    fn text(&self) -> String {
        let case = |case: &Case| {
            let row = |share: &Share| {
                [
                    share.endpoint.clone(),
                    format!("{:.2}", share.of_fair),
                    share.bound.to_owned(),
                    verdict(share.holds),
                ]
            };
            let header = ["endpoint", "of fair share", "bound", ""];
            let rows = case.endpoints.iter().map(row).collect();
            format!(
                "{}: {} requests\n{}\n",
                case.name,
                case.requests,
                table(header, rows)
            )
        };
        let cases: String = self.cases.iter().map(case).collect();
        format!("{cases}{}\n", verdict(self.holds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(answers: [u64; 6]) -> Summary {
        Summary {
            requests: answers.iter().sum(),
            answered: (1..).map(|n| format!("origin-{n}")).zip(answers).collect(),
            ..Summary::default()
        }
    }

    #[test]
    fn every_share_must_be_within_its_bounds() {
        assert!(judge("", &found([10, 10, 10, 10, 10, 10]), None).holds);
        assert!(judge("", &found([14, 6, 10, 10, 10, 10]), None).holds);
        assert!(!judge("", &found([16, 4, 10, 10, 10, 10]), None).holds);
        assert!(!judge("", &found([12, 12, 12, 12, 12, 0]), None).holds);
    }

    #[test]
    fn only_the_slow_one_is_judged_beside_a_slow_one() {
        assert!(judge("", &found([18, 6, 12, 12, 12, 2]), Some("origin-6")).holds);
        assert!(!judge("", &found([12, 12, 12, 12, 12, 4]), Some("origin-6")).holds);
    }
}

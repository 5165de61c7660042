//! What a caller sees when the one endpoint, or the one link, that carries all its traffic is
//! lost while an alternative stands by.

mod black_hole;
mod dead_endpoint;

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result};
use linkspan::apps::report::{Moment, Outcome};
use linkspan_tests::clusters::{Cluster, Service, binary};
use serde::Serialize;

use crate::{
    load,
    output::{Report, median, millis, progress, table, verdict},
    own,
    place::Place,
    watch::Watch,
};

use self::{black_hole::BlackHole, dead_endpoint::DeadEndpoint};

/// The service that is called; the demo's sample application.
const CHECKOUT: &str = "checkout";
/// The caller's name.
const CALLER: &str = "caller";
/// How long traffic must be where it should be before the fault, and again after it.
const STEADY: Duration = Duration::from_secs(1);
/// Requests from this long before the fault count: they were in flight.
const BEFORE: Duration = Duration::from_secs(1);
/// How long anything may take that a trial waits for.
const PATIENCE: Duration = Duration::from_secs(60);

/// Options of `failover`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  linkspan-bench failover
  linkspan-bench failover --fault black-hole --trials 50
  linkspan-bench failover -o json")]
pub struct Args {
    /// Trials of each fault
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    trials: u32,
    /// Only this fault
    #[arg(long, value_enum)]
    fault: Option<Fault>,
    /// Requests per second
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rate: u32,
    /// HTTP/2 connections of the caller
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1000))]
    connections: u16,
}

/// What is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
enum Fault {
    /// The only local endpoint, application and sidecar, is killed
    DeadEndpoint,
    /// The link to the preferred cluster swallows everything and closes nothing
    BlackHole,
}

impl Fault {
    fn goal(self) -> Duration {
        match self {
            Self::DeadEndpoint => Duration::from_millis(1000),
            Self::BlackHole => Duration::from_millis(3500),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::DeadEndpoint => "dead endpoint",
            Self::BlackHole => "black hole",
        }
    }
}

/// A world in which one instance gets all traffic and another stands by.
trait Scene {
    /// The cluster of the caller.
    fn home(&mut self) -> &mut Cluster<Place>;
    /// Where the caller's sidecar takes its calls.
    fn outbound(&self) -> SocketAddr;
    /// Strikes, and returns when the fault is there.
    async fn strike(&mut self) -> Result<()>;
    /// Makes sure that the fault had an effect.
    fn observed(&self) -> Result<()>;
    /// Takes the fault away, and returns when all is as before.
    async fn heal(&mut self) -> Result<()>;
}

/// Who gets all traffic before the fault.
const VICTIM: &str = "victim";
/// Who gets it afterwards.
const ALTERNATIVE: &str = "alternative";

/// The result.
#[derive(Debug, Serialize)]
pub struct Failover {
    faults: Vec<Found>,
    holds: bool,
}

#[derive(Debug, Serialize)]
struct Found {
    fault: Fault,
    trials: Vec<Trial>,
    requests: usize,
    failed: usize,
    median_millis: f64,
    max_millis: f64,
    goal_millis: f64,
    holds: bool,
}

/// One loss.
#[derive(Debug, Serialize)]
struct Trial {
    /// Requests from shortly before the fault until traffic had been with the alternative for a
    /// while.
    requests: usize,
    /// Those of the whole trial that got no good answer.
    failed: usize,
    /// Why, and how often.
    reasons: BTreeMap<String, usize>,
    /// The slowest of them.
    slowest_millis: f64,
}

/// Measures.
///
/// # Errors
/// When the clusters do not come up, or a trial cannot be brought to its end.
pub async fn run(args: &Args) -> Result<Failover> {
    let mut faults = Vec::new();
    for fault in [Fault::DeadEndpoint, Fault::BlackHole] {
        if args.fault.is_some_and(|only| only != fault) {
            continue;
        }
        progress(&format!("{}: starting clusters", fault.name()));
        let trials = match fault {
            Fault::DeadEndpoint => trials(args, DeadEndpoint::start().await?).await?,
            Fault::BlackHole => trials(args, BlackHole::start().await?).await?,
        };
        faults.push(Found::new(fault, trials));
    }
    Ok(Failover {
        holds: faults.iter().all(|found| found.holds),
        faults,
    })
}

async fn trials(args: &Args, mut scene: impl Scene) -> Result<Vec<Trial>> {
    let mut trials = Vec::new();
    for number in 1..=args.trials {
        let trial = trial(args, &mut scene).await;
        let trial = trial.map_err(|error| error.context(scene.home().logs()))?;
        progress(&format!(
            "trial {number} of {}: slowest answer {:.0} ms; {} requests, {} failed",
            args.trials, trial.slowest_millis, trial.requests, trial.failed
        ));
        for (why, count) in &trial.reasons {
            progress(&format!("  {count} failed: {}", why.trim()));
        }
        trials.push(trial);
    }
    Ok(trials)
}

async fn trial(args: &Args, scene: &mut impl Scene) -> Result<Trial> {
    // A caller that remembers no loss: trials do not depend on each other.
    let sidecar = format!("{CALLER}-sidecar");
    scene.home().kill(&sidecar)?;
    scene.home().restart(&sidecar, None)?;
    load::first_answer(scene.outbound(), PATIENCE).await?;
    let mut watch = Watch::start(scene.outbound(), args.rate, args.connections)?;
    let all_from = watch.all_from(VICTIM, Moment::now(), STEADY, PATIENCE);
    all_from.await.context("before the fault")?;

    let struck = Moment::now();
    scene.strike().await?;
    let all_from = watch.all_from(ALTERNATIVE, struck, STEADY, PATIENCE);
    all_from.await.context("after the fault")?;
    scene.observed()?;
    let outcomes = watch.finish().await?;
    scene.heal().await.context("healing")?;
    Ok(Trial::new(&outcomes, struck))
}

impl Trial {
    fn new(outcomes: &[Outcome], struck: Moment) -> Self {
        let since = struck.minus(BEFORE);
        let counted = || outcomes.iter().filter(|outcome| outcome.begun >= since);
        let slowest = counted().map(|outcome| outcome.took).max();
        let mut reasons = BTreeMap::<_, usize>::new();
        for why in outcomes
            .iter()
            .filter_map(|outcome| outcome.answer.as_ref().err())
        {
            *reasons.entry(why.clone()).or_default() += 1;
        }
        Self {
            requests: counted().count(),
            failed: reasons.values().sum(),
            reasons,
            slowest_millis: millis(Duration::from_micros(slowest.unwrap_or_default())),
        }
    }
}

impl Found {
    fn new(fault: Fault, trials: Vec<Trial>) -> Self {
        let slowest = || trials.iter().map(|trial| trial.slowest_millis);
        let (goal, max) = (millis(fault.goal()), slowest().fold(0.0, f64::max));
        let failed = trials.iter().map(|trial| trial.failed).sum();
        Self {
            fault,
            requests: trials.iter().map(|trial| trial.requests).sum(),
            failed,
            median_millis: median(slowest()),
            max_millis: max,
            goal_millis: goal,
            holds: max <= goal && failed == 0,
            trials,
        }
    }
}

impl Report for Failover {
    fn holds(&self) -> bool {
        self.holds
    }

    fn text(&self) -> String {
        let row = |found: &Found| {
            [
                found.fault.name().to_owned(),
                found.trials.len().to_string(),
                format!("{:.0} ms", found.median_millis),
                format!("{:.0} ms", found.max_millis),
                format!("≤ {:.0} ms", found.goal_millis),
                found.requests.to_string(),
                found.failed.to_string(),
                verdict(found.holds),
            ]
        };
        let header = [
            "fault", "trials", "median", "maximum", "goal", "requests", "failed", "",
        ];
        let rows = self.faults.iter().map(row).collect();
        format!("slowest answer of a trial\n{}", table(header, rows))
    }
}

/// The exported service.
fn checkout() -> Service {
    Service {
        name: CHECKOUT,
        app_protocol: "http",
        exported: true,
    }
}

/// Starts an endpoint whose answers carry its name.
async fn endpoint(cluster: &mut Cluster<Place>, name: &str) -> Result<()> {
    let arguments = [
        "app",
        "checkout",
        "--listen",
        "{listen}",
        "--cluster",
        "bench",
    ];
    let arguments = arguments
        .into_iter()
        .chain(["--name", name, "--instance", name]);
    let arguments: Vec<_> = own::tie()
        .into_iter()
        .chain(arguments.map(str::to_owned))
        .collect();
    cluster
        .endpoint(CHECKOUT, name, &binary()?, &arguments)
        .await
        .map(drop)
}

/// Starts the caller's sidecar.
async fn caller(cluster: &mut Cluster<Place>) -> Result<SocketAddr> {
    Ok(cluster.caller(CALLER, &[CHECKOUT]).await?[CHECKOUT])
}

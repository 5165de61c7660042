//! `linkspan demo`: two clusters on this machine, real traffic, failures, recoveries.
//!
//! ```text
//! supervisor ─┬─ reaper                    cleans up, whatever happens to the supervisor
//!             ├─ wire (a thread)           carries, or swallows, the gateways' datagrams
//!             ├─ federation, 2 gateways    for each of east and west
//!             └─ apps and their sidecars   frontend (in east: the load), 3 checkout, 2 echoes
//! ```
//!
//! [`topology`] says who is where, [`world`] runs it, [`tour`] breaks and checks it,
//! [`samples`] counts, [`board`] shows, [`report`] is what is found.

pub mod board;
pub mod nursery;
pub mod ports;
pub mod reaper;
pub mod report;
pub mod samples;
pub mod supervisor;
pub mod topology;
pub mod tour;
pub mod wire;
pub mod world;

use std::{cell::RefCell, future::pending, time::Duration};

use anyhow::{Context as _, anyhow};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

use self::{
    board::Board,
    report::Report,
    samples::{Side, millis},
    supervisor::Ended,
    topology::{Cluster, NAMESPACE},
    tour::{Step, Tour},
    world::{View, World},
};
use crate::{apps::report::Moment, exit::Failure, output::Format};

/// How long the load may take to settle when it is told to end.
const LAST_ANSWERS: Duration = Duration::from_secs(15);
/// Between the end of a process that somebody killed and its next start.
const REVIVAL: Duration = Duration::from_secs(3);
/// Log lines shown of each process when a step did not hold.
const LOG_TAIL: usize = 12;

/// What the command line asks for.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Leave everything running after the tour.
    pub keep: bool,
    /// Text or JSON.
    pub output: Format,
    /// Seed of what is random.
    pub seed: u64,
}

/// Runs the tour.
///
/// # Errors
/// If a step did not hold, or the clusters did not come up.
pub fn run(options: &Options) -> Result<(), Failure> {
    // One thread: children must be started from one that lives as long as the supervisor.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(supervise(options))
}

async fn supervise(options: &Options) -> Result<(), Failure> {
    let mut interrupt = Interrupt::new()?;
    let board = Board::new(options.output);
    let (mut world, mut ends) = match World::start(options.seed).await {
        Ok(started) => started,
        Err(error) => {
            let report = Report::of_nothing(options.seed, &error);
            publish(options, &board, &report)?;
            return Err(Failure::Reported);
        }
    };
    let view = world.view();
    let steps = RefCell::default();
    let outcome = tokio::select! {
        // A part that died says more than what failed because of it.
        biased;
        ended = ends.recv() => Err(died(ended)),
        outcome = show(options, &mut world, &board, &steps) => outcome,
        () = interrupt.next() => Err(Failure::Interrupted),
        () = board.draw(&view) => pending().await,
    };
    let outcome = match outcome {
        Err(Failure::Interrupted) => {
            board.lasting("\nstopping; nothing is left behind\n");
            Err(Failure::Interrupted)
        }
        outcome => {
            let report = report(options, &world, &board, &steps.borrow(), outcome.err());
            board.doing("the tour is over");
            board.redraw(&view);
            publish(options, &board, &report)?;
            if !report.ok {
                print_logs(&world);
            }
            // Who asked to keep it running wants to look at what did not hold, too.
            let stayed = if options.keep && !steps.borrow().is_empty() {
                stay(&mut world, &board, &view, &mut ends, &mut interrupt).await
            } else {
                Ok(())
            };
            stayed.and(if report.ok {
                Ok(())
            } else {
                Err(Failure::Reported)
            })
        }
    };
    world.supervisor.stop().await?;
    outcome
}

/// Brings the world up and tours it; `steps` has what was done, however it ends.
async fn show(
    options: &Options,
    world: &mut World,
    board: &Board,
    steps: &RefCell<Vec<Step>>,
) -> Result<(), Failure> {
    world.bring_up(&|what| board.doing(what)).await?;
    let toured = Tour::new(world, board, options.seed, steps).run().await;
    if !options.keep {
        board.doing("waiting for the last answers");
        world.finish_load(LAST_ANSWERS).await?;
    }
    Ok(toured?)
}

/// What was found, also where the tour did not come to its end.
fn report(
    options: &Options,
    world: &World,
    board: &Board,
    steps: &[Step],
    early_end: Option<Failure>,
) -> Report {
    let view = world.view();
    let total = view.window(Moment(0), Moment(u64::MAX));
    let steps: Vec<_> = steps.iter().map(|step| step.report(&view)).collect();
    Report {
        ok: early_end.is_none()
            && steps.len() == tour::STEPS.len()
            && steps.iter().all(|step| step.ok)
            && total.failed == 0,
        seed: options.seed,
        seconds: (board.elapsed().as_secs_f64() * 10.0).round() / 10.0,
        requests: total.requests,
        failed: total.failed,
        p50_ms: millis(total.p50),
        p99_ms: millis(total.p99),
        steps,
        ports: world.clusters.iter().flat_map(Cluster::ports).collect(),
        load_per_core: report::load_per_core(),
        error: early_end.map(|failure| failure.to_string()),
    }
}

fn publish(options: &Options, board: &Board, report: &Report) -> Result<(), Failure> {
    let mut text = String::from("\n");
    for step in report.steps.iter().filter(|step| !step.ok) {
        text.push_str(&format!(
            "step {} ({}): {}\n",
            step.number, step.name, step.detail
        ));
    }
    if let Some(error) = &report.error {
        text.push_str(&format!("the tour ended early: {error}\n"));
    }
    text.push_str(&format!("{}\n", report.summary()));
    board.lasting(&text);
    match options.output {
        Format::Json => options.output.print(report, |_| String::new()),
        Format::Text => Ok(()),
    }
}

/// Leaves everything running until somebody wants an end. Who looks around will kill something to
/// see what happens: that is reported, and it is started again.
async fn stay(
    world: &mut World,
    board: &Board,
    view: &View,
    ends: &mut mpsc::Receiver<Ended>,
    interrupt: &mut Interrupt,
) -> Result<(), Failure> {
    board.lasting(&try_these(world));
    board.be_brief();
    loop {
        board.doing("everything runs until Ctrl-C");
        let ended = tokio::select! {
            ended = ends.recv() => ended,
            () = interrupt.next() => {
                board.lasting("\nstopping; nothing is left behind\n");
                return Ok(());
            }
            () = board.draw(view) => pending().await,
        };
        let Some(Ended { name, status }) = ended else {
            return Err(died(None));
        };
        let then = match revive(world, &name, interrupt).await? {
            Revived::Runs => "it runs again",
            Revived::Not => "its load ends with it",
            Revived::Unwanted => return Ok(()),
        };
        board.lasting(&format!("{name} ended ({status}); {then}\n"));
    }
}

/// What became of a process that ended.
enum Revived {
    Runs,
    Not,
    /// Somebody wants an end.
    Unwanted,
}

async fn revive(
    world: &mut World,
    name: &str,
    interrupt: &mut Interrupt,
) -> Result<Revived, Failure> {
    // Long enough to see it gone; and what ends at once does not keep the machine busy.
    tokio::select! {
        () = tokio::time::sleep(REVIVAL) => {}
        () = interrupt.next() => return Ok(Revived::Unwanted),
    }
    Ok(match world.supervisor.revive(name)? {
        true => Revived::Runs,
        false => Revived::Not,
    })
}

/// Commands that work as printed, in a terminal that need not be wide.
fn try_these(world: &World) -> String {
    let program = std::env::current_exe().unwrap_or_else(|_| "linkspan".into());
    let program = shell(&program.to_string_lossy());
    let socket = |side| shell(&world.cluster(side).socket().to_string_lossy());
    let mut text = format!(
        "\nEverything keeps running. Try, in another terminal:\n\n  \
         export LINKSPAN_SOCKET={}\n",
        socket(Side::East),
    );
    let checkout = format!("{NAMESPACE}/checkout");
    for verb in [
        "status".to_owned(),
        format!("status --socket {}", socket(Side::West)),
        "services".to_owned(),
        format!("explain {checkout}"),
        format!("explain {checkout} --without-cluster east"),
        "failover drain east".to_owned(),
        "failover drain east --undo".to_owned(),
    ] {
        text.push_str(&format!("  {program} {verb}\n"));
    }
    let mut frontends = world.cluster(Side::East).running("frontend");
    if let Some(address) = frontends.next().and_then(|f| f.outbound("checkout")) {
        text.push_str(&format!("  curl -s http://{address}/order\n"));
        text.push_str(&format!(
            "  curl -s --http2-prior-knowledge -X PUT -d hello http://{address}/order\n"
        ));
    }
    text.push_str("\nKill what you like: it is started again. Ctrl-C ends it all and leaves nothing behind.\n");
    text
}

/// A word as a shell takes it for one.
fn shell(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:@,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

fn died(ended: Option<Ended>) -> Failure {
    let error = match ended {
        Some(Ended { name, status }) => anyhow!("{name} ended by itself: {status}"),
        None => anyhow!("the processes are no longer watched"),
    };
    Failure::Failed(error)
}

/// The last words of every process that has any, on standard error.
fn print_logs(world: &World) {
    for name in world.supervisor.names() {
        let tail = world.supervisor.log_tail(name, LOG_TAIL);
        if !tail.is_empty() {
            eprintln!("--- {name}");
            for line in tail {
                eprintln!("{line}");
            }
        }
    }
}

/// Ctrl-C, SIGTERM, or the terminal is closed.
struct Interrupt {
    signals: [tokio::signal::unix::Signal; 3],
}

impl Interrupt {
    fn new() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen to signals");
        Ok(Self {
            signals: [
                listen(SignalKind::interrupt())?,
                listen(SignalKind::terminate())?,
                listen(SignalKind::hangup())?,
            ],
        })
    }

    async fn next(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.signals;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_work_as_printed_wherever_things_lie() {
        assert_eq!(
            shell("/tmp/linkspan-demo-1/east"),
            "/tmp/linkspan-demo-1/east"
        );
        assert_eq!(shell("/my files/it's"), r"'/my files/it'\''s'");
        assert_eq!(shell(""), "''");
    }
}

//! The seven steps: what is broken in each, and what must hold meanwhile.
//!
//! A step waits for what it wants to see, never for a time alone, and every wait has a limit.
//! A wait that fails ends the tour (the rest would prove nothing); a check that fails marks
//! its step and the tour goes on.

use std::{cell::RefCell, time::Duration};

use anyhow::{Context as _, bail};
use tokio::time::sleep;

use super::{
    board::Board,
    report::{Answered, StepReport},
    samples::{Side, Window, millis},
    topology::{Gateway, Workload},
    world::{Load, View, World, is_whole, until},
};
use crate::apps::report::Moment;

/// What east's frontend calls: the load.
const LOAD: Load = Load {
    rate: 200,
    connections: 8,
};
/// West's frontend calls a little, and must never notice anything.
const NEIGHBOUR: Load = Load {
    rate: 10,
    connections: 1,
};
/// The slowest answer is looked for from so long before the fault …
const BEFORE_FAULT: Duration = Duration::from_secs(1);
/// … to so long after it. No step ends sooner.
const AFTER_FAULT: Duration = Duration::from_secs(5);
/// How long the first step watches.
const HEALTHY: Duration = Duration::from_secs(3);
/// How long the link is a black hole.
const BLACK_HOLE: Duration = Duration::from_secs(6);
/// How long a killed gateway or federation stays away.
const AWAY: Duration = Duration::from_millis(2500);
/// Shares are judged over this.
const STEADY: Duration = Duration::from_secs(2);
/// Limit of a wait for the mesh to notice and adapt, on a machine that has other work, too.
const ADAPT: Duration = Duration::from_secs(30);
/// Limit of a wait for something to come back, with back-off, likewise.
const RETURN: Duration = Duration::from_secs(60);
/// Limit for requests in flight at the end of a step.
const SETTLE: Duration = Duration::from_secs(12);
/// What a gateway must send per second to count as one that traffic flows through: several
/// times what keeping its connections alive takes. Bytes, not datagrams: a busy machine packs
/// many answers into one.
const BUSY_BYTES: u64 = 8 << 10;
/// What a gateway sends at least when it is back and has tunnels.
const FIRST_DATAGRAMS: u64 = 10;
/// About half, in percent.
const HALF: std::ops::RangeInclusive<f64> = 35.0..=65.0;

/// Names of the steps.
pub const STEPS: [&str; 7] = [
    "all healthy",
    "two of three endpoints die",
    "a gateway of west dies, returns",
    "the link is a black hole, returns",
    "all local endpoints die",
    "they return",
    "east's federation dies, returns",
];

/// What is known of a step while it runs.
#[derive(Clone, Debug)]
pub struct Step {
    number: usize,
    begun: Moment,
    ended: Moment,
    fault: Option<Moment>,
    observed: Option<bool>,
    seen: Vec<String>,
    broken: Vec<String>,
}

impl Step {
    fn begin(number: usize, at: Moment) -> Self {
        Self {
            number,
            begun: at,
            ended: at,
            fault: None,
            observed: None,
            seen: Vec::new(),
            broken: Vec::new(),
        }
    }

    fn see(&mut self, what: impl Into<String>) {
        self.seen.push(what.into());
    }

    fn check(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.broken.push(what());
        }
    }

    /// The fault is about to happen; it counts once it is observed.
    fn fault(&mut self) -> Moment {
        let now = Moment::now();
        self.fault = Some(now);
        self.observed = Some(false);
        now
    }

    fn observed(&mut self, what: impl Into<String>) {
        self.observed = Some(true);
        self.see(what);
    }

    /// What became of it; exact once every request that began in it is settled.
    #[must_use]
    pub fn report(&self, view: &View) -> StepReport {
        let window = view.window(self.begun, self.ended);
        let around = match self.fault {
            Some(at) => view.window(at.minus(BEFORE_FAULT), at.plus(AFTER_FAULT)),
            None => window.clone(),
        };
        let mut broken = self.broken.clone();
        if self.observed == Some(false) {
            broken.push("the fault was not observed".to_owned());
        }
        if let Some(why) = &window.first_failure {
            broken.push(format!("{} requests failed, first: {why}", window.failed));
        }
        let neighbour = view.neighbour(self.begun, self.ended);
        if neighbour.failed > 0 || neighbour.east > 0 {
            broken.push(format!(
                "west's own frontend noticed: {} answers from east, {} failed{}",
                neighbour.east,
                neighbour.failed,
                neighbour
                    .first_failure
                    .map(|why| format!(", first: {why}"))
                    .unwrap_or_default()
            ));
        }
        if window.requests == 0 {
            broken.push("no request began".to_owned());
        }
        let not = broken.iter().map(|what| format!("NOT: {what}"));
        let detail: Vec<_> = not.chain(self.seen.iter().cloned()).collect();
        StepReport {
            number: self.number,
            name: STEPS[self.number - 1].to_owned(),
            ok: broken.is_empty(),
            requests: window.requests,
            failed: window.failed,
            answered: Answered {
                east: window.east,
                west: window.west,
            },
            slowest_ms: millis(around.slowest),
            fault_observed: self.observed,
            detail: detail.join("; "),
        }
    }
}

/// The tour through a running world.
pub struct Tour<'a> {
    world: &'a mut World,
    board: &'a Board,
    view: View,
    seed: u64,
    /// Outlives the tour, so that what was done is known however it ends.
    steps: &'a RefCell<Vec<Step>>,
}

impl<'a> Tour<'a> {
    /// Ready to begin; `steps` is told of each that is over.
    pub fn new(
        world: &'a mut World,
        board: &'a Board,
        seed: u64,
        steps: &'a RefCell<Vec<Step>>,
    ) -> Self {
        let view = world.view();
        Self {
            world,
            board,
            view,
            seed,
            steps,
        }
    }

    /// All steps, in order.
    ///
    /// # Errors
    /// If a wait came to its limit; the step is marked.
    pub async fn run(&mut self) -> anyhow::Result<()> {
        // The first step has every request since the beginning.
        let mut begin = Moment(0);
        for number in 1..=STEPS.len() {
            self.board.begin(number);
            let mut step = Step::begin(number, begin);
            let outcome = self.act(&mut step).await;
            step.ended = Moment::now();
            begin = step.ended;
            let settled = self.settled(step.ended).await;
            let outcome = outcome.and(settled);
            if let Err(error) = &outcome {
                step.broken.push(format!("{error:#}"));
            }
            self.board.end(&step.report(&self.view));
            self.steps.borrow_mut().push(step);
            outcome.with_context(|| format!("step {number} ({})", STEPS[number - 1]))?;
        }
        Ok(())
    }

    async fn act(&mut self, step: &mut Step) -> anyhow::Result<()> {
        match step.number {
            1 => self.all_healthy(step).await,
            2 => self.two_endpoints_die(step).await,
            3 => self.a_gateway_dies(step).await,
            4 => self.the_link_is_a_black_hole(step).await,
            5 => self.all_endpoints_die(step).await,
            6 => self.they_return(step).await,
            7 => self.federation_restarts(step).await,
            other => bail!("there is no step {other}"),
        }
    }

    async fn settled(&self, before: Moment) -> anyhow::Result<()> {
        until("every request settled", SETTLE, || {
            (self.view.settled_before() >= before).then_some(())
        })
        .await
    }

    /// Waits until so long after a moment.
    async fn hold(&self, since: Moment, span: Duration) {
        sleep(since.plus(span).since(Moment::now())).await;
    }

    /// The requests from one moment to now, all settled.
    async fn since(&self, from: Moment) -> anyhow::Result<Window> {
        let now = Moment::now();
        self.settled(now).await?;
        Ok(self.view.window(from, now))
    }

    async fn all_healthy(&mut self, step: &mut Step) -> anyhow::Result<()> {
        self.world.start_load(Side::East, LOAD)?;
        self.world.start_load(Side::West, NEIGHBOUR)?;
        self.board.doing("watching where answers come from");
        let view = self.view.clone();
        let answered = || (view.recent(STEADY).east > 0).then_some(());
        until("answers from east", ADAPT, answered).await?;
        self.hold(Moment::now(), HEALTHY).await;
        let all = self.since(Moment(0)).await?;
        step.check(all.west == 0, || format!("{} answers from west", all.west));
        self.echoes(step, Side::East).await;
        Ok(())
    }

    async fn two_endpoints_die(&mut self, step: &mut Step) -> anyhow::Result<()> {
        let victims = self.victims();
        self.board.doing("killing two of east's endpoints");
        let fault = step.fault();
        for victim in &victims {
            self.world.kill_workload(victim).await?;
        }
        let names: Vec<_> = victims.iter().map(|victim| victim.name.as_str()).collect();
        step.observed(format!("{} are gone", names.join(" and ")));
        self.half_from_west(step, fault).await
    }

    /// Waits until about half comes from west, and checks that it stays so.
    async fn half_from_west(&mut self, step: &mut Step, fault: Moment) -> anyhow::Result<()> {
        self.board.doing("waiting until about half comes from west");
        let view = self.view.clone();
        let half = || {
            let share = view.recent(STEADY).share(Side::West)?;
            HALF.contains(&share).then_some(())
        };
        until("about half of the answers from west", ADAPT, half).await?;
        step.see(format!("half from west after {}", ago(fault)));
        self.hold(fault, AFTER_FAULT).await;
        let steady = self.since(Moment::now().minus(STEADY)).await?;
        let share = steady.share(Side::West).unwrap_or_default();
        step.see(format!("then {share:.0} %"));
        step.check(HALF.contains(&share), || {
            format!("{share:.0} % from west is not about half")
        });
        Ok(())
    }

    async fn a_gateway_dies(&mut self, step: &mut Step) -> anyhow::Result<()> {
        self.board
            .doing("finding the gateway of west that carries most");
        let (victim, sent) = self.busiest_gateway().await?;
        step.see(format!(
            "{} sent {} KiB in a second",
            victim.replica,
            sent / 1024
        ));
        self.board.doing(&format!("killing {}", victim.process));
        let fault = step.fault();
        self.world.supervisor.kill(&victim.process).await?;
        step.observed(format!("{} is gone", victim.replica));
        self.hold(fault, AWAY).await;
        self.board.doing(&format!("restarting {}", victim.process));
        let again = Moment::now();
        self.world.start_gateway(Side::West, &victim)?;
        let view = self.view.clone();
        // Federation keeps what it was told for a lease; the wire tells old from new.
        let wire = &self.world.wire;
        let before = wire.sent(&victim.process).datagrams;
        until("the gateway back with its tunnels", RETURN, || {
            if wire.sent(&victim.process).datagrams < before + FIRST_DATAGRAMS {
                return None;
            }
            let status = view.status(Side::West)?;
            let mut gateways = status.gateways.iter();
            let gateway = gateways.find(|gateway| gateway.replica == victim.replica)?;
            let up = gateway.up.iter().any(|peer| peer == Side::East.name());
            (gateway.ready && up).then_some(())
        })
        .await?;
        step.see(format!("back after {}", ago(again)));
        self.half_from_west(step, fault).await
    }

    /// The gateway of west that sent most in one second.
    async fn busiest_gateway(&self) -> anyhow::Result<(Gateway, u64)> {
        let gateways = self.world.cluster(Side::West).gateways.clone();
        let sent = |gateway: &Gateway| self.world.wire.sent(&gateway.process).bytes;
        for _ in 0..ADAPT.as_secs() {
            let before: Vec<_> = gateways.iter().map(sent).collect();
            sleep(Duration::from_secs(1)).await;
            let now = gateways.iter().zip(before);
            let rates = now.map(|(gateway, before)| (gateway, sent(gateway) - before));
            if let Some((gateway, rate)) = rates.max_by_key(|(_, rate)| *rate)
                && rate >= BUSY_BYTES
            {
                return Ok((gateway.clone(), rate));
            }
        }
        bail!("no gateway of west carries traffic")
    }

    async fn the_link_is_a_black_hole(&mut self, step: &mut Step) -> anyhow::Result<()> {
        self.board
            .doing("swallowing all bytes between the gateways");
        let before = self.world.wire.swallowed();
        let fault = step.fault();
        self.world.wire.swallow(true);
        let view = self.view.clone();
        let wire = &self.world.wire;
        let some = || (wire.swallowed().bytes > before.bytes).then_some(());
        until("swallowed bytes", ADAPT, some).await?;
        step.observed("bytes vanish");
        let unusable = || (!view.link(Side::East)?.usable).then_some(());
        until("east calling the link unusable", ADAPT, unusable).await?;
        step.see(format!("unusable after {}", ago(fault)));
        let dark = Moment::now();
        self.hold(fault, BLACK_HOLE).await;
        let alone = self.since(dark).await?;
        step.check(alone.west == 0 && alone.east > 0, || {
            format!("{} answers from west meanwhile", alone.west)
        });
        let swallowed = self.world.wire.swallowed().bytes - before.bytes;
        self.world.wire.swallow(false);
        step.see(format!("{} KiB swallowed", swallowed / 1024));
        self.the_link_returns(step).await
    }

    async fn the_link_returns(&mut self, step: &mut Step) -> anyhow::Result<()> {
        let back = Moment::now();
        self.board.doing("waiting for the link");
        let view = self.view.clone();
        let usable = || {
            let mut links = Side::BOTH.iter().map(|side| view.link(*side));
            let usable = links.all(|link| link.is_some_and(|link| link.usable));
            usable.then_some(())
        };
        until("both sides calling the link usable", RETURN, usable).await?;
        step.see(format!("usable {} after its return", ago(back)));
        let half = || {
            let share = view.recent(Duration::from_secs(1)).share(Side::West)?;
            HALF.contains(&share).then_some(())
        };
        until("half from west again", RETURN, half).await?;
        step.see(format!("half from west again after {}", ago(back)));
        Ok(())
    }

    async fn all_endpoints_die(&mut self, step: &mut Step) -> anyhow::Result<()> {
        self.board.doing("killing east's last endpoints");
        let victims = self.in_east(|world, workload| {
            workload.app != "frontend" && world.supervisor.is_running(&workload.app_process())
        });
        let fault = step.fault();
        for victim in &victims {
            self.world.kill_workload(victim).await?;
        }
        step.observed(format!("{} endpoints are gone", victims.len()));
        let view = self.view.clone();
        let all =
            || (view.recent(Duration::from_millis(500)).share(Side::West)? >= 100.0).then_some(());
        until("all answers from west", ADAPT, all).await?;
        step.see(format!("all from west after {}", ago(fault)));
        let alone = Moment::now();
        self.echoes(step, Side::West).await;
        self.hold(fault, AFTER_FAULT).await;
        let rest = self.since(alone).await?;
        step.check(rest.east == 0 && rest.west > 0, || {
            format!("{} answers from east", rest.east)
        });
        Ok(())
    }

    async fn they_return(&mut self, step: &mut Step) -> anyhow::Result<()> {
        self.board.doing("restarting east's endpoints");
        let gone = self.in_east(|world, workload| {
            workload.app != "frontend" && !world.supervisor.is_running(&workload.app_process())
        });
        for workload in &gone {
            self.world.start_workload(workload)?;
        }
        let view = self.view.clone();
        let ready = || is_whole(&view, Side::East).then_some(());
        until("all of east's endpoints ready", RETURN, ready).await?;
        let back = Moment::now();
        self.board.doing("watching traffic come home");
        let home =
            || (view.recent(Duration::from_secs(1)).share(Side::East)? >= 100.0).then_some(());
        until("traffic at home again", RETURN, home).await?;
        step.see(format!("home {} after they were ready", ago(back)));
        let first = view.window(back, back.plus(Duration::from_secs(1)));
        let early = first.share(Side::East).unwrap_or(100.0);
        step.see(format!("damped: {early:.0} % in the first second"));
        step.check(early < 50.0, || "it came home at once".to_owned());
        self.echoes_come_home(step).await
    }

    async fn federation_restarts(&mut self, step: &mut Step) -> anyhow::Result<()> {
        self.board.doing("killing east's federation");
        let name = self.world.cluster(Side::East).federation_process();
        let fault = step.fault();
        self.world.supervisor.kill(&name).await?;
        step.observed("it is gone");
        self.hold(fault, AWAY).await;
        self.board.doing("restarting east's federation");
        let again = Moment::now();
        self.world.start_federation(Side::East)?;
        let view = self.view.clone();
        // What was known before is forgotten here, so that only a fresh answer counts.
        until("an answer of the new federation", RETURN, || {
            let status = view.status(Side::East)?;
            (status.uptime_seconds <= Moment::now().since(again).as_secs() + 1).then_some(())
        })
        .await?;
        let whole = || is_whole(&view, Side::East).then_some(());
        until("east whole again", RETURN, whole).await?;
        step.see(format!("whole again after {}", ago(again)));
        self.hold(fault, AFTER_FAULT).await;
        // The very end of step 6's ramp may still send one or the other request to west.
        let all = self.since(fault).await?;
        let share = all.share(Side::East).unwrap_or_default();
        step.check(share >= 99.0, || format!("{} answers from west", all.west));
        self.echoes(step, Side::East).await;
        Ok(())
    }

    /// Calls the echoes once each; both must answer, from `expected`.
    async fn echoes(&self, step: &mut Step, expected: Side) {
        match self.world.call_echoes().await {
            Ok(sides) => {
                step.see(format!("gRPC and TCP echoed by {}", expected.name()));
                step.check(sides == [expected; 2], || {
                    format!("the echoes came from {sides:?}")
                });
            }
            Err(error) => step.broken.push(format!("{error:#}")),
        }
    }

    /// The echoes are services of their own and come home in their own time; but every call
    /// of them must be answered meanwhile.
    async fn echoes_come_home(&self, step: &mut Step) -> anyhow::Result<()> {
        let deadline = Moment::now().plus(ADAPT);
        loop {
            let sides = self.world.call_echoes().await?;
            if sides == [Side::East; 2] {
                step.see("the echoes, too");
                return Ok(());
            }
            if Moment::now() > deadline {
                bail!("the echoes still come from {sides:?}");
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    fn in_east(&self, which: impl Fn(&World, &Workload) -> bool) -> Vec<Workload> {
        let workloads = self.world.cluster(Side::East).workloads.iter();
        workloads
            .filter(|workload| which(self.world, workload))
            .cloned()
            .collect()
    }

    /// All `checkout` endpoints of east but one, which the seed spares.
    fn victims(&self) -> Vec<Workload> {
        let mut all = self.in_east(|_, workload| workload.app == "checkout");
        let count = u64::try_from(all.len()).unwrap_or(1).max(1);
        all.remove(usize::try_from(self.seed % count).unwrap_or_default());
        all
    }
}

fn ago(since: Moment) -> String {
    format!("{:.1} s", Moment::now().since(since).as_secs_f64())
}

//! Pods that call a service of another cluster, through their sidecars.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader},
    process::{Child, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use super::{Cluster, EXPORT, Steps, TIMEOUT, app, captured::captured};

/// Requests a second: what a small machine bears beside two clusters.
const RATE: u32 = 50;
/// Requests that tell who answers: two seconds of them.
const GLANCE: usize = 100;
/// For a change to have reached every sidecar, on a busy machine.
pub(super) const PATIENCE: Duration = Duration::from_secs(120);

/// What `linkspan app frontend` says of each request.
#[derive(Deserialize)]
struct Batch {
    outcomes: Vec<Outcome>,
}

#[derive(Deserialize)]
struct Outcome {
    answer: Result<String, String>,
}

/// Who answered how often, and what failed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Answers {
    by: BTreeMap<String, usize>,
    failed: Vec<String>,
}

impl Answers {
    fn add(&mut self, report: &str) -> Result<()> {
        let batch: Batch = serde_json::from_str(report).with_context(|| report.to_owned())?;
        for outcome in batch.outcomes {
            match outcome.answer {
                Ok(by) => *self.by.entry(by).or_default() += 1,
                Err(why) => self.failed.push(why),
            }
        }
        Ok(())
    }

    fn count(&self) -> usize {
        self.by.values().sum::<usize>() + self.failed.len()
    }

    /// That every request was answered, and by whom.
    pub(super) fn all_by(&self) -> Result<Vec<&str>> {
        ensure!(
            self.failed.is_empty(),
            "{} failed: {:?}",
            self.failed.len(),
            self.failed.first()
        );
        ensure!(!self.by.is_empty(), "nothing was asked");
        Ok(self.by.keys().map(String::as_str).collect())
    }
}

/// A server that says of which cluster it is.
pub(super) fn server(name: &str, cluster: &str) -> String {
    let arguments = format!(
        "checkout, --listen, '0.0.0.0:8080', --cluster, {cluster}, --name, checkout, \
         --instance, {cluster}"
    );
    app(name, "", &arguments)
}

/// Who calls it; its own server only keeps the pod alive.
fn frontend() -> String {
    let arguments = "checkout, --listen, '127.0.0.1:8080', --cluster, none, --name, frontend, \
                     --instance, none";
    app(
        "frontend",
        "linkspan.io/outbound: '7001=shop/checkout:80'",
        arguments,
    )
}

impl Cluster<'_> {
    /// Runs a workload with a sidecar, as a user would.
    fn run_meshed(&self, manifest: &str, name: &str) -> Result<()> {
        self.apply_injected(manifest)?;
        self.kubectl(&format!(
            "rollout status -n shop deployment/{name} {TIMEOUT}"
        ))
        .map(drop)
    }

    /// Has a workload call until the load is ended; both ends check each answer.
    pub(super) fn load_of(&self, namespace: &str, caller: &str, arguments: &str) -> Result<Load> {
        let line = format!(
            "kubectl --context {} -n {namespace} exec -i deployment/{caller} -c app -- linkspan app \
                 frontend --rate {RATE} --connections 2 {arguments}",
            self.name
        );
        let mut command = self.shell.command(&line);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        Load::of(command.spawn().context("starting kubectl")?)
    }

    /// Has the frontend call `checkout`; the caller's identity is checked, too.
    fn load(&self) -> Result<Load> {
        let identity = format!(
            "spiffe://{}.demo.linkspan.internal/ns/shop/sa/frontend",
            self.name
        );
        self.load_of(
            "shop",
            "frontend",
            &format!("--target 127.0.0.1:7001 --identity {identity}"),
        )
    }

    /// Who answers now.
    fn glance(&self) -> Result<Answers> {
        let mut load = self.load()?;
        load.more()?;
        load.end()
    }

    /// Calls until everything is answered, and by this cluster alone.
    fn await_answers_of(&self, cluster: &str) -> Result<()> {
        let begun = Instant::now();
        loop {
            let answers = self.glance()?;
            if answers.all_by().is_ok_and(|by| by == [cluster]) {
                return Ok(());
            }
            ensure!(
                begun.elapsed() < PATIENCE,
                "{}: {answers:?}, not all by {cluster}",
                self.name
            );
        }
    }

    /// Calls while something is done; no request may fail.
    fn call_while(&self, act: impl FnOnce() -> Result<()>) -> Result<()> {
        let mut load = self.load()?;
        load.more()?;
        let done = act();
        load.more()?;
        let answers = load.end()?;
        done?;
        answers.all_by().map(drop)
    }
}

/// A load that goes on until its standard input ends.
pub(super) struct Load {
    child: Child,
    /// What the caller reports, read as it comes: a full pipe would hold up its requests.
    reports: Receiver<String>,
    answers: Answers,
}

impl Load {
    fn of(mut child: Child) -> Result<Self> {
        let out = child.stdout.take().context("it is piped")?;
        let (sender, reports) = mpsc::channel();
        thread::spawn(move || {
            let lines = BufReader::new(out).lines();
            lines
                .map_while(Result::ok)
                .try_for_each(|line| sender.send(line))
        });
        Ok(Self {
            child,
            reports,
            answers: Answers::default(),
        })
    }

    /// Waits until so many more requests have come to an end.
    pub(super) fn more(&mut self) -> Result<()> {
        while let Ok(line) = self.reports.try_recv() {
            self.answers.add(&line)?;
        }
        let enough = self.answers.count() + GLANCE;
        while self.answers.count() < enough {
            let line = self
                .reports
                .recv()
                .context("the load has ended by itself")?;
            self.answers.add(&line)?;
        }
        Ok(())
    }

    pub(super) fn end(mut self) -> Result<Answers> {
        drop(self.child.stdin.take());
        for line in self.reports {
            self.answers.add(&line)?;
        }
        let status = self.child.wait()?;
        ensure!(status.success(), "the load ended: {status}");
        Ok(self.answers)
    }
}

/// West calls what east exports, then what it has itself; whatever is taken away meanwhile, no
/// request fails.
pub(super) fn calls([east, west]: [Cluster<'_>; 2], steps: &mut Steps) -> Result<()> {
    let both = [east, west];
    east.run_meshed(&server("checkout", "east"), "checkout")?;
    west.run_meshed(&frontend(), "frontend")?;
    west.await_answers_of("east")?;
    steps.done("a pod of west calls east; each end sees who the other is");
    captured(west)?;
    steps.done("a labelled namespace: a pod that knows nothing calls east by its address");
    west.run_meshed(&server("checkout", "west"), "checkout")?;
    west.apply(EXPORT)?;
    west.await_answers_of("west")?;
    steps.done("west has its own: that is nearer");
    let scaled = |replicas: u8| {
        west.kubectl(&format!(
            "scale -n shop deployment/checkout --replicas={replicas}"
        ))?;
        west.kubectl(&format!(
            "rollout status -n shop deployment/checkout {TIMEOUT}"
        ))?;
        Ok(())
    };
    west.call_while(|| {
        scaled(0)?;
        west.kubectl(&format!(
            "wait -n shop pod -l app=checkout --for=delete {TIMEOUT}"
        ))
        .map(drop)
    })?;
    west.await_answers_of("east")?;
    steps.done("west's own is gone: east answers, and no request failed");
    west.call_while(|| {
        both.into_iter()
            .try_for_each(|cluster| cluster.replace_federation())
    })?;
    steps.done("new pods of both federations: no request failed");
    west.call_while(|| {
        both.into_iter()
            .try_for_each(|cluster| cluster.replace_gateways())
    })?;
    steps.done("new pods of all gateways: no request failed");
    west.call_while(|| scaled(1))?;
    steps.done("west's own is back: no request failed");
    for cluster in both {
        cluster.kubectl(&format!("delete deployment -n shop --all {TIMEOUT}"))?;
    }
    // Only what east exports is left of it.
    let exported = "serviceexport/checkout service/checkout";
    west.kubectl(&format!("delete -n shop {exported} {TIMEOUT}"))?;
    Ok(())
}

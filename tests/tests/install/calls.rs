//! Pods that call a service of another cluster, through their sidecars.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::PathBuf,
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use super::{Cluster, EXPORT, Steps, TIMEOUT, app};

/// Requests a second: what a small machine bears beside two clusters.
const RATE: u32 = 50;
/// Length of a load that only asks who answers.
const GLANCE: Duration = Duration::from_secs(2);
/// For a change to have reached every sidecar, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

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
struct Answers {
    by: BTreeMap<String, usize>,
    failed: Vec<String>,
}

impl Answers {
    fn read(text: &str) -> Result<Self> {
        let mut answers = Self::default();
        for line in text.lines() {
            let batch: Batch = serde_json::from_str(line).with_context(|| line.to_owned())?;
            for outcome in batch.outcomes {
                match outcome.answer {
                    Ok(by) => *answers.by.entry(by).or_default() += 1,
                    Err(why) => answers.failed.push(why),
                }
            }
        }
        Ok(answers)
    }

    /// That every request was answered, and by whom.
    fn all_by(&self) -> Result<Vec<&str>> {
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

/// `checkout` of a cluster, which says that it is of that cluster.
fn checkout(cluster: &str) -> String {
    let arguments = format!(
        "checkout, --listen, '0.0.0.0:8080', --cluster, {cluster}, --name, checkout, \
         --instance, {cluster}"
    );
    app("checkout", "", &arguments)
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

    /// Has the frontend call `checkout` until the load is ended; both ends check each answer, and
    /// the caller's identity.
    fn load(&self) -> Result<Load> {
        let identity = format!(
            "spiffe://{}.demo.linkspan.internal/ns/shop/sa/frontend",
            self.name
        );
        let line = format!(
            "kubectl --context {} -n shop exec -i deployment/frontend -c app -- linkspan app \
                 frontend --target 127.0.0.1:7001 --rate {RATE} --connections 2 --identity {identity}",
            self.name
        );
        let report = self.shell.folder.path().join("report");
        let mut command = self.shell.command(&line);
        command.stdin(Stdio::piped()).stdout(File::create(&report)?);
        Ok(Load {
            child: command.spawn().context("starting kubectl")?,
            report,
        })
    }

    /// Who answers now.
    fn glance(&self) -> Result<Answers> {
        let load = self.load()?;
        thread::sleep(GLANCE);
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
        let load = self.load()?;
        thread::sleep(GLANCE);
        let done = act();
        thread::sleep(GLANCE);
        let answers = load.end()?;
        done?;
        answers.all_by().map(drop)
    }
}

/// A load that goes on until its standard input ends.
struct Load {
    child: Child,
    report: PathBuf,
}

impl Load {
    fn end(mut self) -> Result<Answers> {
        drop(self.child.stdin.take());
        let status = self.child.wait()?;
        ensure!(status.success(), "the load ended: {status}");
        Answers::read(&fs::read_to_string(&self.report)?)
    }
}

/// West calls what east exports, then what it has itself; whatever is taken away meanwhile, no
/// request fails.
pub(super) fn calls([east, west]: [Cluster<'_>; 2], steps: &mut Steps) -> Result<()> {
    let both = [east, west];
    east.run_meshed(&checkout("east"), "checkout")?;
    west.run_meshed(&frontend(), "frontend")?;
    west.await_answers_of("east")?;
    steps.done("a pod of west calls east; each end sees who the other is");
    west.run_meshed(&checkout("west"), "checkout")?;
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

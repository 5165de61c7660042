//! The demo's caller, watched: an open loop whose answers are reported one by one.

use std::{net::SocketAddr, process::Stdio, time::Duration};

use anyhow::{Context as _, Result, ensure};
use linkspan::apps::report::{Batch, Moment, Outcome};
use linkspan_tests::clusters::binary;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    time::{Instant, timeout, timeout_at},
};

use crate::own;

/// Longest silence of the caller, which reports ten times a second.
const SILENCE: Duration = Duration::from_secs(10);
/// How long the last requests may take to settle; each gives up after ten seconds.
const SETTLING: Duration = Duration::from_secs(30);

/// A caller that runs. Dropping it kills it.
#[derive(Debug)]
pub struct Watch {
    child: Child,
    reports: Lines<BufReader<ChildStdout>>,
    outcomes: Vec<Outcome>,
    settled_before: Moment,
}

impl Watch {
    /// Starts it.
    ///
    /// # Errors
    /// When the `linkspan` binary is not there.
    pub fn start(target: SocketAddr, rate: u32, connections: u16) -> Result<Self> {
        let mut child = Command::new(binary()?)
            .args(own::tie())
            .args(["app", "frontend", "--target", &target.to_string()])
            .args(["--rate", &rate.to_string()])
            .args(["--connections", &connections.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("cannot start the caller")?;
        let output = child.stdout.take().context("the caller has no output")?;
        Ok(Self {
            child,
            reports: BufReader::new(output).lines(),
            outcomes: Vec::new(),
            settled_before: Moment::default(),
        })
    }

    /// Waits until every request that was due within some span of `lasting`, not earlier than
    /// `after`, was answered by `instance`.
    ///
    /// # Errors
    /// When that does not happen within `patience`.
    pub async fn all_from(
        &mut self,
        instance: &str,
        after: Moment,
        lasting: Duration,
        patience: Duration,
    ) -> Result<()> {
        let deadline = Instant::now() + patience;
        while !self.is_all_from(instance, after, lasting) {
            let read = timeout_at(deadline, self.read()).await;
            read.with_context(|| {
                let last: Vec<_> = self.outcomes.iter().rev().take(3).collect();
                format!("not all from {instance} within {patience:?}; last: {last:?}")
            })??;
        }
        Ok(())
    }

    fn is_all_from(&self, instance: &str, after: Moment, lasting: Duration) -> bool {
        let since = self.settled_before.minus(lasting);
        let good = |outcome: &Outcome| outcome.answer.as_deref() == Ok(instance);
        let mut span = self
            .outcomes
            .iter()
            .rev()
            .filter(|outcome| since <= outcome.begun && outcome.begun < self.settled_before)
            .peekable();
        since >= after && span.peek().is_some() && span.all(good)
    }

    /// Takes in one report; whether it was the last.
    async fn read(&mut self) -> Result<bool> {
        let line = timeout(SILENCE, self.reports.next_line()).await;
        let line = line.context("the caller is silent")??;
        let batch: Batch = serde_json::from_str(&line.context("the caller has ended")?)?;
        self.outcomes.extend(batch.outcomes);
        self.settled_before = batch.settled_before;
        Ok(batch.last)
    }

    /// Stops it and waits until every request is settled.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn finish(mut self) -> Result<Vec<Outcome>> {
        drop(self.child.stdin.take());
        let settled = async {
            while !self.read().await? {}
            anyhow::Ok(())
        };
        timeout(SETTLING, settled)
            .await
            .context("the caller does not end")??;
        let status = self.child.wait().await?;
        ensure!(status.success(), "the caller ended with {status}");
        Ok(self.outcomes)
    }
}

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
    seen: Seen,
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
            seen: Seen::default(),
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
        while !self.seen.is_all_from(instance, after, lasting) {
            let read = timeout_at(deadline, self.read()).await;
            read.with_context(|| {
                let last: Vec<_> = self.seen.outcomes.iter().rev().take(3).collect();
                format!("not all from {instance} within {patience:?}; last: {last:?}")
            })??;
        }
        Ok(())
    }

    /// Takes in one report; whether it was the last.
    async fn read(&mut self) -> Result<bool> {
        let line = timeout(SILENCE, self.reports.next_line()).await;
        let line = line.context("the caller is silent")??;
        let batch: Batch = serde_json::from_str(&line.context("the caller has ended")?)?;
        let last = batch.last;
        self.seen.add(batch);
        Ok(last)
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
        Ok(self.seen.outcomes)
    }
}

/// What the caller has reported.
#[derive(Debug, Default)]
struct Seen {
    outcomes: Vec<Outcome>,
    settled_before: Moment,
}

impl Seen {
    fn add(&mut self, batch: Batch) {
        self.outcomes.extend(batch.outcomes);
        self.settled_before = batch.settled_before;
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
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A report of requests that were due at these milliseconds.
    fn report(answers: &[(u64, &str)], settled_before: u64) -> Batch {
        let outcome = |(due, by): &(u64, &str)| Outcome {
            begun: Moment(due * 1000),
            took: 1,
            answer: Ok((*by).to_owned()),
        };
        Batch {
            outcomes: answers.iter().map(outcome).collect(),
            settled_before: Moment(settled_before * 1000),
            last: false,
        }
    }

    #[test]
    fn a_span_counts_only_when_it_is_settled_and_all_from_one() {
        let is = |seen: &Seen, by| {
            let after = Moment(100_000);
            seen.is_all_from(by, after, Duration::from_millis(50))
        };
        let mut seen = Seen::default();
        seen.add(report(&[(100, "a"), (120, "a"), (140, "a")], 149));
        assert!(!is(&seen, "a"), "too short");
        seen.add(report(&[(150, "a"), (160, "b")], 160));
        assert!(is(&seen, "a"), "what is not settled does not count");
        seen.add(report(&[], 170));
        assert!(!is(&seen, "a"), "one from another");
        seen.add(report(&[], 300));
        assert!(!is(&seen, "a"), "no answer at all");
    }
}

//! The task that keeps a candidate's lease.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, ObjectMeta, PostParams};
use tokio::sync::watch;
use tokio::time::{sleep, sleep_until, timeout};

use crate::kinds::{FIELD_MANAGER, MANAGED_BY, MANAGED_BY_LABEL};
use crate::lease::{Elector, Seen, Step};

/// Giving up the lease takes no longer.
const RELEASE: Duration = Duration::from_secs(1);

/// Whether this replica leads, and who does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lead {
    /// Whether we lead. Before each single write [`Lead::may_write`] is to be asked.
    pub leading: bool,
    /// Who holds the lease, as far as was seen.
    pub holder: Option<String>,
    /// Until when we lead unless the lease is renewed; moves with each renewal, without waking
    /// anybody. `None` while leading: there is no election.
    until: Option<Instant>,
}

impl Lead {
    /// The lead of the only replica there is.
    #[must_use]
    pub fn always() -> Self {
        Self {
            leading: true,
            ..Self::default()
        }
    }

    /// Whether a write may be sent now. A process that was stopped for a while believes what it
    /// believed before until its tasks have run; the clock does not.
    #[must_use]
    pub fn may_write(&self, now: Instant) -> bool {
        self.leading && self.until.is_none_or(|until| now < until)
    }
}

/// Why nothing is written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this replica does not lead any more; {by} does, and writes", by = named(holder.as_ref()))]
pub(crate) struct NotLeading {
    holder: Option<String>,
}

fn named(holder: Option<&String>) -> String {
    holder.map_or_else(|| "another one".to_owned(), |holder| format!("`{holder}`"))
}

pub(crate) fn may_write(lead: &watch::Receiver<Lead>) -> Result<(), NotLeading> {
    let lead = lead.borrow();
    match lead.may_write(Instant::now()) {
        true => Ok(()),
        false => Err(NotLeading {
            holder: lead.holder.clone(),
        }),
    }
}

/// Keeps the lease `namespace/name` for as long as anybody listens to `lead`, which always says how
/// it is; then gives it up, so that another replica need not wait for its end. A leader that is
/// cut off from the API server says so before anybody else can lead.
pub async fn lead(
    client: Client,
    namespace: String,
    name: String,
    elector: Elector,
    lead: watch::Sender<Lead>,
) {
    let task = Task {
        api: Api::namespaced(client, &namespace),
        name,
        elector,
        lead,
    };
    task.run().await;
}

struct Task {
    api: Api<Lease>,
    name: String,
    elector: Elector,
    lead: watch::Sender<Lead>,
}

impl Task {
    async fn run(mut self) {
        let writers = self.lead.clone();
        tokio::select! {
            biased;
            () = writers.closed() => {}
            () = self.keep() => {}
        }
        // What takes longer is as if we had died: others wait for the end of the term.
        match timeout(RELEASE, self.release())
            .await
            .unwrap_or_else(|late| Err(late.into()))
        {
            Ok(()) => tracing::info!(lease = self.name, "given up, if it was ours"),
            Err(error) => {
                tracing::warn!(lease = self.name, %error, "it was not given up; it ends by itself");
            }
        }
    }

    /// Gives the lease up, if it is ours.
    async fn release(&self) -> Result<(), Failure> {
        // One for each of our own renewals that may still be under way, and one more.
        for _ in 0..2 {
            let found = self.api.get_opt(&self.name).await?;
            let Some(mut lease) = found.filter(|lease| seen(lease).holder == self.elector.me())
            else {
                return Ok(());
            };
            lease.spec.get_or_insert_default().holder_identity = None;
            match self.api.replace(&self.name, &params(), &lease).await {
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                other => return other.map(drop).map_err(Failure::from),
            }
        }
        Ok(())
    }

    /// Never ends.
    async fn keep(&mut self) {
        let mut failing = false;
        loop {
            let until = self.term();
            // What takes longer than a term lasts is given up: it must not look like leading.
            let look = timeout(self.elector.terms().deadline, self.look());
            let pause = tokio::select! {
                biased;
                () = end(until) => {
                    self.tell(None);
                    continue;
                }
                result = look => match result.unwrap_or_else(|late| Err(late.into())) {
                    Ok(pause) => {
                        if std::mem::replace(&mut failing, false) {
                            tracing::info!(lease = self.name, "the lease can be read and written again");
                        }
                        pause
                    }
                    Err(error) => {
                        if !std::mem::replace(&mut failing, true) {
                            tracing::warn!(lease = self.name, %error, "the lease cannot be kept; trying again");
                        }
                        self.elector.failed()
                    }
                },
            };
            self.pause(pause).await;
        }
    }

    /// Waits for the next look; what was led ends in time meanwhile.
    async fn pause(&self, pause: Duration) {
        let until = self.term();
        tokio::select! {
            // First: that a term has ended is told even where the next has begun by then, so that
            // what was not written in between is looked at again.
            biased;
            () = end(until) => self.tell(None),
            () = sleep(pause) => {}
        }
    }

    /// Until when we lead. That a term is over is told at once.
    fn term(&self) -> Option<Instant> {
        let until = self.elector.leads_until(Instant::now());
        if until.is_none() && self.lead.borrow().leading {
            self.tell(None);
        }
        until
    }

    /// Reads the lease and does what is to be done; how long to wait for the next look.
    async fn look(&mut self) -> Result<Duration, Failure> {
        let found = self.api.get_opt(&self.name).await?;
        let seen = found.as_ref().map(seen);
        let begun = Instant::now();
        let written = match self.elector.step(seen.as_ref(), begun) {
            Step::Wait(pause) => {
                self.tell(seen.map(|seen| seen.holder));
                return Ok(pause);
            }
            Step::Create => {
                let lease = self.lease(None, 0);
                self.api.create(&params(), &lease).await
            }
            Step::Write { transitions, .. } => {
                let lease = self.lease(found, transitions);
                self.api.replace(&self.name, &params(), &lease).await
            }
        };
        let lease = match written {
            // Somebody else was faster.
            Err(kube::Error::Api(status)) if status.code == 409 => {
                return Ok(self.elector.failed());
            }
            other => other?,
        };
        let version = lease.metadata.resource_version.unwrap_or_default();
        self.elector.written(version, begun, Instant::now());
        self.tell(Some(self.elector.me().to_owned()));
        Ok(self.elector.terms().retry)
    }

    fn lease(&self, found: Option<Lease>, transitions: i32) -> Lease {
        let now = MicroTime(Timestamp::now());
        let before = found.as_ref().and_then(|lease| lease.spec.as_ref());
        let held = before.filter(|spec| spec.holder_identity.as_deref() == Some(self.elector.me()));
        let acquired = held.and_then(|spec| spec.acquire_time.clone());
        let spec = LeaseSpec {
            holder_identity: Some(self.elector.me().to_owned()),
            lease_duration_seconds: i32::try_from(self.elector.terms().duration.as_secs()).ok(),
            acquire_time: acquired.or_else(|| Some(now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        };
        let metadata = found.map_or_else(
            || ObjectMeta {
                name: Some(self.name.clone()),
                labels: Some([(MANAGED_BY_LABEL.to_owned(), MANAGED_BY.to_owned())].into()),
                ..ObjectMeta::default()
            },
            |lease| lease.metadata,
        );
        Lease {
            metadata,
            spec: Some(spec),
        }
    }

    fn tell(&self, holder: Option<String>) {
        let until = self.elector.leads_until(Instant::now());
        let leading = until.is_some();
        let next = Lead {
            leading,
            holder,
            until,
        };
        self.lead.send_if_modified(|last| {
            if last.leading != next.leading {
                let lease = &self.name;
                match next.leading {
                    true => tracing::info!(lease, "leading: this replica writes to the API server"),
                    false => tracing::info!(lease, "not leading any more"),
                }
            }
            let news = last.leading != next.leading || last.holder != next.holder;
            *last = next;
            news
        });
    }
}

async fn end(until: Option<Instant>) {
    match until {
        Some(until) => sleep_until(until.into()).await,
        None => std::future::pending().await,
    }
}

fn params() -> PostParams {
    PostParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PostParams::default()
    }
}

fn seen(lease: &Lease) -> Seen {
    let spec = lease.spec.clone().unwrap_or_default();
    // A lease that does not say how long is over.
    let seconds = spec.lease_duration_seconds.unwrap_or(0);
    Seen {
        holder: spec.holder_identity.unwrap_or_default(),
        duration: Duration::from_secs(u64::try_from(seconds).unwrap_or(0)),
        version: lease.metadata.resource_version.clone().unwrap_or_default(),
        transitions: spec.lease_transitions.unwrap_or(0),
    }
}

/// Why a look came to nothing.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("the API server said: {0}")]
    Api(#[from] kube::Error),
    #[error("the API server did not answer in time")]
    Late(#[from] tokio::time::error::Elapsed),
}

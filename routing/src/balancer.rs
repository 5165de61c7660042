//! One balancer for each port of a service at a source: holds the current plan, hands out
//! endpoints, and learns from what becomes of requests.

use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use crate::allowance::Allowance;
use crate::explain::Share;
use crate::health::{Failure, Vitals};
use crate::locality::Rank;
use crate::model::{Endpoint, EndpointKey, Locality, Place, Service, UsablePeers};
use crate::plan::{Choice, Plan};
use crate::roster::Roster;

/// Chooses endpoints for the requests of one source to one port of one service.
///
/// Shared by all connections of the source; clones are the same balancer. [`Self::pick`] takes
/// no lock: it reads one immutable plan and atomics. Everything that changes the plan (a new
/// snapshot, an ejection, a recovery) makes a new one behind a short lock that picks never
/// take.
///
/// Time is an argument everywhere and must come from one monotonic clock.
#[derive(Debug, Clone)]
pub struct Balancer {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    plan: ArcSwap<Option<Plan>>,
    roster: Mutex<Roster>,
    allowance: Arc<Allowance>,
}

/// Which try of a request an endpoint is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Try<'a> {
    /// Its first: drawn by the shares, and perhaps the one by which an ejected endpoint proves
    /// itself.
    First,
    /// Another one. None of these is chosen (those that the request has tried).
    Again(&'a [EndpointKey]),
}

/// Why no endpoint can be chosen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoEndpoint {
    /// Discovery has not told of the service yet; soon it may.
    #[error("the service's endpoints are not known yet")]
    NotYetKnown,
    /// No cluster has endpoints of the service.
    #[error("the service has no endpoints in any cluster")]
    NoneListed,
    /// Clusters offer the service, but not this port.
    #[error("no cluster exposes port {port} of the service; add it to the Service there")]
    PortNotExposed {
        /// The port asked for.
        port: u16,
    },
    /// All clusters that offer it are unusable.
    #[error("all clusters that offer the service are unreachable; see `linkspan status`")]
    PeersUnusable,
    /// Endpoints are listed, and none is ready.
    #[error("no endpoint of the service is ready")]
    NoneReady,
    /// A failover policy excludes every endpoint there is.
    #[error("the failover policy of the service excludes all of its endpoints")]
    Excluded,
    /// Only other clusters could answer, and the policy's cap on what may leave is reached.
    #[error(
        "no endpoint in the own cluster, and the failover policy lets at most {percent} % of \
         requests leave it (maxRemoteShare)"
    )]
    RemoteShareUsed {
        /// The cap.
        percent: u32,
    },
    /// Each endpoint that could be chosen is in the caller's list of exclusions.
    #[error("each available endpoint of the service has been tried by this request")]
    AllExcluded,
}

impl Balancer {
    /// A balancer for callers at `place`, for this *Service* port. `seed` tells sources apart:
    /// each uses a different subset of many endpoints. Knows no endpoint until
    /// [`Self::update`].
    pub fn new(place: Place, port: u16, seed: u64) -> Self {
        let roster = Roster::new(place, port, seed);
        Self {
            shared: Arc::new(Shared {
                plan: ArcSwap::from_pointee(None),
                allowance: roster.allowance(),
                roster: Mutex::new(roster),
            }),
        }
    }

    /// Takes over a new snapshot of the service and of the peers that may be used. What is
    /// known of the load and health of endpoints stays, by cluster and endpoint id.
    pub fn update(&self, now: Instant, service: &Service, peers: &UsablePeers) {
        let mut roster = self.shared.roster();
        roster.update(now, service, peers);
        self.shared.publish(now, &mut roster);
    }

    /// Brings the plan, and so [`Self::explain`], up to this time; returns after how long it
    /// will change again though nothing happens. [`Self::pick`] does not depend on it: shares
    /// that move and ejections that end are evaluated there.
    pub fn refresh(&self, now: Instant) -> Option<Duration> {
        let mut roster = self.shared.roster();
        self.shared.publish(now, &mut roster);
        roster.next_change(now)
    }

    /// Notes a request, before its first [`Self::pick`] and however often that is repeated:
    /// what may leave the caller's cluster is a part of all requests.
    pub fn admit(&self) {
        self.shared.allowance.earn();
    }

    /// Chooses an endpoint. `random` gives 64 uniform bits per call, and is called a few times.
    ///
    /// # Errors
    /// If there is no endpoint to choose; says why. After [`NoEndpoint::RemoteShareUsed`] the
    /// request is to be refused: asking again would draw again, and so exceed the cap.
    pub fn pick(
        &self,
        now: Instant,
        random: &mut impl FnMut() -> u64,
        of: Try<'_>,
    ) -> Result<Pick, NoEndpoint> {
        let plan = self.shared.plan.load();
        let plan = Option::as_ref(&plan).ok_or(NoEndpoint::NotYetKnown)?;
        let chosen = plan.choose(now, random, of)?;
        let candidate = chosen.candidate;
        candidate.vitals.load.begin();
        Ok(Pick {
            endpoint: Arc::clone(&candidate.endpoint),
            vitals: Arc::clone(&candidate.vitals),
            shared: Arc::clone(&self.shared),
            priority: chosen.tier,
            rank: candidate.rank,
            choice: chosen.choice,
            began: now,
            outcome: AtomicU8::new(OPEN),
        })
    }

    /// The shares of all clusters and localities and why they are so, nearest first, as of the
    /// last [`Self::update`], [`Self::refresh`] or change of an endpoint's health.
    pub fn explain(&self) -> Vec<Share> {
        let plan = self.shared.plan.load();
        Option::as_ref(&plan).map(Plan::explain).unwrap_or_default()
    }
}

impl Shared {
    fn roster(&self) -> MutexGuard<'_, Roster> {
        // Each change leaves the roster whole before anything could panic.
        self.roster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, now: Instant, roster: &mut Roster) {
        self.plan.store(Arc::new(Some(roster.plan(now))));
    }

    fn eject(&self, now: Instant, pick: &Pick, on_trial: bool) {
        let vitals = &pick.vitals;
        // One loss fails many requests; only the first needs the lock.
        if vitals.is_ejected() && !on_trial {
            return;
        }
        let mut roster = self.roster();
        if roster.eject(now, vitals, on_trial) {
            self.publish(now, &mut roster);
        }
    }

    fn restore(&self, now: Instant, vitals: &Arc<Vitals>) {
        let mut roster = self.roster();
        if roster.restore(now, vitals) {
            self.publish(now, &mut roster);
        }
    }
}

/// A chosen endpoint. Counts as one request in flight there until dropped, so keep it until the
/// answer has been passed on; report the outcome with [`Self::succeeded`] or [`Self::failed`]
/// as soon as it is known. Without either, nothing is learnt (the caller went away).
#[derive(Debug)]
pub struct Pick {
    endpoint: Arc<Endpoint>,
    vitals: Arc<Vitals>,
    shared: Arc<Shared>,
    priority: usize,
    rank: Rank,
    choice: Choice,
    began: Instant,
    /// [`OPEN`], [`SUCCEEDED`] or [`FAILED`].
    outcome: AtomicU8,
}

const OPEN: u8 = 0;
const SUCCEEDED: u8 = 1;
const FAILED: u8 = 2;

/// Why an endpoint was chosen.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PickReason {
    /// The endpoint's priority, 0 first.
    pub priority: usize,
    /// Its nearness, which makes the priority unless a policy does.
    pub rank: Rank,
    /// Its region and zone.
    pub locality: Locality,
    /// The request did not go to the first priority.
    pub spilled: bool,
    /// How the choice came about.
    pub choice: Choice,
}

impl fmt::Display for PickReason {
    /// For access logs, e.g. `priority 1 (other cluster, same zone), by share`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "priority {} ({}), {}",
            self.priority, self.rank, self.choice
        )
    }
}

impl Pick {
    /// The endpoint.
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    /// Why it was chosen.
    pub fn reason(&self) -> PickReason {
        PickReason {
            priority: self.priority,
            rank: self.rank,
            locality: self.endpoint.locality.clone(),
            spilled: self.priority > 0,
            choice: self.choice,
        }
    }

    /// The endpoint answered, `latency` after it was asked (to the answer's head, so that long
    /// bodies do not make it look slow). For opaque TCP: the connection stands; `latency` is
    /// the time to connect. Only the first outcome of a pick counts.
    pub fn succeeded(&self, now: Instant, latency: Duration) {
        if self
            .outcome
            .compare_exchange(OPEN, SUCCEEDED, Relaxed, Relaxed)
            .is_err()
        {
            return;
        }
        self.vitals.load.answered(now, latency);
        self.vitals.end_errors();
        // A good answer to a request sent before the ejection proves nothing.
        let suspect = matches!(self.choice, Choice::Trial | Choice::Panic);
        if suspect && self.vitals.is_ejected() {
            self.shared.restore(now, &self.vitals);
        }
    }

    /// The request failed. A connect failure or a reset takes the endpoint out of rotation
    /// before this returns. Counts even after [`Self::succeeded`] (a body that broke off).
    pub fn failed(&self, now: Instant, failure: Failure) {
        if self.outcome.swap(FAILED, Relaxed) == FAILED || failure == Failure::Gone {
            return;
        }
        // A straggler of the process that was there before says nothing about this one.
        if self.vitals.is_acquitted(self.endpoint.incarnation) {
            return;
        }
        let took = now.saturating_duration_since(self.began);
        if matches!(failure, Failure::Timeout | Failure::Status5xx) {
            self.vitals.load.erred(now, took);
        }
        let on_trial = self.choice == Choice::Trial;
        if on_trial || failure.ejects_at_once() || self.vitals.count_error() {
            self.shared.eject(now, self, on_trial);
        }
    }
}

impl Drop for Pick {
    fn drop(&mut self) {
        self.vitals.load.end();
        if self.choice == Choice::Trial {
            self.vitals.end_trial();
        }
    }
}

#[cfg(test)]
mod policies;
#[cfg(test)]
mod policy_properties;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;

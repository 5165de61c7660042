//! Who leads: a pure state machine over a Lease (`coordination.k8s.io/v1`).
//!
//! Clocks of different machines are never compared. A follower takes the lease when it has not
//! seen the lease *change* for as long as its holder said, counted on the follower's own monotonic
//! clock from when it saw the change. A leader stops leading when it has not renewed for less
//! than that, counted from before it sent the renewal. So two never lead at a time, whatever the
//! wall clocks say, as long as clocks run at the same speed within a third.

use std::time::{Duration, Instant};

#[cfg(test)]
mod tests;

/// How long things take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// How long others wait after the last change that they saw. Default 15 s.
    pub duration: Duration,
    /// How long a leader leads after it began its last renewal that came through. Less than
    /// `duration`; default 10 s.
    pub deadline: Duration,
    /// Between two looks. Default 2 s.
    pub retry: Duration,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            duration: Duration::from_secs(15),
            deadline: Duration::from_secs(10),
            retry: Duration::from_secs(2),
        }
    }
}

/// The lease as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Whose it is; empty where it was given up.
    pub holder: String,
    /// For how long, as the holder said.
    pub duration: Duration,
    /// Changes with every write.
    pub version: String,
    /// How often it has changed hands.
    pub transitions: i32,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Make the lease; nobody else may have.
    Create,
    /// Write it as ours, on condition that it still has this version.
    Write {
        /// As it was read.
        version: String,
        /// What to write as the number of changes of hands.
        transitions: i32,
    },
    /// Nothing; look again after this time.
    Wait(Duration),
}

/// One candidate.
#[derive(Clone, Debug)]
pub struct Elector {
    me: String,
    terms: Terms,
    /// The lease's version and when it was first seen.
    observed: Option<(String, Instant)>,
    /// When the last renewal that came through was begun.
    renewed: Option<Instant>,
}

impl Elector {
    /// A candidate that does not lead. `me` differs between all replicas, and between lives of one.
    #[must_use]
    pub fn new(me: impl Into<String>, terms: Terms) -> Self {
        Self {
            me: me.into(),
            terms,
            observed: None,
            renewed: None,
        }
    }

    /// Its name.
    #[must_use]
    pub fn me(&self) -> &str {
        &self.me
    }

    /// Its terms.
    #[must_use]
    pub fn terms(&self) -> Terms {
        self.terms
    }

    /// Until when it may act as leader; `None` where it may not.
    #[must_use]
    pub fn leads_until(&self, now: Instant) -> Option<Instant> {
        let until = self.renewed? + self.terms.deadline;
        (now < until).then_some(until)
    }

    /// The lease was read (`None`: there is none); what now?
    pub fn step(&mut self, seen: Option<&Seen>, now: Instant) -> Step {
        let Some(seen) = seen else {
            self.renewed = None;
            return Step::Create;
        };
        let since = match &self.observed {
            Some((version, since)) if *version == seen.version => *since,
            _ => {
                self.observed = Some((seen.version.clone(), now));
                now
            }
        };
        if seen.holder == self.me {
            return Step::Write {
                version: seen.version.clone(),
                transitions: seen.transitions,
            };
        }
        // Somebody else's: whatever we held is over.
        self.renewed = None;
        let idle = now.saturating_duration_since(since);
        if !seen.holder.is_empty() && idle < seen.duration {
            return Step::Wait(self.terms.retry.min(seen.duration - idle));
        }
        Step::Write {
            version: seen.version.clone(),
            transitions: seen.transitions.saturating_add(1),
        }
    }

    /// A write that was begun at `begun` came through; the lease has this version now.
    pub fn written(&mut self, version: String, begun: Instant, now: Instant) {
        self.observed = Some((version, now));
        self.renewed = Some(begun);
    }

    /// Somebody else wrote first, or the lease could not be read or written. What was renewed
    /// before still counts until its deadline.
    #[must_use]
    pub fn failed(&self) -> Duration {
        self.terms.retry
    }
}

//! The connections to one destination, and the dial that is under way.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    LeaseError, PoolLimits,
    connection::{Connection, Lease},
};

/// What came of a dial.
pub(super) type Made<E> = Result<Arc<Connection>, LeaseError<E>>;
/// Follows a dial; `None` while it is under way.
pub(super) type Outcome<E> = watch::Receiver<Option<Made<E>>>;
type Teller<E> = watch::Sender<Option<Made<E>>>;

#[derive(Debug)]
pub(super) struct Slot<E: std::error::Error + 'static> {
    connections: ArcSwap<Vec<Arc<Connection>>>,
    /// At most one dial at a time: what it gives serves all who wait, and the next request
    /// sees whether one more is needed.
    dial: Mutex<Option<Outcome<E>>>,
    given_up: CancellationToken,
}

impl<E: std::error::Error> Default for Slot<E> {
    fn default() -> Self {
        Self {
            connections: ArcSwap::default(),
            dial: Mutex::new(None),
            given_up: CancellationToken::new(),
        }
    }
}

/// What a request gets.
pub(super) struct Choice {
    /// A connection, if there is a usable one.
    pub(super) lease: Option<Lease>,
    /// Another one should be dialled.
    pub(super) grow: bool,
}

impl<E: std::error::Error> Slot<E> {
    /// The least loaded connection of the present generation; else one to be replaced.
    pub(super) fn choose(&self, now: Instant, generation: u64, limits: &PoolLimits) -> Choice {
        let connections = self.connections.load();
        let open = || {
            connections
                .iter()
                .filter(|connection| !connection.is_closed())
        };
        let least = |old: bool| {
            open()
                .filter(|connection| connection.is_old(now, generation) == old)
                .min_by_key(|connection| connection.in_flight())
        };
        let lease = |connection: &Arc<Connection>| {
            Some(Lease::new(Arc::clone(connection), self.given_up.clone()))
        };
        if let Some(connection) = least(false) {
            let full = connection.in_flight() >= limits.grow_at;
            let grow = full && open().count() < limits.connections;
            return Choice {
                lease: lease(connection),
                grow,
            };
        }
        match least(true) {
            Some(connection) => Choice {
                lease: lease(connection),
                grow: true,
            },
            None => Choice {
                lease: None,
                grow: false,
            },
        }
    }

    /// The dial under way; or a new one, which the caller must make and tell of.
    pub(super) fn dialling(&self) -> (Outcome<E>, Option<Teller<E>>) {
        let mut dial = self.dial.lock().unwrap_or_else(PoisonError::into_inner);
        // One whose task was dropped untold is none.
        if let Some(outcome) = dial
            .as_ref()
            .filter(|outcome| outcome.has_changed().is_ok())
        {
            return (outcome.clone(), None);
        }
        let (tell, outcome) = watch::channel(None);
        *dial = Some(outcome.clone());
        (outcome, Some(tell))
    }

    /// The dial has ended: takes the connection in, and tells those who wait.
    pub(super) fn dialled(&self, tell: &Teller<E>, made: Made<E>) {
        if let Ok(connection) = &made {
            self.connections.rcu(|connections| {
                let open = connections.iter().filter(|other| !other.is_closed());
                // Make before break: those of an older generation have served until now.
                let same = open.filter(|other| !other.is_older_than(connection));
                same.chain([connection]).cloned().collect::<Vec<_>>()
            });
        }
        *self.dial.lock().unwrap_or_else(PoisonError::into_inner) = None;
        tell.send_replace(Some(made));
    }

    pub(super) fn sweep(&self, now: Instant, idle: Duration) {
        let stays = |connection: &&Arc<Connection>| {
            !connection.is_closed() && !connection.is_idle(now, idle)
        };
        if !self
            .connections
            .load()
            .iter()
            .all(|connection| stays(&connection))
        {
            self.connections.rcu(|connections| {
                connections
                    .iter()
                    .filter(stays)
                    .cloned()
                    .collect::<Vec<_>>()
            });
        }
    }

    /// Whether it can be forgotten.
    pub(super) fn is_empty(&self) -> bool {
        let dial = self.dial.lock().unwrap_or_else(PoisonError::into_inner);
        dial.is_none() && self.connections.load().is_empty()
    }

    pub(super) fn usage(&self) -> Vec<usize> {
        let connections = self.connections.load();
        let open = connections
            .iter()
            .filter(|connection| !connection.is_closed());
        open.map(|connection| connection.in_flight()).collect()
    }

    pub(super) fn given_up(&self) -> CancellationToken {
        self.given_up.clone()
    }

    pub(super) fn abandon(&self) {
        self.given_up.cancel();
    }
}

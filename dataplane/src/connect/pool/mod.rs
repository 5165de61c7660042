//! Pooled HTTP/2 connections, several for each destination as load needs them.
//!
//! * [`Pool::lease`] is what a request asks for. On the usual way it takes no lock: it reads two
//!   immutable lists and counts itself in. Only a destination without a usable connection makes it wait.
//! * Requests to a cold destination share one dial. A connection with many requests in flight makes
//!   the pool dial another one in the background, up to a bound.
//! * Before a connection comes of age (see [`Dialled::retire_at`]), or when the credentials that it
//!   was made with have been replaced ([`Dial::generation`]), a new one is dialled; the old one is
//!   used until that stands, and then only finishes what it carries.
//! * [`Pool::retain`] lets destinations go gently, [`Pool::abandon`] at once: whoever waits
//!   for a dial, or for an answer, is told.

mod connection;
mod silence;
mod slot;

use std::{
    collections::HashMap,
    future::Future,
    hash::Hash,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use linkspan_runtime::trace::SpanContext;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::task::TaskTracker;

pub use connection::Lease;
use slot::Slot;

/// Bounds of a pool.
#[derive(Clone, Copy, Debug)]
pub struct PoolLimits {
    /// Requests in flight on each connection beyond which another is dialled. Default 64.
    pub grow_at: usize,
    /// Connections to one destination. Default 8: beyond 512 requests in flight they share.
    pub connections: usize,
    /// How long a connection may be unused. Default 90 s.
    pub idle: Duration,
    /// After how long of silence a connection is asked whether it still lives. Default 10 s.
    pub keep_alive: Duration,
    /// The same while requests are in flight. Default 1 s.
    pub keep_alive_busy: Duration,
    /// How long it may take to answer, where [`Dialled::patience`] says nothing else. Default 5 s.
    pub keep_alive_timeout: Duration,
    /// Bytes of an answer that may be under way before it is read. Default 512 KiB: 40 Mbit/s for
    /// one answer over a path of 100 ms.
    pub stream_window: u32,
    /// The same for all answers of a connection. Default 4 MiB.
    pub connection_window: u32,
    /// Bytes of requests that a connection holds back when the other side is slow. Default 256 KiB.
    pub send_buffer: usize,
}

impl Default for PoolLimits {
    fn default() -> Self {
        Self {
            grow_at: 64,
            connections: 8,
            idle: Duration::from_secs(90),
            keep_alive: Duration::from_secs(10),
            keep_alive_busy: Duration::from_secs(1),
            keep_alive_timeout: Duration::from_secs(5),
            stream_window: 512 * 1024,
            connection_window: 4 * 1024 * 1024,
            send_buffer: 256 * 1024,
        }
    }
}

/// How a pool makes connections to the destinations that `K` names.
pub trait Dial<K>: Send + Sync + 'static {
    /// A connection on which the other side expects HTTP/2.
    type Io: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    /// Why there is none.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Makes a connection; must end within its own time-outs.
    ///
    /// `cause` is the span of the request for which it is made, if that is recorded.
    fn dial(
        &self,
        key: &K,
        cause: Option<SpanContext>,
    ) -> impl Future<Output = Result<Dialled<Self::Io>, Self::Error>> + Send;

    /// Number of the credentials in force towards `key`. Connections of other generations are
    /// replaced.
    fn generation(&self, key: &K) -> u64 {
        let _ = key;
        0
    }
}

/// A new connection.
#[derive(Debug)]
pub struct Dialled<IO> {
    /// Ready for HTTP/2's preface.
    pub io: IO,
    /// From when on it should be replaced.
    pub retire_at: Option<Instant>,
    /// What it was made with.
    pub generation: u64,
    /// While requests are in flight, how long the other side may take to answer when it is asked
    /// whether it still lives. `None` where nobody should hurry: at the pace of idle connections.
    pub patience: Option<Duration>,
    /// Its own span, if that is recorded.
    pub span: Option<SpanContext>,
}

/// Why there is no connection. Shared by all requests that waited for it.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError<E: std::error::Error + 'static> {
    /// It could not be made.
    #[error("cannot connect")]
    Dial(#[source] Arc<E>),
    /// The connection stands, but HTTP/2 could not begin.
    #[error("the other side does not speak HTTP/2")]
    Handshake(#[source] Arc<h2::Error>),
    /// The destination was given up meanwhile, see [`Pool::abandon`].
    #[error("the destination was given up while connecting")]
    Abandoned,
}

impl<E: std::error::Error> Clone for LeaseError<E> {
    fn clone(&self) -> Self {
        match self {
            Self::Dial(error) => Self::Dial(Arc::clone(error)),
            Self::Handshake(error) => Self::Handshake(Arc::clone(error)),
            Self::Abandoned => Self::Abandoned,
        }
    }
}

/// Connections by destination. Clones are the same pool.
pub struct Pool<K, D: Dial<K>> {
    shared: Arc<Shared<K, D>>,
}

struct Shared<K, D: Dial<K>> {
    dial: D,
    limits: PoolLimits,
    slots: ArcSwap<HashMap<K, Arc<Slot<D::Error>>>>,
    tasks: TaskTracker,
}

impl<K, D: Dial<K>> Clone for Pool<K, D> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<K, D: Dial<K>> std::fmt::Debug for Pool<K, D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool")
            .field("destinations", &self.shared.slots.load().len())
            .finish()
    }
}

impl<K, D> Pool<K, D>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    D: Dial<K>,
{
    /// An empty pool.
    pub fn new(dial: D, limits: PoolLimits) -> Self {
        let (slots, tasks) = (ArcSwap::default(), TaskTracker::new());
        Self {
            shared: Arc::new(Shared {
                dial,
                limits,
                slots,
                tasks,
            }),
        }
    }

    /// A connection for one request, with that request counted in.
    ///
    /// # Errors
    /// If there is none and none can be made.
    pub async fn lease(&self, key: &K) -> Result<Lease, LeaseError<D::Error>> {
        self.lease_for(key, None).await
    }

    /// As [`Pool::lease`], for a request with that span. Where it is what makes the pool dial, the
    /// connection's span is one of its own.
    ///
    /// # Errors
    /// See [`Pool::lease`].
    pub async fn lease_for(
        &self,
        key: &K,
        cause: Option<SpanContext>,
    ) -> Result<Lease, LeaseError<D::Error>> {
        let slot = self.slot(key);
        let generation = self.shared.dial.generation(key);
        let choice = slot.choose(Instant::now(), generation, &self.shared.limits);
        if choice.grow {
            self.grow(key, &slot, cause);
        }
        match choice.lease {
            Some(lease) => Ok(lease),
            None => self.wait(key, &slot, cause).await,
        }
    }

    /// What makes the connections.
    pub fn dial(&self) -> &D {
        &self.shared.dial
    }

    /// Destinations with their open connections and the requests in flight on each.
    pub fn usage(&self) -> Vec<(K, Vec<usize>)> {
        let slots = self.shared.slots.load();
        slots
            .iter()
            .map(|(key, slot)| (key.clone(), slot.usage()))
            .collect()
    }

    /// Lets go of all destinations but these: no new requests; those in flight may finish.
    pub fn retain(&self, keep: impl Fn(&K) -> bool) {
        self.remove(|key, _| !keep(key));
    }

    /// Gives destinations up: dials end, and all who hold a lease are told by [`Lease::abandoned`].
    pub fn abandon(&self, which: impl Fn(&K) -> bool) {
        for slot in self.remove(|key, _| which(key)) {
            slot.abandon();
        }
    }

    /// Closes connections that have not been used for long. Meant to be called every few seconds.
    pub fn sweep(&self, now: Instant) {
        for slot in self.shared.slots.load().values() {
            slot.sweep(now, self.shared.limits.idle);
        }
        self.remove(|_, slot| slot.is_empty());
    }

    /// Lets all connections go gently and waits until the last has ended.
    pub async fn close(&self) {
        self.retain(|_| false);
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }

    fn remove(&self, which: impl Fn(&K, &Slot<D::Error>) -> bool) -> Vec<Arc<Slot<D::Error>>> {
        let goes = |(key, slot): (&K, &Arc<Slot<D::Error>>)| which(key, slot);
        let current = self.shared.slots.load();
        if !current.iter().any(goes) {
            return Vec::new();
        }
        let before = self.shared.slots.rcu(|slots| {
            let stay = slots.iter().filter(|(key, slot)| !which(key, slot));
            stay.map(|(key, slot)| (key.clone(), Arc::clone(slot)))
                .collect::<HashMap<_, _>>()
        });
        let gone = before.iter().filter(|(key, slot)| which(key, slot));
        gone.map(|(_, slot)| Arc::clone(slot)).collect()
    }

    fn slot(&self, key: &K) -> Arc<Slot<D::Error>> {
        if let Some(slot) = self.shared.slots.load().get(key) {
            return Arc::clone(slot);
        }
        let slot = Arc::new(Slot::default());
        self.shared.slots.rcu(|slots| {
            let mut slots = HashMap::clone(slots);
            slots
                .entry(key.clone())
                .or_insert_with(|| Arc::clone(&slot));
            slots
        });
        // Whoever was first has made the one that counts; if it has been removed already, ours
        // serves this request alone.
        self.shared.slots.load().get(key).cloned().unwrap_or(slot)
    }

    /// Waits for the dial under way, or for one of our own.
    async fn wait(
        &self,
        key: &K,
        slot: &Arc<Slot<D::Error>>,
        cause: Option<SpanContext>,
    ) -> Result<Lease, LeaseError<D::Error>> {
        let mut outcome = self.grow(key, slot, cause);
        let outcome = outcome
            .wait_for(Option::is_some)
            .await
            .map(|outcome| outcome.clone());
        match outcome {
            Ok(Some(Ok(connection))) => Ok(Lease::new(connection, slot.given_up())),
            Ok(Some(Err(error))) => Err(error),
            // The dial's task was dropped with the process's other tasks.
            Ok(None) | Err(_) => Err(LeaseError::Abandoned),
        }
    }

    /// Joins the dial under way, or starts one.
    fn grow(
        &self,
        key: &K,
        slot: &Arc<Slot<D::Error>>,
        cause: Option<SpanContext>,
    ) -> slot::Outcome<D::Error> {
        let (outcome, begin) = slot.dialling();
        if let Some(tell) = begin {
            let (pool, key, slot) = (self.clone(), key.clone(), Arc::clone(slot));
            self.shared.tasks.spawn(async move {
                let made = pool.make(&key, &slot, cause).await;
                slot.dialled(&tell, made);
            });
        }
        outcome
    }

    async fn make(
        &self,
        key: &K,
        slot: &Slot<D::Error>,
        cause: Option<SpanContext>,
    ) -> slot::Made<D::Error> {
        let Shared {
            dial,
            limits,
            tasks,
            ..
        } = &*self.shared;
        let given_up = slot.given_up();
        let dialled = tokio::select! {
            dialled = dial.dial(key, cause) => dialled.map_err(|error| LeaseError::Dial(Arc::new(error)))?,
            () = given_up.cancelled() => return Err(LeaseError::Abandoned),
        };
        connection::begin(dialled, limits, tasks)
            .await
            .map_err(|error| LeaseError::Handshake(Arc::new(error)))
    }
}

#[cfg(test)]
mod tests;

//! One pooled connection: its driver, its count of requests, its age.

use std::{
    future::poll_fn,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    task::Poll,
    time::{Duration, Instant},
};

use bytes::Bytes;
use h2::{PingPong, client::SendRequest};
use linkspan_runtime::trace::SpanContext;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::debug;

use super::{
    Dialled, PoolLimits,
    silence::{Listening, Next, Pace, Silence},
};

/// How long the other side may take to answer our settings; it has just finished a handshake.
const SETTINGS_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest head of an answer, bytes.
const MAX_HEAD: u32 = 64 * 1024;

/// A connection that requests share.
#[derive(Debug)]
pub(super) struct Connection {
    requests: SendRequest<Bytes>,
    in_flight: AtomicUsize,
    closed: AtomicBool,
    retire_at: Option<Instant>,
    generation: u64,
    span: Option<SpanContext>,
    began: Instant,
    /// Milliseconds after `began`.
    last_used: AtomicU64,
}

/// Begins HTTP/2 and starts the connection's task.
pub(super) async fn begin<IO>(
    dialled: Dialled<IO>,
    limits: &PoolLimits,
    tasks: &TaskTracker,
) -> Result<Arc<Connection>, h2::Error>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (io, heard) = Listening::new(dialled.io);
    let handshake = h2::client::Builder::new()
        .initial_window_size(limits.stream_window)
        .initial_connection_window_size(limits.connection_window)
        .max_send_buffer_size(limits.send_buffer)
        .max_header_list_size(MAX_HEAD)
        .enable_push(false)
        .handshake(io);
    let (requests, mut driver) = timeout(SETTINGS_TIMEOUT, handshake)
        .await
        .map_err(|_| h2::Error::from(h2::Reason::SETTINGS_TIMEOUT))??;
    let connection = Arc::new(Connection {
        requests,
        in_flight: AtomicUsize::new(0),
        closed: AtomicBool::new(false),
        retire_at: dialled.retire_at,
        generation: dialled.generation,
        span: dialled.span,
        began: Instant::now(),
        last_used: AtomicU64::new(0),
    });
    // The task must not keep the connection open: a connection ends when nobody holds it.
    let weak = Arc::downgrade(&connection);
    let (pings, silence) = (driver.ping_pong(), silence(limits, dialled.patience));
    tasks.spawn(async move {
        let ended = tokio::select! {
            ended = driver => ended.map_err(|error| error.to_string()),
            () = silent(pings, silence, &heard, &weak) => Err("no answer to a ping".to_owned()),
        };
        if let Some(connection) = weak.upgrade() {
            connection.closed.store(true, Relaxed);
        }
        if let Err(error) = ended {
            debug!(error, "connection ended");
        }
    });
    Ok(connection)
}

fn silence(limits: &PoolLimits, patience: Option<Duration>) -> Silence {
    let idle = Pace {
        ask: limits.keep_alive,
        patience: limits.keep_alive_timeout,
    };
    let busy = patience.map(|patience| Pace {
        ask: limits.keep_alive_busy,
        patience,
    });
    Silence::new(idle, busy.unwrap_or(idle))
}

/// Returns when the other side no longer answers.
async fn silent(
    pings: Option<PingPong>,
    mut silence: Silence,
    heard: &AtomicBool,
    connection: &Weak<Connection>,
) {
    let Some(mut pings) = pings else {
        return std::future::pending().await;
    };
    loop {
        let looked = tokio::time::Instant::now();
        sleep(silence.tick()).await;
        let connection = connection.upgrade();
        let busy = connection.is_some_and(|connection| connection.in_flight() > 0);
        match silence.look(looked.elapsed(), heard.swap(false, Relaxed), busy) {
            Next::Wait => {}
            Next::Ask => ask(&mut pings).await,
            Next::GiveUp => return,
        }
    }
}

/// Sends a ping. If the last one has not been answered, it will do; if the connection has ended,
/// its driver tells why.
async fn ask(pings: &mut PingPong) {
    poll_fn(|cx| {
        // Takes the last answer in, without which no other ping can be sent.
        let _ = pings.poll_pong(cx);
        Poll::Ready(())
    })
    .await;
    let _ = pings.send_ping(h2::Ping::opaque());
}

impl Connection {
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.load(Relaxed)
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Relaxed)
    }

    /// Whether it should be replaced.
    pub(super) fn is_old(&self, now: Instant, generation: u64) -> bool {
        self.generation != generation || self.retire_at.is_some_and(|at| now >= at)
    }

    /// Whether `newer` has come to replace it.
    pub(super) fn is_older_than(&self, newer: &Self) -> bool {
        self.generation < newer.generation || self.retire_at.is_some_and(|at| Instant::now() >= at)
    }

    pub(super) fn is_idle(&self, now: Instant, limit: Duration) -> bool {
        let used = self.began + Duration::from_millis(self.last_used.load(Relaxed));
        self.in_flight() == 0 && now.saturating_duration_since(used) >= limit
    }

    /// Not to be used any more, as a request has found out before the connection's task did.
    fn close(&self) {
        self.closed.store(true, Relaxed);
    }

    fn touch(&self) {
        let millis = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_used.store(millis, Relaxed);
    }
}

/// A connection on which one request is counted until this is dropped.
#[derive(Debug)]
pub struct Lease {
    connection: Arc<Connection>,
    given_up: CancellationToken,
}

impl Lease {
    pub(super) fn new(connection: Arc<Connection>, given_up: CancellationToken) -> Self {
        connection.in_flight.fetch_add(1, Relaxed);
        Self {
            connection,
            given_up,
        }
    }

    /// What a request is sent with.
    #[must_use]
    pub fn requests(&self) -> SendRequest<Bytes> {
        self.connection.requests.clone()
    }

    /// The connection's span, if that was recorded.
    #[must_use]
    pub fn span(&self) -> Option<SpanContext> {
        self.connection.span
    }

    /// Waits until the destination is given up (see [`Pool::abandon`](super::Pool::abandon)).
    pub async fn abandoned(&self) {
        self.given_up.cancelled().await;
    }

    /// Notes that the connection is lost or closing, so that no other request tries it.
    pub fn broken(&self) {
        self.connection.close();
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.connection.touch();
        self.connection.in_flight.fetch_sub(1, Relaxed);
    }
}

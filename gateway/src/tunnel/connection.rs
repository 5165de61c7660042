//! One live connection to a peer's gateway, as everyone but its own session sees it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use linkspan_api::v1::StreamCode;
use linkspan_routing::ClusterId;
use linkspan_runtime::telemetry::{Direction, LinkMetrics};
use tokio::sync::watch;

use super::close::{self, CloseCode};
use super::hello::Hello;
use super::plan::Purpose;
use super::streams::{Streams, Ticket};
use crate::account::StreamMetrics;
use crate::stream::QuicDuplex;

/// What changes in a connection's life. Its session is the only writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// Heartbeats are missing: no new streams.
    pub suspect: bool,
    /// One of the sides takes no new streams and lets the old ones end.
    pub draining: bool,
    /// The certificates that authenticated it near their end: another connection should take its
    /// place. Until there is one, it goes on.
    pub retiring: bool,
    /// Ready replicas that the peer told of.
    pub ready: u32,
}

impl State {
    /// Whether new streams may be opened.
    #[must_use]
    pub fn usable(self) -> bool {
        !self.suspect && !self.draining
    }
}

/// A connection whose hellos have been exchanged.
#[derive(Debug)]
pub struct Connection {
    /// Unique in this process.
    pub id: u64,
    /// The peer.
    pub cluster: ClusterId,
    /// The peer's replica.
    pub replica: Arc<str>,
    /// What it is for.
    pub purpose: Purpose,
    /// Whether we dialled it.
    pub dialled: bool,
    pub(crate) quic: quinn::Connection,
    pub(crate) streams: Arc<Streams>,
    /// Streams that the peer opened.
    pub(crate) inbound: StreamMetrics,
    /// Streams that we opened.
    pub(crate) outbound: StreamMetrics,
    refused: AtomicU32,
    /// When its certificates have spent most of their life.
    pub(super) retire_at: Instant,
    state: watch::Sender<State>,
    leave: watch::Sender<Option<CloseCode>>,
}

/// Why no stream could be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OpenError {
    /// The peer's limit of streams is reached.
    Busy,
    /// The connection is gone.
    Lost,
}

impl Connection {
    pub(crate) fn new(
        quic: quinn::Connection,
        hello: Hello,
        dialled: bool,
        retire_at: Instant,
        metrics: &LinkMetrics,
    ) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let state = State {
            suspect: false,
            draining: false,
            retiring: false,
            ready: hello.ready,
        };
        let streams = |way| StreamMetrics::new(metrics, hello.cluster.as_str(), way);
        Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            inbound: streams(Direction::Inbound),
            outbound: streams(Direction::Outbound),
            cluster: hello.cluster,
            replica: hello.replica,
            purpose: hello.purpose,
            dialled,
            quic,
            refused: AtomicU32::new(0),
            retire_at,
            streams: Arc::new(Streams::new()),
            state: watch::Sender::new(state),
            leave: watch::Sender::new(None),
        }
    }

    /// The state now.
    #[must_use]
    pub fn state(&self) -> State {
        *self.state.borrow()
    }

    /// Smoothed round-trip time.
    #[must_use]
    pub fn rtt(&self) -> Duration {
        self.quic.rtt()
    }

    /// The peer's UDP address.
    #[must_use]
    pub fn remote(&self) -> SocketAddr {
        self.quic.remote_address()
    }

    /// Streams open now.
    #[must_use]
    pub fn open_streams(&self) -> usize {
        self.streams.open()
    }

    /// Whether a refusal with that code is the first on this connection: the operator is told of
    /// each kind once, so that a peer cannot fill the log.
    pub(crate) fn is_news(&self, code: StreamCode) -> bool {
        let bit = 1_u32
            .checked_shl(u32::try_from(code as i32).unwrap_or(0))
            .unwrap_or(0);
        self.refused.fetch_or(bit, Ordering::Relaxed) & bit == 0
    }

    /// For its session only: changes the state; whether anything changed.
    pub(super) fn change(&self, change: impl FnOnce(&mut State)) -> bool {
        self.state.send_if_modified(|state| {
            let before = *state;
            change(state);
            *state != before
        })
    }

    /// Asks its session to end it once its streams have ended.
    pub(crate) fn leave(&self, code: CloseCode) {
        self.leave
            .send_if_modified(|leave| leave.replace(code).is_none());
    }

    /// For its session: why it was asked to leave.
    pub(super) fn leaving(&self) -> watch::Receiver<Option<CloseCode>> {
        self.leave.subscribe()
    }

    /// Closes it at once, with all its streams.
    pub(crate) fn close(&self, code: CloseCode) {
        close::close(&self.quic, code);
    }

    /// Opens a stream, waiting up to `busy` for a place in the peer's limit.
    pub(crate) async fn open(&self, busy: Duration) -> Result<(QuicDuplex, Ticket), OpenError> {
        let ticket = self.streams.ticket();
        match tokio::time::timeout(busy, self.quic.open_bi()).await {
            Ok(Ok(pair)) => Ok((QuicDuplex::new(pair), ticket)),
            Ok(Err(_)) => Err(OpenError::Lost),
            Err(_) => Err(OpenError::Busy),
        }
    }
}

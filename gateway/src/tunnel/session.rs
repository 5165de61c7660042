//! The life of one connection after its hellos: heartbeats, suspicion, incoming streams, leaving.
//!
//! Suspicion is not the end: a suspect connection takes no new streams and gives up those that
//! can be tried again elsewhere, but it lives on until QUIC's idle time-out, so that a path that
//! returns finds it. A connection that is asked to leave says Goaway, lets its streams end, and
//! is closed by the side that asked.

use std::pin::pin;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use linkspan_dataplane::frame::FrameError;
use linkspan_runtime::stop::Stop;
use linkspan_runtime::telemetry::LinkHandles;
use quinn::{ConnectionError, RecvStream, SendStream};
use tokio::sync::watch;
use tokio::time::{Instant as TokioInstant, MissedTickBehavior};
use tracing::{debug, info, warn};

use super::close::{CloseCode, ResetCode, code_of, unlinked_of};
use super::connection::Connection;
use super::control::{self, Control};
use super::handshake::ControlStream;
use super::health::{Change, Detector, Reason};
use super::hello;
use super::plan::Purpose;
use super::wear::Wear;
use crate::limits::{Limits, Timers};
use crate::peers::Reporter;

/// Ticks between two looks at what QUIC has counted: some seconds.
const MEASURE: u64 = 16;

/// Takes the streams that a peer opens.
pub(crate) trait Incoming: Send + Sync + 'static {
    /// Serves one stream in a task of its own.
    fn take(&self, from: &Arc<Connection>, stream: (SendStream, RecvStream));
}

/// What all sessions of a process share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) reporter: Reporter,
    pub(crate) incoming: Arc<dyn Incoming>,
    pub(crate) ready: watch::Receiver<u32>,
    pub(crate) timers: Timers,
    pub(crate) limits: Limits,
    pub(crate) stop: Stop,
}

/// The task of one connection.
pub(crate) struct Session {
    shared: Shared,
    connection: Arc<Connection>,
    metrics: LinkHandles,
    detector: Detector,
    ticks: u64,
    wear: Wear,
    /// A change that is to be reported with the next tick.
    unreported: bool,
    /// Since when nothing is carried, while leaving.
    quiet_since: Option<Instant>,
}

/// Why a session went on to its end.
#[derive(Debug)]
enum End {
    Lost(ConnectionError),
    Protocol(String),
    Left(CloseCode),
}

impl Session {
    pub(crate) fn new(shared: Shared, connection: Arc<Connection>, metrics: LinkHandles) -> Self {
        let detector = Detector::new(shared.timers.rhythm, now());
        Self {
            shared,
            connection,
            metrics,
            detector,
            ticks: 0,
            wear: Wear::default(),
            unreported: false,
            quiet_since: None,
        }
    }

    /// Reports the connection, lives it, and reports its end.
    pub(crate) async fn run(mut self, control: ControlStream) {
        let reporter = self.shared.reporter.clone();
        if let Err(code) = reporter.opened(self.connection.clone()).await {
            debug!(peer = %self.connection.cluster, code = code.label(), "connection refused");
            return self.connection.close(code);
        }
        info!(
            peer = %self.connection.cluster, replica = %self.connection.replica,
            purpose = ?self.connection.purpose, dialled = self.connection.dialled,
            remote = %self.connection.remote(), "tunnel connection established"
        );
        let end = self.live(control).await;
        self.measure();
        self.end(&end);
        if let End::Lost(error) = &end
            && let Some(invitation) = unlinked_of(error)
        {
            reporter
                .unlinked(&self.connection.cluster, invitation)
                .await;
        }
        reporter.closed(self.connection.clone()).await;
    }

    async fn live(&mut self, (send, recv): ControlStream) -> End {
        let connection = self.connection.clone();
        let quic = &connection.quic;
        let mut tick = tokio::time::interval(self.shared.timers.rhythm.tick());
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut writer = pin!(control::write(
            send,
            self.shared.ready.clone(),
            connection.leaving()
        ));
        let mut messages = pin!(messages(recv));
        loop {
            // Cancel-safe: an interval, quinn's accept and datagrams, and two pinned futures that
            // live on between the turns.
            let end = tokio::select! {
                _ = tick.tick() => self.on_tick().await,
                datagram = quic.read_datagram() => self.on_datagram(datagram).await,
                stream = quic.accept_bi() => self.on_stream(stream),
                Some(message) = messages.next() => self.on_control(message).await,
                error = &mut writer => self.on_broken(&error),
            };
            if let Some(end) = end {
                return end;
            }
        }
    }

    async fn on_tick(&mut self) -> Option<End> {
        let now = now();
        let change = self.detector.tick(now);
        self.apply(change).await;
        let broken = if self.ticks.is_multiple_of(2) {
            self.send_heartbeat(now)
        } else {
            None
        };
        self.ticks += 1;
        if self.ticks.is_multiple_of(MEASURE) {
            self.measure();
        }
        if broken.is_some() {
            return broken;
        }
        self.relieve();
        if now >= self.connection.retire_at && self.connection.change(|state| state.retiring = true)
        {
            self.unreported = true;
        }
        if std::mem::take(&mut self.unreported) {
            self.shared.reporter.changed().await;
        }
        self.left(now).await
    }

    fn measure(&mut self) {
        let now = self.connection.quic.stats();
        self.wear.count(&now, &self.metrics);
    }

    /// A heartbeat that cannot be sent now is as good as one lost on the way; a peer that takes
    /// no datagrams at all cannot be watched.
    fn send_heartbeat(&self, now: Instant) -> Option<End> {
        let heartbeat = control::heartbeat(self.ticks / 2, self.detector.silence(now));
        match self.connection.quic.send_datagram(heartbeat) {
            Err(quinn::SendDatagramError::UnsupportedByPeer) => {
                Some(End::Protocol("the peer takes no datagrams".to_owned()))
            }
            _ => None,
        }
    }

    async fn on_datagram(&mut self, datagram: Result<Bytes, ConnectionError>) -> Option<End> {
        let datagram = match datagram {
            Ok(datagram) => datagram,
            Err(error) => return Some(End::Lost(error)),
        };
        match control::unheard(&datagram) {
            Ok(Some(unheard)) => {
                let change = self.detector.heard(now(), unheard);
                self.apply(change).await;
                None
            }
            Ok(None) => None,
            Err(error) => Some(End::Protocol(format!("a malformed heartbeat: {error}"))),
        }
    }

    fn on_stream(&self, stream: Result<(SendStream, RecvStream), ConnectionError>) -> Option<End> {
        match stream {
            Ok(stream) => {
                self.shared.incoming.take(&self.connection, stream);
                None
            }
            Err(error) => Some(End::Lost(error)),
        }
    }

    async fn on_control(&mut self, message: Result<Control, FrameError>) -> Option<End> {
        let changed = match message {
            Ok(Control::Goaway) => self.connection.change(|state| state.draining = true),
            Ok(Control::Ready(told)) => {
                // News of it can wait for the next tick: a peer may say this at any rate, and
                // each report makes a table for everybody.
                let ready = hello::ready(told);
                self.unreported |= self.connection.change(|state| state.ready = ready);
                false
            }
            Ok(Control::Unknown) => false,
            Err(error) => return self.on_broken(&error),
        };
        if changed {
            self.shared.reporter.changed().await;
        }
        None
    }

    /// The control stream is as long as the connection: whoever ends it first breaks the rules,
    /// unless the connection itself has just ended.
    fn on_broken(&self, error: &FrameError) -> Option<End> {
        Some(match self.connection.quic.close_reason() {
            Some(reason) => End::Lost(reason),
            None => End::Protocol(format!("the control stream broke: {error}")),
        })
    }

    async fn apply(&mut self, change: Option<Change>) {
        let Some(change) = change else { return };
        let suspect = matches!(change, Change::Suspect(_));
        self.connection.change(|state| state.suspect = suspect);
        // First the table, so that what is cut below does not come back to this connection.
        self.shared.reporter.changed().await;
        self.connection.streams.set_suspect(suspect);
        self.tell(change);
    }

    fn tell(&self, change: Change) {
        let (peer, replica) = (&self.connection.cluster, &self.connection.replica);
        let streams = self.connection.open_streams();
        match change {
            Change::Suspect(reason) => {
                self.metrics.suspicions.inc();
                let why = match reason {
                    Reason::Silent => "its heartbeats are missing",
                    Reason::Unheard => "it does not hear our heartbeats",
                };
                warn!(%peer, %replica, why, streams, "tunnel connection is suspect");
            }
            Change::Clear => info!(%peer, %replica, streams, "tunnel connection is clear again"),
        }
    }

    fn relieve(&self) {
        let cut = self
            .connection
            .streams
            .relieve(now(), self.shared.limits.windows);
        if cut > 0 {
            let peer = &self.connection.cluster;
            warn!(%peer, cut, "readers that had stopped held up others; their streams are reset");
        }
    }

    /// While leaving, the connection is over once nothing has been carried for the farewell.
    async fn left(&mut self, now: Instant) -> Option<End> {
        if self.shared.stop.is_draining() {
            self.connection.leave(CloseCode::Drained);
        }
        let code = (*self.connection.leaving().borrow())?;
        if self.quiet_since.is_none() {
            self.begin_to_leave().await;
        }
        if self.connection.open_streams() > 0 {
            self.quiet_since = Some(now);
        }
        let quiet = now.saturating_duration_since(*self.quiet_since.get_or_insert(now));
        (quiet >= self.shared.timers.farewell).then_some(End::Left(code))
    }

    /// The federations' streams would never end by themselves, but resume elsewhere: they are cut.
    async fn begin_to_leave(&self) {
        self.connection.change(|state| state.draining = true);
        self.shared.reporter.changed().await;
        if self.connection.purpose == Purpose::Sync {
            self.connection.streams.cut_all(ResetCode::Withdrawn);
        }
    }

    fn end(&self, end: &End) {
        let (peer, replica) = (&self.connection.cluster, &self.connection.replica);
        match end {
            End::Left(code) => {
                self.connection.close(*code);
                info!(%peer, %replica, code = code.label(), "tunnel connection ended by us");
            }
            End::Protocol(what) => {
                self.connection.close(CloseCode::Protocol);
                warn!(%peer, %replica, %what, "tunnel connection closed: the peer broke the rules");
            }
            End::Lost(error) => {
                let code = code_of(error).map(CloseCode::label);
                // As a string, so that the peer's words in it are escaped.
                let error = error.to_string();
                info!(%peer, %replica, error, code, "tunnel connection lost");
            }
        }
    }
}

/// The control stream as a stream of messages, up to and including its first error.
fn messages(recv: RecvStream) -> impl Stream<Item = Result<Control, FrameError>> {
    stream::unfold(Some(recv), |recv| async move {
        let mut recv = recv?;
        let message = control::read(&mut recv).await;
        let rest = message.is_ok().then_some(recv);
        Some((message, rest))
    })
}

/// Follows tokio's clock, which tests may hold.
fn now() -> Instant {
    TokioInstant::now().into_std()
}

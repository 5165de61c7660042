//! Opens a stream to a peer for a local caller, on one connection after another.
//!
//! The caller is not kept waiting: what it sends is passed on at once, and kept (at most 16 KiB;
//! before the answer it can only be the inner ClientHello) until the answer has come. When the
//! connection is lost before that, all of it is sent again on another one.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use linkspan_api::v1::{self, StreamCode};
use linkspan_dataplane::detect::tls::MAX_CLIENT_HELLO;
use linkspan_dataplane::frame::{self, FrameError, MAX_STREAM_RESULT};
use linkspan_routing::ClusterLabel;
use quinn::{RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tracing::debug;

use crate::limits::Timers;
use crate::peers::Peers;
use crate::stream::QuicDuplex;
use crate::tunnel::close::ResetCode;
use crate::tunnel::connection::{Connection, OpenError};
use crate::tunnel::open::{self, Opening};
use crate::tunnel::plan::Purpose;
use crate::tunnel::streams::Ticket;

/// So many connections are tried: those of all distinct replicas, and one that came meanwhile.
const TRIES: usize = 4;

/// What to open.
pub(super) struct Wanted {
    pub(super) cluster: ClusterLabel,
    pub(super) purpose: Purpose,
    pub(super) opening: Opening,
    /// The inner ClientHello offers HTTP.
    pub(super) http: bool,
}

/// A stream that the peer has answered with `OK`.
pub(super) struct Established {
    pub(super) connection: Arc<Connection>,
    pub(super) quic: QuicDuplex,
    pub(super) ticket: Ticket,
    /// Read of the caller, but not yet passed on.
    pub(super) rest: Bytes,
}

/// Why there is no stream.
#[derive(Debug)]
pub(super) enum Failure {
    /// To be told to the caller.
    Refused(StreamCode),
    /// The caller has gone.
    Caller(std::io::Error),
}

/// How one try failed.
enum Miss {
    /// Nothing was done for us; another connection may do it.
    Elsewhere(StreamCode),
    Final(Failure),
}

/// Opens streams.
#[derive(Clone)]
pub(super) struct Opener {
    pub(super) peers: watch::Receiver<Arc<Peers>>,
    pub(super) timers: Timers,
}

impl Opener {
    /// Opens a stream, passing on what `caller` sends meanwhile.
    pub(super) async fn open<C>(
        &self,
        wanted: &Wanted,
        caller: &mut C,
    ) -> Result<Established, Failure>
    where
        C: AsyncRead + Unpin,
    {
        let until = Instant::now() + self.timers.result;
        let mut sent = Sent::default();
        let mut tried = Vec::new();
        let mut code = StreamCode::NoTunnel;
        while tried.len() < TRIES && Instant::now() < until {
            let Some(connection) = self.choose(wanted, &tried) else {
                break;
            };
            tried.push(connection.id);
            let attempt = self.attempt(wanted, &connection, caller, &mut sent, until);
            match attempt.await {
                Ok((quic, ticket, rest)) => {
                    return Ok(Established {
                        connection,
                        quic,
                        ticket,
                        rest,
                    });
                }
                Err(Miss::Final(failure)) => return Err(failure),
                Err(Miss::Elsewhere(miss)) => {
                    connection.outbound.ended(open::label(miss));
                    debug!(replica = %connection.replica, code = open::label(miss), "trying another connection");
                    code = miss;
                }
            }
        }
        Err(Failure::Refused(code))
    }

    /// The least loaded usable connection that has not been tried; crowded and retiring ones only
    /// if no other is left.
    fn choose(&self, wanted: &Wanted, tried: &[u64]) -> Option<Arc<Connection>> {
        let peers = self.peers.borrow().clone();
        let usable = peers.by_label(&wanted.cluster)?.usable(wanted.purpose);
        let fresh = usable.filter(|connection| !tried.contains(&connection.id));
        let load = |held: &&Arc<Connection>| {
            (
                held.state().retiring,
                held.streams.is_crowded(),
                held.open_streams(),
            )
        };
        fresh.min_by_key(load).cloned()
    }

    async fn attempt<C: AsyncRead + Unpin>(
        &self,
        wanted: &Wanted,
        connection: &Connection,
        caller: &mut C,
        sent: &mut Sent,
        until: Instant,
    ) -> Result<(QuicDuplex, Ticket, Bytes), Miss> {
        let left = until.saturating_duration_since(Instant::now());
        let opened = connection.open(self.timers.busy.min(left)).await;
        let (mut quic, ticket) = opened.map_err(|error| match error {
            OpenError::Busy => Miss::Elsewhere(StreamCode::Busy),
            OpenError::Lost => Miss::Elsewhere(StreamCode::NoTunnel),
        })?;
        ticket.expendable();
        let answered = tokio::select! {
            answered = ask(&mut quic, &wanted.opening, caller, sent, until) => answered,
            code = ticket.cut() => {
                quic.cause().set(code);
                Err(Miss::Elsewhere(StreamCode::NoTunnel))
            }
        };
        if !wanted.http {
            ticket.keep();
        }
        answered.map(|rest| (quic, ticket, rest))
    }
}

/// What the caller has sent so far.
#[derive(Default)]
struct Sent {
    bytes: BytesMut,
    /// The caller has ended its direction; the relay will see that again.
    ended: bool,
}

impl Sent {
    fn wants_more(&self) -> bool {
        !self.ended && self.bytes.len() < MAX_CLIENT_HELLO
    }

    /// Reads what comes next; cancel-safe.
    async fn read<C: AsyncRead + Unpin>(&mut self, caller: &mut C) -> std::io::Result<()> {
        let left = MAX_CLIENT_HELLO - self.bytes.len();
        let count = caller.take(left as u64).read_buf(&mut self.bytes).await?;
        self.ended = count == 0;
        Ok(())
    }
}

/// Sends the opening and what the caller has sent and sends, and waits for the answer. Gives what
/// had been read of the caller but not been taken by the stream when the answer came.
async fn ask<C: AsyncRead + Unpin>(
    quic: &mut QuicDuplex,
    opening: &Opening,
    caller: &mut C,
    sent: &mut Sent,
    until: Instant,
) -> Result<Bytes, Miss> {
    let cause = quic.cause();
    let (send, recv) = quic.halves();
    let mut passed = 0;
    let asked = async {
        let answer = answer(recv);
        let passing = pass_on(send, opening, caller, sent, &mut passed);
        tokio::pin!(answer, passing);
        tokio::select! {
            answer = &mut answer => answer,
            Err(error) = &mut passing => Err(Miss::Final(Failure::Caller(error))),
        }
    };
    let answered = timeout_at(until, asked).await.unwrap_or_else(|_| {
        cause.set(ResetCode::Idle);
        // The peer says in time when it is the endpoint that takes no connection.
        Err(Miss::Final(Failure::Refused(StreamCode::Busy)))
    });
    answered.map(|()| Bytes::copy_from_slice(&sent.bytes[passed..]))
}

/// Passes on until it is dropped, when `passed` says how far it came; ends early only when the
/// caller fails. A stream that takes no more has been answered or is lost: the answer will tell.
async fn pass_on<C: AsyncRead + Unpin>(
    send: &mut SendStream,
    opening: &Opening,
    caller: &mut C,
    sent: &mut Sent,
    passed: &mut usize,
) -> std::io::Result<()> {
    let mut takes = send.write_all(&opening.encode()).await.is_ok();
    while takes {
        if *passed < sent.bytes.len() {
            // Cancel-safe: what is written is counted in the same turn.
            match send.write(&sent.bytes[*passed..]).await {
                Ok(count) => *passed += count,
                Err(_) => takes = false,
            }
        } else if sent.wants_more() {
            sent.read(caller).await?;
        } else {
            takes = false;
        }
    }
    std::future::pending().await
}

async fn answer(recv: &mut RecvStream) -> Result<(), Miss> {
    let result: Result<v1::StreamResult, FrameError> =
        frame::read_message(recv, MAX_STREAM_RESULT).await;
    match result.as_ref().map(open::code) {
        Ok(StreamCode::Ok) => Ok(()),
        Ok(code @ (StreamCode::Busy | StreamCode::Draining)) => Err(Miss::Elsewhere(code)),
        Ok(code) => Err(Miss::Final(Failure::Refused(code))),
        // Reset before the answer, or its connection is lost: nothing was done for us.
        Err(FrameError::Io(_) | FrameError::Truncated) => {
            Err(Miss::Elsewhere(StreamCode::NoTunnel))
        }
        Err(_) => Err(Miss::Final(Failure::Refused(StreamCode::ConnectFailed))),
    }
}

//! Copying bytes both ways so that each side sees exactly the end that the other side made:
//! a half-close arrives as a half-close, and anything cut short arrives as a reset, never as a clean end.
//!
//! [`relay`] holds a guard that resets *both* sides unless it saw the end of both directions. The
//! guard also acts when the future is dropped, so aborting a relay cannot turn truncation into a
//! clean end either.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    task::{Context, Poll, ready},
    time::Duration,
};

use linkspan_runtime::telemetry::IntCounter;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep, sleep_until},
};

/// Bytes read at a time in each direction: two full TLS records, small enough for ten thousand relays.
const BUFFER: usize = 32 * 1024;

/// A connection in two directions, each of which ends on its own; and all of it at once by a reset.
///
/// Contract: `poll_shutdown` ends our direction cleanly and leaves the other usable; a read of
/// zero bytes means that the peer ended *its* direction cleanly; truncation is an error.
pub trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {
    /// Makes the end visible to the peer as a failure. Takes effect at the latest when `self` is
    /// dropped; nothing may be read or written afterwards.
    fn reset(&mut self);
}

impl Duplex for TcpStream {
    fn reset(&mut self) {
        // With no time to linger, closing sends RST and drops what is unsent. An error means
        // that the socket is dead already.
        let _ = self.set_zero_linger();
    }
}

impl<IO: Duplex> Duplex for tokio_rustls::client::TlsStream<IO> {
    fn reset(&mut self) {
        self.get_mut().0.reset();
    }
}

impl<IO: Duplex> Duplex for tokio_rustls::server::TlsStream<IO> {
    fn reset(&mut self) {
        self.get_mut().0.reset();
    }
}

impl<T: Duplex + ?Sized> Duplex for Box<T> {
    fn reset(&mut self) {
        (**self).reset();
    }
}

/// Bounds of a relay.
#[derive(Clone, Copy, Debug)]
pub struct RelayLimits {
    /// Longest time without a byte in either direction. Default 1 hour, as an idle but healthy
    /// connection costs about 64 KiB; half of a tunnel uses shorter ones.
    pub idle: Duration,
}

impl Default for RelayLimits {
    fn default() -> Self {
        Self {
            idle: Duration::from_secs(3600),
        }
    }
}

/// Bytes relayed so far; readable while the relay runs and after it failed.
#[derive(Debug, Default)]
pub struct Counters {
    sent: AtomicU64,
    received: AtomicU64,
    metrics: Option<(IntCounter, IntCounter)>,
}

impl Counters {
    /// Counts into these metrics, too.
    #[must_use]
    pub fn with_metrics(sent: IntCounter, received: IntCounter) -> Self {
        Self {
            metrics: Some((sent, received)),
            ..Self::default()
        }
    }

    /// Bytes from the first side to the second.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.load(Relaxed)
    }

    /// Bytes from the second side to the first.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received.load(Relaxed)
    }

    /// Both.
    #[must_use]
    pub fn transfer(&self) -> Transfer {
        Transfer {
            sent: self.sent(),
            received: self.received(),
        }
    }

    /// Adds bytes that went from the first side to the second outside of a relay.
    pub fn add_sent(&self, count: u64) {
        self.sent.fetch_add(count, Relaxed);
        if let Some((sent, _)) = &self.metrics {
            sent.inc_by(count);
        }
    }

    /// Adds bytes that went from the second side to the first outside of a relay.
    pub fn add_received(&self, count: u64) {
        self.received.fetch_add(count, Relaxed);
        if let Some((_, received)) = &self.metrics {
            received.inc_by(count);
        }
    }
}

/// What a relay carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Transfer {
    /// Bytes from the first side to the second.
    pub sent: u64,
    /// Bytes from the second side to the first.
    pub received: u64,
}

/// One side of a relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The first argument.
    First,
    /// The second argument.
    Second,
}

impl std::fmt::Display for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::First => "first",
            Self::Second => "second",
        })
    }
}

/// Why a relay was cut; both sides have been reset.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// No byte for too long.
    #[error("no byte in either direction for {0:?}")]
    Idle(Duration),
    /// A side could not be read.
    #[error("the {side} side was cut")]
    Read {
        /// Which.
        side: Side,
        /// How.
        source: io::Error,
    },
    /// A side could not be written.
    #[error("the {side} side takes no more")]
    Write {
        /// Which.
        side: Side,
        /// Why.
        source: io::Error,
    },
}

/// Relays until both directions ended cleanly. On an error, or when dropped before, both sides
/// are reset; then they must be dropped soon, for the resets to be seen.
///
/// # Errors
/// See [`RelayError`].
pub async fn relay<A: Duplex, B: Duplex>(
    first: &mut A,
    second: &mut B,
    limits: RelayLimits,
    counters: &Counters,
) -> Result<Transfer, RelayError> {
    let mut guard = Guard {
        first,
        second,
        ended: false,
    };
    let mut there = OneWay::new(Side::First);
    let mut back = OneWay::new(Side::Second);
    let mut idle = std::pin::pin!(Idle::new(limits.idle));
    poll_fn(|cx| {
        let to = there.poll(cx, guard.first, guard.second, |count| {
            counters.add_sent(count);
        })?;
        let fro = back.poll(cx, guard.second, guard.first, |count| {
            counters.add_received(count);
        })?;
        if to.is_ready() && fro.is_ready() {
            return Poll::Ready(Ok(()));
        }
        let progress = there.take_progress() | back.take_progress();
        ready!(idle.as_mut().poll(cx, progress));
        Poll::Ready(Err(RelayError::Idle(limits.idle)))
    })
    .await?;
    guard.ended = true;
    Ok(counters.transfer())
}

/// Resets both sides unless both directions ended.
struct Guard<'a, A: Duplex, B: Duplex> {
    first: &'a mut A,
    second: &'a mut B,
    ended: bool,
}

impl<A: Duplex, B: Duplex> Drop for Guard<'_, A, B> {
    fn drop(&mut self) {
        if !self.ended {
            self.first.reset();
            self.second.reset();
        }
    }
}

/// The idle time-out of a whole relay; the timer is moved only when it fires.
struct Idle {
    limit: Duration,
    last: Instant,
    timer: Pin<Box<Sleep>>,
}

impl Idle {
    fn new(limit: Duration) -> Self {
        let last = Instant::now();
        Self {
            limit,
            last,
            timer: Box::pin(sleep_until(last + limit)),
        }
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>, progress: bool) -> Poll<()> {
        if progress {
            self.last = Instant::now();
        }
        loop {
            ready!(self.timer.as_mut().poll(cx));
            let due = self.last + self.limit;
            if due <= self.timer.deadline() {
                return Poll::Ready(());
            }
            self.timer.as_mut().reset(due);
        }
    }
}

/// One direction: a buffer between one side's reads and the other's writes.
struct OneWay {
    from: Side,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    unflushed: bool,
    progress: bool,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Copying,
    /// The reader ended; what is buffered and then the end itself are still to be written.
    Ending,
    Ended,
}

impl OneWay {
    fn new(from: Side) -> Self {
        let buffer = vec![0; BUFFER].into_boxed_slice();
        Self {
            from,
            buffer,
            start: 0,
            end: 0,
            unflushed: false,
            progress: false,
            state: State::Copying,
        }
    }

    fn take_progress(&mut self) -> bool {
        std::mem::take(&mut self.progress)
    }

    /// Copies as long as both sides are ready; ready when the end has been passed on.
    fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
        count: impl Fn(u64),
    ) -> Poll<Result<(), RelayError>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        loop {
            while self.start < self.end {
                let written = ready!(
                    Pin::new(&mut *writer).poll_write(cx, &self.buffer[self.start..self.end])
                );
                let written = written
                    .and_then(none_is_error)
                    .map_err(|error| self.write_error(error))?;
                self.start += written;
                (self.unflushed, self.progress) = (true, true);
                count(written as u64);
            }
            match self.state {
                State::Copying => ready!(self.poll_fill(cx, reader, writer))?,
                State::Ending => {
                    let ended = ready!(Pin::new(&mut *writer).poll_shutdown(cx));
                    ended.map_err(|error| self.write_error(error))?;
                    (self.state, self.progress) = (State::Ended, true);
                }
                State::Ended => return Poll::Ready(Ok(())),
            }
        }
    }

    /// Fills the empty buffer; while there is nothing to read, makes sure that what was written leaves.
    fn poll_fill<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
    ) -> Poll<Result<(), RelayError>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let mut buffer = ReadBuf::new(&mut self.buffer);
        match Pin::new(reader).poll_read(cx, &mut buffer) {
            Poll::Ready(Ok(())) => {
                (self.start, self.end) = (0, buffer.filled().len());
                self.progress = true;
                if self.end == 0 {
                    self.state = State::Ending;
                }
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(source)) => Poll::Ready(Err(RelayError::Read {
                side: self.from,
                source,
            })),
            Poll::Pending => {
                if self.unflushed {
                    let flushed = ready!(Pin::new(writer).poll_flush(cx));
                    flushed.map_err(|error| self.write_error(error))?;
                    self.unflushed = false;
                }
                Poll::Pending
            }
        }
    }

    fn write_error(&self, source: io::Error) -> RelayError {
        let side = match self.from {
            Side::First => Side::Second,
            Side::Second => Side::First,
        };
        RelayError::Write { side, source }
    }
}

fn none_is_error(written: usize) -> io::Result<usize> {
    if written == 0 {
        Err(io::ErrorKind::WriteZero.into())
    } else {
        Ok(written)
    }
}

#[cfg(test)]
#[path = "bytes_tests.rs"]
mod tests;

//! A peer's connection, read no faster than its quota allows.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep},
};

use super::quota::{Meter, Pace, Rates};

/// The account of a peer, shared by its streams.
#[derive(Clone, Debug)]
pub(super) struct Account(Arc<Mutex<Meter>>);

impl Account {
    pub(super) fn new(rates: Rates) -> Self {
        Self(Arc::new(Mutex::new(Meter::new(rates, now()))))
    }

    pub(super) fn charge(&self, bytes: usize, messages: usize) -> Pace {
        self.lock().charge(bytes, messages, now())
    }

    pub(super) fn debt(&self) -> Duration {
        self.lock().debt(now())
    }

    /// Whether it is as good as new.
    pub(super) fn is_full(&self) -> bool {
        self.lock().is_full(now())
    }

    /// Whether a connection or a stream still charges to it.
    pub(super) fn is_in_use(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }

    fn lock(&self) -> MutexGuard<'_, Meter> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}

/// When the next read of a connection may be, by what the last ones have cost.
pub(crate) struct Metering {
    account: Account,
    pause: Option<Pin<Box<Sleep>>>,
    ended: bool,
}

impl Metering {
    pub(super) fn new(account: Account) -> Self {
        Self {
            account,
            pause: None,
            ended: false,
        }
    }

    /// Whether more may be read.
    ///
    /// # Errors
    /// [`io::ErrorKind::QuotaExceeded`] once it has been too much for too long.
    pub(crate) fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.ended {
            return Poll::Ready(Err(io::ErrorKind::QuotaExceeded.into()));
        }
        if let Some(pause) = &mut self.pause {
            ready!(pause.as_mut().poll(context));
            self.pause = None;
        }
        Poll::Ready(Ok(()))
    }

    /// So much was read, which is handed on; the next read waits, or is none: then it is true.
    pub(crate) fn charge(&mut self, bytes: usize) -> bool {
        match self.account.charge(bytes, 0) {
            Pace::Go => {}
            Pace::Wait(pause) => self.pause = Some(Box::pin(sleep(pause))),
            Pace::Close => self.ended = true,
        }
        self.ended
    }
}

/// A byte stream whose reads are charged.
pub(super) struct Metered<IO> {
    io: IO,
    metering: Metering,
    /// Set when the peer has been above its rates for too long.
    exceeded: Arc<tokio::sync::Notify>,
}

impl<IO> Metered<IO> {
    /// `exceeded` is told once when reading ends for this reason.
    pub(super) fn new(io: IO, account: Account, exceeded: Arc<tokio::sync::Notify>) -> Self {
        Self {
            io,
            metering: Metering::new(account),
            exceeded,
        }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Metered<IO> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.metering.poll_ready(context))?;
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.io).poll_read(context, buffer))?;
        if this.metering.charge(buffer.filled().len() - before) {
            this.exceeded.notify_one();
        }
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Metered<IO> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::sync::quota::Rate;

    const SMALL: Rates = Rates {
        bytes: Rate {
            burst: 10_000.0,
            per_second: 1_000.0,
        },
        messages: Rate {
            burst: 10.0,
            per_second: 1.0,
        },
    };

    fn pair() -> (tokio::io::DuplexStream, Metered<tokio::io::DuplexStream>) {
        let (peer, own) = tokio::io::duplex(1_000);
        let exceeded = Arc::default();
        (peer, Metered::new(own, Account::new(SMALL), exceeded))
    }

    #[tokio::test(start_paused = true)]
    async fn the_peer_feels_that_it_is_read_at_its_rate() {
        let (mut peer, mut own) = pair();
        let started = Instant::now();
        let writing = tokio::spawn(async move { peer.write_all(&[0; 30_000]).await });
        let mut read = vec![0; 30_000];
        own.read_exact(&mut read).await.unwrap();
        writing.await.unwrap().unwrap();
        // The burst at once; the rest, but for what was in the last read, at the rate.
        let took = started.elapsed();
        assert!(took >= Duration::from_secs(19), "{took:?}");
        assert!(took <= Duration::from_secs(21), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_ends_the_connection() {
        let (mut peer, mut own) = pair();
        let flooding =
            tokio::spawn(async move { while peer.write_all(&[0; 500]).await.is_ok() {} });
        let error = own.read_to_end(&mut Vec::new()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::QuotaExceeded);
        own.exceeded.notified().await;
        drop(own);
        flooding.await.unwrap();
    }
}

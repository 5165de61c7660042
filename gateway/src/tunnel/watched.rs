//! The TCP side of a stream, whose blocked writes are seen by the connection.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use linkspan_dataplane::forward::bytes::Duplex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::streams::Gauge;

/// A duplex that reports to a [`Gauge`] when its reader has stopped.
pub(crate) struct Watched<T> {
    inner: T,
    gauge: Gauge,
}

impl<T> Watched<T> {
    pub(crate) fn new(inner: T, gauge: Gauge) -> Self {
        Self { inner, gauge }
    }

    fn note<R>(&self, poll: Poll<R>) -> Poll<R> {
        if poll.is_pending() {
            self.gauge.blocked();
        } else {
            self.gauge.moved();
        }
        poll
    }
}

impl<T: Duplex> Duplex for Watched<T> {
    fn reset(&mut self) {
        self.inner.reset();
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Watched<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Watched<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let poll = Pin::new(&mut this.inner).poll_write(cx, buf);
        this.note(poll)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let poll = Pin::new(&mut this.inner).poll_write_vectored(cx, bufs);
        this.note(poll)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}

//! What is it? Bounded looks at the first bytes, which are kept for whoever comes next.

pub mod http;
pub mod tls;

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::forward::bytes::Duplex;

/// Why the first bytes could not be judged.
#[derive(Debug, thiserror::Error)]
pub enum DetectError {
    /// They did not come in time.
    #[error("the first bytes did not arrive within {0:?}")]
    Timeout(Duration),
    /// The connection ended before they were complete.
    #[error("the connection ended within its first bytes")]
    Ended,
    /// More than the bound.
    #[error("the first message is longer than {0} bytes")]
    TooLong(usize),
    /// Not what was expected here.
    #[error("the first bytes are no TLS ClientHello: {0}")]
    Malformed(&'static str),
    /// The connection failed.
    #[error("the connection failed within its first bytes")]
    Io(#[from] io::Error),
}

/// A connection whose first bytes were read already, and are read again.
#[derive(Debug)]
pub struct Prefixed<IO> {
    prefix: Bytes,
    io: IO,
}

impl<IO> Prefixed<IO> {
    /// `io` as if `prefix` had not been read from it yet.
    pub fn new(prefix: impl Into<Bytes>, io: IO) -> Self {
        Self {
            prefix: prefix.into(),
            io,
        }
    }

    /// What was read ahead and not read again yet.
    pub fn prefix(&self) -> &Bytes {
        &self.prefix
    }

    /// The connection itself.
    pub fn get_ref(&self) -> &IO {
        &self.io
    }

    /// The connection itself.
    pub fn get_mut(&mut self) -> &mut IO {
        &mut self.io
    }

    /// What was read ahead, and the connection.
    pub fn into_parts(self) -> (Bytes, IO) {
        (self.prefix, self.io)
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Prefixed<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.prefix.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, buf);
        }
        let count = self.prefix.len().min(buf.remaining());
        buf.put_slice(&self.prefix[..count]);
        self.prefix.advance(count);
        if self.prefix.is_empty() {
            // Gives the allocation back for the rest of the connection's life.
            self.prefix = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Prefixed<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

impl<IO: Duplex> Duplex for Prefixed<IO> {
    fn reset(&mut self) {
        self.io.reset();
    }
}

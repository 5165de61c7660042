//! A connection within the process: between a stream of the tunnel, which is counted and cut like any
//! other, and whoever serves it here.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use linkspan_dataplane::forward::bytes::Duplex;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};

/// Bytes under way in each direction: what a relay reads at a time, twice.
const BUFFER: usize = 64 * 1024;

/// One end. What the other end did not end by a shutdown reads as a reset here.
#[derive(Debug)]
pub(crate) struct End {
    io: DuplexStream,
    /// Whether we have ended our direction.
    ended: Arc<AtomicBool>,
    /// Whether the other end has ended its.
    other_ended: Arc<AtomicBool>,
}

/// Both ends.
pub(crate) fn pipe() -> (End, End) {
    let (one, other) = tokio::io::duplex(BUFFER);
    let ended: [Arc<AtomicBool>; 2] = Default::default();
    let [of_one, of_other] = ended;
    let first = End {
        io: one,
        ended: Arc::clone(&of_one),
        other_ended: Arc::clone(&of_other),
    };
    let second = End {
        io: other,
        ended: of_other,
        other_ended: of_one,
    };
    (first, second)
}

impl Duplex for End {
    fn reset(&mut self) {
        // Takes effect when we are dropped: the other end then reads an end that is none.
        self.ended.store(false, Ordering::Relaxed);
    }
}

impl AsyncRead for End {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buffer))?;
        let nothing = buffer.filled().len() == before && buffer.remaining() > 0;
        // The lock inside of the stream orders this after what the other end stored.
        if nothing && !self.other_ended.load(Ordering::Relaxed) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for End {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.ended.store(true, Ordering::Relaxed);
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_shutdown_is_an_end_and_leaves_the_other_direction() {
        let (mut one, mut other) = pipe();
        one.write_all(b"ask").await.unwrap();
        one.shutdown().await.unwrap();
        let mut read = Vec::new();
        other.read_to_end(&mut read).await.unwrap();
        assert_eq!(read, b"ask");
        other.write_all(b"answer").await.unwrap();
        other.shutdown().await.unwrap();
        drop(other);
        read.clear();
        one.read_to_end(&mut read).await.unwrap();
        assert_eq!(read, b"answer");
    }

    #[tokio::test]
    async fn what_breaks_off_is_no_end() {
        for reset_after_end in [false, true] {
            let (mut one, mut other) = pipe();
            one.write_all(b"as").await.unwrap();
            if reset_after_end {
                one.shutdown().await.unwrap();
                one.reset();
            }
            drop(one);
            let mut read = Vec::new();
            let error = other.read_to_end(&mut read).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
            assert_eq!(read, b"as");
        }
    }
}

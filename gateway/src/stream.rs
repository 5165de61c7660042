//! A tunnel stream as one duplex that cannot lie about its end.
//!
//! Dropping a quinn `SendStream` finishes it, and a `RecvStream` that was reset reads as a clean
//! end from the second time on: both would turn a truncated transfer into a complete one. Here a
//! failed stream stays failed, and dropping resets both directions unless both have seen their FIN.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, ready};

use linkspan_dataplane::forward::bytes::Duplex;
use quinn::{RecvStream, SendStream, VarInt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::tunnel::close::ResetCode;

/// The code that a stream's reset will carry; shared with whoever decides to cut the stream.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cause(Arc<AtomicU32>);

impl Cause {
    pub(crate) fn set(&self, code: ResetCode) {
        self.0.store(code as u32, Ordering::Relaxed);
    }

    fn wire(&self) -> VarInt {
        VarInt::from_u32(self.0.load(Ordering::Relaxed))
    }
}

/// How far one direction has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Half {
    Open,
    /// Ended by a FIN: seen by us, or sent by us.
    Finished,
    /// Reset by either side, or its connection is lost.
    Failed,
}

/// Both directions of one bidirectional stream of a tunnel connection.
#[derive(Debug)]
pub(crate) struct QuicDuplex {
    send: SendStream,
    recv: RecvStream,
    sending: Half,
    receiving: Half,
    cause: Cause,
}

impl QuicDuplex {
    pub(crate) fn new((send, recv): (SendStream, RecvStream)) -> Self {
        let cause = Cause::default();
        Self {
            send,
            recv,
            sending: Half::Open,
            receiving: Half::Open,
            cause,
        }
    }

    /// Where to say with which code this stream is to be reset.
    pub(crate) fn cause(&self) -> Cause {
        self.cause.clone()
    }

    /// Both directions, for use side by side; only before the first byte of the relay.
    pub(crate) fn halves(&mut self) -> (&mut SendStream, &mut RecvStream) {
        (&mut self.send, &mut self.recv)
    }

    /// Stops receiving, unless the peer's FIN has been seen.
    fn stop(&mut self) {
        if self.receiving == Half::Open {
            // An error only says that the stream is closed already; so below.
            let _ = self.recv.stop(self.cause.wire());
            self.receiving = Half::Failed;
        }
    }
}

impl Duplex for QuicDuplex {
    /// Both ways, as a TCP reset does: what was finished but is not acknowledged yet is cut, too.
    fn reset(&mut self) {
        self.stop();
        let _ = self.send.reset(self.cause.wire());
        self.sending = Half::Failed;
    }
}

impl Drop for QuicDuplex {
    /// Whatever has not seen its FIN is reset; what has been finished still arrives.
    fn drop(&mut self) {
        self.stop();
        if self.sending == Half::Open {
            let _ = self.send.reset(self.cause.wire());
        }
    }
}

fn failed() -> io::Error {
    io::Error::new(
        io::ErrorKind::ConnectionReset,
        "the tunnel stream was reset",
    )
}

impl AsyncRead for QuicDuplex {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match this.receiving {
            Half::Finished => return Poll::Ready(Ok(())),
            Half::Failed => return Poll::Ready(Err(failed())),
            Half::Open => {}
        }
        let before = buf.filled().len();
        let result = ready!(Pin::new(&mut this.recv).poll_read_buf(cx, buf));
        match result {
            Ok(()) if buf.filled().len() == before && buf.remaining() > 0 => {
                this.receiving = Half::Finished;
            }
            Ok(()) => {}
            Err(error) => {
                this.receiving = Half::Failed;
                return Poll::Ready(Err(error.into()));
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for QuicDuplex {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.sending != Half::Open {
            return Poll::Ready(Err(failed()));
        }
        let result = ready!(Pin::new(&mut this.send).poll_write(cx, buf));
        Poll::Ready(result.map_err(|error| {
            this.sending = Half::Failed;
            error.into()
        }))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        Poll::Ready(match this.sending {
            Half::Finished => Ok(()),
            Half::Failed => Err(failed()),
            Half::Open => {
                let finished = this.send.finish().map_err(|_| failed());
                this.sending = if finished.is_ok() {
                    Half::Finished
                } else {
                    Half::Failed
                };
                finished
            }
        })
    }
}

//! The TCP leg under an inner TLS connection. Through a gateway it begins with a framed
//! `StreamResult`, which is read when the inner side first reads, so that the ClientHello leaves
//! without waiting for it.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use linkspan_api::v1::{StreamCode, StreamResult};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Sleep, sleep},
};

use crate::{
    forward::bytes::Duplex,
    frame::{self, FrameError, MAX_STREAM_RESULT},
};

/// Bytes of a frame's length.
const HEAD: usize = 2;

/// A TCP connection to an endpoint, or to a gateway that first says how it went.
#[derive(Debug)]
pub struct Leg {
    tcp: TcpStream,
    result: Option<Box<ResultReader>>,
}

/// What a gateway said instead of `ok`; carried in an [`io::Error`] through the TLS layer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ResultError {
    #[error("the gateway refused with {}", code.as_str_name())]
    Refused { code: StreamCode, message: String },
    #[error("the gateway's answer cannot be read")]
    Frame(#[from] FrameError),
    #[error("the gateway gave no answer within {0:?}")]
    Silent(Duration),
}

impl Leg {
    /// A connection on which the endpoint answers itself.
    #[must_use]
    pub fn direct(tcp: TcpStream) -> Self {
        Self { tcp, result: None }
    }

    /// A connection on which a gateway's `StreamResult` comes first, within `limit` from now.
    #[must_use]
    pub fn gateway(tcp: TcpStream, limit: Duration) -> Self {
        Self {
            tcp,
            result: Some(Box::new(ResultReader::new(limit))),
        }
    }
}

/// Reads exactly one frame and nothing after it.
#[derive(Debug)]
struct ResultReader {
    bytes: [u8; HEAD + MAX_STREAM_RESULT],
    filled: usize,
    limit: Duration,
    late: Pin<Box<Sleep>>,
}

impl ResultReader {
    fn new(limit: Duration) -> Self {
        Self {
            bytes: [0; HEAD + MAX_STREAM_RESULT],
            filled: 0,
            limit,
            late: Box::pin(sleep(limit)),
        }
    }

    /// Ready when the gateway said `ok`, or too late. After an error it gives the same error again.
    fn poll(&mut self, cx: &mut Context<'_>, tcp: &mut TcpStream) -> Poll<Result<(), ResultError>> {
        if let Poll::Ready(result) = self.poll_read(cx, tcp) {
            return Poll::Ready(result);
        }
        ready!(self.late.as_mut().poll(cx));
        Poll::Ready(Err(ResultError::Silent(self.limit)))
    }

    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        tcp: &mut TcpStream,
    ) -> Poll<Result<(), ResultError>> {
        loop {
            let seen = &self.bytes[..self.filled];
            if let Some((result, _)) = frame::decode::<StreamResult>(seen, MAX_STREAM_RESULT)? {
                return Poll::Ready(judge(result));
            }
            let want = self.want();
            let mut buffer = ReadBuf::new(&mut self.bytes[self.filled..want]);
            ready!(Pin::new(&mut *tcp).poll_read(cx, &mut buffer)).map_err(FrameError::from)?;
            if buffer.filled().is_empty() {
                return Poll::Ready(Err(FrameError::Truncated.into()));
            }
            self.filled += buffer.filled().len();
        }
    }

    /// Up to where to read: the length first, then the body. `decode` has refused longer ones.
    fn want(&self) -> usize {
        if self.filled < HEAD {
            return HEAD;
        }
        let length = usize::from(u16::from_be_bytes([self.bytes[0], self.bytes[1]]));
        (HEAD + length).min(self.bytes.len())
    }
}

fn judge(result: StreamResult) -> Result<(), ResultError> {
    match result.code() {
        StreamCode::Ok => Ok(()),
        code => Err(ResultError::Refused {
            code,
            message: result.message,
        }),
    }
}

impl AsyncRead for Leg {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let leg = &mut *self;
        if let Some(result) = &mut leg.result {
            ready!(result.poll(cx, &mut leg.tcp)).map_err(io::Error::other)?;
            leg.result = None;
        }
        Pin::new(&mut leg.tcp).poll_read(cx, buf)
    }
}

impl AsyncWrite for Leg {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }
}

impl Duplex for Leg {
    fn reset(&mut self) {
        self.tcp.reset();
    }
}

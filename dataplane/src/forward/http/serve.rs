//! Serving HTTP/1.1 or HTTP/2, whichever the client speaks, until drained.

use std::{future::Future, time::Duration};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Request, Response};
use http_body::Body;
use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto,
};
use linkspan_runtime::{BoxError, stop::Stop};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::task::TaskTracker;

use super::BodyError;

pub use hyper::body::Incoming;

/// Bounds of a served connection.
#[derive(Clone, Copy, Debug)]
pub struct ServeLimits {
    /// Requests at a time over one HTTP/2 connection. Default 1,024: with 64 KiB kept for each to
    /// send it again, 64 MiB at worst.
    pub streams: u32,
    /// Bytes of a body that may be under way before it is read (HTTP/2). Default 256 KiB.
    pub stream_window: u32,
    /// The same for all bodies of a connection. Default 2 MiB.
    pub connection_window: u32,
    /// Largest head, bytes. Default 64 KiB.
    pub head: u32,
    /// How long a head may take to arrive, and an HTTP/1.1 connection may be idle. Default 60 s.
    pub head_timeout: Duration,
    /// How often an idle HTTP/2 client is asked whether it still lives. Default 30 s, and as long
    /// again for its answer.
    pub keep_alive: Duration,
}

impl Default for ServeLimits {
    fn default() -> Self {
        Self {
            streams: 1024,
            stream_window: 256 * 1024,
            connection_window: 2 * 1024 * 1024,
            head: 64 * 1024,
            head_timeout: Duration::from_secs(60),
            keep_alive: Duration::from_secs(30),
        }
    }
}

/// Serves requests of one connection until it ends. When the stop drains, HTTP/2 clients are told
/// (GOAWAY) and HTTP/1.1 connections close after the request that they carry.
///
/// An error of `handler` resets an HTTP/2 stream, with the code of an [`h2::Error`] among its
/// sources; an HTTP/1.1 connection is closed.
///
/// # Errors
/// If the connection fails.
pub fn serve<IO, H, F, B>(
    io: IO,
    limits: ServeLimits,
    stop: Stop,
    handler: H,
) -> BoxFuture<'static, Result<(), BoxError>>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    H: Fn(Request<Incoming>) -> F + Send + 'static,
    F: Future<Output = Result<Response<B>, BoxError>> + Send + 'static,
    B: Body<Data = Bytes, Error = BodyError> + Send + 'static,
{
    Box::pin(async move {
        let streams = Streams(TaskTracker::new());
        let builder = builder(limits, streams.clone());
        let connection = builder.serve_connection(TokioIo::new(io), service_fn(handler));
        let mut connection = std::pin::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = stop.draining() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        streams.0.close();
        streams.0.wait().await;
        ended
    })
}

fn builder(limits: ServeLimits, streams: Streams) -> auto::Builder<Streams> {
    let mut builder = auto::Builder::new(streams);
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head_timeout)
        .max_buf_size(limits.head.max(8 * 1024) as usize)
        .auto_date_header(false);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.streams)
        .initial_stream_window_size(limits.stream_window)
        .initial_connection_window_size(limits.connection_window)
        .max_header_list_size(limits.head)
        .max_send_buf_size(limits.stream_window as usize)
        .keep_alive_interval(limits.keep_alive)
        .keep_alive_timeout(limits.keep_alive)
        .auto_date_header(false);
    builder
}

/// A handler's way to say that a request was not looked at, and may be sent elsewhere whatever it is.
#[must_use]
pub fn refused() -> BoxError {
    h2::Error::from(h2::Reason::REFUSED_STREAM).into()
}

/// A handler's way to say that no answer will come, and that nothing else is known.
#[must_use]
pub fn lost() -> BoxError {
    h2::Error::from(h2::Reason::INTERNAL_ERROR).into()
}

/// Owns the tasks of one connection's streams.
#[derive(Clone, Debug)]
struct Streams(TaskTracker);

impl<F> hyper::rt::Executor<F> for Streams
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        self.0.spawn(stream);
    }
}

//! Requests to the application, over connections that are kept: HTTP/1.1 one request at a time,
//! HTTP/2 (prior knowledge) many.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::{
    connect::pool::{Dial, Dialled, LeaseError, Pool, PoolLimits},
    forward::http::{BodyError, SendError, Upload, headers, send},
};
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, header};
use http_body_util::{BodyExt, combinators::UnsyncBoxBody};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use linkspan_runtime::trace::SpanContext;
use tokio::net::TcpStream;
use tokio_util::task::TaskTracker;
use tracing::debug;

use super::dial::Distance;

/// Unused HTTP/1.1 connections that are kept for each port.
const MAX_IDLE: usize = 64;
/// For how long: shorter than what applications usually allow, so that they rarely close first.
const IDLE: Duration = Duration::from_secs(4);
/// Largest head of an answer, bytes.
const MAX_HEAD: usize = 64 * 1024;

pub(super) type Body = UnsyncBoxBody<Bytes, BodyError>;

/// Why the application gave no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum AppError {
    /// It did not take the connection: the request was not processed.
    #[error("the application does not accept connections")]
    Connect(#[source] io::Error),
    /// It refused the request unseen.
    #[error("the application did not look at the request")]
    Unprocessed(#[source] SendError),
    /// HTTP/2 could not begin.
    #[error("the application does not speak HTTP/2; declare its appProtocol")]
    Handshake,
    /// It was not asked: the request does not say clearly where it goes.
    #[error(transparent)]
    BadAuthority(#[from] headers::BadAuthority),
    /// The connection broke while it had the request.
    #[error("the application gave no answer")]
    Lost(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// The application's connections.
#[derive(Debug)]
pub(super) struct App {
    http1: Arc<Idle>,
    http2: Pool<SocketAddr, Distance>,
    distance: Distance,
    tasks: TaskTracker,
}

/// Connections of HTTP/1.1 that wait for a request.
#[derive(Debug, Default)]
struct Idle(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    /// By address, newest last.
    by_app: HashMap<SocketAddr, Vec<(Instant, SendRequest<Upload>)>>,
    /// Nothing is kept any more.
    closed: bool,
}

impl Dial<SocketAddr> for Distance {
    type Io = TcpStream;
    type Error = io::Error;

    async fn dial(
        &self,
        app: &SocketAddr,
        _: Option<SpanContext>,
    ) -> io::Result<Dialled<TcpStream>> {
        let io = self.connect(*app).await?;
        Ok(Dialled {
            io,
            retire_at: None,
            generation: 0,
            // Its owner may have stopped it, to look at it.
            patience: None,
            span: None,
        })
    }
}

impl App {
    pub(super) fn new(distance: Distance) -> Self {
        let limits = PoolLimits {
            connections: 2,
            grow_at: 256,
            ..PoolLimits::default()
        };
        Self {
            http1: Arc::default(),
            http2: Pool::new(distance, limits),
            distance,
            tasks: TaskTracker::new(),
        }
    }

    /// Closes connections that have been unused for long. Meant to be called every few seconds.
    pub(super) fn sweep(&self, now: Instant) {
        self.http1.sweep(now);
        self.http2.sweep(now);
    }

    /// Once no more requests come: closes what is unused, and waits for the rest.
    pub(super) async fn close(&self) {
        self.http1.close();
        self.tasks.close();
        self.http2.close().await;
        self.tasks.wait().await;
    }

    /// Sends a request over HTTP/1.1.
    pub(super) async fn http1(
        &self,
        app: SocketAddr,
        mut request: Request<Upload>,
    ) -> Result<Response<Body>, AppError> {
        frame(&mut request);
        while let Some(mut sender) = self.http1.take(app, Instant::now()) {
            match sender.try_send_request(request).await {
                Ok(answer) => return Ok(self.answered(app, sender, answer)),
                // The application closed the connection just before: nothing was written.
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(AppError::Lost(error.into_error().into())),
                },
            }
        }
        let mut sender = self.connect(app).await?;
        let answer = sender.send_request(request).await;
        let answer = answer.map_err(|error| AppError::Lost(error.into()))?;
        Ok(self.answered(app, sender, answer))
    }

    /// Sends a request over HTTP/2.
    pub(super) async fn http2(
        &self,
        app: SocketAddr,
        request: Request<Upload>,
    ) -> Result<Response<Body>, AppError> {
        let lease = self.http2.lease(&app).await.map_err(|error| match error {
            LeaseError::Dial(error) => AppError::Connect(error.kind().into()),
            LeaseError::Handshake(_) | LeaseError::Abandoned => AppError::Handshake,
        })?;
        match send(lease.requests(), request).await {
            Ok(answer) => Ok(answer.map(|body| {
                Holding {
                    body,
                    _lease: lease,
                }
                .boxed_unsync()
            })),
            Err(error) => {
                if matches!(
                    error,
                    SendError::Unsent(_) | SendError::Closing(_) | SendError::Lost(_)
                ) {
                    lease.broken();
                }
                Err(if error.is_unprocessed() {
                    AppError::Unprocessed(error)
                } else {
                    AppError::Lost(error.into())
                })
            }
        }
    }

    async fn connect(&self, app: SocketAddr) -> Result<SendRequest<Upload>, AppError> {
        let io = self
            .distance
            .connect(app)
            .await
            .map_err(AppError::Connect)?;
        let handshake = http1::Builder::new()
            .max_buf_size(MAX_HEAD)
            .handshake(TokioIo::new(io))
            .await;
        let (sender, connection) = handshake.map_err(|error| AppError::Lost(error.into()))?;
        self.tasks.spawn(async move {
            if let Err(error) = connection.await {
                debug!(%error, "connection to the application ended");
            }
        });
        Ok(sender)
    }

    /// Keeps the connection for the next request once this answer has passed.
    fn answered(
        &self,
        app: SocketAddr,
        mut sender: SendRequest<Upload>,
        answer: Response<hyper::body::Incoming>,
    ) -> Response<Body> {
        let idle = Arc::clone(&self.http1);
        if sender.is_ready() {
            idle.put(app, sender, Instant::now());
        } else {
            // Ends with the answer's body, or with the connection.
            self.tasks.spawn(async move {
                if sender.ready().await.is_ok() {
                    idle.put(app, sender, Instant::now());
                }
            });
        }
        answer.map(|body| body.map_err(BodyError::broken).boxed_unsync())
    }
}

/// Says how a body of unknown length is sent. Without a word, hyper takes it that methods which
/// rarely have one have none, and drops it.
fn frame<B: http_body::Body>(request: &mut Request<B>) {
    let rarely = matches!(*request.method(), Method::GET | Method::HEAD);
    let known = request.headers().contains_key(header::CONTENT_LENGTH);
    if rarely && !known && !request.body().is_end_stream() {
        let chunked = HeaderValue::from_static("chunked");
        request
            .headers_mut()
            .insert(header::TRANSFER_ENCODING, chunked);
    }
}

impl Idle {
    /// The connection used last that is still good.
    fn take(&self, app: SocketAddr, now: Instant) -> Option<SendRequest<Upload>> {
        let mut idle = self.lock();
        let kept = idle.by_app.get_mut(&app)?;
        while let Some((since, sender)) = kept.pop() {
            if now.saturating_duration_since(since) >= IDLE {
                // Those below it are older still.
                kept.clear();
                return None;
            }
            if sender.is_ready() {
                return Some(sender);
            }
        }
        None
    }

    fn put(&self, app: SocketAddr, sender: SendRequest<Upload>, now: Instant) {
        let mut idle = self.lock();
        if idle.closed {
            return;
        }
        let kept = idle.by_app.entry(app).or_default();
        if kept.len() < MAX_IDLE {
            kept.push((now, sender));
        }
    }

    /// Drops those that have waited for too long.
    fn sweep(&self, now: Instant) {
        self.lock().by_app.retain(|_, kept| {
            kept.retain(|(since, _)| now.saturating_duration_since(*since) < IDLE);
            !kept.is_empty()
        });
    }

    /// Drops all, and keeps none from now on.
    fn close(&self) {
        let mut idle = self.lock();
        idle.closed = true;
        idle.by_app.clear();
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Each change leaves it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A body that keeps its connection counted as used.
struct Holding<B> {
    body: B,
    _lease: crate::connect::pool::Lease,
}

impl<B: http_body::Body + Unpin> http_body::Body for Holding<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<B::Data>, B::Error>>> {
        std::pin::Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        pin::Pin,
        task::{Context, Poll},
    };

    use crate::forward::http::{Moved, serve, serve::ServeLimits};
    use http_body::Frame;
    use http_body_util::Empty;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    /// A body that does not know its length.
    struct Streamed(Option<Bytes>);

    impl http_body::Body for Streamed {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            Poll::Ready(self.0.take().map(|data| Ok(Frame::data(data))))
        }
    }

    /// What an application reads of a request whose body's length nobody has said.
    async fn read(method: Method, body: Option<&'static str>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let app = listener.local_addr().unwrap();
        let reading = tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut read = Vec::new();
            let end: &[u8] = if body.is_some() {
                b"0\r\n\r\n"
            } else {
                b"\r\n\r\n"
            };
            while !read.ends_with(end) {
                assert_ne!(socket.read_buf(&mut read).await.unwrap(), 0, "{read:?}");
            }
            let answer = b"HTTP/1.1 204 No Content\r\n\r\n";
            socket.write_all(answer).await.unwrap();
            String::from_utf8(read).unwrap()
        });
        let io = TokioIo::new(TcpStream::connect(app).await.unwrap());
        let (mut sender, connection) = http1::handshake(io).await.unwrap();
        let _driver = tokio::spawn(connection);
        let mut request = Request::new(match body {
            Some(body) => Streamed(Some(Bytes::from(body))).boxed(),
            None => Empty::new().boxed(),
        });
        *request.method_mut() = method;
        frame(&mut request);
        sender.send_request(request).await.unwrap();
        reading.await.unwrap()
    }

    /// An application that speaks HTTP/2 or HTTP/1.1 and tells when a connection to it has ended.
    async fn application() -> (SocketAddr, tokio::sync::mpsc::UnboundedReceiver<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let app = listener.local_addr().unwrap();
        let (ended, ends) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let ended = ended.clone();
                tokio::spawn(async move {
                    let stop = linkspan_runtime::stop::Stop::new();
                    let handler = |_| async { Ok(Response::new(Empty::new().map_err(never))) };
                    let _ = serve(socket, ServeLimits::default(), stop, handler).await;
                    let _ = ended.send(());
                });
            }
        });
        (app, ends)
    }

    fn never(error: Infallible) -> BodyError {
        match error {}
    }

    /// A request as a server takes it in.
    async fn request(http2: bool) -> Request<Upload> {
        let (mut client, server) = tokio::io::duplex(1024);
        let (take, mut taken) = tokio::sync::mpsc::unbounded_channel();
        let handler = move |request| {
            let _ = take.send(request);
            async { Ok(Response::new(Empty::new().map_err(never))) }
        };
        let stop = linkspan_runtime::stop::Stop::new();
        tokio::spawn(serve(server, ServeLimits::default(), stop, handler));
        let head = b"GET / HTTP/1.1\r\nHost: app\r\n\r\n";
        client.write_all(head).await.unwrap();
        let mut request = Upload::from_request(taken.recv().await.unwrap(), Moved::default());
        if http2 {
            *request.uri_mut() = "http://app/".parse().unwrap();
            *request.version_mut() = http::Version::HTTP_2;
            request.headers_mut().clear();
        }
        request
    }

    async fn asked(http2: bool) -> (App, tokio::sync::mpsc::UnboundedReceiver<()>) {
        let (app, (address, ends)) = (App::new(Distance::Machine), application().await);
        let request = request(http2).await;
        let answer = if http2 {
            app.http2(address, request).await
        } else {
            app.http1(address, request).await
        };
        answer.unwrap().into_body().collect().await.unwrap();
        (app, ends)
    }

    #[tokio::test]
    async fn unused_connections_are_swept() {
        for (http2, idle) in [(false, IDLE), (true, PoolLimits::default().idle)] {
            let (app, mut ends) = asked(http2).await;
            app.sweep(Instant::now());
            assert!(ends.try_recv().is_err());
            app.sweep(Instant::now() + idle);
            ends.recv().await.unwrap();
        }
    }

    #[tokio::test]
    async fn close_leaves_no_connection_behind() {
        for http2 in [false, true] {
            let (app, mut ends) = asked(http2).await;
            app.close().await;
            ends.recv().await.unwrap();
        }
    }

    #[tokio::test]
    async fn no_body_is_dropped_because_its_method_rarely_has_one() {
        for method in [Method::GET, Method::POST] {
            let read = read(method, Some("query")).await;
            assert!(read.contains("query"), "{read}");
        }
        let read = read(Method::GET, None).await;
        assert!(!read.contains("chunked"), "{read}");
    }
}

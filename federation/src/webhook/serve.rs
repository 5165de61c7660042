//! The webhook's port: who may take how much of it, and for how long.

use std::{convert::Infallible, io, net::IpAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use linkspan_core::inject::Injection;
use linkspan_runtime::{
    places::{Place, Places, source},
    process::chain,
    stop::Stop,
};
use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;

use super::{
    capture_at,
    review::{Context, review},
};

/// Connections in all, and of one source: an API server has one for each review under way, and keeps
/// some; there are a few of them, and pods that have no business here.
const MAX_CONNECTIONS: usize = 128;
const MAX_PER_SOURCE: usize = 32;
/// Largest question: API servers keep objects of up to 1.5 MiB, and say a little about who asks.
const MAX_BODY: usize = 2 * 1024 * 1024;
/// Questions that are looked at, each of which may cost some ten megabytes: whoever reaches the port
/// may ask, and federation has more to do.
const AT_ONCE: usize = 2;
/// A handshake is two round trips, within one cluster.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// How long a connection may wait for its next question.
const IDLE: Duration = Duration::from_secs(60);
/// How long a question may take to come; the API server waits for ten seconds in all.
const BODY: Duration = Duration::from_secs(5);
/// Pause after an error of `accept` itself (no descriptors left), so that it does not spin.
const PAUSE: Duration = Duration::from_millis(50);

/// What sidecars have in common, now.
pub(crate) type Injections = Arc<dyn Fn() -> Injection + Send + Sync>;

/// All that the port needs.
#[derive(Clone)]
pub(crate) struct Webhook {
    configs: watch::Receiver<Option<Arc<ServerConfig>>>,
    injections: Injections,
    turns: Arc<Semaphore>,
}

impl Webhook {
    pub(crate) fn new(
        configs: watch::Receiver<Option<Arc<ServerConfig>>>,
        injections: Injections,
    ) -> Self {
        Self {
            configs,
            injections,
            turns: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }
}

/// Answers until `stop` drains; what is under way then is answered.
pub(crate) async fn serve(listener: TcpListener, mut webhook: Webhook, stop: Stop) {
    tokio::select! {
        () = stop.draining() => return,
        known = webhook.configs.wait_for(Option::is_some) => if known.is_err() { return },
    }
    let places = Places::new(MAX_CONNECTIONS, MAX_PER_SOURCE);
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = stop.draining() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((socket, remote)) => match places.take(&source(remote.ip())) {
                Ok(place) => {
                    let (webhook, stop) = (webhook.clone(), stop.clone());
                    connections.spawn(async move {
                        if let Err(error) = webhook.converse(socket, place, stop).await {
                            tracing::debug!(%remote, error, "a connection to the webhook ended");
                        }
                    });
                }
                Err(full) => tracing::warn!(%remote, %full, "too many connections to the webhook"),
            },
            Err(error) => {
                tracing::debug!(%error, "cannot accept connections to the webhook; trying again");
                sleep(PAUSE).await;
            }
        }
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

impl Webhook {
    async fn converse(
        self,
        socket: TcpStream,
        _place: Place<IpAddr>,
        stop: Stop,
    ) -> Result<(), String> {
        let config = self.configs.borrow().clone().ok_or("no certificate")?;
        let shaking = TlsAcceptor::from(config).accept(socket);
        let shaken = timeout(HANDSHAKE, shaking).await;
        let late = || io::Error::from(io::ErrorKind::TimedOut);
        let stream = shaken.map_err(|_| late()).flatten();
        let stream = stream.map_err(|error| chain(&error))?;
        let service = service_fn(|request| {
            let webhook = self.clone();
            async move { Ok::<_, Infallible>(webhook.answer(request).await) }
        });
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(IDLE);
        let connection = builder.serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let served = tokio::select! {
            served = connection.as_mut() => served,
            () = stop.draining() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        served.map_err(|error| chain(&error))
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let Some(capture) = capture_at(request.uri().path()) else {
            return said(StatusCode::NOT_FOUND, "linkspan: nothing is here\n");
        };
        if request.method() != Method::POST {
            return said(StatusCode::METHOD_NOT_ALLOWED, "linkspan: POST a review\n");
        }
        let body = Limited::new(request.into_body(), MAX_BODY).collect();
        let Ok(Ok(body)) = timeout(BODY, body).await else {
            let why = "linkspan: the review is too large, or did not come in time\n";
            return said(StatusCode::PAYLOAD_TOO_LARGE, why);
        };
        let (body, injection) = (body.to_bytes(), (self.injections)());
        let judged = move || {
            let context = Context {
                injection: &injection,
                capture,
            };
            review(&body, context)
        };
        // Never closed.
        let turn = Arc::clone(&self.turns).acquire_owned().await;
        let judging = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            judged()
        });
        let Ok(judged) = judging.await else {
            let why = "linkspan: the review failed; see federation's log\n";
            return said(StatusCode::INTERNAL_SERVER_ERROR, why);
        };
        match judged {
            Ok(answer) => {
                let mut response = Response::new(Full::from(answer));
                let json = header::HeaderValue::from_static("application/json");
                response.headers_mut().insert(header::CONTENT_TYPE, json);
                response
            }
            Err(error) => said(
                StatusCode::BAD_REQUEST,
                format!("linkspan: {}\n", chain(&error)),
            ),
        }
    }
}

fn said(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(text.into()));
    *response.status_mut() = status;
    response
}

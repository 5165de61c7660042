//! The two HTTP faces of a part.
//!
//! * The *public* face (15020, pod address): `/healthz`, `/readyz`, `/metrics` and nothing else.
//! * The *debug* face (15021, loopback): these, and `/config`, `/snapshot`, `/debug` as JSON.
//!
//! Both are bounded: [`MAX_CONNECTIONS`] at a time, [`REQUEST_TIMEOUT`] for a request's head and
//! again for its answer, [`IDLE_TIMEOUT`] per connection in all, GET without a body only. The
//! public face closes after each answer: anybody can reach it, and idle connections must not
//! take the places of probes.

use std::{collections::BTreeMap, io, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{Path, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use prometheus::{Encoder, Registry, TextEncoder};
use serde_json::Value;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use crate::{readiness::Readiness, stop::Stop};

/// Connections that one face serves at a time: probes, a scraper or two, and a person.
pub const MAX_CONNECTIONS: usize = 64;
/// How long a request's head may take to arrive, and how long its answer may take.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How long one connection may last, so that idle ones cannot crowd out the probes.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Wait after a failed `accept` (out of descriptors), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a face shows.
#[derive(Clone, Debug)]
pub struct Admin {
    /// Behind `/readyz`.
    pub readiness: Readiness,
    /// Behind `/metrics`.
    pub registry: Registry,
    /// The loopback face's dumps; `None` makes a public face.
    pub dumps: Option<Dumps>,
}

/// What the loopback face can dump, by name: `config` at `/config`, and so on.
#[derive(Clone, Default)]
pub struct Dumps {
    by_name: BTreeMap<&'static str, Dump>,
}

type Dump = Arc<dyn Fn() -> Value + Send + Sync>;

impl std::fmt::Debug for Dumps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.by_name.keys()).finish()
    }
}

impl Dumps {
    /// Nothing to dump yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a dump at `/<name>`. It must be quick and must contain no secrets.
    pub fn add(&mut self, name: &'static str, dump: impl Fn() -> Value + Send + Sync + 'static) {
        self.by_name.insert(name, Arc::new(dump));
    }
}

/// Serves one face until the stop *aborts*, so that probes are answered during a drain.
/// Meant as a background task.
pub async fn serve(listener: TcpListener, admin: Admin, stop: Stop) {
    let keep_alive = admin.dumps.is_some();
    let router = router(admin);
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = stop.aborted() => break,
            accepted = accept(&listener, &permits) => accepted,
        };
        match accepted {
            Ok((socket, permit)) => {
                let (router, stop) = (router.clone(), stop.clone());
                connections.spawn(async move {
                    connection(socket, router, keep_alive, stop).await;
                    drop(permit);
                });
            }
            Err(error) => {
                warn!(%error, "admin face cannot accept");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    connections.close();
    connections.wait().await;
}

/// The next connection and its permit. Cancel-safe: the permit comes first.
async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> io::Result<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let permit = permits
        .clone()
        .acquire_owned()
        .await
        .map_err(io::Error::other)?;
    let (socket, _) = listener.accept().await?;
    Ok((socket, permit))
}

async fn connection(socket: TcpStream, router: Router, keep_alive: bool, stop: Stop) {
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new())
        .keep_alive(keep_alive)
        .header_read_timeout(REQUEST_TIMEOUT)
        .max_buf_size(16 * 1024);
    let serving = http.serve_connection(TokioIo::new(socket), TowerToHyperService::new(router));
    tokio::select! {
        () = stop.aborted() => {}
        ended = timeout(IDLE_TIMEOUT, serving) => if let Ok(Err(error)) = ended {
            debug!(%error, "admin connection ended");
        }
    }
}

fn router(admin: Admin) -> Router {
    let mut router = Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics));
    if admin.dumps.is_some() {
        router = router.route("/{dump}", get(dump));
    }
    router.with_state(Arc::new(admin))
}

async fn readyz(State(admin): State<Arc<Admin>>) -> Response {
    let pending = admin.readiness.pending();
    if pending.is_empty() {
        return "ready\n".into_response();
    }
    let text = format!("not ready: {}\n", pending.join(", "));
    (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
}

async fn metrics(State(admin): State<Arc<Admin>>) -> Response {
    let encoder = TextEncoder::new();
    let mut text = Vec::new();
    match encoder.encode(&admin.registry.gather(), &mut text) {
        Ok(()) => (
            [(header::CONTENT_TYPE, encoder.format_type().to_owned())],
            text,
        )
            .into_response(),
        Err(error) => {
            warn!(%error, "metrics cannot be encoded");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

async fn dump(State(admin): State<Arc<Admin>>, Path(name): Path<String>) -> Response {
    let dump = admin
        .dumps
        .as_ref()
        .and_then(|dumps| dumps.by_name.get(name.as_str()))
        .cloned();
    let Some(dump) = dump else {
        return StatusCode::NOT_FOUND.into_response();
    };
    // On a thread of its own: a large dump must not hold up a worker that carries traffic.
    match timeout(REQUEST_TIMEOUT, tokio::task::spawn_blocking(move || dump())).await {
        Ok(Ok(value)) => Json(value).into_response(),
        Ok(Err(_)) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        Err(_) => StatusCode::GATEWAY_TIMEOUT.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn face(dumps: Option<Dumps>) -> (std::net::SocketAddr, Readiness, Stop) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (readiness, stop) = (Readiness::new(), Stop::new());
        let registry = Registry::new();
        let counter = prometheus::IntCounter::new("linkspan_test_total", "For the test.").unwrap();
        registry.register(Box::new(counter)).unwrap();
        let admin = Admin {
            readiness: readiness.clone(),
            registry,
            dumps,
        };
        tokio::spawn(serve(listener, admin, stop.clone()));
        (address, readiness, stop)
    }

    async fn get(address: std::net::SocketAddr, path: &str) -> (u16, String) {
        let mut socket = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        let code = answer.split(' ').nth(1).unwrap().parse().unwrap();
        (code, answer)
    }

    #[tokio::test]
    async fn the_public_face_shows_three_paths_only() {
        let (address, readiness, _stop) = face(None).await;
        let gate = readiness.gate("identity");
        assert_eq!(get(address, "/healthz").await.0, 200);
        let (code, text) = get(address, "/readyz").await;
        assert!(code == 503 && text.contains("identity"), "{text}");
        gate.open();
        assert_eq!(get(address, "/readyz").await.0, 200);
        assert!(
            get(address, "/metrics")
                .await
                .1
                .contains("linkspan_test_total 0")
        );
        for path in ["/config", "/snapshot", "/debug", "/"] {
            assert_eq!(get(address, path).await.0, 404, "{path}");
        }
    }

    #[tokio::test]
    async fn the_debug_face_dumps_json() {
        let mut dumps = Dumps::new();
        dumps.add("config", || serde_json::json!({"cluster": "east"}));
        let (address, _readiness, stop) = face(Some(dumps)).await;
        assert!(
            get(address, "/config")
                .await
                .1
                .ends_with(r#"{"cluster":"east"}"#)
        );
        assert_eq!(get(address, "/snapshot").await.0, 404);
        stop.abort();
    }

    #[tokio::test]
    async fn the_public_face_closes_after_an_answer() {
        let (address, _readiness, _stop) = face(None).await;
        let mut socket = TcpStream::connect(address).await.unwrap();
        let request = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n";
        socket.write_all(request).await.unwrap();
        let mut answer = String::new();
        let closed = socket.read_to_string(&mut answer);
        timeout(REQUEST_TIMEOUT, closed).await.unwrap().unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(answer.contains("connection: close"), "{answer}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_head_is_cut() {
        let (address, _readiness, _stop) = face(None).await;
        let mut socket = TcpStream::connect(address).await.unwrap();
        socket.write_all(b"GET /healthz HT").await.unwrap();
        let mut answer = Vec::new();
        // Ends (with or without a 408) instead of waiting for the rest.
        let _ = socket.read_to_end(&mut answer).await;
    }
}

//! A closed loop of HTTP/2 requests: as many as the path can carry.
//!
//! A closed loop finds the throughput at saturation. Latency under a given load is another
//! question: there each request is due at its own time (see [`paced`]).

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{net::TcpStream, task::JoinSet, time::sleep_until};

/// Header in which an origin names itself.
pub const SERVED_BY: &str = "x-served-by";

/// One answered request.
#[derive(Debug, Clone)]
pub struct Answer {
    /// From the moment at which the request was due.
    pub latency: Duration,
    /// What the origin calls itself.
    pub served_by: Option<HeaderValue>,
}

type Sender = SendRequest<Empty<Bytes>>;

/// An HTTP/2 connection with prior knowledge.
///
/// # Errors
/// When nobody listens there, or not HTTP/2.
pub async fn connect(target: SocketAddr) -> Result<Sender> {
    let stream = TcpStream::connect(target)
        .await
        .with_context(|| format!("connecting to {target}"))?;
    stream.set_nodelay(true)?;
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    // Ends with the last sender.
    tokio::spawn(connection);
    Ok(sender)
}

/// Keeps `in_flight` requests on each of `connections` connections for `duration`.
///
/// # Errors
/// When a connection or a request fails.
pub async fn saturate(
    target: SocketAddr,
    connections: usize,
    in_flight: usize,
    duration: Duration,
) -> Result<Vec<Answer>> {
    let over = Arc::new(AtomicBool::new(false));
    let mut loops = JoinSet::new();
    for _ in 0..connections {
        let sender = connect(target).await?;
        for _ in 0..in_flight {
            loops.spawn(until_over(sender.clone(), Arc::clone(&over)));
        }
    }
    tokio::time::sleep(duration).await;
    over.store(true, Ordering::Relaxed);
    collect(loops).await
}

async fn until_over(mut sender: Sender, over: Arc<AtomicBool>) -> Result<Vec<Answer>> {
    let mut answers = Vec::new();
    while !over.load(Ordering::Relaxed) {
        answers.push(call(&mut sender, Instant::now()).await?);
    }
    Ok(answers)
}

/// Sends `rate` requests a second over `connections` connections for `duration`, each when it is
/// due, whatever became of those before it.
///
/// # Errors
/// When a connection or a request fails.
pub async fn paced(
    target: SocketAddr,
    connections: usize,
    rate: u32,
    duration: Duration,
) -> Result<Vec<Answer>> {
    let mut senders = Vec::with_capacity(connections);
    for _ in 0..connections {
        senders.push(connect(target).await?);
    }
    let interval = Duration::from_secs(1) / rate;
    let (start, mut number, mut requests) = (Instant::now(), 0u32, JoinSet::new());
    while interval * number < duration {
        let due = start + interval * number;
        sleep_until(due.into()).await;
        let mut sender = senders[number as usize % connections].clone();
        requests.spawn(async move { Ok(vec![call(&mut sender, due).await?]) });
        number += 1;
    }
    collect(requests).await
}

async fn call(sender: &mut Sender, due: Instant) -> Result<Answer> {
    sender.ready().await.context("the connection ended")?;
    let request = Request::get("http://origin.bench/").body(Empty::new())?;
    let response = sender.send_request(request).await.context("no answer")?;
    ensure!(
        response.status() == StatusCode::OK,
        "answered {}",
        response.status()
    );
    let served_by = response.headers().get(SERVED_BY).cloned();
    response
        .into_body()
        .collect()
        .await
        .context("the answer did not end")?;
    Ok(Answer {
        latency: due.elapsed(),
        served_by,
    })
}

async fn collect(mut loops: JoinSet<Result<Vec<Answer>>>) -> Result<Vec<Answer>> {
    let mut all = Vec::new();
    while let Some(joined) = loops.join_next().await {
        all.append(&mut joined??);
    }
    Ok(all)
}

/// The value below which this share (0 to 1) of the latencies lies.
#[must_use]
pub fn percentile(latencies: &mut [Duration], share: f64) -> Duration {
    latencies.sort_unstable();
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss
    )]
    let index = (latencies.len() as f64 * share) as usize;
    latencies
        .get(index.min(latencies.len().saturating_sub(1)))
        .copied()
        .unwrap_or_default()
}

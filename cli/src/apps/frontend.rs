//! `frontend`: the caller. An open loop of requests over a few HTTP/2 connections.
//!
//! Open loop: each request is due at a fixed time, whatever became of those before it, and
//! its time counts from then. So a system that stalls cannot slow the load down and look good.

use std::{
    collections::BTreeSet,
    io::Write as _,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, anyhow, ensure};
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::AsyncReadExt as _,
    net::TcpStream,
    sync::{Mutex as AsyncMutex, OwnedSemaphorePermit, Semaphore},
    time::{Instant, MissedTickBehavior, interval_at, timeout},
};

use super::{
    checkout::{Answer, NONCE, checksum},
    report::{Batch, Moment, Outcome},
};

/// Body of every second request.
const BODY: usize = 4096;
/// After this a request counts as failed.
const PATIENCE: Duration = Duration::from_secs(10);
/// Largest answer read.
const MAX_ANSWER: usize = 64 * 1024;
/// Requests in flight at most: ten seconds of the default load. Beyond it they fail at once.
const MAX_IN_FLIGHT: usize = 2000;
/// How often the supervisor is told.
const REPORT_EVERY: Duration = Duration::from_millis(100);

/// Calls `checkout` in an open loop and reports each answer on standard output.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Where its sidecar listens for calls to `checkout`
    #[arg(long)]
    target: SocketAddr,
    /// Requests per second
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
    /// HTTP/2 connections
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1000))]
    connections: u16,
    /// SPIFFE ID that the other side must have seen
    #[arg(long)]
    identity: Option<String>,
}

/// Sends until standard input ends, then waits for what is in flight.
pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    let book = Arc::new(Book::default());
    let load = Load::new(&args, Arc::clone(&book));
    let reports = async {
        let mut every = tokio::time::interval(REPORT_EVERY);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            every.tick().await;
            write(&book.batch(false))?;
        }
    };
    let rest = tokio::select! {
        ended = reports => return ended,
        never = load.run() => match never {},
        () = end_of_input() => &load,
    };
    // Everything in flight holds a permit; no new requests begin.
    let all = u32::try_from(MAX_IN_FLIGHT).unwrap_or(u32::MAX);
    let _settled = timeout(PATIENCE * 2, rest.permits.acquire_many(all)).await;
    write(&book.batch(true))
}

/// Standard input is the supervisor's end of a pipe.
async fn end_of_input() {
    let mut input = tokio::io::stdin();
    let mut buffer = [0; 64];
    while matches!(input.read(&mut buffer).await, Ok(count) if count > 0) {}
}

fn write(batch: &Batch) -> anyhow::Result<()> {
    let mut line = serde_json::to_vec(batch).context("cannot write a report")?;
    line.push(b'\n');
    let mut out = std::io::stdout().lock();
    out.write_all(&line)
        .and_then(|()| out.flush())
        .context("the supervisor no longer listens")
}

/// What is in flight and what has settled since the last report.
#[derive(Debug, Default)]
struct Book(Mutex<Pages>);

#[derive(Debug, Default)]
struct Pages {
    open: BTreeSet<(Moment, u64)>,
    next_due: Moment,
    settled: Vec<Outcome>,
}

impl Book {
    fn pages(&self) -> std::sync::MutexGuard<'_, Pages> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, due: Moment, number: u64, next: Moment) {
        let mut pages = self.pages();
        pages.open.insert((due, number));
        pages.next_due = next;
    }

    fn settle(&self, number: u64, outcome: Outcome) {
        let mut pages = self.pages();
        pages.open.remove(&(outcome.begun, number));
        pages.settled.push(outcome);
    }

    fn batch(&self, last: bool) -> Batch {
        let mut pages = self.pages();
        let oldest = pages.open.first().map(|(due, _)| *due);
        Batch {
            outcomes: std::mem::take(&mut pages.settled),
            settled_before: oldest.unwrap_or(pages.next_due),
            last,
        }
    }
}

struct Load {
    period: Duration,
    connections: Vec<Arc<Connection>>,
    book: Arc<Book>,
    permits: Arc<Semaphore>,
    identity: Option<Arc<str>>,
}

impl Load {
    fn new(args: &Args, book: Arc<Book>) -> Self {
        let connection = |_| Arc::new(Connection::new(args.target));
        Self {
            period: Duration::from_secs(1) / args.rate,
            connections: (0..args.connections).map(connection).collect(),
            book,
            permits: Arc::new(Semaphore::new(MAX_IN_FLIGHT)),
            identity: args.identity.as_deref().map(Arc::from),
        }
    }

    async fn run(&self) -> std::convert::Infallible {
        let (start, first) = (Instant::now(), Moment::now());
        let mut ticks = interval_at(start, self.period);
        // An open loop catches up after a pause of our own.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let mut number = 0;
        loop {
            let tick = ticks.tick().await;
            let due = first.plus(tick.duration_since(start));
            self.book.begin(due, number, due.plus(self.period));
            self.send(number, due);
            number += 1;
        }
    }

    fn send(&self, number: u64, due: Moment) {
        let book = Arc::clone(&self.book);
        let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else {
            let answer = Err(format!("{MAX_IN_FLIGHT} requests in flight already"));
            return book.settle(number, outcome(due, answer));
        };
        let index = usize::try_from(number).unwrap_or_default() % self.connections.len();
        let connection = Arc::clone(&self.connections[index]);
        let identity = self.identity.clone();
        tokio::spawn(async move {
            let _permit: OwnedSemaphorePermit = permit;
            // Every second request of each connection has a body.
            let with_body = (number / 8) % 2 == 1;
            let call = call(&connection, with_body, identity.as_deref());
            let answer = match timeout(PATIENCE, call).await {
                Ok(answer) => answer.map_err(|error| format!("{error:#}")),
                Err(_) => Err(format!("no answer within {PATIENCE:?}")),
            };
            book.settle(number, outcome(due, answer));
        });
    }
}

fn outcome(begun: Moment, answer: Result<String, String>) -> Outcome {
    let took = Moment::now().since(begun).as_micros();
    Outcome {
        begun,
        took: u64::try_from(took).unwrap_or(u64::MAX),
        answer,
    }
}

/// One HTTP/2 connection, dialled again when it has ended.
struct Connection {
    target: SocketAddr,
    sender: AsyncMutex<Option<SendRequest<Full<Bytes>>>>,
}

impl Connection {
    fn new(target: SocketAddr) -> Self {
        Self {
            target,
            sender: AsyncMutex::new(None),
        }
    }

    async fn sender(&self) -> anyhow::Result<SendRequest<Full<Bytes>>> {
        let mut sender = self.sender.lock().await;
        if let Some(open) = sender.as_ref().filter(|open| !open.is_closed()) {
            return Ok(open.clone());
        }
        let stream = TcpStream::connect(self.target)
            .await
            .with_context(|| format!("connecting to the sidecar at {}", self.target))?;
        stream.set_nodelay(true).ok();
        let (fresh, driver) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        tokio::spawn(driver);
        Ok(sender.insert(fresh).clone())
    }
}

/// One request; the nonce of the process that answered it, if everything about it is right.
async fn call(
    connection: &Connection,
    with_body: bool,
    identity: Option<&str>,
) -> anyhow::Result<String> {
    let nonce = format!("{:032x}", rand::random::<u128>());
    let body = if with_body {
        body(&nonce)
    } else {
        Bytes::new()
    };
    let sum = checksum(&body);
    let mut sender = connection.sender().await?;
    let response = sender.send_request(request(&nonce, body)?).await;
    let (head, body) = response.context("no answer")?.into_parts();
    let body = Limited::new(body, MAX_ANSWER).collect().await;
    let body = body.map_err(|error| anyhow!("the answer broke off: {error}"))?;
    let body = body.to_bytes();
    ensure!(
        head.status == StatusCode::OK,
        "status {}: {}",
        head.status,
        excerpt(&body)
    );
    let answer: Answer = serde_json::from_slice(&body)
        .with_context(|| format!("not an answer of checkout: {}", excerpt(&body)))?;
    let expected = if with_body { BODY } else { 0 };
    check(&answer, &nonce, expected, sum, identity)?;
    Ok(answer.instance)
}

fn request(nonce: &str, body: Bytes) -> anyhow::Result<Request<Full<Bytes>>> {
    let method = if body.is_empty() {
        Method::GET
    } else {
        Method::PUT
    };
    Request::builder()
        .method(method)
        .uri("http://checkout.shop/order")
        .header(NONCE, nonce)
        .header("idempotency-key", nonce)
        .body(Full::new(body))
        .context("cannot build a request")
}

/// 4 KiB that no other request has.
fn body(nonce: &str) -> Bytes {
    Bytes::from(nonce.repeat(BODY / nonce.len()))
}

fn check(
    answer: &Answer,
    nonce: &str,
    bytes: usize,
    sum: u64,
    identity: Option<&str>,
) -> anyhow::Result<()> {
    ensure!(answer.nonce == nonce, "the answer is another request's");
    ensure!(
        answer.bytes == bytes && answer.checksum == sum,
        "the body arrived changed: {} bytes instead of {bytes}",
        answer.bytes
    );
    if let Some(identity) = identity {
        let named = answer.caller.split([',', ';']);
        let uri = format!("URI={identity}");
        ensure!(
            named
                .map(|part| part.trim().replace('"', ""))
                .any(|part| part == uri),
            "the application saw the caller as `{}`, not {identity}",
            answer.caller
        );
    }
    Ok(())
}

fn excerpt(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    text.trim().chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apps::checkout;

    fn answer() -> Answer {
        Answer {
            cluster: "east".into(),
            name: "checkout-1".into(),
            instance: "i".into(),
            nonce: "n".into(),
            bytes: 0,
            checksum: checksum(b""),
            caller: "By=spiffe://b/ns/shop/sa/checkout;URI=spiffe://a/ns/shop/sa/frontend".into(),
        }
    }

    #[test]
    fn another_requests_answer_does_not_pass() {
        let (answer, sum) = (answer(), checksum(b""));
        assert!(check(&answer, "n", 0, sum, None).is_ok());
        assert!(check(&answer, "m", 0, sum, None).is_err());
        assert!(check(&answer, "n", 1, sum, None).is_err());
        assert!(check(&answer, "n", 0, sum ^ 1, None).is_err());
    }

    #[test]
    fn the_caller_must_be_named_by_its_whole_identity() {
        let (answer, sum) = (answer(), checksum(b""));
        let with = |identity| check(&answer, "n", 0, sum, Some(identity));
        assert!(with("spiffe://a/ns/shop/sa/frontend").is_ok());
        assert!(with("spiffe://a/ns/shop/sa/front").is_err());
        assert!(with("spiffe://b/ns/shop/sa/checkout").is_err());
    }

    #[tokio::test]
    async fn requests_with_and_without_body_are_answered_over_one_connection() {
        let connection = Connection::new(checkout::tests::start("n0nce").await);
        for with_body in [false, true, false, true] {
            let instance = call(&connection, with_body, None).await.expect("answered");
            assert_eq!(instance, "n0nce");
        }
    }

    #[test]
    fn what_is_in_flight_holds_the_low_water_mark_back() {
        let book = Book::default();
        book.begin(Moment(10), 0, Moment(20));
        book.begin(Moment(20), 1, Moment(30));
        assert_eq!(book.batch(false).settled_before, Moment(10));
        let settle = |number, begun| {
            let answer = Ok("i".to_owned());
            book.settle(
                number,
                Outcome {
                    begun,
                    took: 1,
                    answer,
                },
            );
        };
        settle(1, Moment(20));
        let batch = book.batch(false);
        assert_eq!(
            (batch.outcomes.len(), batch.settled_before),
            (1, Moment(10))
        );
        settle(0, Moment(10));
        assert_eq!(book.batch(true).settled_before, Moment(30));
        assert!(book.batch(true).outcomes.is_empty());
    }
}

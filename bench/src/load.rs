//! The client: HTTP/2 requests in a closed or in an open loop.
//!
//! A closed loop keeps a number of requests in flight and so finds the throughput at saturation.
//! An open loop sends each request when it is due, whatever became of those before it, and its
//! time counts from then: the latency under a given load.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    num::NonZeroU64,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustix::thread::set_current_timer_slack;
use serde::{Deserialize, Serialize};
use tokio::{net::TcpStream, sync::mpsc, task::JoinSet, time::timeout};

/// Header in which an origin names itself.
pub const SERVED_BY: &str = "x-served-by";
/// Requests that are due and not yet begun at most; when the client is that far behind, its
/// clock waits, and what is due still counts from its own time.
const OVERDUE: usize = 10_000;

/// A load; also the command line of the process that makes it.
#[derive(Debug, Clone, clap::Args)]
pub struct Load {
    /// Where to send to
    #[arg(long)]
    pub target: SocketAddr,
    /// HTTP/2 connections
    #[arg(long)]
    pub connections: usize,
    /// How to send
    #[command(flatten)]
    pub pace: Pace,
    /// Milliseconds before answers count
    #[arg(long)]
    pub warmup_ms: u64,
    /// Milliseconds in which answers count
    #[arg(long)]
    pub measure_ms: u64,
}

/// Closed or open loop.
#[derive(Debug, Clone, Copy, clap::Args)]
#[group(required = true, multiple = false)]
pub struct Pace {
    /// Requests in flight on each connection
    #[arg(long)]
    in_flight: Option<usize>,
    /// Requests a second
    #[arg(long)]
    rate: Option<u32>,
}

impl Pace {
    /// As many as the path can carry, with so many in flight on each connection.
    #[must_use]
    pub fn closed(in_flight: usize) -> Self {
        Self {
            in_flight: Some(in_flight),
            rate: None,
        }
    }

    /// So many a second.
    #[must_use]
    pub fn open(rate: u32) -> Self {
        Self {
            in_flight: None,
            rate: Some(rate),
        }
    }
}

/// What a load found.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Summary {
    /// Answers that count.
    pub requests: u64,
    /// Answers a second.
    pub per_second: f64,
    /// Half of the answers took at most so many microseconds.
    pub p50_micros: f64,
    /// Ninety-nine of a hundred did.
    pub p99_micros: f64,
    /// Answers by who gave them.
    pub answered: BTreeMap<String, u64>,
}

impl Load {
    /// How long it takes.
    #[must_use]
    pub fn time(&self) -> Duration {
        Duration::from_millis(self.warmup_ms + self.measure_ms)
    }

    /// Itself as a command line.
    #[must_use]
    pub fn arguments(&self) -> Vec<String> {
        let pace = match (self.pace.in_flight, self.pace.rate) {
            (Some(in_flight), _) => format!("--in-flight={in_flight}"),
            (None, rate) => format!("--rate={}", rate.unwrap_or(1)),
        };
        vec![
            format!("--target={}", self.target),
            format!("--connections={}", self.connections),
            pace,
            format!("--warmup-ms={}", self.warmup_ms),
            format!("--measure-ms={}", self.measure_ms),
        ]
    }

    /// Runs it and prints what it found as JSON.
    ///
    /// # Errors
    /// See [`run`](Self::run).
    pub async fn print(&self) -> Result<()> {
        println!("{}", serde_json::to_string(&self.run().await?)?);
        Ok(())
    }

    /// Runs it.
    ///
    /// # Errors
    /// When a connection or a request fails: then there is nothing to measure.
    pub async fn run(&self) -> Result<Summary> {
        let mut senders = Vec::with_capacity(self.connections);
        for _ in 0..self.connections {
            senders.push(connect(self.target).await?);
        }
        let from = Instant::now() + Duration::from_millis(self.warmup_ms);
        let counted = Counted {
            from,
            until: from + Duration::from_millis(self.measure_ms),
        };
        let tally = match self.pace.rate {
            Some(rate) => open(&senders, rate, counted).await?,
            None => closed(&senders, self.pace.in_flight.unwrap_or(1), counted).await?,
        };
        Ok(tally.summary(counted.until - counted.from))
    }
}

/// The time in which requests must begin to count.
#[derive(Debug, Clone, Copy)]
struct Counted {
    from: Instant,
    until: Instant,
}

#[derive(Debug, Default)]
struct Tally {
    times: Vec<Duration>,
    answered: HashMap<HeaderValue, u64>,
}

impl Tally {
    fn add(&mut self, time: Duration, served_by: HeaderValue) {
        self.times.push(time);
        *self.answered.entry(served_by).or_default() += 1;
    }

    fn merge(&mut self, other: Self) {
        self.times.extend(other.times);
        for (name, count) in other.answered {
            *self.answered.entry(name).or_default() += count;
        }
    }

    fn summary(mut self, over: Duration) -> Summary {
        self.times.sort_unstable();
        let name = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        #[allow(clippy::cast_precision_loss)]
        let per_second = self.times.len() as f64 / over.as_secs_f64();
        Summary {
            requests: self.times.len().try_into().unwrap_or(u64::MAX),
            per_second,
            p50_micros: percentile(&self.times, 50),
            p99_micros: percentile(&self.times, 99),
            answered: self.answered.iter().map(|(n, c)| (name(n), *c)).collect(),
        }
    }
}

/// Microseconds within which `percent` of the sorted times lie (nearest rank).
fn percentile(sorted: &[Duration], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted
        .get(rank)
        .map_or(0.0, |time| (time.as_secs_f64() * 1e7).round() / 10.0)
}

type Sender = SendRequest<Empty<Bytes>>;

/// An HTTP/2 connection with prior knowledge.
async fn connect(target: SocketAddr) -> Result<Sender> {
    let stream = TcpStream::connect(target)
        .await
        .with_context(|| format!("connecting to {target}"))?;
    stream.set_nodelay(true)?;
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    // Ends with the last sender.
    tokio::spawn(connection);
    Ok(sender)
}

async fn closed(senders: &[Sender], in_flight: usize, counted: Counted) -> Result<Tally> {
    let mut loops = JoinSet::new();
    for sender in senders {
        for _ in 0..in_flight {
            loops.spawn(one_after_the_other(sender.clone(), counted));
        }
    }
    let mut tally = Tally::default();
    while let Some(ended) = loops.join_next().await {
        tally.merge(ended??);
    }
    Ok(tally)
}

async fn one_after_the_other(mut sender: Sender, counted: Counted) -> Result<Tally> {
    let mut tally = Tally::default();
    loop {
        let begun = Instant::now();
        if begun >= counted.until {
            return Ok(tally);
        }
        let served_by = call(&mut sender).await?;
        if begun >= counted.from {
            tally.add(begun.elapsed(), served_by);
        }
    }
}

async fn open(senders: &[Sender], rate: u32, counted: Counted) -> Result<Tally> {
    let mut due = clock(rate, counted.until)?;
    let (mut calls, mut tally) = (JoinSet::new(), Tally::default());
    let mut senders = senders.iter().cycle();
    loop {
        tokio::select! {
            Some(due) = due.recv() => {
                let mut sender = senders.next().context("no connection")?.clone();
                calls.spawn(async move {
                    let served_by = call(&mut sender).await?;
                    anyhow::Ok((due, due.elapsed(), served_by))
                });
            }
            Some(ended) = calls.join_next() => {
                let (due, time, served_by) = ended??;
                if due >= counted.from {
                    tally.add(time, served_by);
                }
            }
            else => return Ok(tally),
        }
    }
}

/// Tells when each request is due. A thread of its own, because the runtime's timers are as
/// coarse as what is to be measured.
fn clock(rate: u32, until: Instant) -> Result<mpsc::Receiver<Instant>> {
    let (tell, due) = mpsc::channel(OVERDUE);
    let interval = Duration::from_secs(1) / rate;
    thread::Builder::new()
        .name("clock".to_owned())
        .spawn(move || {
            // Otherwise the kernel may wake us 50 µs late. Not essential.
            let _ = set_current_timer_slack(NonZeroU64::new(1));
            let mut next = Instant::now();
            while next < until {
                thread::sleep(next.saturating_duration_since(Instant::now()));
                if tell.blocking_send(next).is_err() {
                    return;
                }
                next += interval;
            }
        })
        .context("cannot start the clock")?;
    Ok(due)
}

/// One request; the name of the origin that answered it.
async fn call(sender: &mut Sender) -> Result<HeaderValue> {
    sender.ready().await.context("the connection ended")?;
    let request = Request::get("http://origin.shop/").body(Empty::new())?;
    let response = sender.send_request(request).await.context("no answer")?;
    let (status, served_by) = (
        response.status(),
        response.headers().get(SERVED_BY).cloned(),
    );
    let body = response.into_body().collect().await;
    let body = body.context("the answer did not end")?.to_bytes();
    ensure!(
        status == StatusCode::OK,
        "answered {status}: {}",
        String::from_utf8_lossy(&body).trim()
    );
    Ok(served_by.unwrap_or_else(|| HeaderValue::from_static("?")))
}

/// Asks until there is a good answer.
///
/// # Errors
/// With the last failure, when there is none in that time.
pub async fn first_answer(target: SocketAddr, within: Duration) -> Result<()> {
    let deadline = Instant::now() + within;
    loop {
        let asked = timeout(within, async { call(&mut connect(target).await?).await });
        match asked.await.context("no answer").flatten() {
            Ok(_) => return Ok(()),
            Err(error) if Instant::now() >= deadline => {
                return Err(error.context(format!("no good answer from {target} in {within:?}")));
            }
            // What is not there yet cannot be waited for.
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        let times: Vec<_> = (1..=200).map(Duration::from_micros).collect();
        assert!((percentile(&times, 50) - 100.0).abs() < 1e-6);
        assert!((percentile(&times, 99) - 198.0).abs() < 1e-6);
        assert!(percentile(&[], 50).abs() < 1e-6);
    }

    #[test]
    fn a_command_line_says_the_same() {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            load: Load,
        }
        let load = Load {
            target: ([127, 0, 0, 1], 80).into(),
            connections: 3,
            pace: Pace::open(7),
            warmup_ms: 1,
            measure_ms: 2,
        };
        let words = ["load".to_owned()].into_iter().chain(load.arguments());
        let parsed = <Line as clap::Parser>::try_parse_from(words).expect("parses");
        assert_eq!(format!("{:?}", parsed.load), format!("{load:?}"));
    }
}

use std::{
    io,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
};

use http::Request;
use http_body_util::{BodyExt, Empty};
use tokio::{
    io::DuplexStream,
    sync::{Semaphore, watch},
};

use linkspan_runtime::trace::SpanContext;

use super::*;
use crate::forward::http::{BodyError, SendError, send};

/// Dials servers in this process, each of which answers when it is let.
struct Servers {
    dials: AtomicUsize,
    generation: AtomicU64,
    retire_at: Mutex<Option<Instant>>,
    /// Dials that may end.
    permits: Semaphore,
    answers: watch::Receiver<bool>,
    stopped: watch::Sender<bool>,
    /// Whether its patience is short.
    hurry: AtomicBool,
    fail: bool,
}

type Stopped = watch::Receiver<bool>;

impl Dial<u8> for Servers {
    type Io = DuplexStream;
    type Error = io::Error;

    async fn dial(
        &self,
        _: &u8,
        _: Option<SpanContext>,
    ) -> Result<Dialled<DuplexStream>, io::Error> {
        self.dials.fetch_add(1, SeqCst);
        self.permits
            .acquire()
            .await
            .map_err(io::Error::other)?
            .forget();
        if self.fail {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        tokio::spawn(stoppable(
            theirs,
            self.answers.clone(),
            self.stopped.subscribe(),
        ));
        Ok(Dialled {
            io: ours,
            retire_at: *self.retire_at.lock().unwrap(),
            generation: self.generation.load(SeqCst),
            patience: self.hurry.load(SeqCst).then_some(Duration::from_secs(2)),
            span: None,
        })
    }

    fn generation(&self, _: &u8) -> u64 {
        self.generation.load(SeqCst)
    }
}

/// As [`answer`], but a process that does nothing while `stopped` is true.
async fn stoppable(io: DuplexStream, answers: watch::Receiver<bool>, stopped: Stopped) {
    let mut serving = Box::pin(answer(io, answers));
    let mut waiting = stopped.clone();
    loop {
        tokio::select! {
            biased;
            _ = waiting.wait_for(|stopped| *stopped) => {}
            () = serving.as_mut() => return,
        }
        if waiting.wait_for(|stopped| !*stopped).await.is_err() {
            return;
        }
    }
}

/// Answers each request once `answers` is true.
async fn answer(io: DuplexStream, answers: watch::Receiver<bool>) {
    let mut server = h2::server::handshake(io).await.unwrap();
    while let Some(Ok((_, mut respond))) = server.accept().await {
        let mut answers = answers.clone();
        tokio::spawn(async move {
            if answers.wait_for(|answers| *answers).await.is_ok() {
                let _ = respond.send_response(http::Response::new(()), true);
            }
        });
    }
}

fn pool(permits: usize, fail: bool) -> (Pool<u8, Servers>, watch::Sender<bool>) {
    let (answer, answers) = watch::channel(true);
    let servers = Servers {
        dials: AtomicUsize::new(0),
        generation: AtomicU64::new(1),
        retire_at: Mutex::new(None),
        permits: Semaphore::new(permits),
        answers,
        stopped: watch::Sender::new(false),
        hurry: AtomicBool::new(true),
        fail,
    };
    let limits = PoolLimits {
        grow_at: 4,
        connections: 2,
        ..PoolLimits::default()
    };
    (Pool::new(servers, limits), answer)
}

async fn request(lease: &Lease) -> http::StatusCode {
    request_or_loss(lease).await.unwrap()
}

async fn request_or_loss(lease: &Lease) -> Result<http::StatusCode, SendError> {
    let body = Empty::new().map_err(|_| BodyError::broken("never"));
    let request = Request::get("http://x/").body(body).unwrap();
    let answer = send(lease.requests(), request).await?;
    Ok(answer.status())
}

fn dials(pool: &Pool<u8, Servers>) -> usize {
    pool.dial().dials.load(SeqCst)
}

#[tokio::test]
async fn requests_to_a_cold_destination_share_one_dial() {
    let (pool, _answer) = pool(0, false);
    let waiting: Vec<_> = (0..20)
        .map(|_| {
            let pool = pool.clone();
            tokio::spawn(async move { request(&pool.lease(&1).await.unwrap()).await })
        })
        .collect();
    while dials(&pool) == 0 {
        tokio::task::yield_now().await;
    }
    pool.dial().permits.add_permits(1);
    for request in waiting {
        assert_eq!(request.await.unwrap(), 200);
    }
    assert_eq!(dials(&pool), 1);
}

#[tokio::test]
async fn a_failed_dial_fails_all_who_wait_and_the_next_tries_again() {
    let (pool, _answer) = pool(2, true);
    let (one, other) = tokio::join!(pool.lease(&1), pool.lease(&1));
    assert!(matches!(one, Err(LeaseError::Dial(_))) && matches!(other, Err(LeaseError::Dial(_))));
    assert_eq!(dials(&pool), 1);
    assert!(pool.lease(&1).await.is_err());
    assert_eq!(dials(&pool), 2);
}

#[tokio::test]
async fn load_adds_connections_up_to_the_bound() {
    let (pool, _answer) = pool(100, false);
    let mut leases = Vec::new();
    for _ in 0..4 {
        leases.push(pool.lease(&1).await.unwrap());
    }
    // The fifth finds the first connection full, and has a second one made.
    leases.push(pool.lease(&1).await.unwrap());
    while pool.usage()[0].1.len() < 2 {
        tokio::task::yield_now().await;
    }
    for _ in 0..10 {
        leases.push(pool.lease(&1).await.unwrap());
    }
    assert_eq!(dials(&pool), 2);
    let (_, usage) = &pool.usage()[0];
    assert!(
        usage.iter().all(|count| (7..=8).contains(count)),
        "{usage:?}"
    );
    drop(leases);
    assert_eq!(pool.usage()[0].1, [0, 0]);
}

#[tokio::test]
async fn connections_of_replaced_credentials_serve_until_new_ones_stand() {
    let (pool, _answer) = pool(1, false);
    drop(pool.lease(&1).await.unwrap());
    pool.dial().generation.store(2, SeqCst);
    // No dial may end yet, and still there is a connection.
    let old = pool.lease(&1).await.unwrap();
    assert_eq!(request(&old).await, 200);
    pool.dial().permits.add_permits(1);
    while pool.usage()[0].1 != [0] {
        tokio::task::yield_now().await;
    }
    assert_eq!(dials(&pool), 2);
    assert_eq!(request(&old).await, 200);
    let new = pool.lease(&1).await.unwrap();
    assert_eq!(pool.usage()[0].1, [1]);
    assert_eq!(request(&new).await, 200);
}

#[tokio::test]
async fn aged_connections_are_replaced() {
    let (pool, _answer) = pool(100, false);
    *pool.dial().retire_at.lock().unwrap() = Some(Instant::now());
    drop(pool.lease(&1).await.unwrap());
    drop(pool.lease(&1).await.unwrap());
    while dials(&pool) < 2 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn giving_up_tells_requests_and_dials() {
    let (pool, _answer) = pool(1, false);
    let lease = pool.lease(&1).await.unwrap();
    let dialling = tokio::spawn({
        let pool = pool.clone();
        async move { pool.lease(&2).await.map(drop) }
    });
    while dials(&pool) < 2 {
        tokio::task::yield_now().await;
    }
    pool.abandon(|_| true);
    lease.abandoned().await;
    assert!(matches!(
        dialling.await.unwrap(),
        Err(LeaseError::Abandoned)
    ));
    // What is in flight may still end well.
    assert_eq!(request(&lease).await, 200);
    assert!(pool.usage().is_empty());
}

#[tokio::test]
async fn a_lost_connection_is_not_used_again() {
    let (pool, _answer) = pool(2, false);
    pool.lease(&1).await.unwrap().broken();
    assert_eq!(request(&pool.lease(&1).await.unwrap()).await, 200);
    assert_eq!(dials(&pool), 2);
}

#[tokio::test]
async fn unused_connections_are_swept_and_close_waits_for_the_rest() {
    let (pool, answer) = pool(2, false);
    answer.send_replace(false);
    let busy = pool.lease(&1).await.unwrap();
    drop(pool.lease(&2).await.unwrap());
    let later = Instant::now() + PoolLimits::default().idle;
    pool.sweep(later);
    assert_eq!(pool.usage(), [(1, vec![1])]);
    let closing = tokio::spawn({
        let pool = pool.clone();
        async move { pool.close().await }
    });
    let asking = tokio::spawn(async move { request(&busy).await });
    answer.send_replace(true);
    assert_eq!(asking.await.unwrap(), 200);
    closing.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_host_that_vanishes_is_noticed_while_somebody_waits() {
    let (pool, _answer) = pool(1, false);
    let lease = pool.lease(&1).await.unwrap();
    assert_eq!(request(&lease).await, 200);
    pool.dial().stopped.send_replace(true);
    let began = tokio::time::Instant::now();
    let error = request_or_loss(&lease).await.unwrap_err();
    assert!(matches!(error, SendError::Lost(_)), "{error:?}");
    let took = began.elapsed();
    assert!(
        (Duration::from_secs(3)..Duration::from_secs(4)).contains(&took),
        "{took:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_host_that_vanishes_is_noticed_though_each_caller_gives_up_soon() {
    // What applies to endpoints, and at the pace of idle connections, as to applications.
    for (hurry, limit) in [(true, 8), (false, 17)] {
        let (pool, _answer) = pool(1, false);
        pool.dial().hurry.store(hurry, SeqCst);
        assert_eq!(request(&pool.lease(&1).await.unwrap()).await, 200);
        pool.dial().stopped.send_replace(true);
        let began = tokio::time::Instant::now();
        while !pool.usage()[0].1.is_empty() {
            let lease = pool.lease(&1).await.unwrap();
            let second = Duration::from_secs(1);
            let _ = tokio::time::timeout(second, request_or_loss(&lease)).await;
            drop(lease);
            tokio::time::sleep(second).await;
            assert!(began.elapsed() < Duration::from_secs(limit));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_process_that_stops_for_two_seconds_loses_nothing() {
    let (pool, answer) = pool(1, false);
    let lease = pool.lease(&1).await.unwrap();
    answer.send_replace(false);
    let asked = request(&lease);
    let stopping = async {
        for _ in 0..5 {
            pool.dial().stopped.send_replace(true);
            tokio::time::sleep(Duration::from_secs(2)).await;
            pool.dial().stopped.send_replace(false);
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        answer.send_replace(true);
    };
    assert_eq!(tokio::join!(asked, stopping).0, 200);
}

#[tokio::test(start_paused = true)]
async fn nobody_hurries_an_idle_connection() {
    let (pool, _answer) = pool(1, false);
    drop(pool.lease(&1).await.unwrap());
    tokio::time::sleep(Duration::from_secs(60)).await;
    pool.dial().stopped.send_replace(true);
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(pool.usage()[0].1, [0]);
    tokio::time::sleep(Duration::from_secs(12)).await;
    assert!(pool.usage()[0].1.is_empty());
}

//! Captured calls, without a packet filter: what it leads here is tested with real ones in
//! `tests/tests/capture.rs`.

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc, time::Duration};

use linkspan_dataplane::outbound::{Services, SourceCell};
use linkspan_routing::ServiceKey;
use linkspan_runtime::{
    stop::Stop,
    telemetry::{Registry, TrafficMetrics},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    time::Instant,
};

use super::world::{PORT, World, key, listener};
use crate::{
    capture::{
        Capture, Past, Used,
        used::{MAX_USED, Means, UNUSED},
    },
    mesh::MeshCell,
};

struct Bench {
    used: Used,
    services: Arc<Services>,
    subscription: watch::Receiver<BTreeSet<ServiceKey>>,
    _world: World,
}

/// What a workload uses that has an explicit listener for `shop/checkout`.
async fn bench() -> Bench {
    let mut world = World::new();
    let services = world.source(None).await.services;
    let explicit = BTreeSet::from([(key(), PORT)]);
    let (sender, subscription) = watch::channel([key()].into());
    let (used, _sweeper) = Used::new(Means {
        explicit,
        services: Arc::clone(&services),
        subscription: sender,
        source: SourceCell::default(),
        idle: Duration::from_secs(60),
        access_log: linkspan_runtime::access_log::AccessLog::OFF,
        stop: Stop::new(),
    });
    Bench {
        used,
        services,
        subscription,
        _world: world,
    }
}

fn service(name: &str) -> ServiceKey {
    ServiceKey::new("shop", name).unwrap()
}

impl Bench {
    fn subscribed(&self) -> Vec<String> {
        let subscribed = self.subscription.borrow();
        subscribed.iter().map(ToString::to_string).collect()
    }
}

#[tokio::test]
async fn what_is_called_is_followed_until_it_has_been_unused_for_long() {
    let bench = bench().await;
    let start = Instant::now();
    let call = bench.used.call(service("pay"), 443, start).unwrap();
    assert_eq!(bench.subscribed(), ["shop/checkout", "shop/pay"]);
    assert!(bench.services.destination(&service("pay"), 443).is_some());
    // A connection may last.
    bench.used.sweep(start + UNUSED * 2);
    assert_eq!(bench.subscribed(), ["shop/checkout", "shop/pay"]);
    drop(call);
    bench.used.sweep(Instant::now() + UNUSED / 2);
    assert_eq!(bench.subscribed(), ["shop/checkout", "shop/pay"]);
    bench.used.sweep(Instant::now() + UNUSED);
    assert_eq!(bench.subscribed(), ["shop/checkout"]);
    assert!(bench.services.destination(&service("pay"), 443).is_none());
    assert!(
        bench.services.destination(&key(), PORT).is_some(),
        "explicit listeners stay"
    );
}

#[tokio::test]
async fn what_is_unused_makes_room_and_what_is_used_does_not() {
    let bench = bench().await;
    let start = Instant::now();
    let mut calls = Vec::new();
    for number in 0..MAX_USED {
        let name = service(&format!("s{number}"));
        calls.push(bench.used.call(name, 80, start).unwrap());
    }
    assert!(bench.used.call(service("more"), 80, start).is_none());
    // One that is followed already is not one more.
    assert!(bench.used.call(service("s7"), 80, start).is_some());
    drop(calls.remove(3));
    assert!(bench.used.call(service("more"), 80, start).is_some());
    let subscribed = bench.subscribed();
    assert!(!subscribed.contains(&"shop/s3".to_owned()));
    assert!(subscribed.contains(&"shop/more".to_owned()));
}

fn past() -> Past {
    let traffic = TrafficMetrics::register(&Registry::new()).unwrap();
    Past::new(&traffic, linkspan_runtime::access_log::AccessLog::OFF)
}

/// A client whose connection is carried to `there`, and the server's end of it.
async fn carried(past: &Past, there: &TcpListener) -> (TcpStream, TcpStream, SocketAddr) {
    let (captured, address) = listener().await;
    let meant = there.local_addr().unwrap();
    let past = past.clone();
    tokio::spawn(async move {
        let (mut socket, caller) = captured.accept().await.unwrap();
        past.carry(&mut socket, caller, meant).await;
    });
    let client = TcpStream::connect(address).await.unwrap();
    let (server, from) = there.accept().await.unwrap();
    (client, server, from)
}

#[tokio::test]
async fn what_is_not_of_the_mesh_is_copied_with_its_ends() {
    let (there, _) = listener().await;
    let past = past();
    let (mut client, mut server, from) = carried(&past, &there).await;
    assert!(past.is_own(from), "what comes from there is ours");
    client.write_all(b"ping").await.unwrap();
    client.shutdown().await.unwrap();
    let mut said = Vec::new();
    server.read_to_end(&mut said).await.unwrap();
    assert_eq!(said, b"ping");
    server.write_all(b"pong").await.unwrap();
    drop(server);
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, b"pong");
    while past.is_own(from) {
        tokio::task::yield_now().await;
    }
    let (mut client, server, _) = carried(&past, &there).await;
    server.set_zero_linger().unwrap();
    drop(server);
    let error = client.read(&mut [0]).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn where_nobody_listens_the_caller_is_reset() {
    let (nobody, meant) = listener().await;
    drop(nobody);
    let (captured, address) = listener().await;
    let (client, accepted) = tokio::join!(TcpStream::connect(address), captured.accept());
    let (mut socket, caller) = accepted.unwrap();
    past().carry(&mut socket, caller, meant).await;
    drop(socket);
    let error = client.unwrap().read(&mut [0]).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn who_calls_the_port_itself_gets_nowhere() {
    let (captured, address) = listener().await;
    let stop = Stop::new();
    let capture = Capture::new(MeshCell::default(), past());
    let running = tokio::spawn(capture.run(captured, stop.clone()));
    let mut client = TcpStream::connect(address).await.unwrap();
    let error = client.read(&mut [0]).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    stop.abort();
    running.await.unwrap();
}

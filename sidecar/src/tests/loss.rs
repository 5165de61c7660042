//! Requests outlive the endpoints that they were sent to, where that is safe.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Instant,
};

use ::http::{Request, StatusCode};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use linkspan_dataplane::{
    discover::Snapshot,
    forward::http::{BodyError, serve},
};
use linkspan_routing::{AppProtocol, FailoverPolicy};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::watch,
};

use super::world::{
    Server, World, answer, ask, by_gateways, cluster, full, get, key, listener, post, snapshot,
};

/// An application that takes every request, and falls over it.
async fn falls_over() -> (std::net::SocketAddr, Arc<AtomicUsize>) {
    let (listener, address) = listener().await;
    let taken = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&taken);
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut head = [0; 1024];
            if socket.read(&mut head).await.is_ok_and(|read| read > 0) {
                count.fetch_add(1, SeqCst);
            }
        }
    });
    (address, taken)
}

async fn good(world: &mut World, name: &'static str) -> Server {
    let app = world.app(move |_| async move { answer(name) }).await;
    world.server("east", name, app, AppProtocol::Http).await
}

#[tokio::test]
async fn no_request_fails_when_endpoints_are_killed() {
    let mut world = World::new();
    let servers = [
        good(&mut world, "a").await,
        good(&mut world, "b").await,
        good(&mut world, "c").await,
    ];
    let known = snapshot(
        servers.iter().map(|server| &server.endpoint),
        AppProtocol::Http,
    );
    let source = world.source(Some(known)).await;
    let client = source.http2().await;
    let done = AtomicUsize::new(0);
    let answers = stream::iter(0..900)
        .map(|_| async {
            let answer = ask(&client, get()).await.unwrap();
            // In the midst of traffic.
            match done.fetch_add(1, SeqCst) {
                200 => servers[0].kill(),
                500 => servers[1].kill(),
                _ => {}
            }
            answer
        })
        .buffer_unordered(32)
        .collect::<Vec<_>>()
        .await;
    assert!(answers.iter().all(|(status, _)| *status == StatusCode::OK));
    assert!(answers[800..].iter().all(|(_, who)| who == "c"));
}

#[tokio::test]
async fn what_was_sent_is_repeated_only_if_idempotent() {
    let mut world = World::new();
    let (bad, taken) = falls_over().await;
    let bad = world.server("east", "bad", bad, AppProtocol::Http).await;
    let source = world
        .source(Some(snapshot([&bad.endpoint], AppProtocol::Http)))
        .await;
    let client = source.http2().await;
    let (status, _) = ask(&client, post(full("x"))).await.unwrap();
    assert_eq!((status, taken.load(SeqCst)), (StatusCode::BAD_GATEWAY, 1));

    let good = good(&mut world, "good").await;
    let mut weak = good.endpoint.clone();
    weak.weight = 1;
    let mut first = bad.endpoint.clone();
    first.weight = 128;
    let source = world
        .source(Some(snapshot([&first, &weak], AppProtocol::Http)))
        .await;
    let client = source.http2().await;
    assert_eq!(
        ask(&client, get()).await.unwrap(),
        (StatusCode::OK, "good".to_owned())
    );
    let mut keyed = post(full("x"));
    keyed
        .headers_mut()
        .insert("idempotency-key", "1".parse().unwrap());
    assert_eq!(ask(&client, keyed).await.unwrap().1, "good");
}

#[tokio::test]
async fn an_application_that_takes_no_connection_loses_no_request() {
    let mut world = World::new();
    let (gone, address) = listener().await;
    drop(gone);
    let down = world
        .server("east", "down", address, AppProtocol::Http)
        .await;
    let good = good(&mut world, "good").await;
    let known = snapshot([&down.endpoint, &good.endpoint], AppProtocol::Http);
    let source = world.source(Some(known)).await;
    let client = source.http2().await;
    for _ in 0..20 {
        assert_eq!(ask(&client, post(full("x"))).await.unwrap().1, "good");
    }
}

/// The same under a policy that lets so much leave the caller's cluster.
fn capped(mut known: Snapshot, percent: u32) -> Snapshot {
    let service = known.services.get_mut(&key()).unwrap();
    Arc::make_mut(service).policy = Some(Arc::new(FailoverPolicy {
        max_remote_share: Some(percent),
        ..FailoverPolicy::default()
    }));
    known
}

#[tokio::test]
async fn a_cap_loses_no_request_that_home_can_take() {
    let mut world = World::new();
    // No more than the retry budget has from the beginning.
    let (asked, count) = (Arc::new(AtomicUsize::new(0)), 10);
    let seen = Arc::clone(&asked);
    // Every other request breaks its connection.
    let flaps = world
        .app(move |_| {
            let falls = seen.fetch_add(1, SeqCst).is_multiple_of(2);
            async move {
                if falls {
                    return Err("falls over".into());
                }
                answer("home")
            }
        })
        .await;
    let home = world.server("east", "home", flaps, AppProtocol::Http).await;
    let away = good(&mut world, "away").await;
    let mut away = away.endpoint.clone();
    (away.cluster, away.address) = (cluster("west"), None);
    let (_nobody, gateway) = listener().await;
    let known = snapshot([&home.endpoint, &away], AppProtocol::Http);
    let known = capped(by_gateways(known, &[gateway], true), 0);
    let source = world.source(Some(known)).await;
    let client = source.http2().await;
    for _ in 0..count {
        let (status, who) = ask(&client, get()).await.unwrap();
        assert_eq!((status, &*who), (StatusCode::OK, "home"));
    }
    assert_eq!(asked.load(SeqCst), 2 * count);
}

#[tokio::test]
async fn what_the_cap_refuses_is_drawn_once() {
    const CALLS: usize = 2000;
    let mut world = World::new();
    let app = world.app(|_| async { answer("away") }).await;
    let server = world.server("west", "away", app, AppProtocol::Http).await;
    let mut away = server.endpoint.clone();
    away.address = Some(server.address);
    let mut home = away.clone();
    (home.cluster, home.ready) = (cluster("east"), false);
    let known = snapshot([&home, &away], AppProtocol::Http);
    // Reached directly; but without a gateway its cluster would be unusable.
    let known = capped(by_gateways(known, &[server.address], true), 10);
    let source = world.source(Some(known)).await;
    let client = source.http2().await;
    let answered = stream::iter(0..CALLS)
        .map(|_| ask(&client, get()))
        .buffer_unordered(32)
        .map(|answer| {
            let (status, text) = answer.unwrap();
            if status != StatusCode::OK {
                assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
                assert!(text.contains("maxRemoteShare"), "{text}");
            }
            usize::from(status == StatusCode::OK)
        })
        .fold(0, async |sum, one| sum + one)
        .await;
    // More than four standard deviations; drawn twice, it would be nearly twice as many.
    assert!((140..=260).contains(&answered), "{answered} of {CALLS}");
}

#[tokio::test]
async fn refusals_are_retried_within_the_budget() {
    const CALLS: usize = 1000;
    let mut world = World::new();
    let asked = Arc::new(AtomicUsize::new(0));
    let mut endpoints = Vec::new();
    for name in ["a", "b"] {
        let seen = Arc::clone(&asked);
        let app = world
            .app(move |_| {
                seen.fetch_add(1, SeqCst);
                async { Err(serve::refused()) }
            })
            .await;
        let server = world.server("east", name, app, AppProtocol::Http2).await;
        endpoints.push(server.endpoint);
    }
    let known = snapshot(&endpoints, AppProtocol::Http2);
    let source = world.source(Some(known)).await;
    let client = source.http2().await;
    let began = Instant::now();
    let answers = stream::iter(0..CALLS)
        .map(|_| ask(&client, get()))
        .buffer_unordered(32)
        .map(|answer| answer.unwrap().0)
        .collect::<Vec<_>>()
        .await;
    assert!(
        answers
            .iter()
            .all(|of| *of == StatusCode::SERVICE_UNAVAILABLE)
    );
    // Ten at once, one for five requests, ten a second.
    let seconds = usize::try_from(began.elapsed().as_secs()).unwrap() + 1;
    let budget = 10 + CALLS / 5 + 10 * seconds;
    let retries = asked.load(SeqCst) - CALLS;
    assert!((1..=budget).contains(&retries), "{retries} of {budget}");
}

#[tokio::test]
async fn bodies_are_sent_again_byte_by_byte() {
    let mut world = World::new();
    let (bad, taken) = falls_over().await;
    let bad = world.server("east", "bad", bad, AppProtocol::Http).await;
    let app = world
        .app(|request| async move { answer(request.into_body().collect().await?.to_bytes()) })
        .await;
    let good = world.server("east", "good", app, AppProtocol::Http).await;
    let payload: Vec<u8> = (0..40_000u32).map(|n| b'a' + (n % 23) as u8).collect();
    while taken.load(SeqCst) == 0 {
        // A new source each time, until one tries the bad endpoint first.
        let known = snapshot([&bad.endpoint, &good.endpoint], AppProtocol::Http);
        let source = world.source(Some(known)).await;
        let client = source.http2().await;
        let frames: Vec<_> = payload
            .chunks(777)
            .map(|chunk| Ok::<_, BodyError>(Frame::data(Bytes::copy_from_slice(chunk))))
            .collect();
        let body = StreamBody::new(stream::iter(frames)).boxed_unsync();
        let request = Request::put("http://checkout.shop/").body(body).unwrap();
        let (status, echoed) = ask(&client, request).await.unwrap();
        assert_eq!(status, StatusCode::OK, "{echoed}");
        assert!(echoed.as_bytes() == payload);
    }
}

#[tokio::test]
async fn connections_end_with_the_process_and_not_when_it_becomes_known() {
    let mut world = World::new();
    let app = world.app(|_| async { answer("x") }).await;
    let server = world.server("east", "e", app, AppProtocol::Http).await;
    let told = |incarnation| {
        let mut endpoint = server.endpoint.clone();
        endpoint.incarnation = incarnation;
        snapshot([&endpoint], AppProtocol::Http)
    };
    let source = world.source(Some(told(0))).await;
    let client = source.http2().await;
    ask(&client, get()).await.unwrap();
    let destination = source.destination();
    for (incarnation, kept) in [(7, true), (0, true), (7, true), (8, false)] {
        let mut changes = destination.changes();
        source.tell(told(incarnation));
        changes.changed().await.unwrap();
        assert_eq!(destination.connections().len(), usize::from(kept));
    }
}

#[tokio::test]
async fn a_long_body_is_not_repeated() {
    let mut world = World::new();
    // Reads all it gets, then falls over.
    let (listener, address) = listener().await;
    let (tell, mut told) = watch::channel(0);
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut bytes = vec![0; 16 * 1024];
            let mut all = 0;
            while all < 200_000 {
                match socket.read(&mut bytes).await {
                    Ok(read) if read > 0 => all += read,
                    _ => break,
                }
            }
            tell.send_replace(all);
            let _ = socket.shutdown().await;
        }
    });
    let bad = world
        .server("east", "bad", address, AppProtocol::Http)
        .await;
    let source = world
        .source(Some(snapshot([&bad.endpoint], AppProtocol::Http)))
        .await;
    let client = source.http2().await;
    let body = full(vec![1; 300_000]);
    let request = Request::put("http://checkout.shop/").body(body).unwrap();
    let (status, text) = ask(&client, request).await.unwrap();
    assert_eq!(status, StatusCode::BAD_GATEWAY, "{text}");
    assert!(*told.wait_for(|all| *all > 0).await.unwrap() >= 200_000);
}

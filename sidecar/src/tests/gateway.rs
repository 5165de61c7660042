//! Endpoints of another cluster, behind gateways that fail in all the ways that gateways can.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use ::http::StatusCode;
use futures_util::{StreamExt, stream};
use linkspan_api::v1::{StreamCode, StreamResult};
use linkspan_dataplane::{
    accept::Accept,
    detect::tls::{MAX_CLIENT_HELLO, peek_client_hello},
    forward::bytes::{Counters, RelayLimits, relay},
    frame::write_message,
    proxy_header::ProxyHeader,
    target::TargetName,
};
use linkspan_routing::{AppProtocol, EndpointId};
use linkspan_runtime::stop::Stop;
use tokio::{net::TcpStream, sync::watch};

use super::world::{Server, World, answer, ask, by_gateways, full, get, listener, post, snapshot};

/// How a gateway treats its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    Relays,
    Refuses(StreamCode),
    /// Bytes vanish, both of old connections and new ones.
    Swallows,
}

/// A gateway, and what stands for the tunnel and the other gateway.
struct Gateway {
    address: SocketAddr,
    manner: watch::Sender<Manner>,
    connections: Arc<AtomicUsize>,
    stop: Stop,
}

async fn gateway(world: &World, servers: &[&Server]) -> Gateway {
    let (listener, address) = listener().await;
    let (manner, follow) = watch::channel(Manner::Relays);
    let connections = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&connections);
    let routes: Arc<Vec<(EndpointId, SocketAddr)>> = Arc::new(
        servers
            .iter()
            .map(|server| (server.endpoint.id.clone(), server.address))
            .collect(),
    );
    let stop = world.stop();
    let accept = Accept::default().run(listener, stop.clone(), move |socket, _| {
        count.fetch_add(1, SeqCst);
        stream_of(socket, Arc::clone(&routes), follow.clone())
    });
    tokio::spawn(accept);
    Gateway {
        address,
        manner,
        connections,
        stop,
    }
}

async fn stream_of(
    mut socket: TcpStream,
    routes: Arc<Vec<(EndpointId, SocketAddr)>>,
    mut manner: watch::Receiver<Manner>,
) {
    ProxyHeader::read(&mut socket).await.unwrap();
    let limit = std::time::Duration::from_secs(5);
    let Ok((hello, mut socket)) = peek_client_hello(socket, MAX_CLIENT_HELLO, limit).await else {
        return;
    };
    assert!(hello.offers_http());
    let name: TargetName = hello.server_name.unwrap().parse().unwrap();
    let TargetName::Service(target) = name else {
        panic!("a service")
    };
    let now = *manner.borrow_and_update();
    let code = match now {
        Manner::Relays => StreamCode::Ok,
        Manner::Refuses(code) => code,
        Manner::Swallows => std::future::pending().await,
    };
    let route = routes
        .iter()
        .find(|(id, _)| Some(id) == target.endpoint.as_ref())
        .unwrap();
    let upstream = TcpStream::connect(route.1).await;
    let code = if upstream.is_err() && code == StreamCode::Ok {
        StreamCode::ConnectFailed
    } else {
        code
    };
    let result = StreamResult {
        code: code.into(),
        message: String::new(),
    };
    if write_message(&mut socket, &result).await.is_err() || code != StreamCode::Ok {
        return;
    }
    let mut upstream = upstream.unwrap();
    let counters = Counters::default();
    let relay = relay(
        &mut socket,
        &mut upstream,
        RelayLimits::default(),
        &counters,
    );
    let mut relay = std::pin::pin!(relay);
    tokio::select! {
        _ = &mut relay => return,
        swallows = manner.wait_for(|manner| *manner == Manner::Swallows) => drop(swallows),
    }
    // Neither side is closed, until somebody decides that the tunnel is dead.
    drop(manner.wait_for(|manner| *manner != Manner::Swallows).await);
}

async fn west(world: &mut World, name: &'static str) -> Server {
    let app = world.app(move |_| async move { answer(name) }).await;
    world.server("west", name, app, AppProtocol::Http).await
}

async fn east(world: &mut World, name: &'static str) -> Server {
    let app = world.app(move |_| async move { answer(name) }).await;
    world.server("east", name, app, AppProtocol::Http).await
}

#[tokio::test]
async fn remote_endpoints_are_reached_through_a_gateway() {
    let mut world = World::new();
    let servers = [west(&mut world, "w1").await, west(&mut world, "w2").await];
    let gateway = gateway(&world, &[&servers[0], &servers[1]]).await;
    let known = snapshot(
        servers.iter().map(|server| &server.endpoint),
        AppProtocol::Http,
    );
    let source = world
        .source(Some(by_gateways(known, &[gateway.address], true)))
        .await;
    let client = source.http2().await;
    let mut seen = std::collections::BTreeSet::new();
    while seen.len() < 2 {
        seen.insert(ask(&client, get()).await.unwrap().1);
    }
    assert_eq!(gateway.connections.load(SeqCst), 2);
}

#[tokio::test]
async fn a_gateway_that_cannot_help_is_passed_over() {
    for code in [StreamCode::NoTunnel, StreamCode::Draining, StreamCode::Busy] {
        let mut world = World::new();
        let server = west(&mut world, "w").await;
        let (bad, good) = (
            gateway(&world, &[&server]).await,
            gateway(&world, &[&server]).await,
        );
        bad.manner.send_replace(Manner::Refuses(code));
        let (_, refused) = listener().await;
        let gateways = [bad.address, refused, good.address];
        for _ in 0..3 {
            let known = snapshot([&server.endpoint], AppProtocol::Http);
            let source = world
                .source(Some(by_gateways(known, &gateways, true)))
                .await;
            // Not idempotent: nothing has been sent when a gateway refuses.
            let (status, who) = ask(&source.http2().await, post(full("x"))).await.unwrap();
            assert_eq!((status, who.as_str()), (StatusCode::OK, "w"));
        }
    }
}

#[tokio::test]
async fn a_silent_gateway_is_passed_over_and_no_endpoint_is_blamed() {
    let mut world = World::new();
    let server = west(&mut world, "w").await;
    let (silent, good) = (
        gateway(&world, &[&server]).await,
        gateway(&world, &[&server]).await,
    );
    silent.manner.send_replace(Manner::Swallows);
    // The first one is tried first.
    let known = snapshot([&server.endpoint], AppProtocol::Http);
    let known = by_gateways(known, &[silent.address, good.address], true);
    let source = world.source(Some(known)).await;
    let (status, who) = ask(&source.http2().await, post(full("x"))).await.unwrap();
    assert_eq!((status, who.as_str()), (StatusCode::OK, "w"));
    assert_eq!(silent.connections.load(SeqCst), 1);
    let shares = source.destination().shares();
    assert!(shares.iter().all(|share| share.endpoints_ejected == 0));
}

#[tokio::test]
async fn no_request_fails_when_a_gateway_is_killed() {
    let mut world = World::new();
    let servers = [west(&mut world, "w1").await, west(&mut world, "w2").await];
    let all: Vec<_> = servers.iter().collect();
    let (one, other) = (gateway(&world, &all).await, gateway(&world, &all).await);
    let known = snapshot(
        servers.iter().map(|server| &server.endpoint),
        AppProtocol::Http,
    );
    let known = by_gateways(known, &[one.address, other.address], true);
    let source = world.source(Some(known)).await;
    let client = source.http2().await;
    let done = AtomicUsize::new(0);
    let answers = stream::iter(0..600)
        .map(|_| async {
            let answer = ask(&client, get()).await.unwrap();
            if done.fetch_add(1, SeqCst) == 200 {
                one.stop.abort();
            }
            answer.0
        })
        .buffer_unordered(32)
        .collect::<Vec<_>>()
        .await;
    assert!(answers.iter().all(|status| *status == StatusCode::OK));
    assert!(other.connections.load(SeqCst) > 0);
}

#[tokio::test]
async fn requests_in_a_dead_tunnel_are_answered_elsewhere_once_it_is_given_up() {
    // Either the gateway resets its streams, or discovery says that the peer is unusable.
    for by_discovery in [false, true] {
        let mut world = World::new();
        let remote = west(&mut world, "w").await;
        let gateway = gateway(&world, &[&remote]).await;
        let local = east(&mut world, "e").await;
        let mut down = local.endpoint.clone();
        down.ready = false;
        // All local endpoints are down, so that everything is in the tunnel.
        let known = |local| {
            by_gateways(
                snapshot([local, &remote.endpoint], AppProtocol::Http),
                &[gateway.address],
                true,
            )
        };
        let source = world.source(Some(known(&down))).await;
        let client = source.http2().await;
        assert_eq!(ask(&client, get()).await.unwrap().1, "w");
        gateway.manner.send_replace(Manner::Swallows);
        let asking: Vec<_> = (0..20)
            .map(|_| {
                let client = client.clone();
                tokio::spawn(async move { ask(&client, get()).await.unwrap() })
            })
            .collect();
        let destination = source.destination();
        while destination
            .connections()
            .iter()
            .flat_map(|(_, counts)| counts)
            .sum::<usize>()
            < 20
        {
            tokio::task::yield_now().await;
        }
        if by_discovery {
            let lost = snapshot([&local.endpoint, &remote.endpoint], AppProtocol::Http);
            source.tell(by_gateways(lost, &[gateway.address], false));
        } else {
            source.tell(known(&local.endpoint));
            while destination.shares().iter().all(|share| {
                share.endpoints_available < 1
                    || share.share == 0.0
                    || share.cluster.as_str() != "east"
            }) {
                tokio::task::yield_now().await;
            }
            gateway
                .manner
                .send_replace(Manner::Refuses(StreamCode::NoTunnel));
        }
        for asked in asking {
            assert_eq!(asked.await.unwrap(), (StatusCode::OK, "e".to_owned()));
        }
    }
}

#[tokio::test]
async fn a_dead_remote_endpoint_is_ejected_by_its_own_failure() {
    let mut world = World::new();
    let servers = [west(&mut world, "w1").await, west(&mut world, "w2").await];
    let gateway = gateway(&world, &[&servers[0], &servers[1]]).await;
    let known = snapshot(
        servers.iter().map(|server| &server.endpoint),
        AppProtocol::Http,
    );
    let source = world
        .source(Some(by_gateways(known, &[gateway.address], true)))
        .await;
    let client = source.http2().await;
    ask(&client, get()).await.unwrap();
    servers[0].kill();
    let destination = source.destination();
    let ejected = || {
        let shares = destination.shares();
        shares
            .iter()
            .map(|share| share.endpoints_ejected)
            .sum::<u32>()
    };
    while ejected() == 0 {
        assert_eq!(ask(&client, get()).await.unwrap().0, StatusCode::OK);
    }
    assert_eq!(
        ask(&client, get()).await.unwrap(),
        (StatusCode::OK, "w2".to_owned())
    );
}

#[tokio::test]
async fn without_a_gateway_that_leads_there_a_cluster_is_unusable() {
    let mut world = World::new();
    let server = west(&mut world, "w").await;
    let known = by_gateways(snapshot([&server.endpoint], AppProtocol::Http), &[], true);
    let source = world.source(Some(known)).await;
    let (status, text) = ask(&source.http2().await, get()).await.unwrap();
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(text.contains("unreachable"), "{text}");
}

#[tokio::test]
async fn a_callers_identity_crosses_clusters() {
    let mut world = World::new();
    let app =
        world
            .app(|request| async move {
                answer(super::world::seen(&request, "x-forwarded-client-cert"))
            })
            .await;
    let server = world.server("west", "w", app, AppProtocol::Http).await;
    let gateway = gateway(&world, &[&server]).await;
    let known = snapshot([&server.endpoint], AppProtocol::Http);
    let source = world
        .source(Some(by_gateways(known, &[gateway.address], true)))
        .await;
    let (_, text) = ask(&source.http2().await, get()).await.unwrap();
    assert_eq!(
        text,
        "By=spiffe://west.test/ns/shop/sa/checkout;URI=spiffe://east.test/ns/shop/sa/frontend"
    );
}

//! What happens to a link when its path or its peer goes away, and when they return.

mod common;

use std::io::ErrorKind;
use std::net::SocketAddr;

use common::wire::Wire;
use common::{
    Gateway, HTTP, Pair, TCP, answer, endpoint, export, gateway_id, link, patiently, pki, target,
};
use linkspan_api::v1::StreamCode;
use linkspan_gateway::peers::Peer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// East dials west through a wire.
async fn over_a_wire() -> (Pair, Wire) {
    let pki = pki();
    let mut west = Gateway::start(&pki, "west", "west-1").await;
    let mut east = Gateway::start(&pki, "east", "east-1").await;
    let wire = Wire::to(west.addresses.tunnel).await;
    let (listener, address) = common::listener().await;
    west.tell(
        vec![link("east", &[])],
        vec![export(
            &["east"],
            vec![endpoint("west", "checkout-1", address)],
        )],
    );
    east.tell(vec![link("west", &[wire.address])], Vec::new());
    east.until_up("west").await;
    west.until_up("east").await;
    (
        Pair {
            pki,
            east,
            west,
            endpoint: listener,
        },
        wire,
    )
}

fn is_suspect(peer: &Peer) -> bool {
    !peer.connections.is_empty() && peer.connections.iter().all(|held| held.state().suspect)
}

#[tokio::test]
async fn a_black_hole_cuts_http_and_keeps_raw_tcp_until_the_path_returns() {
    let (mut pair, wire) = over_a_wire().await;
    let (mut http, mut http_there) = pair.stream(HTTP).await;
    let (mut raw, mut raw_there) = pair.stream(TCP).await;
    wire.cut(true);
    let mut byte = [0];
    for end in [&mut http, &mut http_there] {
        let cut = patiently("HTTP is reset", end.read(&mut byte)).await;
        assert_eq!(cut.unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
    pair.east.until("suspect", "west", is_suspect).await;
    pair.west.until("suspect", "east", is_suspect).await;
    let down = pair
        .east
        .health
        .wait_for(|health| health.peers.iter().all(|peer| !peer.up));
    assert!(patiently("federation is told", down).await.unwrap().peers[0].connections > 0);
    let (refused, _) = pair.east.ask(&target("west", None), HTTP).await;
    assert_eq!(refused, StreamCode::NoTunnel);
    raw.write_all(b"kept").await.unwrap();

    wire.cut(false);
    let mut got = [0; 4];
    patiently("raw TCP goes on", raw_there.read_exact(&mut got))
        .await
        .unwrap();
    assert_eq!(&got, b"kept");
    pair.east.until_up("west").await;
    pair.west.until_up("east").await;
    pair.stream(HTTP).await;
}

#[tokio::test]
async fn a_stream_that_was_not_answered_is_opened_again_on_another_connection() {
    let pki = pki();
    let mut west_1 = Gateway::start(&pki, "west", "west-1").await;
    let mut west_2 = Gateway::start(&pki, "west", "west-2").await;
    let mut east = Gateway::start(&pki, "east", "east-1").await;
    let wire = Wire::to(west_1.addresses.tunnel).await;
    let (listener, address) = common::listener().await;
    let exported = export(&["east"], vec![endpoint("west", "checkout-1", address)]);
    let gateway = |replica: &str| linkspan_dataplane::discover::GatewayInfo {
        replica: replica.to_owned(),
        egress: ([127, 0, 0, 1], 1).into(),
        reachable: Default::default(),
        draining: false,
    };
    let snapshot = linkspan_dataplane::discover::Snapshot {
        links: vec![link("east", &[])],
        exported: vec![exported],
        gateways: vec![gateway("west-1"), gateway("west-2")],
        ..Default::default()
    };
    for west in [&west_1, &west_2] {
        west.snapshot
            .send_replace(Some(std::sync::Arc::new(snapshot.clone())));
    }
    east.tell(
        vec![link("west", &[wire.address, west_2.addresses.tunnel])],
        Vec::new(),
    );
    east.until("both replicas", "west", |peer| peer.held().data.len() == 2)
        .await;
    west_1.until("the link", "east", |_| true).await;
    west_2.until_up("east").await;
    wire.cut(true);
    // Of these streams some are put on the connection that has just died; none is lost.
    let name = target("west", Some("checkout-1"));
    for _ in 0..4 {
        let mut caller = east.sidecar(&name, HTTP).await;
        let (code, _there) = tokio::join!(answer(&mut caller), common::accept(&listener));
        assert_eq!(code, StreamCode::Ok);
    }
}

async fn west_at(pki: &linkspan_trust::testing::Pki, tunnel: Option<SocketAddr>) -> Gateway {
    let mut config = common::config("west", "west-1", pki);
    if let Some(tunnel) = tunnel {
        config.tunnel_listen = tunnel;
    }
    let west = Gateway::mortal(pki, config, &gateway_id("west")).await;
    west.tell(vec![link("east", &[])], Vec::new());
    west
}

#[tokio::test]
async fn a_peer_that_was_killed_and_restarted_is_linked_again() {
    let pki = pki();
    let mut west = west_at(&pki, None).await;
    let mut east = Gateway::start(&pki, "east", "east-1").await;
    let address = west.addresses.tunnel;
    // Through a wire that is cut first, so that no last word of the dying process arrives.
    let wire = Wire::to(address).await;
    east.tell(vec![link("west", &[wire.address])], Vec::new());
    east.until_up("west").await;
    west.until_up("east").await;
    wire.cut(true);
    west.kill();
    east.until("down", "west", |peer| !peer.is_up()).await;
    let mut west = rebind(&pki, address).await;
    wire.cut(false);
    east.until_up("west").await;
    west.until_up("east").await;
    west.kill();
}

/// The killed gateway's socket goes with its last task, which the runtime drops in its own time.
async fn rebind(pki: &linkspan_trust::testing::Pki, address: SocketAddr) -> Gateway {
    let free = async {
        while std::net::UdpSocket::bind(address).is_err() {
            tokio::task::yield_now().await;
        }
    };
    patiently("the port is free", free).await;
    west_at(pki, Some(address)).await
}

#[tokio::test]
async fn a_connection_is_replaced_before_its_certificate_ends() {
    let pki = pki();
    let mut config = common::config("east", "east-1", &pki);
    config.timers.surplus = std::time::Duration::from_millis(200);
    let mut east = Gateway::with(&pki, config, &gateway_id("east")).await;
    let west = Gateway::start(&pki, "west", "west-1").await;
    let now = std::time::SystemTime::now();
    let soon = std::time::Duration::from_secs(3);
    let brief = pki.svid_between(&gateway_id("east"), now - soon, now + soon);
    east.writer.set_svid(brief).unwrap();
    west.tell(vec![link("east", &[])], Vec::new());
    east.tell(vec![link("west", &[west.addresses.tunnel])], Vec::new());
    east.until_up("west").await;
    let first = east.peers.borrow().iter().next().unwrap().connections[0].id;
    east.writer.set_svid(pki.svid(&gateway_id("east"))).unwrap();
    // Never down meanwhile: the new one comes first.
    let replaced = east.peers.wait_for(|peers| {
        let peer = peers.iter().next().unwrap();
        assert!(peer.is_up());
        peer.connections.iter().all(|held| held.id != first)
    });
    patiently("another takes its place", replaced)
        .await
        .unwrap();
}

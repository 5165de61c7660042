//! Streams through two gateways: bytes, ends, and what happens to them when a link goes.

mod common;

use std::io::ErrorKind;

use common::{Pair, TCP, answer, link, patiently, target};
use linkspan_api::v1::StreamCode;
use linkspan_dataplane::discover::Registration;
use linkspan_dataplane::forward::bytes::Duplex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

async fn reads_reset(tcp: &mut TcpStream) {
    let mut byte = [0];
    let end = patiently("the reset arrives", tcp.read(&mut byte)).await;
    assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

async fn reads_end(tcp: &mut TcpStream) {
    let mut byte = [0];
    let end = patiently("the end arrives", tcp.read(&mut byte)).await;
    assert_eq!(end.unwrap(), 0);
}

async fn passes(from: &mut TcpStream, to: &mut TcpStream, bytes: &[u8]) {
    let mut got = vec![0; bytes.len()];
    let (sent, read) = patiently("bytes pass", async {
        tokio::join!(from.write_all(bytes), to.read_exact(&mut got))
    })
    .await;
    sent.unwrap();
    read.unwrap();
    assert_eq!(got, bytes);
}

#[tokio::test]
async fn bytes_pass_both_ways() {
    let pair = Pair::linked().await;
    let (mut here, mut there) = pair.stream(TCP).await;
    let much: Vec<u8> = (0..3_000_000_u32)
        .map(|number| number.to_le_bytes()[0])
        .collect();
    passes(&mut here, &mut there, &much).await;
    passes(&mut there, &mut here, &much).await;
}

#[tokio::test]
async fn a_half_close_arrives_as_a_half_close_in_both_directions() {
    let pair = Pair::linked().await;
    let (mut here, mut there) = pair.stream(TCP).await;
    here.shutdown().await.unwrap();
    reads_end(&mut there).await;
    passes(&mut there, &mut here, b"still open this way").await;
    there.shutdown().await.unwrap();
    reads_end(&mut here).await;

    let (mut here, mut there) = pair.stream(TCP).await;
    there.shutdown().await.unwrap();
    reads_end(&mut here).await;
    passes(&mut here, &mut there, b"still open that way").await;
    here.shutdown().await.unwrap();
    reads_end(&mut there).await;
}

#[tokio::test]
async fn a_reset_arrives_as_a_reset_in_both_directions() {
    let pair = Pair::linked().await;
    let (mut here, mut there) = pair.stream(TCP).await;
    passes(&mut here, &mut there, b"some").await;
    here.reset();
    drop(here);
    reads_reset(&mut there).await;

    let (mut here, mut there) = pair.stream(TCP).await;
    passes(&mut here, &mut there, b"some").await;
    there.reset();
    drop(there);
    reads_reset(&mut here).await;
}

#[tokio::test]
async fn an_unnamed_endpoint_is_chosen_by_the_ingress() {
    let pair = Pair::linked().await;
    let name = target("west", None);
    let (answered, _there) =
        tokio::join!(pair.east.ask(&name, TCP), common::accept(&pair.endpoint));
    assert_eq!(answered.0, StreamCode::Ok);
}

#[tokio::test]
async fn local_callers_learn_why_not() {
    let pair = Pair::linked().await;
    for (name, code) in [
        (target("east", None), StreamCode::BadRequest),
        (target("south", None), StreamCode::NoTunnel),
        ("example.com".to_owned(), StreamCode::BadRequest),
        (
            "federation.west.linkspan.internal".to_owned(),
            StreamCode::Denied,
        ),
        (target("west", Some("stranger")), StreamCode::EndpointGone),
    ] {
        let (answered, mut tcp) = pair.east.ask(&name, TCP).await;
        assert_eq!(answered, code, "{name}");
        reads_end(&mut tcp).await;
    }
}

#[tokio::test]
async fn bytes_that_are_no_request_are_answered_and_closed() {
    let pair = Pair::linked().await;
    let mut tcp = TcpStream::connect(pair.east.addresses.egress)
        .await
        .unwrap();
    tcp.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    assert_eq!(answer(&mut tcp).await, StreamCode::BadRequest);
    reads_end(&mut tcp).await;
}

#[tokio::test]
async fn an_endpoint_that_refuses_is_told_as_such() {
    let Pair {
        east,
        west: _west,
        endpoint,
        ..
    } = Pair::linked().await;
    drop(endpoint);
    let (answered, _) = east.ask(&target("west", Some("checkout-1")), TCP).await;
    assert_eq!(answered, StreamCode::ConnectFailed);
}

#[tokio::test]
async fn removing_the_link_ends_its_streams_at_once() {
    let mut pair = Pair::linked().await;
    let (mut here, mut there) = pair.stream(TCP).await;
    passes(&mut here, &mut there, b"some").await;
    pair.west.tell(Vec::new(), Vec::new());
    reads_reset(&mut here).await;
    reads_reset(&mut there).await;
    let gone = pair.west.peers.wait_for(|peers| peers.iter().count() == 0);
    patiently("the link is forgotten", gone).await.unwrap();
    let down = pair
        .east
        .health
        .wait_for(|health| health.peers.iter().all(|peer| !peer.up));
    patiently("federation is told", down).await.unwrap();
}

#[tokio::test]
async fn federation_is_told_which_peers_are_up() {
    let mut pair = Pair::linked().await;
    let up = |health: &linkspan_api::v1::LinkHealth| {
        health
            .peers
            .iter()
            .any(|peer| peer.cluster == "west" && peer.up && peer.rtt_micros > 0)
    };
    patiently("health", pair.east.health.wait_for(up))
        .await
        .unwrap();
    let ready = |told: &Registration| matches!(told, Registration::Gateway(told) if told.ready);
    patiently("registration", pair.east.registration.wait_for(ready))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_draining_gateway_finishes_what_it_has_and_takes_nothing_new() {
    let mut pair = Pair::linked().await;
    let (mut here, mut there) = pair.stream(TCP).await;
    pair.west.stop.drain();
    let draining =
        |told: &Registration| matches!(told, Registration::Gateway(told) if told.draining);
    patiently("registration", pair.west.registration.wait_for(draining))
        .await
        .unwrap();
    pair.east
        .until("Goaway", "west", |peer| !peer.is_up())
        .await;
    let (answered, _) = pair.east.ask(&target("west", None), TCP).await;
    assert_eq!(answered, StreamCode::NoTunnel);
    passes(&mut here, &mut there, b"old streams go on").await;
    here.shutdown().await.unwrap();
    reads_end(&mut there).await;
    there.shutdown().await.unwrap();
    reads_end(&mut here).await;
    let Pair { west, mut east, .. } = pair;
    west.ended().await.unwrap();
    east.until("it is gone", "west", |peer| peer.connections.is_empty())
        .await;
}

#[tokio::test]
async fn several_gateways_of_a_peer_are_all_held() {
    let pki = common::pki();
    let mut east = common::Gateway::start(&pki, "east", "east-1").await;
    let west_1 = common::Gateway::start(&pki, "west", "west-1").await;
    let west_2 = common::Gateway::start(&pki, "west", "west-2").await;
    let gateway = |replica: &str| linkspan_dataplane::discover::GatewayInfo {
        replica: replica.to_owned(),
        egress: ([127, 0, 0, 1], 1).into(),
        reachable: Default::default(),
        draining: false,
    };
    for west in [&west_1, &west_2] {
        let snapshot = linkspan_dataplane::discover::Snapshot {
            links: vec![link("east", &[])],
            gateways: vec![gateway("west-1"), gateway("west-2")],
            ..Default::default()
        };
        west.snapshot
            .send_replace(Some(std::sync::Arc::new(snapshot)));
    }
    let addresses = [west_1.addresses.tunnel, west_2.addresses.tunnel];
    east.tell(vec![link("west", &addresses)], Vec::new());
    let complete = |peer: &linkspan_gateway::peers::Peer| {
        let held = peer.held();
        held.sync && held.data.len() == 2 && held.data[0] != held.data[1]
    };
    east.until("both replicas and sync", "west", complete).await;
}

/// What a sidecar waits for is longer than what any of our own waits come to.
#[tokio::test]
async fn a_caller_is_answered_in_time_though_no_connection_has_a_place_for_long() {
    let pki = common::pki();
    let mut config = common::config("west", "west-1", &pki);
    config.limits.streams = 1;
    let west = common::Gateway::with(&pki, config, &common::gateway_id("west")).await;
    let mut config = common::config("east", "east-1", &pki);
    config.timers.busy = std::time::Duration::from_secs(3_600);
    config.timers.result = std::time::Duration::from_secs(2);
    let mut east = common::Gateway::with(&pki, config, &common::gateway_id("east")).await;
    let (listener, address) = common::listener().await;
    let exported = common::export(
        &["east"],
        vec![common::endpoint("west", "checkout-1", address)],
    );
    west.tell(vec![link("east", &[])], vec![exported]);
    east.tell(vec![link("west", &[west.addresses.tunnel])], Vec::new());
    east.until_up("west").await;
    let name = target("west", None);
    let (first, _there) = tokio::join!(east.ask(&name, TCP), common::accept(&listener));
    assert_eq!(first.0, StreamCode::Ok);
    let asking = patiently("an answer", east.ask(&name, TCP));
    assert_eq!(asking.await.0, StreamCode::Busy);
}

#[tokio::test]
async fn a_full_connection_is_busy_and_serves_again_when_a_stream_has_ended() {
    let pki = common::pki();
    let mut config = common::config("west", "west-1", &pki);
    config.limits.streams = 1;
    let west = common::Gateway::with(&pki, config, &common::gateway_id("west")).await;
    let mut config = common::config("east", "east-1", &pki);
    config.timers.busy = std::time::Duration::from_millis(50);
    let mut east = common::Gateway::with(&pki, config, &common::gateway_id("east")).await;
    let (listener, address) = common::listener().await;
    let exported = common::export(
        &["east"],
        vec![common::endpoint("west", "checkout-1", address)],
    );
    west.tell(vec![link("east", &[])], vec![exported]);
    east.tell(vec![link("west", &[west.addresses.tunnel])], Vec::new());
    east.until_up("west").await;
    let name = target("west", None);
    let (first, there) = tokio::join!(east.ask(&name, TCP), common::accept(&listener));
    assert_eq!(first.0, StreamCode::Ok);
    let (second, _) = east.ask(&name, TCP).await;
    assert_eq!(second, StreamCode::Busy);
    drop((first, there));
    let again = async { while let (StreamCode::Busy, _) = east.ask(&name, TCP).await {} };
    let (_there, ()) = tokio::join!(common::accept(&listener), patiently("a free place", again));
}

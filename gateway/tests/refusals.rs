//! A peer that breaks the rules, by hand: each is refused with its code, and nothing else suffers.

mod common;

use common::raw::{self, RawPeer, close_code, opening};
use common::{Gateway, endpoint, export, gateway_id, link, listener, patiently, pki, target};
use linkspan_api::v1::{self, StreamCode, TunnelPurpose};
use linkspan_dataplane::frame;
use linkspan_gateway::tunnel::close::{CloseCode, ResetCode};
use linkspan_trust::testing::Pki;
use linkspan_trust::{MaterialReader, MaterialWriter, first_contact_config};
use quinn::{ConnectionError, ReadError, RecvStream, TransportErrorCode};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;

/// A gateway of west that exports `shop/checkout` to east, but not to north; both are linked.
struct West {
    pki: Arc<Pki>,
    gateway: Gateway,
    endpoint: TcpListener,
    material: MaterialReader,
    _writer: MaterialWriter,
}

impl West {
    async fn start() -> Self {
        let pki = pki();
        let (endpoint_listener, address) = listener().await;
        let (writer, material) = pki.material(&gateway_id("east"));
        let mut gateway = Gateway::start(&pki, "west", "west-1").await;
        let exported = export(&["east"], vec![endpoint("west", "checkout-1", address)]);
        gateway.tell(vec![link("east", &[]), link("north", &[])], vec![exported]);
        gateway.until("the link is known", "north", |_| true).await;
        Self {
            pki,
            gateway,
            endpoint: endpoint_listener,
            material,
            _writer: writer,
        }
    }

    async fn peer(&self, purpose: TunnelPurpose) -> RawPeer {
        let to = self.gateway.addresses.tunnel;
        RawPeer::greet(&self.material, ("east", "west"), to, purpose).await
    }

    /// That an honest stream on that connection still works.
    async fn still_serves(&self, peer: &RawPeer) {
        let name = target("west", Some("checkout-1"));
        let (code, _) = tokio::join!(
            peer.ask(opening(&name), &name),
            common::accept(&self.endpoint)
        );
        assert_eq!(code, StreamCode::Ok);
    }
}

#[tokio::test]
async fn each_refusal_has_its_code() {
    let west = West::start().await;
    let peer = west.peer(TunnelPurpose::Data).await;
    let known = target("west", Some("checkout-1"));
    let other = target("west", None);
    let port = known.replace(".80.", ".8080.");
    let service = known.replace("checkout.shop", "ledger.shop");
    let stranger = target("west", Some("stranger"));
    let elsewhere = target("south", None);
    let reserved = "federation.west.linkspan.internal";
    for (open, server_name, code) in [
        (opening(&known), &*other, StreamCode::BadRequest),
        (opening(&other), &*known, StreamCode::BadRequest),
        (opening("nonsense"), &*known, StreamCode::BadRequest),
        (
            v1::StreamOpen {
                endpoint: String::new(),
                ..opening(&known)
            },
            &*known,
            StreamCode::BadRequest,
        ),
        (
            v1::StreamOpen {
                hop_limit: 2,
                ..opening(&known)
            },
            &*known,
            StreamCode::BadRequest,
        ),
        (opening(&elsewhere), &*elsewhere, StreamCode::BadRequest),
        (
            v1::StreamOpen {
                hop_limit: 1,
                ..opening(&elsewhere)
            },
            &*elsewhere,
            StreamCode::NoTunnel,
        ),
        (opening(&port), &*port, StreamCode::NoSuchPort),
        (opening(&service), &*service, StreamCode::NotExported),
        (opening(&stranger), &*stranger, StreamCode::EndpointGone),
        (opening(reserved), reserved, StreamCode::Denied),
    ] {
        let told = open.clone();
        assert_eq!(
            peer.ask(open, server_name).await,
            code,
            "{told:?} with {server_name}"
        );
    }
    west.still_serves(&peer).await;
}

#[tokio::test]
async fn an_endpoint_that_is_not_ready_is_gone() {
    let west = West::start().await;
    let peer = west.peer(TunnelPurpose::Data).await;
    let mut checkout = (*endpoint("west", "checkout-1", ([127, 0, 0, 1], 1).into())).clone();
    checkout.ready = false;
    west.gateway.tell(
        vec![link("east", &[])],
        vec![export(&["east"], vec![Arc::new(checkout)])],
    );
    let name = target("west", Some("checkout-1"));
    assert_eq!(
        peer.ask(opening(&name), &name).await,
        StreamCode::EndpointGone
    );
}

#[tokio::test]
async fn services_are_refused_to_other_peers_and_on_the_sync_connection() {
    let west = West::start().await;
    let (to, name) = (
        west.gateway.addresses.tunnel,
        target("west", Some("checkout-1")),
    );
    let (_writer, north) = west.pki.material(&gateway_id("north"));
    let other = RawPeer::greet(&north, ("north", "west"), to, TunnelPurpose::Data).await;
    assert_eq!(
        other.ask(opening(&name), &name).await,
        StreamCode::NotExported
    );
    let sync = west.peer(TunnelPurpose::Sync).await;
    assert_eq!(sync.hello.purpose(), TunnelPurpose::Sync);
    assert_eq!(sync.ask(opening(&name), &name).await, StreamCode::Denied);
}

#[tokio::test]
async fn our_own_parts_and_loopback_are_never_dialled_for_a_peer() {
    let pki = pki();
    for (allow, own) in [(true, true), (false, false)] {
        let mut config = common::config("west", "west-1", &pki);
        config.allow_loopback_endpoints = allow;
        let mut gateway = Gateway::with(&pki, config, &gateway_id("west")).await;
        let (_listener, loopback) = listener().await;
        let address = if own {
            gateway.addresses.debug
        } else {
            loopback
        };
        let exported = export(&["east"], vec![endpoint("west", "checkout-1", address)]);
        gateway.tell(vec![link("east", &[])], vec![exported]);
        gateway.until("the link is known", "east", |_| true).await;
        let (_writer, east) = pki.material(&gateway_id("east"));
        let to = gateway.addresses.tunnel;
        let peer = RawPeer::greet(&east, ("east", "west"), to, TunnelPurpose::Data).await;
        let name = target("west", Some("checkout-1"));
        assert_eq!(peer.ask(opening(&name), &name).await, StreamCode::Denied);
    }
}

#[tokio::test]
async fn malformed_openings_end_their_own_stream_only() {
    let west = West::start().await;
    let peer = west.peer(TunnelPurpose::Data).await;
    for bytes in [&b"\xff\xff"[..], b"\x00\x03\xff\xff\xff", b"\x00\x05abc"] {
        let (mut send, mut recv) = peer.quic.open_bi().await.unwrap();
        send.write_all(bytes).await.unwrap();
        send.finish().unwrap();
        assert_eq!(
            reset_code(&mut recv).await,
            ResetCode::BadOpen.wire().into_inner()
        );
    }
    let name = target("west", Some("checkout-1"));
    let (mut send, mut recv) = peer.quic.open_bi().await.unwrap();
    frame::write_message(&mut send, &opening(&name))
        .await
        .unwrap();
    send.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
    assert_eq!(common::answer(&mut recv).await, StreamCode::BadRequest);
    west.still_serves(&peer).await;
}

#[tokio::test]
async fn a_peer_that_takes_no_answer_does_not_keep_its_stream() {
    let pki = pki();
    let mut config = common::config("west", "west-1", &pki);
    config.timers.answer = Duration::from_millis(50);
    let mut gateway = Gateway::with(&pki, config, &gateway_id("west")).await;
    gateway.tell(vec![link("east", &[])], Vec::new());
    gateway.until("the link is known", "east", |_| true).await;
    let (_writer, east) = pki.material(&gateway_id("east"));
    // Room for the hello, but not for a hundred answers that nobody reads.
    let mut narrow = quinn::TransportConfig::default();
    narrow.receive_window(256_u32.into());
    let to = gateway.addresses.tunnel;
    let peer = RawPeer::greet_with(&east, ("east", "west"), to, narrow).await;
    let name = "80.ledger.shop.svc.west.linkspan.internal";
    let mut streams = Vec::new();
    for _ in 0..100 {
        streams.push(peer.open(opening(name), name).await);
    }
    let (_, last) = streams.last_mut().unwrap();
    let idle = ResetCode::Idle.wire().into_inner();
    assert_eq!(reset_code(last).await, idle);
}

#[tokio::test]
async fn one_peer_gets_half_of_the_streams_and_no_more() {
    let pki = pki();
    let (endpoint_listener, address) = listener().await;
    let mut config = common::config("west", "west-1", &pki);
    config.limits.ingress = 4;
    let mut gateway = Gateway::with(&pki, config, &gateway_id("west")).await;
    let exported = export(
        &["east", "north"],
        vec![endpoint("west", "checkout-1", address)],
    );
    gateway.tell(vec![link("east", &[]), link("north", &[])], vec![exported]);
    gateway.until("the link is known", "north", |_| true).await;
    let to = gateway.addresses.tunnel;
    let (_east, east) = pki.material(&gateway_id("east"));
    let (_north, north) = pki.material(&gateway_id("north"));
    let greet = |material, own| RawPeer::greet(material, (own, "west"), to, TunnelPurpose::Data);
    // Two connections: the half is the peer's, not a connection's.
    let greedy = [greet(&east, "east").await, greet(&east, "east").await];
    let honest = greet(&north, "north").await;
    let name = target("west", Some("checkout-1"));
    let mut held = Vec::new();
    for peer in [&greedy[0], &greedy[1], &honest] {
        let mut streams = peer.open(opening(&name), &name).await;
        let there = common::accept(&endpoint_listener).await;
        assert_eq!(common::answer(&mut streams.1).await, StreamCode::Ok);
        held.push((streams, there));
        if held.len() == 2 {
            let answer = greedy[0].ask(opening(&name), &name).await;
            assert_eq!(answer, StreamCode::Busy);
        }
    }
}

async fn reset_code(recv: &mut RecvStream) -> u64 {
    match patiently("a reset", recv.read_to_end(64)).await {
        Err(quinn::ReadToEndError::Read(ReadError::Reset(code))) => code.into_inner(),
        other => panic!("not reset: {other:?}"),
    }
}

#[tokio::test]
async fn without_a_certificate_nothing_begins() {
    let west = West::start().await;
    let roots = west.pki.authority("west.test").bundle();
    let tls = first_contact_config(&gateway_id("west"), &roots, &[b"x"]).unwrap();
    let (quic, _endpoint) = raw::connect(tls, west.gateway.addresses.tunnel).await;
    let code = close_code(&quic.unwrap()).await;
    assert_eq!(code, CloseCode::NoCertificate.wire().into_inner());
}

#[tokio::test]
async fn only_gateways_of_linked_peers_pass_the_handshake() {
    let west = West::start().await;
    let other = linkspan_trust::testing::workload("east.test", "shop", "checkout");
    for id in [common::federation_id("east"), other, gateway_id("west")] {
        let (_writer, material) = west.pki.material(&id);
        let to = west.gateway.addresses.tunnel;
        let (quic, _endpoint) = raw::connect(raw::tls(&material, "west"), to).await;
        // In TLS 1.3 the client may have finished before the server refuses.
        if let Ok(quic) = quic {
            let ended = patiently("the refusal", quic.closed()).await;
            assert!(
                matches!(ended, quinn::ConnectionError::ConnectionClosed(_)),
                "{id}: {ended}"
            );
        }
    }
}

#[tokio::test]
async fn the_hello_must_fit_the_certificate() {
    let west = West::start().await;
    let to = west.gateway.addresses.tunnel;
    let odd = |change: fn(&mut v1::TunnelHello)| {
        let mut hello = raw::hello("east", TunnelPurpose::Data);
        change(&mut hello);
        frame::encode(&hello)
    };
    for (bytes, code) in [
        (
            odd(|hello| hello.cluster = "north".to_owned()),
            CloseCode::WrongCluster,
        ),
        (
            odd(|hello| hello.cluster = "No Cluster".to_owned()),
            CloseCode::Protocol,
        ),
        (odd(|hello| hello.replica.clear()), CloseCode::Protocol),
        (odd(|hello| hello.purpose = 9), CloseCode::Protocol),
        (
            bytes::Bytes::from_static(b"\xff\xff\xff"),
            CloseCode::Protocol,
        ),
        (
            bytes::Bytes::from_static(b"\x00\x02\xff\xff"),
            CloseCode::Protocol,
        ),
    ] {
        let (quic, _endpoint) = raw::connect(raw::tls(&west.material, "west"), to).await;
        let quic = quic.unwrap();
        let (mut send, _recv) = quic.open_bi().await.unwrap();
        send.write_all(&bytes).await.unwrap();
        assert_eq!(
            close_code(&quic).await,
            code.wire().into_inner(),
            "{bytes:?}"
        );
    }
    let peer = west.peer(TunnelPurpose::Data).await;
    west.still_serves(&peer).await;
}

#[tokio::test]
async fn a_malformed_control_message_or_heartbeat_ends_its_connection() {
    let west = West::start().await;
    let mut peer = west.peer(TunnelPurpose::Data).await;
    peer.control.0.write_all(b"\x00\x02\xff\xff").await.unwrap();
    assert_eq!(
        close_code(&peer.quic).await,
        CloseCode::Protocol.wire().into_inner()
    );
    let peer = west.peer(TunnelPurpose::Data).await;
    peer.quic
        .send_datagram(bytes::Bytes::from_static(b"\x00\xff\xff"))
        .unwrap();
    assert_eq!(
        close_code(&peer.quic).await,
        CloseCode::Protocol.wire().into_inner()
    );
    let peer = west.peer(TunnelPurpose::Data).await;
    west.still_serves(&peer).await;
}

#[tokio::test]
async fn a_dialled_gateway_must_be_exactly_that_of_the_peer() {
    let pki = pki();
    let mut east = Gateway::start(&pki, "east", "east-1").await;
    let north = Gateway::start(&pki, "north", "north-1").await;
    let mut west = Gateway::start(&pki, "west", "west-1").await;
    north.tell(vec![link("east", &[])], Vec::new());
    west.tell(vec![link("east", &[])], Vec::new());
    // The first address leads to a gateway of another peer, the second to the right one.
    let addresses = [north.addresses.tunnel, west.addresses.tunnel];
    east.tell(vec![link("west", &addresses)], Vec::new());
    east.until_up("west").await;
    west.until_up("east").await;
    assert!(
        north
            .peers
            .borrow()
            .iter()
            .all(|peer| peer.connections.is_empty())
    );
}

#[tokio::test]
async fn one_source_cannot_take_the_handshakes_of_all() {
    let pki = pki();
    let (_writer, material) = pki.material(&gateway_id("east"));
    let mut config = common::config("west", "west-1", &pki);
    config.timers.hello = common::PATIENCE;
    config.limits.handshakes_each = 2;
    config.limits.handshakes = 8;
    let mut gateway = Gateway::with(&pki, config, &gateway_id("west")).await;
    gateway.tell(vec![link("east", &[])], Vec::new());
    gateway.until("the link is known", "east", |_| true).await;
    let to = gateway.addresses.tunnel;
    // Each is owed a hello, and so keeps its place: two that need not prove their address, then
    // two that did.
    let greedy = Ipv4Addr::new(127, 0, 0, 2);
    let mut held = Vec::new();
    for _ in 0..4 {
        let (quic, endpoint) = raw::connect_from(greedy, raw::tls(&material, "west"), to).await;
        held.push((quic.unwrap(), endpoint));
    }
    let (fifth, _endpoint) = raw::connect_from(greedy, raw::tls(&material, "west"), to).await;
    let refused = fifth.unwrap_err();
    assert!(
        matches!(&refused, ConnectionError::ConnectionClosed(close)
            if close.error_code == TransportErrorCode::CONNECTION_REFUSED),
        "{refused}"
    );
    // Another source still has its share.
    RawPeer::greet(&material, ("east", "west"), to, TunnelPurpose::Data).await;
}

//! Carrying a join between gateways that have no link, and telling a peer that it was unlinked.

mod common;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use common::{Gateway, federation_id, gateway_id, link, patiently, pki};
use linkspan_api::v1;
use linkspan_dataplane::discover::Snapshot;
use linkspan_dataplane::frame;
use linkspan_trust::testing::Pki;
use linkspan_trust::{ClientPolicy, TrustPolicy, carrier_config};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{Connection, ConnectionError, SendStream};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// East, whose federation a test plays at the listener; west's, at the other.
struct World {
    pki: Arc<Pki>,
    east: Gateway,
    west: Gateway,
    back: TcpListener,
    federation: TcpListener,
}

impl World {
    async fn start() -> Self {
        let pki = pki();
        let (federation, at) = common::listener().await;
        let mut config = common::config("west", "west-1", &pki);
        config.federation.address = at.to_string();
        let west = Gateway::with(&pki, config, &gateway_id("west")).await;
        let (back, at) = common::listener().await;
        let mut config = common::config("east", "east-1", &pki);
        config.federation.address = at.to_string();
        let east = Gateway::with(&pki, config, &gateway_id("east")).await;
        Self {
            pki,
            east,
            west,
            back,
            federation,
        }
    }

    async fn ask(&self, addresses: &[SocketAddr], allow_loopback: bool) {
        let address = |of: &SocketAddr| v1::GatewayAddress {
            host: of.ip().to_string(),
            port: of.port().into(),
        };
        let dial = v1::JoinDial {
            id: 7,
            addresses: addresses.iter().map(address).collect(),
            allow_loopback,
        };
        self.east.asked.send(dial).await.unwrap();
    }

    /// East's gateway comes back, proves itself, and says what came of dialling.
    async fn comes_back(&self) -> (v1::JoinDialled, TlsStream<TcpStream>) {
        let tcp = accepted(&self.back).await;
        let (_writer, material) = self.pki.material(&federation_id("east"));
        let own = ClientPolicy::Required(TrustPolicy::only(gateway_id("east")));
        let config = material
            .current()
            .server_config(own, &[b"linkspan-join-back/1"]);
        let accepting = TlsAcceptor::from(Arc::new(config.unwrap())).accept(tcp);
        let mut tls = patiently("its handshake", accepting).await.unwrap();
        let said = patiently("its word", frame::read_message(&mut tls, 16 * 1024));
        (said.await.unwrap(), tls)
    }
}

/// What a federation that joins says first.
fn hello(world: &World) -> Vec<u8> {
    let (_writer, material) = world.pki.material(&federation_id("east"));
    common::client_hello(
        &material,
        "federation.linkspan.internal",
        &[b"linkspan-join/1"],
    )
}

/// Any connection, whatever it begins with.
async fn accepted(listener: &TcpListener) -> TcpStream {
    patiently("a connection", listener.accept())
        .await
        .unwrap()
        .0
}

#[tokio::test]
async fn a_join_is_carried_between_strangers() {
    let world = World::start().await;
    world.ask(&[world.west.addresses.tunnel], true).await;
    let (said, mut near) = world.comes_back().await;
    assert!(said.connected && said.id == 7, "{said:?}");
    let hello = hello(&world);
    near.write_all(&hello).await.unwrap();
    let mut far = accepted(&world.federation).await;
    let mut got = vec![0; hello.len()];
    patiently("bytes pass", far.read_exact(&mut got))
        .await
        .unwrap();
    assert_eq!(got, hello);
    far.write_all(b"west").await.unwrap();
    far.shutdown().await.unwrap();
    let mut answer = Vec::new();
    patiently("the answer", near.read_to_end(&mut answer))
        .await
        .unwrap();
    assert_eq!(answer, b"west");
    near.shutdown().await.unwrap();
    patiently("the end", far.read_to_end(&mut answer))
        .await
        .unwrap();
    // Nobody was linked by that.
    assert_eq!(world.west.peers.borrow().iter().count(), 0);
}

#[tokio::test]
async fn a_join_carries_no_more_than_it_may() {
    let world = World::start().await;
    world.ask(&[world.west.addresses.tunnel], true).await;
    let (_, near) = world.comes_back().await;
    let (mut from_near, mut to_near) = tokio::io::split(near);
    let mut flood = hello(&world);
    flood.resize(200 << 10, 1);
    let sending = tokio::spawn(async move {
        let _ = to_near.write_all(&flood).await;
        to_near
    });
    let mut far = accepted(&world.federation).await;
    let mut got = Vec::new();
    patiently("what passes", far.read_to_end(&mut got))
        .await
        .unwrap();
    assert_eq!(got.len(), 64 << 10);
    drop(far);
    let _ = patiently("the end", from_near.read_to_end(&mut got)).await;
    sending.abort();
}

/// Somebody on `from`, who shows no certificate.
async fn stranger(world: &World, from: [u8; 4], alpn: &[u8]) -> (quinn::Endpoint, Connection) {
    let tls = QuicClientConfig::try_from(carrier_config(&[alpn]).unwrap()).unwrap();
    let config = quinn::ClientConfig::new(Arc::new(tls));
    let endpoint = quinn::Endpoint::client((from, 0).into()).unwrap();
    let to = world.west.addresses.tunnel;
    let connecting = endpoint.connect_with(config, to, "gateway.linkspan.internal");
    let quic = patiently("a handshake", connecting.unwrap()).await.unwrap();
    (endpoint, quic)
}

fn closed_with(error: &ConnectionError) -> Option<u64> {
    match error {
        ConnectionError::ApplicationClosed(close) => Some(close.error_code.into_inner()),
        _ => None,
    }
}

/// What keeps a place.
type Held = (quinn::Endpoint, Connection, SendStream, TcpStream);

/// Takes a place at west's gateway, and keeps it for as long as a join may last.
async fn take_place(world: &World, from: [u8; 4]) -> Held {
    let (endpoint, quic) = stranger(world, from, b"linkspan-join/1").await;
    patiently("it is taken", quic.accept_uni()).await.unwrap();
    let (mut send, _recv) = quic.open_bi().await.unwrap();
    send.write_all(&hello(world)).await.unwrap();
    let carried = accepted(&world.federation).await;
    (endpoint, quic, send, carried)
}

#[tokio::test]
async fn one_address_has_two_places_and_the_others_go_on() {
    let world = World::start().await;
    let other = [127, 0, 0, 2];
    let _held = [
        take_place(&world, other).await,
        take_place(&world, other).await,
    ];
    let (_endpoint, third) = stranger(&world, other, b"linkspan-join/1").await;
    let refused = patiently("a refusal", third.accept_uni()).await;
    assert_eq!(closed_with(&refused.unwrap_err()), Some(9));
    // East comes from 127.0.0.1.
    world.ask(&[world.west.addresses.tunnel], true).await;
    let (said, _near) = world.comes_back().await;
    assert!(said.connected, "{said:?}");
}

#[tokio::test]
async fn who_finds_no_room_is_told_so() {
    let world = World::start().await;
    let own = [127, 0, 0, 1];
    let _held = [take_place(&world, own).await, take_place(&world, own).await];
    world.ask(&[world.west.addresses.tunnel], true).await;
    let (said, _) = world.comes_back().await;
    assert!(!said.connected && said.tries[0].busy, "{said:?}");
    assert!(
        said.tries[0].error.contains("as many joins as it may"),
        "{said:?}"
    );
}

#[tokio::test]
async fn who_says_nothing_loses_its_place() {
    let world = World::start().await;
    let (_endpoint, quic) = stranger(&world, [127, 0, 0, 1], b"linkspan-join/1").await;
    patiently("it is taken", quic.accept_uni()).await.unwrap();
    let end = patiently("the end", quic.closed()).await;
    assert_eq!(closed_with(&end), Some(6), "{end}");
}

/// One byte is not enough, nor a beginning of something else.
#[tokio::test]
async fn who_does_not_begin_a_join_loses_its_place_and_federation_hears_nothing_of_it() {
    let world = World::start().await;
    let (_writer, material) = world.pki.material(&federation_id("east"));
    let grpc = common::client_hello(&material, "federation.linkspan.internal", &[b"h2"]);
    for (begun, code) in [
        (hello(&world)[..100].to_vec(), 6),
        (b"hm".to_vec(), 1),
        (grpc, 1),
    ] {
        let (_endpoint, quic) = stranger(&world, [127, 0, 0, 1], b"linkspan-join/1").await;
        patiently("it is taken", quic.accept_uni()).await.unwrap();
        let (mut send, _recv) = quic.open_bi().await.unwrap();
        send.write_all(&begun).await.unwrap();
        let end = patiently("the end", quic.closed()).await;
        assert_eq!(closed_with(&end), Some(code), "{end}");
    }
    let asked = timeout(Duration::ZERO, world.federation.accept()).await;
    assert!(asked.is_err(), "federation is not bothered");
}

/// 127.0.0.0/24: four that have two places each.
#[tokio::test]
async fn one_network_has_eight_places_and_the_others_go_on() {
    let world = World::start().await;
    let mut held = Vec::new();
    for host in 1..=4 {
        held.push(take_place(&world, [127, 0, 0, host]).await);
        held.push(take_place(&world, [127, 0, 0, host]).await);
    }
    let (_endpoint, ninth) = stranger(&world, [127, 0, 0, 5], b"linkspan-join/1").await;
    let refused = patiently("a refusal", ninth.accept_uni()).await;
    assert_eq!(closed_with(&refused.unwrap_err()), Some(9));
    held.push(take_place(&world, [127, 0, 1, 1]).await);
}

/// However long the other side keeps its direction open.
#[tokio::test]
async fn a_join_is_over_when_federation_has_answered() {
    let world = World::start().await;
    let (_endpoint, quic, _send, mut federation) = take_place(&world, [127, 0, 0, 1]).await;
    federation.write_all(b"no").await.unwrap();
    federation.shutdown().await.unwrap();
    let ended = timeout(Duration::from_secs(5), quic.closed()).await;
    let end = ended.expect("sooner than a join may last");
    assert_eq!(closed_with(&end), Some(8), "{end}");
}

#[tokio::test]
async fn a_stranger_can_make_the_gateway_hold_little() {
    let world = World::start().await;
    for alpn in [b"linkspan-join/1", b"linkspan-tunnel/1".as_slice()] {
        let (_endpoint, quic) = stranger(&world, [127, 0, 0, 1], alpn).await;
        let (mut send, _recv) = quic.open_bi().await.unwrap();
        // Polled once: the limit came with the handshake.
        let second = timeout(Duration::ZERO, quic.open_bi()).await;
        assert!(!matches!(second, Ok(Ok(_))), "a second stream");
        if let Ok(taken) = send.write(&vec![0; 1 << 20]).await {
            assert!(taken <= 64 << 10, "{taken}");
        }
    }
}

#[tokio::test]
async fn who_cannot_be_reached_is_told_with_all_that_was_tried() {
    let world = World::start().await;
    let gone = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let gone = gone.local_addr().unwrap();
    world.ask(&[gone, world.west.addresses.tunnel], false).await;
    let (said, _) = world.comes_back().await;
    assert!(!said.connected);
    let refused = said
        .tries
        .iter()
        .filter(|of| of.error.contains("--allow-loopback"));
    assert_eq!(refused.count(), 2, "{said:?}");

    world.ask(&[gone], true).await;
    let (said, _) = world.comes_back().await;
    assert!(!said.connected && said.tries.len() == 1, "{said:?}");
    assert_eq!(said.tries[0].address, gone.to_string());
}

/// Of which the link came that is removed.
const INVITATION: &str = "00112233445566778899aabbccddeeff";

/// That the link is removed, and which one.
async fn hears_it(gateway: &mut Gateway) {
    let said = |peer: &v1::PeerHealth| peer.removed && peer.removed_invitation == INVITATION;
    let told = gateway
        .health
        .wait_for(|health| health.peers.iter().any(said));
    patiently("it is heard", told).await.unwrap();
}

/// West was unlinked while it was away: east's gateway recognises it and says so.
#[tokio::test]
async fn a_returning_peer_is_told_that_it_was_unlinked() {
    let pki = pki();
    let east = Gateway::start(&pki, "east", "east-1").await;
    let mut west = Gateway::start(&pki, "west", "west-1").await;
    let snapshot = Snapshot {
        tombstones: [(gateway_id("west"), INVITATION.to_owned())].into(),
        ..Snapshot::default()
    };
    east.snapshot.send_replace(Some(Arc::new(snapshot)));
    west.tell(vec![link("east", &[east.addresses.tunnel])], Vec::new());
    hears_it(&mut west).await;
    assert!(!west.peers.borrow().iter().next().unwrap().is_up());
    assert_eq!(east.peers.borrow().iter().count(), 0);

    // Linked anew, the connection is taken, and nothing is removed.
    east.tell(vec![link("west", &[])], Vec::new());
    west.until_up("east").await;
    let told = west
        .health
        .wait_for(|health| health.peers.iter().all(|peer| !peer.removed));
    patiently("no more of it", told).await.unwrap();
}

/// Unlinked while connected: the close itself says so.
#[tokio::test]
async fn a_connected_peer_is_told_by_the_close() {
    let pki = pki();
    let mut east = Gateway::start(&pki, "east", "east-1").await;
    let mut west = Gateway::start(&pki, "west", "west-1").await;
    east.tell(vec![link("west", &[west.addresses.tunnel])], Vec::new());
    west.tell(vec![link("east", &[])], Vec::new());
    east.until_up("west").await;
    west.until_up("east").await;
    let snapshot = Snapshot {
        tombstones: [(gateway_id("west"), INVITATION.to_owned())].into(),
        ..Snapshot::default()
    };
    east.snapshot.send_replace(Some(Arc::new(snapshot)));
    hears_it(&mut west).await;
}

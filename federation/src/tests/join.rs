//! Linking by invitation over real TLS. Gateways are stood in for by a relay that dials, comes back
//! and copies, as they do, and that can misbehave in between.

use std::{net::SocketAddr, sync::Arc, time::SystemTime};

use linkspan_api::v1::{self, discover_request::Message as Said};
use linkspan_core::{
    Address,
    join::{Invitation, Party, Problem, Refusal, RootsDigest, Transcript, sign},
};
use linkspan_dataplane::frame;
use linkspan_trust::{MaterialReader, SpiffeId, TrustPolicy};
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional, split},
    net::TcpStream,
    task::JoinHandle,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::Status;

use super::proxy::{Living, Proxy, gateway, health};
use crate::{
    join::{
        invitation,
        messages::{self, Card},
        session,
    },
    testing::{Federation, Home, cluster, domain, link_with, soon},
};

/// What the relay does to the bytes in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Honest,
    /// Everything arrives but the answer.
    LosesTheAnswer,
}

/// A gateway that waits to be dialled at `tunnel`, for as long as it lives.
pub(super) async fn dialled_at(federation: &Federation, tunnel: SocketAddr) -> Living {
    let material = federation.gateway().await;
    let proxy = Proxy::open(federation, &material).await.unwrap();
    let registration = v1::GatewayRegistration {
        tunnel_addresses: vec![v1::GatewayAddress {
            host: tunnel.ip().to_string(),
            port: tunnel.port().into(),
        }],
        ..gateway("gateway-1")
    };
    let living = proxy.live(Said::Gateway(registration), vec![]);
    federation
        .until("its gateway", |world| world.own_addresses.len() == 1)
        .await;
    living
}

/// A gateway that dials as often as it is asked to.
pub(super) async fn dialling(federation: &Federation, way: Way) -> JoinHandle<()> {
    let material = federation.gateway().await;
    let mut proxy = Proxy::open(federation, &material).await.unwrap();
    proxy.say(Said::Gateway(gateway("gateway-1"))).await;
    let grpc = federation.addresses.grpc;
    let task = tokio::spawn(async move {
        loop {
            if proxy.next().await.is_err() {
                return;
            }
            for dial in std::mem::take(&mut proxy.joins) {
                tokio::spawn(carry(grpc, material.1.clone(), dial, way));
            }
        }
    });
    federation
        .until("its gateway", |world| world.gateways.len() == 1)
        .await;
    task
}

async fn carry(grpc: SocketAddr, material: MaterialReader, dial: v1::JoinDial, way: Way) {
    let to = &dial.addresses[0];
    let peer = TcpStream::connect((to.host.as_str(), to.port as u16)).await;
    let dialled = v1::JoinDialled {
        id: dial.id,
        connected: peer.is_ok(),
        tries: vec![v1::JoinTry {
            address: format!("{}:{}", to.host, to.port),
            error: "refused".into(),
            busy: false,
        }],
    };
    let mut back = back(grpc, &material).await;
    frame::write_message(&mut back, &dialled).await.unwrap();
    let Ok(mut peer) = peer else { return };
    match way {
        Way::Honest => drop(copy_bidirectional(&mut back, &mut peer).await),
        Way::LosesTheAnswer => without_answer(back, peer).await,
    }
}

async fn back(grpc: SocketAddr, material: &MaterialReader) -> TlsStream<TcpStream> {
    let own = material.current();
    let federation = SpiffeId::federation(own.svid().id().trust_domain());
    let config = own
        .client_config(TrustPolicy::only(federation), &[crate::join::BACK_ALPN])
        .unwrap();
    let tcp = TcpStream::connect(grpc).await.unwrap();
    let name = ServerName::try_from("federation.linkspan.internal").unwrap();
    TlsConnector::from(Arc::new(config))
        .connect(name, tcp)
        .await
        .unwrap()
}

/// Copies TLS records until the accepter's request has passed; what the inviter says to it does
/// not come through.
async fn without_answer(back: TlsStream<TcpStream>, peer: TcpStream) {
    let (mut from_us, mut to_us) = split(back);
    let (mut from_peer, mut to_peer) = peer.into_split();
    let inward = tokio::spawn(async move { tokio::io::copy(&mut from_peer, &mut to_us).await });
    // Of a TLS 1.3 client the first is its Finished, the second the request.
    let mut protected = 0;
    while protected < 2 {
        let mut record = vec![0; 5];
        from_us.read_exact(&mut record).await.unwrap();
        let length = usize::from(u16::from_be_bytes([record[3], record[4]]));
        record.resize(5 + length, 0);
        from_us.read_exact(&mut record[5..]).await.unwrap();
        protected += usize::from(record[0] == 23);
        if protected == 2 {
            inward.abort();
            let _ = inward.await;
            to_peer.write_all(&record).await.unwrap();
            return;
        }
        to_peer.write_all(&record).await.unwrap();
    }
}

pub(super) async fn invite(federation: &Federation, peer: &str) -> String {
    let request = v1::InviteRequest {
        peer: peer.into(),
        ..Default::default()
    };
    let reply = federation.operator().await.invite(request).await.unwrap();
    reply.into_inner().invitation
}

pub(super) async fn accept(
    federation: &Federation,
    invitation: &str,
) -> Result<v1::AcceptResponse, Status> {
    let request = v1::AcceptRequest {
        invitation: invitation.into(),
        ..Default::default()
    };
    let mut operator = federation.operator().await;
    let accepted = soon("an answer", operator.accept(request)).await;
    accepted.map(tonic::Response::into_inner)
}

#[track_caller]
pub(super) fn problem_of(status: &Status) -> Problem {
    let number = status
        .metadata()
        .get("linkspan-problem")
        .expect("a problem");
    let number: i32 = number.to_str().unwrap().parse().unwrap();
    [
        Problem::Malformed,
        Problem::Expired,
        Problem::Used,
        Problem::Unknown,
        Problem::OtherPeer,
        Problem::OtherClusterset,
        Problem::ClockSkew,
        Problem::Unreachable,
        Problem::NoGateway,
        Problem::DuplicateCluster,
        Problem::TrustDomainTaken,
        Problem::WrongRoots,
        Problem::Unavailable,
    ]
    .into_iter()
    .find(|problem| messages::wire_problem(*problem) as i32 == number)
    .unwrap_or_else(|| panic!("{number}: {status}"))
}

pub(super) fn linked(world: &crate::controller::World, peer: &str) -> bool {
    world.declared.links.contains_key(&cluster(peer))
}

pub(super) fn pending(world: &crate::controller::World, peer: &str) -> Option<bool> {
    let link = world.declared.links.get(&cluster(peer));
    link.map(|link| link.pending)
}

#[tokio::test]
async fn pending_admits_no_data_until_a_tunnel_is_up() {
    let (east_home, west_home) = (Home::new("east"), Home::new("west"));
    let (east, west) = (east_home.start().await, west_home.start().await);
    let reached = dialled_at(&west, west.addresses.grpc).await;
    let _dialling = dialling(&east, Way::Honest).await;
    let accepted = accept(&east, &invite(&west, "east").await).await.unwrap();
    assert_eq!(accepted.cluster, "west");
    for (federation, peer) in [(&east, "west"), (&west, "east")] {
        let world = federation
            .until("the link", |world| pending(world, peer) == Some(true))
            .await;
        let planned = &world.desired.links[&cluster(peer)];
        assert!(!planned.usable);
        assert!(
            world
                .desired
                .exported
                .values()
                .all(|of| of.peers.is_empty())
        );
        assert!(
            world.bundles.get(&domain(peer)).is_some(),
            "for the handshake"
        );
    }
    // A tunnel of west's gateway: west is convinced, east still waits for its own.
    reached.say(health("east", true)).await;
    west.until("active", |world| pending(world, "east") == Some(false))
        .await;
    assert_eq!(pending(&east.worlds.borrow(), "west"), Some(true));
    west.stop().await;
    // What was proved stays so.
    let west = west_home.start().await;
    west.until("the link", |world| pending(world, "east") == Some(false))
        .await;
    west.stop().await;
    east.stop().await;
}

#[tokio::test]
async fn a_lost_answer_is_asked_for_again() {
    let (east_home, west_home) = (Home::new("east"), Home::new("west"));
    let (east, west) = (east_home.start().await, west_home.start().await);
    let _reached = dialled_at(&west, west.addresses.grpc).await;
    let losing = dialling(&east, Way::LosesTheAnswer).await;
    let invitation = invite(&west, "").await;
    let lost = accept(&east, &invitation).await.unwrap_err();
    assert!(
        lost.message().contains("run the same command again"),
        "{lost}"
    );
    west.until("the link", |world| linked(world, "east")).await;
    assert!(!linked(&east.worlds.borrow(), "west"));

    losing.abort();
    let _honest = dialling(&east, Way::Honest).await;
    accept(&east, &invitation).await.unwrap();
    accept(&east, &invitation).await.unwrap();
    east.until("the link", |world| linked(world, "west")).await;
    east.stop().await;
    west.stop().await;
}

#[tokio::test]
async fn of_two_accepters_exactly_one_wins() {
    let (east_home, north_home) = (Home::new("east"), Home::new("north"));
    let west_home = Home::new("west");
    let (east, north) = (east_home.start().await, north_home.start().await);
    let west = west_home.start().await;
    let _reached = dialled_at(&west, west.addresses.grpc).await;
    let _east = dialling(&east, Way::Honest).await;
    let _north = dialling(&north, Way::Honest).await;
    let invitation = invite(&west, "").await;
    let (one, other) = tokio::join!(accept(&east, &invitation), accept(&north, &invitation));
    let loser = match (one, other) {
        (Ok(_), Err(loser)) | (Err(loser), Ok(_)) => loser,
        both => panic!("{both:?}"),
    };
    assert_eq!(problem_of(&loser), Problem::Used);
    let world = west
        .until("a link", |world| !world.declared.links.is_empty())
        .await;
    assert_eq!(world.declared.links.len(), 1);
    for federation in [east, north, west] {
        federation.stop().await;
    }
}

/// The man in the middle has the same names as west, and a root of his own.
#[tokio::test]
async fn who_does_not_hold_the_pinned_root_learns_nothing() {
    let (east_home, west_home) = (Home::new("east"), Home::new("west"));
    let (east, west) = (east_home.start().await, west_home.start().await);
    let middle_home = Home::new("west");
    let middle = middle_home.start().await;
    let _reached = dialled_at(&west, middle.addresses.grpc).await;
    let _dialling = dialling(&east, Way::Honest).await;
    let invitation = invite(&west, "").await;
    let refused = accept(&east, &invitation).await.unwrap_err();
    assert_eq!(problem_of(&refused), Problem::WrongRoots);
    for federation in [east, west, middle] {
        assert!(federation.worlds.borrow().declared.links.is_empty());
        federation.stop().await;
    }
}

/// East's side of a session with west, without gateways, to say what an honest side never would.
pub(super) async fn session_with(
    west: &Federation,
    invitation: &Invitation,
) -> (TlsStream<TcpStream>, Card, RootsDigest, [u8; 32]) {
    let tcp = TcpStream::connect(west.addresses.grpc).await.unwrap();
    let mut tls = session::open(tcp, invitation).await.unwrap();
    let hello = session::hear(&mut tls, invitation).await.unwrap();
    let exporter = session::exporter(&tls.get_ref().1.export_keying_material(
        [0; 32],
        session::EXPORTER,
        None,
    ));
    let authority =
        linkspan_trust::CertificateAuthority::create(&domain("east"), SystemTime::now()).unwrap();
    let own = Card {
        cluster: cluster("east"),
        trust_domain: domain("east"),
        bundle: authority.bundle(),
        gateway_id: SpiffeId::gateway(&domain("east")),
        federation_id: SpiffeId::federation(&domain("east")),
        addresses: vec![Address {
            host: "gw.east.example".into(),
            port: 15443,
        }],
        now: SystemTime::now(),
        clusterset: "demo".into(),
        version: crate::version::VERSION.into(),
    };
    (tls, own, hello.roots, exporter.unwrap())
}

pub(super) async fn say(
    tls: &mut TlsStream<TcpStream>,
    request: &v1::JoinRequest,
) -> Result<SystemTime, Refusal> {
    frame::write_message(tls, request).await.unwrap();
    let answer = frame::read_message(tls, messages::MAX_MESSAGE)
        .await
        .unwrap();
    messages::verdict(answer).map(|(_, until)| until)
}

pub(super) fn proof(
    exporter: [u8; 32],
    seed: &Invitation,
    roots: RootsDigest,
    own: &Card,
) -> Vec<u8> {
    let transcript = Transcript {
        exporter,
        invitation: seed.id,
        inviter: Party {
            cluster: seed.cluster.clone(),
            trust_domain: seed.trust_domain.clone(),
            roots,
        },
        accepter: own.party(),
    };
    sign(&seed.seed, &transcript)
}

#[tokio::test]
async fn a_proof_is_good_for_its_own_session_and_words_only() {
    let west_home = Home::new("west");
    let west = west_home.start().await;
    let _reached = dialled_at(&west, west.addresses.grpc).await;
    let invitation = invitation::decode(&invite(&west, "").await).unwrap();

    // Replayed: the very bytes of another session.
    let (_other, own, inviter, exporter) = session_with(&west, &invitation).await;
    let replayed = own.request(invitation.id, proof(exporter, &invitation, inviter, &own));
    let (mut tls, ..) = session_with(&west, &invitation).await;
    assert_eq!(
        say(&mut tls, &replayed).await.unwrap_err().problem,
        Problem::BadProof
    );

    // Tampered: the proof of this session, other words.
    let changes: [fn(&mut Card); 3] = [
        |it| it.cluster = cluster("north"),
        |it| it.trust_domain = domain("north"),
        |it| {
            let ca =
                linkspan_trust::CertificateAuthority::create(&domain("east"), SystemTime::now());
            it.bundle = ca.unwrap().bundle();
        },
    ];
    for change in changes {
        let (mut tls, own, inviter, exporter) = session_with(&west, &invitation).await;
        let proof = proof(exporter, &invitation, inviter, &own);
        let mut other = own.clone();
        change(&mut other);
        let domain = other.trust_domain.clone();
        other.gateway_id = SpiffeId::gateway(&domain);
        other.federation_id = SpiffeId::federation(&domain);
        let refused = say(&mut tls, &other.request(invitation.id, proof))
            .await
            .unwrap_err();
        assert_eq!(refused.problem, Problem::BadProof, "{other:?}");
    }
    assert!(west.worlds.borrow().declared.links.is_empty());

    // Clocks apart are refused with both, and cost nothing.
    let (mut tls, mut own, inviter, exporter) = session_with(&west, &invitation).await;
    own.now = SystemTime::now() - std::time::Duration::from_secs(3600);
    let asked = own.request(invitation.id, proof(exporter, &invitation, inviter, &own));
    let refused = say(&mut tls, &asked).await.unwrap_err();
    assert_eq!(refused.problem, Problem::ClockSkew);
    assert!(refused.message.contains("cluster `east` says"), "{refused}");

    // Stolen, and good; then stolen after use, with roots of the thief's own.
    let (mut tls, own, inviter, exporter) = session_with(&west, &invitation).await;
    let asked = own.request(invitation.id, proof(exporter, &invitation, inviter, &own));
    say(&mut tls, &asked).await.unwrap();
    let (mut tls, own, inviter, exporter) = session_with(&west, &invitation).await;
    let stolen = own.request(invitation.id, proof(exporter, &invitation, inviter, &own));
    assert_eq!(
        say(&mut tls, &stolen).await.unwrap_err().problem,
        Problem::Used
    );
    west.stop().await;
}

#[tokio::test]
async fn who_does_not_fit_is_refused_and_the_invitation_stays_good() {
    let (east_home, west_home) = (Home::new("east"), Home::new("west"));
    let (east, west) = (east_home.start().await, west_home.start().await);
    let _reached = dialled_at(&west, west.addresses.grpc).await;
    let invitation = invite(&west, "").await;
    // Nobody there to dial with.
    let refused = accept(&east, &invitation).await.unwrap_err();
    assert_eq!(problem_of(&refused), Problem::NoGateway);
    let _dialling = dialling(&east, Way::Honest).await;
    // East is linked to somebody of west's trust domain.
    let taken = link_with("west", &west.bundle().await).replace("name: west", "name: south");
    east_home.declare("south.yaml", &taken);
    east.until("south", |world| linked(world, "south")).await;
    let refused = accept(&east, &invitation).await.unwrap_err();
    assert_eq!(problem_of(&refused), Problem::TrustDomainTaken);
    std::fs::remove_file(east_home.resources().join("south.yaml")).unwrap();
    east.until("no link", |world| world.declared.links.is_empty())
        .await;
    // West has a link to an east already, declared by hand.
    west_home.declare("east.yaml", &link_with("east", &east.bundle().await));
    west.until("east", |world| linked(world, "east")).await;
    let refused = accept(&east, &invitation).await.unwrap_err();
    assert_eq!(problem_of(&refused), Problem::DuplicateCluster);
    std::fs::remove_file(west_home.resources().join("east.yaml")).unwrap();
    west.until("no link", |world| world.declared.links.is_empty())
        .await;
    accept(&east, &invitation).await.unwrap();
    east.stop().await;
    west.stop().await;
}

/// An invitation may end right after it was accepted; a gateway must have time to dial.
#[tokio::test]
async fn a_pending_link_outlives_its_invitation_by_a_while() {
    let (east_home, west_home) = (Home::new("east"), Home::new("west"));
    let (east, west) = (east_home.start().await, west_home.start().await);
    let _reached = dialled_at(&west, west.addresses.grpc).await;
    let _dialling = dialling(&east, Way::Honest).await;
    let request = v1::InviteRequest {
        ttl_seconds: 2,
        ..Default::default()
    };
    let mut operator = west.operator().await;
    let invited = operator.invite(request).await.unwrap().into_inner();
    let accepted = accept(&east, &invited.invitation).await.unwrap();
    assert!(accepted.expires_unix >= invited.expires_unix + 50);
    let late = loop {
        if let Err(late) = accept(&east, &invited.invitation).await {
            break late;
        }
    };
    assert!(
        matches!(problem_of(&late), Problem::Unknown | Problem::Expired),
        "{late}"
    );
    for (federation, peer) in [(&east, "west"), (&west, "east")] {
        federation
            .until("the link", |world| pending(world, peer) == Some(true))
            .await;
    }
    east.stop().await;
    west.stop().await;
}

/// Whoever removes a link while it is being made waits until it is: nothing half made is left,
/// above all no declaration that no book knows, which would be taken for one that is proved.
#[tokio::test]
async fn what_is_removed_while_it_is_made_is_gone() {
    let (east_home, west_home) = (Home::new("east"), Home::new("west"));
    let (east, west) = (east_home.start().await, west_home.start().await);
    let _reached = dialled_at(&west, west.addresses.grpc).await;
    let _dialling = dialling(&east, Way::Honest).await;
    let active = [(&east, "west"), (&west, "east")].map(|(federation, peer)| {
        let mut worlds = federation.worlds.clone();
        let active = move |world: &Arc<_>| pending(world, peer) == Some(false);
        tokio::spawn(async move { worlds.wait_for(active).await.map(drop) })
    });
    for (federation, home, peer) in [
        (&east, &east_home, "west"),
        (&west, &west_home, "east"),
        (&east, &east_home, "west"),
        (&west, &west_home, "east"),
    ] {
        let invitation = invite(&west, "").await;
        let (accepted, ()) = tokio::join!(accept(&east, &invitation), removed(federation, peer));
        let accepted = accepted.map_err(|refused| problem_of(&refused));
        assert!(
            matches!(accepted, Ok(_) | Err(Problem::Unknown)),
            "{accepted:?}"
        );
        federation
            .until("no link", |world| !linked(world, peer))
            .await;
        let left: Vec<_> = std::fs::read_dir(home.resources())
            .unwrap()
            .map(|of| of.unwrap().path())
            .collect();
        assert!(left.is_empty(), "{peer}: {left:?}");
        // The other side, which was not told: there was no tunnel.
        let (other, name) = match peer {
            "west" => (&west, "east"),
            _ => (&east, "west"),
        };
        if accepted.is_ok() {
            removed(other, name).await;
        }
    }
    for watched in active {
        assert!(!watched.is_finished(), "no tunnel was ever up");
    }
    east.stop().await;
    west.stop().await;
}

/// Asks until there is something to remove.
async fn removed(federation: &Federation, peer: &str) {
    let mut operator = federation.operator().await;
    let removed = async {
        let request = || v1::RemoveLinkRequest {
            cluster: peer.into(),
        };
        while let Err(refused) = operator.remove_link(request()).await {
            assert!(refused.message().contains("no link to"), "{refused}");
        }
    };
    soon("the removal", removed).await;
}

/// Our gateway was told by the peer's that the link is removed there.
#[tokio::test]
async fn a_peer_that_removed_the_link_is_followed() {
    let home = Home::new("east");
    let east = home.start().await;
    home.declare("west.yaml", &crate::testing::link_yaml("west"));
    east.until("the link", |world| linked(world, "west")).await;
    let material = east.gateway().await;
    let proxy = Proxy::open(&east, &material).await.unwrap();
    let told = v1::PeerHealth {
        cluster: "west".into(),
        removed: true,
        ..Default::default()
    };
    let health = Said::LinkHealth(v1::LinkHealth { peers: vec![told] });
    let _living = proxy.live(Said::Gateway(gateway("gateway-1")), vec![health]);
    east.until("no link", |world| !linked(world, "west")).await;
    assert_eq!(std::fs::read_dir(home.resources()).unwrap().count(), 0);
    east.stop().await;
}

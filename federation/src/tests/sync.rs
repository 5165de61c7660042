//! Two federations over real mTLS, their gateways' tunnel replaced by a direct connection.

use std::{fs, net::SocketAddr};

use linkspan_api::v1::{
    self, discover_request::Message as Said, sync_client::SyncClient, sync_request,
    sync_response::Message as Told,
};
use linkspan_core::{ServiceKey, peer::PeerState};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use super::proxy::{Living, Proxy, gateway, health, workload};
use crate::testing::{
    Federation, Home, Material, cluster, export_yaml, link_with, service_yaml, soon,
};

/// A cluster and the way to it.
struct Side {
    home: Home,
    way: watch::Sender<Option<SocketAddr>>,
}

impl Side {
    fn new(name: &str) -> Self {
        crate::testing::logs();
        Self {
            home: Home::new(name),
            way: watch::Sender::new(None),
        }
    }

    async fn start(&self, to: &Self) -> Federation {
        let federation = self.home.start_reaching(Some(to.way.subscribe())).await;
        self.way.send_replace(Some(federation.addresses.grpc));
        federation
    }
}

/// A gateway that has the peer up.
async fn tunnel(federation: &Federation, peer: &str) -> Living {
    let material = federation.gateway().await;
    let proxy = Proxy::open(federation, &material).await.unwrap();
    proxy.live(
        Said::Gateway(gateway("gateway-1")),
        vec![health(peer, true)],
    )
}

async fn serve(federation: &Federation, uid: &str) -> Living {
    let server = federation.member("shop", "checkout").await;
    let serving = Proxy::open(federation, &server).await.unwrap();
    serving.live(Said::Workload(workload(uid, "checkout")), vec![])
}

async fn link(east: (&Side, &Federation), west: (&Side, &Federation)) {
    east.0
        .home
        .declare("west.yaml", &link_with("west", &west.1.bundle().await));
    west.0
        .home
        .declare("east.yaml", &link_with("east", &east.1.bundle().await));
}

fn checkout() -> ServiceKey {
    "shop/checkout".parse().unwrap()
}

fn of_west(world: &crate::controller::World) -> usize {
    let service = world.desired.services.get(&checkout());
    let endpoints = service.into_iter().flat_map(|service| &service.endpoints);
    endpoints
        .filter(|endpoint| endpoint.cluster == cluster("west"))
        .count()
}

async fn link_state(federation: &Federation) -> v1::LinkStatus {
    let status = federation
        .operator()
        .await
        .status(v1::StatusRequest {})
        .await
        .unwrap();
    status.into_inner().links.remove(0)
}

#[tokio::test]
async fn exports_cross_both_ways_of_life() {
    let (east_side, west_side) = (Side::new("east"), Side::new("west"));
    for side in [&east_side, &west_side] {
        side.home
            .declare("checkout.yaml", &service_yaml("checkout"));
        side.home.declare("export.yaml", &export_yaml("checkout"));
    }
    let east = east_side.start(&west_side).await;
    let west = west_side.start(&east_side).await;
    link((&east_side, &east), (&west_side, &west)).await;
    let _tunnels = (tunnel(&east, "west").await, tunnel(&west, "east").await);
    let one = serve(&west, "west-1").await;
    let _two = serve(&west, "west-2").await;
    let world = east
        .until("west's endpoints", |world| of_west(world) == 2)
        .await;
    // What crosses has no address, and our gateways' addresses came along.
    let service = &world.desired.services[&checkout()];
    assert!(
        service
            .endpoints
            .iter()
            .all(|endpoint| endpoint.address.is_none())
    );
    east.until("west's gateways", |world| {
        world.desired.links[&cluster("west")].addresses.len() == 1
    })
    .await;
    assert_eq!(link_state(&east).await.state, PeerState::Live.to_string());

    // A drain crosses as a change, not as a removal.
    let drained = v1::WorkloadRegistration {
        ready: false,
        ..workload("west-1", "checkout")
    };
    one.say(Said::Workload(drained)).await;
    east.until("the drain", |world| {
        let service = &world.desired.services[&checkout()];
        service
            .endpoints
            .iter()
            .any(|e| e.cluster == cluster("west") && !e.ready)
    })
    .await;

    // What is no longer exported is withdrawn.
    fs::remove_file(west_side.home.resources().join("export.yaml")).unwrap();
    east.until("the withdrawal", |world| of_west(world) == 0)
        .await;
    east.stop().await;
    west.stop().await;
}

#[tokio::test]
async fn a_peers_restart_removes_nothing() {
    let (east_side, west_side) = (Side::new("east"), Side::new("west"));
    west_side
        .home
        .declare("checkout.yaml", &service_yaml("checkout"));
    west_side
        .home
        .declare("export.yaml", &export_yaml("checkout"));
    let east = east_side.start(&west_side).await;
    let west = west_side.start(&east_side).await;
    link((&east_side, &east), (&west_side, &west)).await;
    let _tunnel = tunnel(&east, "west").await;
    let serving = serve(&west, "west-1").await;
    east.until("west's endpoint", |world| of_west(world) == 1)
        .await;
    let epoch = link_state(&east).await.epoch;

    drop(serving);
    west.stop().await;
    let mut worlds = east.worlds.clone();
    let watching = tokio::spawn(async move {
        // Every world from here to the end of the test still has the endpoint.
        while worlds.changed().await.is_ok() {
            assert_eq!(of_west(&worlds.borrow_and_update()), 1);
        }
    });
    east.until("staleness", |world| {
        world.desired.links[&cluster("west")].stale
    })
    .await;
    let west = west_side.start(&east_side).await;
    let _serving = serve(&west, "west-1").await;
    east.until("freshness", |world| {
        !world.desired.links[&cluster("west")].stale
    })
    .await;
    assert!(link_state(&east).await.epoch > epoch);
    east.stop().await;
    watching.await.unwrap();
    west.stop().await;
}

#[tokio::test]
async fn an_older_life_of_a_peer_is_refused() {
    let (east_side, west_side) = (Side::new("east"), Side::new("west"));
    let east = east_side.start(&west_side).await;
    let west = west_side.start(&east_side).await;
    link((&east_side, &east), (&west_side, &west)).await;
    let _tunnel = tunnel(&east, "west").await;
    let live = |world: &std::sync::Arc<crate::controller::World>| {
        world
            .desired
            .links
            .get(&cluster("west"))
            .is_some_and(|link| !link.stale)
    };
    east.until("the link", live).await;
    west.stop().await;
    east.until("its loss", |world| !live(world)).await;
    // A clock far ahead once, then a state directory from a backup: the epoch goes back.
    let path = west_side.home.state().join("epoch");
    let held: u64 = fs::read_to_string(&path).unwrap().trim().parse().unwrap();
    fs::write(&path, (held + 1_000_000).to_string()).unwrap();
    let west = west_side.start(&east_side).await;
    east.until("the later life", live).await;
    west.stop().await;
    east.until("its loss", |world| !live(world)).await;
    fs::write(&path, "1").unwrap();
    let west = west_side.start(&east_side).await;
    let refused = async {
        loop {
            // Each try is one more world or none: ask again when sync has tried again.
            let state = link_state(&east).await;
            if state
                .problems
                .iter()
                .any(|problem| problem.contains("epoch"))
            {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    soon("the refusal", refused).await;
    assert!(!live(&east.worlds.borrow().clone()));
    east.stop().await;
    west.stop().await;
}

#[tokio::test]
async fn a_peer_is_unusable_as_soon_as_no_gateway_has_it_up() {
    let (east_side, west_side) = (Side::new("east"), Side::new("west"));
    let east = east_side.start(&west_side).await;
    let west = west_side.start(&east_side).await;
    link((&east_side, &east), (&west_side, &west)).await;
    let tunnel = tunnel(&east, "west").await;
    let usable = |world: &std::sync::Arc<crate::controller::World>| {
        world
            .desired
            .links
            .get(&cluster("west"))
            .is_some_and(|link| link.usable)
    };
    east.until("the tunnel", usable).await;
    let client = east.member("shop", "client").await;
    let mut proxy = Proxy::open(&east, &client).await.unwrap();
    proxy
        .say(Said::Workload(workload("client-1", "client")))
        .await;
    proxy.subscribe(&[]).await;
    proxy
        .until(|proxy| proxy.peer("west").is_some_and(|peer| peer.usable))
        .await;
    tunnel.say(health("west", false)).await;
    proxy
        .until(|proxy| proxy.peer("west").is_some_and(|peer| !peer.usable))
        .await;
    tunnel.say(health("west", true)).await;
    proxy
        .until(|proxy| proxy.peer("west").is_some_and(|peer| peer.usable))
        .await;
    // Its stream lost, a gateway counts for its lease only.
    drop(tunnel);
    proxy
        .until(|proxy| proxy.peer("west").is_some_and(|peer| !peer.usable))
        .await;
    east.stop().await;
    west.stop().await;
}

/// Subscribes at `to` and says how that ends, or what comes first.
async fn subscribe(
    to: &Federation,
    as_who: &Material,
    start: v1::SyncStart,
) -> Result<Told, tonic::Status> {
    let channel = to.channel(&as_who.1).await.unwrap();
    let (requests, receiver) = mpsc::channel(4);
    let message = Some(sync_request::Message::Start(start));
    requests.send(v1::SyncRequest { message }).await.unwrap();
    let mut client = SyncClient::new(channel);
    let mut responses = client
        .subscribe(ReceiverStream::new(receiver))
        .await?
        .into_inner();
    let first = soon("a response", responses.message()).await?.unwrap();
    Ok(first.message.unwrap())
}

fn start(cluster: &str, clusterset: &str, ahead_millis: i64) -> v1::SyncStart {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    v1::SyncStart {
        cluster: cluster.into(),
        clusterset: clusterset.into(),
        version: "0".into(),
        now_unix_millis: i64::try_from(now.as_millis()).unwrap() + ahead_millis,
        known: Vec::new(),
        epoch: 0,
    }
}

/// What discovery says to a peer's federation once the handshake admits it.
async fn not_discovery(at: &Federation, peer: &Material) -> tonic::Status {
    loop {
        if let Ok(channel) = at.channel(&peer.1).await {
            let mut client = v1::discovery_client::DiscoveryClient::new(channel);
            match client.discover(tokio_stream::empty()).await {
                Err(status) if status.code() == Code::PermissionDenied => return status,
                _ => {}
            }
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn only_the_linked_federation_may_subscribe() {
    let east_side = Side::new("east");
    let east = east_side.start(&east_side).await;
    let authority = linkspan_trust::CertificateAuthority::create(
        &crate::testing::domain("west"),
        std::time::SystemTime::now(),
    )
    .unwrap();
    east_side
        .home
        .declare("west.yaml", &link_with("west", &authority.bundle()));
    east.until("the link", |world| world.desired.links.len() == 1)
        .await;
    let roots = east.bundle().await;
    let domain = crate::testing::domain("west");
    let peer = |id| Material::foreign(&authority, id, &east, roots.clone());
    let federation = peer(linkspan_trust::SpiffeId::federation(&domain));

    // Workloads of the own cluster, too, are refused; the peer's others do not even connect.
    let own = east.member("shop", "checkout").await;
    let status = subscribe(&east, &own, start("west", "demo", 0))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");
    // The handshake's policy follows the links a moment later than the world.
    let told = soon("the admission", Box::pin(not_discovery(&east, &federation))).await;
    assert!(told.message().contains("own cluster"), "{told}");

    let began = subscribe(&east, &federation, start("west", "demo", 0))
        .await
        .unwrap();
    let Told::Begin(begin) = began else {
        panic!("{began:?}")
    };
    assert_eq!(
        (begin.cluster.as_str(), begin.clusterset.as_str()),
        ("east", "demo")
    );
    assert!(begin.epoch > 1_000_000_000);

    for (start, part) in [
        (start("north", "demo", 0), "ClusterLink"),
        (start("west", "other", 0), "clusterset"),
        (start("west", "demo", 600_000), "clocks differ"),
        (start("west", "demo", -600_000), "clocks differ"),
    ] {
        let status = subscribe(&east, &federation, start).await.unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
        assert!(status.message().contains(part), "{part}: {status}");
    }
    east.stop().await;
}

/// What a peer announced of its roots is not forgotten by a restart without the peer, and not
/// believed any more once an operator declares other ones.
#[tokio::test]
async fn announced_roots_outlive_a_restart_until_others_are_declared() {
    let (east_side, west_side) = (Side::new("east"), Side::new("west"));
    let east = east_side.start(&west_side).await;
    let west = west_side.start(&east_side).await;
    link((&east_side, &east), (&west_side, &west)).await;
    let tunnels = (tunnel(&east, "west").await, tunnel(&west, "east").await);
    let sequence = |world: &std::sync::Arc<crate::controller::World>| {
        let link = world.desired.links.get(&cluster("west"));
        link.map_or(0, |link| link.bundle.sequence)
    };
    let world = east
        .until("west's own word", |world| sequence(world) > 1)
        .await;
    let announced = sequence(&world);
    drop(tunnels);
    east.stop().await;
    west.stop().await;

    let east = east_side.start(&west_side).await;
    let links = |world: &std::sync::Arc<crate::controller::World>| !world.desired.links.is_empty();
    let world = east.until("the link", links).await;
    assert_eq!(sequence(&world), announced);
    let edited = crate::testing::link_yaml("west");
    east_side.home.declare("west.yaml", &edited);
    let world = east
        .until("the operator's word", |world| sequence(world) < announced)
        .await;
    let link = &world.desired.links[&cluster("west")];
    assert_eq!(link.bundle, link.link.bundle);
    east.stop().await;
}

/// A restart while the link is cut: what the peer told last is still there, with its age, and a
/// damaged journal is told instead.
#[tokio::test]
async fn a_restart_during_a_cut_forgets_no_peer() {
    let (east_side, west_side) = (Side::new("east"), Side::new("west"));
    let declared = [
        ("checkout.yaml", service_yaml("checkout")),
        ("export.yaml", export_yaml("checkout")),
    ];
    for (file, yaml) in declared {
        west_side.home.declare(file, &yaml);
    }
    let east = east_side.start(&west_side).await;
    let west = west_side.start(&east_side).await;
    link((&east_side, &east), (&west_side, &west)).await;
    let tunnels = (tunnel(&east, "west").await, tunnel(&west, "east").await);
    let serving = serve(&west, "west-1").await;
    east.until("west's endpoint", |world| of_west(world) == 1)
        .await;
    drop((tunnels, serving));
    west.stop().await;
    // It stops in order: what it knew last is in the journal.
    east.stop().await;

    let east = east_side.start(&west_side).await;
    let links = |world: &std::sync::Arc<crate::controller::World>| !world.desired.links.is_empty();
    let world = east.until("the link", links).await;
    assert_eq!(of_west(&world), 1, "in the first world already");
    let planned = &world.desired.links[&cluster("west")];
    assert_eq!((planned.usable, planned.stale), (false, true));
    assert!(!world.desired.imports.is_empty());
    east.stop().await;

    let journal = east_side.home.state().join("journal/west.journal");
    let content = fs::read(&journal).unwrap();
    fs::write(&journal, &content[1..]).unwrap();
    let east = east_side.start(&west_side).await;
    let world = east.until("the link", links).await;
    assert_eq!(of_west(&world), 0);
    let problems = link_state(&east).await.problems;
    assert!(problems[0].contains("cannot be used"), "{problems:?}");
    east.stop().await;
}

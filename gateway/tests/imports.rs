//! Clients without a sidecar, served by real gateways: on a port of the gateway they reach what
//! sidecars reach, balanced as for sidecars.

mod common;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use common::mesh::{Meshed, ask, free_port, get, http2, import, read};
use common::{Gateway, config, export, gateway_id, link, patiently, pki};
use linkspan_dataplane::discover::{ExportedService, Registration, Snapshot};
use linkspan_gateway::{Config, ImportsConfig};
use linkspan_routing::AppProtocol;
use linkspan_trust::SpiffeId;
use linkspan_trust::testing::{Pki, trust_domain};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const LOOPBACK: [u8; 4] = [127, 0, 0, 1];

fn serving(cluster: &str, replica: &str, pki: &Pki) -> Config {
    let imports = ImportsConfig {
        listen: LOOPBACK.into(),
        address: LOOPBACK.into(),
        idle: common::PATIENCE,
        access_log: linkspan_runtime::access_log::AccessLog::ALL,
    };
    Config {
        imports: Some(imports),
        ..config(cluster, replica, pki)
    }
}

fn client_id(cluster: &str) -> SpiffeId {
    SpiffeId::unmeshed_client(&trust_domain(&common::domain(cluster)))
}

/// What a peer's gateway is told of its own endpoints.
fn exports(endpoints: &[&Meshed]) -> Vec<ExportedService> {
    let endpoints = endpoints.iter().map(|meshed| meshed.endpoint.clone());
    vec![export(&["east"], endpoints.collect())]
}

/// Waits until the gateway tells federation that these ports are open.
async fn until_open(gateway: &mut Gateway, ports: &[u16]) {
    let ports: Vec<_> = ports.iter().map(|port| u32::from(*port)).collect();
    let is_so = |registration: &Registration| match registration {
        Registration::Gateway(told) => told.imports.as_ref().is_some_and(|it| it.open == ports),
        Registration::Workload(_) => false,
    };
    let told = gateway.registration.wait_for(is_so);
    patiently("the ports are told", told).await.unwrap();
}

/// East, whose gateway serves clients without a sidecar, and peers with endpoints.
struct Scene {
    east: Gateway,
    peers: Peers,
    pki: Arc<Pki>,
    port: u16,
}

/// Mortal, and so on runtimes that must not just be dropped.
struct Peers(Vec<Gateway>);

impl Drop for Peers {
    fn drop(&mut self) {
        self.0.drain(..).for_each(Gateway::kill);
    }
}

impl Scene {
    async fn start(peers: &[&str]) -> Self {
        let pki = pki();
        let own = serving("east", "east-1", &pki);
        let east = Gateway::with(&pki, own, &gateway_id("east")).await;
        let mut gateways = Vec::new();
        for peer in peers {
            let gateway = config(peer, &format!("{peer}-1"), &pki);
            gateways.push(Gateway::mortal(&pki, gateway, &gateway_id(peer)).await);
        }
        Self {
            east,
            peers: Peers(gateways),
            pki,
            port: free_port().await,
        }
    }

    /// East knows all these endpoints, each peer (in order of start) its own.
    async fn tell(&mut self, own: &[&Meshed], theirs: &[(&str, &[&Meshed])], of: AppProtocol) {
        let mut links = Vec::new();
        for (gateway, (cluster, endpoints)) in self.peers.0.iter().zip(theirs) {
            gateway.tell(vec![link("east", &[])], exports(endpoints));
            links.push(link(cluster, &[gateway.addresses.tunnel]));
        }
        let all: Vec<&Meshed> = own
            .iter()
            .chain(theirs.iter().flat_map(|(_, endpoints)| *endpoints))
            .copied()
            .collect();
        self.know(import("east", links, &all, (of, self.port)));
        until_open(&mut self.east, &[self.port]).await;
        for (cluster, _) in theirs {
            self.east.until_up(cluster).await;
        }
    }

    fn know(&self, snapshot: Snapshot) {
        self.east.snapshot.send_replace(Some(Arc::new(snapshot)));
    }

    fn entrance(&self) -> SocketAddr {
        (LOOPBACK, self.port).into()
    }
}

#[tokio::test]
async fn a_plain_client_reaches_an_endpoint_of_another_cluster() {
    let mut scene = Scene::start(&["west"]).await;
    let there = Meshed::start(&scene.pki, "west", "w1").await;
    scene
        .tell(&[], &[("west", &[&there])], AppProtocol::Detect)
        .await;
    assert_eq!(ask(scene.entrance()).await, (200, "w1".to_owned()));
    // Never the tunnel's identity, and nobody's but that which is for them.
    assert_eq!(there.callers(), [client_id("east")]);
}

#[tokio::test]
async fn one_connection_spreads_over_the_endpoints_of_two_clusters() {
    let mut scene = Scene::start(&["west", "north"]).await;
    let mut endpoints = Vec::new();
    for (cluster, name) in [("west", "w1"), ("west", "w2"), ("north", "n1")] {
        endpoints.push(Meshed::start(&scene.pki, cluster, name).await);
    }
    let [w1, w2, n1] = [&endpoints[0], &endpoints[1], &endpoints[2]];
    let theirs: [(&str, &[&Meshed]); 2] = [("west", &[w1, w2]), ("north", &[n1])];
    scene.tell(&[], &theirs, AppProtocol::Http).await;
    let mut client = http2(scene.entrance()).await;
    let spreading = async {
        let mut seen = BTreeSet::new();
        while seen.len() < endpoints.len() {
            // So many at a time that none of them is the best for all, however fast it answered.
            let asked: Vec<_> = (0..16).map(|_| client.send_request(get())).collect();
            for answer in asked {
                let (status, name) = read(answer.await.unwrap()).await;
                assert_eq!(status, 200);
                seen.insert(name);
            }
        }
    };
    patiently("an answer of each", spreading).await;
}

#[tokio::test]
async fn the_own_cluster_comes_first_and_another_takes_over() {
    let mut scene = Scene::start(&["west"]).await;
    let here = Meshed::start(&scene.pki, "east", "e1").await;
    let there = Meshed::start(&scene.pki, "west", "w1").await;
    scene
        .tell(&[&here], &[("west", &[&there])], AppProtocol::Http)
        .await;
    let mut client = http2(scene.entrance()).await;
    for _ in 0..10 {
        let answer = client.send_request(get()).await.unwrap();
        assert_eq!(read(answer).await, (200, "e1".to_owned()));
    }
    assert!(there.callers().is_empty());
    here.stop.abort();
    for _ in 0..10 {
        let answer = client.send_request(get()).await.unwrap();
        assert_eq!(read(answer).await, (200, "w1".to_owned()));
    }
}

#[tokio::test]
async fn no_request_is_lost_with_a_cluster() {
    let mut scene = Scene::start(&["west", "north"]).await;
    let there = Meshed::start(&scene.pki, "west", "w1").await;
    let other = Meshed::start(&scene.pki, "north", "n1").await;
    let theirs: [(&str, &[&Meshed]); 2] = [("west", &[&there]), ("north", &[&other])];
    scene.tell(&[], &theirs, AppProtocol::Http).await;
    let mut client = http2(scene.entrance()).await;
    while there.callers().is_empty() || other.callers().is_empty() {
        let answer = client.send_request(get()).await.unwrap();
        assert_eq!(answer.status(), 200);
    }
    // The cluster is gone with its gateway, and says nothing more.
    scene.peers.0.remove(0).kill();
    there.stop.abort();
    let mut asked = Vec::new();
    for _ in 0..40 {
        asked.push(client.send_request(get()));
    }
    for answer in asked {
        let answer = patiently("an answer", answer).await.unwrap();
        assert_eq!(read(answer).await, (200, "n1".to_owned()));
    }
}

#[tokio::test]
async fn opaque_bytes_pass_with_their_half_close() {
    let mut scene = Scene::start(&["west"]).await;
    let there = Meshed::start(&scene.pki, "west", "w1").await;
    scene
        .tell(&[], &[("west", &[&there])], AppProtocol::Tcp)
        .await;
    let mut client = TcpStream::connect(scene.entrance()).await.unwrap();
    client.write_all(b"what is said").await.unwrap();
    client.shutdown().await.unwrap();
    let mut heard = Vec::new();
    let reading = client.read_to_end(&mut heard);
    patiently("the echo", reading).await.unwrap();
    assert_eq!(heard, b"what is said");
    assert_eq!(there.callers(), [client_id("east")]);
}

#[tokio::test]
async fn ports_open_and_close_with_their_imports() {
    let mut scene = Scene::start(&[]).await;
    let here = Meshed::start(&scene.pki, "east", "e1").await;
    scene.tell(&[&here], &[], AppProtocol::Http).await;
    assert_eq!(ask(scene.entrance()).await.0, 200);
    scene.know(Snapshot::default());
    until_open(&mut scene.east, &[]).await;
    assert!(TcpStream::connect(scene.entrance()).await.is_err());
    scene.tell(&[&here], &[], AppProtocol::Http).await;
    assert_eq!(ask(scene.entrance()).await.0, 200);
    // A gateway that drains takes nobody new.
    scene.east.stop.drain();
    until_open(&mut scene.east, &[]).await;
    assert!(TcpStream::connect(scene.entrance()).await.is_err());
    scene.east.ended().await.unwrap();
}

#[tokio::test]
async fn a_gateway_that_was_not_told_to_opens_nothing() {
    let pki = pki();
    let mut east = Gateway::start(&pki, "east", "east-1").await;
    let here = Meshed::start(&pki, "east", "e1").await;
    let port = free_port().await;
    let snapshot = import("east", Vec::new(), &[&here], (AppProtocol::Http, port));
    east.snapshot.send_replace(Some(Arc::new(snapshot)));
    let ready = |told: &Registration| matches!(told, Registration::Gateway(of) if of.ready);
    let registered = patiently("the snapshot", east.registration.wait_for(ready));
    let Registration::Gateway(told) = registered.await.unwrap().clone() else {
        unreachable!("it is a gateway");
    };
    assert_eq!(told.imports, None);
    assert!(
        TcpStream::connect(SocketAddr::from((LOOPBACK, port)))
            .await
            .is_err()
    );
}

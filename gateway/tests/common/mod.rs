//! Gateways on loopback with real UDP, TCP and TLS; identities and snapshots are made by hand, so
//! that no federation is needed.
#![allow(dead_code)] // Each test binary uses its part.

pub(crate) mod mesh;
pub(crate) mod raw;
pub(crate) mod wire;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use linkspan_api::v1;
use linkspan_dataplane::discover::{
    ExportedService, LinkInfo, Registration, Snapshot, TunnelAddress,
};
use linkspan_dataplane::frame;
use linkspan_dataplane::identity::FederationClient;
use linkspan_dataplane::proxy_header::ProxyHeader;
use linkspan_gateway::limits::{Limits, Timers};
use linkspan_gateway::peers::{Peer, Peers};
use linkspan_gateway::tunnel::health::Rhythm;
use linkspan_gateway::{Addresses, Config, ServersConfig, Sources, bind};
use linkspan_routing::{ClusterId, Endpoint, EndpointId, Locality};
use linkspan_runtime::process::Exit;
use linkspan_runtime::stop::Stop;
use linkspan_trust::testing::{Pki, trust_domain};
use linkspan_trust::{MaterialReader, MaterialWriter, SpiffeId, TrustPolicy};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Handle, Runtime};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Nothing here takes this long unless something is broken.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) async fn patiently<T>(what: &str, future: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(PATIENCE, future).await;
    done.unwrap_or_else(|_| panic!("nothing came of: {what}"))
}

pub(crate) fn pki() -> Arc<Pki> {
    Arc::new(Pki::new(&["east.test", "west.test", "north.test"]))
}

pub(crate) fn domain(cluster: &str) -> String {
    format!("{cluster}.test")
}

pub(crate) fn gateway_id(cluster: &str) -> SpiffeId {
    SpiffeId::gateway(&trust_domain(&domain(cluster)))
}

pub(crate) fn federation_id(cluster: &str) -> SpiffeId {
    SpiffeId::federation(&trust_domain(&domain(cluster)))
}

pub(crate) fn cluster_id(name: &str) -> ClusterId {
    name.parse().unwrap()
}

pub(crate) fn endpoint_id(uid: &str) -> EndpointId {
    EndpointId::from_uid(uid)
}

/// Heartbeats five times faster than in production.
pub(crate) fn timers() -> Timers {
    let rhythm = Rhythm {
        interval: Duration::from_millis(100),
        missed: 5,
        in_a_row: 3,
    };
    let farewell = Duration::from_millis(200);
    Timers {
        rhythm,
        farewell,
        ..Timers::default()
    }
}

pub(crate) fn link(peer: &str, addresses: &[SocketAddr]) -> LinkInfo {
    let address = |at: &SocketAddr| TunnelAddress {
        host: at.ip().to_string(),
        port: at.port(),
    };
    LinkInfo {
        cluster: cluster_id(peer),
        trust_domain: trust_domain(&domain(peer)),
        gateway: gateway_id(peer),
        federation: federation_id(peer),
        addresses: addresses.iter().map(address).collect(),
        allow_loopback: true,
    }
}

pub(crate) fn endpoint(cluster: &str, uid: &str, address: SocketAddr) -> Arc<Endpoint> {
    Arc::new(Endpoint {
        id: endpoint_id(uid),
        cluster: cluster_id(cluster),
        locality: Locality {
            region: "".into(),
            zone: "".into(),
        },
        identity: linkspan_trust::testing::workload(&domain(cluster), "shop", "checkout"),
        ready: true,
        weight: 1,
        incarnation: 0,
        address: Some(address),
        labels: Default::default(),
    })
}

/// `shop/checkout`, port 80, exported to `peers`.
pub(crate) fn export(peers: &[&str], endpoints: Vec<Arc<Endpoint>>) -> ExportedService {
    ExportedService {
        key: "shop/checkout".parse().unwrap(),
        ports: BTreeSet::from([80]),
        peers: peers.iter().map(|peer| cluster_id(peer)).collect(),
        endpoints,
    }
}

pub(crate) fn config(cluster: &str, replica: &str, pki: &Pki) -> Config {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    Config {
        otlp: None,
        cluster: cluster_id(cluster),
        replica: replica.into(),
        federation: FederationClient {
            address: "127.0.0.1:1".to_owned(),
            trust_domain: trust_domain(&domain(cluster)),
            roots: pki.authority(&domain(cluster)).bundle(),
            token: PathBuf::from("/nowhere"),
        },
        tunnel_listen: any,
        tunnel_addresses: Vec::new(),
        egress_listen: any,
        egress_address: None,
        admin_listen: any,
        debug_listen: any,
        drain_grace: PATIENCE,
        allow_loopback_endpoints: true,
        locality: Locality::unknown(),
        imports: None,
        servers: ServersConfig::default(),
        timers: timers(),
        limits: Limits::default(),
    }
}

/// A running gateway and what its federation would be.
pub(crate) struct Gateway {
    pub(crate) addresses: Addresses,
    pub(crate) peers: watch::Receiver<Arc<Peers>>,
    pub(crate) snapshot: watch::Sender<Option<Arc<Snapshot>>>,
    pub(crate) registration: watch::Receiver<Registration>,
    pub(crate) health: watch::Receiver<v1::LinkHealth>,
    #[allow(dead_code, reason = "not every suite joins")]
    pub(crate) asked: tokio::sync::mpsc::Sender<v1::JoinDial>,
    pub(crate) material: MaterialReader,
    pub(crate) stop: Stop,
    pub(crate) writer: MaterialWriter,
    /// Material ends with its writer.
    _unmeshed: [MaterialWriter; 2],
    running: JoinHandle<Result<(), Exit>>,
    runtime: Option<Runtime>,
}

impl Gateway {
    pub(crate) async fn start(pki: &Pki, cluster: &str, replica: &str) -> Self {
        Self::with(pki, config(cluster, replica, pki), &gateway_id(cluster)).await
    }

    pub(crate) async fn with(pki: &Pki, config: Config, identity: &SpiffeId) -> Self {
        Self::on(None, pki, config, identity).await
    }

    /// A gateway on a runtime of its own, so that it can be killed with all its tasks.
    pub(crate) async fn mortal(pki: &Pki, config: Config, identity: &SpiffeId) -> Self {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).enable_all().build().unwrap();
        Self::on(Some(runtime), pki, config, identity).await
    }

    async fn on(runtime: Option<Runtime>, pki: &Pki, config: Config, identity: &SpiffeId) -> Self {
        let home = runtime
            .as_ref()
            .map_or_else(Handle::current, |own| own.handle().clone());
        let bound = home.spawn(bind(config)).await.unwrap().unwrap();
        let (writer, material) = pki.material(identity);
        let snapshot = watch::Sender::new(None);
        let unset = Registration::Gateway(v1::GatewayRegistration::default());
        let registration = watch::Sender::new(unset);
        let health = watch::Sender::new(v1::LinkHealth::default());
        let (asked, joins) = tokio::sync::mpsc::channel(4);
        let own = SpiffeId::unmeshed_client(identity.trust_domain());
        let (of_clients, unmeshed) = pki.material(&own);
        let unmeshed = watch::Sender::new(Some(unmeshed));
        let own = SpiffeId::unmeshed_server(identity.trust_domain());
        let (of_servers, servers) = pki.material(&own);
        let servers = watch::Sender::new(Some(servers));
        let (registered, reported) = (registration.subscribe(), health.subscribe());
        let sources = Sources {
            material: material.clone(),
            snapshot: snapshot.subscribe(),
            registration,
            health,
            joins,
            unmeshed_clients: unmeshed.subscribe(),
            unmeshed_servers: servers.subscribe(),
        };
        let stop = Stop::new();
        Self {
            addresses: bound.addresses(),
            peers: bound.peers(),
            snapshot,
            registration: registered,
            health: reported,
            asked,
            material,
            stop: stop.clone(),
            writer,
            _unmeshed: [of_clients, of_servers],
            running: home.spawn(bound.run_with(sources, stop)),
            runtime,
        }
    }

    pub(crate) fn tell(&self, links: Vec<LinkInfo>, exported: Vec<ExportedService>) {
        let snapshot = Snapshot {
            links,
            exported,
            ..Snapshot::default()
        };
        self.snapshot.send_replace(Some(Arc::new(snapshot)));
    }

    /// Waits until the link to `peer` is as `wanted`.
    pub(crate) async fn until(&mut self, what: &str, peer: &str, wanted: impl Fn(&Peer) -> bool) {
        let peer = cluster_id(peer);
        let reached = self
            .peers
            .wait_for(|peers| peers.get(&peer).is_some_and(&wanted));
        patiently(what, reached).await.unwrap();
    }

    pub(crate) async fn until_up(&mut self, peer: &str) {
        self.until("the link comes up", peer, Peer::is_up).await;
    }

    /// A connection as a sidecar makes it: PROXY header, then the inner ClientHello.
    pub(crate) async fn sidecar(&self, target: &str, alpn: &[&[u8]]) -> TcpStream {
        let mut tcp = TcpStream::connect(self.addresses.egress).await.unwrap();
        tcp.write_all(&ProxyHeader::default().encode())
            .await
            .unwrap();
        tcp.write_all(&client_hello(&self.material, target, alpn))
            .await
            .unwrap();
        tcp
    }

    /// As [`Gateway::sidecar`], with the answer.
    pub(crate) async fn ask(&self, target: &str, alpn: &[&[u8]]) -> (v1::StreamCode, TcpStream) {
        let mut tcp = self.sidecar(target, alpn).await;
        let code = answer(&mut tcp).await;
        (code, tcp)
    }

    /// Ends a mortal one without a word to anybody.
    pub(crate) fn kill(mut self) {
        self.runtime
            .take()
            .expect("a mortal gateway")
            .shutdown_background();
    }

    /// Waits for its end.
    pub(crate) async fn ended(self) -> Result<(), Exit> {
        patiently("the gateway ends", self.running).await.unwrap()
    }
}

pub(crate) async fn answer(tcp: &mut (impl tokio::io::AsyncRead + Unpin)) -> v1::StreamCode {
    let answer: v1::StreamResult = patiently("an answer", frame::read_message(tcp, 1024))
        .await
        .unwrap();
    assert_eq!(answer.message, "", "the code is all that is told");
    answer.code()
}

/// A real ClientHello for that server name.
pub(crate) fn client_hello(material: &MaterialReader, name: &str, alpn: &[&[u8]]) -> Vec<u8> {
    let nobody = TrustPolicy::AnyOf(Vec::new());
    let config = material.current().client_config(nobody, alpn).unwrap();
    let name = name.to_owned().try_into().unwrap();
    let mut tls = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut hello = Vec::new();
    tls.write_tls(&mut hello).unwrap();
    hello
}

pub(crate) const TCP: &[&[u8]] = &[b"linkspan-tcp/1"];
pub(crate) const HTTP: &[&[u8]] = &[b"h2", b"http/1.1"];

pub(crate) fn target(cluster: &str, uid: Option<&str>) -> String {
    let id = uid
        .map(|uid| format!("{}.", endpoint_id(uid)))
        .unwrap_or_default();
    format!("{id}80.checkout.shop.svc.{cluster}.linkspan.internal")
}

/// A listener that a test plays the endpoint with.
pub(crate) async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// The endpoint's end of a relayed connection, after the ClientHello.
pub(crate) async fn accept(listener: &TcpListener) -> TcpStream {
    let (mut tcp, _) = patiently("the endpoint is dialled", listener.accept())
        .await
        .unwrap();
    let mut head = [0; 5];
    tcp.read_exact(&mut head).await.unwrap();
    assert_eq!(head[0], 0x16, "a TLS handshake record");
    let mut hello = vec![0; usize::from(u16::from_be_bytes([head[3], head[4]]))];
    tcp.read_exact(&mut hello).await.unwrap();
    tcp
}

/// East and west, linked; west exports `shop/checkout` with one endpoint, played by the test.
pub(crate) struct Pair {
    pub(crate) pki: Arc<Pki>,
    pub(crate) east: Gateway,
    pub(crate) west: Gateway,
    pub(crate) endpoint: TcpListener,
}

impl Pair {
    pub(crate) async fn linked() -> Self {
        let pki = pki();
        let (east, west) = tokio::join!(
            Gateway::start(&pki, "east", "east-1"),
            Gateway::start(&pki, "west", "west-1"),
        );
        let (listener, address) = listener().await;
        let mut pair = Self {
            pki,
            east,
            west,
            endpoint: listener,
        };
        pair.west.tell(
            vec![link("east", &[])],
            vec![export(
                &["east"],
                vec![endpoint("west", "checkout-1", address)],
            )],
        );
        pair.east.tell(
            vec![link("west", &[pair.west.addresses.tunnel])],
            Vec::new(),
        );
        pair.east.until_up("west").await;
        pair.west.until_up("east").await;
        pair
    }

    /// A stream from a sidecar in east to the endpoint in west: both ends.
    pub(crate) async fn stream(&self, alpn: &[&[u8]]) -> (TcpStream, TcpStream) {
        let name = target("west", Some("checkout-1"));
        let (answered, there) = tokio::join!(self.east.ask(&name, alpn), accept(&self.endpoint));
        assert_eq!(answered.0, v1::StreamCode::Ok);
        (answered.1, there)
    }
}

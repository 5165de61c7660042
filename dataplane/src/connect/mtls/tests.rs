//! Both sides of the inner handshake, over real sockets.

use linkspan_api::v1::StreamResult;
use linkspan_trust::{
    ClientPolicy,
    testing::{Pki, workload},
};
use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

use super::*;
use crate::{
    detect::tls::{MAX_CLIENT_HELLO, peek_client_hello},
    forward::bytes::{Counters, RelayLimits, relay},
    frame::{self, MAX_STREAM_RESULT},
};

mod bounds;
mod gateway;

const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(30);
const LIMITS: ConnectLimits = ConnectLimits {
    connect: LONG,
    handshake_direct: LONG,
    result: LONG,
    handshake_gateway: LONG,
};

struct World {
    pki: Pki,
    source: SpiffeId,
    destination: SpiffeId,
}

fn world() -> World {
    let pki = Pki::new(&["east.test", "west.test", "south.test"]);
    let source = workload("east.test", "web", "frontend");
    let destination = workload("west.test", "shop", "checkout");
    World {
        pki,
        source,
        destination,
    }
}

impl World {
    fn connector(&self, limits: ConnectLimits) -> Connector {
        Connector::new(self.pki.material(&self.source).1, limits)
    }

    fn acceptor(&self, policy: TrustPolicy, limits: AcceptorLimits) -> Acceptor {
        Acceptor::new(
            self.pki.material(&self.destination).1,
            ClientPolicy::Required(policy),
            limits,
        )
    }

    fn to(&self, via: Via, alpn: InnerAlpn) -> Upstream {
        let target = Target {
            endpoint: None,
            port: 80,
            service: "shop/checkout".parse().unwrap(),
            cluster: "west".parse().unwrap(),
        };
        Upstream {
            via,
            target,
            identity: self.destination.clone(),
            alpn,
        }
    }
}

fn domains(names: &[&str]) -> TrustPolicy {
    TrustPolicy::Domains(names.iter().map(|name| name.parse().unwrap()).collect())
}

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

type Inbound = Result<Accepted<TcpStream>, AcceptError>;

/// A destination that takes one connection.
async fn destination(acceptor: Acceptor) -> (SocketAddr, JoinHandle<Inbound>) {
    let (listener, address) = listener().await;
    let task =
        tokio::spawn(async move { acceptor.accept(listener.accept().await.unwrap().0).await });
    (address, task)
}

#[tokio::test]
async fn both_sides_know_each_other_the_target_and_the_protocol() {
    let world = world();
    for (offer, alpn) in [(InnerAlpn::Http, Alpn::Http2), (InnerAlpn::Tcp, Alpn::Tcp)] {
        let acceptor = world.acceptor(domains(&["east.test"]), AcceptorLimits::default());
        let (address, accepting) = destination(acceptor).await;
        let upstream = world.to(Via::Direct(address), offer);
        let mut connected = world.connector(LIMITS).connect(&upstream).await.unwrap();
        let mut accepted = accepting.await.unwrap().unwrap();
        assert_eq!(
            (connected.peer(), &accepted.peer),
            (&world.destination, &world.source)
        );
        assert_eq!((connected.alpn(), accepted.alpn), (alpn, alpn));
        assert_eq!(accepted.target, upstream.target.into());
        connected.write_all(b"hello").await.unwrap();
        connected.shutdown().await.unwrap();
        let mut heard = String::new();
        accepted.io.read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, "hello");
    }
}

#[tokio::test]
async fn only_the_listed_identity_is_the_endpoint() {
    let world = world();
    let acceptor = world.acceptor(domains(&["east.test"]), AcceptorLimits::default());
    let (address, accepting) = destination(acceptor).await;
    let mut upstream = world.to(Via::Direct(address), InnerAlpn::Http);
    upstream.identity = workload("west.test", "shop", "payment");
    let error = world
        .connector(LIMITS)
        .connect(&upstream)
        .await
        .unwrap_err();
    assert!(matches!(error, ConnectError::Handshake { .. }), "{error:?}");
    assert_eq!(error.failure(), Failure::Connect);
    assert!(!error.is_path());
    assert!(accepting.await.unwrap().is_err());
}

#[tokio::test]
async fn callers_of_other_domains_are_refused_until_the_policy_changes() {
    let world = world();
    let acceptor = world.acceptor(domains(&["south.test"]), AcceptorLimits::default());
    let (listener, address) = listener().await;
    let upstream = world.to(Via::Direct(address), InnerAlpn::Tcp);
    let connector = world.connector(LIMITS);
    for admitted in [false, true] {
        let (accepted, connected) = tokio::join!(
            async { acceptor.accept(listener.accept().await.unwrap().0).await },
            connector.connect(&upstream)
        );
        assert_eq!(accepted.is_ok(), admitted, "{accepted:?}");
        // TLS 1.3: the caller's side is done before its certificate is judged.
        let mut connected = connected.unwrap();
        if !admitted {
            assert!(connected.read(&mut [0]).await.is_err());
        }
        acceptor.set_policy(ClientPolicy::Required(domains(&["east.test"])));
    }
}

#[tokio::test]
async fn a_foreign_protocol_is_refused() {
    let world = world();
    let material = world.pki.material(&world.destination).1;
    let policy = ClientPolicy::Required(domains(&["east.test"]));
    let acceptor = Acceptor::with_alpn(material, policy, &[alpn::TCP], AcceptorLimits::default());
    let (address, accepting) = destination(acceptor).await;
    let upstream = world.to(Via::Direct(address), InnerAlpn::Http);
    assert!(world.connector(LIMITS).connect(&upstream).await.is_err());
    assert!(matches!(
        accepting.await.unwrap(),
        Err(AcceptError::Handshake(_))
    ));
}

#[test]
fn configurations_are_shared_within_a_generation_and_bounded() {
    let world = world();
    let (mut writer, reader) = world.pki.material(&world.source);
    let connector = Connector::new(reader, LIMITS);
    let config = || {
        connector
            .config(&world.destination, InnerAlpn::Http)
            .unwrap()
    };
    let first = config();
    assert!(Arc::ptr_eq(&first, &config()));
    writer.set_bundles(world.pki.bundles_of(&["east.test", "west.test"]));
    assert!(!Arc::ptr_eq(&first, &config()));
    for index in 0..2 * MAX_CONFIGS {
        let identity = workload("west.test", "shop", &format!("w{index}"));
        connector.config(&identity, InnerAlpn::Tcp).unwrap();
    }
    assert!(connector.configs.lock().unwrap().by_use.len() <= MAX_CONFIGS);
}

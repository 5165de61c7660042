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

#[tokio::test]
async fn handshakes_are_bounded_in_time_and_number() {
    let world = world();
    let limits = AcceptorLimits {
        handshakes: 0,
        timeout: SHORT,
        ..AcceptorLimits::default()
    };
    let acceptor = world.acceptor(domains(&["east.test"]), limits);
    let (address, accepting) = destination(acceptor).await;
    let upstream = world.to(Via::Direct(address), InnerAlpn::Http);
    assert!(world.connector(LIMITS).connect(&upstream).await.is_err());
    let error = accepting.await.unwrap().unwrap_err();
    assert!(matches!(error, AcceptError::Timeout(SHORT)), "{error:?}");
}

#[tokio::test]
async fn silent_connections_keep_nobody_from_a_handshake() {
    let world = world();
    let limits = AcceptorLimits {
        handshakes: 1,
        timeout: LONG,
        first_bytes: LONG,
        ..AcceptorLimits::default()
    };
    let acceptor = Arc::new(world.acceptor(domains(&["east.test"]), limits));
    let (listener, address) = listener().await;
    let mut silent = Vec::new();
    for said in [&b""[..], b"", b"\x16", b"\x16\x03\x01\x02"] {
        let mut caller = TcpStream::connect(address).await.unwrap();
        caller.write_all(said).await.unwrap();
        let (socket, acceptor) = (listener.accept().await.unwrap().0, Arc::clone(&acceptor));
        let mut accepting = Box::pin(async move { acceptor.accept(socket).await.map(drop) });
        assert!(futures_util::poll!(accepting.as_mut()).is_pending());
        silent.push((caller, accepting));
    }
    let upstream = world.to(Via::Direct(address), InnerAlpn::Http);
    let connector = world.connector(LIMITS);
    let (connected, accepted) = tokio::join!(connector.connect(&upstream), async {
        acceptor.accept(listener.accept().await.unwrap().0).await
    });
    assert_eq!(connected.unwrap().peer(), &world.destination);
    assert_eq!(accepted.unwrap().peer, world.source);
}

/// What a caller begins its handshake with.
async fn client_hello(world: &World) -> Vec<u8> {
    let (listener, address) = listener().await;
    let upstream = world.to(Via::Direct(address), InnerAlpn::Http);
    let connector = world.connector(LIMITS);
    let reading = async {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut record = vec![0; 5];
        socket.read_exact(&mut record).await.unwrap();
        let length = u16::from_be_bytes([record[3], record[4]]);
        record.resize(5 + usize::from(length), 0);
        socket.read_exact(&mut record[5..]).await.unwrap();
        record
    };
    tokio::select! {
        record = reading => record,
        connected = connector.connect(&upstream) => panic!("{connected:?}"),
    }
}

/// Connections that begin a handshake with one who accepts, and say no more.
async fn canned(
    world: &World,
    acceptor: &Arc<Acceptor>,
    count: usize,
) -> (
    Vec<TcpStream>,
    tokio::task::JoinSet<Result<(), AcceptError>>,
) {
    let hello = client_hello(world).await;
    let (listener, address) = listener().await;
    let (mut callers, mut accepting) = (Vec::new(), tokio::task::JoinSet::new());
    for _ in 0..count {
        let mut caller = TcpStream::connect(address).await.unwrap();
        caller.write_all(&hello).await.unwrap();
        let (socket, acceptor) = (listener.accept().await.unwrap().0, Arc::clone(acceptor));
        accepting.spawn(async move { acceptor.accept(socket).await.map(drop) });
        // It has been answered, and so has its turn.
        caller.read_u8().await.unwrap();
        callers.push(caller);
    }
    (callers, accepting)
}

#[tokio::test]
async fn those_who_begin_a_handshake_and_say_no_more_keep_nobody_from_one() {
    let world = world();
    let limits = AcceptorLimits {
        handshakes: 1,
        turn: SHORT,
        timeout: LONG,
        ..AcceptorLimits::default()
    };
    let acceptor = Arc::new(world.acceptor(domains(&["east.test"]), limits));
    let (_callers, mut accepting) = canned(&world, &acceptor, 4).await;
    let (listener, address) = listener().await;
    let upstream = world.to(Via::Direct(address), InnerAlpn::Http);
    let connector = world.connector(LIMITS);
    let (connected, accepted) = tokio::join!(connector.connect(&upstream), async {
        acceptor.accept(listener.accept().await.unwrap().0).await
    });
    connected.unwrap();
    assert_eq!(accepted.unwrap().peer, world.source);
    assert!(accepting.try_join_next().is_none(), "they still wait");
}

#[tokio::test]
async fn handshakes_that_have_had_their_turn_are_bounded_in_number() {
    let world = world();
    let limits = AcceptorLimits {
        turn: SHORT,
        slow: 2,
        timeout: LONG,
        ..AcceptorLimits::default()
    };
    let acceptor = Arc::new(world.acceptor(domains(&["east.test"]), limits));
    let (_callers, mut accepting) = canned(&world, &acceptor, 3).await;
    let refused = accepting.join_next().await.unwrap().unwrap();
    assert!(
        matches!(refused, Err(AcceptError::Timeout(SHORT))),
        "{refused:?}"
    );
    assert!(accepting.try_join_next().is_none(), "two have places");
}

#[tokio::test]
async fn silence_is_bounded() {
    let world = world();
    let limits = AcceptorLimits {
        first_bytes: SHORT,
        timeout: LONG,
        ..AcceptorLimits::default()
    };
    let acceptor = world.acceptor(domains(&["east.test"]), limits);
    let (address, accepting) = destination(acceptor).await;
    let _silent = TcpStream::connect(address).await.unwrap();
    let error = accepting.await.unwrap().unwrap_err();
    assert!(matches!(error, AcceptError::Silent(SHORT)), "{error:?}");
}

/// A gateway that reads the header and the ClientHello, gives `answer` in single bytes, and relays
/// to `endpoint` if there is one.
async fn gateway(
    answer: Vec<u8>,
    endpoint: Option<SocketAddr>,
) -> (SocketAddr, JoinHandle<ProxyHeader>) {
    let (listener, address) = listener().await;
    let task = tokio::spawn(async move {
        let mut source = listener.accept().await.unwrap().0;
        source.set_nodelay(true).unwrap();
        let header = ProxyHeader::read(&mut source).await.unwrap();
        let (hello, mut source) = peek_client_hello(source, MAX_CLIENT_HELLO, LONG)
            .await
            .unwrap();
        let name = hello.server_name.unwrap();
        assert_eq!(name, "80.checkout.shop.svc.west.linkspan.internal");
        for byte in answer {
            source.write_all(&[byte]).await.unwrap();
            tokio::task::yield_now().await;
        }
        if let Some(endpoint) = endpoint {
            let mut endpoint = TcpStream::connect(endpoint).await.unwrap();
            let limits = RelayLimits::default();
            // The test may cut the connection when it has seen enough.
            let _ = relay(&mut source, &mut endpoint, limits, &Counters::default()).await;
        } else {
            source.shutdown().await.unwrap();
        }
        header
    });
    (address, task)
}

fn result(code: StreamCode, message: &str) -> Vec<u8> {
    frame::encode(&StreamResult {
        code: code.into(),
        message: message.to_owned(),
    })
    .to_vec()
}

#[tokio::test]
async fn through_a_gateway_the_inner_handshake_is_end_to_end() {
    let world = world();
    let acceptor = world.acceptor(domains(&["east.test"]), AcceptorLimits::default());
    let (endpoint, accepting) = destination(acceptor).await;
    let (address, header) = gateway(result(StreamCode::Ok, ""), Some(endpoint)).await;
    let upstream = world.to(Via::Gateway(address), InnerAlpn::Http);
    let trace = Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".to_owned());
    let connector = world.connector(LIMITS);
    let mut connected = connector
        .connect_traced(&upstream, trace.clone())
        .await
        .unwrap();
    let mut accepted = accepting.await.unwrap().unwrap();
    assert_eq!(
        (connected.peer(), &accepted.peer),
        (&world.destination, &world.source)
    );
    accepted.io.write_all(b"answer").await.unwrap();
    accepted.io.shutdown().await.unwrap();
    let mut heard = String::new();
    connected.read_to_string(&mut heard).await.unwrap();
    connected.shutdown().await.unwrap();
    assert_eq!(heard, "answer");
    assert_eq!(header.await.unwrap().trace, trace);
}

#[tokio::test]
async fn a_gateways_refusal_has_its_code() {
    let world = world();
    for (code, failure, path) in [
        (StreamCode::EndpointGone, Failure::Gone, false),
        (StreamCode::NoTunnel, Failure::Connect, true),
        (StreamCode::ConnectFailed, Failure::Connect, false),
        (StreamCode::Unspecified, Failure::Connect, true),
    ] {
        let (address, _gateway) = gateway(result(code, "why"), None).await;
        let upstream = world.to(Via::Gateway(address), InnerAlpn::Http);
        let error = world
            .connector(LIMITS)
            .connect(&upstream)
            .await
            .unwrap_err();
        assert_eq!(
            (error.failure(), error.is_path()),
            (failure, path),
            "{code:?}"
        );
        let ConnectError::Refused {
            code: found,
            message,
        } = error
        else {
            panic!("{error:?}")
        };
        assert_eq!((found, message.as_str()), (code, "why"));
    }
}

/// The gateway said yes and then was lost, or its tunnel was: whoever it was, another gateway tells.
#[tokio::test]
async fn a_cut_within_the_handshake_is_not_held_against_the_endpoint_behind_a_gateway() {
    let world = world();
    let (address, _gateway) = gateway(result(StreamCode::Ok, ""), None).await;
    let (listener, direct) = listener().await;
    let _endpoint = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        socket.read_exact(&mut [0; 5]).await.unwrap();
        socket.shutdown().await.unwrap();
        tokio::io::copy(&mut socket, &mut tokio::io::sink()).await
    });
    for (via, path) in [(Via::Gateway(address), true), (Via::Direct(direct), false)] {
        let connector = world.connector(LIMITS);
        let connecting = connector.connect(&world.to(via, InnerAlpn::Tcp)).await;
        let error = connecting.unwrap_err();
        assert!(matches!(error, ConnectError::Handshake { .. }), "{error:?}");
        assert_eq!(error.is_path(), path);
    }
}

/// A stopped process: the kernel still accepts for it, and nothing comes back.
#[tokio::test]
async fn a_silent_gateway_is_to_blame_itself() {
    let world = world();
    let (_stopped, address) = listener().await;
    let limits = ConnectLimits {
        result: SHORT,
        ..LIMITS
    };
    let via = Via::Gateway(address);
    let upstream = world.to(via, InnerAlpn::Http);
    let connecting = world.connector(limits).connect(&upstream).await;
    let error = connecting.unwrap_err();
    assert!(
        matches!(error, ConnectError::Silent { via: found, waited: SHORT } if found == via),
        "{error:?}"
    );
    assert!(error.is_path());
}

/// Once the gateway has answered, what is slow is the endpoint.
#[tokio::test]
async fn a_silent_endpoint_behind_a_gateway_is_to_blame_itself() {
    let world = world();
    let (_stopped, endpoint) = listener().await;
    let (address, _gateway) = gateway(result(StreamCode::Ok, ""), Some(endpoint)).await;
    let limits = ConnectLimits {
        handshake_gateway: SHORT * 10,
        ..LIMITS
    };
    let upstream = world.to(Via::Gateway(address), InnerAlpn::Http);
    let connecting = world.connector(limits).connect(&upstream).await;
    let error = connecting.unwrap_err();
    assert_eq!(
        (error.failure(), error.is_path()),
        (Failure::Timeout, false)
    );
}

#[tokio::test]
async fn an_answer_that_is_none_is_an_error() {
    let world = world();
    let whole = result(StreamCode::Ok, "fine");
    for answer in [
        Vec::new(),
        vec![0],
        whole[..whole.len() - 1].to_vec(),
        u16::try_from(MAX_STREAM_RESULT + 1)
            .unwrap()
            .to_be_bytes()
            .to_vec(),
        b"\x16\x03\x03\x00\x10".to_vec(),
        vec![0, 2, 0xff, 0xff],
    ] {
        let (address, _gateway) = gateway(answer.clone(), None).await;
        let upstream = world.to(Via::Gateway(address), InnerAlpn::Http);
        let error = world
            .connector(LIMITS)
            .connect(&upstream)
            .await
            .unwrap_err();
        assert!(
            matches!(error, ConnectError::Answer(_)),
            "{answer:?}: {error:?}"
        );
    }
}

#[tokio::test]
async fn a_silent_gateway_or_endpoint_is_given_up() {
    let world = world();
    let (_listener, address) = listener().await;
    let limits = ConnectLimits {
        handshake_direct: SHORT,
        handshake_gateway: SHORT,
        ..LIMITS
    };
    for via in [Via::Direct(address), Via::Gateway(address)] {
        let error = world
            .connector(limits)
            .connect(&world.to(via, InnerAlpn::Tcp))
            .await
            .unwrap_err();
        assert!(matches!(error, ConnectError::Timeout { .. }), "{error:?}");
        assert_eq!(error.failure(), Failure::Timeout);
    }
}

#[tokio::test]
async fn an_unreachable_gateway_is_not_the_endpoints_fault() {
    let world = world();
    let (listener, address) = listener().await;
    drop(listener);
    for (via, path) in [(Via::Direct(address), false), (Via::Gateway(address), true)] {
        let error = world
            .connector(LIMITS)
            .connect(&world.to(via, InnerAlpn::Tcp))
            .await
            .unwrap_err();
        assert!(matches!(error, ConnectError::Connect { .. }), "{error:?}");
        assert_eq!(error.is_path(), path);
    }
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

//! Handshakes are bounded in time and number, and none keeps others from theirs.

use super::*;

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

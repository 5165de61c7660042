//! Through a gateway: who is to blame for what does not work.

use super::*;

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

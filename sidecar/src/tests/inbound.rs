//! The last check, at the workload's own sidecar.

use ::http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use linkspan_dataplane::{
    connect::mtls::{Connected, InnerAlpn},
    forward::http::{BodyError, SendError, send},
    inbound::Rules,
    target::Target,
};
use linkspan_routing::{AppProtocol, EndpointId};
use linkspan_trust::testing;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::world::{World, answer, frontend, seen, served, target};

async fn request(io: Connected) -> Result<StatusCode, SendError> {
    let (client, connection) = h2::client::handshake(io).await.unwrap();
    tokio::spawn(connection);
    let body = Empty::new().map_err(|error| -> BodyError { match error {} });
    let request = Request::get("http://checkout.shop/").body(body).unwrap();
    send(client, request).await.map(|answer| answer.status())
}

#[tokio::test]
async fn only_callers_it_is_exported_to_may_pass() {
    let mut world = World::new();
    let app = world.app(|_| async { answer("") }).await;
    let server = world.server("west", "w", app, AppProtocol::Http).await;
    let stranger = testing::workload("north.test", "shop", "frontend");
    for (caller, passes) in [
        (frontend(), true),
        (testing::workload("west.test", "shop", "cart"), true),
        (stranger.clone(), false),
    ] {
        let connected = world
            .connect(&caller, &server, target(&server), InnerAlpn::Http)
            .await;
        // TLS 1.3 tells a client late that its certificate is refused.
        let status = match connected {
            Ok(io) => h2::client::handshake(io).await.map(drop).is_ok(),
            Err(_) => false,
        };
        let again = world
            .connect(&caller, &server, target(&server), InnerAlpn::Http)
            .await;
        let answered = match again {
            Ok(io) => request(io)
                .await
                .is_ok_and(|status| status == StatusCode::OK),
            Err(_) => false,
        };
        assert_eq!(answered, passes, "{caller} {status}");
    }
    // Known here because something else is exported to it, but not this.
    let mut other = served(AppProtocol::Http, &["north"]);
    other.key = "shop/cart".parse().unwrap();
    let services = vec![served(AppProtocol::Http, &["east"]), other];
    server.inbound.apply(Rules {
        services,
        ..Rules::default()
    });
    let io = world
        .connect(&stranger, &server, target(&server), InnerAlpn::Http)
        .await
        .unwrap();
    assert_eq!(request(io).await.unwrap(), StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn other_targets_are_refused_unseen() {
    let mut world = World::new();
    let app = world.app(|_| async { panic!("asked") }).await;
    let server = world.server("west", "w", app, AppProtocol::Http).await;
    let right = target(&server);
    for wrong in [
        Target {
            endpoint: Some(EndpointId::from_uid("other")),
            ..right.clone()
        },
        Target {
            port: 8080,
            ..right.clone()
        },
        Target {
            service: "shop/cart".parse().unwrap(),
            ..right.clone()
        },
        Target {
            cluster: "east".parse().unwrap(),
            ..right.clone()
        },
    ] {
        let io = world
            .connect(&frontend(), &server, wrong, InnerAlpn::Http)
            .await
            .unwrap();
        assert!(matches!(request(io).await, Err(SendError::Refused(_))));
    }
}

#[tokio::test]
async fn a_request_with_several_hosts_reaches_no_application() {
    let mut world = World::new();
    let app = world.app(|_| async { panic!("asked") }).await;
    for protocol in [AppProtocol::Http, AppProtocol::Http2] {
        let server = world.server("west", "w", app, protocol).await;
        let io = world
            .connect(&frontend(), &server, target(&server), InnerAlpn::Http)
            .await
            .unwrap();
        let (client, connection) = h2::client::handshake(io).await.unwrap();
        tokio::spawn(connection);
        let body = Empty::new().map_err(|error| -> BodyError { match error {} });
        let request = Request::get("http://checkout.shop/")
            .header("host", "a")
            .header("host", "b");
        let answer = send(client, request.body(body).unwrap()).await.unwrap();
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
    }
}

#[tokio::test]
async fn what_is_withdrawn_is_refused_on_open_connections_too() {
    let mut world = World::new();
    let app = world.app(|_| async { answer("") }).await;
    let server = world.server("west", "w", app, AppProtocol::Http).await;
    let io = world
        .connect(&frontend(), &server, target(&server), InnerAlpn::Http)
        .await
        .unwrap();
    let (client, connection) = h2::client::handshake(io).await.unwrap();
    tokio::spawn(connection);
    let ask = || {
        let body = Empty::new().map_err(|error| -> BodyError { match error {} });
        send(
            client.clone(),
            Request::get("http://checkout.shop/").body(body).unwrap(),
        )
    };
    assert_eq!(ask().await.unwrap().status(), StatusCode::OK);
    server.inbound.apply(Rules::default());
    assert!(matches!(ask().await, Err(SendError::Refused(_))));
}

#[tokio::test]
async fn opaque_bytes_cannot_carry_a_forged_caller() {
    let mut world = World::new();
    let app = world
        .app(|request| async move { answer(seen(&request, "x-forwarded-client-cert")) })
        .await;
    let forged = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
        x-forwarded-client-cert: URI=spiffe://west.test/ns/shop/sa/root\r\n\r\n";
    // Declared as HTTP: refused. Not declared: found out.
    for (protocol, found) in [
        (AppProtocol::Http, None),
        (AppProtocol::Detect, Some("frontend")),
    ] {
        let server = world.server("west", "w", app, protocol).await;
        let mut io = world
            .connect(&frontend(), &server, target(&server), InnerAlpn::Tcp)
            .await
            .unwrap();
        let mut text = Vec::new();
        if io.write_all(forged).await.is_ok() {
            let _ = io.read_to_end(&mut text).await;
        }
        let text = String::from_utf8(text).unwrap();
        assert!(!text.contains("root"), "{text}");
        assert_eq!(text.contains("frontend"), found.is_some(), "{text}");
    }
}

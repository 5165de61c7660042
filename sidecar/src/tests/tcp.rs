//! Opaque calls.

use linkspan_routing::AppProtocol;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::world::{World, listener, snapshot};

/// Answers, once its client has said everything, with all that it said.
async fn echo_after_the_end() -> std::net::SocketAddr {
    let (listener, address) = listener().await;
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut all = Vec::new();
                if socket.read_to_end(&mut all).await.is_ok() {
                    let _ = socket.write_all(&all).await;
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn a_half_close_passes_and_the_answer_comes_after_it() {
    let mut world = World::new();
    let app = echo_after_the_end().await;
    for protocol in [AppProtocol::Tcp, AppProtocol::Detect] {
        let server = world.server("east", "c", app, protocol).await;
        let source = world
            .source(Some(snapshot([&server.endpoint], protocol)))
            .await;
        let mut client = TcpStream::connect(source.address).await.unwrap();
        client.write_all(b"\x00everything").await.unwrap();
        client.shutdown().await.unwrap();
        let mut echoed = Vec::new();
        client.read_to_end(&mut echoed).await.unwrap();
        assert_eq!(echoed, b"\x00everything");
    }
}

#[tokio::test]
async fn another_endpoint_takes_the_connection_when_one_does_not() {
    let mut world = World::new();
    let app = echo_after_the_end().await;
    let good = world.server("east", "good", app, AppProtocol::Tcp).await;
    let dead = world.server("east", "dead", app, AppProtocol::Tcp).await;
    dead.kill();
    while TcpStream::connect(dead.address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    let known = snapshot([&good.endpoint, &dead.endpoint], AppProtocol::Tcp);
    let source = world.source(Some(known)).await;
    for _ in 0..10 {
        let mut client = TcpStream::connect(source.address).await.unwrap();
        client.write_all(b"x").await.unwrap();
        client.shutdown().await.unwrap();
        let mut echoed = Vec::new();
        client.read_to_end(&mut echoed).await.unwrap();
        assert_eq!(echoed, b"x");
    }
}

#[tokio::test]
async fn a_reset_arrives_as_a_reset() {
    let mut world = World::new();
    let (listener, app) = listener().await;
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut byte = [0];
            let _ = socket.read_exact(&mut byte).await;
            let _ = socket.write_all(b"half").await;
            let _ = socket.set_zero_linger();
        }
    });
    let server = world.server("east", "c", app, AppProtocol::Tcp).await;
    let source = world
        .source(Some(snapshot([&server.endpoint], AppProtocol::Tcp)))
        .await;
    let mut client = TcpStream::connect(source.address).await.unwrap();
    client.write_all(b"x").await.unwrap();
    let mut text = Vec::new();
    assert!(client.read_to_end(&mut text).await.is_err(), "{text:?}");
}

#[tokio::test]
async fn without_an_endpoint_an_opaque_call_is_reset() {
    let mut world = World::new();
    let source = world.source(Some(snapshot([], AppProtocol::Tcp))).await;
    let mut client = TcpStream::connect(source.address).await.unwrap();
    let _ = client.write_all(b"x").await;
    assert!(client.read_to_end(&mut Vec::new()).await.is_err());
}

//! Readers that have stopped must not stop the others.

mod common;

use common::{Gateway, TCP, endpoint, export, gateway_id, link, patiently, pki, target};
use linkspan_gateway::stall::Windows;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// Half of the connection's window holds so many stalled streams.
const TOLERATED: usize = 2;
const STALLED: usize = 8;

async fn write_until_reset(mut tcp: TcpStream) {
    let block = vec![0; 1 << 16];
    while tcp.write_all(&block).await.is_ok() {}
}

#[tokio::test]
async fn the_longest_stalled_are_reset_and_a_fast_stream_goes_on() {
    let pki = pki();
    let mut config = common::config("west", "west-1", &pki);
    config.limits.windows = Windows {
        stream: 1 << 16,
        connection: 1 << 18,
    };
    let mut west = Gateway::with(&pki, config, &gateway_id("west")).await;
    let mut east = Gateway::start(&pki, "east", "east-1").await;
    let (listener, address) = common::listener().await;
    west.tell(
        vec![link("east", &[])],
        vec![export(
            &["east"],
            vec![endpoint("west", "checkout-1", address)],
        )],
    );
    east.tell(vec![link("west", &[west.addresses.tunnel])], Vec::new());
    east.until_up("west").await;
    west.until_up("east").await;
    let name = target("west", Some("checkout-1"));
    let (mut writers, mut readers) = (JoinSet::new(), Vec::new());
    for _ in 0..STALLED {
        let (answered, there) = tokio::join!(east.ask(&name, TCP), common::accept(&listener));
        writers.spawn(write_until_reset(answered.1));
        readers.push(there);
    }
    for _ in TOLERATED..STALLED {
        patiently("a stalled stream is reset", writers.join_next()).await;
    }
    let (answered, mut there) = tokio::join!(east.ask(&name, TCP), common::accept(&listener));
    let mut here = answered.1;
    let (sent, mut got) = (vec![7; 1 << 20], vec![0; 1 << 20]);
    let passing = async { tokio::join!(here.write_all(&sent), there.read_exact(&mut got)) };
    patiently("the fast stream goes on", passing)
        .await
        .0
        .unwrap();
    assert_eq!(sent, got);
    assert_eq!(writers.len(), TOLERATED, "what fits is left alone");
    let suspect = |held: &linkspan_gateway::tunnel::connection::Connection| held.state().suspect;
    let peers = east.peers.borrow().clone();
    assert!(
        peers
            .iter()
            .flat_map(|peer| &peer.connections)
            .all(|held| !suspect(held))
    );
}

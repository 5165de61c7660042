//! Callers who prove nothing do not take the places of others.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use linkspan_trust::carrier_config;
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use tokio_rustls::TlsConnector;

use crate::{
    join,
    testing::{Home, soon},
};

/// Of one source, before its handshake is done; as many join.
const SHARE: usize = 32;
/// What shows that nobody had to wait until others run into a time-out: the shortest is 5 s.
const AT_ONCE: Duration = Duration::from_secs(4);

async fn from(address: [u8; 4], to: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((Ipv4Addr::from(address), 0).into())?;
    socket.connect(to).await
}

/// Finishes a handshake from there, as one that joins.
async fn joins(address: [u8; 4], to: SocketAddr) -> io::Result<()> {
    let config = carrier_config(&[join::ALPN]).map_err(io::Error::other)?;
    let name = ServerName::try_from("federation.linkspan.internal").map_err(io::Error::other)?;
    let tcp = from(address, to).await?;
    let connector = TlsConnector::from(Arc::new(config));
    connector.connect(name, tcp).await.map(drop)
}

/// Says that it wants to join, and no more.
async fn stalls(address: [u8; 4], to: SocketAddr) -> TcpStream {
    let config = carrier_config(&[join::ALPN]).unwrap();
    let name = ServerName::try_from("federation.linkspan.internal").unwrap();
    let mut tls = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut hello = Vec::new();
    tls.write_tls(&mut hello).unwrap();
    let mut tcp = from(address, to).await.unwrap();
    tcp.write_all(&hello).await.unwrap();
    tcp
}

#[tokio::test]
async fn one_source_that_stays_silent_leaves_room_to_the_others() {
    let home = Home::new("east");
    let federation = home.start().await;
    let to = federation.addresses.grpc;
    let mut silent = Vec::new();
    for _ in 0..300 {
        silent.push(from([127, 0, 0, 9], to).await.unwrap());
    }
    let other = timeout(AT_ONCE, joins([127, 0, 0, 1], to)).await;
    other.expect("nobody has to wait").unwrap();
    // What is too much is not kept waiting either.
    let mut last = silent.pop().unwrap();
    let closed = timeout(AT_ONCE, last.read_u8()).await;
    assert!(closed.expect("it is closed").is_err());
    federation.stop().await;
}

#[tokio::test]
async fn those_who_stall_in_joins_leave_the_handshakes_of_their_gateway_alone() {
    let home = Home::new("east");
    let federation = home.start().await;
    let to = federation.addresses.grpc;
    let mut stalled = Vec::new();
    for _ in 0..SHARE {
        let mut tcp = stalls([127, 0, 0, 9], to).await;
        // Once it answers, the place is taken.
        soon("its hello", tcp.read_u8()).await.unwrap();
        stalled.push(tcp);
    }
    let more = timeout(AT_ONCE, joins([127, 0, 0, 9], to)).await;
    more.expect("it is closed at once").unwrap_err();
    // From the same address, as something else: that is still shaken hands with.
    let mut grpc = from([127, 0, 0, 9], to).await.unwrap();
    let config = carrier_config(&[b"h2"]).unwrap();
    let name = ServerName::try_from("federation.linkspan.internal").unwrap();
    let shaken = TlsConnector::from(Arc::new(config)).connect(name, &mut grpc);
    let shaken = timeout(AT_ONCE, shaken).await;
    shaken.expect("nobody has to wait").unwrap();
    let other = timeout(AT_ONCE, joins([127, 0, 0, 1], to)).await;
    other.expect("nobody has to wait").unwrap();
    federation.stop().await;
}

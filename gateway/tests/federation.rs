//! How the federations reach each other: through the reserved target, on the sync connection.

mod common;

use std::sync::Arc;

use common::{
    Gateway, HTTP, answer, client_hello, federation_id, gateway_id, link, patiently, pki,
};
use linkspan_api::v1::StreamCode;
use linkspan_dataplane::proxy_header::ProxyHeader;
use linkspan_gateway::peers::Peer;
use linkspan_trust::{MaterialReader, SpiffeId, TrustPolicy};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const TARGET: &str = "federation.west.linkspan.internal";

async fn outer(
    gateway: &Gateway,
    material: &MaterialReader,
    server: SpiffeId,
    alpn: &[u8],
) -> std::io::Result<TlsStream<TcpStream>> {
    let tls = material
        .current()
        .client_config(TrustPolicy::only(server), &[alpn])
        .unwrap();
    let tcp = TcpStream::connect(gateway.addresses.egress).await.unwrap();
    let name = ServerName::try_from("gateway.linkspan.internal").unwrap();
    patiently(
        "outer TLS",
        TlsConnector::from(Arc::new(tls)).connect(name, tcp),
    )
    .await
}

#[tokio::test]
async fn our_federation_reaches_the_peers_on_the_sync_connection() {
    let pki = pki();
    let (federation, address) = common::listener().await;
    let mut config = common::config("west", "west-1", &pki);
    config.federation.address = address.to_string();
    let mut west = Gateway::with(&pki, config, &gateway_id("west")).await;
    let mut east = Gateway::start(&pki, "east", "east-1").await;
    west.tell(vec![link("east", &[])], Vec::new());
    east.tell(vec![link("west", &[west.addresses.tunnel])], Vec::new());
    east.until("sync", "west", |peer: &Peer| peer.held().sync)
        .await;
    west.until("sync", "east", |peer: &Peer| peer.held().sync)
        .await;

    let (_writer, material) = pki.material(&federation_id("east"));
    let tls = outer(&east, &material, gateway_id("east"), b"linkspan-control/1").await;
    let mut tls = tls.unwrap();
    tls.write_all(&ProxyHeader::default().encode())
        .await
        .unwrap();
    tls.write_all(&client_hello(&material, TARGET, HTTP))
        .await
        .unwrap();
    let (code, mut there) = tokio::join!(answer(&mut tls), common::accept(&federation));
    assert_eq!(code, StreamCode::Ok);
    tls.write_all(b"ping").await.unwrap();
    let mut got = [0; 4];
    patiently("bytes pass", there.read_exact(&mut got))
        .await
        .unwrap();
    there.write_all(b"pong").await.unwrap();
    patiently("bytes pass", tls.read_exact(&mut got))
        .await
        .unwrap();
    assert_eq!(&got, b"pong");
    assert_eq!(
        west.peers.borrow().iter().next().unwrap().connections.len(),
        2
    );
}

#[tokio::test]
async fn nobody_but_our_federation_passes_the_outer_tls() {
    let pki = pki();
    let east = Gateway::start(&pki, "east", "east-1").await;
    let workload = linkspan_trust::testing::workload("east.test", "shop", "checkout");
    for (caller, alpn) in [
        (federation_id("west"), &b"linkspan-control/1"[..]),
        (gateway_id("east"), b"linkspan-control/1"),
        (workload, b"linkspan-control/1"),
        (federation_id("east"), b"h2"),
    ] {
        let (_writer, material) = pki.material(&caller);
        // In TLS 1.3 the client may have finished before the server refuses.
        if let Ok(mut tls) = outer(&east, &material, gateway_id("east"), alpn).await {
            let mut byte = [0];
            let end = patiently("the refusal", tls.read(&mut byte)).await;
            assert!(end.is_err(), "{caller} with {alpn:?}: {end:?}");
        }
    }
}

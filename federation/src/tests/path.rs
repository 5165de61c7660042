//! The way to a peer, through our own gateway.

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc};

use linkspan_api::v1::{self, discover_request::Message as Said};
use linkspan_trust::{ClientPolicy, MaterialReader, SpiffeId, TrustPolicy};
use prost::Message as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsAcceptor;

use super::proxy::{Proxy, gateway, health};
use crate::testing::{Home, cluster, link_with};

/// An egress that knows one way only: straight to `peer`'s federation.
async fn egress(listener: TcpListener, material: MaterialReader, peer: SocketAddr) {
    let federation = SpiffeId::federation(material.current().svid().id().trust_domain());
    let own = ClientPolicy::Required(TrustPolicy::Exactly(BTreeSet::from([federation])));
    let alpn: &[&[u8]] = &[b"linkspan-control/1"];
    let config = Arc::new(material.current().server_config(own, alpn).unwrap());
    while let Ok((stream, _)) = listener.accept().await {
        let Ok(mut stream) = TlsAcceptor::from(Arc::clone(&config)).accept(stream).await else {
            continue;
        };
        let mut header = [0; 16];
        stream.read_exact(&mut header).await.unwrap();
        assert_eq!(
            &header[..13],
            b"\r\n\r\n\0\r\nQUIT\n\x20",
            "PROXY v2, LOCAL"
        );
        let ok = v1::StreamResult {
            code: v1::StreamCode::Ok.into(),
            ..Default::default()
        };
        let ok = ok.encode_to_vec();
        stream
            .write_u16(u16::try_from(ok.len()).unwrap())
            .await
            .unwrap();
        stream.write_all(&ok).await.unwrap();
        let mut to = TcpStream::connect(peer).await.unwrap();
        tokio::spawn(async move { drop(copy_bidirectional(&mut stream, &mut to).await) });
    }
}

#[tokio::test]
async fn sync_runs_through_our_own_gateway() {
    let (east_home, west_home) = (Home::new("east"), Home::new("west"));
    let (east, west) = (east_home.start().await, west_home.start().await);
    east_home.declare("west.yaml", &link_with("west", &west.bundle().await));
    west_home.declare("east.yaml", &link_with("east", &east.bundle().await));

    let material = east.gateway().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let egress_address = listener.local_addr().unwrap().to_string();
    let serving = tokio::spawn(egress(listener, material.1.clone(), west.addresses.grpc));
    let registration = v1::GatewayRegistration {
        egress_address,
        ..gateway("gateway-1")
    };
    let proxy = Proxy::open(&east, &material).await.unwrap();
    let _living = proxy.live(Said::Gateway(registration), vec![health("west", true)]);

    east.until("sync with west", |world| {
        world
            .desired
            .links
            .get(&cluster("west"))
            .is_some_and(|link| !link.stale)
    })
    .await;
    // West's roots came over the link, newer than those that were declared.
    east.until("west's announced roots", |world| {
        world.desired.links[&cluster("west")].bundle.sequence > 0
    })
    .await;
    east.stop().await;
    west.stop().await;
    serving.abort();
}

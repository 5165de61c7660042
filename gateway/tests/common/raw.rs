//! A peer that speaks the tunnel by hand, so that it can break its rules.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use linkspan_api::v1;
use linkspan_dataplane::frame;
use linkspan_trust::{MaterialReader, TrustPolicy};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{Connection, ConnectionError, RecvStream, SendStream, TransportConfig};

use super::{answer, client_hello, gateway_id, patiently};

const LOOPBACK: Ipv4Addr = Ipv4Addr::LOCALHOST;

pub(crate) struct RawPeer {
    pub(crate) quic: Connection,
    pub(crate) control: (SendStream, RecvStream),
    pub(crate) hello: v1::TunnelHello,
    material: MaterialReader,
    _endpoint: quinn::Endpoint,
}

/// A QUIC connection to a gateway of `cluster`, with any TLS.
pub(crate) async fn connect(
    tls: rustls::ClientConfig,
    to: SocketAddr,
) -> (Result<Connection, ConnectionError>, quinn::Endpoint) {
    connect_from(LOOPBACK, tls, to).await
}

/// As [`connect`], from another address of this machine.
pub(crate) async fn connect_from(
    from: Ipv4Addr,
    tls: rustls::ClientConfig,
    to: SocketAddr,
) -> (Result<Connection, ConnectionError>, quinn::Endpoint) {
    connect_with(from, tls, to, TransportConfig::default()).await
}

async fn connect_with(
    from: Ipv4Addr,
    mut tls: rustls::ClientConfig,
    to: SocketAddr,
    transport: TransportConfig,
) -> (Result<Connection, ConnectionError>, quinn::Endpoint) {
    tls.alpn_protocols = vec![b"linkspan-tunnel/1".to_vec()];
    let crypto = QuicClientConfig::try_from(tls).unwrap();
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(Arc::new(transport));
    let endpoint = quinn::Endpoint::client((from, 0).into()).unwrap();
    let connecting = endpoint
        .connect_with(config, to, "gateway.linkspan.internal")
        .unwrap();
    (patiently("a handshake", connecting).await, endpoint)
}

pub(crate) fn tls(material: &MaterialReader, cluster: &str) -> rustls::ClientConfig {
    let policy = TrustPolicy::only(gateway_id(cluster));
    material
        .current()
        .client_config(policy, &[b"linkspan-tunnel/1"])
        .unwrap()
}

pub(crate) fn hello(cluster: &str, purpose: v1::TunnelPurpose) -> v1::TunnelHello {
    v1::TunnelHello {
        cluster: cluster.to_owned(),
        replica: format!("{cluster}-raw"),
        ready_replicas: 1,
        purpose: purpose.into(),
        ..v1::TunnelHello::default()
    }
}

impl RawPeer {
    /// Connects with `material` to a gateway of `cluster` and exchanges hellos as `own`.
    pub(crate) async fn greet(
        material: &MaterialReader,
        (own, cluster): (&str, &str),
        to: SocketAddr,
        purpose: v1::TunnelPurpose,
    ) -> Self {
        let connected = connect(tls(material, cluster), to).await;
        Self::greet_over(material, own, connected, purpose).await
    }

    /// As [`RawPeer::greet`], for data, with other parameters of the transport.
    pub(crate) async fn greet_with(
        material: &MaterialReader,
        (own, cluster): (&str, &str),
        to: SocketAddr,
        transport: TransportConfig,
    ) -> Self {
        let connected = connect_with(LOOPBACK, tls(material, cluster), to, transport).await;
        Self::greet_over(material, own, connected, v1::TunnelPurpose::Data).await
    }

    async fn greet_over(
        material: &MaterialReader,
        own: &str,
        (quic, endpoint): (Result<Connection, ConnectionError>, quinn::Endpoint),
        purpose: v1::TunnelPurpose,
    ) -> Self {
        let quic = quic.unwrap();
        let mut control = quic.open_bi().await.unwrap();
        frame::write_message(&mut control.0, &hello(own, purpose))
            .await
            .unwrap();
        let hello = patiently("a hello", frame::read_message(&mut control.1, 4096))
            .await
            .unwrap();
        Self {
            quic,
            control,
            hello,
            material: material.clone(),
            _endpoint: endpoint,
        }
    }

    /// Opens a stream for one target whose inner ClientHello names another, or the same.
    pub(crate) async fn open(
        &self,
        open: v1::StreamOpen,
        server_name: &str,
    ) -> (SendStream, RecvStream) {
        let (mut send, recv) = self.quic.open_bi().await.unwrap();
        frame::write_message(&mut send, &open).await.unwrap();
        let hello = client_hello(&self.material, server_name, super::TCP);
        send.write_all(&hello).await.unwrap();
        (send, recv)
    }

    /// As [`RawPeer::open`], with the answer.
    pub(crate) async fn ask(&self, open: v1::StreamOpen, server_name: &str) -> v1::StreamCode {
        let (_send, mut recv) = self.open(open, server_name).await;
        answer(&mut recv).await
    }
}

/// A stream opening for that target.
pub(crate) fn opening(target: &str) -> v1::StreamOpen {
    let named = target.split('.').next().filter(|label| label.len() == 26);
    v1::StreamOpen {
        target: target.to_owned(),
        endpoint: named.unwrap_or_default().to_owned(),
        ..v1::StreamOpen::default()
    }
}

/// The code with which the other side closes.
pub(crate) async fn close_code(quic: &Connection) -> u64 {
    match patiently("the other side closes", quic.closed()).await {
        ConnectionError::ApplicationClosed(close) => close.error_code.into_inner(),
        other => panic!("not closed by the application: {other}"),
    }
}

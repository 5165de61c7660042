//! The outer TLS with which our own federation proves itself before it may use reserved targets.

use std::time::Duration;

use linkspan_trust::{ClientPolicy, MaterialError, SpiffeId, TlsMaterial, TrustPolicy};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// The application protocol of the outer TLS.
pub(super) const ALPN: &[u8] = b"linkspan-control/1";

/// Why there is no outer TLS.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlError {
    #[error("our own TLS material is unusable")]
    Material(#[from] MaterialError),
    #[error("the TLS handshake with our federation failed")]
    Handshake(#[from] std::io::Error),
    #[error("the TLS handshake took longer than {0:?}")]
    Late(Duration),
    #[error("the caller speaks TLS but not the protocol of federation")]
    Protocol,
}

/// Accepts TLS from our own federation and from nobody else.
pub(super) async fn accept(
    tcp: TcpStream,
    material: &TlsMaterial,
    federation: &SpiffeId,
    limit: Duration,
) -> Result<TlsStream<TcpStream>, ControlError> {
    let policy = TrustPolicy::Exactly([federation.clone()].into());
    let config = material.server_config(ClientPolicy::Required(policy), &[ALPN])?;
    let handshake = TlsAcceptor::from(std::sync::Arc::new(config)).accept(tcp);
    let tls = timeout(limit, handshake)
        .await
        .map_err(|_| ControlError::Late(limit))??;
    match tls.get_ref().1.alpn_protocol() {
        Some(ALPN) => Ok(tls),
        _ => Err(ControlError::Protocol),
    }
}

//! rustls configurations as Linkspan wants them: one provider, TLS 1.3 only, no resumption, no
//! tickets, no 0-RTT.

use std::sync::{Arc, LazyLock};

use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::TLS13;
use rustls::{ClientConfig, ConfigBuilder, ServerConfig, WantsVerifier};

use crate::verify::Verifier;

/// The one provider, passed explicitly: nothing depends on a process-wide default.
pub(crate) fn provider() -> &'static Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> =
        LazyLock::new(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
    &PROVIDER
}

/// A client's configuration without ALPN; `own` is what it shows to a server that asks.
pub(crate) fn client(verifier: Verifier, own: Option<Arc<CertifiedKey>>) -> ClientConfig {
    let builder = ClientConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(&[&TLS13])
        .expect("the provider has cipher suites and key exchange for TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match own {
        Some(own) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(own))),
        None => builder.with_no_client_auth(),
    };
    config.resumption = Resumption::disabled();
    config
}

/// A server's configuration without ALPN.
pub(crate) fn server(verifier: Verifier, own: Arc<CertifiedKey>) -> ServerConfig {
    let builder = server_builder().with_client_cert_verifier(Arc::new(verifier));
    without_resumption(builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(own))))
}

/// A server's configuration without ALPN that asks clients for no certificate.
pub(crate) fn server_for_anyone(own: Arc<CertifiedKey>) -> ServerConfig {
    let builder = server_builder().with_no_client_auth();
    without_resumption(builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(own))))
}

fn server_builder() -> ConfigBuilder<ServerConfig, WantsVerifier> {
    ServerConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(&[&TLS13])
        .expect("the provider has cipher suites and key exchange for TLS 1.3")
}

fn without_resumption(mut config: ServerConfig) -> ServerConfig {
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config
}

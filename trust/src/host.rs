//! A certificate for a DNS name: for the API server, which knows nothing of SPIFFE. It proves no
//! identity to anybody of the mesh, since it has no SPIFFE ID.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls::ServerConfig;
use rustls::sign::CertifiedKey;
use rustls_pki_types::CertificateDer;

use crate::material::checked_alpn;
use crate::{KeyError, MaterialError, PrivateKey, tls};

/// A chain of certificates for a DNS name, with the leaf's private key, which `Debug` does not show.
#[derive(Clone)]
pub struct HostCertificate {
    certified: Arc<CertifiedKey>,
    renew_at: SystemTime,
}

impl HostCertificate {
    pub(crate) fn new(
        chain: Vec<CertificateDer<'static>>,
        key: &PrivateKey,
        now: SystemTime,
        not_after: SystemTime,
    ) -> Result<Self, KeyError> {
        let left = not_after.duration_since(now).unwrap_or(Duration::ZERO);
        Ok(Self {
            certified: Arc::new(CertifiedKey::new(chain, key.to_rustls()?)),
            renew_at: now + left / 2,
        })
    }

    /// When half of its life is over.
    #[must_use]
    pub fn renew_at(&self) -> SystemTime {
        self.renew_at
    }

    /// A server's configuration that asks clients for no certificate.
    ///
    /// # Errors
    /// If a protocol of `alpn` is empty or longer than 255 bytes.
    pub fn server_config(&self, alpn: &[&[u8]]) -> Result<ServerConfig, MaterialError> {
        let mut config = tls::server_for_anyone(Arc::clone(&self.certified));
        config.alpn_protocols = checked_alpn(alpn)?;
        Ok(config)
    }

    #[cfg(test)]
    pub(crate) fn chain(&self) -> &[CertificateDer<'static>] {
        &self.certified.cert
    }
}

impl fmt::Debug for HostCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostCertificate")
            .field("renew_at", &self.renew_at)
            .finish_non_exhaustive()
    }
}

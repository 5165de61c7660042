//! A process's own identity: its certificate chain together with the private key.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::sign::CertifiedKey;
use rustls_pki_types::CertificateDer;

use crate::certificate::{Leaf, Signing, Validity};
use crate::verify::MAX_INTERMEDIATES;
use crate::{CertificateError, KeyError, PrivateKey, SpiffeId, TrustDomain};

/// Where in an SVID's life it is renewed, as parts of it: the half, give or take a tenth.
const RENEWAL_EARLIEST: f64 = 0.4;
const RENEWAL_SPAN: f64 = 0.2;

/// A chain of certificates (leaf first, without the root) with the leaf's private key.
///
/// Cloning is cheap. The key is wiped when the last clone is dropped, and `Debug` does not show it.
#[derive(Clone)]
pub struct Svid(Arc<Inner>);

struct Inner {
    id: SpiffeId,
    validity: Validity,
    certified: Arc<CertifiedKey>,
}

impl Svid {
    /// Puts together a chain as an authority issued it and the key of its leaf.
    ///
    /// Whether anybody trusts the chain is not checked here.
    ///
    /// # Errors
    /// If the leaf breaks the rules for leaves or does not belong to the key, or if the rest of the
    /// chain could not have issued it.
    pub fn new(chain: Vec<CertificateDer<'static>>, key: PrivateKey) -> Result<Self, SvidError> {
        let (first, issuers) = chain.split_first().ok_or(CertificateError::NoCertificate)?;
        if issuers.len() > MAX_INTERMEDIATES {
            return Err(SvidError::LongChain {
                intermediates: issuers.len(),
            });
        }
        let leaf = Leaf::parse(first)?;
        if leaf.public_key_info != key.public_key_info() {
            return Err(SvidError::OtherKey);
        }
        let mut validity = leaf.validity;
        for issuer in issuers {
            let signing = Signing::parse(issuer).map_err(SvidError::Issuer)?;
            check_domain(&leaf.id, signing.id.as_ref())?;
            validity = validity.within(signing.validity);
        }
        let certified = Arc::new(CertifiedKey::new(chain, key.to_rustls()?));
        Ok(Self(Arc::new(Inner {
            id: leaf.id,
            validity,
            certified,
        })))
    }

    /// The identity.
    pub fn id(&self) -> &SpiffeId {
        &self.0.id
    }

    /// The certificates, leaf first, without the root.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.0.certified.cert
    }

    /// From when on the whole chain is valid.
    pub fn not_before(&self) -> SystemTime {
        self.0.validity.not_before
    }

    /// Until when the whole chain is valid.
    pub fn not_after(&self) -> SystemTime {
        self.0.validity.not_after
    }

    /// When to get a successor: at half of the life, give or take a tenth of it, so that many
    /// processes that started together do not renew together.
    ///
    /// `jitter` is a random number from 0 (earliest) to 1 (latest); others count as the nearest of
    /// these, and what is no number as 0.5.
    pub fn renew_at(&self, jitter: f64) -> SystemTime {
        let jitter = if jitter.is_nan() {
            0.5
        } else {
            jitter.clamp(0.0, 1.0)
        };
        let Validity {
            not_before,
            not_after,
        } = self.0.validity;
        let life = not_after
            .duration_since(not_before)
            .unwrap_or(Duration::ZERO);
        not_before + life.mul_f64(RENEWAL_EARLIEST + RENEWAL_SPAN * jitter)
    }

    pub(crate) fn certified(&self) -> Arc<CertifiedKey> {
        self.0.certified.clone()
    }
}

fn check_domain(leaf: &SpiffeId, signing: Option<&SpiffeId>) -> Result<(), SvidError> {
    match signing {
        Some(signing) if signing.trust_domain() != leaf.trust_domain() => {
            Err(SvidError::IssuerDomain {
                issuer: signing.trust_domain().clone(),
                leaf: leaf.trust_domain().clone(),
            })
        }
        _ => Ok(()),
    }
}

impl fmt::Debug for Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Svid")
            .field("id", self.id())
            .field("not_before", &self.not_before())
            .field("not_after", &self.not_after())
            .finish_non_exhaustive()
    }
}

/// Why a chain and a key do not make an SVID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SvidError {
    /// The leaf breaks the rules of X509-SVID.
    #[error("the leaf is not an X509-SVID")]
    Leaf(#[from] CertificateError),
    /// A further certificate of the chain is no signing certificate.
    #[error("the chain holds a certificate that cannot issue others")]
    Issuer(#[source] CertificateError),
    /// A signing certificate of another trust domain.
    #[error("the leaf is of trust domain `{leaf}` but its chain of `{issuer}`")]
    IssuerDomain {
        /// The domain in the signing certificate's SPIFFE ID.
        issuer: TrustDomain,
        /// The leaf's domain.
        leaf: TrustDomain,
    },
    /// More certificates than a peer would accept.
    #[error("the chain has {intermediates} certificates after the leaf; at most 6 are accepted")]
    LongChain {
        /// How many follow the leaf.
        intermediates: usize,
    },
    /// The private key is not that of the leaf.
    #[error("the private key does not belong to the leaf")]
    OtherKey,
    /// The private key cannot be used.
    #[error("the private key is not usable")]
    Key(#[from] KeyError),
}

#[cfg(test)]
mod tests;

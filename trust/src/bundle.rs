//! Trust bundles: the roots of one trust domain, and the set of those that a process knows.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, TrustAnchor};

use crate::certificate::{Signing, Validity, pem_of};
use crate::{CertificateError, TrustDomain, spiffe_json};

/// The most roots in one bundle: far more than any rotation needs, few enough to bound the memory
/// that a peer's bundle can take.
const MAX_ROOTS: usize = 64;

/// The roots of one trust domain. Which domain that is, is said by whoever holds the bundle.
///
/// The constructors check each root; a bundle put together from its fields is checked when it
/// enters a [`BundleSet`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    /// Grows with each change of the roots; 0 if unknown.
    pub sequence: u64,
    /// How long a consumer may wait before it looks for a newer bundle.
    pub refresh_hint: Option<Duration>,
    /// The root certificates in DER. None at all means that nobody of this domain is trusted.
    pub roots: Vec<CertificateDer<'static>>,
}

impl Bundle {
    /// A bundle of roots in DER, such as a peer sends.
    ///
    /// # Errors
    /// If a root does not parse, is not a CA with `keyCertSign`, or carries a workload's SPIFFE ID;
    /// or if there are more than 64.
    pub fn new(
        sequence: u64,
        refresh_hint: Option<Duration>,
        roots: Vec<CertificateDer<'static>>,
    ) -> Result<Self, BundleError> {
        let bundle = Self {
            sequence,
            refresh_hint,
            roots,
        };
        bundle.parse()?;
        Ok(bundle)
    }

    /// Reads all certificates of a PEM text; blocks of other kinds are skipped.
    ///
    /// # Errors
    /// As [`Bundle::new`], and if the text has no certificate or is damaged.
    pub fn from_pem(sequence: u64, pem: &[u8]) -> Result<Self, BundleError> {
        let roots: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
        let roots = roots.map_err(|_| BundleError::Pem)?;
        if roots.is_empty() {
            return Err(BundleError::NoRoots);
        }
        Self::new(sequence, None, roots)
    }

    /// The roots as PEM. Sequence and refresh hint have no place there.
    pub fn to_pem(&self) -> String {
        self.roots
            .iter()
            .map(|root| String::clone(&pem_of("CERTIFICATE", root)))
            .collect()
    }

    /// Reads a bundle in the SPIFFE format (a JWK set). Keys for other uses than `x509-svid`, of
    /// unknown types or without a certificate are skipped, as the standard demands.
    ///
    /// # Errors
    /// As [`Bundle::new`], and if the text is not such a document.
    pub fn from_spiffe_json(json: &[u8]) -> Result<Self, BundleError> {
        spiffe_json::parse(json)
    }

    /// The bundle in the SPIFFE format (a JWK set).
    pub fn to_spiffe_json(&self) -> String {
        spiffe_json::print(self)
    }

    fn parse(&self) -> Result<Vec<Anchor>, BundleError> {
        if self.roots.len() > MAX_ROOTS {
            return Err(BundleError::TooMany {
                count: self.roots.len(),
            });
        }
        let anchor = |(index, root)| {
            Anchor::parse(root).map_err(|source| BundleError::Root { index, source })
        };
        self.roots.iter().enumerate().map(anchor).collect()
    }
}

/// A root, ready for verification.
#[derive(Debug)]
pub(crate) struct Anchor {
    pub(crate) anchor: TrustAnchor<'static>,
    pub(crate) validity: Validity,
    trust_domain: Option<TrustDomain>,
}

impl Anchor {
    fn parse(root: &CertificateDer<'static>) -> Result<Self, CertificateError> {
        let signing = Signing::parse(root)?;
        let anchor =
            webpki::anchor_from_trusted_cert(root).map_err(|_| CertificateError::Malformed)?;
        Ok(Self {
            anchor: anchor.to_owned(),
            validity: signing.validity,
            trust_domain: signing.id.map(|id| id.trust_domain().clone()),
        })
    }
}

/// The bundles of all trust domains that a process knows, each checked and ready for use.
///
/// There is no way to get the roots of several domains at once: a certificate is checked against
/// those of its own domain. Cloning is cheap enough for each update, not for each connection.
#[derive(Clone, Default)]
pub struct BundleSet {
    domains: BTreeMap<TrustDomain, Arc<Entry>>,
}

struct Entry {
    bundle: Bundle,
    anchors: Vec<Anchor>,
}

impl BundleSet {
    /// A set without any bundle, by which nobody is trusted.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the bundle of a trust domain; one that was there before is replaced.
    ///
    /// # Errors
    /// As [`Bundle::new`], and if a root carries the SPIFFE ID of another trust domain. The set
    /// then stays as it was.
    pub fn insert(&mut self, domain: TrustDomain, bundle: Bundle) -> Result<(), BundleError> {
        let anchors = bundle.parse()?;
        for (index, anchor) in anchors.iter().enumerate() {
            match &anchor.trust_domain {
                Some(found) if *found != domain => {
                    let found = found.clone();
                    return Err(BundleError::OtherDomain {
                        index,
                        found,
                        expected: domain,
                    });
                }
                _ => {}
            }
        }
        self.domains
            .insert(domain, Arc::new(Entry { bundle, anchors }));
        Ok(())
    }

    /// Takes out the bundle of a trust domain.
    pub fn remove(&mut self, domain: &TrustDomain) -> Option<Bundle> {
        self.domains
            .remove(domain)
            .map(|entry| entry.bundle.clone())
    }

    /// The bundle of a trust domain.
    pub fn get(&self, domain: &TrustDomain) -> Option<&Bundle> {
        self.domains.get(domain).map(|entry| &entry.bundle)
    }

    /// All bundles, in the order of their trust domains' names.
    pub fn iter(&self) -> impl Iterator<Item = (&TrustDomain, &Bundle)> {
        self.domains
            .iter()
            .map(|(domain, entry)| (domain, &entry.bundle))
    }

    pub(crate) fn anchors(&self, domain: &TrustDomain) -> Option<&[Anchor]> {
        self.domains
            .get(domain)
            .map(|entry| entry.anchors.as_slice())
    }
}

impl PartialEq for BundleSet {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for BundleSet {}

impl fmt::Debug for BundleSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let domains = self
            .iter()
            .map(|(domain, bundle)| (domain, bundle.sequence));
        f.debug_map().entries(domains).finish()
    }
}

/// Why a bundle is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BundleError {
    /// The PEM text is damaged.
    #[error("the bundle is not well-formed PEM")]
    Pem,
    /// A PEM text without any certificate.
    #[error("no certificate in PEM form found")]
    NoRoots,
    /// More roots than a bundle may have.
    #[error("the bundle has {count} roots; at most 64 are accepted")]
    TooMany {
        /// How many there are.
        count: usize,
    },
    /// A root that could not be one.
    #[error("root {index} of the bundle is not usable")]
    Root {
        /// Which one, from 0.
        index: usize,
        /// What is wrong with it.
        source: CertificateError,
    },
    /// A root that says that it belongs to another trust domain.
    #[error("root {index} of the bundle of `{expected}` belongs to trust domain `{found}`")]
    OtherDomain {
        /// Which one, from 0.
        index: usize,
        /// The domain in its SPIFFE ID.
        found: TrustDomain,
        /// The domain whose bundle it is in.
        expected: TrustDomain,
    },
    /// Not a document of the SPIFFE format.
    #[error("not a SPIFFE bundle: {reason}")]
    Json {
        /// What is wrong, and where.
        reason: String,
    },
}

#[cfg(test)]
mod tests;

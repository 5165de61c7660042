//! Why there is no authority, or no certificate from it.

use std::fmt;
use std::time::SystemTime;

use crate::{BundleError, CertificateError, KeyError, SpiffeId, SvidError, TrustDomain};

/// Which of an authority's certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CaPart {
    /// The root.
    Root,
    /// The issuing intermediate.
    Intermediate,
}

impl fmt::Display for CaPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Root => "root",
            Self::Intermediate => "intermediate",
        })
    }
}

/// Why there is no authority.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CaError {
    /// No key could be made.
    #[error("no key for the authority")]
    NoKey(#[from] KeyError),
    /// A certificate could not be written or signed.
    #[error("the authority's certificate could not be signed")]
    Sign,
    /// The time is one that certificates cannot hold.
    #[error("certificates cannot be made for this time; is the clock right?")]
    Time,
    /// No certificate in the text.
    #[error("no {part} certificate in PEM form found")]
    NoCertificate {
        /// Which one.
        part: CaPart,
    },
    /// The certificate cannot sign others.
    #[error("the {part} certificate is not usable")]
    Certificate {
        /// Which one.
        part: CaPart,
        /// What is wrong with it.
        source: CertificateError,
    },
    /// The key is unreadable.
    #[error("the {part}'s private key is not usable")]
    Key {
        /// Whose.
        part: CaPart,
        /// What is wrong with it.
        source: KeyError,
    },
    /// The key is not that of the certificate.
    #[error("the {part}'s private key does not belong to its certificate")]
    OtherKey {
        /// Whose.
        part: CaPart,
    },
    /// The certificate belongs to another trust domain.
    #[error("the {part} certificate is of trust domain `{found}`, not `{expected}`")]
    OtherDomain {
        /// Which one.
        part: CaPart,
        /// The domain in its SPIFFE ID.
        found: TrustDomain,
        /// The domain that was asked for.
        expected: TrustDomain,
    },
    /// The certificate is over, or not valid yet.
    #[error("the {part} certificate is not valid now, but from {not_before:?} to {not_after:?}")]
    NotValid {
        /// Which one.
        part: CaPart,
        /// When its time begins.
        not_before: SystemTime,
        /// When its time ends.
        not_after: SystemTime,
    },
    /// The root is no usable bundle.
    #[error("the root is not usable as a trust bundle")]
    Bundle(#[source] BundleError),
    /// What this authority issues is not accepted by a verifier that trusts its root.
    #[error("what the intermediate issues is not trusted by the root: {reason}")]
    Untrusted {
        /// The verifier's reason.
        reason: String,
    },
}

/// Why a certificate is not issued.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IssueError {
    /// The identity is not this authority's to grant.
    #[error("`{id}` is not in this authority's trust domain `{own}`")]
    OtherDomain {
        /// What was asked for.
        id: SpiffeId,
        /// What this authority may grant.
        own: TrustDomain,
    },
    /// The identity of a trust domain itself is for signing certificates only.
    #[error("a SPIFFE ID without a path is not issued to workloads")]
    NoPath,
    /// The grant is for less than a second.
    #[error("the granted lifetime is less than one second")]
    NoLifetime,
    /// The intermediate or the root is over or not valid yet.
    #[error("the authority's certificates are not valid now, but until {not_after:?}; rotate them")]
    NotValid {
        /// When the first of them ends.
        not_after: SystemTime,
    },
    /// The time is one that certificates cannot hold.
    #[error("certificates cannot be made for this time; is the clock right?")]
    Time,
    /// The issuer's note is not one that a certificate holds.
    #[error("the note is not 1 to 80 letters, digits, `:` and `-`")]
    Note,
    /// The certificate could not be written or signed.
    #[error("the certificate could not be signed")]
    Sign,
    /// No key could be made.
    #[error("no key for the certificate")]
    Key(#[from] KeyError),
    /// What was issued does not make an SVID.
    #[error("the issued certificate is not usable")]
    Svid(#[from] SvidError),
}

//! Names of identities: [`TrustDomain`], [`SpiffeId`] and [`WorkloadId`].
//!
//! The parsers are total: each sequence of bytes is either the one spelling of a name or an
//! [`IdError`] that says which byte is wrong. Nothing is normalised, so two names are the same
//! exactly when their bytes are. The rules are those of the SPIFFE-ID standard, sections 2.1–2.4.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The namespace in which Linkspan's own parts run, and thus part of their SPIFFE IDs.
pub const SYSTEM_NAMESPACE: &str = "linkspan-system";

const SCHEME: &str = "spiffe://";
const MAX_TRUST_DOMAIN: usize = 255;
const MAX_ID: usize = 2048;
const MAX_NAMESPACE: usize = 63;
const MAX_SERVICE_ACCOUNT: usize = 253;

/// The name of a trust domain: lower-case letters, digits, `.`, `-` and `_`, 1 to 255 bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// Parses a trust domain from bytes of any origin.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, IdError> {
        if bytes.is_empty() {
            return Err(IdError::EmptyTrustDomain);
        }
        if bytes.len() > MAX_TRUST_DOMAIN {
            return Err(IdError::LongTrustDomain {
                length: bytes.len(),
            });
        }
        let text = ascii_of(bytes, is_trust_domain_byte)
            .map_err(|(byte, at)| IdError::TrustDomainByte { byte, at })?;
        Ok(Self(text.into()))
    }

    /// The name, without a scheme.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The SPIFFE ID of the trust domain itself (no path), which signing certificates carry.
    pub fn id(&self) -> SpiffeId {
        SpiffeId::assemble(self.clone(), "")
    }
}

/// A SPIFFE ID: `spiffe://<trust domain>` and an optional path, at most 2048 bytes.
///
/// Cloning is cheap.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffeId {
    text: Arc<str>,
    trust_domain: TrustDomain,
}

impl SpiffeId {
    /// Parses a SPIFFE ID from bytes of any origin, such as a certificate's URI.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, IdError> {
        if bytes.len() > MAX_ID {
            return Err(IdError::LongId {
                length: bytes.len(),
            });
        }
        let rest = bytes
            .strip_prefix(SCHEME.as_bytes())
            .ok_or(IdError::Scheme)?;
        let slash = rest
            .iter()
            .position(|byte| *byte == b'/')
            .unwrap_or(rest.len());
        let (trust_domain, path) = rest.split_at(slash);
        let trust_domain = TrustDomain::from_bytes(trust_domain)?;
        let path = checked_path(path)?;
        Ok(Self::assemble(trust_domain, path))
    }

    /// The identity of a workload: `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
    pub fn workload(trust_domain: &TrustDomain, id: &WorkloadId) -> Self {
        // Both names are bounded by `WorkloadId`, so the whole stays far below 2048 bytes.
        let path = format!("/ns/{}/sa/{}", id.namespace, id.service_account);
        Self::assemble(trust_domain.clone(), &path)
    }

    /// The identity of the gateways of a trust domain.
    pub fn gateway(trust_domain: &TrustDomain) -> Self {
        Self::system(trust_domain, "linkspan-gateway")
    }

    /// The identity of the federation of a trust domain.
    pub fn federation(trust_domain: &TrustDomain) -> Self {
        Self::system(trust_domain, "linkspan-federation")
    }

    /// The identity with which gateways call for those who have no sidecar.
    pub fn unmeshed_client(trust_domain: &TrustDomain) -> Self {
        Self::system(trust_domain, "linkspan-unmeshed-client")
    }

    /// The identity with which gateways take calls for servers that have no sidecar.
    pub fn unmeshed_server(trust_domain: &TrustDomain) -> Self {
        Self::system(trust_domain, "linkspan-unmeshed-server")
    }

    /// Whether this is the identity of a workload: none of Linkspan's own (of its parts, or of those
    /// whom they stand for), and none of another form, which says nothing of a workload.
    pub fn is_workload(&self) -> bool {
        let id = self.workload_id();
        id.is_some_and(|id| id.namespace() != SYSTEM_NAMESPACE)
    }

    fn system(trust_domain: &TrustDomain, service_account: &str) -> Self {
        let path = format!("/ns/{SYSTEM_NAMESPACE}/sa/{service_account}");
        Self::assemble(trust_domain.clone(), &path)
    }

    /// The caller has checked that `path` is empty or well-formed and not too long.
    fn assemble(trust_domain: TrustDomain, path: &str) -> Self {
        let text = format!("{SCHEME}{trust_domain}{path}").into();
        Self { text, trust_domain }
    }

    /// The trust domain in which this identity lives, and whose roots alone can prove it.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The path with its leading slash; empty for the identity of a trust domain itself.
    pub fn path(&self) -> &str {
        &self.text[SCHEME.len() + self.trust_domain.0.len()..]
    }

    /// The whole ID as a URI.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Namespace and service account, if the path is exactly `/ns/<namespace>/sa/<account>`.
    pub fn workload_id(&self) -> Option<WorkloadId> {
        let (namespace, service_account) = self.path().strip_prefix("/ns/")?.split_once("/sa/")?;
        WorkloadId::new(namespace, service_account).ok()
    }
}

/// Which workload an identity stands for, within its trust domain.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct WorkloadId {
    namespace: Arc<str>,
    service_account: Arc<str>,
}

impl WorkloadId {
    /// Names a workload as Kubernetes does: the namespace is a DNS label (RFC 1123, at most 63
    /// bytes), the service account a DNS subdomain (at most 253 bytes).
    pub fn new(namespace: &str, service_account: &str) -> Result<Self, IdError> {
        if namespace.len() > MAX_NAMESPACE || !is_label(namespace) {
            return Err(IdError::Namespace);
        }
        if service_account.len() > MAX_SERVICE_ACCOUNT || !service_account.split('.').all(is_label)
        {
            return Err(IdError::ServiceAccount);
        }
        Ok(Self {
            namespace: namespace.into(),
            service_account: service_account.into(),
        })
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The service account.
    pub fn service_account(&self) -> &str {
        &self.service_account
    }
}

/// Why a text is not a trust domain, a SPIFFE ID or a workload's name.
///
/// The messages hold no part of the text but the one offending byte, so that a peer's bytes can be
/// reported safely.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IdError {
    /// The scheme is missing or another one; it is case-sensitive.
    #[error("a SPIFFE ID begins with `spiffe://`")]
    Scheme,
    /// There is nothing where the trust domain belongs.
    #[error("the trust domain is empty")]
    EmptyTrustDomain,
    /// The trust domain is longer than 255 bytes.
    #[error("the trust domain has {length} bytes; at most 255 are allowed")]
    LongTrustDomain {
        /// Its length in bytes.
        length: usize,
    },
    /// The trust domain has a byte other than `a-z 0-9 . - _`.
    #[error(
        "byte {byte:#04x} at position {at} of the trust domain; \
         only a-z, 0-9, `.`, `-` and `_` are allowed"
    )]
    TrustDomainByte {
        /// The byte.
        byte: u8,
        /// Its offset within the trust domain.
        at: usize,
    },
    /// The whole ID is longer than 2048 bytes.
    #[error("the SPIFFE ID has {length} bytes; at most 2048 are allowed")]
    LongId {
        /// Its length in bytes.
        length: usize,
    },
    /// The path has a byte other than `a-z A-Z 0-9 . - _ /`.
    #[error(
        "byte {byte:#04x} at position {at} of the path; \
         only a-z, A-Z, 0-9, `.`, `-`, `_` and `/` are allowed"
    )]
    PathByte {
        /// The byte.
        byte: u8,
        /// Its offset within the path.
        at: usize,
    },
    /// Two slashes in a row.
    #[error("the path has an empty segment")]
    EmptySegment,
    /// A segment is `.` or `..`.
    #[error("the path has a segment `.` or `..`")]
    DotSegment,
    /// The path, or the ID without a path, ends with a slash.
    #[error("the path ends with `/`")]
    TrailingSlash,
    /// The namespace is not a DNS label.
    #[error(
        "a namespace is 1 to 63 of a-z, 0-9 and `-`, and begins and ends with a letter or digit"
    )]
    Namespace,
    /// The service account is not a DNS subdomain.
    #[error(
        "a service account is 1 to 253 of a-z, 0-9, `-` and `.`, and each part between dots \
         begins and ends with a letter or digit"
    )]
    ServiceAccount,
}

fn is_trust_domain_byte(byte: u8) -> bool {
    matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_')
}

fn is_path_byte(byte: u8) -> bool {
    byte.is_ascii_uppercase() || is_trust_domain_byte(byte) || byte == b'/'
}

/// The text, if each byte is allowed; else the first that is not, and where. `allowed` must admit
/// ASCII only.
fn ascii_of(bytes: &[u8], allowed: fn(u8) -> bool) -> Result<&str, (u8, usize)> {
    if let Some(at) = bytes.iter().position(|byte| !allowed(*byte)) {
        return Err((bytes[at], at));
    }
    Ok(std::str::from_utf8(bytes).expect("each byte was found to be ASCII"))
}

/// A path that is empty or begins with a slash.
fn checked_path(path: &[u8]) -> Result<&str, IdError> {
    let path = ascii_of(path, is_path_byte).map_err(|(byte, at)| IdError::PathByte { byte, at })?;
    let Some(segments) = path.strip_prefix('/') else {
        return Ok(path);
    };
    if path.ends_with('/') {
        return Err(IdError::TrailingSlash);
    }
    for segment in segments.split('/') {
        match segment {
            "" => return Err(IdError::EmptySegment),
            "." | ".." => return Err(IdError::DotSegment),
            _ => {}
        }
    }
    Ok(path)
}

/// A part of a DNS name as Kubernetes spells it.
fn is_label(label: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !label.is_empty()
        && label.bytes().all(inner)
        && !label.starts_with('-')
        && !label.ends_with('-')
}

impl FromStr for TrustDomain {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        Self::from_bytes(text.as_bytes())
    }
}

impl FromStr for SpiffeId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        Self::from_bytes(text.as_bytes())
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.text, f)
    }
}

impl fmt::Display for WorkloadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.service_account)
    }
}

impl Serialize for TrustDomain {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for TrustDomain {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

impl Serialize for SpiffeId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for SpiffeId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests;

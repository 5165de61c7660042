//! The names that routing speaks of, as types: clusters, services, endpoints.
//!
//! Every parser is total (any input gives a value or an error, never a panic), `Display`
//! gives back what was parsed, and cloning costs one reference count.

use std::borrow::Borrow;
use std::fmt;
use std::ops::Deref;
use std::str::FromStr;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Longest DNS label, RFC 1035 section 2.3.4.
const MAX_LABEL: usize = 63;
/// Longest dotted name, as Kubernetes limits DNS subdomains.
const MAX_NAME: usize = 253;
/// Characters of SHA-256 that stand for a dotted cluster id: 100 bits.
const CLUSTER_HASH: usize = 20;
/// Characters that 16 bytes take in base32.
const ENDPOINT_ID: usize = 26;

/// Why a text is not a name of the wanted kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{found:?} is not {kind}: {problem}")]
pub struct IdError {
    kind: &'static str,
    found: String,
    problem: &'static str,
}

impl IdError {
    fn new(kind: &'static str, found: &str, problem: &'static str) -> Self {
        // The text may come from a peer: keep enough to recognise it, and no more.
        let found = found.chars().take(80).collect();
        Self {
            kind,
            found,
            problem,
        }
    }
}

/// The conversions that every name kept as one `Arc<str>` has.
macro_rules! text_id {
    ($name:ident, $kind:literal, $check:expr) => {
        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                let check: fn(&str) -> Result<(), &'static str> = $check;
                match check(text) {
                    Ok(()) => Ok(Self(Arc::from(text))),
                    Err(problem) => Err(IdError::new($kind, text, problem)),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        text_serde!($name);
    };
}

/// Serde as the text that `Display` writes and `FromStr` reads.
macro_rules! text_serde {
    ($name:ident) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

/// A cluster of the clusterset: a DNS label of at most 63 characters, or several of them
/// joined by dots, at most 253 in all.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterId(Arc<str>);

text_id!(ClusterId, "a cluster id", check_name);

impl ClusterId {
    /// What stands for the cluster where one DNS label is needed: the id itself where it is one
    /// label, else the first 20 base32 characters of its SHA-256.
    pub fn label(&self) -> ClusterLabel {
        if self.0.contains('.') {
            let mut text = base32(digest(&SHA256, self.0.as_bytes()).as_ref());
            text.truncate(CLUSTER_HASH);
            ClusterLabel(Arc::from(text))
        } else {
            ClusterLabel(Arc::clone(&self.0))
        }
    }
}

/// A cluster as one DNS label, see [`ClusterId::label`].
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterLabel(Arc<str>);

text_id!(ClusterLabel, "a cluster label", check_label);

/// One DNS label (RFC 1123, lower case): letters, digits and inner hyphens, at most 63.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DnsLabel(Arc<str>);

text_id!(DnsLabel, "a DNS label", check_label);

impl Deref for DnsLabel {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

/// A service by namespace and name: the same service in every cluster of the clusterset.
/// As text `namespace/name`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceKey {
    /// The namespace.
    pub namespace: DnsLabel,
    /// The name in the namespace.
    pub name: DnsLabel,
}

impl ServiceKey {
    /// Checks both parts.
    ///
    /// # Errors
    /// If either is not a DNS label.
    pub fn new(namespace: &str, name: &str) -> Result<Self, IdError> {
        Ok(Self {
            namespace: namespace.parse()?,
            name: name.parse()?,
        })
    }
}

impl FromStr for ServiceKey {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let (namespace, name) = text
            .split_once('/')
            .ok_or_else(|| IdError::new("a service", text, "write it as namespace/name"))?;
        Self::new(namespace, name)
    }
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Debug for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ServiceKey({self})")
    }
}

text_serde!(ServiceKey);

/// An endpoint: 26 lower-case base32 characters that stand for its workload's UID.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointId(Arc<str>);

text_id!(EndpointId, "an endpoint id", check_endpoint_id);

impl EndpointId {
    /// The id of the workload with this UID: the 16 bytes of a UUID written in the usual form
    /// (8-4-4-4-12 hexadecimal digits), else the first 16 bytes of the text's SHA-256.
    pub fn from_uid(uid: &str) -> Self {
        let text = match uuid_bytes(uid) {
            Some(bytes) => base32(&bytes),
            None => base32(&digest(&SHA256, uid.as_bytes()).as_ref()[..16]),
        };
        Self(Arc::from(text))
    }
}

fn check_label(text: &str) -> Result<(), &'static str> {
    let bytes = text.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
        return Err("it is empty");
    };
    if bytes.len() > MAX_LABEL {
        return Err("a label has at most 63 characters");
    }
    if !bytes
        .iter()
        .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
    {
        return Err("use lower-case letters, digits and hyphens only");
    }
    if *first == b'-' || *last == b'-' {
        return Err("it begins or ends with a hyphen");
    }
    Ok(())
}

fn check_name(text: &str) -> Result<(), &'static str> {
    if text.len() > MAX_NAME {
        return Err("it has more than 253 characters");
    }
    text.split('.').try_for_each(check_label)
}

fn check_endpoint_id(text: &str) -> Result<(), &'static str> {
    if text.len() != ENDPOINT_ID {
        return Err("it must have 26 characters");
    }
    if !text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'2'..=b'7')) {
        return Err("use the lower-case base32 characters a-z and 2-7 only");
    }
    Ok(())
}

/// The bytes of a UUID in its usual textual form (RFC 9562 section 4), in either case.
fn uuid_bytes(text: &str) -> Option<[u8; 16]> {
    const HYPHENS: [usize; 4] = [8, 13, 18, 23];
    if text.len() != 36 {
        return None;
    }
    let mut bytes = [0u8; 16];
    let mut digits = 0;
    for (at, byte) in text.bytes().enumerate() {
        if HYPHENS.contains(&at) {
            if byte != b'-' {
                return None;
            }
            continue;
        }
        let digit = char::from(byte).to_digit(16)? as u8;
        bytes[digits / 2] = bytes[digits / 2] << 4 | digit;
        digits += 1;
    }
    Some(bytes)
}

/// RFC 4648 base32, lower case, without padding.
fn base32(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let mut text = String::with_capacity((bytes.len() * 8).div_ceil(5));
    let (mut held, mut bits) = (0u32, 0u32);
    for byte in bytes {
        held = (held << 8 | u32::from(*byte)) & 0xfff;
        bits += 8;
        while bits >= 5 {
            bits -= 5;
            text.push(char::from(ALPHABET[(held >> bits & 31) as usize]));
        }
    }
    if bits > 0 {
        text.push(char::from(ALPHABET[(held << (5 - bits) & 31) as usize]));
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn base32_matches_rfc_4648_vectors() {
        for (plain, encoded) in [
            ("", ""),
            ("f", "my"),
            ("fo", "mzxq"),
            ("foobar", "mzxw6ytboi"),
        ] {
            assert_eq!(base32(plain.as_bytes()), encoded);
        }
    }

    #[test]
    fn a_uuid_in_either_case_is_one_endpoint() {
        let lower = EndpointId::from_uid("123e4567-e89b-12d3-a456-426614174000");
        assert_eq!(
            lower,
            EndpointId::from_uid("123E4567-E89B-12D3-A456-426614174000")
        );
        assert_eq!(lower.as_str(), "ci7ekz7itmjnhjcwijtbif2aaa");
    }

    #[test]
    fn any_other_uid_is_hashed_to_the_same_length() {
        let id = EndpointId::from_uid("checkout-1");
        assert_eq!(id, id.as_str().parse().unwrap());
        assert_ne!(id, EndpointId::from_uid("checkout-2"));
        assert_ne!(
            EndpointId::from_uid("123e4567+e89b-12d3-a456-426614174000"),
            EndpointId::from_uid("123e4567-e89b-12d3-a456-426614174000")
        );
    }

    #[test]
    fn only_dotted_cluster_ids_are_hashed() {
        let plain: ClusterId = "east".parse().unwrap();
        assert_eq!(plain.label().as_str(), "east");
        let dotted: ClusterId = "east.example".parse().unwrap();
        assert_eq!(dotted.label().as_str().len(), CLUSTER_HASH);
        assert_eq!(dotted.label(), dotted.label().as_str().parse().unwrap());
    }

    #[test]
    fn odd_names_are_refused() {
        let long = "a".repeat(64);
        for text in ["", "-a", "a-", "A", "a_b", "a b", "ä", "a..b", ".", &long] {
            assert!(text.parse::<ClusterId>().is_err(), "{text:?}");
        }
        for text in ["a", "a/", "/a", "a/b/c", "a/b.c"] {
            assert!(text.parse::<ServiceKey>().is_err(), "{text:?}");
        }
        assert!("a.b".parse::<ClusterLabel>().is_err());
    }

    #[test]
    fn an_error_quotes_a_bounded_part() {
        let error = "\n".repeat(100_000).parse::<ClusterId>().unwrap_err();
        assert!(error.to_string().len() < 300);
    }

    proptest! {
        #[test]
        fn parsers_are_total_and_display_what_they_read(text in "\\PC{0,80}") {
            if let Ok(id) = text.parse::<ClusterId>() { prop_assert_eq!(id.to_string(), text.clone()); }
            if let Ok(id) = text.parse::<ClusterLabel>() { prop_assert_eq!(id.to_string(), text.clone()); }
            if let Ok(id) = text.parse::<ServiceKey>() { prop_assert_eq!(id.to_string(), text.clone()); }
            if let Ok(id) = text.parse::<EndpointId>() { prop_assert_eq!(id.to_string(), text); }
        }

        #[test]
        fn good_names_round_trip(
            cluster in "[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?(\\.[a-z0-9]{1,9}){0,3}",
            service in "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?/[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?",
            endpoint in "[a-z2-7]{26}",
        ) {
            let cluster: ClusterId = cluster.parse().unwrap();
            prop_assert_eq!(cluster.clone(), cluster.to_string().parse().unwrap());
            prop_assert!(cluster.label().as_str().parse::<ClusterLabel>().is_ok());
            let key: ServiceKey = service.parse().unwrap();
            prop_assert_eq!(serde_json::to_string(&key).unwrap(), format!("\"{service}\""));
            prop_assert_eq!(key, serde_json::from_str(&format!("\"{service}\"")).unwrap());
            prop_assert_eq!(endpoint.parse::<EndpointId>().unwrap().to_string(), endpoint);
        }

        #[test]
        fn every_uid_gives_a_well_formed_endpoint_id(uid in "\\PC{0,60}") {
            let id = EndpointId::from_uid(&uid);
            prop_assert_eq!(id.clone(), id.to_string().parse().unwrap());
        }
    }
}

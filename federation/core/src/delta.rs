//! Records that can be compared without looking at their bodies: each has a key and the hash
//! of its encoded body, so a subscriber that says which hashes it holds is sent no body twice.

use std::collections::BTreeMap;
use std::fmt;

use aws_lc_rs::digest::{SHA256, digest};

/// The first 16 bytes of the SHA-256 of a record's encoded body.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordHash(pub [u8; 16]);

impl RecordHash {
    /// The hash of an encoded body.
    pub fn of(encoded: &[u8]) -> Self {
        let mut hash = [0; 16];
        hash.copy_from_slice(&digest(&SHA256, encoded).as_ref()[..16]);
        Self(hash)
    }

    /// A hash as the wire has it; `None` unless it has 16 bytes.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for RecordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The hashes that a subscriber holds.
pub type Known<K> = BTreeMap<K, RecordHash>;

//! Linking by invitation, as far as it is pure: what an invitation says, how holding one is
//! proved, whether two clusters fit each other, and the book of what was offered and accepted.
//!
//! ```text
//! invite ─► open ─accept (compare and swap)─► Pending ─first tunnel─► Active
//!             └── expires ──────────────────────┴── expires: unlinked
//! ```

mod book;
mod fit;
mod invitation;
mod proof;
#[cfg(test)]
mod tests;

use std::fmt;

pub use book::{
    Accepter, Consumed, Invited, Joined, LinkBook, MAX_INVITATIONS, MIN_PENDING, Offer,
    TOMBSTONE_LIFE, Tombstone,
};
pub use fit::{Candidate, Clocks, Site, check_clock, check_fit};
pub use invitation::{BadInvitationId, Invitation, InvitationId, Seed};
pub use proof::{Party, RootsDigest, Transcript, public_key, roots_digest, sign, verify};

/// What is wrong with joining, for machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Problem {
    /// Not an invitation, or not all of it.
    Malformed,
    /// Its time is over.
    Expired,
    /// Accepted by somebody else already.
    Used,
    /// The inviter does not know it (any more).
    Unknown,
    /// Bound to another cluster than the one that accepts, or accepted where it was made.
    OtherPeer,
    /// No gateway of the inviter could be reached.
    Unreachable,
    /// No own gateway is there to dial with, or to be dialled.
    NoGateway,
    /// Both have one cluster id, or there is a link to a cluster of that id.
    DuplicateCluster,
    /// The clusters are of different clustersets.
    OtherClusterset,
    /// The trust domain is the other side's own, or another link's.
    TrustDomainTaken,
    /// The versions are too far apart.
    Version,
    /// The clocks are too far apart.
    ClockSkew,
    /// Whoever answered does not hold the inviter's roots.
    WrongRoots,
    /// The proof does not fit the invitation and this session.
    BadProof,
    /// It cannot be done now: starting, stopping, no room, no answer. The same may be tried again.
    Unavailable,
    /// What the other side said cannot be used.
    Garbled,
    /// It was tried, and failed on this side: a disk, a file.
    Failed,
}

/// Why two clusters are not linked: what happened, to what, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// For machines.
    pub problem: Problem,
    /// For people.
    pub message: String,
}

impl Refusal {
    /// A refusal.
    pub fn new(problem: Problem, message: impl Into<String>) -> Self {
        Self {
            problem,
            message: message.into(),
        }
    }
}

/// Lower-case hexadecimal, for identifiers and digests.
struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Reads what [`Hex`] writes; `None` for anything else.
fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let text = text.as_bytes();
    if text.len() != 2 * N {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

/// Serde as lower-case hexadecimal.
macro_rules! hex_serde {
    ($name:ident) => {
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(&crate::join::Hex(&self.0))
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = String::deserialize(d)?;
                let bytes = crate::join::from_hex(&text);
                let wrong = || serde::de::Error::custom("not hexadecimal of the right length");
                bytes.map(Self).ok_or_else(wrong)
            }
        }
    };
}
use hex_serde;

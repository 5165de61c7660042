//! What an invitation says. How it is written is the server's part.

use std::fmt;
use std::str::FromStr;
use std::time::SystemTime;

use zeroize::Zeroizing;

use super::{Hex, from_hex, hex_serde};
use crate::model::{Address, ClusterId, TrustDomain};

/// Names an invitation; random, not secret.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InvitationId(pub [u8; 16]);
hex_serde!(InvitationId);

impl fmt::Display for InvitationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Hex(&self.0).fmt(f)
    }
}

/// It is not the 32 hexadecimal digits that name an invitation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an invitation's id has 32 hexadecimal digits; `linkspan link list` shows it")]
pub struct BadInvitationId;

impl FromStr for InvitationId {
    type Err = BadInvitationId;

    fn from_str(text: &str) -> Result<Self, BadInvitationId> {
        from_hex(text).map(Self).ok_or(BadInvitationId)
    }
}

impl fmt::Debug for InvitationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InvitationId({self})")
    }
}

/// The secret of an invitation: the seed of an Ed25519 key. Wiped on drop, never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Seed(Zeroizing<[u8; 32]>);

impl Seed {
    /// A seed of random bytes, which the caller provides.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The secret itself.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seed(hidden)")
    }
}

/// An invitation as its holder reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invitation {
    /// Who invites.
    pub cluster: ClusterId,
    /// The inviter's clusterset.
    pub clusterset: String,
    /// The inviter's trust domain.
    pub trust_domain: TrustDomain,
    /// Where the inviter's gateways can be dialled; at least one.
    pub addresses: Vec<Address>,
    /// SHA-256 of the `SubjectPublicKeyInfo` of each of the inviter's roots; at least one.
    pub pins: Vec<[u8; 32]>,
    /// Its name.
    pub id: InvitationId,
    /// Its secret.
    pub seed: Seed,
    /// When it was made, in whole seconds, by the inviter's clock.
    pub created: SystemTime,
    /// Until when it can be used, in whole seconds, by the inviter's clock.
    pub expires: SystemTime,
    /// The only cluster that may accept it.
    pub peer: Option<ClusterId>,
}

//! How the accepter proves that it holds the invitation, to this inviter, in this session.

use std::fmt;

use aws_lc_rs::digest::{Context, SHA256};
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};

use super::{Hex, InvitationId, Seed, hex_serde};
use crate::model::{ClusterId, TrustDomain};

/// Separates these signatures from any others that the key could make.
const LABEL: &[u8] = b"linkspan join proof v1";

/// SHA-256 of a set of roots, whatever their order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RootsDigest(pub [u8; 32]);
hex_serde!(RootsDigest);

impl fmt::Display for RootsDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Hex(&self.0).fmt(f)
    }
}

impl fmt::Debug for RootsDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RootsDigest({self})")
    }
}

/// Digest of roots in DER.
pub fn roots_digest<R: AsRef<[u8]>>(roots: &[R]) -> RootsDigest {
    let mut sorted: Vec<&[u8]> = roots.iter().map(AsRef::as_ref).collect();
    sorted.sort_unstable();
    sorted.dedup();
    let mut hash = Context::new(&SHA256);
    for root in sorted {
        field(root, |bytes| hash.update(bytes));
    }
    let mut digest = [0; 32];
    digest.copy_from_slice(hash.finish().as_ref());
    RootsDigest(digest)
}

/// One side of a join.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Party {
    /// Its cluster id.
    pub cluster: ClusterId,
    /// Its trust domain.
    pub trust_domain: TrustDomain,
    /// Its roots.
    pub roots: RootsDigest,
}

/// What is signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transcript {
    /// Exported from the TLS session in which the proof travels.
    pub exporter: [u8; 32],
    /// Which invitation.
    pub invitation: InvitationId,
    /// Who made it.
    pub inviter: Party,
    /// Who accepts it.
    pub accepter: Party,
}

impl Transcript {
    /// Each field with its length in front, so that no two transcripts are one byte string.
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut add = |part: &[u8]| field(part, |piece| bytes.extend_from_slice(piece));
        add(LABEL);
        add(&self.exporter);
        add(&self.invitation.0);
        for party in [&self.inviter, &self.accepter] {
            add(party.cluster.as_str().as_bytes());
            add(party.trust_domain.as_str().as_bytes());
            add(&party.roots.0);
        }
        bytes
    }
}

fn field(part: &[u8], mut add: impl FnMut(&[u8])) {
    add(&(part.len() as u64).to_be_bytes());
    add(part);
}

fn key(seed: &Seed) -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(seed.expose()).expect("any 32 bytes are a seed")
}

/// The public key of a seed, which is all that the inviter keeps of it.
pub fn public_key(seed: &Seed) -> [u8; 32] {
    let mut public = [0; 32];
    public.copy_from_slice(key(seed).public_key().as_ref());
    public
}

/// Signs a transcript.
pub fn sign(seed: &Seed, transcript: &Transcript) -> Vec<u8> {
    key(seed).sign(&transcript.bytes()).as_ref().to_vec()
}

/// Whether `proof` was made for exactly this transcript by the seed of `public_key`.
pub fn verify(public_key: &[u8; 32], transcript: &Transcript, proof: &[u8]) -> bool {
    UnparsedPublicKey::new(&ED25519, public_key)
        .verify(&transcript.bytes(), proof)
        .is_ok()
}

//! The roots that a peer announced, and upon which declaration.
//!
//! They outlive snapshots, withdrawals and restarts: a peer must never bring back roots that it
//! replaced, by leaving them out or by waiting. They end with the declaration upon which they
//! were announced: who edits a ClusterLink's bundle drops what came over the link before.

use crate::delta::RecordHash;
use crate::model::{Bundle, ClusterId, Link};

/// Announced roots, as they are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announced {
    /// The peer.
    pub cluster: ClusterId,
    /// The declaration that was in force ([`declaration`]).
    pub on: RecordHash,
    /// The roots.
    pub bundle: Bundle,
}

/// Digest of the trust domain and roots that a link declares.
pub fn declaration(link: &Link) -> RecordHash {
    let mut text = link.trust_domain.as_str().as_bytes().to_vec();
    for root in &link.bundle.roots {
        // The length keeps one root's end from being another's beginning.
        text.extend((root.len() as u64).to_be_bytes());
        text.extend(root.iter());
    }
    RecordHash::of(&text)
}

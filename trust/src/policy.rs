//! Which identities are accepted, once they are proved. There is no permissive default.

use std::collections::BTreeSet;

use crate::{SpiffeId, TrustDomain};

/// Which proved identities are accepted. An empty policy accepts nobody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TrustPolicy {
    /// These identities and no others.
    Exactly(BTreeSet<SpiffeId>),
    /// Each identity of these trust domains.
    Domains(BTreeSet<TrustDomain>),
    /// Whatever at least one of these accepts.
    AnyOf(Vec<Self>),
}

impl TrustPolicy {
    /// Accepts one identity.
    pub fn only(id: SpiffeId) -> Self {
        Self::Exactly(BTreeSet::from([id]))
    }

    /// Accepts each identity of one trust domain.
    pub fn domain(trust_domain: TrustDomain) -> Self {
        Self::Domains(BTreeSet::from([trust_domain]))
    }

    /// Whether `id`, already proved, is accepted.
    pub fn accepts(&self, id: &SpiffeId) -> bool {
        match self {
            Self::Exactly(ids) => ids.contains(id),
            Self::Domains(domains) => domains.contains(id.trust_domain()),
            Self::AnyOf(policies) => policies.iter().any(|policy| policy.accepts(id)),
        }
    }
}

/// What a server asks of its clients' certificates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientPolicy {
    /// A client must prove an identity that the policy accepts.
    Required(TrustPolicy),
    /// A client may come without a certificate; one that it does present must be proved and
    /// accepted, or the handshake fails.
    Optional(TrustPolicy),
}

//! May this caller reach this service? So far by trust domain only.

use std::collections::BTreeSet;
use std::fmt;

use linkspan_trust::{SpiffeId, TrustDomain};

/// The answer, and the rule that gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Allowed: the caller is of the own trust domain.
    OwnDomain,
    /// Allowed: the service is exported to the cluster of the caller's trust domain.
    Exported,
    /// Refused: the service is not exported to the caller's trust domain.
    NotExported,
}

impl Verdict {
    /// Whether the caller may pass.
    pub fn is_allowed(self) -> bool {
        matches!(self, Self::OwnDomain | Self::Exported)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OwnDomain => "allowed: own trust domain",
            Self::Exported => "allowed: exported to the caller's trust domain",
            Self::NotExported => "refused: not exported to the caller's trust domain",
        })
    }
}

/// Whether `caller` may reach a service of trust domain `own` that is exported to `exported_to`.
pub fn authorize(
    own: &TrustDomain,
    exported_to: &BTreeSet<TrustDomain>,
    caller: &SpiffeId,
) -> Verdict {
    let domain = caller.trust_domain();
    if domain == own {
        Verdict::OwnDomain
    } else if exported_to.contains(domain) {
        Verdict::Exported
    } else {
        Verdict::NotExported
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_domains_need_an_export() {
        let own: TrustDomain = "east.test".parse().unwrap();
        let exported = BTreeSet::from(["west.test".parse::<TrustDomain>().unwrap()]);
        let verdict = |domain: &str| {
            let caller = format!("spiffe://{domain}/ns/shop/sa/frontend")
                .parse()
                .unwrap();
            authorize(&own, &exported, &caller)
        };
        assert_eq!(verdict("east.test"), Verdict::OwnDomain);
        assert_eq!(verdict("west.test"), Verdict::Exported);
        assert_eq!(verdict("north.test"), Verdict::NotExported);
        assert!(!Verdict::NotExported.is_allowed());
    }
}

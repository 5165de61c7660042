//! May this caller reach this service? So far by trust domain, and by whether somebody without a
//! sidecar may.

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
    /// Allowed: the caller has no sidecar, is of one of these domains, and the service admits such.
    UnmeshedAdmitted,
    /// Refused: the service is not exported to the caller's trust domain.
    NotExported,
    /// Refused: the caller has no sidecar, and the service does not admit such.
    Unmeshed,
    /// Refused: the caller is no workload, such as one of Linkspan's own parts, which call no service.
    NoWorkload,
}

impl Verdict {
    /// Whether the caller may pass.
    pub fn is_allowed(self) -> bool {
        matches!(
            self,
            Self::OwnDomain | Self::Exported | Self::UnmeshedAdmitted
        )
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OwnDomain => "allowed: own trust domain",
            Self::Exported => "allowed: exported to the caller's trust domain",
            Self::UnmeshedAdmitted => "allowed: unmeshed clients are admitted",
            Self::NotExported => "refused: not exported to the caller's trust domain",
            Self::Unmeshed => "refused: unmeshed clients are not admitted",
            Self::NoWorkload => "refused: the caller is no workload",
        })
    }
}

/// Whom a service is for.
#[derive(Debug, Clone, Copy)]
pub struct Audience<'a> {
    /// The trust domain of its cluster.
    pub own: &'a TrustDomain,
    /// Those of the clusters to which it is exported.
    pub exported_to: &'a BTreeSet<TrustDomain>,
    /// Whether it admits callers without a sidecar, for whom gateways call.
    pub unmeshed_clients: bool,
}

/// Whether `caller` may reach a service that is for `audience`.
///
/// That a trust domain is admitted means its workloads. No identity in the system namespace is
/// meant by that, and none that is not of a workload's form: gateways call for others under an
/// identity of its own, which must be admitted by name, and the parts themselves call nothing.
pub fn authorize(audience: Audience<'_>, caller: &SpiffeId) -> Verdict {
    let domain = caller.trust_domain();
    let admitted = if domain == audience.own {
        Verdict::OwnDomain
    } else if audience.exported_to.contains(domain) {
        Verdict::Exported
    } else {
        return Verdict::NotExported;
    };
    if caller.is_workload() {
        admitted
    } else if *caller != SpiffeId::unmeshed_client(domain) {
        Verdict::NoWorkload
    } else if audience.unmeshed_clients {
        Verdict::UnmeshedAdmitted
    } else {
        Verdict::Unmeshed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(unmeshed_clients: bool, caller: SpiffeId) -> Verdict {
        let exported_to = BTreeSet::from(["west.test".parse().unwrap()]);
        let audience = Audience {
            own: &"east.test".parse().unwrap(),
            exported_to: &exported_to,
            unmeshed_clients,
        };
        authorize(audience, &caller)
    }

    fn domain(name: &str) -> TrustDomain {
        name.parse().unwrap()
    }

    #[test]
    fn other_domains_need_an_export() {
        let frontend = |domain: &str| {
            let id = format!("spiffe://{domain}/ns/shop/sa/frontend");
            ask(false, id.parse().unwrap())
        };
        assert_eq!(frontend("east.test"), Verdict::OwnDomain);
        assert_eq!(frontend("west.test"), Verdict::Exported);
        assert_eq!(frontend("north.test"), Verdict::NotExported);
        assert!(!Verdict::NotExported.is_allowed());
    }

    #[test]
    fn unmeshed_clients_are_admitted_by_name_only() {
        let verdict = |name: &str, admitted| {
            let caller = SpiffeId::unmeshed_client(&domain(name));
            ask(admitted, caller)
        };
        assert_eq!(verdict("east.test", false), Verdict::Unmeshed);
        assert_eq!(verdict("west.test", false), Verdict::Unmeshed);
        assert_eq!(verdict("east.test", true), Verdict::UnmeshedAdmitted);
        assert_eq!(verdict("west.test", true), Verdict::UnmeshedAdmitted);
        assert_eq!(verdict("north.test", true), Verdict::NotExported);
        assert!(!Verdict::Unmeshed.is_allowed());
    }

    #[test]
    fn only_workloads_call_services() {
        for name in ["east.test", "west.test"] {
            let domain = domain(name);
            for path in [
                "/ns/linkspan-system/sa/linkspan-gateway",
                "/ns/linkspan-system/sa/linkspan-federation",
                "/ns/linkspan-system/sa/other",
                "/ns/shop/sa/frontend/more",
                "/ns/shop",
                "/frontend",
                "",
            ] {
                let caller = format!("spiffe://{domain}{path}").parse().unwrap();
                assert_eq!(ask(true, caller), Verdict::NoWorkload, "{path}");
            }
        }
        assert!(!Verdict::NoWorkload.is_allowed());
    }
}

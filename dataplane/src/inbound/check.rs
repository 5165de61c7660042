//! May this caller go there? Pure.

use crate::{
    discover::{InboundPort, InboundService},
    target::TargetName,
};
use linkspan_routing::{Audience, ClusterLabel, EndpointId, ServiceKey, Verdict, authorize};
use linkspan_trust::{SpiffeId, TrustDomain};

/// Which endpoint a workload is.
#[derive(Clone, Debug)]
pub struct Own {
    /// Its id.
    pub endpoint: EndpointId,
    /// Its cluster.
    pub cluster: ClusterLabel,
    /// Its trust domain.
    pub trust_domain: TrustDomain,
}

/// A service port that a caller may reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Passage {
    /// The service.
    pub(super) service: ServiceKey,
    /// Its port.
    pub(super) port: InboundPort,
}

/// Why a caller may not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    /// The target is not a service.
    #[error("the target is not a service")]
    NoService,
    /// The target is in another cluster.
    #[error("the target is in another cluster")]
    OtherCluster,
    /// The target is another endpoint.
    #[error("the target is another endpoint")]
    OtherEndpoint,
    /// The workload does not serve the service.
    #[error("this workload does not serve the service")]
    NotServed,
    /// The service has no such port.
    #[error("the service has no such port")]
    NoPort,
    /// The service is not for the caller.
    #[error("{0}")]
    NotAllowed(Verdict),
}

impl Refusal {
    /// Whether the caller's knowledge is merely behind or wrong, so that it may do better elsewhere.
    pub(super) fn is_mistake(self) -> bool {
        !matches!(self, Self::NotAllowed(_))
    }
}

/// The service port that a caller asks for, if it may.
pub(super) fn passage(
    own: &Own,
    served: &[InboundService],
    caller: &SpiffeId,
    target: &TargetName,
) -> Result<Passage, Refusal> {
    let TargetName::Service(target) = target else {
        return Err(Refusal::NoService);
    };
    if target.cluster != own.cluster {
        return Err(Refusal::OtherCluster);
    }
    // Without one, the ingress has chosen this endpoint.
    if target
        .endpoint
        .as_ref()
        .is_some_and(|endpoint| *endpoint != own.endpoint)
    {
        return Err(Refusal::OtherEndpoint);
    }
    let service = served.iter().find(|service| service.key == target.service);
    let service = service.ok_or(Refusal::NotServed)?;
    // Before the port, so that it tells strangers nothing about the service.
    let audience = Audience {
        own: &own.trust_domain,
        exported_to: &service.exported_to,
        unmeshed_clients: service.unmeshed_clients,
    };
    let verdict = authorize(audience, caller);
    if !verdict.is_allowed() {
        return Err(Refusal::NotAllowed(verdict));
    }
    let port = service.ports.iter().find(|port| port.port == target.port);
    Ok(Passage {
        service: service.key.clone(),
        port: *port.ok_or(Refusal::NoPort)?,
    })
}

#[cfg(test)]
mod tests {
    use linkspan_routing::AppProtocol;
    use linkspan_trust::testing::{trust_domain, workload};

    use super::*;

    const NOT_EXPORTED: Refusal = Refusal::NotAllowed(Verdict::NotExported);

    fn own() -> Own {
        Own {
            endpoint: EndpointId::from_uid("checkout-1"),
            cluster: "west".parse().unwrap(),
            trust_domain: trust_domain("west.test"),
        }
    }

    fn served() -> Vec<InboundService> {
        let port = InboundPort {
            port: 80,
            target_port: 8080,
            app_protocol: AppProtocol::Http,
        };
        vec![InboundService {
            key: "shop/checkout".parse().unwrap(),
            ports: vec![port],
            exported_to: [trust_domain("east.test")].into(),
            unmeshed_clients: false,
        }]
    }

    fn ask(caller: &str, prefix: &str, rest: &str) -> Result<Passage, Refusal> {
        let caller = workload(caller, "shop", "frontend");
        let target = format!("{prefix}{rest}.linkspan.internal").parse().unwrap();
        passage(&own(), &served(), &caller, &target)
    }

    #[test]
    fn own_endpoint_service_and_port_for_those_it_is_exported_to() {
        let own = format!("{}.", own().endpoint);
        let other = format!("{}.", EndpointId::from_uid("checkout-2"));
        let target = "80.checkout.shop.svc.west";
        for caller in ["west.test", "east.test"] {
            let passage = ask(caller, &own, target).unwrap();
            assert_eq!(passage.port.target_port, 8080);
        }
        assert!(ask("east.test", "", target).is_ok());
        for (caller, prefix, target, refusal) in [
            ("north.test", &*own, target, NOT_EXPORTED),
            ("east.test", &other, target, Refusal::OtherEndpoint),
            (
                "east.test",
                &own,
                "8080.checkout.shop.svc.west",
                Refusal::NoPort,
            ),
            (
                "north.test",
                &own,
                "8080.checkout.shop.svc.west",
                NOT_EXPORTED,
            ),
            (
                "east.test",
                &own,
                "80.cart.shop.svc.west",
                Refusal::NotServed,
            ),
            (
                "east.test",
                &own,
                "80.checkout.shop.svc.east",
                Refusal::OtherCluster,
            ),
            ("east.test", "", "federation.west", Refusal::NoService),
        ] {
            assert_eq!(
                ask(caller, prefix, target),
                Err(refusal),
                "{caller} {target}"
            );
        }
    }

    #[test]
    fn gateways_pass_for_unmeshed_clients_and_only_where_these_are_admitted() {
        let target = "80.checkout.shop.svc.west.linkspan.internal"
            .parse()
            .unwrap();
        let mut served = served();
        for admitted in [false, true] {
            served[0].unmeshed_clients = admitted;
            for domain in ["west.test", "east.test"] {
                let domain = trust_domain(domain);
                let ask = |caller| passage(&own(), &served, &caller, &target).map(drop);
                let unmeshed = ask(SpiffeId::unmeshed_client(&domain));
                let refused = Err(Refusal::NotAllowed(Verdict::Unmeshed));
                assert_eq!(unmeshed, if admitted { Ok(()) } else { refused });
                let tunnel = ask(SpiffeId::gateway(&domain));
                assert_eq!(tunnel, Err(Refusal::NotAllowed(Verdict::NoWorkload)));
            }
        }
    }
}

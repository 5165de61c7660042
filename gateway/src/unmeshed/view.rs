//! The snapshot as a source of calls needs it, made of what a gateway is told and of what it knows
//! better: to which peers it has a tunnel, and what it never dials. Pure.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use linkspan_dataplane::discover::{GatewayInfo, PeerInfo, Snapshot};
use linkspan_routing::{ClusterId, Endpoint, Service};

/// The snapshot in which `own`, this gateway, leads to the peers that it has up, each peer is
/// usable to which any gateway leads, and there are no endpoints but those that may be dialled: a
/// workload registers its own address, and whoever calls it through a port of ours must not reach
/// what only we can reach.
pub(super) fn view(
    snapshot: &Snapshot,
    own: &GatewayInfo,
    allowed: impl Fn(SocketAddr) -> bool,
) -> Snapshot {
    let siblings = snapshot.gateways.iter();
    let siblings = siblings.filter(|gateway| gateway.replica != own.replica);
    let gateways: Vec<_> = siblings.chain([own]).cloned().collect();
    let reached: BTreeSet<&ClusterId> = gateways
        .iter()
        .filter(|gateway| !gateway.draining)
        .flat_map(|gateway| &gateway.reachable)
        .collect();
    let peers = snapshot.links.iter().map(|link| PeerInfo {
        cluster: link.cluster.clone(),
        trust_domain: link.trust_domain.clone(),
        usable: reached.contains(&link.cluster),
        // Policies that look at it come with its effect worked in.
        stale: false,
    });
    let services = snapshot.services.iter();
    let services = services.map(|(key, service)| (key.clone(), dialled(service, &allowed)));
    Snapshot {
        peers: peers.collect(),
        services: services.collect(),
        gateways,
        revision: snapshot.revision,
        ..Snapshot::default()
    }
}

/// The service without the endpoints whose addresses are not allowed; the very same if there are none.
fn dialled(service: &Arc<Service>, allowed: &impl Fn(SocketAddr) -> bool) -> Arc<Service> {
    let may = |endpoint: &Arc<Endpoint>| endpoint.address.is_none_or(allowed);
    if service.endpoints.iter().all(may) {
        return Arc::clone(service);
    }
    let mut service = Service::clone(service);
    service.endpoints.retain(may);
    Arc::new(service)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use linkspan_dataplane::discover::LinkInfo;
    use linkspan_routing::{FailbackConfig, Locality};
    use linkspan_trust::SpiffeId;
    use linkspan_trust::testing::trust_domain;

    use super::*;

    fn gateway(replica: &str, reachable: &[&str], draining: bool) -> GatewayInfo {
        GatewayInfo {
            replica: replica.to_owned(),
            egress: ([127, 0, 0, 1], 15444).into(),
            reachable: reachable.iter().map(|id| id.parse().unwrap()).collect(),
            draining,
        }
    }

    fn told(gateways: &[GatewayInfo]) -> Snapshot {
        let domain = trust_domain("west.test");
        let link = LinkInfo {
            cluster: "west".parse().unwrap(),
            gateway: SpiffeId::gateway(&domain),
            federation: SpiffeId::federation(&domain),
            trust_domain: domain,
            addresses: Vec::new(),
            allow_loopback: false,
        };
        Snapshot {
            gateways: gateways.to_vec(),
            links: vec![link],
            ..Snapshot::default()
        }
    }

    #[test]
    fn our_own_tunnels_count_as_we_know_them() {
        let stale = gateway("g1", &["west"], false);
        for (up, usable) in [(&["west"][..], true), (&[], false)] {
            let own = gateway("g1", up, false);
            for known in [told(std::slice::from_ref(&stale)), told(&[])] {
                let view = view(&known, &own, |_| true);
                assert_eq!(view.gateways, std::slice::from_ref(&own));
                assert_eq!(view.peers[0].usable, usable);
            }
        }
    }

    #[test]
    fn a_sibling_leads_where_we_do_not_unless_it_drains() {
        for (draining, usable) in [(false, true), (true, false)] {
            let sibling = gateway("g2", &["west"], draining);
            let view = view(&told(&[sibling]), &gateway("g1", &[], false), |_| true);
            assert_eq!(view.peers[0].usable, usable);
            assert_eq!(view.gateways.len(), 2);
        }
    }

    #[test]
    fn endpoints_that_are_never_dialled_are_left_out() {
        let at = |id: &str, address: Option<&str>| {
            Arc::new(Endpoint {
                id: id.parse().unwrap(),
                cluster: "east".parse().unwrap(),
                locality: Locality::default(),
                identity: SpiffeId::unmeshed_server(&trust_domain("east.test")),
                ready: true,
                weight: 1,
                incarnation: 0,
                address: address.map(|address| address.parse().unwrap()),
                labels: BTreeMap::new(),
            })
        };
        let (near, bad) = (Some("10.0.0.1:15008"), Some("127.0.0.1:15021"));
        let [near, bad, far] = [("a", near), ("b", bad), ("c", None)]
            .map(|(letter, address)| at(&letter.repeat(26), address));
        let service = |endpoints| {
            Arc::new(Service {
                key: "shop/cart".parse().unwrap(),
                ports: Vec::new(),
                clusters: BTreeMap::new(),
                endpoints,
                failback: FailbackConfig::default(),
                policy: None,
                drained: BTreeSet::new(),
            })
        };
        let remote = |address: SocketAddr| !address.ip().is_loopback();
        let mixed = service(vec![near.clone(), bad, far.clone()]);
        let left = dialled(&mixed, &remote);
        assert_eq!(left.endpoints, [near.clone(), far.clone()]);
        let good = service(vec![near, far]);
        assert!(Arc::ptr_eq(&good, &dialled(&good, &remote)));
    }
}

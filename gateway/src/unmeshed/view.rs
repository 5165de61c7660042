//! The snapshot as a source of calls needs it, made of what a gateway is told and of what it knows
//! better: to which peers it has a tunnel. Pure.

use std::collections::BTreeSet;

use linkspan_dataplane::discover::{GatewayInfo, PeerInfo, Snapshot};
use linkspan_routing::ClusterId;

/// The snapshot in which `own`, this gateway, leads to the peers that it has up, and each peer is
/// usable to which any gateway leads.
pub(super) fn view(snapshot: &Snapshot, own: &GatewayInfo) -> Snapshot {
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
    Snapshot {
        peers: peers.collect(),
        services: snapshot.services.clone(),
        gateways,
        revision: snapshot.revision,
        ..Snapshot::default()
    }
}

#[cfg(test)]
mod tests {
    use linkspan_dataplane::discover::LinkInfo;
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
                let view = view(&known, &own);
                assert_eq!(view.gateways, std::slice::from_ref(&own));
                assert_eq!(view.peers[0].usable, usable);
            }
        }
    }

    #[test]
    fn a_sibling_leads_where_we_do_not_unless_it_drains() {
        for (draining, usable) in [(false, true), (true, false)] {
            let sibling = gateway("g2", &["west"], draining);
            let view = view(&told(&[sibling]), &gateway("g1", &[], false));
            assert_eq!(view.peers[0].usable, usable);
            assert_eq!(view.gateways.len(), 2);
        }
    }
}

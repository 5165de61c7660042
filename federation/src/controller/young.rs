//! Links that were declared a moment ago. Gateways speak of peers by name, so one that is late may
//! still speak of a former link to the same cluster; its word counts for [`LEASE`] at most. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use linkspan_core::{
    ClusterId, Link,
    declared::Declared,
    gateways::{Gateways, LEASE},
};

/// The young links.
#[derive(Debug, Default)]
pub(super) struct Young {
    links: BTreeMap<ClusterId, Of>,
}

#[derive(Debug)]
struct Of {
    since: Instant,
    /// A tunnel has been up since before it was declared.
    stale: bool,
}

impl Young {
    /// Takes in what is declared after `former`. With the first declaration after a start nothing
    /// is known of former links, and no link is young.
    pub(super) fn declare(
        &mut self,
        former: &Declared,
        declared: &Declared,
        gateways: &Gateways,
        now: Instant,
    ) {
        for (cluster, link) in &declared.links {
            let same = |held: &Link| {
                held.trust_domain == link.trust_domain && held.gateway_id == link.gateway_id
            };
            if !former.links.get(cluster).is_some_and(same) {
                let stale = gateways.summary(cluster).gateways_up > 0;
                self.links.insert(cluster.clone(), Of { since: now, stale });
            }
        }
        self.links
            .retain(|cluster, _| declared.links.contains_key(cluster));
    }

    /// Takes in what gateways see now.
    pub(super) fn observe(&mut self, gateways: &Gateways, now: Instant) {
        let young = |since| now.saturating_duration_since(since) < LEASE;
        self.links.retain(|_, of| young(of.since));
        for (cluster, of) in &mut self.links {
            of.stale &= gateways.summary(cluster).gateways_up > 0;
        }
    }

    /// Links whose peers have removed them, so far as that can be meant of these very links.
    pub(super) fn removed(&self, declared: &Declared, gateways: &Gateways) -> BTreeSet<ClusterId> {
        let old = |cluster: &&ClusterId| !self.links.contains_key(*cluster);
        let removed = |cluster: &&ClusterId| gateways.summary(cluster).removed;
        let links = declared.links.keys();
        links.filter(old).filter(removed).cloned().collect()
    }

    /// Links that no tunnel proves: the one that is up may be that of a former link.
    pub(super) fn stale(&self) -> BTreeSet<ClusterId> {
        let stale = self.links.iter().filter(|(_, of)| of.stale);
        stale.map(|(cluster, _)| cluster.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use linkspan_core::{
        Session,
        gateways::{GatewayRegistration, PeerHealth},
        testing::link,
    };

    use super::*;

    fn report(gateways: &mut Gateways, up: bool, removed: bool) {
        let health = PeerHealth {
            up,
            removed,
            ..PeerHealth::default()
        };
        let west = link("west").cluster;
        gateways.report("g1", Session(1), [(west, health)].into());
    }

    #[test]
    fn what_is_said_of_a_former_link_does_not_count_for_the_new_one() {
        let (now, mut gateways) = (Instant::now(), Gateways::new());
        let registration = GatewayRegistration {
            replica: "g1".into(),
            egress_address: ([127, 0, 0, 1], 1).into(),
            tunnel_addresses: Vec::new(),
            ready: true,
            draining: false,
        };
        gateways.register(registration, Session(1), now).unwrap();
        let west = link("west");
        let declared = Declared {
            links: [(west.cluster.clone(), west.clone())].into(),
            ..Declared::default()
        };
        let mut young = Young::default();
        report(&mut gateways, true, false);
        young.declare(&Declared::default(), &declared, &gateways, now);
        young.observe(&gateways, now);
        assert_eq!(young.stale(), [west.cluster.clone()].into());
        report(&mut gateways, false, true);
        young.observe(&gateways, now);
        assert!(young.removed(&declared, &gateways).is_empty());
        // It has been down: what comes up next is its own.
        report(&mut gateways, true, false);
        young.observe(&gateways, now);
        assert!(young.stale().is_empty());
        // A word that stands for so long is meant.
        report(&mut gateways, false, true);
        young.declare(&declared, &declared, &gateways, now + LEASE / 2);
        young.observe(&gateways, now + LEASE);
        assert_eq!(young.removed(&declared, &gateways), [west.cluster].into());
    }
}

//! Links that were declared a moment ago. Gateways speak of tunnels by the peer's name, so one that
//! is late may still speak of a former link to the same cluster; its word counts for [`LEASE`] at
//! most. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use linkspan_core::{
    ClusterId, Link,
    declared::Declared,
    gateways::{Gateways, LEASE},
    join::{InvitationId, LinkBook},
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

    /// Links whose peers have removed them, so far as these very links are meant. A word that names
    /// the invitation of which the link came is final. One about a declared link names nothing: it
    /// may be about a former link, so it counts where this one is old, and no tunnel of it is up.
    pub(super) fn removed(
        &self,
        declared: &Declared,
        gateways: &Gateways,
        book: &LinkBook,
    ) -> BTreeMap<ClusterId, Option<InvitationId>> {
        let links = declared.links.iter().filter_map(|(cluster, link)| {
            let made_by = book.origin(link);
            let meant = gateways
                .removals(cluster)
                .any(|of| of.invitation == made_by);
            let sure = made_by.is_some()
                || !self.links.contains_key(cluster) && gateways.summary(cluster).gateways_up == 0;
            (meant && sure).then(|| (cluster.clone(), made_by))
        });
        links.collect()
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
        gateways::{GatewayRegistration, PeerHealth, Removed},
        testing::link,
    };

    use super::*;

    fn report(gateways: &mut Gateways, up: bool, removed: Option<Option<InvitationId>>) {
        let health = PeerHealth {
            up,
            removed: removed.map(|invitation| Removed { invitation }),
            ..PeerHealth::default()
        };
        let west = link("west").cluster;
        gateways.report("g1", Session(1), [(west, health)].into());
    }

    fn gateways(now: Instant) -> Gateways {
        let mut gateways = Gateways::new();
        let registration = GatewayRegistration {
            replica: "g1".into(),
            egress_address: ([127, 0, 0, 1], 1).into(),
            tunnel_addresses: Vec::new(),
            ready: true,
            draining: false,
            imports: None,
        };
        gateways.register(registration, Session(1), now).unwrap();
        gateways
    }

    fn declared() -> Declared {
        let west = link("west");
        Declared {
            links: [(west.cluster.clone(), west)].into(),
            ..Declared::default()
        }
    }

    /// However young it is, and whatever else is said: a word is about the link that it names.
    #[test]
    fn a_link_that_came_of_an_invitation_is_removed_by_its_own_word_only() {
        let (now, west) = (Instant::now(), link("west"));
        let (first, second) = (InvitationId([1; 16]), InvitationId([2; 16]));
        let (mut gateways, declared) = (gateways(now), declared());
        let mut book = LinkBook::default();
        let (cluster, domain) = (west.cluster.clone(), west.trust_domain.clone());
        let wall = std::time::SystemTime::now();
        book.pend(cluster.clone(), domain, second, wall + LEASE, wall);
        let mut young = Young::default();
        young.declare(&Declared::default(), &declared, &gateways, now);
        for (said, up) in [(None, false), (Some(first), false), (Some(first), true)] {
            report(&mut gateways, up, Some(said));
            young.observe(&gateways, now + LEASE);
            assert!(young.removed(&declared, &gateways, &book).is_empty());
        }
        report(&mut gateways, true, Some(Some(second)));
        let removed = young.removed(&declared, &gateways, &book);
        assert_eq!(removed, [(cluster.clone(), Some(second))].into());
        // The book was lost, and the declaration still says of what it came.
        let mut noted = declared.clone();
        let of_west = noted.links.get_mut(&cluster).unwrap();
        of_west.made_by = Some(second);
        let lost = LinkBook::default();
        let removed = young.removed(&noted, &gateways, &lost);
        assert_eq!(removed, [(cluster.clone(), Some(second))].into());
        noted.links.get_mut(&cluster).unwrap().made_by = Some(first);
        assert!(young.removed(&noted, &gateways, &lost).is_empty());
        // Declared by hand since: what came of the invitation is not this link.
        book.remove(&cluster, None, wall);
        assert!(young.removed(&declared, &gateways, &book).is_empty());
    }

    #[test]
    fn what_is_said_of_a_former_link_does_not_count_for_the_new_one() {
        let (now, west, declared) = (Instant::now(), link("west"), declared());
        let (mut gateways, book) = (gateways(now), LinkBook::default());
        let mut young = Young::default();
        report(&mut gateways, true, None);
        young.declare(&Declared::default(), &declared, &gateways, now);
        young.observe(&gateways, now);
        assert_eq!(young.stale(), [west.cluster.clone()].into());
        report(&mut gateways, false, Some(None));
        young.observe(&gateways, now);
        assert!(young.removed(&declared, &gateways, &book).is_empty());
        // It has been down: what comes up next is its own.
        report(&mut gateways, true, None);
        young.observe(&gateways, now);
        assert!(young.stale().is_empty());
        // A word that stands for so long is meant.
        report(&mut gateways, false, Some(None));
        young.declare(&declared, &declared, &gateways, now + LEASE / 2);
        young.observe(&gateways, now + LEASE);
        let removed = young.removed(&declared, &gateways, &book);
        assert_eq!(removed, [(west.cluster, None)].into());
    }
}

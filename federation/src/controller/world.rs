//! What the rest of federation reads: one immutable snapshot per change.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};

use linkspan_core::{
    Address, ClusterId, SpiffeId,
    declared::Declared,
    gateways::Gateways,
    join::{InvitationId, LinkBook},
    plan::Desired,
};
use linkspan_trust::{Bundle, BundleSet, TrustDomain};

use crate::{
    discovery::Generation,
    sync::{GatewayPath, GatewayPaths},
};

/// Everything that proxies and peers are told, made at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct World {
    /// Grows by one with each different world; zero before the resources were first read.
    pub(crate) generation: u64,
    /// Whether sidecars may be sent removals, and their first sets be closed.
    pub(crate) settled: bool,
    /// Whether peers and our own gateways may: our own workloads are back. Peers are not waited
    /// for, or two federations that restart together would wait for each other, and for the
    /// gateways between them.
    pub(crate) own_settled: bool,
    pub(crate) declared: Arc<Declared>,
    pub(crate) desired: Desired,
    pub(crate) gateways: Vec<LiveGateway>,
    /// Own roots, for peers.
    pub(crate) own_bundle: Option<Bundle>,
    /// All roots in force, by trust domain: our own and each link's.
    pub(crate) bundles: BundleSet,
    /// Where peers can dial our gateways.
    pub(crate) own_addresses: Vec<Address>,
    /// Peers that are to be told, if they return, that they were unlinked.
    pub(crate) buried: Vec<Buried>,
    /// Links whose peers told our gateways that they have removed them, by the invitations of which
    /// these links came.
    pub(crate) removed: BTreeMap<ClusterId, Option<InvitationId>>,
    /// Links whose tunnel may be that of a former link of that name.
    pub(crate) stale: BTreeSet<ClusterId>,
}

/// A peer that was unlinked without its knowledge.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Buried {
    pub(crate) trust_domain: TrustDomain,
    pub(crate) gateway: SpiffeId,
    pub(crate) roots: Bundle,
    /// Of which invitation the link came; `None` where it was declared.
    pub(crate) invitation: Option<InvitationId>,
}

/// The tombstones in force: a domain that is linked again has none.
pub(super) fn buried(book: &LinkBook, declared: &Declared) -> Vec<Buried> {
    let linked = |domain: &TrustDomain| {
        let mut links = declared.links.values();
        links.any(|link| link.trust_domain == *domain)
    };
    book.tombstones()
        .filter(|(domain, _)| !linked(domain))
        .filter_map(|(domain, of)| {
            Some(Buried {
                trust_domain: domain.clone(),
                gateway: of.gateway_id.clone(),
                // Written by us from a bundle that was good.
                roots: Bundle::from_pem(0, of.roots.as_bytes()).ok()?,
                invitation: of.invitation,
            })
        })
        .collect()
}

/// A gateway replica that counts.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LiveGateway {
    pub(crate) replica: String,
    pub(crate) egress: SocketAddr,
    pub(crate) ready: bool,
    pub(crate) draining: bool,
    pub(crate) up: BTreeSet<ClusterId>,
}

impl Generation for World {
    fn generation(&self) -> u64 {
        self.generation
    }
}

impl World {
    /// The federations that may sync with us, with their clusters.
    pub(crate) fn federations(&self) -> impl Iterator<Item = (&SpiffeId, &ClusterId)> {
        self.desired
            .links
            .iter()
            .map(|(cluster, link)| (&link.link.federation_id, cluster))
    }

    /// The gateways through which sync may be dialled.
    pub(crate) fn gateway_paths(&self) -> GatewayPaths {
        let open = self
            .gateways
            .iter()
            .filter(|gateway| gateway.ready && !gateway.draining);
        open.map(|gateway| {
            let path = GatewayPath {
                egress: gateway.egress,
                up: gateway.up.clone(),
            };
            (gateway.replica.clone(), path)
        })
        .collect()
    }
}

/// The replicas that count, from the registry.
pub(super) fn live_gateways(gateways: &Gateways) -> Vec<LiveGateway> {
    let live = |gateway: linkspan_core::gateways::Gateway<'_>| LiveGateway {
        replica: gateway.registration.replica.clone(),
        egress: gateway.registration.egress_address,
        ready: gateway.registration.ready,
        draining: gateway.registration.draining,
        up: gateway
            .health
            .iter()
            .filter(|(_, h)| h.up)
            .map(|(cluster, _)| cluster.clone())
            .collect(),
    };
    gateways.counting().map(live).collect()
}

/// All roots in force. What a peer announced counts only if it is good; else what was
/// declared does, by which the peer is linked.
pub(super) fn bundles(own: &TrustDomain, roots: &Bundle, desired: &Desired) -> BundleSet {
    let mut bundles = BundleSet::new();
    if let Err(error) = bundles.insert(own.clone(), roots.clone()) {
        tracing::error!(%error, "the own roots are not usable");
    }
    for link in desired.links.values() {
        let domain = &link.link.trust_domain;
        for candidate in [&link.bundle, &link.link.bundle] {
            match bundles.insert(domain.clone(), candidate.clone()) {
                Ok(()) => break,
                Err(error) => {
                    tracing::warn!(peer = %link.link.cluster, %error, "its roots are not usable");
                }
            }
        }
    }
    bundles
}

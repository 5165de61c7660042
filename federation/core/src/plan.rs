//! From what is known to what should be: one pure function.
//!
//! A service that peers export is reached under its one name everywhere. A Service of
//! this cluster that is *not* exported stays this cluster's own: no peer can contribute
//! to it, so a peer never draws traffic that was not shared with it on purpose.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use self::local::{Local, Selection};
use crate::capacity::{self, HighWater, Listed, Seen};
use crate::declared::{Declared, DeclaredService};
use crate::failover::{STALE_AFTER, in_force};
use crate::gateways::Gateways;
use crate::merge::{Contribution, Merged, merge};
use crate::model::{
    ClusterCapacity, ClusterId, Endpoint, Export, ExportedEndpoint, FailbackConfig, Import, Link,
    Locality, OwnCluster, Service, ServiceKey, TrustDomain,
};
use crate::peer::{Now, PeerView};
use crate::peers::PeersView;
use crate::workloads::Workloads;

mod conditions;
mod desired;
mod local;
#[cfg(test)]
mod tests;
mod zone;

pub use desired::{
    Desired, ExportedService, InboundPort, InboundService, Outgoing, PlannedLink, UnmeshedServer,
    UnmeshedService, Vip,
};

/// Everything that a plan is made from.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// Who we are.
    pub own: &'a OwnCluster,
    /// How traffic comes home after a failover.
    pub failback: FailbackConfig,
    /// What is declared.
    pub declared: &'a Declared,
    /// Who has registered.
    pub workloads: &'a Workloads,
    /// Our gateways.
    pub gateways: &'a Gateways,
    /// The peers.
    pub peers: &'a PeersView,
    /// What each locality has had; see [`listed`].
    pub high_water: &'a HighWater,
    /// What was seen of each peer; see [`listed_by_peers`].
    pub seen: &'a Seen,
}

/// Most addresses of a peer that are dialled.
const MAX_ADDRESSES: usize = 8;

/// What each locality lists now, for [`HighWater::observe`].
pub fn listed(declared: &Declared, workloads: &Workloads) -> Listed {
    Selection::new(declared, workloads).listed()
}

/// What each peer lists now, for [`Seen::observe`].
pub fn listed_by_peers(peers: &PeersView) -> BTreeMap<ClusterId, Listed> {
    let of = |peer: &PeerView| -> Listed {
        let services = peer.records.exports().map(|export| {
            let endpoints = peer.records.endpoints(&export.service);
            let localities = endpoints.map(|of| &of.endpoint.locality);
            (export.service.clone(), by_locality(localities))
        });
        services.collect()
    };
    peers
        .iter()
        .map(|(cluster, peer)| (cluster.clone(), of(peer)))
        .collect()
}

/// How many are in each locality.
fn by_locality<'a>(localities: impl Iterator<Item = &'a Locality>) -> BTreeMap<Locality, u32> {
    let mut counts = BTreeMap::new();
    for locality in localities {
        *counts.entry(locality.clone()).or_default() += 1;
    }
    counts
}

/// Makes the plan.
pub fn plan(known: &Known<'_>, now: Now) -> Desired {
    let selection = Selection::new(known.declared, known.workloads);
    let local: BTreeMap<_, _> = known
        .declared
        .services
        .iter()
        .map(|(key, service)| (key.clone(), Local::new(known, service, &selection, now)))
        .collect();
    let merged = merge_all(known, &local);
    let services = plan_services(known, &local, &merged, now);
    Desired {
        inbound: plan_inbound(known, &selection),
        unmeshed: plan_unmeshed(known, &selection),
        exported: plan_exported(known, &local),
        outgoing: plan_outgoing(known, &local),
        links: plan_links(known.peers),
        vips: plan_vips(known.declared, &local, &merged),
        export_conditions: conditions::of_exports(known, &merged),
        import_conditions: conditions::of_imports(known, &merged),
        policy_conditions: conditions::of_policies(known, &services),
        link_conditions: conditions::of_links(known),
        generations: known.declared.generations.clone(),
        zone: Arc::new(zone::plan_zone(known, &local, &merged)),
        imports: merged
            .into_iter()
            .map(|(key, merged)| (key, merged.import))
            .collect(),
        services,
        import_ports: BTreeMap::new(),
        derived: BTreeMap::new(),
        problems: known.declared.problems.clone(),
    }
}

/// An address stays what it is while nobody exports the service: who calls it does not mean anything
/// else. Its ports are those that callers here see: a peer takes none of ours. Of a service that is
/// declared here and not exported it has none: what proxies have under that name is this cluster's
/// own, and not what the address means.
fn plan_vips(
    declared: &Declared,
    local: &BTreeMap<ServiceKey, Local<'_>>,
    merged: &BTreeMap<ServiceKey, Merged>,
) -> BTreeMap<IpAddr, Vip> {
    let is_kept = |key: &ServiceKey| local.get(key).is_some_and(|local| local.export.is_none());
    let mut vips = BTreeMap::new();
    for (service, addresses) in &declared.clusterset_ips {
        let merged = merged.get(service).filter(|_| !is_kept(service));
        let seen = merged.map(|merged| &merged.seen);
        let ports = seen.into_iter().flat_map(|seen| &seen.ports);
        let vip = Vip {
            service: service.clone(),
            ports: ports.map(|port| port.port).collect(),
        };
        for address in addresses {
            // Two services with one address would be somebody's mistake; the first one has it.
            vips.entry(*address).or_insert_with(|| vip.clone());
        }
    }
    vips
}

/// Every exported service, merged over this cluster and the peers.
fn merge_all(
    known: &Known<'_>,
    local: &BTreeMap<ServiceKey, Local<'_>>,
) -> BTreeMap<ServiceKey, Merged> {
    let mut contributions: BTreeMap<ServiceKey, Vec<Contribution>> = BTreeMap::new();
    let mut contribute = |cluster: &ClusterId, export: &Arc<Export>| {
        let contribution = Contribution {
            cluster: cluster.clone(),
            export: Arc::clone(export),
        };
        contributions
            .entry(export.service.clone())
            .or_default()
            .push(contribution);
    };
    for export in local.values().filter_map(|local| local.export.as_ref()) {
        contribute(&known.own.cluster, export);
    }
    for (cluster, peer) in active(known) {
        peer.records
            .exports()
            .for_each(|export| contribute(cluster, export));
    }
    contributions
        .into_iter()
        .filter_map(|(key, of)| merge(&known.own.cluster, &key, &of).map(|merged| (key, merged)))
        .collect()
}

fn plan_services(
    known: &Known<'_>,
    local: &BTreeMap<ServiceKey, Local<'_>>,
    merged: &BTreeMap<ServiceKey, Merged>,
    now: Now,
) -> BTreeMap<ServiceKey, Arc<Service>> {
    let keys: BTreeSet<_> = local.keys().chain(merged.keys()).collect();
    let plan = |key: &ServiceKey| match (local.get(key), merged.get(key)) {
        // Not exported by us: ours alone, whatever peers export under its name.
        (Some(local), _) if local.export.is_none() => Some(own_service(known, local)),
        (local, Some(merged)) => Some(shared_service(known, local, &merged.seen, now)),
        (Some(local), None) => Some(own_service(known, local)),
        (None, None) => None,
    };
    let stale = known
        .peers
        .iter()
        .filter(|(_, peer)| peer.stale_for(STALE_AFTER))
        .map(|(cluster, _)| cluster.clone())
        .collect();
    keys.into_iter()
        .filter_map(|key| {
            let mut service = plan(key)?;
            let stands = in_force(&known.declared.policies, key, known.failback, &stale);
            service.policy = stands.policy;
            service.failback = stands.failback;
            service.drained = stands.drained;
            Some((key.clone(), Arc::new(service)))
        })
        .collect()
}

fn own_service(known: &Known<'_>, local: &Local<'_>) -> Service {
    let ports = local.service.service_ports();
    let capacity = ClusterCapacity {
        localities: local.capacity.clone(),
        ports: ports.iter().map(|port| port.port).collect(),
    };
    Service {
        key: local.service.key.clone(),
        ports,
        clusters: BTreeMap::from([(known.own.cluster.clone(), capacity)]),
        endpoints: local
            .endpoints
            .iter()
            .map(|(endpoint, _)| Arc::clone(endpoint))
            .collect(),
        failback: known.failback,
        policy: None,
        drained: BTreeSet::new(),
    }
}

fn shared_service(
    known: &Known<'_>,
    local: Option<&Local<'_>>,
    import: &Import,
    now: Now,
) -> Service {
    let mut endpoints: Vec<Arc<Endpoint>> = Vec::new();
    let own = local.into_iter().flat_map(|local| &local.endpoints);
    endpoints.extend(own.map(|(endpoint, _)| Arc::clone(endpoint)));
    // Ids are their cluster's own: a peer that uses ours is not believed, and one that uses
    // another peer's takes nothing from it.
    let ids: BTreeSet<_> = endpoints.iter().map(|own| own.id.clone()).collect();
    let peers = active(known)
        .flat_map(|(_, peer)| peer.records.endpoints(&import.service))
        .filter(|of| !ids.contains(&of.endpoint.id));
    endpoints.extend(peers.map(|of| Arc::clone(&of.endpoint)));
    let clusters = import
        .clusters
        .iter()
        .map(|(cluster, capacity)| {
            (
                cluster.clone(),
                expected(known, (cluster, capacity), &import.service, &endpoints, now),
            )
        })
        .collect();
    Service {
        key: import.service.clone(),
        ports: import.ports.clone(),
        clusters,
        endpoints,
        failback: known.failback,
        policy: None,
        drained: BTreeSet::new(),
    }
}

/// What a cluster is expected to have: what it lists, or more where it says so.
fn expected(
    known: &Known<'_>,
    (cluster, capacity): (&ClusterId, &ClusterCapacity),
    service: &ServiceKey,
    endpoints: &[Arc<Endpoint>],
    now: Now,
) -> ClusterCapacity {
    let of_cluster = endpoints
        .iter()
        .filter(|endpoint| endpoint.cluster == *cluster);
    let listed = by_locality(of_cluster.map(|endpoint| &endpoint.locality));
    let localities = if *cluster == known.own.cluster {
        capacity::at_least(&listed, &capacity.localities)
    } else {
        let seen = known.seen.of(cluster, service, now.instant);
        capacity::believed(&listed, &capacity.localities, &seen)
    };
    ClusterCapacity {
        localities,
        ports: capacity.ports.clone(),
    }
}

/// The services that have servers without a sidecar.
fn plan_unmeshed(
    known: &Known<'_>,
    selection: &Selection<'_>,
) -> BTreeMap<ServiceKey, UnmeshedService> {
    let peers = active_domains(known);
    let services = known.declared.services.iter();
    let unmeshed = services.filter_map(|(key, service)| {
        let servers: Vec<_> = selection
            .servers(key)
            .map(|server| UnmeshedServer {
                id: server.id.clone(),
                ready: server.ready,
                addresses: server.addresses(service),
            })
            .collect();
        (!servers.is_empty()).then(|| {
            let of = UnmeshedService {
                cluster: known.own.cluster.clone(),
                served: inbound_service(known, service, &peers),
                servers,
            };
            (key.clone(), of)
        })
    });
    unmeshed.collect()
}

/// The trust domains of the peers with whom data may be exchanged.
fn active_domains(known: &Known<'_>) -> BTreeSet<TrustDomain> {
    active(known)
        .map(|(_, peer)| peer.link.trust_domain.clone())
        .collect()
}

fn plan_inbound(
    known: &Known<'_>,
    selection: &Selection<'_>,
) -> BTreeMap<String, Vec<InboundService>> {
    let peers = active_domains(known);
    // Also those that serve nothing: they are told so.
    let mut inbound: BTreeMap<String, Vec<InboundService>> = known
        .workloads
        .counting()
        .map(|workload| (workload.uid.clone(), Vec::new()))
        .collect();
    for (key, workloads) in selection.iter() {
        let Some(service) = known.declared.services.get(key) else {
            continue;
        };
        let served = inbound_service(known, service, &peers);
        for workload in workloads {
            inbound
                .entry(workload.uid.clone())
                .or_default()
                .push(served.clone());
        }
    }
    inbound
}

fn inbound_service(
    known: &Known<'_>,
    service: &DeclaredService,
    peers: &BTreeSet<TrustDomain>,
) -> InboundService {
    let export = known.declared.exports.get(&service.key);
    let export = export.filter(|_| service.import_type.is_some());
    InboundService {
        service: service.key.clone(),
        ports: service
            .ports
            .iter()
            .map(|port| InboundPort {
                port: port.service_port.port,
                target_port: port.target_port,
                app_protocol: port.service_port.app_protocol,
            })
            .collect(),
        exported_to: export.map(|_| peers.clone()).unwrap_or_default(),
        unmeshed_clients: export.is_some_and(|export| export.unmeshed_clients),
    }
}

fn plan_exported(
    known: &Known<'_>,
    local: &BTreeMap<ServiceKey, Local<'_>>,
) -> BTreeMap<ServiceKey, ExportedService> {
    let exported = local.iter().filter(|(_, local)| local.export.is_some());
    exported
        .map(|(key, local)| {
            let service = ExportedService {
                service: key.clone(),
                ports: local
                    .service
                    .ports
                    .iter()
                    .map(|port| port.service_port.port)
                    .collect(),
                peers: active(known).map(|(cluster, _)| cluster.clone()).collect(),
                endpoints: local
                    .endpoints
                    .iter()
                    .map(|(endpoint, _)| Arc::clone(endpoint))
                    .collect(),
            };
            (key.clone(), service)
        })
        .collect()
}

/// A ServiceExport is the grant for every linked peer, so all are told the same.
fn plan_outgoing(
    known: &Known<'_>,
    local: &BTreeMap<ServiceKey, Local<'_>>,
) -> BTreeMap<ClusterId, Arc<Outgoing>> {
    let mut outgoing = Outgoing {
        gateways: known.gateways.tunnel_addresses(),
        ..Outgoing::default()
    };
    for (key, local) in local {
        let Some(export) = &local.export else {
            continue;
        };
        outgoing.exports.insert(key.clone(), Arc::clone(export));
        for (endpoint, hostname) in &local.endpoints {
            let told = ExportedEndpoint {
                service: key.clone(),
                endpoint: Arc::new(Endpoint {
                    address: None,
                    ..(**endpoint).clone()
                }),
                hostname: (*hostname).to_owned(),
            };
            outgoing
                .endpoints
                .insert((key.clone(), endpoint.id.clone()), told);
        }
    }
    let nothing = Arc::new(Outgoing {
        gateways: outgoing.gateways.clone(),
        ..Outgoing::default()
    });
    let outgoing = Arc::new(outgoing);
    let told = |link: &Link| match link.pending {
        true => Arc::clone(&nothing),
        false => Arc::clone(&outgoing),
    };
    known
        .peers
        .iter()
        .map(|(cluster, peer)| (cluster.clone(), told(&peer.link)))
        .collect()
}

/// The peers with whom data may be exchanged.
fn active<'a>(known: &Known<'a>) -> impl Iterator<Item = (&'a ClusterId, &'a PeerView)> {
    let peers = known.peers.iter();
    peers.filter(|(_, peer)| !peer.link.pending)
}

fn plan_links(peers: &PeersView) -> BTreeMap<ClusterId, PlannedLink> {
    peers
        .iter()
        .map(|(cluster, peer)| (cluster.clone(), plan_link(peer)))
        .collect()
}

fn plan_link(peer: &PeerView) -> PlannedLink {
    let mut addresses = peer.link.addresses.clone();
    for announced in peer.records.addresses() {
        if !addresses.contains(announced) {
            addresses.push(announced.clone());
        }
    }
    addresses.truncate(MAX_ADDRESSES);
    PlannedLink {
        link: Arc::clone(&peer.link),
        addresses,
        bundle: peer.bundle().clone(),
        usable: peer.usable && !peer.link.pending,
        up: peer.usable,
        stale: peer.stale,
    }
}

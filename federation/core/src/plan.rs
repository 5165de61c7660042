//! From what is known to what should be: one pure function.
//!
//! A service that peers export is reached under its one name everywhere. A Service of
//! this cluster that is *not* exported stays this cluster's own: no peer can contribute
//! to it, so a peer never draws traffic that was not shared with it on purpose.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use crate::capacity::{HighWater, Listed};
use crate::declared::{Declared, DeclaredService};
use crate::gateways::Gateways;
use crate::merge::{Contribution, Merged, merge};
use crate::model::{
    Address, AppProtocol, Bundle, ClusterCapacity, ClusterId, Condition, ConditionStatus, Endpoint,
    EndpointId, Export, ExportedEndpoint, FailbackConfig, Import, Link, Locality, OwnCluster,
    Service, ServiceKey, TrustDomain,
};
use crate::peer::{Now, PeerView};
use crate::peers::PeersView;
use crate::workloads::{Registration, Workloads};

#[cfg(test)]
mod tests;

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
}

/// What should be.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Desired {
    /// What proxies may subscribe to.
    pub services: BTreeMap<ServiceKey, Arc<Service>>,
    /// Services exported by anyone, merged.
    pub imports: BTreeMap<ServiceKey, Import>,
    /// What each workload itself serves, by UID.
    pub inbound: BTreeMap<String, Vec<InboundService>>,
    /// What peers may reach through our gateways.
    pub exported: BTreeMap<ServiceKey, ExportedService>,
    /// What each peer is told.
    pub outgoing: BTreeMap<ClusterId, Arc<Outgoing>>,
    /// Links as gateways and proxies need them.
    pub links: BTreeMap<ClusterId, PlannedLink>,
    /// Conditions of our ServiceExports.
    pub export_conditions: BTreeMap<ServiceKey, Vec<Condition>>,
    /// Conditions of the imports.
    pub import_conditions: BTreeMap<ServiceKey, Vec<Condition>>,
    /// What is wrong with what is declared.
    pub problems: Vec<String>,
}

/// A service that a workload serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InboundService {
    /// Which service.
    pub service: ServiceKey,
    /// Its ports.
    pub ports: Vec<InboundPort>,
    /// Trust domains of the peers to which it is exported.
    pub exported_to: BTreeSet<TrustDomain>,
}

/// A port of an [`InboundService`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InboundPort {
    /// The Service port.
    pub port: u16,
    /// The application's own port.
    pub target_port: u16,
    /// How its bytes are to be understood.
    pub app_protocol: AppProtocol,
}

/// A service that peers may reach.
#[derive(Clone, Debug, PartialEq)]
pub struct ExportedService {
    /// Which service.
    pub service: ServiceKey,
    /// Its Service ports.
    pub ports: Vec<u16>,
    /// Peers to which it is exported.
    pub peers: BTreeSet<ClusterId>,
    /// Its endpoints in this cluster, with their addresses.
    pub endpoints: Vec<Arc<Endpoint>>,
}

/// What a peer is told, beside our roots.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outgoing {
    /// Services exported to it.
    pub exports: BTreeMap<ServiceKey, Arc<Export>>,
    /// Their endpoints, without addresses.
    pub endpoints: BTreeMap<(ServiceKey, EndpointId), ExportedEndpoint>,
    /// Where our gateways can be dialled.
    pub gateways: Vec<Address>,
}

/// A link and what is known of its peer.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedLink {
    /// As declared.
    pub link: Arc<Link>,
    /// Where to dial: declared addresses first, then announced ones.
    pub addresses: Vec<Address>,
    /// The roots in force.
    pub bundle: Bundle,
    /// Whether the peer's endpoints may be used.
    pub usable: bool,
    /// Whether its records are not being kept up to date.
    pub stale: bool,
}

/// Most addresses of a peer that are dialled.
const MAX_ADDRESSES: usize = 8;

/// What each locality lists now, for [`HighWater::observe`].
pub fn listed(declared: &Declared, workloads: &Workloads) -> Listed {
    let count = |service: &DeclaredService| count_localities(selected(service, workloads));
    declared
        .services
        .iter()
        .map(|(key, service)| (key.clone(), count(service)))
        .collect()
}

/// Makes the plan.
pub fn plan(known: &Known<'_>, now: Now) -> Desired {
    let local: BTreeMap<_, _> = known
        .declared
        .services
        .iter()
        .map(|(key, service)| (key.clone(), local_service(known, service, now)))
        .collect();
    let merged = merge_all(known, &local);
    Desired {
        services: plan_services(known, &local, &merged),
        inbound: plan_inbound(known),
        exported: plan_exported(known, &local),
        outgoing: plan_outgoing(known, &local),
        links: plan_links(known.peers),
        export_conditions: export_conditions(known, &merged),
        import_conditions: import_conditions(&merged),
        imports: merged
            .into_iter()
            .map(|(key, merged)| (key, merged.import))
            .collect(),
        problems: known.declared.problems.clone(),
    }
}

/// What this cluster itself has of a declared service.
struct Local<'a> {
    service: &'a DeclaredService,
    /// With the host name of each.
    endpoints: Vec<(Arc<Endpoint>, &'a str)>,
    capacity: Vec<(Locality, u32)>,
    /// Set where the service may be exported and is.
    export: Option<Arc<Export>>,
}

fn selected<'a>(
    service: &'a DeclaredService,
    workloads: &'a Workloads,
) -> impl Iterator<Item = &'a Registration> {
    workloads
        .counting()
        .filter(|workload| service.selects(&workload.namespace, &workload.labels))
}

fn count_localities<'a>(
    workloads: impl Iterator<Item = &'a Registration>,
) -> BTreeMap<Locality, u32> {
    let mut counts = BTreeMap::new();
    for workload in workloads {
        *counts.entry(workload.locality.clone()).or_default() += 1;
    }
    counts
}

fn local_service<'a>(known: &Known<'a>, service: &'a DeclaredService, now: Now) -> Local<'a> {
    let endpoint = |workload: &'a Registration| {
        let address: Option<SocketAddr> = Some(workload.address);
        let endpoint = Endpoint {
            id: workload.endpoint_id(),
            cluster: known.own.cluster.clone(),
            locality: workload.locality.clone(),
            identity: workload.identity.clone(),
            ready: workload.ready,
            weight: workload.weight,
            address,
        };
        (Arc::new(endpoint), workload.hostname.as_str())
    };
    let endpoints = selected(service, known.workloads).map(endpoint).collect();
    let counts = count_localities(selected(service, known.workloads));
    let capacity = known
        .high_water
        .expected(&service.key, &counts, now.instant);
    let declared = known.declared.exports.get(&service.key);
    let export = declared
        .zip(service.import_type)
        .map(|(declared, import_type)| {
            Arc::new(Export {
                service: service.key.clone(),
                ports: service.service_ports(),
                import_type,
                session_affinity: service.session_affinity,
                created: declared.created.min(now.wall),
                capacity: capacity.clone(),
            })
        });
    Local {
        service,
        endpoints,
        capacity,
        export,
    }
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
    for (cluster, peer) in known.peers {
        peer.records
            .exports()
            .for_each(|export| contribute(cluster, export));
    }
    contributions
        .into_iter()
        .filter_map(|(key, of)| merge(&key, &of).map(|merged| (key, merged)))
        .collect()
}

fn plan_services(
    known: &Known<'_>,
    local: &BTreeMap<ServiceKey, Local<'_>>,
    merged: &BTreeMap<ServiceKey, Merged>,
) -> BTreeMap<ServiceKey, Arc<Service>> {
    let keys: BTreeSet<_> = local.keys().chain(merged.keys()).collect();
    let plan = |key: &ServiceKey| match (local.get(key), merged.get(key)) {
        // Not exported by us: ours alone, whatever peers export under its name.
        (Some(local), _) if local.export.is_none() => Some(own_service(known, local)),
        (local, Some(merged)) => Some(shared_service(known, local, &merged.import)),
        (Some(local), None) => Some(own_service(known, local)),
        (None, None) => None,
    };
    keys.into_iter()
        .filter_map(|key| Some((key.clone(), Arc::new(plan(key)?))))
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
    }
}

fn shared_service(known: &Known<'_>, local: Option<&Local<'_>>, import: &Import) -> Service {
    let mut endpoints: Vec<Arc<Endpoint>> = Vec::new();
    // An endpoint id counts once, own ones first: a peer cannot shadow another's endpoint.
    let mut ids = BTreeSet::new();
    let own = local
        .into_iter()
        .flat_map(|local| &local.endpoints)
        .map(|(endpoint, _)| endpoint);
    let peers = known
        .peers
        .values()
        .flat_map(|peer| peer.records.endpoints(&import.service));
    for endpoint in own.chain(peers.map(|of| &of.endpoint)) {
        if ids.insert(endpoint.id.clone()) {
            endpoints.push(Arc::clone(endpoint));
        }
    }
    let clusters = import
        .clusters
        .iter()
        .map(|(cluster, capacity)| {
            (
                cluster.clone(),
                at_least_listed(cluster, capacity, &endpoints),
            )
        })
        .collect();
    Service {
        key: import.service.clone(),
        ports: import.ports.clone(),
        clusters,
        endpoints,
        failback: known.failback,
    }
}

/// A cluster's capacity, raised where it lists more endpoints than it says to expect.
fn at_least_listed(
    cluster: &ClusterId,
    capacity: &ClusterCapacity,
    endpoints: &[Arc<Endpoint>],
) -> ClusterCapacity {
    let mut counts: BTreeMap<Locality, u32> = BTreeMap::new();
    for endpoint in endpoints
        .iter()
        .filter(|endpoint| endpoint.cluster == *cluster)
    {
        *counts.entry(endpoint.locality.clone()).or_default() += 1;
    }
    for (locality, expected) in &capacity.localities {
        let count = counts.entry(locality.clone()).or_default();
        *count = (*count).max(*expected);
    }
    ClusterCapacity {
        localities: counts.into_iter().collect(),
        ports: capacity.ports.clone(),
    }
}

fn plan_inbound(known: &Known<'_>) -> BTreeMap<String, Vec<InboundService>> {
    let peers: BTreeSet<_> = known
        .peers
        .values()
        .map(|peer| peer.link.trust_domain.clone())
        .collect();
    let mut inbound: BTreeMap<String, Vec<InboundService>> = BTreeMap::new();
    for workload in known.workloads.counting() {
        let served = known
            .declared
            .services
            .values()
            .filter(|service| service.selects(&workload.namespace, &workload.labels))
            .map(|service| inbound_service(known, service, &peers));
        inbound.insert(workload.uid.clone(), served.collect());
    }
    inbound
}

fn inbound_service(
    known: &Known<'_>,
    service: &DeclaredService,
    peers: &BTreeSet<TrustDomain>,
) -> InboundService {
    let exported =
        service.import_type.is_some() && known.declared.exports.contains_key(&service.key);
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
        exported_to: if exported {
            peers.clone()
        } else {
            BTreeSet::new()
        },
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
                peers: known.peers.keys().cloned().collect(),
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
    let outgoing = Arc::new(outgoing);
    known
        .peers
        .keys()
        .map(|cluster| (cluster.clone(), Arc::clone(&outgoing)))
        .collect()
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
        usable: peer.usable,
        stale: peer.stale,
    }
}

fn export_conditions(
    known: &Known<'_>,
    merged: &BTreeMap<ServiceKey, Merged>,
) -> BTreeMap<ServiceKey, Vec<Condition>> {
    let exports = known.declared.exports.keys();
    exports
        .map(|key| {
            (
                key.clone(),
                conditions_of_export(known, key, merged.get(key)),
            )
        })
        .collect()
}

fn conditions_of_export(
    known: &Known<'_>,
    key: &ServiceKey,
    merged: Option<&Merged>,
) -> Vec<Condition> {
    use ConditionStatus::{False, True};
    let invalid = |reason, message: String| {
        let ready = "nothing is exported until the export is valid";
        vec![
            Condition::new("Valid", False, reason, message),
            Condition::new("Ready", False, "Pending", ready),
        ]
    };
    match known.declared.services.get(key) {
        None => invalid(
            "NoService",
            format!("there is no Service `{key}` in this cluster; declare it"),
        ),
        Some(service) if service.import_type.is_none() => {
            let message = format!("Service `{key}` is an ExternalName, which cannot be exported");
            invalid("InvalidServiceType", message)
        }
        Some(_) => {
            let message = match known.peers.len() {
                0 => "no cluster is linked yet".to_owned(),
                1 => "offered to 1 linked cluster".to_owned(),
                links => format!("offered to {links} linked clusters"),
            };
            let mut conditions = vec![
                Condition::new("Valid", True, "Valid", ""),
                Condition::new("Ready", True, "Exported", message),
            ];
            conditions.extend(merged.map(Merged::condition));
            conditions
        }
    }
}

fn import_conditions(
    merged: &BTreeMap<ServiceKey, Merged>,
) -> BTreeMap<ServiceKey, Vec<Condition>> {
    let ready = |merged: &Merged| {
        let clusters: Vec<_> = merged
            .import
            .clusters
            .keys()
            .map(ClusterId::as_str)
            .collect();
        let message = format!("exported by {}", clusters.join(", "));
        vec![Condition::new(
            "Ready",
            ConditionStatus::True,
            "Ready",
            message,
        )]
    };
    merged
        .iter()
        .map(|(key, merged)| (key.clone(), ready(merged)))
        .collect()
}

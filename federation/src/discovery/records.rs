//! The records of one proxy, from the newest world: those that everything else refers to first.

use std::{collections::BTreeSet, net::IpAddr};

use linkspan_api::v1::{self, discover_record::Body};
use linkspan_core::{
    Bundle, ClusterCapacity, ClusterId, Endpoint, Service, ServiceKey, TrustDomain,
    imports::{ImportPort, admitting},
    plan::{ExportedService, InboundPort, InboundService, PlannedLink, UnmeshedServer, Vip},
};

use super::failover;
use crate::{
    controller::{Buried, World},
    convert::{
        wire_address, wire_capacity, wire_key, wire_labels, wire_locality, wire_port, wire_protocol,
    },
    identity::trust_bundle,
};

/// What a sidecar is told: roots, gateways, peers, what its own workload serves, and the
/// services that it follows with their endpoints; and which address stands for which service, if it
/// captures calls.
pub(super) fn sidecar(
    world: &World,
    uid: &str,
    subscription: &BTreeSet<ServiceKey>,
    captures: bool,
) -> Vec<v1::DiscoverRecord> {
    // Roots that no tunnel has proved yet are not for workloads.
    let pending = |domain: &TrustDomain| {
        let mut links = world.desired.links.values();
        links.any(|link| link.link.pending && link.link.trust_domain == *domain)
    };
    let mut records: Vec<_> = bundles(world, |domain| !pending(domain)).collect();
    records.extend(gateways(world));
    let active = world
        .desired
        .links
        .iter()
        .filter(|(_, link)| !link.link.pending);
    records.extend(active.map(|(cluster, link)| peer(cluster, link)));
    records.extend(
        world
            .desired
            .inbound
            .get(uid)
            .into_iter()
            .flatten()
            .map(inbound),
    );
    if captures {
        records.extend(world.desired.vips.iter().map(vip));
    }
    for key in subscription {
        if let Some(of) = world.desired.services.get(key) {
            records.extend(followed(of));
        }
    }
    records
}

fn vip((address, of): (&IpAddr, &Vip)) -> v1::DiscoverRecord {
    let body = v1::Vip {
        address: address.to_string(),
        service: Some(wire_key(&of.service)),
        ports: of.ports.iter().map(|port| u32::from(*port)).collect(),
    };
    record(format!("vip/{address}"), Body::Vip(body))
}

/// A service with its endpoints.
pub(crate) fn followed(of: &Service) -> Vec<v1::DiscoverRecord> {
    let asked = of
        .policy
        .iter()
        .flat_map(|policy| policy.label_keys())
        .collect();
    let endpoints = of
        .endpoints
        .iter()
        .map(|each| endpoint(&of.key, each, &asked));
    std::iter::once(service(of)).chain(endpoints).collect()
}

/// What a gateway is told: roots, its siblings, links, whom to send away, what peers may reach, which
/// servers have no sidecar, and, where it serves clients without one (`imports`), what these may.
pub(super) fn gateway(world: &World, imports: bool) -> Vec<v1::DiscoverRecord> {
    let mut records: Vec<_> = bundles(world, |_| true).collect();
    records.extend(world.buried.iter().flat_map(tombstone));
    records.extend(gateways(world));
    records.extend(
        world
            .desired
            .links
            .iter()
            .map(|(cluster, of)| link(cluster, of)),
    );
    for (key, of) in &world.desired.exported {
        records.push(exported(of));
        let none = BTreeSet::new();
        records.extend(of.endpoints.iter().map(|of| endpoint(key, of, &none)));
    }
    for (key, of) in &world.desired.unmeshed {
        records.push(inbound(&of.served));
        records.extend(of.servers.iter().map(|server| unmeshed(key, server)));
    }
    if imports {
        let imported = imported(world);
        // What is told under the same key comes with more labels.
        let keys: BTreeSet<_> = imported.iter().map(|record| record.key.clone()).collect();
        records.retain(|record| !keys.contains(&record.key));
        records.extend(imported);
    }
    records
}

/// The ports for clients without a sidecar, and the services behind them.
fn imported(world: &World) -> Vec<v1::DiscoverRecord> {
    let ports = world.desired.import_ports.iter();
    let mut records: Vec<_> = ports.map(|(of, listen)| import_port(of, *listen)).collect();
    let services: BTreeSet<_> = world
        .desired
        .import_ports
        .keys()
        .map(|of| &of.service)
        .collect();
    for key in services {
        let service = world.desired.services.get(key);
        let admitting = service.and_then(|service| admitting(service, &world.desired));
        records.extend(admitting.iter().flat_map(followed));
    }
    records
}

fn import_port(of: &ImportPort, listen: u16) -> v1::DiscoverRecord {
    let body = v1::ImportPort {
        service: Some(wire_key(&of.service)),
        port: of.port.into(),
        listen: listen.into(),
    };
    let key = format!("import/{}/{}", of.service, of.port);
    record(key, Body::ImportPort(body))
}

fn record(key: String, body: Body) -> v1::DiscoverRecord {
    v1::DiscoverRecord {
        key,
        body: Some(body),
    }
}

fn bundles(
    world: &World,
    wanted: impl Fn(&TrustDomain) -> bool,
) -> impl Iterator<Item = v1::DiscoverRecord> {
    let all = world
        .bundles
        .iter()
        .filter(move |(domain, _)| wanted(domain));
    all.map(|(domain, roots)| bundle(domain, roots))
}

fn bundle(domain: &TrustDomain, roots: &Bundle) -> v1::DiscoverRecord {
    record(
        format!("bundle/{domain}"),
        Body::Bundle(trust_bundle(domain, roots)),
    )
}

/// The roots let a peer that was unlinked prove that it is the one to be told.
fn tombstone(of: &Buried) -> [v1::DiscoverRecord; 2] {
    let body = v1::Tombstone {
        gateway_spiffe_id: of.gateway.to_string(),
        invitation: of
            .invitation
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
    };
    [
        bundle(&of.trust_domain, &of.roots),
        record(
            format!("tombstone/{}", of.trust_domain),
            Body::Tombstone(body),
        ),
    ]
}

/// Replicas that are not ready are left out; draining ones are told as such.
fn gateways(world: &World) -> impl Iterator<Item = v1::DiscoverRecord> {
    // To servers without a sidecar gateways lead from their own cluster, too.
    let mut unmeshed = world.desired.unmeshed.values();
    let own = unmeshed.next().map(|of| &of.cluster);
    world
        .gateways
        .iter()
        .filter(|gateway| gateway.ready || gateway.draining)
        .map(move |gateway| {
            let reachable = gateway.up.iter().chain(own);
            let body = v1::Gateway {
                replica: gateway.replica.clone(),
                egress_address: gateway.egress.to_string(),
                reachable: reachable.map(ToString::to_string).collect(),
                draining: gateway.draining,
            };
            record(format!("gateway/{}", gateway.replica), Body::Gateway(body))
        })
}

fn peer(cluster: &ClusterId, link: &PlannedLink) -> v1::DiscoverRecord {
    let body = v1::Peer {
        cluster: cluster.to_string(),
        trust_domain: link.link.trust_domain.to_string(),
        usable: link.usable,
        stale: link.stale,
    };
    record(format!("peer/{cluster}"), Body::Peer(body))
}

fn link(cluster: &ClusterId, link: &PlannedLink) -> v1::DiscoverRecord {
    let body = v1::Link {
        cluster: cluster.to_string(),
        trust_domain: link.link.trust_domain.to_string(),
        gateway_spiffe_id: link.link.gateway_id.to_string(),
        federation_spiffe_id: link.link.federation_id.to_string(),
        addresses: link.addresses.iter().map(wire_address).collect(),
        allow_loopback: link.link.allow_loopback,
    };
    record(format!("link/{cluster}"), Body::Link(body))
}

fn inbound(of: &InboundService) -> v1::DiscoverRecord {
    let port = |port: &InboundPort| v1::InboundPort {
        port: port.port.into(),
        target_port: port.target_port.into(),
        app_protocol: wire_protocol(port.app_protocol).into(),
    };
    let body = v1::InboundService {
        key: Some(wire_key(&of.service)),
        ports: of.ports.iter().map(port).collect(),
        exported_to: of.exported_to.iter().map(ToString::to_string).collect(),
        unmeshed_clients: of.unmeshed_clients,
    };
    record(format!("inbound/{}", of.service), Body::Inbound(body))
}

fn unmeshed(key: &ServiceKey, of: &UnmeshedServer) -> v1::DiscoverRecord {
    let port = |(port, address): (&u16, &std::net::SocketAddr)| v1::ServerPort {
        port: (*port).into(),
        address: address.to_string(),
    };
    let body = v1::UnmeshedServer {
        service: Some(wire_key(key)),
        id: of.id.to_string(),
        ready: of.ready,
        ports: of.addresses.iter().map(port).collect(),
    };
    record(
        format!("unmeshed/{key}/{}", of.id),
        Body::UnmeshedServer(body),
    )
}

fn service(of: &Service) -> v1::DiscoverRecord {
    let millis =
        |duration: std::time::Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let body = v1::Service {
        key: Some(wire_key(&of.key)),
        ports: of.ports.iter().map(wire_port).collect(),
        clusters: of
            .clusters
            .iter()
            .map(|(id, capacity)| cluster(id, capacity))
            .collect(),
        failback_hold_millis: millis(of.failback.hold),
        failback_ramp_millis: millis(of.failback.ramp),
        failover: of.policy.as_deref().map(failover::wire_policy),
        drained: of.drained.iter().map(ToString::to_string).collect(),
    };
    record(format!("service/{}", of.key), Body::Service(body))
}

fn cluster(id: &ClusterId, capacity: &ClusterCapacity) -> v1::ClusterCapacity {
    v1::ClusterCapacity {
        cluster: id.to_string(),
        localities: capacity.localities.iter().map(wire_capacity).collect(),
        ports: capacity.ports.iter().map(|port| u32::from(*port)).collect(),
    }
}

/// With those of its labels that are asked for: a proxy need not hear of a change of others.
fn endpoint(key: &ServiceKey, of: &Endpoint, asked: &BTreeSet<&str>) -> v1::DiscoverRecord {
    let labels = of
        .labels
        .iter()
        .filter(|(key, _)| asked.contains(key.as_str()));
    let body = v1::Endpoint {
        service: Some(wire_key(key)),
        id: of.id.to_string(),
        cluster: of.cluster.to_string(),
        locality: Some(wire_locality(&of.locality)),
        spiffe_id: of.identity.to_string(),
        ready: of.ready,
        weight: of.weight,
        incarnation: of.incarnation,
        address: of
            .address
            .map(|address| address.to_string())
            .unwrap_or_default(),
        labels: wire_labels(labels),
    };
    // Ids are unique within their cluster only.
    let key = format!("endpoint/{key}/{}/{}", of.cluster, of.id);
    record(key, Body::Endpoint(body))
}

fn exported(of: &ExportedService) -> v1::DiscoverRecord {
    let body = v1::ExportedService {
        key: Some(wire_key(&of.service)),
        ports: of.ports.iter().map(|port| u32::from(*port)).collect(),
        peers: of.peers.iter().map(ToString::to_string).collect(),
    };
    record(format!("exported/{}", of.service), Body::Exported(body))
}

//! What DNS is to say of the imports; see [`crate::dns`].

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::Known;
use super::local::Local;
use crate::dns::{Entry, Host, Port, Zone, host_name};
use crate::merge::Merged;
use crate::model::{Endpoint, Import, ImportType, ServiceKey, ServicePort};

pub(super) fn plan_zone(
    known: &Known<'_>,
    local: &BTreeMap<ServiceKey, Local<'_>>,
    merged: &BTreeMap<ServiceKey, Merged>,
) -> Zone {
    let mut zone = Zone::default();
    for (key, merged) in merged {
        let entry = match merged.import.import_type {
            // The ports that the address has.
            ImportType::ClusterSetIP => cluster_set_ip(known, &merged.seen),
            ImportType::Headless => Entry::Headless(hosts(known, key, local.get(key))),
        };
        zone.insert(key.clone(), entry);
    }
    zone
}

fn cluster_set_ip(known: &Known<'_>, import: &Import) -> Entry {
    let addresses = known.declared.clusterset_ips.get(&import.service);
    let ports = import.ports.iter();
    Entry::ClusterSetIP {
        addresses: addresses.cloned().unwrap_or_default(),
        ports: ports
            .filter_map(|port| named(port, Some(port.port)))
            .collect(),
    }
}

/// Endpoints of this cluster that are ready. Those of other clusters have no address here.
fn hosts(known: &Known<'_>, key: &ServiceKey, local: Option<&Local<'_>>) -> BTreeMap<String, Host> {
    let mut hosts: BTreeMap<String, Host> = BTreeMap::new();
    // What is not exported stays this cluster's own, under its own name.
    let Some(local) = local.filter(|local| local.export.is_some()) else {
        return hosts;
    };
    let ready = local.endpoints.iter();
    for (endpoint, hostname) in ready.filter(|(endpoint, _)| endpoint.ready) {
        let name = host_name(hostname, endpoint.id.as_str(), &endpoint.cluster, key);
        let (Some(name), Some(at)) = (name, reached_at(known, local, endpoint)) else {
            continue;
        };
        let host = hosts.entry(name).or_default();
        host.addresses.push(at.address);
        host.ports.extend(at.ports);
    }
    for host in hosts.values_mut() {
        host.addresses.sort();
        host.addresses.dedup();
        host.ports.sort();
        host.ports.dedup();
    }
    hosts
}

struct Reached {
    address: IpAddr,
    ports: Vec<Port>,
}

/// Where an endpoint's own ports are: not those at which its sidecar takes the mesh's calls.
fn reached_at(known: &Known<'_>, local: &Local<'_>, endpoint: &Endpoint) -> Option<Reached> {
    let ports = local.service.ports.iter();
    if let Some(at) = endpoint.address {
        let ports = ports.filter_map(|port| named(&port.service_port, Some(port.target_port)));
        return Some(Reached {
            address: at.ip(),
            ports: ports.collect(),
        });
    }
    let servers = known.declared.servers_of(&local.service.key);
    let server = servers.iter().find(|server| server.id == endpoint.id)?;
    let at = server.addresses(local.service);
    let number = |port: &ServicePort| Some(at.get(&port.port)?.port());
    let ports = ports.filter_map(|port| named(&port.service_port, number(&port.service_port)));
    Some(Reached {
        address: server.ip,
        ports: ports.collect(),
    })
}

fn named(port: &ServicePort, number: Option<u16>) -> Option<Port> {
    Some(Port {
        name: port.name.clone()?,
        number: number?,
    })
}

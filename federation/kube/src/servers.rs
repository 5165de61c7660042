//! What EndpointSlices say of the exported Services: which pods serve them without a sidecar, so
//! that gateways take calls for them, and where callers of this cluster reach all of them directly.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use linkspan_core::declared::{Declared, DeclaredService};
use linkspan_core::direct::{DirectEndpoint, Entry, PodName};
use linkspan_core::servers::DeclaredServer;
use linkspan_core::{EndpointId, Locality, ServiceKey};

use crate::kinds::{REGION, SLICE_MANAGED_BY, ZONE};
use crate::mirror::Key;
use crate::mirrors::Mirrors;
use crate::seen::SeenPod;
use crate::service::SERVICE_NAME;

/// Kubernetes itself, from the pods that a Service selects. Others' slices make no gateway dial;
/// but whoever writes slices can write this, too, so that of what stands in them only what the
/// pods themselves bear out is believed.
const KUBERNETES: &str = "endpointslice-controller.k8s.io";

/// What is known by namespace and name of pods.
pub(crate) type Pods = BTreeMap<Key, Arc<SeenPod>>;

/// What else is known around slices.
#[derive(Default)]
pub(crate) struct Surroundings {
    /// Where each node is.
    pub(crate) nodes: BTreeMap<String, Locality>,
    /// The addresses of the nodes.
    pub(crate) node_ips: BTreeSet<IpAddr>,
    /// Where endpoints are of which no more is known.
    pub(crate) locality: Locality,
    /// The addresses of the API servers.
    pub(crate) api_servers: BTreeSet<IpAddr>,
    /// Set while it is not known which pods have a sidecar: then only these may serve.
    pub(crate) only: Option<BTreeSet<EndpointId>>,
}

/// Puts into `declared` what the slices say of what is exported there.
pub(crate) fn read<'a>(
    slices: impl Iterator<Item = &'a EndpointSlice>,
    pods: &Pods,
    around: &Surroundings,
    declared: &mut Declared,
) {
    let mut of_service: BTreeMap<ServiceKey, Vec<&EndpointSlice>> = BTreeMap::new();
    for (key, slice) in slices.filter_map(|slice| Some((service_of(slice)?, slice))) {
        let exported = declared.exports.contains_key(&key);
        // What is being deleted, Kubernetes does not put right any more.
        let lives = slice.metadata.deletion_timestamp.is_none();
        if exported && lives && slice.address_type != "FQDN" {
            of_service.entry(key).or_default().push(slice);
        }
    }
    for (key, slices) in of_service {
        let Some(service) = declared.services.get(&key) else {
            continue;
        };
        let direct = direct(&slices);
        let found = servers(service, &slices, pods, around);
        declared.problems.extend(found.problems);
        if !found.servers.is_empty() {
            declared.servers.insert(key.clone(), found.servers);
        }
        if !direct.is_empty() {
            declared.direct.insert(key, direct);
        }
    }
}

fn service_of(slice: &EndpointSlice) -> Option<ServiceKey> {
    let name = slice.metadata.labels.as_ref()?.get(SERVICE_NAME)?;
    ServiceKey::new(slice.metadata.namespace.as_deref()?, name).ok()
}

/// All endpoints, in a fixed order.
fn direct(slices: &[&EndpointSlice]) -> Vec<DirectEndpoint> {
    let mut all: Vec<_> = slices
        .iter()
        .flat_map(|slice| {
            let ports = ports(slice);
            let endpoints = slice.endpoints.iter();
            endpoints.filter_map(move |endpoint| direct_of(endpoint, &ports))
        })
        .collect();
    all.sort();
    all.dedup();
    all
}

fn direct_of(endpoint: &Endpoint, ports: &BTreeMap<String, u16>) -> Option<DirectEndpoint> {
    let pod = pod_of(endpoint).and_then(|uid| {
        let name = endpoint.target_ref.as_ref()?.name.clone()?;
        let uid = uid.to_owned();
        Some(PodName { name, uid })
    });
    let conditions = endpoint.conditions.as_ref();
    let of = |flag: fn(&k8s_openapi::api::discovery::v1::EndpointConditions) -> Option<bool>| {
        conditions.and_then(flag)
    };
    let ready = of(|of| of.ready).unwrap_or(true);
    let entry = Entry {
        ip: address(endpoint)?,
        ready,
        serving: of(|of| of.serving).unwrap_or(ready),
        terminating: of(|of| of.terminating).unwrap_or(false),
        hostname: endpoint.hostname.clone(),
        node: endpoint.node_name.clone(),
        zone: endpoint.zone.clone(),
        pod,
    };
    let ports = ports.clone();
    Some(DirectEndpoint { entry, ports })
}

struct Found {
    servers: Vec<DeclaredServer>,
    problems: Vec<String>,
}

/// Pods without a sidecar that Kubernetes itself says the Service selects, and that say so, too.
fn servers(
    service: &DeclaredService,
    slices: &[&EndpointSlice],
    pods: &Pods,
    around: &Surroundings,
) -> Found {
    let key = &service.key;
    let mut found: BTreeMap<EndpointId, DeclaredServer> = BTreeMap::new();
    let mut problems = BTreeSet::new();
    // Without a selector, whoever may write slices says what serves it, not which pods there are.
    let trusted = slices.iter().filter(|slice| {
        let labels = slice.metadata.labels.as_ref();
        let writer = labels.and_then(|labels| labels.get(SLICE_MANAGED_BY));
        !service.selector.is_empty() && writer.is_some_and(|writer| writer == KUBERNETES)
    });
    for slice in trusted {
        let ports = ports(slice);
        for endpoint in &slice.endpoints {
            let (Some(uid), Some(ip)) = (pod_of(endpoint), address(endpoint)) else {
                continue;
            };
            let pod = named(endpoint, uid, key, pods);
            if pod.is_some_and(SeenPod::is_meshed) || ports.is_empty() {
                continue;
            }
            if let Err(why) = admissible(pod, ip, around) {
                problems.insert(format!("Service {key}: {why}"));
                continue;
            }
            // It need not be forged: pods and slices are heard of one after the other.
            if !pod.is_some_and(|pod| pod.has(ip) && is_selected(pod, service)) {
                continue;
            }
            let id = EndpointId::from_uid(uid);
            if around.only.as_ref().is_some_and(|only| !only.contains(&id)) {
                continue;
            }
            let server = server(id.clone(), ip, endpoint, &ports, key, around);
            match found.get_mut(&id) {
                None => drop(found.insert(id, server)),
                // Of two families, one address is enough.
                Some(first) if first.ip > ip => *first = server,
                Some(first) if first.ip == ip => first.ports.extend(server.ports),
                Some(_) => {}
            }
        }
    }
    Found {
        servers: found.into_values().collect(),
        problems: problems.into_iter().collect(),
    }
}

/// The pod that the endpoint names, if there is such a one in the Service's namespace.
fn named<'a>(
    endpoint: &Endpoint,
    uid: &str,
    service: &ServiceKey,
    pods: &'a Pods,
) -> Option<&'a SeenPod> {
    let name = endpoint.target_ref.as_ref()?.name.clone()?;
    let pod = pods.get(&(service.namespace.to_string(), name))?;
    (pod.metadata.uid.as_deref() == Some(uid)).then_some(pod)
}

fn is_selected(pod: &SeenPod, service: &DeclaredService) -> bool {
    let labels = pod.metadata.labels.as_ref();
    labels.is_some_and(|labels| service.selects(service.key.namespace.as_str(), labels))
}

fn server(
    id: EndpointId,
    ip: IpAddr,
    endpoint: &Endpoint,
    ports: &BTreeMap<String, u16>,
    service: &ServiceKey,
    around: &Surroundings,
) -> DeclaredServer {
    let pod = endpoint.target_ref.as_ref().and_then(|of| of.name.clone());
    let conditions = endpoint.conditions.as_ref();
    let ready = conditions.and_then(|of| of.ready).unwrap_or(true);
    let terminating = conditions.and_then(|of| of.terminating).unwrap_or(false);
    DeclaredServer {
        id,
        ip,
        ports: ports.clone(),
        // One that is going finishes what it has and takes nothing new.
        ready: ready && !terminating,
        terminating,
        locality: locality(endpoint, around),
        hostname: endpoint.hostname.clone().unwrap_or_default(),
        origin: format!(
            "Service {service}: pod {}",
            pod.as_deref().unwrap_or("without a name")
        ),
    }
}

/// Where the endpoint is: the zone as the slice says it, the rest as its node does.
fn locality(endpoint: &Endpoint, around: &Surroundings) -> Locality {
    let node = endpoint.node_name.as_ref();
    let node = node.and_then(|name| around.nodes.get(name));
    let mut locality = node.cloned().unwrap_or_default();
    if let Some(zone) = endpoint.zone.as_deref().filter(|zone| !zone.is_empty()) {
        locality.zone = zone.into();
    }
    if locality.region.is_empty() {
        locality.region = around.locality.region.clone();
        if locality.zone.is_empty() {
            locality.zone = around.locality.zone.clone();
        }
    }
    locality
}

/// Whether a gateway may call there for others.
fn admissible(pod: Option<&SeenPod>, ip: IpAddr, around: &Surroundings) -> Result<(), String> {
    if pod.is_some_and(SeenPod::is_on_host) {
        return Err(
            "some of its pods use the networks of their nodes; no peer is led there: give them one \
             of their own"
                .to_owned(),
        );
    }
    let local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    if local || ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() {
        return Err(format!("{ip} is no address of a pod; no peer is led there"));
    }
    if around.api_servers.contains(&ip) {
        return Err(format!(
            "{ip} is an API server's address; no peer is led there"
        ));
    }
    match around.node_ips.contains(&ip) {
        true => Err(format!("{ip} is a node's address; no peer is led there")),
        false => Ok(()),
    }
}

/// The UID of the pod that it is.
fn pod_of(endpoint: &Endpoint) -> Option<&str> {
    let target = endpoint.target_ref.as_ref()?;
    let is_pod = target.kind.as_deref() == Some("Pod");
    target
        .uid
        .as_deref()
        .filter(|uid| is_pod && !uid.is_empty())
}

fn address(endpoint: &Endpoint) -> Option<IpAddr> {
    let ip: IpAddr = endpoint.addresses.first()?.parse().ok()?;
    Some(ip.to_canonical())
}

/// TCP ports by name.
fn ports(slice: &EndpointSlice) -> BTreeMap<String, u16> {
    let ports = slice.ports.iter().flatten();
    let tcp = ports.filter(|port| port.protocol.as_deref().unwrap_or("TCP") == "TCP");
    tcp.filter_map(|port| {
        let number = u16::try_from(port.port?).ok()?;
        Some((port.name.clone().unwrap_or_default(), number))
    })
    .collect()
}

/// What the mirrors show around the slices. `last` is what was declared before.
pub(crate) fn surroundings(
    mirrors: &Mirrors,
    locality: &Locality,
    last: Option<&Declared>,
) -> Surroundings {
    let in_doubt = mirrors.pods.read().trouble.is_some();
    let known = || {
        let servers = last.iter().flat_map(|last| last.servers.values().flatten());
        servers.map(|server| server.id.clone()).collect()
    };
    let slices = mirrors.slices.read();
    let api = slices
        .objects
        .values()
        .filter(|slice| service_of(slice).is_some_and(|of| of.to_string() == "default/kubernetes"));
    let api_servers = api.flat_map(|slice| slice.endpoints.iter().filter_map(address));
    let nodes = mirrors.nodes.read();
    let node_ips = nodes.objects.values().flat_map(|node| node.ips()).collect();
    let nodes = nodes.objects.iter().map(|((_, name), node)| {
        let labels = node.metadata.labels.as_ref();
        let label = |name| {
            labels
                .and_then(|of| of.get(name))
                .map_or("", String::as_str)
        };
        (name.clone(), Locality::new(label(REGION), label(ZONE)))
    });
    Surroundings {
        nodes: nodes.collect(),
        node_ips,
        locality: locality.clone(),
        api_servers: api_servers.collect(),
        only: in_doubt.then(known),
    }
}

#[cfg(test)]
mod tests;

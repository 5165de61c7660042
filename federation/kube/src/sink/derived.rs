//! The Service and the EndpointSlices that stand for an import, as the documents that are applied;
//! `None` where they are so already.

use std::collections::BTreeSet;
use std::net::IpAddr;

use kube::ResourceExt as _;
use kube::api::DynamicObject;
use linkspan_core::derived::{Derived, Slice, SliceKey, derived_name, held, port_names};
use linkspan_core::direct::{Entry, PodName};
use linkspan_core::{ClusterId, Import, ServiceKey, affinity_text};
use serde_json::{Value, json};

use super::render::{head, protocol_text};
use crate::kinds::{
    self, IMPORT_NAME, MANAGED_BY, MANAGED_BY_LABEL, SLICE_MANAGED_BY, SOURCE_CLUSTER, is_ours,
};
use crate::mirror::Key;
use crate::service::SERVICE_NAME;

/// Longest value of a label.
const MAX_LABEL: usize = 63;

/// How the Service of an import comes to be what it should.
pub(super) enum Write {
    /// By server-side apply of this document.
    Apply(Value),
    /// By a merge with this one: apply takes away nothing that somebody else has put there.
    Merge(Value),
}

/// The Service of an import, with the ports of what is derived from it.
pub(super) fn service(
    import: &Import,
    derived: &Derived,
    owner: &DynamicObject,
    current: Option<&DynamicObject>,
) -> Option<Write> {
    let names = port_names(&derived.ports);
    let ports = derived.ports.iter().map(|port| {
        let mut of = json!({ "port": port.port, "protocol": "TCP" });
        if !names[&port.port].is_empty() {
            of["name"] = json!(&*names[&port.port]);
        }
        if let Some(protocol) = protocol_text(port.app_protocol) {
            of["appProtocol"] = json!(protocol);
        }
        of
    });
    let ports: Vec<_> = ports.collect();
    let spec = json!({
        "type": "ClusterIP",
        "ports": ports,
        "sessionAffinity": affinity_text(import.session_affinity),
    });
    let metadata = metadata(&derived_name(&import.service), &import.service, owner);
    let wanted = (metadata, spec);
    if current.is_some_and(|current| is_same_service(current, &wanted)) {
        return None;
    }
    if current.is_some_and(|current| has_more(current, &wanted.1)) {
        let (_, mut spec) = wanted;
        spec["selector"] = Value::Null;
        return Some(Write::Merge(json!({ "spec": spec })));
    }
    let mut document = head(&kinds::service());
    (document["metadata"], document["spec"]) = wanted;
    Some(Write::Apply(document))
}

/// Whether it has what we never gave it: a selector, by which Kubernetes writes slices for it, too,
/// or ports.
fn has_more(current: &DynamicObject, spec: &Value) -> bool {
    let found = &current.data["spec"];
    let numbers = |of: &Value| -> BTreeSet<(u64, String)> {
        let ports = of["ports"].as_array().into_iter().flatten();
        let number = |port: &Value| {
            let protocol = port["protocol"].as_str().unwrap_or("TCP");
            Some((port["port"].as_u64()?, protocol.to_owned()))
        };
        ports.filter_map(number).collect()
    };
    found.get("selector").is_some() || !numbers(found).is_subset(&numbers(spec))
}

/// Our fields only: Kubernetes fills in others.
fn is_same_service(current: &DynamicObject, (metadata, spec): &(Value, Value)) -> bool {
    let found = &current.data["spec"];
    let port = |of: &Value| {
        let field = |name: &str| of.get(name).cloned().unwrap_or_default();
        let name = of["name"].as_str().unwrap_or_default().to_owned();
        (name, field("port"), field("protocol"), field("appProtocol"))
    };
    let ports = |of: &Value| -> Vec<_> {
        let ports = of["ports"].as_array().into_iter().flatten();
        let mut ports: Vec<_> = ports.map(port).collect();
        ports.sort_by_key(|(name, ..)| name.clone());
        ports
    };
    ["type", "sessionAffinity"]
        .iter()
        .all(|field| found[*field] == spec[*field])
        && found.get("selector").is_none()
        && ports(found) == ports(spec)
        && has_metadata(current, metadata)
}

/// A slice of an import. With `hold`, what led somewhere goes on to.
pub(super) fn slice(
    service: &ServiceKey,
    (key, slice): (&SliceKey, &Slice),
    owner: &DynamicObject,
    current: Option<&DynamicObject>,
    hold: bool,
) -> Option<Value> {
    let kept = hold.then(|| held(&entries(current), slice));
    let slice = kept.as_ref().unwrap_or(slice);
    let mut metadata = metadata(&slice_name(service, key), service, owner);
    let labels = &mut metadata["labels"];
    labels[SERVICE_NAME] = json!(derived_name(service));
    labels[SOURCE_CLUSTER] = json!(label_of(&key.cluster));
    labels[SLICE_MANAGED_BY] = json!(MANAGED_BY);
    let family = if key.ipv6 { "IPv6" } else { "IPv4" };
    let mut port = json!({ "name": &*slice.port_name, "port": key.target, "protocol": "TCP" });
    if let Some(protocol) = protocol_text(slice.app_protocol) {
        port["appProtocol"] = json!(protocol);
    }
    let namespace = service.namespace.as_str();
    let endpoints = slice.entries.iter().map(|entry| endpoint(entry, namespace));
    let endpoints = json!(endpoints.collect::<Vec<_>>());
    let ports = json!([port]);
    let same = |current: &DynamicObject| {
        current.data["endpoints"] == endpoints
            && current.data["ports"] == ports
            && has_metadata(current, &metadata)
    };
    if current.is_some_and(same) {
        return None;
    }
    let mut document = head(&kinds::endpoint_slice());
    document["metadata"] = metadata;
    document["addressType"] = json!(family);
    document["endpoints"] = endpoints;
    document["ports"] = ports;
    Some(document)
}

/// The same for as long as the slice lives.
pub(super) fn slice_name(service: &ServiceKey, key: &SliceKey) -> String {
    let SliceKey {
        cluster,
        port,
        target,
        ipv6,
        part,
    } = key;
    let family = if *ipv6 { 6 } else { 4 };
    let (name, cluster) = (derived_name(service), cluster.label());
    format!("{name}-{cluster}-{port}-{target}-v{family}-{part}")
}

/// The id, or what stands for one that is too long for a label.
fn label_of(cluster: &ClusterId) -> String {
    match cluster.as_str() {
        id if id.len() <= MAX_LABEL => id.to_owned(),
        _ => cluster.label().to_string(),
    }
}

fn metadata(name: &str, service: &ServiceKey, owner: &DynamicObject) -> Value {
    json!({
        "name": name,
        "namespace": service.namespace.to_string(),
        "labels": {
            MANAGED_BY_LABEL: MANAGED_BY,
            IMPORT_NAME: service.name.to_string(),
        },
        // Gone with the import, whoever deletes that.
        "ownerReferences": [{
            "apiVersion": kinds::service_import().api_version,
            "kind": kinds::service_import().kind,
            "name": owner.name_any(),
            "uid": owner.uid(),
        }],
    })
}

/// Whether our labels and our owner are there.
fn has_metadata(current: &DynamicObject, wanted: &Value) -> bool {
    let labels = wanted["labels"].as_object().into_iter().flatten();
    let mut labels = labels
        .map(|(name, value)| current.labels().get(name).map(String::as_str) == value.as_str());
    let owner = &wanted["ownerReferences"][0]["uid"];
    let owners = current.owner_references();
    labels.all(|same| same) && owners.len() == 1 && owner == owners[0].uid.as_str()
}

fn endpoint(entry: &Entry, namespace: &str) -> Value {
    let mut endpoint = json!({
        "addresses": [entry.ip.to_string()],
        "conditions": {
            "ready": entry.ready,
            "serving": entry.serving,
            "terminating": entry.terminating,
        },
    });
    let optional = [
        ("hostname", &entry.hostname),
        ("nodeName", &entry.node),
        ("zone", &entry.zone),
    ];
    for (field, value) in optional {
        if let Some(value) = value {
            endpoint[field] = json!(value);
        }
    }
    if let Some(PodName { name, uid }) = &entry.pod {
        endpoint["targetRef"] =
            json!({ "kind": "Pod", "name": name, "namespace": namespace, "uid": uid });
    }
    endpoint
}

/// The entries of a slice of ours.
fn entries(current: Option<&DynamicObject>) -> Vec<Entry> {
    let endpoints = current.and_then(|current| current.data["endpoints"].as_array());
    let entry = |of: &Value| {
        let ip: IpAddr = of["addresses"][0].as_str()?.parse().ok()?;
        let condition = |name: &str| of["conditions"][name].as_bool().unwrap_or_default();
        let text = |name: &str| of[name].as_str().map(str::to_owned);
        let target = &of["targetRef"];
        let pod = target["name"].as_str().zip(target["uid"].as_str());
        Some(Entry {
            ip,
            ready: condition("ready"),
            serving: condition("serving"),
            terminating: condition("terminating"),
            hostname: text("hostname"),
            node: text("nodeName"),
            zone: text("zone"),
            pod: pod.map(|(name, uid)| PodName {
                name: name.to_owned(),
                uid: uid.to_owned(),
            }),
        })
    };
    endpoints.into_iter().flatten().filter_map(entry).collect()
}

/// The names of all slices of an import.
pub(super) fn slice_keys(service: &ServiceKey, derived: &Derived) -> impl Iterator<Item = Key> {
    let namespace = service.namespace.to_string();
    let service = service.clone();
    let names = derived.slices.keys().cloned();
    names.map(move |key| (namespace.clone(), slice_name(&service, &key)))
}

/// Whether we made it for an import: by its labels, and by its name, which nobody chooses by chance.
pub(super) fn is_derived(object: &DynamicObject) -> bool {
    let Some(import) = object.labels().get(IMPORT_NAME) else {
        return false;
    };
    let namespace = object.namespace().unwrap_or_default();
    let key = ServiceKey::new(&namespace, import);
    is_ours(object.metadata.labels.as_ref())
        && key.is_ok_and(|key| object.name_any().starts_with(&derived_name(&key)))
}

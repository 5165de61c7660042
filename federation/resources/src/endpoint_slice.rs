//! `discovery.k8s.io/v1 EndpointSlice`: servers of a Service that no sidecar registers.

use std::collections::HashSet;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::Metadata;
use crate::metadata::NAMESPACED;
use crate::rules;
use crate::shape::{Findings, ObjectShape, Shape, at_most, none_across, optional, required};
use crate::yaml::Node;

/// Label of a slice: the name of its Service, in the same namespace.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Most endpoints of one slice, as in Kubernetes.
const MAX_ENDPOINTS: usize = 1_000;
/// Most ports of one slice, as in Kubernetes.
const MAX_PORTS: usize = 100;

/// Servers of a Service. Other fields of discovery/v1 are tolerated and not read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointSlice {
    /// Name and namespace; the label [`SERVICE_NAME`] names the Service.
    pub metadata: Metadata,
    /// What the addresses are.
    pub address_type: AddressType,
    /// The servers.
    pub endpoints: Vec<SliceEndpoint>,
    /// Where all of them listen, by the name of the Service's port.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<SlicePort>,
}

impl EndpointSlice {
    /// The Service whose servers these are.
    pub fn service(&self) -> Option<&str> {
        self.metadata.labels.get(SERVICE_NAME).map(String::as_str)
    }
}

/// `addressType` of an [`EndpointSlice`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AddressType {
    /// IPv4.
    IPv4,
    /// IPv6.
    IPv6,
}

/// One server of an [`EndpointSlice`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SliceEndpoint {
    /// Its address; of several, which Kubernetes allows and nobody reads, the first.
    pub addresses: Vec<IpAddr>,
    /// What is known of it.
    #[serde(default)]
    pub conditions: SliceConditions,
    /// Its host name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Where it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
}

/// `conditions` of a [`SliceEndpoint`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SliceConditions {
    /// Whether it wants traffic; absent is yes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<bool>,
}

impl SliceConditions {
    /// Whether it wants traffic.
    pub fn is_ready(self) -> bool {
        self.ready.unwrap_or(true)
    }
}

/// One port of an [`EndpointSlice`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SlicePort {
    /// The name of the Service's port; absent or empty for its only one without a name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Where the servers listen for it.
    pub port: u16,
}

impl SlicePort {
    /// The name of the Service's port; empty for one that has none.
    pub fn name(&self) -> &str {
        self.name.as_deref().unwrap_or_default()
    }
}

pub(crate) const SHAPE: ObjectShape = ObjectShape {
    fields: &[
        required("metadata", Shape::Object(&NAMESPACED)),
        required("addressType", Shape::OneOf(&["IPv4", "IPv6"])),
        required("endpoints", Shape::List(&Shape::Object(&ENDPOINT))),
        optional("ports", Shape::List(&Shape::Object(&PORT))),
    ],
    ignored: &[],
    across: whole,
};

const ENDPOINT: ObjectShape = ObjectShape {
    fields: &[
        required("addresses", Shape::List(&Shape::Text(rules::ip_address))),
        optional("conditions", Shape::Object(&CONDITIONS)),
        optional("hostname", Shape::Text(rules::dns_label)),
        optional("zone", Shape::Text(rules::any_text)),
    ],
    ignored: &["deprecatedTopology", "hints", "nodeName", "targetRef"],
    across: none_across,
};

const CONDITIONS: ObjectShape = ObjectShape {
    fields: &[optional("ready", Shape::Bool)],
    ignored: &["serving", "terminating"],
    across: none_across,
};

const PORT: ObjectShape = ObjectShape {
    fields: &[
        optional("name", Shape::Text(rules::any_text)),
        required("port", Shape::Integer(1, 65_535)),
        optional("protocol", Shape::OneOf(&["TCP"])),
        optional("appProtocol", Shape::Text(rules::any_text)),
    ],
    ignored: &[],
    across: none_across,
};

/// Names its Service; each endpoint has an address of the type that is written, and ports differ.
fn whole(slice: &Node, path: &str, findings: &mut Findings) {
    at_most(slice, path, "endpoints", MAX_ENDPOINTS, findings);
    at_most(slice, path, "ports", MAX_PORTS, findings);
    let metadata = slice.get("metadata");
    let labels = metadata.and_then(|metadata| metadata.get("labels"));
    if labels.and_then(|labels| labels.get(SERVICE_NAME)).is_none() {
        let line = metadata.map_or(slice.line, |metadata| metadata.line);
        let fix = format!("name the Service whose servers these are: `{SERVICE_NAME}: checkout`");
        findings.add(line, "metadata.labels", "is missing a label", fix);
    }
    let version = slice.get("addressType").and_then(Node::text);
    for (index, endpoint) in items(slice, "endpoints").iter().enumerate() {
        let field = format!("endpoints[{index}].addresses");
        let addresses = items(endpoint, "addresses");
        if addresses.is_empty() {
            findings.add(endpoint.line, &field, "is empty", "write one address");
        }
        for address in addresses {
            let text = address.text().unwrap_or_default();
            let is_v6 = text.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv6());
            let fits = version == Some(if is_v6 { "IPv6" } else { "IPv4" });
            if version.is_some() && !fits && text.parse::<IpAddr>().is_ok() {
                let found = format!("found `{text}`");
                let fix = "write addresses of `addressType`, the others in a slice of their own";
                findings.add(address.line, &field, found, fix);
            }
        }
    }
    let mut names = HashSet::new();
    for (index, port) in items(slice, "ports").iter().enumerate() {
        let name = port.get("name").and_then(Node::text).unwrap_or_default();
        if !names.insert(name) {
            let field = format!("ports[{index}].name");
            let found = format!("found `{name}` again");
            findings.add(
                port.line,
                &field,
                found,
                "let each port have a name of its own",
            );
        }
    }
}

fn items<'a>(node: &'a Node, field: &str) -> &'a [Node] {
    node.get(field).map(Node::items).unwrap_or_default()
}

//! `v1 Service`: the part of it that a mesh needs.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use crate::Metadata;
use crate::metadata::NAMESPACED;
use crate::rules;
use crate::shape::{Findings, ObjectShape, Shape, describe, none_across, optional, required};
use crate::yaml::{Node, Value};

/// A Service. Other fields of core/v1 are tolerated and not read; names that are none are refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    /// Name and namespace.
    pub metadata: Metadata,
    /// What the Service is.
    pub spec: ServiceSpec,
}

/// `spec` of a [`Service`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceSpec {
    /// Labels that a workload of the same namespace must carry; empty selects none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub selector: BTreeMap<String, String>,
    /// The Service's ports.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<ServicePort>,
    /// How the Service is reached.
    #[serde(default, rename = "type")]
    pub service_type: ServiceType,
    /// `None` (the text) makes the Service headless.
    #[serde(default, rename = "clusterIP", skip_serializing_if = "Option::is_none")]
    pub cluster_ip: Option<String>,
    /// Whether a client stays with one endpoint.
    #[serde(default)]
    pub session_affinity: SessionAffinity,
}

impl ServiceSpec {
    /// Whether the Service has no virtual address of its own.
    pub fn is_headless(&self) -> bool {
        self.cluster_ip.as_deref() == Some("None")
    }
}

/// One port of a [`Service`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServicePort {
    /// Name, needed where there are several ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The Service port.
    pub port: u16,
    /// The application's own port; absent or 0 is the Service port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_port: Option<u16>,
    /// Transport.
    #[serde(default)]
    pub protocol: Protocol,
    /// How the bytes are to be understood; see [`ServicePort::app_protocol`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app_protocol: Option<String>,
}

impl ServicePort {
    /// The application's own port.
    pub fn target_port(&self) -> u16 {
        self.target_port
            .filter(|port| *port != 0)
            .unwrap_or(self.port)
    }

    /// What `appProtocol` means here. Names without a meaning of their own are opaque
    /// bytes, so that a protocol which we do not know is never guessed at.
    pub fn app_protocol(&self) -> AppProtocol {
        let Some(name) = &self.app_protocol else {
            return AppProtocol::Detect;
        };
        match name.to_ascii_lowercase().as_str() {
            "" => AppProtocol::Detect,
            "http" | "http/1.1" | "kubernetes.io/ws" => AppProtocol::Http,
            "kubernetes.io/h2c" | "h2c" | "http2" | "grpc" => AppProtocol::Http2,
            // TLS of the application's own (`https`, `tls`) is opaque to the mesh.
            _ => AppProtocol::Tcp,
        }
    }
}

/// Meaning of `appProtocol`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AppProtocol {
    /// Absent: detected from the first bytes.
    Detect,
    /// Opaque bytes.
    Tcp,
    /// HTTP/1.1.
    Http,
    /// HTTP/2 with prior knowledge; gRPC, too.
    Http2,
}

/// Transport of a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Protocol {
    /// TCP, the only one that is carried so far.
    #[default]
    #[serde(rename = "TCP")]
    Tcp,
}

/// `spec.type` of a [`Service`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ServiceType {
    /// A virtual address within the cluster.
    #[default]
    ClusterIP,
    /// That, and a port on every node.
    NodePort,
    /// That, and a load balancer's address.
    LoadBalancer,
    /// An alias for a DNS name; cannot be exported.
    ExternalName,
}

/// `spec.sessionAffinity` of a [`Service`].
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
pub enum SessionAffinity {
    /// Each connection may go to another endpoint.
    #[default]
    None,
    /// A client's connections go to the same endpoint.
    ClientIP,
}

pub(crate) const SHAPE: ObjectShape = ObjectShape {
    fields: &[
        required("metadata", Shape::Object(&NAMESPACED)),
        required("spec", Shape::Object(&SPEC)),
    ],
    ignored: &[],
    across: none_across,
};

/// The rest of core/v1's ServiceSpec, also what older clusters wrote.
const SPEC_STANDARD: &[&str] = &[
    "allocateLoadBalancerNodePorts",
    "clusterIPs",
    "externalIPs",
    "externalName",
    "externalTrafficPolicy",
    "healthCheckNodePort",
    "internalTrafficPolicy",
    "ipFamilies",
    "ipFamily",
    "ipFamilyPolicy",
    "loadBalancerClass",
    "loadBalancerIP",
    "loadBalancerSourceRanges",
    "publishNotReadyAddresses",
    "sessionAffinityConfig",
    "topologyKeys",
    "trafficDistribution",
];

const SPEC: ObjectShape = ObjectShape {
    fields: &[
        optional(
            "selector",
            Shape::Texts(rules::label_key, rules::label_value),
        ),
        optional("ports", Shape::List(&Shape::Object(&PORT))),
        optional(
            "type",
            Shape::OneOf(&["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"]),
        ),
        optional("clusterIP", Shape::Text(rules::any_text)),
        optional("sessionAffinity", Shape::OneOf(&["None", "ClientIP"])),
    ],
    ignored: SPEC_STANDARD,
    across: ports_differ,
};

const PORT: ObjectShape = ObjectShape {
    fields: &[
        optional("name", Shape::Text(rules::dns_label)),
        required("port", Shape::Integer(1, 65_535)),
        optional("targetPort", Shape::Integer(0, 65_535)),
        optional("protocol", Shape::OneOf(&["TCP"])),
        optional("appProtocol", Shape::Text(rules::any_text)),
    ],
    ignored: &["nodePort"],
    across: none_across,
};

/// Several ports need names, and neither names nor numbers may repeat.
fn ports_differ(spec: &Node, path: &str, findings: &mut Findings) {
    let Some(ports) = spec.get("ports") else {
        return require_ports(spec, path, findings);
    };
    if matches!(&ports.value, Value::List(items) if items.is_empty()) {
        require_ports(spec, path, findings);
    }
    let mut names = HashMap::new();
    let mut numbers = HashMap::new();
    for (index, port) in ports.items().iter().enumerate() {
        let at = format!("{path}.ports[{index}]");
        match port.get("name") {
            Some(name) => repeats(
                name,
                name.text(),
                &mut names,
                &format!("{at}.name"),
                findings,
            ),
            None if ports.items().len() > 1 => {
                findings.add(
                    port.line,
                    &format!("{at}.name"),
                    "is missing",
                    "name each port where there are several",
                );
            }
            None => {}
        }
        if let Some(number) = port.get("port") {
            repeats(
                number,
                number.integer(),
                &mut numbers,
                &format!("{at}.port"),
                findings,
            );
        }
    }
}

fn require_ports(spec: &Node, path: &str, findings: &mut Findings) {
    let text = |field| spec.get(field).and_then(Node::text);
    // An alias has no ports, and a headless Service may do without.
    if text("type") != Some("ExternalName") && text("clusterIP") != Some("None") {
        findings.add(
            spec.line,
            &format!("{path}.ports"),
            "is missing",
            "list at least one port: `- port: 80`",
        );
    }
}

fn repeats<T: std::hash::Hash + Eq>(
    node: &Node,
    value: Option<T>,
    seen: &mut HashMap<T, u64>,
    path: &str,
    findings: &mut Findings,
) {
    let Some(value) = value else { return };
    if let Some(first) = seen.insert(value, node.line) {
        let found = format!(
            "{} again (first in line {first} of this document)",
            describe(node)
        );
        findings.add(
            node.line,
            path,
            found,
            "let each port have a name and a number of its own",
        );
    }
}

//! `linkspan.io/v1alpha1 ClusterLink`: the relation to one peer.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Metadata;
use crate::metadata::{ANNOTATIONS, CREATED, LABELS, STANDARD};
use crate::rules;
use crate::shape::{
    Findings, ObjectShape, Shape, at_most, describe, none_across, optional, required,
};
use crate::yaml::Node;

/// The namespace of Linkspan's own parts.
pub const SYSTEM_NAMESPACE: &str = "linkspan-system";

/// A link, declared on this side; it is named after the peer's cluster id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClusterLink {
    /// `metadata.name` is the peer's cluster id; the kind has no namespace.
    pub metadata: Metadata,
    /// Who the peer is and where it can be reached.
    pub spec: ClusterLinkSpec,
}

/// `spec` of a [`ClusterLink`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClusterLinkSpec {
    /// The peer's trust domain; a link owns exactly one.
    #[schemars(length(min = 1, max = 255), regex(pattern = rules::TRUST_DOMAIN))]
    pub trust_domain: String,
    /// Where the peer's gateways can be dialled; empty where only the peer can dial.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = rules::MAX_ADDRESSES))]
    pub addresses: Vec<Address>,
    /// The peer's root certificates, PEM.
    #[schemars(length(max = rules::MAX_PEM))]
    pub bundle: String,
    /// SPIFFE ID of the peer's gateways; absent is `…/ns/linkspan-system/sa/linkspan-gateway`.
    #[serde(default, rename = "gatewayID", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048), regex(pattern = rules::SPIFFE_ID))]
    pub gateway_id: Option<String>,
    /// SPIFFE ID of the peer's federation; absent is `…/ns/linkspan-system/sa/linkspan-federation`.
    #[serde(
        default,
        rename = "federationID",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(length(max = 2048), regex(pattern = rules::SPIFFE_ID))]
    pub federation_id: Option<String>,
    /// Whether the peer may be dialled on loopback and link-local addresses.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allow_loopback: bool,
    /// What the peer may contribute; absent is everything outside reserved namespaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = rules::MAX_IMPORTS))]
    pub imports: Option<Vec<ImportPattern>>,
}

impl ClusterLinkSpec {
    /// Whether the peer may contribute to the service `namespace/name`.
    pub fn imports(&self, namespace: &str, name: &str) -> bool {
        match &self.imports {
            None => ImportPattern::default().matches(namespace, name),
            Some(patterns) => patterns
                .iter()
                .any(|pattern| pattern.matches(namespace, name)),
        }
    }
}

/// An address of a peer's gateways.
#[derive(
    Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Address {
    /// IP address or DNS name.
    #[schemars(length(max = 253))]
    pub host: String,
    /// UDP port of the tunnel.
    #[schemars(range(min = 1, max = 65_535))]
    pub port: u16,
}

/// Services by glob (`*` stands for any characters).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ImportPattern {
    /// Glob for the namespace. One that begins with `*` never means a reserved
    /// namespace (`kube-*`, `linkspan-system`): those must be spelled out.
    #[schemars(regex(pattern = rules::GLOB))]
    pub namespace: String,
    /// Glob for the name.
    #[schemars(regex(pattern = rules::GLOB))]
    pub name: String,
}

impl Default for ImportPattern {
    fn default() -> Self {
        Self {
            namespace: "*".into(),
            name: "*".into(),
        }
    }
}

impl ImportPattern {
    /// Whether the service `namespace/name` is meant.
    pub fn matches(&self, namespace: &str, name: &str) -> bool {
        let reserved = namespace.starts_with("kube-") || namespace == SYSTEM_NAMESPACE;
        !(reserved && self.namespace.starts_with('*'))
            && glob_matches(&self.namespace, namespace)
            && glob_matches(&self.name, name)
    }
}

/// Glob matching by backtracking to the last `*` only: linear times the pattern's length.
fn glob_matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    let mut last_star = None;
    while t < text.len() {
        if pattern.get(p) == Some(&b'*') {
            last_star = Some((p, t));
            p += 1;
        } else if pattern.get(p) == Some(&text[t]) {
            p += 1;
            t += 1;
        } else if let Some((star, covered)) = last_star {
            // Let the star cover one character more.
            last_star = Some((star, covered + 1));
            p = star + 1;
            t = covered + 1;
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

pub(crate) const SHAPE: ObjectShape = ObjectShape {
    fields: &[
        required("metadata", Shape::Object(&METADATA)),
        required("spec", Shape::Object(&SPEC)),
        optional("status", Shape::Ignored),
    ],
    ignored: &[],
    across: none_across,
};

const METADATA: ObjectShape = ObjectShape {
    fields: &[
        required("name", Shape::Text(rules::cluster_id)),
        LABELS,
        ANNOTATIONS,
        CREATED,
        // Refused with a word of its own.
        optional("namespace", Shape::Ignored),
    ],
    ignored: STANDARD,
    across: has_no_namespace,
};

const SPEC: ObjectShape = ObjectShape {
    fields: &[
        required("trustDomain", Shape::Text(rules::trust_domain)),
        optional("addresses", Shape::List(&Shape::Object(&ADDRESS))),
        required("bundle", Shape::Text(rules::pem)),
        optional("gatewayID", Shape::Text(rules::spiffe_id)),
        optional("federationID", Shape::Text(rules::spiffe_id)),
        optional("allowLoopback", Shape::Bool),
        optional("imports", Shape::List(&Shape::Object(&IMPORT))),
    ],
    ignored: &[],
    across: across_spec,
};

const ADDRESS: ObjectShape = ObjectShape {
    fields: &[
        required("host", Shape::Text(rules::host)),
        required("port", Shape::Integer(1, 65_535)),
    ],
    ignored: &[],
    across: none_across,
};

const IMPORT: ObjectShape = ObjectShape {
    fields: &[
        optional("namespace", Shape::Text(rules::glob)),
        optional("name", Shape::Text(rules::glob)),
    ],
    ignored: &[],
    across: none_across,
};

fn has_no_namespace(metadata: &Node, path: &str, findings: &mut Findings) {
    if let Some(namespace) = metadata.get("namespace") {
        let fix = "remove it: a ClusterLink belongs to the whole cluster";
        findings.add(
            namespace.line,
            &format!("{path}.namespace"),
            describe(namespace),
            fix,
        );
    }
}

fn across_spec(spec: &Node, path: &str, findings: &mut Findings) {
    ids_in_trust_domain(spec, path, findings);
    at_most(spec, path, "addresses", rules::MAX_ADDRESSES, findings);
    at_most(spec, path, "imports", rules::MAX_IMPORTS, findings);
}

/// A link owns one trust domain, so the pinned IDs must be of it.
fn ids_in_trust_domain(spec: &Node, path: &str, findings: &mut Findings) {
    let Some(domain) = spec.get("trustDomain").and_then(Node::text) else {
        return;
    };
    for field in ["gatewayID", "federationID"] {
        let Some(node) = spec.get(field) else {
            continue;
        };
        let Some(text) = node.text().filter(|text| rules::spiffe_id(text).is_ok()) else {
            continue;
        };
        if !text.starts_with(&format!("spiffe://{domain}/")) {
            let fix = format!("write an ID of the link's own trust domain: `spiffe://{domain}/…`");
            findings.add(node.line, &format!("{path}.{field}"), describe(node), fix);
        }
    }
}

//! What all objects have in common, their order, and how they are written.

use anyhow::anyhow;
use serde_json::{Value, json};

use super::SYSTEM_NAMESPACE;
use crate::exit::Failure;

/// How manifests are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(in crate::verbs) enum Form {
    /// One document for each object
    #[default]
    Yaml,
    /// One `List`
    Json,
}

/// An object of the whole cluster, without anything but its name.
pub(super) fn cluster_wide(version: &str, kind: &str, name: &str) -> Value {
    json!({
        "apiVersion": version,
        "kind": kind,
        "metadata": { "name": name, "labels": { "app.kubernetes.io/part-of": "linkspan" } },
    })
}

/// An object of the system namespace.
pub(super) fn namespaced(version: &str, kind: &str, name: &str) -> Value {
    let mut object = cluster_wide(version, kind, name);
    object["metadata"]["namespace"] = json!(SYSTEM_NAMESPACE);
    object
}

/// What names an object: enough to delete it.
pub(super) fn reference(object: &Value) -> Value {
    let mut metadata = json!({ "name": object["metadata"]["name"] });
    if let Some(namespace) = object["metadata"].get("namespace") {
        metadata["namespace"] = namespace.clone();
    }
    json!({ "apiVersion": object["apiVersion"], "kind": object["kind"], "metadata": metadata })
}

/// The kinds in the order in which they are made: what others need comes first.
const KINDS: &[&str] = &[
    "Namespace",
    "CustomResourceDefinition",
    "ServiceAccount",
    "ClusterRole",
    "ClusterRoleBinding",
    "Role",
    "RoleBinding",
    "NetworkPolicy",
    "Secret",
    "ConfigMap",
    "Service",
    "PodDisruptionBudget",
    "MutatingWebhookConfiguration",
    "Deployment",
];

/// Where an object stands among the others.
pub(super) fn order(object: &Value) -> (usize, String) {
    let kind = KINDS.iter().position(|kind| object["kind"] == *kind);
    (kind.unwrap_or(KINDS.len()), name(object).to_owned())
}

pub(super) fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

/// Objects as text.
pub(in crate::verbs) fn print(form: Form, objects: &[Value]) -> Result<String, Failure> {
    match form {
        Form::Json => {
            let list = json!({ "apiVersion": "v1", "kind": "List", "items": objects });
            Ok(format!("{list:#}\n"))
        }
        Form::Yaml => {
            let documents: Result<Vec<_>, _> = objects.iter().map(yaml).collect();
            Ok(documents?.join("---\n"))
        }
    }
}

/// One document.
pub(super) fn yaml(value: &Value) -> Result<String, Failure> {
    serde_saphyr::to_string(value)
        .map_err(|error| Failure::Failed(anyhow!("cannot write YAML: {error}")))
}

/// A configuration file in a ConfigMap.
pub(super) fn configuration(name: &str, file: &str, content: &Value) -> Value {
    let mut object = namespaced("v1", "ConfigMap", name);
    // JSON is YAML, and so the text does not depend on how a library breaks lines.
    object["data"] = json!({ file: format!("{content:#}\n") });
    object
}

/// A short name for a content: pods are replaced when it changes. FNV-1a, 64 bits; nobody who could
/// make two contents collide gains anything.
pub(super) fn fingerprint(object: &Value) -> String {
    let text = object["data"].to_string();
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    // With a letter no reader can take for a part of a number.
    format!("h{hash:016x}")
}

//! What every resource has: its name and what is said about it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Timestamp;
use crate::rules;
use crate::shape::{ObjectShape, Shape, none_across, optional, required};

/// The namespace of a namespaced resource that names none.
pub const DEFAULT_NAMESPACE: &str = "default";

/// `metadata` of a resource. Fields that Kubernetes keeps for itself (`uid`,
/// `resourceVersion`, `managedFields` …) are tolerated and not read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    /// Name, unique per kind and namespace.
    pub name: String,
    /// Namespace; absent for kinds that have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Labels, by which other resources select this one.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Notes of people and tools.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// When the resource was made; absent in hand-written files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub creation_timestamp: Option<Timestamp>,
}

impl Metadata {
    /// Metadata of a namespaced resource.
    pub fn named(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            namespace: Some(namespace.into()),
            ..Self::default()
        }
    }

    /// The namespace, [`DEFAULT_NAMESPACE`] where none is written.
    pub fn namespace(&self) -> &str {
        self.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE)
    }
}

/// Fields of `metadata` that Kubernetes, or a tool that wrote the manifest, keeps for itself.
pub(crate) const STANDARD: &[&str] = &[
    "clusterName",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "finalizers",
    "generateName",
    "generation",
    "managedFields",
    "ownerReferences",
    "resourceVersion",
    "selfLink",
    "uid",
];

/// `metadata` of a kind that lives in a namespace and is named by one DNS label.
pub(crate) const NAMESPACED: ObjectShape = ObjectShape {
    fields: &[
        required("name", Shape::Text(rules::dns_label)),
        optional("namespace", Shape::Text(rules::dns_label)),
        LABELS,
        ANNOTATIONS,
        CREATED,
    ],
    ignored: STANDARD,
    across: none_across,
};

pub(crate) const LABELS: crate::shape::Field =
    optional("labels", Shape::Texts(rules::label_key, rules::label_value));
pub(crate) const ANNOTATIONS: crate::shape::Field = optional(
    "annotations",
    Shape::Texts(rules::label_key, rules::any_text),
);
pub(crate) const CREATED: crate::shape::Field =
    optional("creationTimestamp", Shape::Text(rules::timestamp));

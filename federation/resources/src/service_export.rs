//! `multicluster.x-k8s.io ServiceExport`: the grant that lets peers use a Service.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Metadata;
use crate::metadata::NAMESPACED;
use crate::rules;
use crate::shape::{Findings, ObjectShape, Shape, at_most, none_across, optional, required};
use crate::yaml::Node;

/// Exports the Service of the same name and namespace to every linked cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceExport {
    /// Name and namespace: those of the Service.
    pub metadata: Metadata,
    /// What else is exported.
    #[serde(default, skip_serializing_if = "ServiceExportSpec::is_empty")]
    pub spec: ServiceExportSpec,
}

impl ServiceExport {
    /// The export of the Service `namespace/name`.
    pub fn of(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            metadata: Metadata::named(namespace, name),
            spec: ServiceExportSpec::default(),
        }
    }
}

/// `spec` of a [`ServiceExport`]; optional features of the MCS API, read and kept, not carried to peers yet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceExportSpec {
    /// Labels for the import.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = rules::MAX_TEXTS))]
    pub exported_labels: BTreeMap<String, String>,
    /// Annotations for the import.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = rules::MAX_TEXTS))]
    pub exported_annotations: BTreeMap<String, String>,
}

impl ServiceExportSpec {
    fn is_empty(&self) -> bool {
        self.exported_labels.is_empty() && self.exported_annotations.is_empty()
    }
}

pub(crate) const SHAPE: ObjectShape = ObjectShape {
    fields: &[
        required("metadata", Shape::Object(&NAMESPACED)),
        optional("spec", Shape::Object(&SPEC)),
        optional("status", Shape::Ignored),
    ],
    ignored: &[],
    across: none_across,
};

const SPEC: ObjectShape = ObjectShape {
    fields: &[
        optional(
            "exportedLabels",
            Shape::Texts(rules::label_key, rules::label_value),
        ),
        optional(
            "exportedAnnotations",
            Shape::Texts(rules::label_key, rules::any_text),
        ),
    ],
    ignored: &[],
    across: few_texts,
};

fn few_texts(spec: &Node, path: &str, findings: &mut Findings) {
    for field in ["exportedLabels", "exportedAnnotations"] {
        at_most(spec, path, field, rules::MAX_TEXTS, findings);
    }
}

//! CustomResourceDefinitions, made from the Rust types.
//!
//! The schema of a kind is its type's; patterns and rules that a type cannot say stand beside
//! its fields, and are those of the kind's shape. So an API server refuses what federation would.

mod kinds;
mod structural;
#[cfg(test)]
mod tests;

use serde_json::{Value, json};

use crate::yaml;

/// One kind, as an API server is told of it.
struct Definition {
    group: &'static str,
    kind: &'static str,
    plural: &'static str,
    short: &'static [&'static str],
    namespaced: bool,
    /// What it is for.
    description: &'static str,
    /// Served versions; the first is stored.
    versions: &'static [&'static str],
    /// Allowed `metadata.name`, where it is narrower than Kubernetes' own rule.
    name: Option<Value>,
    spec: Value,
    /// Whether a `spec` must be there.
    spec_required: bool,
    status: Option<Value>,
    /// CEL over the whole object.
    rules: Vec<Value>,
    columns: Vec<Value>,
    annotations: Value,
}

impl Definition {
    fn file_name(&self) -> String {
        format!("{}.{}.yaml", self.plural, self.group)
    }

    fn document(&self) -> Value {
        let versions: Vec<_> = self
            .versions
            .iter()
            .map(|name| self.version(name, name == &self.versions[0]))
            .collect();
        let mut metadata = json!({
            "name": format!("{}.{}", self.plural, self.group),
            "labels": { "app.kubernetes.io/part-of": "linkspan" },
        });
        if !self.annotations.is_null() {
            metadata["annotations"] = self.annotations.clone();
        }
        json!({
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": metadata,
            "spec": {
                "group": self.group,
                "names": {
                    "kind": self.kind,
                    "listKind": format!("{}List", self.kind),
                    "plural": self.plural,
                    "singular": self.kind.to_ascii_lowercase(),
                    "shortNames": self.short,
                    "categories": ["linkspan"],
                },
                "scope": if self.namespaced { "Namespaced" } else { "Cluster" },
                "versions": versions,
            },
        })
    }

    fn version(&self, name: &str, stored: bool) -> Value {
        let mut version = json!({
            "name": name,
            "served": true,
            "storage": stored,
            "schema": { "openAPIV3Schema": self.schema() },
            "additionalPrinterColumns": self.columns,
        });
        if self.status.is_some() {
            version["subresources"] = json!({ "status": {} });
        }
        version
    }

    fn schema(&self) -> Value {
        let mut metadata = json!({ "type": "object" });
        if let Some(name) = &self.name {
            metadata["properties"] = json!({ "name": name });
        }
        let mut schema = json!({
            "type": "object",
            "description": self.description,
            "properties": {
                "apiVersion": { "type": "string" },
                "kind": { "type": "string" },
                "metadata": metadata,
                "spec": self.spec,
            },
        });
        if let Some(status) = &self.status {
            schema["properties"]["status"] = status.clone();
        }
        if self.spec_required {
            schema["required"] = json!(["spec"]);
        }
        if !self.rules.is_empty() {
            schema["x-kubernetes-validations"] = Value::Array(self.rules.clone());
        }
        schema
    }
}

/// Every kind that Linkspan serves through an API server.
#[must_use]
pub fn documents() -> Vec<Value> {
    kinds::all().iter().map(Definition::document).collect()
}

/// Every kind that Linkspan serves through an API server: file name and document, ready to be
/// applied.
///
/// # Errors
/// None for the kinds that there are; what cannot be written as YAML.
pub fn definitions() -> Result<Vec<(String, String)>, String> {
    let kinds = kinds::all();
    let of = kinds.iter().map(|kind| {
        let text = yaml::write(&kind.document())?;
        Ok((kind.file_name(), text))
    });
    of.collect()
}

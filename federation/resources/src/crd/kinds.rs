//! The kinds, one function each.

use serde_json::{Value, json};

use super::Definition;
use super::structural::schema_of;
use crate::cluster_property::{CLUSTER_PROPERTY, ClusterPropertySpec};
use crate::rules;
use crate::service_import::{ConditionsStatus, ServiceImportSpec, ServiceImportStatus};
use crate::{ClusterLinkSpec, FailoverPolicySpec, OWN, ServiceExportSpec};

/// Both versions of the MCS API hold the same.
const MCS_VERSIONS: &[&str] = &["v1beta1", "v1alpha1"];

pub(super) fn all() -> Vec<Definition> {
    vec![
        cluster_link(),
        cluster_property(),
        failover_policy(),
        service_export(),
        service_import(),
    ]
}

fn cluster_link() -> Definition {
    let mut spec = schema_of::<ClusterLinkSpec>();
    let hosts = &mut spec["properties"]["addresses"]["items"]["properties"]["host"];
    hosts["x-kubernetes-validations"] = json!([rule(
        &format!(
            "isIP(self) || (self.matches('{}') && !self.matches('^[0-9.]*$'))",
            rules::DNS_NAME
        ),
        "write an IP address without brackets, or a DNS name in lower case; the port has a field of its own",
    )]);
    spec["properties"]["bundle"]["x-kubernetes-validations"] = json!([
        rule(
            "!self.contains('PRIVATE KEY')",
            "remove the private key: a bundle holds the peer's root certificates only",
        ),
        rule(
            "self.contains('-----BEGIN CERTIFICATE-----') && \
             self.split('-----BEGIN CERTIFICATE-----').size() == self.split('-----END CERTIFICATE-----').size()",
            "paste the peer's root certificates in PEM form",
        ),
    ]);
    spec["x-kubernetes-validations"] = ["gatewayID", "federationID"]
        .into_iter()
        .map(of_the_trust_domain)
        .collect();
    Definition {
        group: "linkspan.io",
        kind: "ClusterLink",
        plural: "clusterlinks",
        short: &["clink"],
        namespaced: false,
        description: "The relation to one peer cluster, declared on this side; it is named after the peer's cluster id.",
        versions: &["v1alpha1"],
        name: Some(json!({
            "type": "string",
            "maxLength": rules::MAX_CLUSTER_ID,
            "pattern": rules::DNS_NAME,
        })),
        spec,
        spec_required: true,
        status: Some(schema_of::<ConditionsStatus>()),
        rules: Vec::new(),
        columns: vec![
            column("Trust domain", "string", ".spec.trustDomain"),
            condition("Ready"),
            reason("Reason", "Ready"),
            age(),
        ],
        annotations: Value::Null,
    }
}

fn failover_policy() -> Definition {
    let mut spec = schema_of::<FailoverPolicySpec>();
    let fields = &mut spec["properties"];
    fields["targetRefs"]["items"]["x-kubernetes-validations"] = json!([{
        "rule": "!has(self.group) || self.group == (self.kind == 'ServiceImport' ? 'multicluster.x-k8s.io' : '')",
        "message": "write the group of that kind, or leave it out",
        "fieldPath": ".group",
    }]);
    for list in ["order", "localityWeights"] {
        let area = &mut fields[list]["items"]["properties"];
        let cluster = &mut area["clusters"]["items"];
        cluster["pattern"] = format!("^{OWN}$|{}", rules::DNS_NAME).into();
        cluster["maxLength"] = rules::MAX_CLUSTER_ID.into();
        for place in ["regions", "zones"] {
            let place = &mut area[place]["items"];
            place["pattern"] = rules::PLACE.into();
            place["maxLength"] = rules::MAX_LABEL.into();
        }
    }
    let labels = &mut fields["order"]["items"]["properties"]["labels"];
    label_keys(labels);
    label_values(labels);
    for span in ["hold", "ramp"] {
        fields["failback"]["properties"][span]["x-kubernetes-validations"] = json!([rule(
            "duration(self) <= duration('24h')",
            "write a length of time such as `30s`, `1m30s` or `500ms`, at most `24h`",
        )]);
    }
    let drained = &mut fields["drain"]["items"];
    drained["pattern"] = rules::DNS_NAME.into();
    drained["maxLength"] = rules::MAX_CLUSTER_ID.into();
    Definition {
        group: "linkspan.io",
        kind: "FailoverPolicy",
        plural: "failoverpolicies",
        short: &["fop"],
        namespaced: true,
        description: "Where the requests of this cluster's callers go first, where next, and how much of it.",
        versions: &["v1alpha1"],
        name: Some(service_name()),
        spec,
        spec_required: true,
        status: Some(schema_of::<ConditionsStatus>()),
        rules: Vec::new(),
        columns: vec![
            column("Drain", "string", ".spec.drain"),
            condition("Accepted"),
            reason("Reason", "Accepted"),
            condition("Conflict"),
            age(),
        ],
        annotations: Value::Null,
    }
}

fn of_the_trust_domain(field: &str) -> Value {
    json!({
        "rule": format!("!has(self.{field}) || self.{field}.startsWith('spiffe://' + self.trustDomain + '/')"),
        "message": "write an ID of the link's own trust domain",
        "fieldPath": format!(".{field}"),
    })
}

fn service_export() -> Definition {
    let mut spec = schema_of::<ServiceExportSpec>();
    for field in ["exportedLabels", "exportedAnnotations"] {
        label_keys(&mut spec["properties"][field]);
    }
    label_values(&mut spec["properties"]["exportedLabels"]);
    Definition {
        group: "multicluster.x-k8s.io",
        kind: "ServiceExport",
        plural: "serviceexports",
        short: &["svcex", "svcexport"],
        namespaced: true,
        description: "Exports the Service of the same name and namespace to the clusterset.",
        versions: MCS_VERSIONS,
        name: Some(service_name()),
        spec,
        spec_required: false,
        status: Some(schema_of::<ConditionsStatus>()),
        rules: Vec::new(),
        columns: vec![
            condition("Valid"),
            condition("Ready"),
            condition("Conflict"),
            age(),
        ],
        annotations: Value::Null,
    }
}

fn service_import() -> Definition {
    Definition {
        group: "multicluster.x-k8s.io",
        kind: "ServiceImport",
        plural: "serviceimports",
        short: &["svcim", "svcimport"],
        namespaced: true,
        description: "A service of the clusterset as this cluster sees it. Federation writes it; nobody else should.",
        versions: MCS_VERSIONS,
        name: Some(service_name()),
        spec: schema_of::<ServiceImportSpec>(),
        spec_required: false,
        status: Some(schema_of::<ServiceImportStatus>()),
        rules: Vec::new(),
        columns: vec![
            column("Type", "string", ".spec.type"),
            column("IP", "string", ".spec.ips"),
            condition("Ready"),
            age(),
        ],
        annotations: Value::Null,
    }
}

fn cluster_property() -> Definition {
    Definition {
        group: "about.k8s.io",
        kind: "ClusterProperty",
        plural: "clusterproperties",
        short: &[],
        namespaced: false,
        description: "One thing that a cluster says of itself, such as its id in the clusterset.",
        versions: &["v1beta1"],
        name: None,
        spec: schema_of::<ClusterPropertySpec>(),
        spec_required: true,
        status: None,
        rules: vec![json!({
            "rule": format!(
                "self.metadata.name != '{CLUSTER_PROPERTY}' || (self.spec.value.size() <= {} && self.spec.value.matches('{}'))",
                rules::MAX_CLUSTER_ID,
                rules::DNS_NAME
            ),
            "message": "write a cluster id: labels of a-z, 0-9 and `-` with dots between them, fewer than 128 characters",
            "fieldPath": ".spec.value",
        })],
        columns: vec![column("Value", "string", ".spec.value"), age()],
        // The group belongs to Kubernetes; this is where the kind was approved for it.
        annotations: json!({
            "api-approved.kubernetes.io": "https://github.com/kubernetes/enhancements/pull/3084",
        }),
    }
}

/// Says of a mapping that its keys are those of labels.
fn label_keys(texts: &mut Value) {
    texts["x-kubernetes-validations"] = json!([rule(
        &format!("self.all(key, key.matches('{}'))", rules::LABEL_KEY),
        "write label keys: up to 63 letters, digits, `-`, `_` and `.`, optionally after a DNS name and `/`",
    )]);
}

/// Says of a mapping that its values are those of labels.
fn label_values(texts: &mut Value) {
    let value = &mut texts["additionalProperties"];
    value["pattern"] = rules::LABEL_VALUE.into();
    value["maxLength"] = rules::MAX_LABEL.into();
}

/// The name of a Service.
fn service_name() -> Value {
    json!({ "type": "string", "maxLength": rules::MAX_LABEL, "pattern": rules::DNS_LABEL })
}

fn rule(rule: &str, message: &str) -> Value {
    json!({ "rule": rule, "message": message })
}

fn column(name: &str, kind: &str, path: &str) -> Value {
    json!({ "name": name, "type": kind, "jsonPath": path })
}

fn condition(name: &str) -> Value {
    let path = format!(".status.conditions[?(@.type==\"{name}\")].status");
    column(name, "string", &path)
}

fn reason(name: &str, of: &str) -> Value {
    let path = format!(".status.conditions[?(@.type==\"{of}\")].reason");
    column(name, "string", &path)
}

fn age() -> Value {
    column("Age", "date", ".metadata.creationTimestamp")
}

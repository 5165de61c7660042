//! The kinds that are read and written without a Rust type of the client library, and the names
//! under which we write.

use kube::api::DynamicObject;
use kube::core::ApiResource;

/// Who owns the fields that we write.
pub const FIELD_MANAGER: &str = "linkspan-federation";
/// Label `app.kubernetes.io/managed-by` of objects that are ours.
pub const MANAGED_BY: &str = "linkspan-federation";
/// Names of the Secrets in which federation keeps what must outlive its pod: the keys of its authority,
/// what else it must not lose (links, tokens), and what it was told last (workloads).
pub const SECRETS: [&str; 3] = ["linkspan-authority", "linkspan-state", "linkspan-workloads"];
/// Name of the ConfigMap in which federation publishes the cluster's roots, as `roots.pem`.
pub const ROOTS_CONFIG_MAP: &str = "linkspan-roots";
/// Name of the Service at which peers reach the gateways.
pub const TUNNEL_SERVICE: &str = "linkspan-tunnel";
pub(crate) const MANAGED_BY_LABEL: &str = "app.kubernetes.io/managed-by";
/// Label by which an EndpointSlice names the cluster that its endpoints come from.
pub(crate) const SOURCE_CLUSTER: &str = "multicluster.kubernetes.io/source-cluster";
/// Label of an EndpointSlice: who writes it.
pub(crate) const SLICE_MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// Annotation of a ServiceImport: the name of the Service that is derived from it.
pub(crate) const DERIVED_SERVICE: &str = "multicluster.kubernetes.io/derived-service";
/// Label of a node: its region.
pub(crate) const REGION: &str = "topology.kubernetes.io/region";
/// Label of a node: its zone.
pub(crate) const ZONE: &str = "topology.kubernetes.io/zone";
/// Label by which what is derived from an import names it.
pub(crate) const IMPORT_NAME: &str = "multicluster.kubernetes.io/service-name";

/// A kind that a CustomResourceDefinition of ours brings.
pub(crate) fn custom(group: &str, version: &str, kind: &str, plural: &str) -> ApiResource {
    ApiResource {
        group: group.to_owned(),
        version: version.to_owned(),
        api_version: format!("{group}/{version}"),
        kind: kind.to_owned(),
        plural: plural.to_owned(),
    }
}

pub(crate) fn cluster_link() -> ApiResource {
    custom("linkspan.io", "v1alpha1", "ClusterLink", "clusterlinks")
}

pub(crate) fn failover_policy() -> ApiResource {
    custom(
        "linkspan.io",
        "v1alpha1",
        "FailoverPolicy",
        "failoverpolicies",
    )
}

pub(crate) fn service_export() -> ApiResource {
    mcs("ServiceExport", "serviceexports")
}

pub(crate) fn service_import() -> ApiResource {
    mcs("ServiceImport", "serviceimports")
}

pub(crate) fn service() -> ApiResource {
    ApiResource {
        group: String::new(),
        version: "v1".to_owned(),
        api_version: "v1".to_owned(),
        kind: "Service".to_owned(),
        plural: "services".to_owned(),
    }
}

pub(crate) fn endpoint_slice() -> ApiResource {
    custom("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices")
}

fn mcs(kind: &str, plural: &str) -> ApiResource {
    custom("multicluster.x-k8s.io", "v1beta1", kind, plural)
}

/// Whether the object carries our label.
pub(crate) fn is_ours(labels: Option<&std::collections::BTreeMap<String, String>>) -> bool {
    labels
        .and_then(|labels| labels.get(MANAGED_BY_LABEL))
        .is_some_and(|by| by == MANAGED_BY)
}

/// Whether we have written to the object's status.
pub(crate) fn has_our_status(object: &DynamicObject) -> bool {
    object
        .metadata
        .managed_fields
        .iter()
        .flatten()
        .any(|entry| {
            entry.manager.as_deref() == Some(FIELD_MANAGER)
                && entry.subresource.as_deref() == Some("status")
        })
}

//! `about.k8s.io ClusterProperty`: what a cluster says of itself (KEP-2149).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Name of the property that holds the cluster's id.
pub const CLUSTER_PROPERTY: &str = "cluster.clusterset.k8s.io";
/// Name of the property that holds the clusterset's name.
pub const CLUSTERSET_PROPERTY: &str = "clusterset.k8s.io";

/// `spec` of a ClusterProperty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClusterPropertySpec {
    /// The property's value.
    #[schemars(length(min = 1, max = 128_000))]
    pub value: String,
}

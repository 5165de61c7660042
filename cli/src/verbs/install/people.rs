//! What people may do with our kinds who may edit or view a namespace: rules that Kubernetes adds to its
//! own roles `edit` (and so `admin`) and `view`.

use serde_json::{Value, json};

use super::{manifest::cluster_wide, rights::RBAC};

const READ: [&str; 3] = ["get", "list", "watch"];
const WRITE: [&str; 5] = ["create", "update", "patch", "delete", "deletecollection"];

/// Links are the cluster's, and stay with who administers it.
pub(super) fn objects() -> Vec<Value> {
    let edit = json!([
        rule("multicluster.x-k8s.io", &["serviceexports"], &WRITE),
        rule("linkspan.io", &["failoverpolicies"], &WRITE),
    ]);
    let view = json!([
        rule(
            "multicluster.x-k8s.io",
            &["serviceexports", "serviceimports"],
            &READ
        ),
        rule("linkspan.io", &["failoverpolicies"], &READ),
    ]);
    vec![role("edit", edit), role("view", view)]
}

fn role(to: &str, rules: Value) -> Value {
    let mut role = cluster_wide(RBAC, "ClusterRole", &format!("linkspan-{to}"));
    let label = format!("rbac.authorization.k8s.io/aggregate-to-{to}");
    role["metadata"]["labels"][label] = json!("true");
    role["rules"] = rules;
    role
}

fn rule(group: &str, resources: &[&str], verbs: &[&str]) -> Value {
    json!({ "apiGroups": [group], "resources": resources, "verbs": verbs })
}

//! Whose pods the API server has federation look at as they are made.
//!
//! A pod is looked at where its label says so, or where its namespace's does and its own does not say
//! otherwise; never in the namespaces of the system and of our own parts, which come up without it.
//! Where federation is asked tells it whether the namespace lets calls be captured: it needs to know
//! nothing else of namespaces.

use linkspan_core::inject::INJECT;
use linkspan_federation::webhook::{CONFIGURATION, PATH, PATH_WITHOUT_CAPTURE};
use serde_json::{Value, json};

use super::{SYSTEM_NAMESPACE, federation, manifest::cluster_wide};

/// Port of the Service and of federation.
pub(super) const PORT: u16 = 15_017;
/// Pod Security profiles that forbid capabilities.
const ENFORCE: &str = "pod-security.kubernetes.io/enforce";
/// Namespaces in which no pod is ever looked at: the cluster's own, and ours.
const NEVER: [&str; 4] = [
    "kube-system",
    "kube-public",
    "kube-node-lease",
    SYSTEM_NAMESPACE,
];
/// How long the API server waits, seconds; an answer takes a millisecond.
const TIMEOUT: u8 = 10;

pub(super) fn objects() -> Vec<Value> {
    let mut configuration = cluster_wide(
        "admissionregistration.k8s.io/v1",
        "MutatingWebhookConfiguration",
        CONFIGURATION,
    );
    let strict = json!({ "key": ENFORCE, "operator": "In", "values": ["baseline", "restricted"] });
    let free = json!({ "key": ENFORCE, "operator": "NotIn", "values": ["baseline", "restricted"] });
    let mut webhooks = Vec::new();
    for (place, profile, path) in [
        ("capture", free, PATH),
        ("listeners", strict, PATH_WITHOUT_CAPTURE),
    ] {
        webhooks.push(webhook(
            &format!("pods.{place}.linkspan.io"),
            path,
            json!([{ "key": INJECT, "operator": "NotIn", "values": ["true"] }, profile]),
            json!([{ "key": INJECT, "operator": "In", "values": ["true"] }]),
        ));
        webhooks.push(webhook(
            &format!("namespaces.{place}.linkspan.io"),
            path,
            json!([{ "key": INJECT, "operator": "In", "values": ["true"] }, profile]),
            json!([{ "key": INJECT, "operator": "NotIn", "values": ["false", "disabled"] }]),
        ));
    }
    configuration["webhooks"] = json!(webhooks);
    vec![configuration]
}

/// Without `caBundle`, which is federation's: applying again leaves it alone.
fn webhook(name: &str, path: &str, namespaces: Value, pods: Value) -> Value {
    let mut of_namespaces = vec![json!({
        "key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": NEVER,
    })];
    of_namespaces.extend(namespaces.as_array().into_iter().flatten().cloned());
    json!({
        "name": name,
        "admissionReviewVersions": ["v1"],
        "clientConfig": {
            "service": {
                "name": federation::NAME,
                "namespace": SYSTEM_NAMESPACE,
                "path": path,
                "port": PORT,
            },
        },
        "rules": [{
            "apiGroups": [""],
            "apiVersions": ["v1"],
            "resources": ["pods"],
            "operations": ["CREATE"],
            "scope": "Namespaced",
        }],
        // What is labelled to have a sidecar never runs without one.
        "failurePolicy": "Fail",
        "matchPolicy": "Equivalent",
        "namespaceSelector": { "matchExpressions": of_namespaces },
        "objectSelector": { "matchExpressions": pods },
        // Others may add containers after it, whose ports and users count, too.
        "reinvocationPolicy": "IfNeeded",
        "sideEffects": "None",
        "timeoutSeconds": TIMEOUT,
    })
}

//! What the pods of all parts have in common: the restricted profile, probes, and how they end.

use serde_json::{Value, json};

use super::settings::Settings;

/// The user in the image; it has no name.
const USER: u32 = 65_532;
/// Port of `/healthz`, `/readyz` and `/metrics`.
pub(super) const ADMIN: u16 = 15_020;
/// Where a part finds its configuration.
pub(super) const CONFIGURATION: &str = "/etc/linkspan";

/// One part as it differs from the other.
pub(super) struct Part<'a> {
    /// Name of all its objects, and its service account.
    pub(super) name: &'a str,
    pub(super) replicas: u16,
    pub(super) strategy: Value,
    /// What follows `linkspan`.
    pub(super) arguments: Value,
    pub(super) environment: Value,
    pub(super) ports: Value,
    pub(super) mounts: Value,
    pub(super) volumes: Value,
    pub(super) lifecycle: Value,
    pub(super) spread: Value,
    /// Whether it talks to the API server.
    pub(super) api: bool,
    /// Seconds from the order to end until it is killed.
    pub(super) grace: u64,
    /// Of its configuration.
    pub(super) fingerprint: String,
}

/// What selects a part's pods; never changes, as a Deployment's selector cannot.
pub(super) fn labels(name: &str) -> Value {
    json!({ "app.kubernetes.io/name": name })
}

/// `spec` of its Deployment.
pub(super) fn deployment(part: &Part<'_>, settings: &Settings) -> Value {
    let mut labels_of_pods = labels(part.name);
    labels_of_pods["app.kubernetes.io/part-of"] = json!("linkspan");
    json!({
        "replicas": part.replicas,
        "revisionHistoryLimit": 3,
        "selector": { "matchLabels": labels(part.name) },
        "strategy": part.strategy,
        "template": {
            "metadata": {
                "labels": labels_of_pods,
                "annotations": { "linkspan.io/configuration": part.fingerprint },
            },
            "spec": spec(part, settings),
        },
    })
}

fn spec(part: &Part<'_>, settings: &Settings) -> Value {
    let mut spec = json!({
        "serviceAccountName": part.name,
        "automountServiceAccountToken": part.api,
        "enableServiceLinks": false,
        "terminationGracePeriodSeconds": part.grace,
        "securityContext": {
            "runAsNonRoot": true,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        "containers": [container(part, settings)],
        "volumes": part.volumes,
    });
    if !part.spread.is_null() {
        spec["topologySpreadConstraints"] = part.spread.clone();
    }
    spec
}

fn container(part: &Part<'_>, settings: &Settings) -> Value {
    let mut container = json!({
        "name": part.name.trim_start_matches("linkspan-"),
        "image": settings.image,
        "imagePullPolicy": settings.pull.word(),
        "args": part.arguments,
        "ports": part.ports,
        "volumeMounts": part.mounts,
        "livenessProbe": probe("/healthz", 10),
        "readinessProbe": probe("/readyz", 2),
        // No limits: a part that is throttled or killed at a peak costs more than it saves.
        "resources": { "requests": { "cpu": "100m", "memory": "128Mi" } },
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": { "drop": ["ALL"] },
        },
    });
    if !part.environment.is_null() {
        container["env"] = part.environment.clone();
    }
    if !part.lifecycle.is_null() {
        container["lifecycle"] = part.lifecycle.clone();
    }
    container
}

fn probe(path: &str, every: u8) -> Value {
    json!({
        "httpGet": { "path": path, "port": ADMIN },
        "periodSeconds": every,
        "timeoutSeconds": 2,
    })
}

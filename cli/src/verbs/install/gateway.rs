//! Gateways: their configuration, Deployment, budget, and the Services before them.

use serde_json::{Value, json};

use super::{
    federation,
    manifest::{configuration, fingerprint, namespaced},
    pod::{self, ADMIN, CONFIGURATION, Part},
    settings::{Expose, Settings},
};

pub(super) const NAME: &str = "linkspan-gateway";
/// UDP port of the tunnel.
pub(super) const TUNNEL: u16 = 15_443;
/// TCP port for sidecars and federation.
pub(super) const EGRESS: u16 = 15_444;
/// Name of the Service at which peers reach the gateways: federation looks at it.
pub(super) const TUNNEL_SERVICE: &str = linkspan_federation::TUNNEL_SERVICE;
/// Where federation publishes the cluster's roots.
const ROOTS: &str = linkspan_federation::ROOTS_CONFIG_MAP;

const ROOTS_FOLDER: &str = "/var/run/linkspan/roots";
const TOKEN_FOLDER: &str = "/var/run/linkspan/token";
/// Seconds in which new connections still come, while load balancers learn that it goes.
const FAREWELL: u64 = 5;
/// Seconds for streams to end.
const DRAIN: u64 = 30;
/// Seconds beyond these until it is killed.
const MARGIN: u64 = 10;

pub(super) fn objects(settings: &Settings) -> Vec<Value> {
    let configuration = configuration(NAME, "gateway.yaml", &config(settings));
    let mut deployment = namespaced("apps/v1", "Deployment", NAME);
    let part = part(settings, fingerprint(&configuration));
    deployment["spec"] = pod::deployment(&part, settings);
    let mut all = vec![configuration, deployment, egress(), budget()];
    all.push(tunnel(settings));
    all
}

fn config(settings: &Settings) -> Value {
    let addresses = settings.addresses.iter();
    let addresses: Vec<_> = addresses
        .map(|(host, port)| json!({ "host": host, "port": port }))
        .collect();
    // Name and address of the replica are arguments: they are each pod's own.
    json!({
        "cluster": settings.cluster.as_str(),
        "federation": {
            "address": federation::address(),
            "trustDomain": settings.trust_domain.as_str(),
            "roots": format!("{ROOTS_FOLDER}/roots.pem"),
            "token": format!("{TOKEN_FOLDER}/token"),
        },
        "tunnelListen": format!("0.0.0.0:{TUNNEL}"),
        "tunnelAddresses": addresses,
        "egressListen": format!("0.0.0.0:{EGRESS}"),
        "adminListen": format!("0.0.0.0:{ADMIN}"),
        "debugListen": "127.0.0.1:15021",
        // For pods without a sidecar; where they reach it is the pod's own, too.
        "imports": { "listen": "0.0.0.0" },
        "drainGrace": format!("{DRAIN}s"),
    })
}

fn part(settings: &Settings, fingerprint: String) -> Part<'static> {
    let field = |name: &str, path: &str| json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": path } } });
    let audience = format!("linkspan:{}", settings.cluster);
    Part {
        name: NAME,
        replicas: settings.gateways,
        // A new one first: no time without as many as were asked for.
        strategy: json!({ "type": "RollingUpdate", "rollingUpdate": { "maxSurge": 1, "maxUnavailable": 0 } }),
        arguments: json!([
            "run",
            "gateway",
            "--config",
            format!("{CONFIGURATION}/gateway.yaml"),
            "--replica",
            "$(POD_NAME)",
            "--egress-address",
            "$(POD_IP)",
        ]),
        environment: json!([
            field("POD_NAME", "metadata.name"),
            field("POD_IP", "status.podIP")
        ]),
        ports: json!([
            { "name": "tunnel", "containerPort": TUNNEL, "protocol": "UDP" },
            { "name": "egress", "containerPort": EGRESS },
            { "name": "admin", "containerPort": ADMIN },
        ]),
        mounts: json!([
            { "name": "configuration", "mountPath": CONFIGURATION, "readOnly": true },
            { "name": "roots", "mountPath": ROOTS_FOLDER, "readOnly": true },
            { "name": "token", "mountPath": TOKEN_FOLDER, "readOnly": true },
        ]),
        volumes: json!([
            { "name": "configuration", "configMap": { "name": NAME } },
            // Federation makes it; until then the pod waits.
            { "name": "roots", "configMap": { "name": ROOTS } },
            {
                "name": "token",
                "projected": { "sources": [{ "serviceAccountToken": {
                    "audience": audience, "expirationSeconds": 3600, "path": "token",
                } }] },
            },
        ]),
        lifecycle: json!({ "preStop": { "sleep": { "seconds": FAREWELL } } }),
        spread: json!([
            spread("kubernetes.io/hostname"),
            spread("topology.kubernetes.io/zone")
        ]),
        api: false,
        grace: FAREWELL + DRAIN + MARGIN,
        fingerprint,
    }
}

/// Apart where that is possible; together on the only node rather than not at all.
fn spread(by: &str) -> Value {
    json!({
        "maxSkew": 1,
        "topologyKey": by,
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": { "matchLabels": pod::labels(NAME) },
    })
}

fn egress() -> Value {
    let mut service = namespaced("v1", "Service", NAME);
    service["spec"] = json!({
        // Sidecars dial pods; the Service gives them names.
        "clusterIP": "None",
        "selector": pod::labels(NAME),
        "ports": [{ "name": "egress", "port": EGRESS, "targetPort": EGRESS, "protocol": "TCP" }],
    });
    service
}

/// At which peers reach the gateways. Never left out: `kubectl apply` deletes nothing, so that a port
/// which is to be closed has to be declared as closed.
fn tunnel(settings: &Settings) -> Value {
    let mut service = namespaced("v1", "Service", TUNNEL_SERVICE);
    let mut port =
        json!({ "name": "tunnel", "port": TUNNEL, "targetPort": TUNNEL, "protocol": "UDP" });
    let kind = match settings.expose {
        Expose::None => "ClusterIP",
        Expose::LoadBalancer => "LoadBalancer",
        Expose::NodePort => "NodePort",
    };
    if let Some(number) = settings.node_port {
        port["nodePort"] = json!(number);
    }
    service["spec"] = json!({ "type": kind, "selector": pod::labels(NAME), "ports": [port] });
    if settings.expose == Expose::LoadBalancer {
        // No second hop, and the gateways' limits see who dials.
        service["spec"]["externalTrafficPolicy"] = json!("Local");
    }
    service
}

fn budget() -> Value {
    let mut budget = namespaced("policy/v1", "PodDisruptionBudget", NAME);
    budget["spec"] = json!({
        "maxUnavailable": 1,
        "selector": { "matchLabels": pod::labels(NAME) },
        // One that does not get ready must not keep its node from being drained.
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
    });
    budget
}

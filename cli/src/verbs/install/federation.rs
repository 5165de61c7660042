//! Federation: its configuration, what it keeps, its Deployment and Service.

use serde_json::{Value, json};

use super::{
    SYSTEM_NAMESPACE,
    manifest::{configuration, fingerprint, namespaced},
    pod::{self, ADMIN, CONFIGURATION, Part},
    settings::{Admission, Settings},
    webhook,
};

pub(super) const NAME: &str = "linkspan-federation";
/// Port of its gRPC.
pub(super) const PORT: u16 = 15_010;
/// Name of the Service of its DNS.
const DNS: &str = "linkspan-dns";
/// Port of its DNS, for UDP and TCP; the Service has 53, which a part without rights cannot have.
pub(super) const DNS_PORT: u16 = 15_053;
/// The Secrets in which it keeps what must outlive its pod.
pub(super) const SECRETS: [&str; 3] = linkspan_federation::SECRETS;

/// `host:port` at which the cluster's proxies reach it.
pub(super) fn address() -> String {
    format!("{NAME}.{SYSTEM_NAMESPACE}.svc:{PORT}")
}

pub(super) fn objects(settings: &Settings) -> Vec<Value> {
    let configuration = configuration(NAME, "federation.yaml", &config(settings));
    let mut deployment = namespaced("apps/v1", "Deployment", NAME);
    deployment["spec"] = pod::deployment(&part(settings, fingerprint(&configuration)), settings);
    let mut all = vec![configuration, deployment, service(), dns()];
    // Without `data`, which is federation's: applying again leaves it alone, and federation needs
    // no right to make Secrets.
    all.extend(SECRETS.map(|name| namespaced("v1", "Secret", name)));
    all
}

fn config(settings: &Settings) -> Value {
    let mut config = json!({
        "cluster": settings.cluster.as_str(),
        "clusterset": settings.clusterset,
        "trustDomain": settings.trust_domain.as_str(),
        "stateDir": "/var/lib/linkspan",
        "home": { "kubernetes": { "namespace": SYSTEM_NAMESPACE } },
        "listen": format!("0.0.0.0:{PORT}"),
        "adminListen": format!("0.0.0.0:{ADMIN}"),
        "debugListen": "127.0.0.1:15021",
        "dnsListen": format!("0.0.0.0:{DNS_PORT}"),
        "webhook": {
            "listen": format!("0.0.0.0:{}", webhook::PORT),
            "federation": address(),
            "image": settings.image,
            "imagePullPolicy": settings.pull.word(),
        },
    });
    if settings.unmeshed_clients == Admission::Allow {
        config["unmeshedClients"] = json!("allow");
    }
    if let Some(region) = &settings.region {
        config["locality"] = json!({ "region": region });
        if let Some(zone) = &settings.zone {
            config["locality"]["zone"] = json!(zone);
        }
    }
    config
}

fn part(settings: &Settings, fingerprint: String) -> Part<'static> {
    Part {
        name: NAME,
        // What it keeps has one writer, which holds it in memory: two would shut each other out.
        replicas: 1,
        strategy: json!({ "type": "Recreate" }),
        arguments: json!([
            "run",
            "federation",
            "--config",
            format!("{CONFIGURATION}/federation.yaml")
        ]),
        // For `linkspan inject`, which is run here: sidecars are of the same image.
        environment: json!([
            { "name": "LINKSPAN_IMAGE", "value": settings.image },
            { "name": "LINKSPAN_IMAGE_PULL_POLICY", "value": settings.pull.word() },
        ]),
        ports: json!([
            { "name": "grpc", "containerPort": PORT },
            { "name": "admin", "containerPort": ADMIN },
            { "name": "webhook", "containerPort": webhook::PORT },
            { "name": "dns", "containerPort": DNS_PORT, "protocol": "UDP" },
            { "name": "dns-tcp", "containerPort": DNS_PORT, "protocol": "TCP" },
        ]),
        mounts: json!([
            { "name": "configuration", "mountPath": CONFIGURATION, "readOnly": true },
            // Above the state directory, which federation makes for itself alone.
            { "name": "state", "mountPath": "/var/lib" },
        ]),
        volumes: json!([
            { "name": "configuration", "configMap": { "name": NAME } },
            { "name": "state", "emptyDir": { "sizeLimit": "512Mi" } },
        ]),
        lifecycle: Value::Null,
        spread: Value::Null,
        api: true,
        grace: 30,
        fingerprint,
    }
}

fn service() -> Value {
    let mut service = namespaced("v1", "Service", NAME);
    service["spec"] = json!({
        "selector": pod::labels(NAME),
        "ports": [
            { "name": "grpc", "port": PORT, "targetPort": PORT, "protocol": "TCP" },
            { "name": "webhook", "port": webhook::PORT, "targetPort": webhook::PORT, "protocol": "TCP" },
        ],
    });
    service
}

/// To which the cluster's own DNS may forward `clusterset.local`.
fn dns() -> Value {
    let port = |name: &str, protocol: &str| json!({ "name": name, "port": 53, "targetPort": DNS_PORT, "protocol": protocol });
    let mut service = namespaced("v1", "Service", DNS);
    service["spec"] = json!({
        "selector": pod::labels(NAME),
        "ports": [port("dns", "UDP"), port("dns-tcp", "TCP")],
    });
    service
}

//! Who may open connections to the parts. What the parts open themselves is not restricted: gateways
//! dial the cluster's endpoints and peers anywhere, federation the API server, whose address no
//! policy can name.

use serde_json::{Value, json};

use super::{
    federation,
    gateway::{self, EGRESS, TUNNEL},
    manifest::namespaced,
    pod::{self, ADMIN},
    webhook,
};

/// Ports of imports, for pods without a sidecar.
const IMPORTS: std::ops::RangeInclusive<u16> = linkspan_federation::IMPORT_PORTS;
/// Label of a namespace whose pods may read metrics.
const SCRAPE: &str = "linkspan.io/scrape";

pub(super) fn objects() -> Vec<Value> {
    let from = |namespaces: Value, port: u16| {
        json!({
            "from": [{ "namespaceSelector": namespaces }],
            "ports": [{ "port": port, "protocol": "TCP" }],
        })
    };
    let inside = |port| from(json!({}), port);
    // Nodes, whose probes go there, need no rule. Whoever else holds many connections there would
    // have the parts taken for dead.
    let scrapers = from(json!({ "matchLabels": { SCRAPE: "true" } }), ADMIN);
    let dns = json!({
        "from": [{ "namespaceSelector": {} }],
        "ports": [
            { "port": federation::DNS_PORT, "protocol": "UDP" },
            { "port": federation::DNS_PORT, "protocol": "TCP" },
        ],
    });
    let imports = json!({
        "from": [{ "namespaceSelector": {} }],
        "ports": [{ "port": IMPORTS.start(), "endPort": IMPORTS.end(), "protocol": "TCP" }],
    });
    // The API server is at an address that no policy can name.
    let webhook = json!({ "ports": [{ "port": webhook::PORT, "protocol": "TCP" }] });
    let anywhere = json!({ "ports": [{ "port": TUNNEL, "protocol": "UDP" }] });
    vec![
        policy("linkspan-deny", json!({}), json!([])),
        policy(
            federation::NAME,
            json!({ "matchLabels": pod::labels(federation::NAME) }),
            json!([inside(federation::PORT), dns, webhook, scrapers]),
        ),
        policy(
            gateway::NAME,
            json!({ "matchLabels": pod::labels(gateway::NAME) }),
            json!([anywhere, inside(EGRESS), imports, scrapers]),
        ),
    ]
}

fn policy(name: &str, pods: Value, ingress: Value) -> Value {
    let mut policy = namespaced("networking.k8s.io/v1", "NetworkPolicy", name);
    policy["spec"] = json!({ "podSelector": pods, "policyTypes": ["Ingress"] });
    // As the API server writes nothing: applying it again is then no change.
    if ingress != json!([]) {
        policy["spec"]["ingress"] = ingress;
    }
    policy
}

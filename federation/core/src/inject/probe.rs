//! How the sidecar finds out whether the pod wants traffic: as the kubelet does.

use serde_json::{Map, Value, json};

/// The first readiness probe of a container that asks by HTTP or TCP, as the sidecar's configuration
/// has it. One by command, by gRPC or of another host says nothing that the sidecar could ask, and
/// HTTPS it asks by TCP.
pub(super) fn of(spec: &Map<String, Value>) -> Option<Value> {
    let containers = spec.get("containers")?.as_array()?;
    containers.iter().find_map(one)
}

fn one(container: &Value) -> Option<Value> {
    let probe = &container["readinessProbe"];
    let (http, tcp) = (&probe["httpGet"], &probe["tcpSocket"]);
    let asked = if http.is_object() { http } else { tcp };
    if !asked["host"].is_null() {
        return None;
    }
    let port = port(container, &asked["port"])?;
    let secure = http["scheme"] == "HTTPS";
    if http.is_object() && !secure {
        let path = http["path"].as_str().unwrap_or("/");
        return Some(json!({ "http": { "port": port, "path": path } }));
    }
    Some(json!({ "tcp": { "port": port } }))
}

/// A number, or the name of one of the container's ports.
fn port(container: &Value, written: &Value) -> Option<u64> {
    let named = |name: &str| {
        let ports = container["ports"].as_array()?;
        let port = ports.iter().find(|port| port["name"] == name)?;
        port["containerPort"].as_u64()
    };
    match written {
        Value::Number(number) => number.as_u64(),
        Value::String(text) => text.parse().ok().or_else(|| named(text)),
        _ => None,
    }
}

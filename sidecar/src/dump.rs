//! What the debug face shows: configuration, what discovery says, and what follows from it.

use linkspan_dataplane::discover::{GatewayInfo, InboundService, PeerInfo, Snapshot};
use linkspan_routing::{Endpoint, Service};
use linkspan_runtime::admin::Dumps;
use serde_json::{Value, json};

use crate::{Config, mesh::MeshCell};

/// `/config`, `/snapshot` and `/debug`; none of them shows keys or tokens.
pub(crate) fn dumps(config: &Config, cell: &MeshCell) -> Dumps {
    let mut dumps = Dumps::new();
    let config = config.dump();
    dumps.add("config", move || config.clone());
    let mesh = cell.clone();
    dumps.add("snapshot", move || {
        let snapshot = mesh.get().and_then(|mesh| mesh.snapshots.borrow().clone());
        snapshot.map_or(Value::Null, |snapshot| self::snapshot(&snapshot))
    });
    let mesh = cell.clone();
    dumps.add("debug", move || {
        mesh.get().map_or(Value::Null, |mesh| {
            json!({
                "identity": mesh.source.own(),
                "generation": mesh.source.material().current().generation(),
                "destinations": mesh.source.services().dump(),
            })
        })
    });
    dumps
}

fn snapshot(snapshot: &Snapshot) -> Value {
    json!({
        "revision": snapshot.revision,
        "services": snapshot.services.values().map(|found| service(found)).collect::<Value>(),
        "gateways": snapshot.gateways.iter().map(gateway).collect::<Value>(),
        "peers": snapshot.peers.iter().map(peer).collect::<Value>(),
        "inbound": snapshot.inbound.iter().map(inbound).collect::<Value>(),
        "vips": snapshot
            .vips
            .iter()
            .map(|(address, vip)| (address.to_string(), json!({"service": vip.service, "ports": vip.ports})))
            .collect::<Value>(),
        "bundles": snapshot
            .bundles
            .iter()
            .map(|(domain, bundle)| json!({"trustDomain": domain, "sequence": bundle.sequence}))
            .collect::<Value>(),
    })
}

fn service(service: &Service) -> Value {
    let ports = service.ports.iter().map(
        |port| json!({"name": port.name, "port": port.port, "appProtocol": port.app_protocol}),
    );
    json!({
        "service": service.key,
        "ports": ports.collect::<Value>(),
        "clusters": service.clusters.keys().collect::<Vec<_>>(),
        "failoverPolicy": service.policy.as_ref().map(|policy| &policy.name),
        "drained": service.drained,
        "endpoints": service.endpoints.iter().map(|found| endpoint(found)).collect::<Value>(),
    })
}

fn endpoint(endpoint: &Endpoint) -> Value {
    json!({
        "id": endpoint.id,
        "cluster": endpoint.cluster,
        "locality": endpoint.locality,
        "identity": endpoint.identity,
        "ready": endpoint.ready,
        "weight": endpoint.weight,
        "incarnation": endpoint.incarnation,
        "address": endpoint.address,
    })
}

fn gateway(gateway: &GatewayInfo) -> Value {
    json!({
        "replica": gateway.replica,
        "egress": gateway.egress,
        "reachable": gateway.reachable,
        "draining": gateway.draining,
    })
}

fn peer(peer: &PeerInfo) -> Value {
    json!({
        "cluster": peer.cluster,
        "trustDomain": peer.trust_domain,
        "usable": peer.usable,
        "stale": peer.stale,
    })
}

fn inbound(service: &InboundService) -> Value {
    let ports = service.ports.iter().map(|port| {
        json!({
            "port": port.port,
            "targetPort": port.target_port,
            "appProtocol": port.app_protocol,
        })
    });
    json!({
        "service": service.key,
        "ports": ports.collect::<Value>(),
        "exportedTo": service.exported_to,
        "unmeshedClients": service.unmeshed_clients,
    })
}

//! What the loopback face shows of the inside; no secrets.

use std::sync::Arc;

use linkspan_core::Service;
use linkspan_runtime::admin::Dumps;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::{
    config::{Config, Home},
    controller::World,
};

/// `/config` and `/snapshot`.
pub(crate) fn dumps(config: &Config, worlds: watch::Receiver<Arc<World>>) -> Dumps {
    let mut dumps = Dumps::new();
    let config = config_value(config);
    dumps.add("config", move || config.clone());
    dumps.add("snapshot", move || {
        // Cloned out, so that the writer is not kept waiting.
        let world = Arc::clone(&worlds.borrow());
        snapshot(&world)
    });
    dumps
}

fn home_value(home: &Home) -> Value {
    match home {
        Home::Directory { resources } => json!({ "directory": { "resourcesDir": resources } }),
        Home::Kubernetes {
            kubeconfig,
            namespace,
        } => json!({ "kubernetes": { "kubeconfig": kubeconfig, "namespace": namespace } }),
    }
}

fn config_value(config: &Config) -> Value {
    let text = |duration| humantime::format_duration(duration).to_string();
    json!({
        "cluster": config.cluster.to_string(),
        "clusterset": config.clusterset,
        "trustDomain": config.trust_domain.to_string(),
        "stateDir": config.state_dir,
        "home": home_value(&config.home),
        "listen": config.listen,
        "adminListen": config.admin_listen,
        "debugListen": config.debug_listen,
        "dnsListen": config.dns_listen,
        "webhook": config.webhook.as_ref().map(|webhook| json!({
            "listen": webhook.listen,
            "federation": webhook.federation,
            "image": webhook.image,
            "imagePullPolicy": webhook.image_pull_policy,
        })),
        "failback": {
            "hold": text(config.failback.hold),
            "ramp": text(config.failback.ramp),
        },
        "staleTTL": text(config.stale_ttl),
    })
}

fn snapshot(world: &World) -> Value {
    let links = world.desired.links.values().map(|link| {
        json!({
            "cluster": link.link.cluster.to_string(),
            "trustDomain": link.link.trust_domain.to_string(),
            "addresses": link.addresses,
            "usable": link.usable,
            "stale": link.stale,
        })
    });
    let gateways = world.gateways.iter().map(|gateway| {
        json!({
            "replica": gateway.replica,
            "egress": gateway.egress,
            "ready": gateway.ready,
            "draining": gateway.draining,
            "up": gateway.up.iter().map(ToString::to_string).collect::<Vec<_>>(),
        })
    });
    json!({
        "generation": world.generation,
        "settled": world.settled,
        "services": world.desired.services.values().map(|of| service(of)).collect::<Vec<_>>(),
        "links": links.collect::<Vec<_>>(),
        "gateways": gateways.collect::<Vec<_>>(),
        "problems": world.desired.problems,
    })
}

fn service(service: &Service) -> Value {
    let endpoints = service.endpoints.iter().map(|endpoint| {
        json!({
            "id": endpoint.id.to_string(),
            "cluster": endpoint.cluster.to_string(),
            "region": &*endpoint.locality.region,
            "zone": &*endpoint.locality.zone,
            "identity": endpoint.identity.to_string(),
            "ready": endpoint.ready,
            "weight": endpoint.weight,
            "incarnation": endpoint.incarnation,
            "address": endpoint.address,
        })
    });
    json!({
        "service": service.key.to_string(),
        "ports": service.ports.iter().map(|port| port.port).collect::<Vec<_>>(),
        "endpoints": endpoints.collect::<Vec<_>>(),
    })
}

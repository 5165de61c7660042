//! Where peers reach the gateways, as the cluster says it: the address that its load balancer got, or
//! a port on each node.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Node, Service, ServicePort};
use kube::Client;
use kube::api::{Api, ListParams};
use linkspan_core::Address;

use crate::kinds::TUNNEL_SERVICE;

/// More are not told: peers dial no more.
const MAX_ADDRESSES: usize = 8;

/// The addresses of [`TUNNEL_SERVICE`]; none where there is no such Service, or it has none yet.
///
/// # Errors
/// What the API server answered.
pub async fn reach(client: &Client, namespace: &str) -> Result<Vec<Address>, ReachError> {
    let services = Api::<Service>::namespaced(client.clone(), namespace);
    let named = ListParams::default().fields(&format!("metadata.name={TUNNEL_SERVICE}"));
    let Some(service) = services.list(&named).await?.items.pop() else {
        return Ok(Vec::new());
    };
    let nodes = match is_at_nodes(&service) {
        true => {
            Api::all(client.clone())
                .list(&ListParams::default())
                .await?
                .items
        }
        false => Vec::new(),
    };
    Ok(addresses(&service, &nodes))
}

/// Where the gateways are could not be asked.
#[derive(Debug, thiserror::Error)]
#[error("where peers reach the gateways (Service `{TUNNEL_SERVICE}`) cannot be read")]
pub struct ReachError(#[source] Box<kube::Error>);

impl From<kube::Error> for ReachError {
    fn from(error: kube::Error) -> Self {
        Self(Box::new(error))
    }
}

fn is_at_nodes(service: &Service) -> bool {
    kind(service) == Some("NodePort")
}

fn kind(service: &Service) -> Option<&str> {
    service.spec.as_ref()?.type_.as_deref()
}

/// In an order that does not change by itself.
fn addresses(service: &Service, nodes: &[Node]) -> Vec<Address> {
    let ports = service.spec.as_ref().and_then(|spec| spec.ports.as_ref());
    let Some(port) = ports.and_then(|ports| ports.first()) else {
        return Vec::new();
    };
    let all: BTreeSet<_> = match kind(service) {
        Some("NodePort") => of_nodes(port, nodes),
        Some("LoadBalancer") => of_balancer(service, port),
        // It leads to nothing outside of the cluster (any more), whatever its status still says.
        _ => BTreeSet::new(),
    };
    all.into_iter().take(MAX_ADDRESSES).collect()
}

fn of_balancer(service: &Service, port: &ServicePort) -> BTreeSet<Address> {
    let status = service.status.as_ref();
    let balancer = status.and_then(|status| status.load_balancer.as_ref());
    let ingress = balancer.and_then(|balancer| balancer.ingress.as_deref());
    let hosts = ingress.unwrap_or_default().iter();
    let hosts = hosts.filter_map(|one| one.ip.clone().or_else(|| one.hostname.clone()));
    hosts.filter_map(|host| address(host, port.port)).collect()
}

/// Those of ready nodes: from outside where a node says so, else from the network that it is in.
fn of_nodes(port: &ServicePort, nodes: &[Node]) -> BTreeSet<Address> {
    let Some(number) = port.node_port else {
        return BTreeSet::new();
    };
    let ready = nodes.iter().filter(|node| is_ready(node));
    let hosts = ready.filter_map(|node| {
        let known = node.status.as_ref()?.addresses.as_ref()?;
        let of = |kind: &str| known.iter().find(|address| address.type_ == kind);
        let found = of("ExternalIP").or_else(|| of("InternalIP"))?;
        Some(found.address.clone())
    });
    hosts.filter_map(|host| address(host, number)).collect()
}

fn is_ready(node: &Node) -> bool {
    let conditions = node
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref());
    let mut conditions = conditions.into_iter().flatten();
    conditions.any(|of| of.type_ == "Ready" && of.status == "True")
}

fn address(host: String, port: i32) -> Option<Address> {
    let port = u16::try_from(port).ok().filter(|port| *port != 0)?;
    Some(Address { host, port })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn service(kind: &str, status: Value) -> Service {
        serde_json::from_value(json!({
            "spec": { "type": kind, "ports": [{ "port": 15443, "nodePort": 30443 }] },
            "status": status,
        }))
        .expect("a Service")
    }

    fn node(ready: &str, addresses: Value) -> Node {
        serde_json::from_value(json!({
            "status": {
                "conditions": [{ "type": "Ready", "status": ready }],
                "addresses": addresses,
            },
        }))
        .expect("a Node")
    }

    fn text(of: Vec<Address>) -> Vec<String> {
        let one = |address: &Address| format!("{}:{}", address.host, address.port);
        of.iter().map(one).collect()
    }

    #[test]
    fn a_load_balancer_says_where_it_is() {
        let status = json!({ "loadBalancer": { "ingress": [
            { "ip": "192.0.2.7" }, { "hostname": "lb.example.org" }, {},
        ] } });
        let found = addresses(&service("LoadBalancer", status), &[]);
        assert_eq!(text(found), ["192.0.2.7:15443", "lb.example.org:15443"]);
        assert!(addresses(&service("LoadBalancer", json!({})), &[]).is_empty());
        // It was one, and its balancer is not gone yet.
        let status = json!({ "loadBalancer": { "ingress": [{ "ip": "192.0.2.7" }] } });
        assert!(addresses(&service("ClusterIP", status), &[]).is_empty());
        assert!(addresses(&Service::default(), &[]).is_empty());
    }

    #[test]
    fn ready_nodes_are_reached_from_outside_where_they_can_be() {
        let inside = |ip: &str| json!({ "type": "InternalIP", "address": ip });
        let outside = json!({ "type": "ExternalIP", "address": "192.0.2.9" });
        let nodes = [
            node("True", json!([inside("10.0.0.2")])),
            node("True", json!([inside("10.0.0.1"), outside])),
            node("False", json!([inside("10.0.0.3")])),
            node("True", json!([])),
            Node::default(),
        ];
        let found = addresses(&service("NodePort", json!({})), &nodes);
        assert_eq!(text(found), ["10.0.0.2:30443", "192.0.2.9:30443"]);
    }

    #[test]
    fn peers_are_told_no_more_than_they_dial() {
        let ip = |n: u8| json!([{ "type": "InternalIP", "address": format!("10.0.0.{n}") }]);
        let nodes: Vec<_> = (1..=20).map(|n| node("True", ip(n))).collect();
        assert_eq!(addresses(&service("NodePort", json!({})), &nodes).len(), 8);
    }
}

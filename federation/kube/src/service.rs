//! Services of Kubernetes as the resource that federation reads.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Service, ServicePort};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::DynamicObject;
use linkspan_core::ServiceKey;
use linkspan_core::derived::derived_name;
use linkspan_resources as resources;
use linkspan_resources::{Metadata, ServiceType, SessionAffinity};

use crate::kinds::{IMPORT_NAME, is_ours};

/// The label by which an EndpointSlice names its Service.
pub(crate) const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Numbers of named target ports: by namespace, Service and name of the Service's port.
pub(crate) type NamedPorts = BTreeMap<(String, String, String), u16>;

/// A Service as it is read, and what of it cannot be carried.
pub(crate) struct Read {
    pub(crate) service: resources::Service,
    pub(crate) left_out: Vec<String>,
}

/// Reads a Service. Ports that cannot be carried (not TCP) are left out and told of.
pub(crate) fn read(service: &Service, named: &NamedPorts) -> Option<Read> {
    let name = service.metadata.name.clone()?;
    let namespace = service.metadata.namespace.clone()?;
    let spec = service.spec.as_ref()?;
    let mut left_out = Vec::new();
    let mut ports = Vec::new();
    for port in spec.ports.iter().flatten() {
        match read_port(port, &namespace, &name, named) {
            Ok(port) => ports.push(port),
            Err(why) => left_out.push(format!("port {}: {why}", port.port)),
        }
    }
    let metadata = Metadata {
        labels: service.metadata.labels.clone().unwrap_or_default(),
        ..Metadata::named(namespace, name)
    };
    let service_type = match spec.type_.as_deref() {
        Some("ExternalName") => ServiceType::ExternalName,
        Some("NodePort") => ServiceType::NodePort,
        Some("LoadBalancer") => ServiceType::LoadBalancer,
        _ => ServiceType::ClusterIP,
    };
    let session_affinity = match spec.session_affinity.as_deref() {
        Some("ClientIP") => SessionAffinity::ClientIP,
        _ => SessionAffinity::None,
    };
    let spec = resources::ServiceSpec {
        selector: spec.selector.clone().unwrap_or_default(),
        ports,
        service_type,
        cluster_ip: spec.cluster_ip.clone().filter(|ip| ip == "None"),
        session_affinity,
    };
    Some(Read {
        service: resources::Service { metadata, spec },
        left_out,
    })
}

fn read_port(
    port: &ServicePort,
    namespace: &str,
    service: &str,
    named: &NamedPorts,
) -> Result<resources::ServicePort, String> {
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    if protocol != "TCP" {
        return Err(format!("{protocol} is not carried yet"));
    }
    let number = u16::try_from(port.port).map_err(|_| "it is no port number".to_owned())?;
    let target_port = match &port.target_port {
        None => None,
        Some(IntOrString::Int(target)) => u16::try_from(*target).ok(),
        Some(IntOrString::String(_)) => {
            let name = port.name.clone().unwrap_or_default();
            let key = (namespace.to_owned(), service.to_owned(), name);
            // Without a ready Pod nobody knows the number, and nobody needs it.
            named.get(&key).copied()
        }
    };
    Ok(resources::ServicePort {
        name: port.name.clone().filter(|name| !name.is_empty()),
        port: number,
        target_port,
        protocol: resources::Protocol::Tcp,
        app_protocol: port.app_protocol.clone(),
    })
}

/// What the EndpointSlices say about named ports. Where Pods of one Service differ, the lowest
/// number stands: every replica must come to the same result.
pub(crate) fn named_ports<'a>(slices: impl Iterator<Item = &'a EndpointSlice>) -> NamedPorts {
    let mut named = NamedPorts::new();
    for slice in slices {
        let labels = slice.metadata.labels.as_ref();
        let service = labels.and_then(|labels| labels.get(SERVICE_NAME));
        let (Some(service), Some(namespace)) = (service, &slice.metadata.namespace) else {
            continue;
        };
        for port in slice.ports.iter().flatten() {
            let Some(number) = port.port.and_then(|port| u16::try_from(port).ok()) else {
                continue;
            };
            let name = port.name.clone().unwrap_or_default();
            let key = (namespace.clone(), service.clone(), name);
            let lowest = named.entry(key).or_insert(number);
            *lowest = number.min(*lowest);
        }
    }
    named
}

/// For which import a Service stands, and where; `None` for one that is not derived, or has no
/// address.
pub(crate) fn clusterset_ips(service: &DynamicObject) -> Option<(ServiceKey, Vec<IpAddr>)> {
    let labels = service.metadata.labels.as_ref();
    let import = labels.filter(|of| is_ours(Some(of)))?.get(IMPORT_NAME)?;
    let import = ServiceKey::new(service.metadata.namespace.as_deref()?, import).ok()?;
    if service.metadata.name.as_deref() != Some(derived_name(&import).as_str()) {
        return None;
    }
    let ips = service.data["spec"]["clusterIPs"].as_array()?.iter();
    let ips: Vec<IpAddr> = ips.filter_map(|ip| ip.as_str()?.parse().ok()).collect();
    (!ips.is_empty()).then_some((import, ips))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service(spec: serde_json::Value) -> Service {
        let object = json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": spec});
        serde_json::from_value(object).expect("a Service")
    }

    #[test]
    fn what_is_not_tcp_is_left_out_and_told_of() {
        let service = service(json!({"ports": [
            {"name": "dns", "port": 53, "protocol": "UDP"},
            {"name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080},
        ]}));
        let read = read(&service, &NamedPorts::new()).expect("readable");
        assert_eq!(read.left_out, ["port 53: UDP is not carried yet"]);
        let ports: Vec<_> = read
            .service
            .spec
            .ports
            .iter()
            .map(|p| (p.port, p.target_port()))
            .collect();
        assert_eq!(ports, [(80, 8080)]);
    }

    #[test]
    fn a_named_target_port_is_what_the_slices_say() {
        let slice = |port: u16| -> EndpointSlice {
            serde_json::from_value(json!({
                "metadata": {"name": "x", "namespace": "shop", "labels": {SERVICE_NAME: "web"}},
                "addressType": "IPv4", "endpoints": [],
                "ports": [{"name": "http", "port": port}],
            }))
            .expect("a slice")
        };
        let slices = [slice(8081), slice(8080)];
        let service =
            service(json!({"ports": [{"name": "http", "port": 80, "targetPort": "web"}]}));
        let known = read(&service, &named_ports(slices.iter())).expect("readable");
        assert_eq!(known.service.spec.ports[0].target_port(), 8080);
        let unknown = read(&service, &NamedPorts::new()).expect("readable");
        assert_eq!(unknown.service.spec.ports[0].target_port(), 80);
    }

    #[test]
    fn only_headless_services_keep_their_address() {
        let plain = read(
            &service(json!({"clusterIP": "10.0.0.1"})),
            &NamedPorts::new(),
        );
        assert_eq!(plain.expect("readable").service.spec.cluster_ip, None);
        let headless = read(&service(json!({"clusterIP": "None"})), &NamedPorts::new());
        assert!(headless.expect("readable").service.spec.is_headless());
    }

    #[test]
    fn only_a_derived_service_gives_an_import_its_addresses() {
        let import: ServiceKey = "shop/web".parse().expect("a key");
        let derived = |name: &str, ips: serde_json::Value| -> DynamicObject {
            serde_json::from_value(json!({
                "apiVersion": "v1", "kind": "Service",
                "metadata": {
                    "name": name, "namespace": "shop",
                    "labels": {
                        "app.kubernetes.io/managed-by": "linkspan-federation",
                        IMPORT_NAME: "web",
                    },
                },
                "spec": { "clusterIPs": ips },
            }))
            .expect("a Service")
        };
        let name = derived_name(&import);
        let found = clusterset_ips(&derived(&name, json!(["10.0.0.7", "fd00::7"])));
        let ips = ["10.0.0.7", "fd00::7"].map(|ip| ip.parse().expect("an address"));
        assert_eq!(found, Some((import, ips.to_vec())));
        assert_eq!(clusterset_ips(&derived("web", json!(["10.0.0.7"]))), None);
        assert_eq!(clusterset_ips(&derived(&name, json!(["None"]))), None);
        let mut theirs = derived(&name, json!(["10.0.0.7"]));
        theirs.metadata.labels = Some(BTreeMap::from([(IMPORT_NAME.into(), "web".into())]));
        assert_eq!(clusterset_ips(&theirs), None);
    }
}

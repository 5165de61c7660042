//! Servers without a sidecar: declared in EndpointSlices, since nobody registers them. Gateways take
//! the mesh's calls for them.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use linkspan_resources::{self as resources, EndpointSlice};

use crate::declared::{Declared, DeclaredService};
use crate::model::{Endpoint, EndpointId, Locality, OwnCluster, ServiceKey, SpiffeId};

#[cfg(test)]
mod tests;

/// Label of a slice: in which region its servers are. Their zone is a field of their own.
const REGION: &str = "topology.kubernetes.io/region";

/// One server of one Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeclaredServer {
    /// Which endpoint it is.
    pub id: EndpointId,
    /// Where it is.
    pub ip: IpAddr,
    /// Where it listens, by the name of the Service's port (empty for one without). With none at
    /// all, it listens on the target ports of the Service.
    pub ports: BTreeMap<String, u16>,
    /// Whether it wants traffic.
    pub ready: bool,
    /// Whether it is going away: it ends what it has, and nobody expects it back.
    pub terminating: bool,
    /// Where it runs.
    pub locality: Locality,
    /// Its host name; may be empty.
    pub hostname: String,
    /// Where it is written, for messages.
    pub origin: String,
}

impl DeclaredServer {
    /// Where it listens for the ports of its Service, by Service port. Ports that it does not
    /// mention it does not serve.
    pub fn addresses(&self, service: &DeclaredService) -> BTreeMap<u16, SocketAddr> {
        let of = |port: &crate::declared::DeclaredPort| match self.ports.is_empty() {
            true => Some(port.target_port),
            false => {
                let name = port.service_port.name.as_deref().unwrap_or_default();
                self.ports.get(name).copied()
            }
        };
        let ports = service.ports.iter();
        ports
            .filter_map(|port| {
                let at = SocketAddr::new(self.ip, of(port)?);
                Some((port.service_port.port, at))
            })
            .collect()
    }

    /// The endpoint as proxies see it: without an address, as gateways lead to it from everywhere.
    pub fn endpoint(&self, own: &OwnCluster) -> Endpoint {
        Endpoint {
            id: self.id.clone(),
            cluster: own.cluster.clone(),
            locality: self.locality.clone(),
            identity: SpiffeId::unmeshed_server(&own.trust_domain),
            ready: self.ready,
            weight: 1,
            // Nobody sees it restart.
            incarnation: 0,
            address: None,
            labels: BTreeMap::new(),
        }
    }
}

/// The Service that a slice is of, and the servers in it.
pub(crate) fn servers_of(
    slice: &EndpointSlice,
    origin: &str,
) -> Result<(ServiceKey, Vec<DeclaredServer>), String> {
    let name = slice.service().unwrap_or_default();
    let key = ServiceKey::new(slice.metadata.namespace(), name);
    let key = key.map_err(|error| {
        let label = resources::SERVICE_NAME;
        format!("metadata.labels[{label}]: {error}; name a Service of the same namespace")
    })?;
    let ports = slice.ports.iter();
    let ports: BTreeMap<_, _> = ports
        .map(|port| (port.name().to_owned(), port.port))
        .collect();
    let region = slice.metadata.labels.get(REGION);
    let region = region.map(String::as_str).unwrap_or_default();
    let server = |of: &resources::SliceEndpoint| {
        let ip = of.addresses.first()?.to_canonical();
        Some(DeclaredServer {
            id: id(&key, ip, &ports),
            ip,
            ports: ports.clone(),
            ready: of.conditions.is_ready(),
            terminating: false,
            locality: Locality {
                region: region.into(),
                zone: of.zone.as_deref().unwrap_or_default().into(),
            },
            hostname: of.hostname.clone().unwrap_or_default(),
            origin: format!(
                "{origin}: EndpointSlice `{}`: server {ip} of `{key}`",
                slice.metadata.name
            ),
        })
    };
    let servers = slice.endpoints.iter().filter_map(server).collect();
    Ok((key, servers))
}

/// Leaves out servers of no Service, and those that do not serve each of its ports. Asks for all that
/// is declared: the Service may be written elsewhere.
pub fn leave_out_unserved(declared: &mut Declared) {
    let Declared {
        services,
        servers,
        problems,
        ..
    } = declared;
    servers.retain(|key, of_service| {
        of_service.retain(|server| {
            let served = is_served(server, services.get(key));
            served
                .map_err(|problem| problems.push(format!("{}: {problem}", server.origin)))
                .is_ok()
        });
        !of_service.is_empty()
    });
}

fn is_served(server: &DeclaredServer, service: Option<&DeclaredService>) -> Result<(), String> {
    let Some(service) = service else {
        return Err("there is no such Service; declare it, with its ports".into());
    };
    let addresses = server.addresses(service);
    let mut ports = service.ports.iter().map(|port| &port.service_port);
    match ports.find(|port| !addresses.contains_key(&port.port)) {
        None => Ok(()),
        Some(without) => Err(format!(
            "port {} of the Service is not among `ports` of the slice; list it there under the name \
             `{}`",
            without.port,
            without.name.as_deref().unwrap_or_default()
        )),
    }
}

/// The same for as long as it listens where it does. Never that of a workload: those have no control
/// characters in their UIDs.
fn id(service: &ServiceKey, ip: IpAddr, ports: &BTreeMap<String, u16>) -> EndpointId {
    let ports = ports.iter().map(|(name, port)| format!("{name}={port}"));
    let ports: Vec<_> = ports.collect();
    EndpointId::from_uid(&format!("\0{service}@{ip}:{}", ports.join(",")))
}

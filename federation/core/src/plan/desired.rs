//! What should be, as data.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::declared::ObjectName;
use crate::derived::Derived;
use crate::dns::Zone;
use crate::imports::ImportPort;
use crate::model::{
    Address, AppProtocol, Bundle, ClusterId, Condition, Endpoint, EndpointId, Export,
    ExportedEndpoint, Import, Link, Service, ServiceKey, TrustDomain,
};

/// What should be.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Desired {
    /// What proxies may subscribe to.
    pub services: BTreeMap<ServiceKey, Arc<Service>>,
    /// Services exported by anyone, merged.
    pub imports: BTreeMap<ServiceKey, Import>,
    /// What each workload itself serves, by UID.
    pub inbound: BTreeMap<String, Vec<InboundService>>,
    /// Services with servers that have no sidecar, for which gateways take calls.
    pub unmeshed: BTreeMap<ServiceKey, UnmeshedService>,
    /// What peers may reach through our gateways.
    pub exported: BTreeMap<ServiceKey, ExportedService>,
    /// What each peer is told.
    pub outgoing: BTreeMap<ClusterId, Arc<Outgoing>>,
    /// Links as gateways and proxies need them.
    pub links: BTreeMap<ClusterId, PlannedLink>,
    /// On which port gateways take calls of clients without a sidecar; see [`crate::imports`].
    pub import_ports: BTreeMap<ImportPort, u16>,
    /// What DNS says of the imports.
    pub zone: Arc<Zone>,
    /// Which address stands for which service of the clusterset in this cluster.
    pub vips: BTreeMap<IpAddr, Vip>,
    /// What stands for each import that has an address, for clients without a sidecar; see
    /// [`crate::derived`]. Only where the home can hold it.
    pub derived: BTreeMap<ServiceKey, Derived>,
    /// Conditions of our ServiceExports.
    pub export_conditions: BTreeMap<ServiceKey, Vec<Condition>>,
    /// Conditions of the imports.
    pub import_conditions: BTreeMap<ServiceKey, Vec<Condition>>,
    /// Conditions of our FailoverPolicies.
    pub policy_conditions: BTreeMap<ServiceKey, Vec<Condition>>,
    /// Conditions of the links.
    pub link_conditions: BTreeMap<ClusterId, Vec<Condition>>,
    /// Of which generation of each object the conditions speak, where the home counts them.
    pub generations: BTreeMap<ObjectName, i64>,
    /// What is wrong with what is declared.
    pub problems: Vec<String>,
}

/// What an address stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vip {
    /// Which service.
    pub service: ServiceKey,
    /// Its Service ports; none while nobody exports the service, or while one of that name is declared
    /// here and not exported.
    pub ports: Vec<u16>,
}

/// A service that a workload serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InboundService {
    /// Which service.
    pub service: ServiceKey,
    /// Its ports.
    pub ports: Vec<InboundPort>,
    /// Trust domains of the peers to which it is exported.
    pub exported_to: BTreeSet<TrustDomain>,
    /// Whether it admits callers without a sidecar.
    pub unmeshed_clients: bool,
}

/// A port of an [`InboundService`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InboundPort {
    /// The Service port.
    pub port: u16,
    /// The application's own port.
    pub target_port: u16,
    /// How its bytes are to be understood.
    pub app_protocol: AppProtocol,
}

/// A service with servers that have no sidecar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnmeshedService {
    /// This cluster.
    pub cluster: ClusterId,
    /// Whom it admits, and to what.
    pub served: InboundService,
    /// Its servers without a sidecar.
    pub servers: Vec<UnmeshedServer>,
}

/// One server without a sidecar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnmeshedServer {
    /// Which endpoint it is.
    pub id: EndpointId,
    /// Whether it wants traffic.
    pub ready: bool,
    /// Where it listens, by Service port.
    pub addresses: BTreeMap<u16, SocketAddr>,
}

/// A service that peers may reach.
#[derive(Clone, Debug, PartialEq)]
pub struct ExportedService {
    /// Which service.
    pub service: ServiceKey,
    /// Its Service ports.
    pub ports: Vec<u16>,
    /// Peers to which it is exported.
    pub peers: BTreeSet<ClusterId>,
    /// Its endpoints in this cluster; those with a sidecar have an address.
    pub endpoints: Vec<Arc<Endpoint>>,
}

/// What a peer is told, beside our roots.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outgoing {
    /// Services exported to it.
    pub exports: BTreeMap<ServiceKey, Arc<Export>>,
    /// Their endpoints, without addresses.
    pub endpoints: BTreeMap<(ServiceKey, EndpointId), ExportedEndpoint>,
    /// Where our gateways can be dialled.
    pub gateways: Vec<Address>,
}

/// A link and what is known of its peer.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedLink {
    /// As declared.
    pub link: Arc<Link>,
    /// Where to dial: declared addresses first, then announced ones.
    pub addresses: Vec<Address>,
    /// The roots in force.
    pub bundle: Bundle,
    /// Whether the peer's endpoints may be used.
    pub usable: bool,
    /// Whether a tunnel to the peer is up, also while the link is pending.
    pub up: bool,
    /// Whether its records are not being kept up to date.
    pub stale: bool,
}

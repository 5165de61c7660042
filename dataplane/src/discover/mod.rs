//! What this proxy knows of the world: one [`Snapshot`], kept up to date by a stream from federation.
//!
//! * A snapshot is complete or absent: `None` until everything known has been received once.
//! * While there is no stream, the last snapshot stays; after a reconnect it stays until the new
//!   stream has been heard completely.
//! * A record that makes no sense is skipped, counted and logged; its last good version stays.

mod client;
mod failover;
mod records;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use linkspan_api::v1;
use linkspan_routing::{AppProtocol, ClusterId, Endpoint, EndpointId, Service, ServiceKey};
use linkspan_trust::{BundleSet, SpiffeId, TrustDomain};

pub use client::{DiscoveryTask, client};
pub use records::{RecordError, bundle_of};

/// Everything that federation told this proxy, at one time.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Services subscribed to (sidecars) or imported for clients without a sidecar (gateways), with
    /// their endpoints.
    pub services: HashMap<ServiceKey, Arc<Service>>,
    /// Roots of the own and each linked trust domain.
    pub bundles: BundleSet,
    /// Gateways of the own cluster (sidecars).
    pub gateways: Vec<GatewayInfo>,
    /// Linked clusters (gateways).
    pub links: Vec<LinkInfo>,
    /// Gateways of clusters that were unlinked and may not know it, and the invitations of which
    /// the links came, empty for those that were declared (gateways).
    pub tombstones: BTreeMap<SpiffeId, String>,
    /// Whether linked clusters' endpoints may be used (sidecars).
    pub peers: Vec<PeerInfo>,
    /// Services that the own workload serves (sidecars).
    pub inbound: Vec<InboundService>,
    /// Services that peers may reach (gateways).
    pub exported: Vec<ExportedService>,
    /// Ports to open for clients without a sidecar (gateways).
    pub imports: Vec<ImportPort>,
    /// Servers without a sidecar, for which to take calls (gateways); whom these admit is said in
    /// `inbound`.
    pub servers: Vec<UnmeshedServer>,
    /// Which addresses stand for services of the clusterset (sidecars that capture).
    pub vips: HashMap<IpAddr, Vip>,
    /// Number of the newest response applied, within its stream.
    pub revision: u64,
}

impl Snapshot {
    /// The snapshot that a proxy makes of a complete set of records: for those who want to know
    /// what a proxy would do. Records that it would skip come back as errors.
    #[must_use]
    pub fn of_records(records: Vec<v1::DiscoverRecord>) -> (Self, Vec<RecordError>) {
        let mut typed = records::Records::default();
        let taken = records.into_iter().map(|record| typed.upsert(record));
        let skipped = taken.filter_map(Result::err).collect();
        (typed.snapshot(0, None), skipped)
    }

    /// Which peers' endpoints may be used, as the balancer wants to know it.
    #[must_use]
    pub fn usable_peers(&self) -> linkspan_routing::UsablePeers {
        self.peers
            .iter()
            .map(|peer| (peer.cluster.clone(), peer.usable))
            .collect()
    }
}

/// What an address stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vip {
    /// The service.
    pub service: ServiceKey,
    /// Its Service ports.
    pub ports: BTreeSet<u16>,
}

/// A replica of the own cluster's gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayInfo {
    /// Its stable name.
    pub replica: String,
    /// Where sidecars reach it.
    pub egress: SocketAddr,
    /// Peers to which it has a connection that is not suspect.
    pub reachable: BTreeSet<ClusterId>,
    /// It takes nothing new.
    pub draining: bool,
}

/// Where a peer's gateway can be dialled.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TunnelAddress {
    /// Host name or IP address.
    pub host: String,
    /// UDP port.
    pub port: u16,
}

/// A linked cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkInfo {
    /// Its cluster id.
    pub cluster: ClusterId,
    /// The one trust domain of the link.
    pub trust_domain: TrustDomain,
    /// Who must answer as its gateway.
    pub gateway: SpiffeId,
    /// Who must answer as its federation.
    pub federation: SpiffeId,
    /// Where it can be dialled; may be empty.
    pub addresses: Vec<TunnelAddress>,
    /// Loopback and link-local addresses may be dialled.
    pub allow_loopback: bool,
}

/// Whether a linked cluster can be used now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerInfo {
    /// Its cluster id.
    pub cluster: ClusterId,
    /// Its trust domain.
    pub trust_domain: TrustDomain,
    /// Some gateway has it up.
    pub usable: bool,
    /// Its records are old, but kept.
    pub stale: bool,
}

/// A service that the own workload serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InboundService {
    /// The service.
    pub key: ServiceKey,
    /// Its ports.
    pub ports: Vec<InboundPort>,
    /// Trust domains of the clusters to which it is exported.
    pub exported_to: BTreeSet<TrustDomain>,
    /// Whether it admits clients without a sidecar.
    pub unmeshed_clients: bool,
}

/// A port of a service that the own workload serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InboundPort {
    /// The Service port.
    pub port: u16,
    /// The application's own port.
    pub target_port: u16,
    /// What is spoken to the application.
    pub app_protocol: AppProtocol,
}

/// A service that peers may reach through this cluster's gateways.
#[derive(Clone, Debug, PartialEq)]
pub struct ExportedService {
    /// The service.
    pub key: ServiceKey,
    /// Its Service ports.
    pub ports: BTreeSet<u16>,
    /// To whom it is exported.
    pub peers: BTreeSet<ClusterId>,
    /// Its endpoints in this cluster.
    pub endpoints: Vec<Arc<Endpoint>>,
}

/// A port on which gateways take calls of clients without a sidecar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportPort {
    /// The service that is called through it.
    pub service: ServiceKey,
    /// Its Service port.
    pub port: u16,
    /// Where gateways listen.
    pub listen: u16,
}

/// A server without a sidecar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnmeshedServer {
    /// The service that it serves.
    pub service: ServiceKey,
    /// The endpoint as callers name it.
    pub id: EndpointId,
    /// Whether it wants traffic.
    pub ready: bool,
    /// Where it listens, by Service port.
    pub addresses: BTreeMap<u16, SocketAddr>,
}

/// What a proxy tells of itself; sent at once, whenever it changes, and as the heartbeat.
#[derive(Clone, Debug, PartialEq)]
pub enum Registration {
    /// A sidecar.
    Workload(v1::WorkloadRegistration),
    /// A gateway.
    Gateway(v1::GatewayRegistration),
}

#[cfg(test)]
mod tests;

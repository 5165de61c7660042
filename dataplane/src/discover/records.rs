//! From wire records to typed ones, and from these to a [`Snapshot`].

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Display,
    net::{IpAddr, SocketAddr},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use linkspan_api::v1::{self, discover_record::Body};
use linkspan_routing::{
    AppProtocol, ClusterCapacity, ClusterId, Endpoint, FailbackConfig, Locality, Service,
    ServiceKey, ServicePort,
};
use linkspan_trust::{Bundle, BundleSet, SpiffeId, TrustDomain};
use rustls::pki_types::CertificateDer;

use super::{
    ExportedService, GatewayInfo, ImportPort, InboundPort, InboundService, LinkInfo, PeerInfo,
    Snapshot, TunnelAddress, UnmeshedServer, Vip, failover,
};

/// Records of one stream; far above what a cluster has, to bound memory against a runaway server.
const MAX_RECORDS: usize = 1_000_000;
/// Weight of an endpoint at most.
const MAX_WEIGHT: u32 = 128;

/// What is wrong with a record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct RecordError {
    /// Which field.
    pub field: &'static str,
    /// Why its value cannot be used.
    pub problem: String,
}

impl RecordError {
    pub(super) fn new(field: &'static str, problem: impl Display) -> Self {
        Self {
            field,
            problem: problem.to_string(),
        }
    }
}

/// A typed record.
#[derive(Clone, Debug)]
enum Record {
    Service(Box<Service>),
    Endpoint(ServiceKey, Arc<Endpoint>),
    /// Its bundle is in [`Records::bundles`].
    Bundle(TrustDomain),
    Gateway(GatewayInfo),
    Link(LinkInfo),
    Peer(PeerInfo),
    Inbound(InboundService),
    Exported(ExportedService),
    Import(ImportPort),
    Server(UnmeshedServer),
    Vip(IpAddr, Vip),
    /// The gateways of a peer that was unlinked, and the invitation of which the link came.
    Tombstone(SpiffeId, String),
}

/// All records of a stream, by key.
#[derive(Debug, Default)]
pub(super) struct Records {
    by_key: BTreeMap<String, Record>,
    /// Kept beside the records, because making a set means parsing certificates.
    bundles: BundleSet,
}

impl Records {
    /// Adds or replaces a record. If it makes no sense, the last good one stays.
    pub(super) fn upsert(&mut self, record: v1::DiscoverRecord) -> Result<(), RecordError> {
        let body = record
            .body
            .ok_or_else(|| RecordError::new("body", "of a kind unknown here"))?;
        if self.by_key.len() >= MAX_RECORDS && !self.by_key.contains_key(&record.key) {
            return Err(RecordError::new("key", "too many records"));
        }
        let typed = self.typed(body)?;
        match (&typed, self.by_key.insert(record.key, typed.clone())) {
            (Record::Bundle(now), Some(Record::Bundle(before))) if *now == before => {}
            (_, before) => self.forget_bundle(before),
        }
        Ok(())
    }

    /// Removes a record; unknown keys are fine, as the record may have been refused.
    pub(super) fn remove(&mut self, key: &str) {
        let before = self.by_key.remove(key);
        self.forget_bundle(before);
    }

    fn typed(&mut self, body: Body) -> Result<Record, RecordError> {
        Ok(match body {
            Body::Service(service) => Record::Service(Box::new(self::service(service)?)),
            Body::Endpoint(endpoint) => {
                let (key, endpoint) = self::endpoint(endpoint)?;
                Record::Endpoint(key, Arc::new(endpoint))
            }
            Body::Bundle(bundle) => self.bundle(bundle)?,
            Body::Gateway(gateway) => Record::Gateway(self::gateway(gateway)?),
            Body::Link(link) => Record::Link(self::link(link)?),
            Body::Peer(peer) => Record::Peer(PeerInfo {
                cluster: parse("cluster", &peer.cluster)?,
                trust_domain: parse("trust_domain", &peer.trust_domain)?,
                usable: peer.usable,
                stale: peer.stale,
            }),
            Body::Tombstone(of) => Record::Tombstone(
                parse("gateway_spiffe_id", &of.gateway_spiffe_id)?,
                of.invitation,
            ),
            Body::Inbound(inbound) => Record::Inbound(self::inbound(inbound)?),
            Body::Exported(exported) => Record::Exported(ExportedService {
                key: key(exported.key)?,
                ports: exported
                    .ports
                    .into_iter()
                    .map(|value| port("ports", value))
                    .collect::<Result<_, _>>()?,
                peers: parse_all("peers", &exported.peers)?,
                endpoints: Vec::new(),
            }),
            Body::ImportPort(of) => Record::Import(ImportPort {
                service: key(of.service)?,
                port: port("port", of.port)?,
                listen: port("listen", of.listen)?,
            }),
            Body::UnmeshedServer(of) => Record::Server(server(of)?),
            Body::Vip(of) => vip(of)?,
        })
    }

    fn bundle(&mut self, bundle: v1::TrustBundle) -> Result<Record, RecordError> {
        let (domain, bundle) = bundle_of(bundle)?;
        let inserted = self.bundles.insert(domain.clone(), bundle);
        inserted.map_err(|error| RecordError::new("roots", error))?;
        Ok(Record::Bundle(domain))
    }

    fn forget_bundle(&mut self, before: Option<Record>) {
        if let Some(Record::Bundle(domain)) = before {
            self.bundles.remove(&domain);
        }
    }

    /// The snapshot that they make. Services equal to those of `last` stay the same allocation, so
    /// that readers see by pointer what has changed.
    pub(super) fn snapshot(&self, revision: u64, last: Option<&Snapshot>) -> Snapshot {
        let bundles = self.bundles.clone();
        let mut snapshot = Snapshot {
            revision,
            bundles,
            ..Snapshot::default()
        };
        let mut endpoints: HashMap<&ServiceKey, Vec<Arc<Endpoint>>> = HashMap::new();
        for record in self.by_key.values() {
            if let Record::Endpoint(key, endpoint) = record {
                endpoints.entry(key).or_default().push(endpoint.clone());
            }
        }
        let of = |key: &ServiceKey| endpoints.get(key).cloned().unwrap_or_default();
        for record in self.by_key.values() {
            match record.clone() {
                Record::Service(mut service) => {
                    service.endpoints = of(&service.key);
                    let service = unless_equal(*service, last);
                    snapshot.services.insert(service.key.clone(), service);
                }
                Record::Exported(mut exported) => {
                    exported.endpoints = of(&exported.key);
                    // Those of other clusters are those of an import, and those without a sidecar
                    // have records of their own; neither has an address.
                    exported.endpoints.retain(|of| of.address.is_some());
                    snapshot.exported.push(exported);
                }
                Record::Gateway(gateway) => snapshot.gateways.push(gateway),
                Record::Link(link) => snapshot.links.push(link),
                Record::Peer(peer) => snapshot.peers.push(peer),
                Record::Tombstone(gateway, invitation) => {
                    snapshot.tombstones.insert(gateway, invitation);
                }
                Record::Inbound(inbound) => snapshot.inbound.push(inbound),
                Record::Import(import) => snapshot.imports.push(import),
                Record::Server(server) => snapshot.servers.push(server),
                Record::Vip(address, vip) => {
                    snapshot.vips.insert(address, vip);
                }
                Record::Endpoint(..) | Record::Bundle(_) => {}
            }
        }
        snapshot
    }
}

fn unless_equal(service: Service, last: Option<&Snapshot>) -> Arc<Service> {
    match last.and_then(|last| last.services.get(&service.key)) {
        Some(same) if **same == service => same.clone(),
        _ => Arc::new(service),
    }
}

fn service(service: v1::Service) -> Result<Service, RecordError> {
    Ok(Service {
        key: key(service.key)?,
        ports: service
            .ports
            .into_iter()
            .map(service_port)
            .collect::<Result<_, _>>()?,
        clusters: service
            .clusters
            .into_iter()
            .map(capacity)
            .collect::<Result<_, _>>()?,
        endpoints: Vec::new(),
        failback: FailbackConfig {
            hold: Duration::from_millis(service.failback_hold_millis),
            ramp: Duration::from_millis(service.failback_ramp_millis),
        },
        policy: service
            .failover
            .map(failover::policy)
            .transpose()?
            .map(Arc::new),
        drained: parse_all("drained", &service.drained)?,
    })
}

fn service_port(port: v1::ServicePort) -> Result<ServicePort, RecordError> {
    let app_protocol = app_protocol(port.app_protocol());
    let name = (!port.name.is_empty()).then(|| port.name.as_str().into());
    Ok(ServicePort {
        name,
        port: self::port("ports.port", port.port)?,
        app_protocol,
    })
}

fn capacity(capacity: v1::ClusterCapacity) -> Result<(ClusterId, ClusterCapacity), RecordError> {
    let localities = capacity.localities.into_iter();
    let ports = capacity
        .ports
        .into_iter()
        .map(|value| port("clusters.ports", value));
    Ok((
        parse("clusters.cluster", &capacity.cluster)?,
        ClusterCapacity {
            localities: localities
                .map(|of| (locality(of.locality), of.expected))
                .collect(),
            ports: ports.collect::<Result<_, _>>()?,
        },
    ))
}

fn endpoint(endpoint: v1::Endpoint) -> Result<(ServiceKey, Endpoint), RecordError> {
    let address = match endpoint.address.as_str() {
        "" => None,
        address => Some(parse::<SocketAddr>("address", address)?),
    };
    let typed = Endpoint {
        id: parse("id", &endpoint.id)?,
        cluster: parse("cluster", &endpoint.cluster)?,
        locality: locality(endpoint.locality),
        identity: parse("spiffe_id", &endpoint.spiffe_id)?,
        ready: endpoint.ready,
        weight: endpoint.weight.clamp(1, MAX_WEIGHT),
        incarnation: endpoint.incarnation,
        address,
        labels: failover::labels(endpoint.labels),
    };
    Ok((key(endpoint.service)?, typed))
}

fn gateway(gateway: v1::Gateway) -> Result<GatewayInfo, RecordError> {
    Ok(GatewayInfo {
        egress: parse("egress_address", &gateway.egress_address)?,
        reachable: parse_all("reachable", &gateway.reachable)?,
        draining: gateway.draining,
        replica: gateway.replica,
    })
}

fn link(link: v1::Link) -> Result<LinkInfo, RecordError> {
    let addresses = link.addresses.into_iter().map(|address| {
        Ok(TunnelAddress {
            port: port("addresses.port", address.port)?,
            host: address.host,
        })
    });
    Ok(LinkInfo {
        cluster: parse("cluster", &link.cluster)?,
        trust_domain: parse("trust_domain", &link.trust_domain)?,
        gateway: parse("gateway_spiffe_id", &link.gateway_spiffe_id)?,
        federation: parse("federation_spiffe_id", &link.federation_spiffe_id)?,
        addresses: addresses.collect::<Result<_, _>>()?,
        allow_loopback: link.allow_loopback,
    })
}

fn inbound(inbound: v1::InboundService) -> Result<InboundService, RecordError> {
    let ports = inbound.ports.into_iter().map(|of| {
        Ok(InboundPort {
            port: port("ports.port", of.port)?,
            target_port: port("ports.target_port", of.target_port)?,
            app_protocol: app_protocol(of.app_protocol()),
        })
    });
    Ok(InboundService {
        key: key(inbound.key)?,
        ports: ports.collect::<Result<_, _>>()?,
        exported_to: parse_all("exported_to", &inbound.exported_to)?,
        unmeshed_clients: inbound.unmeshed_clients,
    })
}

fn server(server: v1::UnmeshedServer) -> Result<UnmeshedServer, RecordError> {
    let ports = server.ports.into_iter().map(|of| {
        let address = parse::<SocketAddr>("ports.address", &of.address)?;
        Ok((port("ports.port", of.port)?, address))
    });
    Ok(UnmeshedServer {
        service: key(server.service)?,
        id: parse("id", &server.id)?,
        ready: server.ready,
        addresses: ports.collect::<Result<_, _>>()?,
    })
}

fn vip(vip: v1::Vip) -> Result<Record, RecordError> {
    let ports = vip.ports.into_iter().map(|value| port("ports", value));
    let typed = Vip {
        service: key(vip.service)?,
        ports: ports.collect::<Result<_, _>>()?,
    };
    Ok(Record::Vip(parse("address", &vip.address)?, typed))
}

/// The typed form of a bundle on the wire, and the trust domain whose it is.
///
/// # Errors
/// If the domain or a root is not valid, or there is no root.
pub fn bundle_of(bundle: v1::TrustBundle) -> Result<(TrustDomain, Bundle), RecordError> {
    let roots = bundle
        .roots
        .into_iter()
        .map(|der| CertificateDer::from(der.to_vec()))
        .collect();
    let typed = Bundle::new(bundle.sequence, None, roots)
        .map_err(|error| RecordError::new("roots", error))?;
    Ok((parse("trust_domain", &bundle.trust_domain)?, typed))
}

fn key(key: Option<v1::ServiceKey>) -> Result<ServiceKey, RecordError> {
    let key = key.ok_or_else(|| RecordError::new("service", "missing"))?;
    ServiceKey::new(&key.namespace, &key.name).map_err(|error| RecordError::new("service", error))
}

fn locality(locality: Option<v1::Locality>) -> Locality {
    let v1::Locality { region, zone } = locality.unwrap_or_default();
    Locality {
        region: region.into(),
        zone: zone.into(),
    }
}

fn app_protocol(protocol: v1::AppProtocol) -> AppProtocol {
    match protocol {
        v1::AppProtocol::Unspecified => AppProtocol::Detect,
        v1::AppProtocol::Tcp => AppProtocol::Tcp,
        v1::AppProtocol::Http => AppProtocol::Http,
        v1::AppProtocol::Http2 => AppProtocol::Http2,
    }
}

fn port(field: &'static str, port: u32) -> Result<u16, RecordError> {
    let valid = u16::try_from(port).ok().filter(|port| *port > 0);
    valid.ok_or_else(|| RecordError::new(field, format_args!("{port} is no port")))
}

pub(super) fn parse<T: FromStr<Err: Display>>(
    field: &'static str,
    text: &str,
) -> Result<T, RecordError> {
    text.parse().map_err(|error| RecordError::new(field, error))
}

pub(super) fn parse_all<T, C>(field: &'static str, texts: &[String]) -> Result<C, RecordError>
where
    T: FromStr<Err: Display>,
    C: FromIterator<T>,
{
    texts.iter().map(|text| parse(field, text)).collect()
}

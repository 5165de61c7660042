//! What a peer tells, checked: records, their keys, quotas, and the set that is kept.
//!
//! A record is refused, and only that record, when it breaks a rule of the link; the rest
//! of what the peer says stands, and what it said before under that key stays.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

use crate::capacity::MAX_LOCALITIES;
use crate::delta::{Known, RecordHash};
use crate::model::{
    Address, Bundle, EndpointId, Export, ExportedEndpoint, ImportType, Link, Locality,
    SYSTEM_NAMESPACE, ServiceKey, ServicePort,
};

mod held;

/// Key of the record of the sender's roots.
pub const BUNDLE_KEY: &str = "bundle";
/// Key of the record of the sender's gateway addresses.
pub const GATEWAYS_KEY: &str = "gateways";

/// Most ports of an exported service.
const MAX_PORTS: usize = 100;
/// Most addresses of a peer's gateways that are kept (as many as a dialler tries).
const MAX_ADDRESSES: usize = 8;
/// Greatest weight of an endpoint.
const MAX_WEIGHT: u32 = 128;
/// Longest region, zone: a DNS label.
const MAX_LOCALITY_TEXT: usize = 63;
/// Most bytes of all labels of one endpoint, as for our own workloads.
const MAX_LABELS: usize = 2_048;
/// Longest host name.
const MAX_HOSTNAME: usize = 253;

/// Key of the record of an exported service.
pub fn export_key(service: &ServiceKey) -> String {
    format!("export/{service}")
}

/// Key of the record of an endpoint.
pub fn endpoint_key(service: &ServiceKey, id: &EndpointId) -> String {
    format!("endpoint/{service}/{id}")
}

/// The body of a record.
#[derive(Clone, Debug, PartialEq)]
pub enum RecordBody {
    /// A service that the peer exports to us.
    Export(Export),
    /// An endpoint of one.
    Endpoint(ExportedEndpoint),
    /// The roots of the peer's trust domain; the domain itself is the link's.
    Bundle(Bundle),
    /// Where the peer's gateways can be dialled.
    Gateways(Vec<Address>),
}

impl RecordBody {
    /// The key under which such a body belongs.
    pub fn key(&self) -> String {
        match self {
            Self::Export(export) => export_key(&export.service),
            Self::Endpoint(endpoint) => endpoint_key(&endpoint.service, &endpoint.endpoint.id),
            Self::Bundle(_) => BUNDLE_KEY.to_owned(),
            Self::Gateways(_) => GATEWAYS_KEY.to_owned(),
        }
    }
}

/// A record as it arrived, decoded.
#[derive(Clone, Debug, PartialEq)]
pub struct ReceivedRecord {
    /// The key it came under.
    pub key: String,
    /// The hash of the encoded body, computed by the receiver.
    pub hash: RecordHash,
    /// Bytes of the encoded body.
    pub size: usize,
    /// The body.
    pub body: RecordBody,
}

/// How much one peer may contribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quotas {
    /// Exported services.
    pub services: usize,
    /// Endpoints, over all services.
    pub endpoints: usize,
    /// Encoded bytes of all records.
    pub bytes: usize,
}

impl Default for Quotas {
    /// 2,000 services, 20,000 endpoints, 16 MiB.
    fn default() -> Self {
        Self {
            services: 2_000,
            endpoints: 20_000,
            bytes: 16 * 1024 * 1024,
        }
    }
}

/// Why a record is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The key is not the body's.
    #[error("its key does not fit its body")]
    Key,
    /// The body could not be read.
    #[error("it cannot be read: {0}")]
    Malformed(String),
    /// The service is not among the link's imports.
    #[error("the ClusterLink's spec.imports does not let this peer contribute to {0}")]
    NotImported(ServiceKey),
    /// An endpoint claims to be in another cluster.
    #[error("it is of another cluster than the peer")]
    ForeignCluster,
    /// An identity of another trust domain than the link's.
    #[error("its identity is not of the link's trust domain")]
    ForeignIdentity,
    /// An identity that is no workload's.
    #[error("its identity is not that of a workload")]
    NotAWorkload,
    /// A value out of bounds.
    #[error("{0}")]
    Value(&'static str),
    /// A bundle older than the one held.
    #[error("its sequence {offered} is lower than {held}, which is held")]
    OldBundle {
        /// Sequence held.
        held: u64,
        /// Sequence offered.
        offered: u64,
    },
    /// More services than the quota.
    #[error("the peer has reached its quota of {0} services")]
    Services(usize),
    /// More endpoints than the quota.
    #[error("the peer has reached its quota of {0} endpoints")]
    Endpoints(usize),
    /// More bytes than the quota.
    #[error("the peer has reached its quota of {0} bytes of records")]
    Bytes(usize),
}

/// The records of one peer that are in force.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PeerRecords {
    exports: BTreeMap<ServiceKey, Arc<Export>>,
    endpoints: BTreeMap<ServiceKey, BTreeMap<EndpointId, Arc<ExportedEndpoint>>>,
    bundle: Option<Bundle>,
    addresses: Vec<Address>,
    index: BTreeMap<String, Held>,
    endpoint_count: usize,
    bytes: usize,
}

/// What a key stands for.
#[derive(Clone, Debug, PartialEq)]
struct Held {
    hash: RecordHash,
    size: usize,
    place: Place,
}

#[derive(Clone, Debug, PartialEq)]
enum Place {
    Export(ServiceKey),
    Endpoint(ServiceKey, EndpointId),
    Bundle,
    Gateways,
}

/// Which quota a record counts against.
#[derive(Clone, Copy)]
enum Kind {
    Export,
    Endpoint,
    Single,
}

impl Kind {
    fn of_body(body: &RecordBody) -> Self {
        match body {
            RecordBody::Export(_) => Self::Export,
            RecordBody::Endpoint(_) => Self::Endpoint,
            RecordBody::Bundle(_) | RecordBody::Gateways(_) => Self::Single,
        }
    }

    fn of_place(place: &Place) -> Self {
        match place {
            Place::Export(_) => Self::Export,
            Place::Endpoint(..) => Self::Endpoint,
            Place::Bundle | Place::Gateways => Self::Single,
        }
    }
}

impl PeerRecords {
    /// Exported services.
    pub fn exports(&self) -> impl Iterator<Item = &Arc<Export>> {
        self.exports.values()
    }

    /// One exported service.
    pub fn export(&self, service: &ServiceKey) -> Option<&Arc<Export>> {
        self.exports.get(service)
    }

    /// Endpoints of an exported service; none where the service itself is not exported.
    pub fn endpoints(&self, service: &ServiceKey) -> impl Iterator<Item = &Arc<ExportedEndpoint>> {
        let endpoints = self
            .exports
            .get(service)
            .and_then(|_| self.endpoints.get(service));
        endpoints.into_iter().flat_map(BTreeMap::values)
    }

    /// The roots that the peer announced.
    pub fn bundle(&self) -> Option<&Bundle> {
        self.bundle.as_ref()
    }

    /// The gateway addresses that the peer announced.
    pub fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    /// How many records are held.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether none is held.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// What to say that we hold.
    pub fn known(&self) -> Known<String> {
        self.index
            .iter()
            .map(|(key, held)| (key.clone(), held.hash))
            .collect()
    }

    /// Whether this record is held with this hash.
    pub fn holds(&self, key: &str, hash: RecordHash) -> bool {
        self.index.get(key).is_some_and(|held| held.hash == hash)
    }

    /// Takes a record in, replacing the one of its key. True where that changed anything.
    ///
    /// # Errors
    /// The rule that it breaks; nothing has changed then.
    pub fn accept(
        &mut self,
        link: &Link,
        quotas: &Quotas,
        record: ReceivedRecord,
        received: SystemTime,
    ) -> Result<bool, Refusal> {
        if self.holds(&record.key, record.hash) {
            return Ok(false);
        }
        if record.key != record.body.key() {
            return Err(Refusal::Key);
        }
        self.check_quotas(
            quotas,
            &record.key,
            record.size,
            Kind::of_body(&record.body),
        )?;
        let place = match record.body {
            RecordBody::Export(export) => self.put_export(checked_export(link, export, received)?),
            RecordBody::Endpoint(endpoint) => self.put_endpoint(checked_endpoint(link, endpoint)?),
            RecordBody::Bundle(bundle) => self.put_bundle(bundle)?,
            RecordBody::Gateways(addresses) => self.put_addresses(addresses)?,
        };
        self.note(
            record.key,
            Held {
                hash: record.hash,
                size: record.size,
                place,
            },
        );
        Ok(true)
    }

    /// Takes a record out. True where there was one.
    pub fn remove(&mut self, key: &str) -> bool {
        let Some(held) = self.index.remove(key) else {
            return false;
        };
        self.bytes -= held.size;
        match held.place {
            Place::Export(service) => {
                self.exports.remove(&service);
            }
            Place::Endpoint(service, id) => self.drop_endpoint(&service, &id),
            Place::Bundle => self.bundle = None,
            Place::Gateways => self.addresses.clear(),
        }
        true
    }

    /// Copies a record of `other`, if it is held there and not here.
    ///
    /// # Errors
    /// The quota that it would exceed: else a peer could add a full quota with each resync.
    pub(crate) fn carry(
        &mut self,
        other: &Self,
        key: &str,
        quotas: &Quotas,
    ) -> Result<(), Refusal> {
        let Some(held) = other
            .index
            .get(key)
            .filter(|_| !self.index.contains_key(key))
        else {
            return Ok(());
        };
        self.check_quotas(quotas, key, held.size, Kind::of_place(&held.place))?;
        match &held.place {
            Place::Export(service) => {
                if let Some(export) = other.exports.get(service) {
                    self.exports.insert(service.clone(), Arc::clone(export));
                }
            }
            Place::Endpoint(service, id) => {
                if let Some(endpoint) = other.endpoints.get(service).and_then(|of| of.get(id)) {
                    self.put_shared_endpoint(Arc::clone(endpoint));
                }
            }
            Place::Bundle => self.bundle.clone_from(&other.bundle),
            Place::Gateways => self.addresses.clone_from(&other.addresses),
        }
        self.note(key.to_owned(), held.clone());
        Ok(())
    }

    /// Takes out what a changed link no longer allows.
    pub(crate) fn retain_allowed(&mut self, link: &Link) {
        let refused: Vec<_> = self
            .index
            .iter()
            .filter(|(_, held)| match &held.place {
                Place::Export(service) | Place::Endpoint(service, _) => {
                    !link.imports.allows(service)
                }
                Place::Bundle | Place::Gateways => false,
            })
            .map(|(key, _)| key.clone())
            .collect();
        for key in refused {
            self.remove(&key);
        }
    }

    fn check_quotas(
        &self,
        quotas: &Quotas,
        key: &str,
        size: usize,
        kind: Kind,
    ) -> Result<(), Refusal> {
        let held = self.index.get(key);
        let bytes = self.bytes - held.map_or(0, |held| held.size);
        if bytes.saturating_add(size) > quotas.bytes {
            return Err(Refusal::Bytes(quotas.bytes));
        }
        match kind {
            _ if held.is_some() => Ok(()),
            Kind::Export if self.exports.len() >= quotas.services => {
                Err(Refusal::Services(quotas.services))
            }
            Kind::Endpoint if self.endpoint_count >= quotas.endpoints => {
                Err(Refusal::Endpoints(quotas.endpoints))
            }
            _ => Ok(()),
        }
    }

    fn put_export(&mut self, export: Export) -> Place {
        let service = export.service.clone();
        self.exports.insert(service.clone(), Arc::new(export));
        Place::Export(service)
    }

    fn put_endpoint(&mut self, endpoint: ExportedEndpoint) -> Place {
        let place = Place::Endpoint(endpoint.service.clone(), endpoint.endpoint.id.clone());
        self.put_shared_endpoint(Arc::new(endpoint));
        place
    }

    fn put_shared_endpoint(&mut self, endpoint: Arc<ExportedEndpoint>) {
        let of = self.endpoints.entry(endpoint.service.clone()).or_default();
        if of.insert(endpoint.endpoint.id.clone(), endpoint).is_none() {
            self.endpoint_count += 1;
        }
    }

    fn drop_endpoint(&mut self, service: &ServiceKey, id: &EndpointId) {
        let Some(of) = self.endpoints.get_mut(service) else {
            return;
        };
        if of.remove(id).is_some() {
            self.endpoint_count -= 1;
        }
        if of.is_empty() {
            self.endpoints.remove(service);
        }
    }

    fn put_bundle(&mut self, bundle: Bundle) -> Result<Place, Refusal> {
        if bundle.roots.is_empty() {
            return Err(Refusal::Value("it has no roots"));
        }
        self.check_sequence(&bundle)?;
        self.bundle = Some(bundle);
        Ok(Place::Bundle)
    }

    fn check_sequence(&self, offered: &Bundle) -> Result<(), Refusal> {
        match &self.bundle {
            Some(held) if held.sequence > offered.sequence => Err(Refusal::OldBundle {
                held: held.sequence,
                offered: offered.sequence,
            }),
            _ => Ok(()),
        }
    }

    fn put_addresses(&mut self, mut addresses: Vec<Address>) -> Result<Place, Refusal> {
        if !addresses.iter().all(can_be_dialled) {
            return Err(Refusal::Value("it has an address without a host or port"));
        }
        addresses.truncate(MAX_ADDRESSES);
        self.addresses = addresses;
        Ok(Place::Gateways)
    }

    fn note(&mut self, key: String, held: Held) {
        self.bytes += held.size;
        if let Some(former) = self.index.insert(key, held) {
            self.bytes -= former.size;
        }
    }
}

/// A host is an IP address or a DNS name; which of them, the dialler finds out. It is also
/// shown and logged, so nothing else may be in it.
fn can_be_dialled(address: &Address) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:".contains(&byte);
    (1..=MAX_HOSTNAME).contains(&address.host.len())
        && address.host.bytes().all(allowed)
        && address.port > 0
}

fn checked_export(
    link: &Link,
    mut export: Export,
    received: SystemTime,
) -> Result<Export, Refusal> {
    if !link.imports.allows(&export.service) {
        return Err(Refusal::NotImported(export.service));
    }
    check_ports(&export)?;
    if export.capacity.len() > MAX_LOCALITIES {
        return Err(Refusal::Value("it has more than 100 localities"));
    }
    export
        .capacity
        .iter()
        .try_for_each(|(locality, _)| check_locality(locality))?;
    // Otherwise a peer could not win a conflict by age, but by a wrong clock it could lose
    // or win differently at each receiver.
    export.created = export.created.min(received);
    Ok(export)
}

fn check_ports(export: &Export) -> Result<(), Refusal> {
    if export.ports.is_empty() && export.import_type != ImportType::Headless {
        return Err(Refusal::Value("it has no ports"));
    }
    if export.ports.len() > MAX_PORTS {
        return Err(Refusal::Value("it has more than 100 ports"));
    }
    let mut numbers = BTreeSet::new();
    let mut names = BTreeSet::new();
    for port in &export.ports {
        if port.port == 0 || !numbers.insert(port.port) {
            return Err(Refusal::Value(
                "its port numbers are not distinct and above 0",
            ));
        }
        if !is_port_name(port) || !names.insert(&port.name) {
            return Err(Refusal::Value("its port names are not distinct DNS labels"));
        }
    }
    Ok(())
}

fn is_port_name(port: &ServicePort) -> bool {
    port.name
        .as_deref()
        .is_none_or(|name| name.parse::<linkspan_routing::ClusterLabel>().is_ok())
}

fn checked_endpoint(
    link: &Link,
    mut endpoint: ExportedEndpoint,
) -> Result<ExportedEndpoint, Refusal> {
    if !link.imports.allows(&endpoint.service) {
        return Err(Refusal::NotImported(endpoint.service));
    }
    let of = Arc::make_mut(&mut endpoint.endpoint);
    if of.cluster != link.cluster {
        return Err(Refusal::ForeignCluster);
    }
    if of.identity.trust_domain() != &link.trust_domain {
        return Err(Refusal::ForeignIdentity);
    }
    match of.identity.workload_id() {
        Some(id) if id.namespace() != SYSTEM_NAMESPACE => {}
        // The one identity of the system that takes calls.
        _ if !of.is_meshed() => {}
        _ => return Err(Refusal::NotAWorkload),
    }
    check_locality(&of.locality)?;
    if endpoint.hostname.len() > MAX_HOSTNAME || endpoint.hostname.chars().any(char::is_control) {
        return Err(Refusal::Value(
            "its host name is longer than 253 characters or not printable",
        ));
    }
    let labels = of.labels.iter();
    if labels
        .map(|(key, value)| key.len() + value.len())
        .sum::<usize>()
        > MAX_LABELS
    {
        return Err(Refusal::Value(
            "its labels are longer than 2,048 bytes together",
        ));
    }
    of.weight = of.weight.clamp(1, MAX_WEIGHT);
    // A peer's endpoints are reached through its gateways, never at an address that it names.
    of.address = None;
    Ok(endpoint)
}

fn check_locality(locality: &Locality) -> Result<(), Refusal> {
    let is_plain =
        |text: &str| text.len() <= MAX_LOCALITY_TEXT && !text.chars().any(char::is_control);
    if is_plain(&locality.region) && is_plain(&locality.zone) {
        return Ok(());
    }
    Err(Refusal::Value(
        "its region or zone is longer than 63 characters or not printable",
    ))
}

//! What a peer's federation says, typed. A record that cannot be typed is one refused
//! record, not the end of the stream: a newer peer may know more than we do.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use linkspan_api::v1::{self, sync_record::Body, sync_response::Message};
use linkspan_core::{
    Address, Bundle, ClusterId, Endpoint, EndpointId, Export, ExportedEndpoint, Locality,
    ServiceKey, ServicePort, affinity_from_text,
    delta::RecordHash,
    peer::{Begin, Event},
    record::{ReceivedRecord, RecordBody},
};
use prost::Message as _;
use rustls_pki_types::CertificateDer;

use crate::convert::{app_protocol, labels_from, optional_text};

/// Why a record cannot be typed; for the operator of this side.
type Problem = String;

/// The event that a message is; `None` for what a newer peer may say besides.
pub(super) fn event(message: Message, from: &ClusterId) -> Option<Event> {
    match message {
        Message::Begin(begin) => Some(Event::Begin(Begin {
            cluster: begin.cluster,
            clusterset: begin.clusterset,
            epoch: begin.epoch,
            clock: wall(begin.now_unix_millis),
        })),
        Message::Upsert(record) => Some(record_event(record, from)),
        Message::Remove(key) => Some(Event::Remove { key }),
        Message::Complete(_) => Some(Event::Complete),
        Message::Heartbeat(_) => Some(Event::Heartbeat),
    }
}

/// A wall clock as the wire has it; far times are brought into range.
pub(super) fn wall(unix_millis: i64) -> SystemTime {
    let millis = u64::try_from(unix_millis)
        .unwrap_or(0)
        .min(u64::from(u32::MAX) * 1000);
    UNIX_EPOCH + Duration::from_millis(millis)
}

fn record_event(record: v1::SyncRecord, from: &ClusterId) -> Event {
    let Some(body) = record.body else {
        return match RecordHash::from_bytes(&record.hash) {
            Some(hash) => Event::Unchanged {
                key: record.key,
                hash,
            },
            None => Event::Undecodable {
                key: record.key,
                problem: "its hash has not 16 bytes".into(),
            },
        };
    };
    let encoded = encoded(&body);
    match typed(body, from) {
        Ok(body) => Event::Record(Box::new(ReceivedRecord {
            key: record.key,
            hash: RecordHash::of(&encoded),
            size: encoded.len(),
            body,
        })),
        Err(problem) => Event::Undecodable {
            key: record.key,
            problem,
        },
    }
}

/// The bytes whose hash a record carries.
pub(super) fn encoded(body: &Body) -> Vec<u8> {
    match body {
        Body::Export(export) => export.encode_to_vec(),
        Body::Endpoint(endpoint) => endpoint.encode_to_vec(),
        Body::Bundle(bundle) => bundle.encode_to_vec(),
        Body::Gateways(gateways) => gateways.encode_to_vec(),
    }
}

fn typed(body: Body, from: &ClusterId) -> Result<RecordBody, Problem> {
    match body {
        Body::Export(export) => typed_export(export).map(RecordBody::Export),
        Body::Endpoint(endpoint) => typed_endpoint(endpoint, from).map(RecordBody::Endpoint),
        Body::Bundle(bundle) => typed_bundle(&bundle).map(RecordBody::Bundle),
        Body::Gateways(gateways) => typed_addresses(gateways).map(RecordBody::Gateways),
    }
}

fn typed_export(export: v1::ExportRecord) -> Result<Export, Problem> {
    Ok(Export {
        service: service_key(export.key)?,
        ports: export
            .ports
            .iter()
            .map(typed_port)
            .collect::<Result<_, _>>()?,
        import_type: export.r#type.parse().map_err(text)?,
        session_affinity: affinity_from_text(&export.session_affinity).map_err(text)?,
        created: UNIX_EPOCH
            + Duration::from_secs(
                u64::try_from(export.created_unix)
                    .unwrap_or(0)
                    .min(u32::MAX.into()),
            ),
        capacity: export
            .capacity
            .into_iter()
            .map(|capacity| (typed_locality(capacity.locality), capacity.expected))
            .collect(),
        unmeshed_clients: export.unmeshed_clients,
    })
}

fn typed_port(port: &v1::ServicePort) -> Result<ServicePort, Problem> {
    Ok(ServicePort {
        name: optional_text(&port.name),
        port: u16::try_from(port.port)
            .map_err(|_| format!("port {} is out of range", port.port))?,
        app_protocol: app_protocol(port.app_protocol()),
    })
}

fn typed_endpoint(
    endpoint: v1::EndpointRecord,
    from: &ClusterId,
) -> Result<ExportedEndpoint, Problem> {
    let service = service_key(endpoint.service)?;
    let id: EndpointId = endpoint.id.parse().map_err(text)?;
    Ok(ExportedEndpoint {
        service,
        endpoint: Arc::new(Endpoint {
            id,
            // Endpoint records may carry only their sender's cluster.
            cluster: from.clone(),
            locality: typed_locality(endpoint.locality),
            identity: endpoint.spiffe_id.parse().map_err(text)?,
            ready: endpoint.ready,
            weight: endpoint.weight.max(1),
            incarnation: endpoint.incarnation,
            address: None,
            labels: labels_from(endpoint.labels),
        }),
        hostname: endpoint.hostname,
    })
}

/// Checked by parsing every root: a bundle that is damaged must not replace one that works.
fn typed_bundle(record: &v1::BundleRecord) -> Result<Bundle, Problem> {
    let roots = record
        .roots
        .iter()
        .map(|der| CertificateDer::from(der.to_vec()));
    Bundle::new(record.sequence, None, roots.collect()).map_err(text)
}

fn typed_addresses(gateways: v1::GatewaysRecord) -> Result<Vec<Address>, Problem> {
    let typed = |address: v1::GatewayAddress| match u16::try_from(address.port) {
        Ok(port) => Ok(Address {
            host: address.host,
            port,
        }),
        Err(_) => Err(format!("port {} is out of range", address.port)),
    };
    gateways.addresses.into_iter().map(typed).collect()
}

fn typed_locality(locality: Option<v1::Locality>) -> Locality {
    locality.map_or_else(Locality::unknown, |said| {
        Locality::new(&said.region, &said.zone)
    })
}

fn service_key(key: Option<v1::ServiceKey>) -> Result<ServiceKey, Problem> {
    let key = key.ok_or_else(|| "it names no service".to_owned())?;
    ServiceKey::new(&key.namespace, &key.name).map_err(text)
}

fn text(error: impl std::fmt::Display) -> Problem {
    error.to_string()
}

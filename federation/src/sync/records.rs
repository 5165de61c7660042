//! What one peer is told: only what is exported to it, our roots, and our gateways' addresses.

use std::time::UNIX_EPOCH;

use bytes::Bytes;
use linkspan_api::v1::{self, sync_record::Body};
use linkspan_core::{
    ClusterId, Export, ExportedEndpoint, affinity_text,
    delta::RecordHash,
    record::{BUNDLE_KEY, GATEWAYS_KEY, endpoint_key, export_key},
};
use linkspan_trust::Bundle;

use super::incoming::encoded;
use crate::{
    controller::World,
    convert::{wire_address, wire_capacity, wire_key, wire_labels, wire_locality, wire_port},
};

/// The records for `peer`, in the order in which they are sent: services before endpoints.
pub(super) fn exported_to(world: &World, peer: &ClusterId) -> Vec<v1::SyncRecord> {
    let bundle = world.own_bundle.iter().map(bundle_record);
    let mut records: Vec<_> = bundle.collect();
    let Some(outgoing) = world.desired.outgoing.get(peer) else {
        return records;
    };
    let addresses = outgoing.gateways.iter().map(wire_address).collect();
    let gateways = Body::Gateways(v1::GatewaysRecord { addresses });
    records.push(record(GATEWAYS_KEY.into(), gateways));
    records.extend(
        outgoing
            .exports
            .values()
            .map(|export| export_record(export)),
    );
    records.extend(outgoing.endpoints.values().map(endpoint_record));
    records
}

fn record(key: String, body: Body) -> v1::SyncRecord {
    let hash = Bytes::copy_from_slice(RecordHash::of(&encoded(&body)).as_bytes());
    v1::SyncRecord {
        key,
        hash,
        body: Some(body),
    }
}

fn bundle_record(bundle: &Bundle) -> v1::SyncRecord {
    let roots = bundle
        .roots
        .iter()
        .map(|der| Bytes::copy_from_slice(der))
        .collect();
    let body = v1::BundleRecord {
        sequence: bundle.sequence,
        roots,
    };
    record(BUNDLE_KEY.into(), Body::Bundle(body))
}

fn export_record(export: &Export) -> v1::SyncRecord {
    let created = export
        .created
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    let body = v1::ExportRecord {
        key: Some(wire_key(&export.service)),
        ports: export.ports.iter().map(wire_port).collect(),
        r#type: export.import_type.to_string(),
        session_affinity: affinity_text(export.session_affinity).into(),
        created_unix: i64::try_from(created).unwrap_or(i64::MAX),
        capacity: export.capacity.iter().map(wire_capacity).collect(),
        unmeshed_clients: export.unmeshed_clients,
    };
    record(export_key(&export.service), Body::Export(body))
}

fn endpoint_record(of: &ExportedEndpoint) -> v1::SyncRecord {
    let body = v1::EndpointRecord {
        service: Some(wire_key(&of.service)),
        id: of.endpoint.id.to_string(),
        locality: Some(wire_locality(&of.endpoint.locality)),
        ready: of.endpoint.ready,
        weight: of.endpoint.weight,
        incarnation: of.endpoint.incarnation,
        spiffe_id: of.endpoint.identity.to_string(),
        hostname: of.hostname.clone(),
        labels: wire_labels(&of.endpoint.labels),
    };
    record(
        endpoint_key(&of.service, &of.endpoint.id),
        Body::Endpoint(body),
    )
}

//! How records look in a journal. Of this module only: other versions of the model read them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::seconds;
use crate::model::{
    Address, AppProtocol, Bundle, ClusterId, Endpoint, EndpointId, Export, ExportedEndpoint,
    Locality, ServiceKey, ServicePort, SpiffeId, affinity_from_text, affinity_text,
};
use crate::record::{ReceivedRecord, RecordBody};

/// One record.
#[derive(Serialize, Deserialize)]
pub(super) struct Line {
    pub(super) hash: [u8; 16],
    size: usize,
    #[serde(flatten)]
    body: Body,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Body {
    Export(ExportLine),
    Endpoint(EndpointLine),
    Bundle(BundleLine),
    Gateways(Vec<Address>),
}

#[derive(Serialize, Deserialize)]
struct ExportLine {
    service: ServiceKey,
    ports: Vec<(Option<String>, u16, u8)>,
    import_type: String,
    affinity: String,
    created_unix: u64,
    capacity: Vec<(Locality, u32)>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    unmeshed_clients: bool,
}

#[derive(Serialize, Deserialize)]
struct EndpointLine {
    service: ServiceKey,
    id: EndpointId,
    cluster: ClusterId,
    locality: Locality,
    identity: SpiffeId,
    ready: bool,
    weight: u32,
    incarnation: u64,
    hostname: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize)]
struct BundleLine {
    sequence: u64,
    /// PEM.
    roots: String,
}

impl From<ReceivedRecord> for Line {
    fn from(record: ReceivedRecord) -> Self {
        let body = match record.body {
            RecordBody::Export(export) => Body::Export(export.into()),
            RecordBody::Endpoint(endpoint) => Body::Endpoint(endpoint.into()),
            RecordBody::Bundle(bundle) => Body::Bundle(BundleLine {
                sequence: bundle.sequence,
                roots: bundle.to_pem(),
            }),
            RecordBody::Gateways(addresses) => Body::Gateways(addresses),
        };
        Self {
            hash: record.hash.0,
            size: record.size,
            body,
        }
    }
}

impl Line {
    /// Key, size and body.
    pub(super) fn read(self) -> Result<(String, usize, RecordBody), String> {
        let body = match self.body {
            Body::Export(export) => RecordBody::Export(export.read()?),
            Body::Endpoint(endpoint) => RecordBody::Endpoint(endpoint.read()),
            Body::Bundle(bundle) => {
                let read = Bundle::from_pem(bundle.sequence, bundle.roots.as_bytes());
                RecordBody::Bundle(read.map_err(|error| error.to_string())?)
            }
            Body::Gateways(addresses) => RecordBody::Gateways(addresses),
        };
        Ok((body.key(), self.size, body))
    }
}

impl From<Export> for ExportLine {
    fn from(export: Export) -> Self {
        let port = |port: &ServicePort| {
            let protocol = match port.app_protocol {
                AppProtocol::Detect => 0,
                AppProtocol::Tcp => 1,
                AppProtocol::Http => 2,
                AppProtocol::Http2 => 3,
            };
            (port.name.as_deref().map(str::to_owned), port.port, protocol)
        };
        Self {
            ports: export.ports.iter().map(port).collect(),
            import_type: export.import_type.to_string(),
            affinity: affinity_text(export.session_affinity).to_owned(),
            created_unix: seconds(export.created),
            capacity: export.capacity,
            unmeshed_clients: export.unmeshed_clients,
            service: export.service,
        }
    }
}

impl ExportLine {
    fn read(self) -> Result<Export, String> {
        let port = |(name, port, protocol): (Option<String>, u16, u8)| {
            let app_protocol = match protocol {
                0 => AppProtocol::Detect,
                1 => AppProtocol::Tcp,
                2 => AppProtocol::Http,
                3 => AppProtocol::Http2,
                other => return Err(format!("protocol {other} is unknown")),
            };
            Ok(ServicePort {
                name: name.map(Arc::from),
                port,
                app_protocol,
            })
        };
        Ok(Export {
            service: self.service,
            ports: self.ports.into_iter().map(port).collect::<Result<_, _>>()?,
            import_type: self
                .import_type
                .parse()
                .map_err(|error| format!("{error}"))?,
            session_affinity: affinity_from_text(&self.affinity)
                .map_err(|error| error.to_string())?,
            created: UNIX_EPOCH
                .checked_add(Duration::from_secs(self.created_unix))
                .ok_or("its time is out of range")?,
            capacity: self.capacity,
            unmeshed_clients: self.unmeshed_clients,
        })
    }
}

impl From<ExportedEndpoint> for EndpointLine {
    fn from(of: ExportedEndpoint) -> Self {
        Self {
            service: of.service,
            id: of.endpoint.id.clone(),
            cluster: of.endpoint.cluster.clone(),
            locality: of.endpoint.locality.clone(),
            identity: of.endpoint.identity.clone(),
            ready: of.endpoint.ready,
            weight: of.endpoint.weight,
            incarnation: of.endpoint.incarnation,
            labels: of.endpoint.labels.clone(),
            hostname: of.hostname,
        }
    }
}

impl EndpointLine {
    fn read(self) -> ExportedEndpoint {
        ExportedEndpoint {
            service: self.service,
            endpoint: Arc::new(Endpoint {
                id: self.id,
                cluster: self.cluster,
                locality: self.locality,
                identity: self.identity,
                ready: self.ready,
                weight: self.weight,
                incarnation: self.incarnation,
                address: None,
                labels: self.labels,
            }),
            hostname: self.hostname,
        }
    }
}

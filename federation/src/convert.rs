//! Small words that discovery and sync have in common on the wire.

use std::{collections::BTreeMap, sync::Arc};

use linkspan_api::v1;
use linkspan_core::{Address, AppProtocol, Condition, Locality, ServiceKey, ServicePort};

pub(crate) fn app_protocol(wire: v1::AppProtocol) -> AppProtocol {
    match wire {
        v1::AppProtocol::Unspecified => AppProtocol::Detect,
        v1::AppProtocol::Tcp => AppProtocol::Tcp,
        v1::AppProtocol::Http => AppProtocol::Http,
        v1::AppProtocol::Http2 => AppProtocol::Http2,
    }
}

pub(crate) fn wire_protocol(protocol: AppProtocol) -> v1::AppProtocol {
    match protocol {
        AppProtocol::Detect => v1::AppProtocol::Unspecified,
        AppProtocol::Tcp => v1::AppProtocol::Tcp,
        AppProtocol::Http => v1::AppProtocol::Http,
        AppProtocol::Http2 => v1::AppProtocol::Http2,
    }
}

/// An empty text on the wire is an absent one.
pub(crate) fn optional_text(text: &str) -> Option<Arc<str>> {
    (!text.is_empty()).then(|| text.into())
}

pub(crate) fn wire_key(key: &ServiceKey) -> v1::ServiceKey {
    v1::ServiceKey {
        namespace: key.namespace.to_string(),
        name: key.name.to_string(),
    }
}

pub(crate) fn wire_port(port: &ServicePort) -> v1::ServicePort {
    v1::ServicePort {
        name: port.name.as_deref().unwrap_or_default().into(),
        port: port.port.into(),
        app_protocol: wire_protocol(port.app_protocol).into(),
    }
}

pub(crate) fn wire_locality(locality: &Locality) -> v1::Locality {
    v1::Locality {
        region: locality.region.to_string(),
        zone: locality.zone.to_string(),
    }
}

pub(crate) fn wire_capacity(capacity: &(Locality, u32)) -> v1::LocalityCapacity {
    v1::LocalityCapacity {
        locality: Some(wire_locality(&capacity.0)),
        expected: capacity.1,
    }
}

pub(crate) fn wire_address(address: &Address) -> v1::GatewayAddress {
    v1::GatewayAddress {
        host: address.host.clone(),
        port: address.port.into(),
    }
}

/// In the order of their keys, so that equal labels are equal bytes.
pub(crate) fn wire_labels<'a>(
    labels: impl IntoIterator<Item = (&'a String, &'a String)>,
) -> Vec<v1::Label> {
    let label = |(key, value): (&String, &String)| v1::Label {
        key: key.clone(),
        value: value.clone(),
    };
    labels.into_iter().map(label).collect()
}

/// Reads what [`wire_labels`] writes.
pub(crate) fn labels_from(wire: Vec<v1::Label>) -> BTreeMap<String, String> {
    wire.into_iter()
        .map(|label| (label.key, label.value))
        .collect()
}

pub(crate) fn wire_condition(condition: &Condition) -> v1::Condition {
    v1::Condition {
        r#type: condition.kind.into(),
        status: condition.status.to_string(),
        reason: condition.reason.clone(),
        message: condition.message.clone(),
    }
}

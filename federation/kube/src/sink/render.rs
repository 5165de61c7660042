//! What should be, as the documents that are applied; `None` where it is so already.

use std::net::IpAddr;
use std::time::SystemTime;

use kube::ResourceExt as _;
use kube::api::{ApiResource, DynamicObject};
use linkspan_core::derived::{Derived, derived_name};
use linkspan_core::{AppProtocol, Condition, Import, ImportType, ServicePort, affinity_text};
use linkspan_resources::{
    ConditionsStatus, ImportedCluster, ImportedPort, ServiceImportSpec, ServiceImportStatus,
    ServiceImportType, StatusCondition, Timestamp,
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::kinds::{self, DERIVED_SERVICE, MANAGED_BY, MANAGED_BY_LABEL};

/// Conditions that are ours on the kinds that we report on.
const OUR_CONDITIONS: &[&str] = &["Valid", "Ready", "Conflict", "Accepted", "ResolvedRefs"];

/// Most addresses of an import: one for each family.
const MAX_IPS: usize = 2;

/// A ServiceImport without its status.
pub(super) fn import(
    import: &Import,
    derived: Option<&Derived>,
    current: Option<&DynamicObject>,
) -> Option<Value> {
    let ips = derived.map_or(&[][..], |derived| &derived.ips);
    let ips = &ips[..ips.len().min(MAX_IPS)];
    let family = |ip: &IpAddr| if ip.is_ipv6() { "IPv6" } else { "IPv4" };
    let spec = ServiceImportSpec {
        ports: import.ports.iter().map(port).collect(),
        ips: ips.iter().map(ToString::to_string).collect(),
        import_type: match import.import_type {
            ImportType::ClusterSetIP => ServiceImportType::ClusterSetIP,
            ImportType::Headless => ServiceImportType::Headless,
        },
        session_affinity: Some(affinity_text(import.session_affinity).to_owned()),
        session_affinity_config: None,
        ip_families: ips.iter().map(|ip| family(ip).to_owned()).collect(),
        internal_traffic_policy: None,
        traffic_distribution: None,
    };
    let name = derived.map(|_| derived_name(&import.service));
    let same = |object: &&DynamicObject| {
        part(object, "spec").as_ref() == Some(&spec)
            && object.annotations().get(DERIVED_SERVICE) == name.as_ref()
    };
    if current.filter(same).is_some() {
        return None;
    }
    let mut document = head(&kinds::service_import());
    document["metadata"] = json!({
        "name": import.service.name.to_string(),
        "namespace": import.service.namespace.to_string(),
        "labels": { MANAGED_BY_LABEL: MANAGED_BY },
    });
    if let Some(name) = name {
        document["metadata"]["annotations"] = json!({ DERIVED_SERVICE: name });
    }
    document["spec"] = json!(spec);
    Some(document)
}

/// A ServiceImport's status.
pub(super) fn import_status(
    import: &Import,
    derived: Option<&Derived>,
    conditions: &[Condition],
    current: Option<&DynamicObject>,
    now: SystemTime,
) -> Option<Value> {
    let last: ServiceImportStatus = current
        .and_then(|object| part(object, "status"))
        .unwrap_or_default();
    let clusters = import.clusters.keys().map(|id| ImportedCluster {
        cluster: id.to_string(),
    });
    let status = ServiceImportStatus {
        clusters: clusters.collect(),
        // Nothing leads to single endpoints of a headless one.
        endpoint_slice_objects: Some(derived.map_or("Absent", |_| "Present").to_owned()),
        conditions: stamped(conditions, &last.conditions, now),
    };
    if current.is_some() && last == status {
        return None;
    }
    let mut document = head(&kinds::service_import());
    document["metadata"] = json!({
        "name": import.service.name.to_string(),
        "namespace": import.service.namespace.to_string(),
    });
    document["status"] = json!(status);
    Some(document)
}

/// The conditions of an object that somebody else declares.
pub(super) fn conditions_status(
    resource: &ApiResource,
    conditions: &[Condition],
    current: &DynamicObject,
    generation: Option<i64>,
    now: SystemTime,
) -> Option<Value> {
    let last: ConditionsStatus = part(current, "status").unwrap_or_default();
    let ours = |of: &&StatusCondition| OUR_CONDITIONS.contains(&of.kind.as_str());
    let last: Vec<_> = last.conditions.iter().filter(ours).cloned().collect();
    let mut wanted = stamped(conditions, &last, now);
    for condition in &mut wanted {
        condition.observed_generation = generation;
    }
    let same = wanted.len() == last.len() && wanted.iter().all(|one| last.contains(one));
    if same {
        return None;
    }
    let mut metadata = json!({ "name": current.name_any() });
    if let Some(namespace) = current.namespace() {
        metadata["namespace"] = namespace.into();
    }
    // An object that was made anew under the name is another one.
    metadata["uid"] = current.uid().into();
    let mut document = head(resource);
    document["metadata"] = metadata;
    document["status"] = json!({ "conditions": wanted });
    Some(document)
}

/// With the time at which each became what it is: now, or when it already was so.
fn stamped(
    wanted: &[Condition],
    last: &[StatusCondition],
    now: SystemTime,
) -> Vec<StatusCondition> {
    let stamp = |condition: &Condition| {
        let status = condition.status.to_string();
        let before = last
            .iter()
            .find(|last| last.kind == condition.kind && last.status == status);
        StatusCondition {
            kind: condition.kind.to_owned(),
            status,
            observed_generation: None,
            last_transition_time: before
                .map_or(whole_seconds(now), |last| last.last_transition_time),
            reason: condition.reason.clone(),
            message: condition.message.clone(),
        }
    };
    wanted.iter().map(stamp).collect()
}

/// As an API server keeps times.
fn whole_seconds(now: SystemTime) -> Timestamp {
    let since = now
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let seconds = std::time::Duration::from_secs(since.as_secs());
    Timestamp::from(SystemTime::UNIX_EPOCH + seconds)
}

pub(super) fn head(resource: &ApiResource) -> Value {
    json!({ "apiVersion": resource.api_version, "kind": resource.kind })
}

/// A part of an object, if it is there and readable.
fn part<T: DeserializeOwned>(object: &DynamicObject, name: &str) -> Option<T> {
    T::deserialize(object.data.get(name)?).ok()
}

/// As `appProtocol` says it.
pub(super) fn protocol_text(protocol: AppProtocol) -> Option<&'static str> {
    match protocol {
        AppProtocol::Detect => None,
        AppProtocol::Tcp => Some("tcp"),
        AppProtocol::Http => Some("http"),
        AppProtocol::Http2 => Some("kubernetes.io/h2c"),
    }
}

fn port(port: &ServicePort) -> ImportedPort {
    ImportedPort {
        name: port.name.as_deref().map(str::to_owned),
        protocol: Some("TCP".to_owned()),
        app_protocol: protocol_text(port.app_protocol).map(str::to_owned),
        port: port.port,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::{Duration, UNIX_EPOCH};

    use linkspan_core::{ConditionStatus, SessionAffinity};

    use super::*;

    fn object(document: Value) -> DynamicObject {
        serde_json::from_value(document).expect("an object")
    }

    fn sample() -> Import {
        Import {
            service: "shop/checkout".parse().expect("a key"),
            ports: vec![ServicePort {
                name: Some("http".into()),
                port: 80,
                app_protocol: AppProtocol::Http,
            }],
            import_type: ImportType::ClusterSetIP,
            session_affinity: SessionAffinity::None,
            clusters: BTreeMap::from([("west".parse().expect("an id"), Default::default())]),
            unmeshed_clients: Default::default(),
        }
    }

    fn ready(status: ConditionStatus) -> Vec<Condition> {
        vec![Condition::new("Ready", status, "Because", "")]
    }

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn what_is_there_already_is_not_written() {
        let first = import(&sample(), None, None).expect("nothing is there");
        assert_eq!(import(&sample(), None, Some(&object(first))), None);
        let conditions = ready(ConditionStatus::True);
        let status =
            import_status(&sample(), None, &conditions, None, at(5)).expect("nothing is there");
        assert_eq!(
            import_status(&sample(), None, &conditions, Some(&object(status)), at(9)),
            None
        );
    }

    #[test]
    fn a_changed_port_is_written() {
        let first = object(import(&sample(), None, None).expect("nothing is there"));
        let mut changed = sample();
        changed.ports[0].port = 81;
        let document = import(&changed, None, Some(&first)).expect("it differs");
        assert_eq!(document["spec"]["ports"][0]["port"], 81);
    }

    #[test]
    fn a_condition_keeps_its_time_until_its_status_changes() {
        let first = stamped(&ready(ConditionStatus::False), &[], at(5));
        let second = stamped(&ready(ConditionStatus::False), &first, at(9));
        assert_eq!(second, first);
        let third = stamped(&ready(ConditionStatus::True), &second, at(9));
        assert_eq!(third[0].last_transition_time, Timestamp::from(at(9)));
    }

    #[test]
    fn conditions_of_others_are_not_looked_at() {
        let export = object(json!({
            "apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceExport",
            "metadata": {"name": "a", "namespace": "b", "uid": "u"},
            "status": {"conditions": [{"type": "Theirs", "status": "True", "reason": "R", "message": "",
                "lastTransitionTime": "2026-01-01T00:00:00Z"}]},
        }));
        let resource = kinds::service_export();
        assert_eq!(
            conditions_status(&resource, &[], &export, None, at(5)),
            None
        );
        let good = ready(ConditionStatus::True);
        let ours = conditions_status(&resource, &good, &export, Some(7), at(5));
        let ours = ours.expect("ours is missing");
        assert_eq!(ours["status"]["conditions"][0]["observedGeneration"], 7);
        assert_eq!(
            ours["status"]["conditions"].as_array().map(Vec::len),
            Some(1)
        );
        assert_eq!(ours["metadata"]["uid"], "u");
    }
}

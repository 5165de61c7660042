//! Failover policies on behalf of the operator: what is in force, and the declarations that
//! change it.

use std::{collections::BTreeSet, time::SystemTime};

use linkspan_api::v1;
use linkspan_core::{
    ClusterId, EndpointId, SYSTEM_NAMESPACE, ServiceKey,
    failover::{DeclaredPolicy, drains},
};
use linkspan_resources::{
    FailoverPolicy, FailoverPolicySpec, Metadata, Object, TargetKind, TargetRef, Timestamp,
    parse_documents,
};
use serde_json::{Map, Value};
use tonic::Status;

use super::explain::{cluster_id, known_cluster, no_service};
use crate::{
    controller::World,
    convert::{wire_condition, wire_key},
};

/// The kind, as it is withdrawn by.
pub(super) const KIND: &str = "FailoverPolicy";
/// What a policy that only drains is called where it is for everything.
const DRAIN: &str = "drain";
/// Longest name of an object.
const MAX_NAME: usize = 63;

/// What is to be declared.
pub(super) enum Change {
    Declare(Box<FailoverPolicy>),
    Withdraw(ServiceKey),
}

impl Change {
    /// Which policy changes.
    pub(super) fn key(&self) -> Result<ServiceKey, Status> {
        match self {
            Self::Declare(policy) => {
                ServiceKey::new(policy.metadata.namespace(), &policy.metadata.name)
                    .map_err(|error| Status::invalid_argument(error.to_string()))
            }
            Self::Withdraw(key) => Ok(key.clone()),
        }
    }

    /// Whether it has been made.
    pub(super) fn is_made(&self, found: Option<&DeclaredPolicy>) -> bool {
        match self {
            Self::Declare(policy) => found.is_some_and(|found| *found.spec == policy.spec),
            Self::Withdraw(_) => found.is_none(),
        }
    }
}

/// All policies, and what is in force for each service about which anything is said.
pub(super) fn show(world: &World, only: Option<&ServiceKey>) -> v1::FailoverResponse {
    let policies = &world.declared.policies;
    let concerned = |policy: &DeclaredPolicy| match only {
        None => true,
        Some(key) => {
            policy.targets.contains(key)
                || policy.targets.is_empty()
                    && (policy.key.namespace == key.namespace
                        || policy.key.namespace.as_str() == SYSTEM_NAMESPACE)
        }
    };
    let shown = policies.values().filter(|policy| concerned(policy));
    let shown = shown.map(|policy| v1::FailoverPolicyStatus {
        namespace: policy.key.namespace.to_string(),
        name: policy.key.name.to_string(),
        targets: policy.targets.iter().map(ToString::to_string).collect(),
        spec: serde_json::to_string(&*policy.spec).unwrap_or_default(),
        conditions: world
            .desired
            .policy_conditions
            .get(&policy.key)
            .into_iter()
            .flatten()
            .map(wire_condition)
            .collect(),
    });
    let services = world.desired.services.iter();
    let services = services
        .filter(|(key, service)| match only {
            Some(only) => only == *key,
            None => service.policy.is_some() || !service.drained.is_empty(),
        })
        .map(|(key, service)| v1::ServiceFailover {
            key: Some(wire_key(key)),
            policy: service
                .policy
                .as_ref()
                .map(|policy| policy.name.to_string())
                .unwrap_or_default(),
            drained: drains(policies, key)
                .into_iter()
                .map(|(cluster, by)| v1::DrainedCluster {
                    cluster: cluster.to_string(),
                    policies: by.iter().map(ToString::to_string).collect(),
                })
                .collect(),
        });
    v1::FailoverResponse {
        policies: shown.collect(),
        services: services.collect(),
    }
}

/// The policy of one service, with some fields set.
pub(super) fn set(
    world: &World,
    own: &ClusterId,
    key: &ServiceKey,
    asked: &v1::SetFailoverRequest,
) -> Result<Change, Status> {
    if !world.desired.services.contains_key(key) {
        return Err(no_service(world, key));
    }
    let changes = match asked.spec.as_str() {
        "" => Map::new(),
        text => serde_json::from_str(text).map_err(|error| {
            Status::invalid_argument(format!("the spec is not a JSON object: {error}"))
        })?,
    };
    let before = world.declared.policies.get(key);
    only_of(before, key, false)?;
    if asked.reset && changes.is_empty() {
        return Ok(Change::Withdraw(key.clone()));
    }
    let mut spec = match before.filter(|_| !asked.reset) {
        Some(before) => object(&before.spec)?,
        None => Map::new(),
    };
    for (field, value) in changes {
        match (spec.get_mut(&field), value) {
            // Of a mapping, what is not said stays, too.
            (Some(Value::Object(before)), Value::Object(said)) => before.extend(said),
            (_, value) => drop(spec.insert(field, value)),
        }
    }
    spec.insert("targetRefs".into(), target(key));
    let policy = validated(key, Value::Object(spec), before)?;
    let declared = DeclaredPolicy::new(policy.clone(), SystemTime::UNIX_EPOCH)
        .map_err(Status::invalid_argument)?;
    for cluster in declared.clusters() {
        known_cluster(world, own, &cluster)?;
    }
    Ok(Change::Declare(Box::new(policy)))
}

/// The policy that drains a cluster, with it or without it.
pub(super) fn drain(
    world: &World,
    own: &ClusterId,
    asked: &v1::DrainRequest,
) -> Result<Change, Status> {
    let cluster = cluster_id(&asked.cluster)?;
    let key = match &asked.key {
        None => policy_key(SYSTEM_NAMESPACE, DRAIN)?,
        Some(service) => {
            let service = super::service_key(Some(service.clone()))?;
            if !asked.undo && !world.desired.services.contains_key(&service) {
                return Err(no_service(world, &service));
            }
            policy_key(
                service.namespace.as_str(),
                &drain_name(service.name.as_str()),
            )?
        }
    };
    if !asked.undo {
        known_cluster(world, own, &cluster)?;
    }
    let before = world.declared.policies.get(&key);
    only_of(before, &key, true)?;
    let mut drained: BTreeSet<_> = before
        .map(|before| before.drain.clone())
        .unwrap_or_default();
    if asked.undo {
        drained.remove(&cluster);
    } else {
        drained.insert(cluster);
    }
    if drained.is_empty() {
        return Ok(Change::Withdraw(key));
    }
    let mut spec = Map::new();
    let drained = drained
        .iter()
        .map(|cluster| Value::String(cluster.to_string()));
    spec.insert("drain".into(), drained.collect());
    if let Some(service) = &asked.key {
        spec.insert(
            "targetRefs".into(),
            target(&super::service_key(Some(service.clone()))?),
        );
    }
    validated(&key, Value::Object(spec), before).map(|policy| Change::Declare(Box::new(policy)))
}

/// A name that fits, and that no service's own policy has by accident: it begins like no other
/// where it would be too long.
fn drain_name(service: &str) -> String {
    let name = format!("{DRAIN}-{service}");
    if name.len() <= MAX_NAME {
        return name;
    }
    format!("{DRAIN}-{}", EndpointId::from_uid(service))
}

/// Refuses to change a policy that is for something else than its name says.
fn only_of(
    before: Option<&DeclaredPolicy>,
    key: &ServiceKey,
    only_drains: bool,
) -> Result<(), Status> {
    let Some(before) = before else { return Ok(()) };
    let strange = match only_drains {
        true => before.spec.says_more_than_drain(),
        false => !before.targets.contains(key) || before.targets.len() != 1,
    };
    if strange {
        return Err(Status::failed_precondition(format!(
            "FailoverPolicy `{key}` is there and is for something else; rename it first"
        )));
    }
    Ok(())
}

fn policy_key(namespace: &str, name: &str) -> Result<ServiceKey, Status> {
    ServiceKey::new(namespace, name).map_err(|error| Status::invalid_argument(error.to_string()))
}

fn target(key: &ServiceKey) -> Value {
    let target = TargetRef {
        group: String::new(),
        kind: TargetKind::Service,
        name: key.name.to_string(),
    };
    serde_json::to_value([target]).unwrap_or_default()
}

fn object(spec: &FailoverPolicySpec) -> Result<Map<String, Value>, Status> {
    match serde_json::to_value(spec) {
        Ok(Value::Object(map)) => Ok(map),
        _ => Err(Status::internal(
            "the policy in force cannot be written out",
        )),
    }
}

/// The resource, checked by the very rules that files are checked by.
fn validated(
    key: &ServiceKey,
    spec: Value,
    before: Option<&DeclaredPolicy>,
) -> Result<FailoverPolicy, Status> {
    // JSON is YAML. On one line, so that no number of a line is worth telling.
    let document = serde_json::json!({
        "apiVersion": "linkspan.io/v1alpha1",
        "kind": KIND,
        "metadata": {"name": key.name.to_string(), "namespace": key.namespace.to_string()},
        "spec": spec,
    });
    let objects = parse_documents("", &document.to_string()).map_err(|problems| {
        let problems = problems
            .iter()
            .map(|problem| format!("{}: {}; {}", problem.field, problem.found, problem.fix));
        Status::invalid_argument(problems.collect::<Vec<_>>().join("\n"))
    })?;
    let created = before.map_or_else(SystemTime::now, |before| before.created);
    match objects.into_iter().next() {
        Some(Object::FailoverPolicy(policy)) => Ok(FailoverPolicy {
            metadata: Metadata {
                creation_timestamp: Some(Timestamp::from(created)),
                ..policy.metadata
            },
            ..policy
        }),
        _ => Err(Status::internal("the policy cannot be read back")),
    }
}

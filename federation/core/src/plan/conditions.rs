//! What is said about exports and imports (the table of KEP-1645).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Known;
use crate::failover;
use crate::merge::Merged;
use crate::model::{ClusterId, Condition, ConditionStatus, Service, ServiceKey};
use crate::peer::{PeerState, PeerView};

/// Whether an object is taken as it is written.
const ACCEPTED: &str = "Accepted";
/// Longest message of a refusal, characters: the beginning says what to mend.
const MAX_MESSAGE: usize = 2_000;

/// Conditions of our ServiceExports.
pub(super) fn of_exports(
    known: &Known<'_>,
    merged: &BTreeMap<ServiceKey, Merged>,
) -> BTreeMap<ServiceKey, Vec<Condition>> {
    let exports = known.declared.exports.keys();
    exports
        .map(|key| (key.clone(), of_export(known, key, merged.get(key))))
        .collect()
}

fn of_export(known: &Known<'_>, key: &ServiceKey, merged: Option<&Merged>) -> Vec<Condition> {
    use ConditionStatus::{False, True};
    let invalid = |reason, message: String| {
        let ready = "nothing is exported until the export is valid";
        vec![
            Condition::new("Valid", False, reason, message),
            Condition::new("Ready", False, "Pending", ready),
        ]
    };
    match known.declared.services.get(key) {
        None => invalid(
            "NoService",
            format!("there is no Service `{key}` in this cluster; declare it"),
        ),
        Some(service) if service.import_type.is_none() => {
            let message = format!("Service `{key}` is an ExternalName, which cannot be exported");
            invalid("InvalidServiceType", message)
        }
        Some(_) => {
            let message = match known.peers.len() {
                0 => "no cluster is linked yet".to_owned(),
                1 => "offered to 1 linked cluster".to_owned(),
                links => format!("offered to {links} linked clusters"),
            };
            let mut conditions = vec![
                Condition::new("Valid", True, "Valid", ""),
                Condition::new("Ready", True, "Exported", message),
            ];
            conditions.extend(merged.map(Merged::condition));
            conditions
        }
    }
}

/// Conditions of our FailoverPolicies.
pub(super) fn of_policies(
    known: &Known<'_>,
    services: &BTreeMap<ServiceKey, Arc<Service>>,
) -> BTreeMap<ServiceKey, Vec<Condition>> {
    let clusters: BTreeSet<_> = known.peers.keys().chain([&known.own.cluster]).collect();
    let services = services.keys().collect();
    let mut all = failover::conditions(&known.declared.policies, &services, &clusters);
    for ((kind, namespace, name), why) in &known.declared.refused {
        if *kind == "FailoverPolicy"
            && let Ok(key) = ServiceKey::new(namespace, name)
        {
            all.insert(key, vec![refused(why)]);
        }
    }
    all
}

/// That an object is not taken as it is written.
fn refused(why: &str) -> Condition {
    let why = why.chars().take(MAX_MESSAGE).collect::<String>();
    Condition::new(ACCEPTED, ConditionStatus::False, "Invalid", why)
}

/// Conditions of the imports.
pub(super) fn of_imports(
    known: &Known<'_>,
    merged: &BTreeMap<ServiceKey, Merged>,
) -> BTreeMap<ServiceKey, Vec<Condition>> {
    merged
        .iter()
        .map(|(key, merged)| (key.clone(), vec![of_import(known, key, merged)]))
        .collect()
}

fn of_import(known: &Known<'_>, key: &ServiceKey, merged: &Merged) -> Condition {
    let clusters: Vec<_> = merged
        .import
        .clusters
        .keys()
        .map(ClusterId::as_str)
        .collect();
    let exporters = format!("exported by {}", clusters.join(", "));
    let shadowed = known.declared.services.contains_key(key)
        && !merged.import.clusters.contains_key(&known.own.cluster);
    if shadowed {
        let message = format!(
            "{exporters}, but a Service `{key}` is declared here and not exported, so callers \
             here reach only that; export it to share it, or remove it"
        );
        return Condition::new("Ready", ConditionStatus::False, "OwnService", message);
    }
    Condition::new("Ready", ConditionStatus::True, "Ready", exporters)
}

/// Conditions of the links: texts that change with the state only, never with time.
pub(super) fn of_links(known: &Known<'_>) -> BTreeMap<ClusterId, Vec<Condition>> {
    let accepted = || Condition::new(ACCEPTED, ConditionStatus::True, "Accepted", "");
    let links = known.peers.iter();
    let mut all: BTreeMap<_, _> = links
        .map(|(cluster, peer)| (cluster.clone(), vec![accepted(), of_link(peer)]))
        .collect();
    for ((kind, _, name), why) in &known.declared.refused {
        if *kind != "ClusterLink" {
            continue;
        }
        let Ok(cluster) = name.parse::<ClusterId>() else {
            continue;
        };
        // What was good before may be in force, and has a state.
        let state = known.peers.get(&cluster).map_or_else(
            || {
                Condition::new(
                    "Ready",
                    ConditionStatus::False,
                    "Invalid",
                    "it is not accepted",
                )
            },
            of_link,
        );
        all.insert(cluster, vec![refused(why), state]);
    }
    all
}

fn of_link(peer: &PeerView) -> Condition {
    use ConditionStatus::{False, True};
    let (status, reason, message) = match (peer.state, peer.usable) {
        (PeerState::Live, true) => (True, "Connected", "services are exchanged"),
        (PeerState::Stale, true) => (
            False,
            "Silent",
            "a tunnel is up, but the peer's federation is silent; what it told last stays in force",
        ),
        (PeerState::Live | PeerState::Stale, false) => (
            False,
            "NoTunnel",
            "no gateway reaches the peer; its endpoints are not used until one does",
        ),
        (PeerState::Pending, _) => (False, "NoTunnel", "no gateway has reached the peer yet"),
        (PeerState::Connecting | PeerState::Syncing, _) => (
            False,
            "Connecting",
            "a tunnel is up; the peer's services are being read",
        ),
        (PeerState::Removed, _) => (False, "Removed", "the link is being removed"),
    };
    Condition::new("Ready", status, reason, message)
}

//! Many exports of one service become one import (KEP-1645).
//!
//! Of properties that there can be only one of, the oldest export's stands, wherever it
//! is; ties go to the lower cluster id. Ports are a union: by name first, then by number
//! (every port is TCP, so the number stands for protocol and number). Whoever disagrees
//! is named in a conflict; traffic never goes to a cluster that does not expose the port.
//!
//! What a peer says about ports can be wrong, or meant to harm: it only has to claim to be
//! older. Callers of an exporting cluster therefore see that cluster's own ports first,
//! whatever stands in the import, and then those of the others that do not clash with them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

use crate::model::{
    ClusterCapacity, ClusterId, Condition, ConditionStatus, Export, Import, ServiceKey,
    ServicePort, affinity_text,
};

#[cfg(test)]
mod tests;

/// An export and the cluster it is of.
#[derive(Clone, Debug, PartialEq)]
pub struct Contribution {
    /// The exporting cluster.
    pub cluster: ClusterId,
    /// What it exports.
    pub export: Arc<Export>,
}

/// In what exports can disagree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ConflictReason {
    /// A port's number, name or application protocol.
    PortConflict,
    /// `ClusterSetIP` and `Headless`.
    TypeConflict,
    /// Session affinity.
    SessionAffinityConflict,
}

/// A disagreement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// In what.
    pub reason: ConflictReason,
    /// For people: who won, who differs how.
    pub message: String,
}

/// An import and what was disagreed about.
#[derive(Clone, Debug, PartialEq)]
pub struct Merged {
    /// The import, the same in every cluster.
    pub import: Import,
    /// The import as callers of this cluster see it: its own ports stand.
    pub seen: Import,
    /// Disagreements of the import, in a fixed order.
    pub conflicts: Vec<Conflict>,
}

impl Merged {
    /// The `Conflict` condition of every export that went in.
    pub fn condition(&self) -> Condition {
        if self.conflicts.is_empty() {
            return Condition::new("Conflict", ConditionStatus::False, "NoConflicts", "");
        }
        let mut reasons: Vec<_> = self
            .conflicts
            .iter()
            .map(|c| format!("{:?}", c.reason))
            .collect();
        reasons.dedup();
        let messages: Vec<_> = self.conflicts.iter().map(|c| c.message.as_str()).collect();
        Condition::new(
            "Conflict",
            ConditionStatus::True,
            reasons.join(","),
            messages.join("; "),
        )
    }
}

/// Merges the exports of one service; `None` where there are none. The order of the
/// contributions means nothing; of two of one cluster the older counts. `own` is the cluster
/// whose callers [`Merged::seen`] is for.
pub fn merge(
    own: &ClusterId,
    service: &ServiceKey,
    contributions: &[Contribution],
) -> Option<Merged> {
    let ranked = ranked(service, contributions);
    let (oldest, younger) = ranked.split_first()?;
    let (ports, mut conflicts) = merge_ports(&ranked);
    conflicts.extend(disagreement(
        ConflictReason::TypeConflict,
        "type",
        oldest,
        younger,
        |export| export.import_type.to_string(),
    ));
    conflicts.extend(disagreement(
        ConflictReason::SessionAffinityConflict,
        "session affinity",
        oldest,
        younger,
        |export| affinity_text(export.session_affinity).to_owned(),
    ));
    let import = |ports: Vec<ServicePort>| Import {
        service: service.clone(),
        import_type: oldest.export.import_type,
        session_affinity: oldest.export.session_affinity,
        clusters: ranked
            .iter()
            .map(|c| (c.cluster.clone(), capacity(&c.export, &ports)))
            .collect(),
        unmeshed_clients: ranked
            .iter()
            .filter(|c| c.export.unmeshed_clients)
            .map(|c| c.cluster.clone())
            .collect(),
        ports,
    };
    Some(Merged {
        import: import(ports),
        seen: import(seen_ports(own, &ranked)),
        conflicts,
    })
}

/// The union for callers of `own`, whose export goes before older ones.
fn seen_ports(own: &ClusterId, ranked: &[Contribution]) -> Vec<ServicePort> {
    let mut ranked = ranked.to_vec();
    // Stable: the others stay in their order.
    ranked.sort_by_key(|contribution| contribution.cluster != *own);
    merge_ports(&ranked).0
}

/// One contribution per cluster, oldest first.
fn ranked(service: &ServiceKey, contributions: &[Contribution]) -> Vec<Contribution> {
    let mut ranked: Vec<_> = contributions
        .iter()
        .filter(|c| c.export.service == *service)
        .cloned()
        .collect();
    ranked.sort_by_key(rank);
    let mut by_cluster: BTreeMap<ClusterId, Contribution> = BTreeMap::new();
    for contribution in ranked {
        by_cluster
            .entry(contribution.cluster.clone())
            .or_insert(contribution);
    }
    let mut ranked: Vec<_> = by_cluster.into_values().collect();
    ranked.sort_by_key(rank);
    ranked
}

/// Age, then cluster id; the rest only makes two exports of one cluster and age comparable.
fn rank(contribution: &Contribution) -> (SystemTime, ClusterId, String) {
    let export = &contribution.export;
    let rest = format!(
        "{:?}{:?}{:?}",
        export.import_type, export.session_affinity, export.ports
    );
    (export.created, contribution.cluster.clone(), rest)
}

/// The union of the ports; each stands as the oldest export that has it says. A port is the
/// one of its name, else the one of its number.
fn merge_ports(ranked: &[Contribution]) -> (Vec<ServicePort>, Vec<Conflict>) {
    let mut taken: Vec<Taken<'_>> = Vec::new();
    for Contribution { cluster, export } in ranked {
        for port in &export.ports {
            let same_name = taken.iter().position(|held| held.port.name == port.name);
            let same_number = || taken.iter().position(|held| held.port.port == port.port);
            match same_name.or_else(same_number) {
                None => taken.push(Taken {
                    port: port.clone(),
                    winner: cluster,
                    having: BTreeSet::from([cluster]),
                    differing: Vec::new(),
                }),
                Some(at) => taken[at].meet(port, cluster),
            }
        }
    }
    let conflicts = taken.iter().filter_map(Taken::conflict).collect();
    let mut ports: Vec<_> = taken.into_iter().map(|held| held.port).collect();
    ports.sort_by_key(|port| port.port);
    (ports, conflicts)
}

/// A port of the union, and who has it otherwise.
struct Taken<'a> {
    port: ServicePort,
    winner: &'a ClusterId,
    /// How many clusters have it, one way or the other.
    having: BTreeSet<&'a ClusterId>,
    differing: Vec<(&'a ClusterId, String)>,
}

impl<'a> Taken<'a> {
    fn meet(&mut self, port: &ServicePort, cluster: &'a ClusterId) {
        self.having.insert(cluster);
        if self.port != *port {
            self.differing.push((cluster, port_text(port)));
        }
    }

    fn conflict(&self) -> Option<Conflict> {
        let stands = format!("port {}", port_text(&self.port));
        conflict(
            ConflictReason::PortConflict,
            &stands,
            self.winner,
            &self.differing,
            self.having.len(),
        )
    }
}

fn port_text(port: &ServicePort) -> String {
    let name = port.name.as_deref().unwrap_or("(unnamed)");
    format!("{name} {} {:?}", port.port, port.app_protocol)
}

/// What a cluster contributes: its capacity, and those of its ports that the import has.
fn capacity(export: &Export, ports: &[ServicePort]) -> ClusterCapacity {
    let exposes = |port: &ServicePort| export.ports.iter().any(|own| is_same(own, port));
    ClusterCapacity {
        localities: export.capacity.clone(),
        ports: ports
            .iter()
            .filter(|port| exposes(port))
            .map(|port| port.port)
            .collect(),
    }
}

/// Whether a cluster's port is that of the import: one number with two names is two things.
/// A port without a name is whatever has its number.
fn is_same(one: &ServicePort, other: &ServicePort) -> bool {
    let named_alike = match (&one.name, &other.name) {
        (Some(one), Some(other)) => one == other,
        _ => true,
    };
    one.port == other.port && named_alike
}

fn disagreement(
    reason: ConflictReason,
    what: &str,
    oldest: &Contribution,
    younger: &[Contribution],
    property: impl Fn(&Export) -> String,
) -> Option<Conflict> {
    let stands = property(&oldest.export);
    let differing: Vec<_> = younger
        .iter()
        .filter(|c| property(&c.export) != stands)
        .map(|c| (&c.cluster, property(&c.export)))
        .collect();
    let stands = format!("{what} {stands}");
    conflict(
        reason,
        &stands,
        &oldest.cluster,
        &differing,
        younger.len() + 1,
    )
}

/// Who won, and how many of how many disagree: a cluster may do so with several ports.
fn conflict(
    reason: ConflictReason,
    stands: &str,
    winner: &ClusterId,
    differing: &[(&ClusterId, String)],
    of: usize,
) -> Option<Conflict> {
    if differing.is_empty() {
        return None;
    }
    let clusters: BTreeSet<_> = differing.iter().map(|(cluster, _)| cluster).collect();
    let each: Vec<_> = differing
        .iter()
        .map(|(cluster, has)| format!("`{cluster}` has {has}"))
        .collect();
    let message = format!(
        "{stands} of cluster `{winner}` (oldest) stands; {} of {of} clusters differ: {}",
        clusters.len(),
        each.join(", ")
    );
    Some(Conflict { reason, message })
}

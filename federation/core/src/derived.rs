//! What stands for an import where clients without a sidecar look for it: a Service of its own, whose
//! address means the whole clusterset, and EndpointSlices that say where that address leads.
//!
//! A slice is of one source cluster and one port. For another cluster it lists our gateways, at the
//! port that stands for the import; for our own the endpoints themselves, as the cluster's proxies
//! would reach them. Those proxies spread connections evenly over all entries that are ready; they
//! know no shares. So which entries are ready says *where to*, and `shares` says it by the same
//! function that sidecars and gateways run:
//!
//! | shares | ready |
//! |---|---|
//! | all at home | our own endpoints, and no gateway |
//! | none at home | gateways |
//! | both | gateways alone, if they may lead home, too: they keep to the shares. Else both |
//!
//! A gateway chooses among clusters by itself, so it is listed in the slice of each other cluster, and
//! ready in all of them or in none: it is one address, and of one that is ready here and not there
//! each proxy would believe what it read last. The own endpoints are never ready beside gateways that lead
//! to them, or home would be counted twice.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};

use crate::direct::Entry;
use crate::model::{AppProtocol, ClusterId, ServiceKey, ServicePort};

mod deriver;
mod shares;
#[cfg(test)]
mod tests;

pub use deriver::Deriver;

/// Bytes of the hash in a name: enough that no exporter finds two services of one name.
const HASH: usize = 16;

/// The name of the Service that stands for the import of `service`, in the same namespace. It is
/// the same in every cluster and after every restart.
#[must_use]
pub fn derived_name(service: &ServiceKey) -> String {
    let hash = digest(&SHA256, service.to_string().as_bytes());
    let hash = hash.as_ref()[..HASH].iter();
    let hash: String = hash.map(|byte| format!("{byte:02x}")).collect();
    format!("linkspan-{hash}")
}

/// The names of an import's ports where each needs one: its own, or one made of its number. A single
/// port needs none.
#[must_use]
pub fn port_names(ports: &[ServicePort]) -> BTreeMap<u16, Arc<str>> {
    let single = ports.len() == 1;
    let name = |port: &ServicePort| match &port.name {
        Some(name) => Arc::clone(name),
        None if single => Arc::from(""),
        None => Arc::from(format!("linkspan-{}", port.port)),
    };
    ports.iter().map(|port| (port.port, name(port))).collect()
}

/// What stands for one import.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Derived {
    /// The addresses of its Service; none before it has them.
    pub ips: Vec<IpAddr>,
    /// The ports of its Service: as callers here see the import, whose own cluster's ports stand.
    pub ports: Vec<ServicePort>,
    /// Where they lead.
    pub slices: BTreeMap<SliceKey, Slice>,
}

/// Which slice of an import. The same for as long as the slice lives.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SliceKey {
    /// From which cluster it comes.
    pub cluster: ClusterId,
    /// The Service port.
    pub port: u16,
    /// The port at which its entries listen.
    pub target: u16,
    /// Whether the entries have IPv6 addresses.
    pub ipv6: bool,
    /// Counts the slices of what would be too large for one.
    pub part: u16,
}

/// An EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// The name of the port; empty for a single one.
    pub port_name: Arc<str>,
    /// What is spoken there.
    pub app_protocol: AppProtocol,
    /// Whether the entries are our gateways.
    pub remote: bool,
    /// In a fixed order.
    pub entries: Vec<Entry>,
}

/// A slice as it may be written while removals are held: gateways and peers may not be back yet, so
/// what led somewhere goes on to, unless it is known to be going. Of our own endpoints all is known.
#[must_use]
pub fn held(current: &[Entry], slice: &Slice) -> Slice {
    let was_ready = |entry: &Entry| {
        let mut current = current.iter();
        current.any(|was| was.ip == entry.ip && was.ready)
    };
    let mut entries = slice.entries.clone();
    for entry in &mut entries {
        entry.ready |= entry.serving && !entry.terminating && was_ready(entry);
    }
    if slice.remote {
        let unknown = current
            .iter()
            .filter(|was| !slice.entries.iter().any(|entry| entry.ip == was.ip));
        entries.extend(unknown.cloned());
        entries.sort();
    }
    Slice {
        entries,
        ..slice.clone()
    }
}

//! Connections whose work another one does.
//!
//! Either side may dial, so that duplicates come about. They are harmless, and none is cut; but
//! where one stays unneeded, it is asked to leave. Both sides must agree on which, or each might
//! give up the other's: of two, the one stays that was dialled by the cluster whose id sorts
//! first (a retiring one never stays for its own sake), and only the side that dialled a connection asks it to leave.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use linkspan_routing::ClusterId;

use super::connection::Connection;
use super::plan::Purpose;
use crate::peers::Peer;

/// Whether a connection does the work of another to that replica: for data each replica counts,
/// for sync one is enough.
pub(crate) fn rivals(held: &Connection, purpose: Purpose, replica: &str) -> bool {
    held.purpose == purpose && (purpose == Purpose::Sync || *held.replica == *replica)
}

/// Since when which connections have been surplus.
#[derive(Debug, Default)]
pub(crate) struct Surplus(BTreeMap<u64, Instant>);

impl Surplus {
    /// Of the connections that we dialled, those that have been surplus for so long.
    pub(crate) fn due(
        &mut self,
        now: Instant,
        after: Duration,
        own: &ClusterId,
        peer: &Peer,
    ) -> Vec<Arc<Connection>> {
        let ours_first = *own < peer.link.cluster;
        let surplus: Vec<_> = [Purpose::Data, Purpose::Sync]
            .into_iter()
            .flat_map(|purpose| surplus(peer, purpose, ours_first))
            .collect();
        self.0
            .retain(|id, _| surplus.iter().any(|connection| connection.id == *id));
        let long = |connection: &Arc<Connection>| {
            let since = *self.0.entry(connection.id).or_insert(now);
            now.saturating_duration_since(since) >= after
        };
        surplus.into_iter().filter(long).collect()
    }
}

fn surplus(peer: &Peer, purpose: Purpose, ours_first: bool) -> Vec<Arc<Connection>> {
    let held: Vec<_> = peer.usable(purpose).collect();
    let rank = |connection: &Connection| {
        (
            connection.state().retiring,
            connection.dialled != ours_first,
            connection.id,
        )
    };
    let outranked = |connection: &Arc<Connection>| {
        let mut others = held
            .iter()
            .filter(|other| rivals(other, purpose, &connection.replica));
        others.any(|other| rank(other) < rank(connection))
    };
    let ours = held
        .iter()
        .filter(|connection| connection.dialled && outranked(connection));
    ours.map(|connection| Arc::clone(connection)).collect()
}

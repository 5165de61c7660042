//! Where callers without a sidecar would be led, by the function that leads those that have one.

use std::collections::BTreeMap;
use std::time::Instant;

use linkspan_routing::{Balancer, Place, UsablePeers};

use crate::imports::ImportPort;
use crate::model::{ClusterId, Service};

/// Stands for any caller; they differ only where a pool has more endpoints than one uses.
const SEED: u64 = 0;
/// A smaller part than this is none.
const EPSILON: f64 = 1e-6;

/// The clusters that get a part of the calls, and how much.
pub(super) type Parts = BTreeMap<ClusterId, f64>;

/// One balancer for each port of an import: what is held back, and since when, it remembers.
pub(super) struct Shares {
    place: Place,
    callers: BTreeMap<ImportPort, Caller>,
}

struct Caller {
    balancer: Balancer,
    seen: Option<(Service, UsablePeers)>,
}

impl Shares {
    /// Of callers at `place`.
    pub(super) fn new(place: Place) -> Self {
        Self {
            place,
            callers: BTreeMap::new(),
        }
    }

    /// Forgets the ports that are not `wanted` any more.
    pub(super) fn keep(&mut self, wanted: impl Fn(&ImportPort) -> bool) {
        self.callers.retain(|port, _| wanted(port));
    }

    /// The parts of one port, as of `now`.
    pub(super) fn of(
        &mut self,
        port: &ImportPort,
        service: &Service,
        peers: &UsablePeers,
        now: Instant,
    ) -> Parts {
        let place = &self.place;
        let caller = self.callers.entry(port.clone()).or_insert_with(|| Caller {
            balancer: Balancer::new(place.clone(), port.port, SEED),
            seen: None,
        });
        let same = |(last, known): &(Service, UsablePeers)| last == service && known == peers;
        if !caller.seen.as_ref().is_some_and(same) {
            caller.balancer.update(now, service, peers);
            caller.seen = Some((service.clone(), peers.clone()));
        }
        caller.balancer.refresh(now);
        let mut parts = Parts::new();
        for share in caller.balancer.explain() {
            *parts.entry(share.cluster).or_default() += share.share;
        }
        parts.retain(|_, part| *part > EPSILON);
        parts
    }
}

//! How a cluster comes back from a drain into a priority that it shares with others.
//!
//! Where a drain empties a priority, the priority's own health tells of it, and
//! [`crate::failback`] damps its return. Where others stay, health never fell: there the part of
//! the returning cluster grows from nothing, over the same times.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use crate::failback::Curve;
use crate::ids::ClusterId;
use crate::model::FailbackConfig;

/// The clusters that come back.
#[derive(Debug, Default)]
pub(crate) struct Undrain {
    drained: BTreeSet<ClusterId>,
    /// How much of its part each takes: nothing at first, all of it in the end.
    returning: BTreeMap<ClusterId, Curve>,
}

impl Undrain {
    /// Takes note of what is drained from now on.
    pub(crate) fn observe(
        &mut self,
        now: Instant,
        config: FailbackConfig,
        drained: &BTreeSet<ClusterId>,
    ) {
        let (hold, ramp) = config.bounded();
        for cluster in self.drained.difference(drained) {
            let curve = Curve {
                from: 0.0,
                to: 1.0,
                start: now + hold,
                ramp,
            };
            self.returning.insert(cluster.clone(), curve);
        }
        self.returning
            .retain(|cluster, curve| curve.moves(now) && !drained.contains(cluster));
        self.drained.clone_from(drained);
    }

    /// What comes back is back.
    pub(crate) fn forget(&mut self) {
        self.returning.clear();
    }

    /// How much of its part a cluster takes, if that changes.
    pub(crate) fn curve(&self, cluster: &ClusterId, now: Instant) -> Option<Curve> {
        let curve = self.returning.get(cluster);
        curve.copied().filter(|curve| curve.moves(now))
    }

    /// All that change.
    pub(crate) fn curves(&self) -> impl Iterator<Item = Curve> {
        self.returning.values().copied()
    }
}

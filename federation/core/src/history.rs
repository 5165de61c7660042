//! What callers here have been shown of each service lately, so that what they do because of
//! it (traffic that is held back after a failure) can be told.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use linkspan_routing::{Moment, UsablePeers};

use crate::model::{Service, ServiceKey};
use crate::plan::Desired;

/// Moments kept of each service: more than a failure and its recovery have steps, endpoint by
/// endpoint. Older ones matter only if something has been held back ever since.
const KEPT: usize = 16;

/// The last moments of every service.
#[derive(Clone, Debug, Default)]
pub struct History {
    services: BTreeMap<ServiceKey, VecDeque<Moment>>,
}

impl History {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes note of a plan that callers are shown from now on.
    pub fn observe(&mut self, desired: &Desired, now: Instant) {
        let peers: UsablePeers = desired
            .links
            .iter()
            .map(|(cluster, link)| (cluster.clone(), link.usable))
            .collect();
        self.services
            .retain(|key, _| desired.services.contains_key(key));
        for (key, service) in &desired.services {
            let moments = self.services.entry(key.clone()).or_default();
            let shown = |last: &Moment| *last.service == **service && last.peers == peers;
            if moments.back().is_some_and(shown) {
                continue;
            }
            if moments.len() == KEPT {
                moments.pop_front();
            }
            moments.push_back(Moment {
                at: now,
                service: Arc::<Service>::clone(service),
                peers: peers.clone(),
            });
        }
    }

    /// The moments of one service, oldest first.
    pub fn of(&self, service: &ServiceKey) -> Vec<Moment> {
        let moments = self.services.get(service).into_iter().flatten();
        moments.cloned().collect()
    }
}

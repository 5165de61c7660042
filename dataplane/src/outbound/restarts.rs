//! Which endpoints have been restarted, as discovery tells. Pure.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use linkspan_routing::{Endpoint, EndpointKey, is_restart};

/// The latest incarnation of each endpoint that is listed; of one that is unknown now, what was
/// known before.
#[derive(Debug, Default)]
pub(super) struct Restarts(HashMap<EndpointKey, u64>);

impl Restarts {
    /// Takes in what is listed now; gives those that are other processes than before.
    pub(super) fn note(&mut self, listed: &[Arc<Endpoint>]) -> HashSet<EndpointKey> {
        let mut restarted = HashSet::new();
        let mut latest = HashMap::with_capacity(listed.len());
        for endpoint in listed {
            let key = endpoint.key();
            let before = self.0.get(&key).copied().unwrap_or_default();
            if is_restart(before, endpoint.incarnation) {
                restarted.insert(key.clone());
            }
            latest.insert(key, before.max(endpoint.incarnation));
        }
        self.0 = latest;
        restarted
    }
}

#[cfg(test)]
mod tests {
    use linkspan_routing::{EndpointId, Locality};

    use super::*;

    fn endpoint(incarnation: u64) -> Arc<Endpoint> {
        let identity = linkspan_trust::testing::workload("east.test", "shop", "checkout");
        Arc::new(Endpoint {
            id: EndpointId::from_uid("e"),
            cluster: "east".parse().unwrap(),
            locality: Locality::unknown(),
            identity,
            ready: true,
            weight: 1,
            address: None,
            incarnation,
            labels: Default::default(),
        })
    }

    fn restarted(incarnations: &[u64]) -> Vec<bool> {
        let mut restarts = Restarts::default();
        let mut note = |told: u64| !restarts.note(&[endpoint(told)]).is_empty();
        incarnations.iter().map(|told| note(*told)).collect()
    }

    #[test]
    fn a_later_incarnation_is_a_restart() {
        assert_eq!(restarted(&[1, 1, 3, 3]), [false, false, true, false]);
    }

    #[test]
    fn one_that_becomes_known_or_unknown_is_none() {
        assert_eq!(restarted(&[0, 7, 0, 7, 0]), [false; 5]);
        assert_eq!(restarted(&[7, 0, 8]), [false, false, true]);
    }

    #[test]
    fn an_older_record_is_none() {
        assert_eq!(restarted(&[7, 6, 7]), [false; 3]);
    }
}

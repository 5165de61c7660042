//! What a source would do that is not this one: a caller elsewhere, or the same caller without
//! some cluster. It is a balancer like any other, shown what the caller has been shown.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use crate::balancer::{Balancer, NoEndpoint, Try};
use crate::explain::Share;
use crate::ids::ClusterId;
use crate::model::{Place, Service, UsablePeers};
use crate::priority::EPSILON;

/// What callers were shown from some time on.
#[derive(Debug, Clone)]
pub struct Moment {
    /// From when on.
    pub at: Instant,
    /// The service.
    pub service: Arc<Service>,
    /// Which peers could be used.
    pub peers: UsablePeers,
}

/// The shares of a caller at `place`, for this *Service* port, that was shown these moments
/// (oldest first), as of `now`; and then, if `without` names clusters, as they would be the
/// moment after those are lost. What a real caller has learnt by its own requests (ejections)
/// is not known here. `seed` as for [`Balancer::new`].
pub fn rehearse(
    place: Place,
    port: u16,
    seed: u64,
    moments: &[Moment],
    without: &BTreeSet<ClusterId>,
    now: Instant,
) -> Rehearsal {
    let own = place.cluster.clone();
    let balancer = Balancer::new(place, port, seed);
    for moment in moments {
        balancer.update(moment.at.min(now), &moment.service, &moment.peers);
    }
    balancer.refresh(now);
    if let Some(last) = moments.last().filter(|_| !without.is_empty()) {
        let (service, peers) = lost(last, without, &own);
        balancer.update(now, &service, &peers);
    }
    let shares = balancer.explain();
    let sum: f64 = shares.iter().map(|share| share.share).sum();
    let refused = (1.0 - sum).max(0.0);
    // The last point of the unit interval is what nobody gets.
    let refusal = || balancer.pick(now, &mut || u64::MAX, Try::First).err();
    Rehearsal {
        refusal: (refused > EPSILON).then(refusal).flatten(),
        refused,
        shares,
    }
}

/// What a caller would do.
#[derive(Debug, Clone, PartialEq)]
pub struct Rehearsal {
    /// The shares of all clusters and localities, first priority first.
    pub shares: Vec<Share>,
    /// The part of requests that no endpoint gets, 0 to 1.
    pub refused: f64,
    /// Why.
    pub refusal: Option<NoEndpoint>,
}

/// A moment in which these clusters are lost. The own cluster is always reached, so there the
/// endpoints themselves are.
fn lost(moment: &Moment, without: &BTreeSet<ClusterId>, own: &ClusterId) -> (Service, UsablePeers) {
    let mut service = Service::clone(&moment.service);
    let mut peers = moment.peers.clone();
    for cluster in without {
        peers.insert(cluster.clone(), false);
    }
    if without.contains(own) {
        for endpoint in service.endpoints.iter_mut().filter(|of| of.cluster == *own) {
            Arc::make_mut(endpoint).ready = false;
        }
    }
    (service, peers)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::explain::Why;
    use crate::testing::{Fixture, endpoint_id, place};

    fn moment(fixture: &Fixture, at: Instant) -> Moment {
        Moment {
            at,
            service: Arc::new(fixture.service()),
            peers: fixture.peers.clone(),
        }
    }

    fn shares(moments: &[Moment], without: &[&str], now: Instant) -> Vec<(f64, Why)> {
        let without = without.iter().map(|name| name.parse().unwrap()).collect();
        let rehearsal = rehearse(place(), 80, 1, moments, &without, now);
        let sum: f64 = rehearsal.shares.iter().map(|share| share.share).sum();
        assert!((sum + rehearsal.refused - 1.0).abs() < 1e-9);
        assert_eq!(rehearsal.refused > 0.0, rehearsal.refusal.is_some());
        let shares = rehearsal.shares.into_iter();
        shares.map(|share| (share.share, share.why)).collect()
    }

    #[test]
    fn without_a_cluster_what_is_left_takes_everything() {
        let fixture = Fixture::new().with("east", "a", 3).with("west", "a", 3);
        let now = Instant::now();
        let past = [moment(&fixture, now)];
        assert_eq!(shares(&past, &[], now)[0].0, 1.0);
        let without_east = shares(&past, &["east"], now);
        assert_eq!(without_east[0], (0.0, Why::NoneAvailable));
        assert_eq!(without_east[1].0, 1.0);
        let without_west = shares(&past, &["west"], now);
        assert_eq!(without_west[1], (0.0, Why::PeerUnusable));
        assert!(
            shares(&past, &["east", "west"], now)
                .iter()
                .all(|of| of.0 == 0.0)
        );
    }

    #[test]
    fn what_came_back_is_held_back_as_for_a_caller_that_saw_it_go() {
        let mut fixture = Fixture::new().with("east", "a", 3).with("west", "a", 3);
        let start = Instant::now();
        let mut past = vec![moment(&fixture, start)];
        for (second, ready) in [(1, false), (2, true)] {
            for at in 0..3 {
                fixture.change(&endpoint_id("east", "a", at), |of| of.ready = ready);
            }
            past.push(moment(&fixture, start + Duration::from_secs(second)));
        }
        let soon = shares(&past, &[], start + Duration::from_secs(10));
        assert!(matches!(soon[0], (0.0, Why::HeldBack { .. })), "{soon:?}");
        let later = shares(&past, &[], start + Duration::from_secs(70));
        assert_eq!(later[0].0, 1.0);
    }
}

//! What holds for any endpoints in any state.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::tests::{Bench, east, west};
use super::*;
use crate::ids::EndpointId;
use crate::pick::subset;
use crate::priority::{OVERPROVISIONING, loads};
use crate::testing::Fixture;

fn health(available: u32, expected: u32) -> f64 {
    crate::priority::health(available, expected, OVERPROVISIONING)
}

/// What an endpoint in the property tests is.
#[derive(Debug, Clone)]
pub(super) struct Made {
    cluster: &'static str,
    zone: &'static str,
    ready: bool,
    weight: u32,
    failing: bool,
}

pub(super) fn made() -> impl Strategy<Value = Made> {
    (
        prop::sample::select(vec!["east", "west", "north"]),
        prop::sample::select(vec!["a", "b", ""]),
        prop::bool::weighted(0.7),
        0u32..4,
        prop::bool::weighted(0.2),
    )
        .prop_map(|(cluster, zone, ready, weight, failing)| Made {
            cluster,
            zone,
            ready,
            weight,
            failing,
        })
}

/// A service with these endpoints.
pub(super) fn fixture_of(made: &[Made], usable: [bool; 2], ports: [bool; 3]) -> Fixture {
    let mut fixture = Fixture::new();
    for (at, one) in made.iter().enumerate() {
        let mut single = Fixture::new().with(one.cluster, one.zone, 1).service();
        let mut endpoint = (*single.endpoints.pop().unwrap()).clone();
        endpoint.id = EndpointId::from_uid(&at.to_string());
        (endpoint.ready, endpoint.weight) = (one.ready, one.weight);
        fixture.edit().endpoints.push(Arc::new(endpoint));
        let clusters = &mut fixture.edit().clusters;
        clusters.entry(one.cluster.parse().unwrap()).or_default();
    }
    for (cluster, exposed) in ["east", "west", "north"].into_iter().zip(ports) {
        if let Some(capacity) = fixture.edit().clusters.get_mut(cluster) {
            capacity.ports = if exposed { vec![80, 81] } else { vec![81] };
        }
    }
    fixture.peers.insert("west".parse().unwrap(), usable[0]);
    fixture.peers.insert("north".parse().unwrap(), usable[1]);
    fixture
}

/// A bench with these; the failing ones have been ejected where they could be.
pub(super) fn bench_of(made: &[Made], fixture: Fixture) -> Bench {
    let mut bench = Bench::new(fixture);
    for (at, _) in made.iter().enumerate().filter(|(_, one)| one.failing) {
        let others: Vec<EndpointId> = (0..made.len())
            .filter(|other| *other != at)
            .map(|other| EndpointId::from_uid(&other.to_string()))
            .collect();
        if let Ok(pick) = bench.pick(&others) {
            pick.failed(bench.now, Failure::Connect);
        }
    }
    bench
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn shares_sum_to_one_or_nothing_can_be_picked(
        made in prop::collection::vec(made(), 0..40),
        usable: [bool; 2],
        ports: [bool; 3],
    ) {
        let mut bench = bench_of(&made, fixture_of(&made, usable, ports));
        let sum: f64 = bench.balancer.explain().iter().map(|share| share.share).sum();
        match bench.pick(&[]) {
            Ok(_) => prop_assert!((sum - 1.0).abs() < 1e-9, "{sum}"),
            Err(_) => prop_assert_eq!(sum, 0.0),
        }
    }

    #[test]
    fn only_ready_usable_exposed_and_not_excluded_endpoints_are_picked(
        made in prop::collection::vec(made(), 0..40),
        usable: [bool; 2],
        ports: [bool; 3],
        excluded in prop::collection::vec(0usize..40, 0..6),
    ) {
        let mut bench = bench_of(&made, fixture_of(&made, usable, ports));
        let exclude: Vec<EndpointId> =
            excluded.iter().map(|at| EndpointId::from_uid(&at.to_string())).collect();
        let allowed = |cluster: &str| match cluster {
            "east" => ports[0],
            "west" => ports[1] && usable[0],
            _ => ports[2] && usable[1],
        };
        for _ in 0..50 {
            let Ok(pick) = bench.pick(&exclude) else { break };
            let endpoint = pick.endpoint();
            prop_assert!(endpoint.ready && allowed(endpoint.cluster.as_str()));
            prop_assert!(!exclude.contains(&endpoint.id));
            // An ejected one only where total health is below 1.
            if pick.vitals.is_ejected() {
                let plan = bench.balancer.shared.plan.load();
                let health = Option::as_ref(&plan).unwrap().health;
                prop_assert!(health.iter().sum::<f64>() < 1.0);
            }
        }
    }

    #[test]
    fn picks_agree_with_explain(
        made in prop::collection::vec(made(), 1..40),
        usable: [bool; 2],
    ) {
        let mut bench = bench_of(&made, fixture_of(&made, usable, [true; 3]));
        const PICKS: u32 = 4000;
        let mut counts: BTreeMap<(String, String), f64> = BTreeMap::new();
        for _ in 0..PICKS {
            let Ok(pick) = bench.pick(&[]) else { break };
            let endpoint = pick.endpoint();
            let key = (endpoint.cluster.to_string(), endpoint.locality.to_string());
            *counts.entry(key).or_default() += 1.0 / f64::from(PICKS);
        }
        for share in bench.balancer.explain() {
            let key = (share.cluster.to_string(), share.locality.to_string());
            let measured = counts.get(&key).copied().unwrap_or(0.0);
            prop_assert!((measured - share.share).abs() < 0.05, "{share:?}: {measured}");
        }
    }

    #[test]
    fn spill_over_is_the_published_formula(dead in 0u32..=6, gone in 0u32..=6) {
        let mut bench = Bench::new(Fixture::new().with("east", "a", 6).with("west", "a", 6));
        let ids = |of: fn(u32) -> EndpointId, n| (0..n).map(of).collect::<Vec<_>>();
        bench.set_ready(&ids(east, dead), false);
        bench.set_ready(&ids(west, gone), false);
        let [home, away] = loads(&[health(6 - dead, 6), health(6 - gone, 6)]);
        prop_assert!((bench.share("east") - home).abs() < 1e-9);
        prop_assert!((bench.share("west") - away).abs() < 1e-9);
    }

    #[test]
    fn a_lost_endpoint_never_adds_to_its_priority(dead in 0u32..6, gone in 0u32..=6) {
        let mut bench = Bench::new(Fixture::new().with("east", "a", 6).with("west", "a", 6));
        bench.set_ready(&(0..gone).map(west).collect::<Vec<_>>(), false);
        bench.set_ready(&(0..dead).map(east).collect::<Vec<_>>(), false);
        let before = bench.share("east");
        bench.set_ready(&[east(dead)], false);
        prop_assert!(bench.share("east") <= before + 1e-9);
    }

    #[test]
    fn one_that_leaves_moves_at_most_one_other_into_a_subset(
        count in 21u32..60, leaves in 0u32..60, seed: u64,
    ) {
        let used = |without: Option<u32>| {
            let mut ids: Vec<EndpointId> =
                (0..count).filter(|at| Some(*at) != without).map(east).collect();
            subset(&mut ids, seed, |id| id);
            ids.into_iter().collect::<BTreeSet<_>>()
        };
        let (before, after) = (used(None), used(Some(leaves)));
        prop_assert!(after.difference(&before).count() <= 1);
        prop_assert!(before.difference(&after).all(|id| *id == east(leaves)));
    }
}

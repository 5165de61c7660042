//! What holds under any failover policy and any drains.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::policies::{Spread, explained, tier, weight};
use super::properties::{Made, bench_of, fixture_of, made};
use super::tests::Bench;
use super::*;
use crate::ids::ClusterId;
use crate::model::FailbackConfig;
use crate::policy::{FailoverPolicy, LocalityWeight, TierMatch, Unlisted};

const PICKS: u32 = 4000;
/// Six standard deviations at that many.
const TOLERANCE: f64 = 0.05;

/// A service, what is said about it, and what has failed.
#[derive(Debug, Clone)]
struct Case {
    made: Vec<Made>,
    usable: [bool; 2],
    policy: Option<FailoverPolicy>,
    drained: BTreeSet<ClusterId>,
    /// Drained at first, and undrained so many milliseconds ago.
    undrained: BTreeSet<ClusterId>,
    ago: u64,
}

fn clusters(of: &'static [&'static str]) -> impl Strategy<Value = BTreeSet<ClusterId>> {
    let some = prop::sample::subsequence(of, 0..=of.len());
    let maybe = prop::option::weighted(0.3, some);
    maybe.prop_map(|of| {
        let of = of.into_iter().flatten();
        of.map(|id| id.parse().unwrap()).collect()
    })
}

fn area() -> impl Strategy<Value = (Vec<&'static str>, Vec<&'static str>)> {
    (
        prop::sample::subsequence(vec!["Own", "west", "north"], 0..=3),
        prop::sample::subsequence(vec!["Own", "b"], 0..=2),
    )
}

fn order() -> impl Strategy<Value = Vec<TierMatch>> {
    let one = area().prop_map(|(clusters, zones)| tier(&clusters, &zones));
    prop::collection::vec(one, 0..4)
}

fn weights() -> impl Strategy<Value = Vec<LocalityWeight>> {
    let one = (area(), 1u32..20);
    let one = one.prop_map(|((clusters, zones), of)| weight(&clusters, &zones, of));
    prop::collection::vec(one, 0..3)
}

fn policy() -> impl Strategy<Value = FailoverPolicy> {
    let unlisted = prop::sample::select(vec![Unlisted::Last, Unlisted::Last, Unlisted::Exclude]);
    let cap = prop::option::of(prop::sample::select(vec![0u32, 5, 10, 35, 80, 100]));
    let peers = || clusters(&["west", "north"]);
    (
        order(),
        unlisted,
        weights(),
        100u32..200,
        cap,
        peers(),
        peers(),
    )
        .prop_map(
            |(order, unlisted, weights, overprovisioning, max_remote_share, avoided, excluded)| {
                FailoverPolicy {
                    order,
                    unlisted,
                    weights,
                    overprovisioning,
                    max_remote_share,
                    avoided,
                    excluded,
                    ..FailoverPolicy::default()
                }
            },
        )
}

fn case() -> impl Strategy<Value = Case> {
    let all = || clusters(&["east", "west", "north"]);
    (
        prop::collection::vec(made(), 1..30),
        prop::array::uniform2(prop::bool::weighted(0.8)),
        prop::option::weighted(0.9, policy()),
        (all(), all(), 0u64..4500),
    )
        .prop_map(|(made, usable, policy, (drained, undrained, ago))| Case {
            made,
            usable,
            policy,
            drained,
            undrained,
            ago,
        })
}

impl Case {
    fn bench(&self) -> Bench {
        let mut fixture = fixture_of(&self.made, self.usable, [true; 3]);
        let service = fixture.edit();
        service.policy = self.policy.clone().map(Arc::new);
        service.drained = self.drained.union(&self.undrained).cloned().collect();
        // Over before any ejection is, so that nothing is tried meanwhile.
        service.failback = FailbackConfig {
            hold: Duration::from_secs(1),
            ramp: Duration::from_secs(3),
        };
        let mut bench = bench_of(&self.made, fixture);
        bench.fixture.edit().drained = self.drained.clone();
        bench.update();
        bench.now += Duration::from_millis(self.ago);
        bench.balancer.refresh(bench.now);
        bench
    }

    /// Whether the policy rules it out to choose from there.
    fn excludes(&self, endpoint: &Endpoint) -> bool {
        let place = crate::testing::place();
        let (cluster, locality) = (&endpoint.cluster, &endpoint.locality);
        self.policy.as_ref().is_some_and(|policy| {
            let listed = policy.tier(&place, cluster, locality, &endpoint.labels);
            let unlisted = listed.is_none() && policy.unlisted == Unlisted::Exclude;
            unlisted || policy.excluded.contains(cluster)
        })
    }
}

/// Where so many first tries go, and the part that is refused.
fn measure(bench: &mut Bench) -> (Spread, f64) {
    let (mut spread, mut refused) = (Spread::new(), 0.0);
    for _ in 0..PICKS {
        bench.balancer.admit();
        let part = 1.0 / f64::from(PICKS);
        match bench.pick(&[]) {
            Err(_) => refused += part,
            Ok(pick) => {
                let endpoint = pick.endpoint();
                let key = (endpoint.cluster.to_string(), endpoint.locality.to_string());
                *spread.entry(key).or_default() += part;
            }
        }
    }
    (spread, refused)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn picks_agree_with_explain_and_the_rest_is_refused(case in case()) {
        let mut bench = case.bench();
        let shares = bench.balancer.explain();
        let wanted = explained(&shares);
        let (measured, refused) = measure(&mut bench);
        let places: BTreeSet<_> = wanted.keys().chain(measured.keys()).collect();
        for place in places {
            let of = |spread: &Spread| spread.get(place).copied().unwrap_or(0.0);
            let (got, share) = (of(&measured), of(&wanted));
            prop_assert!((-1e-9..=1.0 + 1e-9).contains(&share), "{shares:#?}");
            prop_assert!((got - share).abs() < TOLERANCE, "{place:?}: {got} {shares:#?}");
        }
        let rest = 1.0 - wanted.values().sum::<f64>();
        prop_assert!((refused - rest).abs() < TOLERANCE, "{refused}: {shares:#?}");
        // Only a cap refuses a part.
        let capped = case.policy.is_some_and(|policy| policy.max_remote_share.is_some());
        prop_assert!(capped || rest.abs() < 1e-9 || (rest - 1.0).abs() < 1e-9, "{shares:#?}");
        prop_assert!(rest > -1e-9, "{shares:#?}");
    }

    #[test]
    fn shares_that_leave_stay_below_the_cap(case in case()) {
        let bench = case.bench();
        let cap = case.policy.and_then(|policy| policy.max_remote_share);
        let shares = bench.balancer.explain();
        let abroad = shares.iter().filter(|of| of.cluster.as_str() != "east");
        let abroad: f64 = abroad.map(|of| of.share).sum();
        prop_assert!(abroad <= f64::from(cap.unwrap_or(100)) / 100.0 + 1e-9, "{shares:#?}");
    }

    #[test]
    fn nothing_that_is_excluded_is_ever_picked(
        case in case(),
        tried in prop::collection::vec(0usize..30, 1..8),
    ) {
        let mut bench = case.bench();
        let tried: Vec<_> = tried.iter().map(|at| crate::ids::EndpointId::from_uid(&at.to_string())).collect();
        for turn in 0..50 {
            let exclude = if turn % 2 == 0 { &tried[..] } else { &[] };
            let Ok(pick) = bench.pick(exclude) else { continue };
            let endpoint = pick.endpoint();
            prop_assert!(endpoint.ready && !case.excludes(endpoint), "{endpoint:?}");
            prop_assert!(!exclude.contains(&endpoint.id));
            let usable = match endpoint.cluster.as_str() {
                "west" => case.usable[0],
                "north" => case.usable[1],
                _ => true,
            };
            prop_assert!(usable, "{endpoint:?}");
        }
    }

    #[test]
    fn tries_abroad_stay_below_the_cap_and_what_is_saved(
        case in case(),
        tries in 1usize..6,
        ejects: bool,
    ) {
        let mut bench = case.bench();
        let cap = case.policy.and_then(|policy| policy.max_remote_share);
        let (mut abroad, requests) = (0, 1000);
        let failure = if ejects { Failure::Reset } else { Failure::Gone };
        for _ in 0..requests {
            bench.balancer.admit();
            let mut tried = Vec::new();
            for _ in 0..tries {
                let Ok(pick) = bench.pick(&tried) else { break };
                abroad += u32::from(pick.endpoint().cluster.as_str() != "east");
                tried.push(pick.endpoint().id.clone());
                pick.failed(bench.now, failure);
            }
        }
        if let Some(cap) = cap {
            let most = if cap == 0 { 0 } else { requests * cap / 100 + 100 };
            prop_assert!(abroad <= most, "{abroad} of {most}");
        }
    }
}

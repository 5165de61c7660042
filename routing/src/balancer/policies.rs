//! Failover policies: that what is explained is what is done, with real load in between, and
//! each rule by itself.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Balancer, NoEndpoint, Pick, Try};
use crate::explain::{Share, Why};
use crate::health::Failure;
use crate::model::FailbackConfig;
use crate::policy::{Area, FailoverPolicy, LocalityWeight, Named, TierMatch, Unlisted};
use crate::testing::{Fixture, endpoint_id, place, random};

/// Requests that are counted.
const REQUESTS: u32 = 20_000;
/// How far a measured share may be from the one explained: at 20,000 requests more than four
/// standard deviations.
const TOLERANCE: f64 = 0.015;
const IN_FLIGHT: usize = 32;

fn area(clusters: &[&str], zones: &[&str]) -> Area {
    fn named<T>(name: &str, parse: impl Fn(&str) -> T) -> Named<T> {
        match name {
            "Own" => Named::Own,
            other => Named::Name(parse(other)),
        }
    }
    let clusters = clusters
        .iter()
        .map(|of| named(of, |text| text.parse().unwrap()));
    let zones = zones
        .iter()
        .map(|of| named(of, |text| Arc::<str>::from(text)));
    Area {
        clusters: clusters.collect(),
        regions: Vec::new(),
        zones: zones.collect(),
    }
}

pub(super) fn tier(clusters: &[&str], zones: &[&str]) -> TierMatch {
    TierMatch {
        area: area(clusters, zones),
        ..TierMatch::default()
    }
}

pub(super) fn weight(clusters: &[&str], zones: &[&str], weight: u32) -> LocalityWeight {
    LocalityWeight {
        area: area(clusters, zones),
        weight,
    }
}

fn order(order: Vec<TierMatch>) -> FailoverPolicy {
    FailoverPolicy {
        order,
        ..FailoverPolicy::default()
    }
}

/// Three clusters with two zones each; in the first of each two of three endpoints are ready.
fn fixture(policy: FailoverPolicy) -> Fixture {
    let mut fixture = Fixture::new();
    for cluster in ["east", "west", "north"] {
        fixture = fixture.with(cluster, "a", 3).with(cluster, "b", 2);
        fixture.change(&endpoint_id(cluster, "a", 0), |of| of.ready = false);
    }
    fixture.edit().policy = Some(Arc::new(policy));
    fixture
}

fn balancer(fixture: &Fixture, now: Instant) -> Balancer {
    let balancer = Balancer::new(place(), 80, 1);
    balancer.update(now, &fixture.service(), &fixture.peers);
    balancer
}

pub(super) type Spread = BTreeMap<(String, String), f64>;

/// Sends requests that take 2 ms at home, 20 ms elsewhere, and five times that at the last of
/// each locality's endpoints, with a number of them always under way.
fn measure(balancer: &Balancer, start: Instant, seed: u64) -> (Spread, f64) {
    let mut random = random(seed);
    let mut slots: BinaryHeap<_> = (0..IN_FLIGHT)
        .map(|at| Reverse((Duration::ZERO, at)))
        .collect();
    let mut picks: Vec<Option<(Pick, Duration)>> = (0..IN_FLIGHT).map(|_| None).collect();
    let (mut spread, mut refused) = (Spread::new(), 0.0);
    let slow = ["a", "b"].map(|zone| endpoint_id("west", zone, 1));
    let mut sent = 0;
    while let Some(Reverse((now, slot))) = slots.pop() {
        if let Some((pick, began)) = picks[slot].take() {
            pick.succeeded(start + now, now - began);
        }
        if sent == REQUESTS {
            continue;
        }
        sent += 1;
        let part = 1.0 / f64::from(REQUESTS);
        balancer.admit();
        let took = match balancer.pick(start + now, &mut random, Try::First) {
            Err(_) => {
                refused += part;
                Duration::from_millis(1)
            }
            Ok(pick) => {
                let endpoint = pick.endpoint();
                let key = (endpoint.cluster.to_string(), endpoint.locality.to_string());
                *spread.entry(key).or_default() += part;
                let home = endpoint.cluster.as_str() == "east";
                let factor = if slow.contains(&endpoint.id) { 5 } else { 1 };
                let took = Duration::from_millis(if home { 2 } else { 20 }) * factor;
                picks[slot] = Some((pick, now));
                took
            }
        };
        slots.push(Reverse((now + took, slot)));
    }
    (spread, refused)
}

pub(super) fn explained(shares: &[Share]) -> Spread {
    let mut spread = Spread::new();
    for share in shares {
        let key = (share.cluster.to_string(), share.locality.to_string());
        *spread.entry(key).or_default() += share.share;
    }
    spread
}

/// How many places get something, after checking that they get what is explained.
fn assert_as_explained(name: &str, balancer: &Balancer, start: Instant) -> usize {
    let shares = balancer.explain();
    let wanted = explained(&shares);
    for seed in [3, 4, 5] {
        let (measured, refused) = measure(balancer, start, seed);
        for (key, share) in &wanted {
            let got = measured.get(key).copied().unwrap_or(0.0);
            assert!(
                (got - share).abs() < TOLERANCE,
                "{name}, seed {seed}: {key:?} got {got:.4}, not {share:.4}\n{shares:#?}"
            );
        }
        let rest = 1.0 - wanted.values().sum::<f64>();
        assert!(
            (refused - rest).abs() < TOLERANCE,
            "{name}: {refused} refused, not {rest}"
        );
    }
    wanted.values().filter(|share| **share > 0.0).count()
}

/// Policies under which three places or more get requests.
fn policies() -> Vec<(&'static str, FailoverPolicy)> {
    let everything = || order(vec![tier(&["Own", "west", "north"], &[])]);
    vec![
        ("all clusters alike", everything()),
        (
            "weights by cluster and zone",
            FailoverPolicy {
                weights: vec![
                    weight(&["Own"], &["Own"], 60),
                    weight(&["Own"], &[], 20),
                    weight(&["west"], &[], 15),
                    weight(&["north"], &["a"], 3),
                ],
                ..everything()
            },
        ),
        (
            "no overprovisioning, by zones",
            FailoverPolicy {
                overprovisioning: 100,
                ..order(vec![
                    tier(&[], &["Own"]),
                    tier(&["west"], &[]),
                    tier(&["Own"], &[]),
                ])
            },
        ),
        (
            "away first, with a cap",
            FailoverPolicy {
                max_remote_share: Some(35),
                ..order(vec![tier(&["west", "north"], &[]), tier(&["Own"], &[])])
            },
        ),
        (
            "a cap on all clusters alike",
            FailoverPolicy {
                max_remote_share: Some(20),
                ..everything()
            },
        ),
        (
            "only what is listed, one cluster excluded",
            FailoverPolicy {
                unlisted: Unlisted::Exclude,
                excluded: ["north".parse().unwrap()].into(),
                ..order(vec![tier(&[], &["a"])])
            },
        ),
        (
            "stale ones avoided",
            FailoverPolicy {
                overprovisioning: 110,
                avoided: ["west".parse().unwrap()].into(),
                ..order(vec![
                    tier(&["Own"], &["Own"]),
                    tier(&["west", "north"], &[]),
                ])
            },
        ),
    ]
}

#[test]
fn the_measured_distribution_is_the_one_explained() {
    let mut with_three = 0;
    for (name, policy) in policies() {
        let start = Instant::now();
        let places = assert_as_explained(name, &balancer(&fixture(policy), start), start);
        with_three += usize::from(places >= 3);
    }
    assert!(with_three >= 5, "only {with_three} policies say something");
}

#[test]
fn also_when_home_is_dead_and_the_cap_refuses_the_rest() {
    let mut fixture = fixture(FailoverPolicy {
        max_remote_share: Some(30),
        ..FailoverPolicy::default()
    });
    for (zone, count) in [("a", 3), ("b", 2)] {
        for at in 0..count {
            fixture.change(&endpoint_id("east", zone, at), |of| of.ready = false);
        }
    }
    let start = Instant::now();
    let balancer = balancer(&fixture, start);
    assert_as_explained("capped", &balancer, start);
    let mut dice = || 0;
    let abroad = balancer
        .pick(start, &mut dice, Try::First)
        .map(|pick| pick.endpoint().cluster.clone());
    // The first point of the unit interval is other clusters', the last is nobody's.
    assert_ne!(abroad.unwrap().as_str(), "east");
    let mut dice = || u64::MAX;
    let refused = balancer.pick(start, &mut dice, Try::First).map(drop);
    assert_eq!(
        refused.unwrap_err(),
        NoEndpoint::RemoteShareUsed { percent: 30 }
    );
}

#[test]
fn also_with_ejections_drains_and_labels() {
    let mut fixture = fixture(order(vec![
        TierMatch {
            labels: BTreeMap::from([("version".to_owned(), "v2".to_owned())]),
            ..tier(&["Own"], &[])
        },
        tier(&["Own"], &[]),
    ]));
    for (zone, at) in [("a", 1), ("b", 0)] {
        let labels = BTreeMap::from([("version".to_owned(), "v2".to_owned())]);
        fixture.change(&endpoint_id("east", zone, at), |of| of.labels = labels);
    }
    fixture.edit().drained = ["west".parse().unwrap()].into();
    let start = Instant::now();
    let bench = balancer(&fixture, start);
    let shares = bench.explain();
    assert_eq!((shares[0].listed, shares[0].priority), (Some(1), 0));
    let drained = shares
        .iter()
        .filter(|share| share.cluster.as_str() == "west");
    assert!(
        drained
            .clone()
            .all(|share| share.why == Why::Drained && share.share == 0.0)
    );
    assert_as_explained("labels", &bench, start);

    // What nothing else can take, drained clusters do.
    for cluster in ["east", "north"] {
        for (zone, at) in [("a", 0), ("a", 1), ("a", 2), ("b", 0), ("b", 1)] {
            fixture.change(&endpoint_id(cluster, zone, at), |of| of.ready = false);
        }
    }
    bench.update(start, &fixture.service(), &fixture.peers);
    let shares = bench.explain();
    let west = |share: &&Share| share.cluster.as_str() == "west" && share.share > 0.0;
    assert!(
        shares
            .iter()
            .filter(west)
            .all(|share| share.why == Why::LastResort)
    );
    assert_as_explained("last resort", &bench, start);
}

#[test]
fn a_drained_cluster_loses_new_requests_at_once_and_gets_them_back_by_and_by() {
    let mut fixture = Fixture::new().with("east", "a", 3).with("west", "a", 3);
    fixture.edit().failback = FailbackConfig {
        hold: Duration::from_secs(30),
        ramp: Duration::from_secs(30),
    };
    let start = Instant::now();
    let balancer = balancer(&fixture, start);
    let mut dice = random(1);
    let under_way = balancer.pick(start, &mut dice, Try::First).unwrap();
    fixture.edit().drained = ["east".parse().unwrap()].into();
    balancer.update(start, &fixture.service(), &fixture.peers);
    let home = |at: u64| {
        balancer.refresh(start + Duration::from_secs(at));
        balancer
            .explain()
            .iter()
            .find(|of| of.cluster.as_str() == "east")
            .unwrap()
            .share
    };
    assert_eq!(home(0), 0.0);
    // Whoever was being served there still is.
    under_way.succeeded(start, Duration::from_millis(2));

    fixture.edit().drained.clear();
    balancer.update(
        start + Duration::from_secs(10),
        &fixture.service(),
        &fixture.peers,
    );
    assert_eq!(home(39), 0.0);
    assert!((home(55) - 0.5).abs() < 1e-9);
    assert_eq!(home(70), 1.0);
}

#[test]
fn a_cluster_comes_back_from_a_drain_by_and_by_though_others_share_its_priority() {
    let shared = || order(vec![tier(&["west", "north"], &[])]);
    for policy in [None, Some(shared())] {
        // Home is a caller only, or behind the two.
        let home = u32::from(policy.is_some()) * 3;
        let mut fixture = Fixture::new().with("west", "a", 3).with("north", "a", 3);
        if home > 0 {
            fixture = fixture.with("east", "a", home);
        }
        fixture.edit().policy = policy.map(Arc::new);
        fixture.edit().drained = ["west".parse().unwrap()].into();
        let start = Instant::now();
        let balancer = balancer(&fixture, start);
        let share = |second: u64, cluster: &str| {
            balancer.refresh(start + Duration::from_secs(second));
            let shares = balancer.explain();
            let of = shares.iter().filter(|of| of.cluster.as_str() == cluster);
            of.map(|of| of.share).sum::<f64>()
        };
        let close = |share: f64, wanted: f64| assert!((share - wanted).abs() < 1e-9, "{share}");
        close(share(0, "north"), 1.0);

        fixture.edit().drained.clear();
        let undrained = start + Duration::from_secs(10);
        balancer.update(undrained, &fixture.service(), &fixture.peers);
        close(share(39, "west"), 0.0);
        let west = |of: &&Share| of.cluster.as_str() == "west";
        let why = balancer.explain().iter().find(west).unwrap().why;
        let wanted = Why::HeldBack {
            health: 1.0,
            counted: 0.0,
        };
        assert_eq!(why, wanted);
        close(share(55, "west"), 0.25);
        // No choice waits for a refresh.
        let later = start + Duration::from_secs(62);
        let mut dice = random(5);
        let to_west = |_: &u32| {
            let pick = balancer.pick(later, &mut dice, Try::First).unwrap();
            pick.endpoint().cluster.as_str() == "west"
        };
        let measured = (0..REQUESTS).filter(to_west).count() as f64 / f64::from(REQUESTS);
        assert!((measured - 11.0 / 30.0).abs() < TOLERANCE, "{measured}");
        close(share(70, "west"), 0.5);
        close(share(70, "north"), 0.5);
    }
}

#[test]
fn what_others_cannot_take_comes_back_from_a_drain_at_once() {
    let mut fixture = Fixture::new().with("west", "a", 3).with("north", "a", 3);
    fixture.edit().drained = ["west".parse().unwrap()].into();
    let start = Instant::now();
    let balancer = balancer(&fixture, start);
    for at in 0..2 {
        fixture.change(&endpoint_id("north", "a", at), |of| of.ready = false);
    }
    fixture.edit().drained.clear();
    balancer.update(start, &fixture.service(), &fixture.peers);
    let spread = explained(&balancer.explain());
    let west = spread[&("west".to_owned(), "eu/a".to_owned())];
    assert!((west - (1.0 - 1.4 / 3.0)).abs() < 1e-9, "{spread:?}");
    assert_as_explained("undrained in need", &balancer, start);
}

#[test]
fn retries_count_against_the_cap() {
    let fixture = fixture(FailoverPolicy {
        max_remote_share: Some(20),
        ..FailoverPolicy::default()
    });
    let start = Instant::now();
    let balancer = balancer(&fixture, start);
    let mut dice = random(9);
    let mut abroad = 0;
    for _ in 0..REQUESTS {
        // Each request fails wherever it goes and is sent on, up to five times.
        let mut tried = Vec::new();
        balancer.admit();
        for turn in 0..5 {
            let of = match turn {
                0 => Try::First,
                _ => Try::Again(&tried),
            };
            let Ok(pick) = balancer.pick(start, &mut dice, of) else {
                break;
            };
            abroad += u32::from(pick.endpoint().cluster.as_str() != "east");
            tried.push(pick.endpoint().key());
            pick.failed(start, Failure::Gone);
        }
    }
    let cap = REQUESTS / 5;
    assert!(
        (cap..=cap + 100).contains(&abroad),
        "{abroad} of {REQUESTS}"
    );
}

/// One endpoint at home, which is lost or not ready, and two in west.
fn capped(percent: u32, home_ready: bool) -> Fixture {
    let mut fixture = Fixture::new().with("east", "a", 1).with("west", "a", 2);
    fixture.change(&endpoint_id("east", "a", 0), |of| of.ready = home_ready);
    fixture.edit().policy = Some(Arc::new(FailoverPolicy {
        max_remote_share: Some(percent),
        ..FailoverPolicy::default()
    }));
    fixture
}

fn is_abroad(pick: &Pick) -> bool {
    pick.endpoint().cluster.as_str() != "east"
}

#[test]
fn what_is_tried_at_home_is_no_reason_to_speak_of_the_cap() {
    let start = Instant::now();
    let balancer = balancer(&capped(0, true), start);
    let mut dice = random(2);
    balancer.admit();
    let pick = balancer.pick(start, &mut dice, Try::First).unwrap();
    let tried = [pick.endpoint().key()];
    pick.failed(start, Failure::Reset);
    let again = balancer.pick(start, &mut dice, Try::Again(&tried));
    assert_eq!(again.unwrap_err(), NoEndpoint::AllExcluded);
    // The round begins anew, at the only endpoint there is.
    let again = balancer.pick(start, &mut dice, Try::Again(&[])).unwrap();
    assert!(!is_abroad(&again));
}

#[test]
fn a_retry_may_leave_on_what_is_saved_and_a_first_try_by_its_share_alone() {
    let start = Instant::now();
    let balancer = balancer(&capped(10, false), start);
    let mut last = || u64::MAX;
    balancer.admit();
    let used = NoEndpoint::RemoteShareUsed { percent: 10 };
    // However often it is asked.
    for _ in 0..1000 {
        let refused = balancer.pick(start, &mut last, Try::First);
        assert_eq!(refused.unwrap_err(), used);
    }
    for _ in 0..100 {
        let again = balancer.pick(start, &mut last, Try::Again(&[])).unwrap();
        assert!(is_abroad(&again));
    }
    let refused = balancer.pick(start, &mut last, Try::Again(&[]));
    assert_eq!(refused.unwrap_err(), used);
}

#[test]
fn the_last_try_abroad_is_had_by_one() {
    let fixture = fixture(FailoverPolicy {
        max_remote_share: Some(20),
        ..order(vec![tier(&["west"], &[]), tier(&["Own"], &[])])
    });
    let start = Instant::now();
    let balancer = balancer(&fixture, start);
    // By the time at which it has chosen among west's, others have taken all there was.
    let mut drawn = false;
    let mut late = || {
        if std::mem::replace(&mut drawn, true) {
            let mut dice = || 0;
            let others = || balancer.pick(start, &mut dice, Try::First);
            let all = std::iter::repeat_with(others)
                .take(200)
                .take_while(|of| is_abroad(of.as_ref().unwrap()));
            assert!(all.count() <= 100);
        }
        0
    };
    let pick = balancer.pick(start, &mut late, Try::First).unwrap();
    assert!(!is_abroad(&pick) && drawn);
}

#[test]
fn a_policy_that_leaves_the_order_alone_leaves_damping_alone() {
    let mut fixture = Fixture::new().with("east", "a", 3).with("west", "a", 3);
    let start = Instant::now();
    let balancer = balancer(&fixture, start);
    let mut at = |second: u64, ready: bool, policy: Option<FailoverPolicy>| {
        for at in 0..3 {
            fixture.change(&endpoint_id("east", "a", at), |of| of.ready = ready);
        }
        fixture.edit().policy = policy.map(Arc::new);
        let now = start + Duration::from_secs(second);
        balancer.update(now, &fixture.service(), &fixture.peers);
        balancer.explain()[0].share
    };
    let plain = || Some(FailoverPolicy::default());
    assert_eq!(at(0, true, None), 1.0);
    assert_eq!(at(1, false, None), 0.0);
    assert_eq!(at(2, true, None), 0.0);
    assert_eq!(at(3, true, plain()), 0.0);
    assert_eq!(at(4, true, None), 0.0);
    // Priorities of another order are others.
    let other = order(vec![tier(&["Own"], &[])]);
    assert_eq!(at(5, true, Some(other)), 1.0);
}

#[test]
fn where_nothing_may_leave_home_is_asked_though_it_is_ejected() {
    let fixture = fixture(FailoverPolicy {
        max_remote_share: Some(0),
        ..FailoverPolicy::default()
    });
    let start = Instant::now();
    let balancer = balancer(&fixture, start);
    let mut dice = random(9);
    for _ in 0..200 {
        let pick = balancer.pick(start, &mut dice, Try::First).unwrap();
        assert_eq!(pick.endpoint().cluster.as_str(), "east");
        pick.failed(start, Failure::Connect);
    }
}

#[test]
fn an_order_of_nothing_is_the_default_order() {
    let mut plain = fixture(FailoverPolicy::default());
    let with = balancer(&plain, Instant::now()).explain();
    plain.edit().policy = None;
    let without = balancer(&plain, Instant::now()).explain();
    assert_eq!(with, without);
}

#[test]
fn a_locality_that_labels_divide_expects_no_more_than_it_announces() {
    let mut fixture = fixture(order(vec![TierMatch {
        labels: BTreeMap::from([("version".to_owned(), "v2".to_owned())]),
        ..TierMatch::default()
    }]));
    fixture.change(&endpoint_id("east", "a", 1), |of| {
        of.labels.insert("version".to_owned(), "v2".to_owned());
    });
    // Nine announced, three listed: one of three is v2, so three of nine are expected to be.
    fixture.capacity("east").localities[0].1 = 9;
    let shares = balancer(&fixture, Instant::now()).explain();
    let home = |share: &&Share| share.cluster.as_str() == "east" && &*share.locality.zone == "a";
    let expected: Vec<_> = shares
        .iter()
        .filter(home)
        .map(|of| of.endpoints_expected)
        .collect();
    assert_eq!(expected, [3, 6]);
}

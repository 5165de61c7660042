use std::collections::BTreeMap;

use super::*;
use crate::explain::Why;
use crate::ids::EndpointId;
use crate::model::FailbackConfig;
use crate::testing::{Fixture, endpoint_id, place, random};

/// A balancer, its clock and its dice.
pub(super) struct Bench {
    pub(super) fixture: Fixture,
    pub(super) balancer: Balancer,
    pub(super) now: Instant,
    random: Box<dyn FnMut() -> u64>,
}

impl Bench {
    pub(super) fn new(fixture: Fixture) -> Self {
        let random = Box::new(random(3));
        let balancer = Balancer::new(place(), 80, 1);
        let mut bench = Self {
            fixture,
            balancer,
            now: Instant::now(),
            random,
        };
        bench.update();
        bench
    }

    /// Three local endpoints, three in west.
    fn demo() -> Self {
        Self::new(Fixture::new().with("east", "a", 3).with("west", "a", 3))
    }

    pub(super) fn update(&mut self) {
        self.balancer
            .update(self.now, &self.fixture.service(), &self.fixture.peers);
    }

    fn pass(&mut self, seconds: f64) {
        self.now += Duration::from_secs_f64(seconds);
        self.balancer.refresh(self.now);
    }

    pub(super) fn pick(&mut self, exclude: &[EndpointId]) -> Result<Pick, NoEndpoint> {
        let endpoints = self.fixture.service().endpoints;
        let named = endpoints
            .iter()
            .filter(|endpoint| exclude.contains(&endpoint.id));
        let exclude: Vec<_> = named.map(|endpoint| endpoint.key()).collect();
        let of = match &*exclude {
            [] => Try::First,
            tried => Try::Again(tried),
        };
        self.balancer.pick(self.now, &mut self.random, of)
    }

    /// Fails one request on this endpoint.
    fn fail(&mut self, id: &EndpointId, failure: Failure) {
        self.pick_at(id).failed(self.now, failure);
    }

    /// A request that has no other choice than this endpoint.
    fn pick_at(&mut self, id: &EndpointId) -> Pick {
        let endpoints = self.fixture.service().endpoints;
        let others: Vec<EndpointId> = endpoints
            .iter()
            .map(|e| e.id.clone())
            .filter(|other| other != id)
            .collect();
        self.pick(&others).unwrap()
    }

    pub(super) fn set_ready(&mut self, ids: &[EndpointId], ready: bool) {
        for id in ids {
            self.fixture.change(id, |endpoint| endpoint.ready = ready);
        }
        self.update();
    }

    /// The share of a cluster as explained.
    pub(super) fn share(&self, cluster: &str) -> f64 {
        let shares = self.balancer.explain();
        shares
            .iter()
            .filter(|s| s.cluster.as_str() == cluster)
            .map(|s| s.share)
            .sum()
    }

    fn assert_share(&self, cluster: &str, expected: f64) {
        let share = self.share(cluster);
        assert!(
            (share - expected).abs() < 1e-3,
            "{cluster}: {share}, not {expected}"
        );
    }

    /// How many of so many picks an endpoint gets.
    fn measure_at(&mut self, id: &EndpointId, picks: u32) -> usize {
        let mut count = 0;
        for _ in 0..picks {
            count += usize::from(self.pick(&[]).unwrap().endpoint().id == *id);
        }
        count
    }

    /// The part of picks that each cluster gets.
    fn measure(&mut self, picks: u32) -> BTreeMap<String, f64> {
        let mut counts = BTreeMap::new();
        for _ in 0..picks {
            let cluster = self.pick(&[]).unwrap().endpoint().cluster.to_string();
            *counts.entry(cluster).or_insert(0.0) += 1.0 / f64::from(picks);
        }
        counts
    }
}

pub(super) fn east(at: u32) -> EndpointId {
    endpoint_id("east", "a", at)
}

pub(super) fn west(at: u32) -> EndpointId {
    endpoint_id("west", "a", at)
}

#[test]
fn all_healthy_stays_at_home() {
    let mut bench = Bench::demo();
    bench.assert_share("east", 1.0);
    let reason = bench.pick(&[]).unwrap().reason();
    assert_eq!((reason.priority, reason.rank), (0, Rank::OwnZone));
    assert!(!reason.spilled);
    assert_eq!(
        reason.to_string(),
        "priority 0 (own cluster, same zone), by share"
    );
    let west = &bench.balancer.explain()[1];
    assert_eq!(
        (west.why, west.priority, west.share),
        (Why::NotNeeded, 1, 0.0)
    );
}

#[test]
fn two_dead_of_three_spill_about_half_the_moment_connects_fail() {
    let mut bench = Bench::demo();
    bench.fail(&east(0), Failure::Connect);
    bench.assert_share("east", 0.9333);
    bench.fail(&east(1), Failure::Connect);
    bench.assert_share("east", 0.4667);
    bench.assert_share("west", 0.5333);
    let measured = bench.measure(20_000);
    assert!((measured["east"] - 0.4667).abs() < 0.02, "{measured:?}");
    let spilled = bench.pick_at(&west(0));
    assert!(spilled.reason().spilled);
}

#[test]
fn the_worked_example_of_the_documentation() {
    for (home, away, expected) in [
        (3, 3, 1.0),
        (2, 3, 0.933),
        (1, 3, 0.467),
        (0, 3, 0.0),
        (1, 0, 1.0),
        (1, 1, 0.5),
    ] {
        let mut bench = Bench::demo();
        let dead = (home..3)
            .map(east)
            .chain((away..3).map(west))
            .collect::<Vec<_>>();
        bench.set_ready(&dead, false);
        bench.assert_share("east", expected);
        bench.assert_share("west", 1.0 - expected);
    }
}

#[test]
fn the_same_when_discovery_says_so_even_if_it_no_longer_lists_them() {
    let mut bench = Bench::demo();
    bench.set_ready(&[east(0), east(1)], false);
    bench.assert_share("east", 0.4667);
    bench
        .fixture
        .edit()
        .endpoints
        .retain(|e| e.id != east(0) && e.id != east(1));
    bench.update();
    bench.assert_share("east", 0.4667);
}

#[test]
fn more_endpoints_than_expected_count_as_expected() {
    let mut bench = Bench::demo();
    bench.fixture.capacity("east").localities[0].1 = 1;
    bench.set_ready(&[east(0), east(1)], false);
    bench.assert_share("east", 0.4667);
}

#[test]
fn a_zone_that_expects_nothing_is_no_priority() {
    let bench = Bench::new(Fixture::new().with("east", "b", 2).with("west", "a", 2));
    let shares = bench.balancer.explain();
    assert_eq!((shares[0].priority, shares[0].rank), (0, Rank::OwnRegion));
    assert_eq!((shares[1].priority, shares[1].rank), (1, Rank::PeerZone));
    bench.assert_share("east", 1.0);
}

#[test]
fn zones_of_the_own_cluster_come_before_other_clusters() {
    let fixture = Fixture::new()
        .with("east", "a", 2)
        .with("east", "b", 2)
        .with("west", "a", 2);
    let mut bench = Bench::new(fixture);
    bench.set_ready(&[east(0)], false);
    let shares: Vec<f64> = bench.balancer.explain().iter().map(|s| s.share).collect();
    assert!((shares[0] - 0.7).abs() < 1e-9 && (shares[1] - 0.3).abs() < 1e-9 && shares[2] == 0.0);
}

#[test]
fn an_exclusion_concerns_one_cluster() {
    let mut fixture = Fixture::new().with("east", "a", 1).with("west", "a", 1);
    // A standalone operator may use the same UID in both clusters.
    fixture.change(&west(0), |endpoint| endpoint.id = east(0));
    let mut bench = Bench::new(fixture);
    let home = bench.pick(&[]).unwrap().endpoint().key();
    assert_eq!(home.cluster.as_str(), "east");
    let away = bench.balancer.pick(
        bench.now,
        &mut random(1),
        Try::Again(std::slice::from_ref(&home)),
    );
    let away = away.unwrap().endpoint().key();
    assert_eq!((away.cluster.as_str(), &away.id), ("west", &home.id));
}

#[test]
fn an_excluded_priority_falls_through_to_the_next_and_back() {
    let mut bench = Bench::demo();
    let home = [east(0), east(1), east(2)];
    let pick = bench.pick(&home).unwrap();
    assert_eq!(pick.endpoint().cluster.as_str(), "west");
    assert_eq!(pick.reason().choice, Choice::NextPriority);
    // All load belongs in west; with west tried, what is left at home is used.
    bench.set_ready(&[east(0), east(1)], false);
    let pick = bench.pick(&[west(0), west(1), west(2)]).unwrap();
    assert_eq!(pick.endpoint().id, east(2));
    let all = [west(0), west(1), west(2), east(2)];
    assert_eq!(bench.pick(&all).unwrap_err(), NoEndpoint::AllExcluded);
}

#[test]
fn clusters_without_the_port_contribute_nothing() {
    let mut bench = Bench::demo();
    bench.fixture.capacity("west").ports = vec![81];
    bench.set_ready(&[east(0), east(1)], false);
    bench.assert_share("east", 1.0);
    assert_eq!(bench.balancer.explain()[1].why, Why::PortNotExposed);
    bench.set_ready(&[east(2)], false);
    assert_eq!(bench.pick(&[]).unwrap_err(), NoEndpoint::NoneReady);
    bench.fixture.capacity("east").ports.clear();
    bench.update();
    assert_eq!(
        bench.pick(&[]).unwrap_err(),
        NoEndpoint::PortNotExposed { port: 80 }
    );
}

#[test]
fn unusable_peers_get_nothing_not_even_in_panic() {
    let mut bench = Bench::demo();
    bench.fixture.peers.clear();
    bench.set_ready(&[east(0), east(1), east(2)], false);
    assert_eq!(bench.pick(&[]).unwrap_err(), NoEndpoint::NoneReady);
    assert_eq!(bench.balancer.explain()[1].why, Why::PeerUnusable);
    bench.fixture.edit().endpoints.clear();
    bench.fixture.edit().clusters.remove("east");
    bench.update();
    assert_eq!(bench.pick(&[]).unwrap_err(), NoEndpoint::PeersUnusable);
}

#[test]
fn empty_and_unknown_are_told_apart() {
    let balancer = Balancer::new(place(), 80, 1);
    let now = Instant::now();
    assert_eq!(
        balancer.pick(now, &mut random(1), Try::First).unwrap_err(),
        NoEndpoint::NotYetKnown
    );
    assert_eq!(balancer.refresh(now), None);
    assert_eq!(
        balancer.pick(now, &mut random(1), Try::First).unwrap_err(),
        NoEndpoint::NotYetKnown
    );
    let fixture = Fixture::new();
    balancer.update(now, &fixture.service(), &fixture.peers);
    assert_eq!(
        balancer.pick(now, &mut random(1), Try::First).unwrap_err(),
        NoEndpoint::NoneListed
    );
    assert!(balancer.explain().is_empty());
}

#[test]
fn errors_eject_only_five_in_a_row_and_gone_never() {
    let mut bench = Bench::demo();
    for _ in 0..10 {
        bench.fail(&east(0), Failure::Gone);
    }
    for _ in 0..4 {
        bench.fail(&east(0), Failure::Status5xx);
    }
    bench
        .pick_at(&east(0))
        .succeeded(bench.now, Duration::from_millis(2));
    for _ in 0..4 {
        bench.fail(&east(0), Failure::Timeout);
    }
    bench.assert_share("east", 1.0);
    bench.fail(&east(0), Failure::Status5xx);
    bench.assert_share("east", 0.9333);
}

#[test]
fn an_outcome_counts_once_but_a_late_reset_counts() {
    let mut bench = Bench::demo();
    let pick = bench.pick_at(&east(0));
    for _ in 0..20 {
        pick.failed(bench.now, Failure::Timeout);
    }
    bench.assert_share("east", 1.0);
    let pick = bench.pick_at(&east(0));
    pick.succeeded(bench.now, Duration::from_millis(1));
    pick.failed(bench.now, Failure::Reset);
    bench.assert_share("east", 0.9333);
}

#[test]
fn stragglers_of_one_loss_do_not_lengthen_the_ejection() {
    let mut bench = Bench::demo();
    let picks: Vec<Pick> = (0..5).map(|_| bench.pick_at(&east(0))).collect();
    for pick in &picks {
        pick.failed(bench.now, Failure::Reset);
    }
    assert_eq!(
        bench.balancer.refresh(bench.now),
        Some(Duration::from_secs(5))
    );
    // Nor does a good answer to an earlier request end it.
    let bench_now = bench.now;
    let mut other = Bench::demo();
    let early = other.pick_at(&east(0));
    other.fail(&east(0), Failure::Reset);
    early.succeeded(bench_now, Duration::from_millis(1));
    other.assert_share("east", 0.9333);
}

#[test]
fn a_half_open_endpoint_gets_one_request_at_a_time_and_returns_with_a_good_answer() {
    let mut bench = Bench::demo();
    bench.fail(&east(0), Failure::Connect);
    bench.pass(4.9);
    assert!((0..1000).all(|_| bench.pick(&[]).unwrap().endpoint().id != east(0)));
    bench.pass(0.1);
    // A retry is not used to try things.
    assert_ne!(bench.pick(&[west(0)]).unwrap().endpoint().id, east(0));
    // Nor is one that starts its round anew.
    let again = bench
        .balancer
        .pick(bench.now, &mut random(1), Try::Again(&[]));
    assert_ne!(again.unwrap().endpoint().id, east(0));
    let trial = bench.pick(&[]).unwrap();
    assert_eq!(
        (trial.endpoint().id.clone(), trial.reason().choice),
        (east(0), Choice::Trial)
    );
    assert!((0..100).all(|_| bench.pick(&[]).unwrap().endpoint().id != east(0)));
    bench.assert_share("east", 0.9333);
    drop(trial); // The caller went away: nothing learnt, the place is free again.
    let trial = bench.pick(&[]).unwrap();
    assert_eq!(trial.endpoint().id, east(0));
    trial.failed(bench.now, Failure::Connect);
    drop(trial);
    bench.pass(9.0);
    assert_ne!(bench.pick(&[]).unwrap().reason().choice, Choice::Trial);
    bench.pass(1.0);
    let trial = bench.pick(&[]).unwrap();
    trial.succeeded(bench.now, Duration::from_millis(2));
    assert_eq!(bench.balancer.explain()[0].endpoints_available, 3);
    // Its traffic comes home damped.
    bench.assert_share("east", 0.9333);
    bench.pass(60.0);
    bench.assert_share("east", 1.0);
}

#[test]
fn a_single_error_on_trial_is_enough() {
    let mut bench = Bench::demo();
    bench.fail(&east(0), Failure::Connect);
    bench.pass(5.0);
    bench
        .pick(&[])
        .unwrap()
        .failed(bench.now, Failure::Status5xx);
    assert_eq!(
        bench.balancer.refresh(bench.now),
        Some(Duration::from_secs(10))
    );
}

#[test]
fn ejected_endpoints_that_no_request_would_reach_are_not_tried() {
    let mut bench = Bench::demo();
    bench.set_ready(&[east(0), east(1), east(2)], false);
    bench.fail(&west(0), Failure::Connect);
    bench.set_ready(&[east(0), east(1), east(2)], true);
    bench.pass(100.0);
    let picks: Vec<Pick> = (0..100).map(|_| bench.pick(&[]).unwrap()).collect();
    assert!(
        picks
            .iter()
            .all(|pick| pick.endpoint().cluster.as_str() == "east")
    );
}

#[test]
fn ejected_endpoints_that_spill_over_would_reach_are_tried_though_home_could_recover() {
    let mut bench = Bench::demo();
    for id in [east(0), east(1), west(0), west(1), west(2)] {
        bench.fail(&id, Failure::Connect);
    }
    bench.assert_share("east", 1.0);
    bench.pass(5.0);
    let trials: Vec<Pick> = (0..5).map(|_| bench.pick(&[]).unwrap()).collect();
    assert!(
        trials
            .iter()
            .all(|pick| pick.reason().choice == Choice::Trial)
    );
    for trial in trials.iter().filter(|pick| pick.reason().spilled) {
        trial.succeeded(bench.now, Duration::from_millis(2));
    }
    bench.assert_share("west", 0.5333);
}

#[test]
fn a_new_snapshot_does_not_break_a_row_of_errors() {
    let mut bench = Bench::demo();
    for _ in 0..5 {
        bench.assert_share("east", 1.0);
        bench.fail(&east(0), Failure::Status5xx);
        bench.update();
    }
    bench.assert_share("east", 0.9333);
}

#[test]
fn when_all_is_ejected_all_is_used_and_the_first_good_answer_counts() {
    let mut bench = Bench::demo();
    for id in [east(0), east(1), east(2), west(0), west(1)] {
        bench.fail(&id, Failure::Reset);
    }
    // Total health is below 1, yet what is not ejected is preferred.
    assert!((0..100).all(|_| bench.pick(&[]).unwrap().endpoint().id == west(2)));
    let reserve = bench.pick(&[west(2)]).unwrap();
    assert_eq!(reserve.reason().choice, Choice::Panic);
    bench.fail(&west(2), Failure::Reset);
    bench.assert_share("east", 0.5);
    assert_eq!(bench.balancer.explain()[0].why, Why::Panic);
    let pick = bench.pick(&[]).unwrap();
    assert_eq!(pick.reason().choice, Choice::Panic);
    let survivor = pick.endpoint().id.clone();
    pick.succeeded(bench.now, Duration::from_millis(1));
    assert!((0..100).all(|_| bench.pick(&[]).unwrap().endpoint().id == survivor));
}

#[test]
fn not_ready_endpoints_stay_out_of_panic() {
    let mut bench = Bench::demo();
    bench.fixture.peers.clear();
    bench.set_ready(&[east(0), east(1)], false);
    bench.fail(&east(2), Failure::Connect);
    assert!((0..100).all(|_| bench.pick(&[]).unwrap().endpoint().id == east(2)));
    assert_eq!(bench.pick(&[east(2)]).unwrap_err(), NoEndpoint::AllExcluded);
}

/// Tells of this incarnation of an endpoint.
fn restart(bench: &mut Bench, to: u64) {
    bench
        .fixture
        .change(&east(0), |endpoint| endpoint.incarnation = to);
    bench.update();
}

fn ejected(bench: &Bench) -> u32 {
    let shares = bench.balancer.explain();
    shares.iter().map(|share| share.endpoints_ejected).sum()
}

#[test]
fn a_restart_ends_an_ejection_once() {
    let mut bench = Bench::demo();
    restart(&mut bench, 1);
    let straggler = bench.pick_at(&east(0));
    bench.fail(&east(0), Failure::Connect);
    assert_eq!(ejected(&bench), 1);
    restart(&mut bench, 2);
    assert_eq!(ejected(&bench), 0);
    // What was sent to the process before says nothing about this one.
    straggler.failed(bench.now, Failure::Reset);
    assert_eq!(ejected(&bench), 0);
    bench.fail(&east(0), Failure::Connect);
    // Neither being told the same again, nor an older record, nor flapping helps.
    for incarnation in [2, 1, 2] {
        restart(&mut bench, incarnation);
        bench.set_ready(&[east(0)], false);
        bench.set_ready(&[east(0)], true);
        assert_eq!(ejected(&bench), 1);
    }
    bench.pass(60.0);
    restart(&mut bench, 3);
    assert_eq!(ejected(&bench), 0);
}

#[test]
fn who_restarts_all_the_time_is_out_of_rotation_as_long_as_who_does_not() {
    let mut bench = Bench::demo();
    restart(&mut bench, 1);
    let mut out = 0;
    for second in 2..122 {
        bench.pass(1.0);
        restart(&mut bench, second);
        match ejected(&bench) {
            0 => bench.fail(&east(0), Failure::Connect),
            _ => out += 1,
        }
    }
    // In rotation for a moment at the beginning and after each of the pardons.
    assert!(out >= 117, "{out} of 120 s");
}

#[test]
fn a_restart_does_not_make_the_next_ejection_a_first_one() {
    let mut bench = Bench::demo();
    restart(&mut bench, 1);
    bench.fail(&east(0), Failure::Connect);
    restart(&mut bench, 2);
    bench.fail(&east(0), Failure::Connect);
    // Not half-open before 10 s.
    let second = Duration::from_secs(10);
    assert_eq!(bench.balancer.refresh(bench.now), Some(second));
}

#[test]
fn an_incarnation_that_becomes_known_is_no_restart() {
    let mut bench = Bench::demo();
    let unknown = bench.pick_at(&east(0));
    bench.fail(&east(0), Failure::Connect);
    // As in an upgrade, and while those who tell are of both versions.
    for incarnation in [7, 0, 7, 0, 7] {
        restart(&mut bench, incarnation);
        assert_eq!(ejected(&bench), 1);
    }
    restart(&mut bench, 0);
    restart(&mut bench, 8);
    assert_eq!(ejected(&bench), 0);
    // Of which process it was is not known.
    unknown.failed(bench.now, Failure::Reset);
    assert_eq!(ejected(&bench), 1);
}

#[test]
fn errors_of_the_process_before_do_not_count_against_the_next() {
    let mut bench = Bench::demo();
    restart(&mut bench, 1);
    let stragglers: Vec<_> = (0..20).map(|_| bench.pick_at(&east(0))).collect();
    for _ in 0..4 {
        bench.fail(&east(0), Failure::Status5xx);
    }
    restart(&mut bench, 2);
    let answered = |bench: &mut Bench, at: u32| {
        let pick = bench.pick_at(&east(at));
        pick.succeeded(bench.now, Duration::from_millis(2));
    };
    (0..3).for_each(|at| answered(&mut bench, at));
    bench.pass(10.0);
    for straggler in stragglers {
        straggler.failed(bench.now, Failure::Timeout);
    }
    bench.fail(&east(0), Failure::Status5xx);
    assert_eq!(ejected(&bench), 0);
    // Nor do they make it look slow.
    (0..3).for_each(|at| answered(&mut bench, at));
    assert!(bench.measure_at(&east(0), 3_000) > 900);
}

#[test]
fn an_endpoint_that_is_not_ready_is_pardoned_when_it_is() {
    let mut bench = Bench::demo();
    restart(&mut bench, 1);
    bench.fail(&east(0), Failure::Connect);
    bench.fixture.change(&east(0), |endpoint| {
        (endpoint.incarnation, endpoint.ready) = (2, false);
    });
    bench.update();
    bench.set_ready(&[east(0)], true);
    assert_eq!(bench.balancer.explain()[0].endpoints_available, 3);
}

#[test]
fn what_comes_back_has_a_clean_record() {
    let mut bench = Bench::demo();
    let all_home = [east(0), east(1), east(2)];
    bench.set_ready(&all_home, false);
    for at in 0..3 {
        bench.fail(&west(at), Failure::Reset);
    }
    // The link was lost and returns.
    bench.fixture.peers.insert("west".parse().unwrap(), false);
    bench.update();
    bench.fixture.peers.insert("west".parse().unwrap(), true);
    bench.update();
    assert_eq!(bench.balancer.explain()[1].endpoints_available, 3);
    // An endpoint restarts elsewhere, or says that it is ready again.
    bench.set_ready(&all_home, true);
    bench.pass(100.0);
    bench.fail(&east(0), Failure::Connect);
    bench.fail(&east(1), Failure::Connect);
    bench.fixture.change(&east(0), |e| {
        e.address = Some("127.0.0.1:4".parse().unwrap());
    });
    bench.set_ready(&[east(1)], false);
    bench.set_ready(&[east(1)], true);
    assert_eq!(bench.balancer.explain()[0].endpoints_available, 3);
}

#[test]
fn load_and_ejections_survive_a_new_snapshot() {
    let mut bench = Bench::demo();
    bench.fail(&east(0), Failure::Connect);
    bench.update();
    bench.assert_share("east", 0.9333);
    let held: Vec<Pick> = (0..40).map(|_| bench.pick_at(&east(1))).collect();
    bench.update();
    let other = (0..20)
        .filter(|_| bench.pick(&[]).unwrap().endpoint().id == east(2))
        .count();
    assert!(other >= 18);
    drop(held);
}

#[test]
fn traffic_comes_home_after_hold_and_ramp_without_refresh() {
    let mut bench = Bench::demo();
    bench.fixture.edit().failback = FailbackConfig {
        hold: Duration::from_secs(2),
        ramp: Duration::from_secs(3),
    };
    bench.update();
    let all = [east(0), east(1), east(2)];
    bench.set_ready(&all, false);
    bench.assert_share("east", 0.0);
    bench.set_ready(&all, true);
    bench.assert_share("east", 0.0);
    assert_eq!(
        bench.balancer.refresh(bench.now),
        Some(Duration::from_secs(2))
    );
    bench.now += Duration::from_secs_f64(3.5);
    let measured = bench.measure(10_000);
    assert!((measured["east"] - 0.5).abs() < 0.03, "{measured:?}");
    bench.pass(0.0);
    bench.assert_share("east", 0.5);
    assert_eq!(
        bench.balancer.explain()[0].why,
        Why::HeldBack {
            health: 1.0,
            counted: 0.5
        }
    );
    bench.now += Duration::from_secs_f64(1.5);
    assert_eq!(bench.measure(100).get("west"), None);
    assert_eq!(bench.balancer.refresh(bench.now), None);
}

#[test]
fn nothing_is_held_back_at_start_up() {
    let mut bench = Bench::new(Fixture::new().with("west", "a", 3));
    bench.assert_share("west", 1.0);
    bench.fixture = Fixture::new().with("east", "a", 1).with("west", "a", 3);
    bench.update();
    bench.assert_share("east", 1.0);
    bench.fixture = Fixture::new().with("east", "a", 3).with("west", "a", 3);
    bench.set_ready(&[east(1), east(2)], false);
    bench.assert_share("east", 0.4667);
    bench.set_ready(&[east(1)], true);
    bench.assert_share("east", 0.9333);
    bench.set_ready(&[east(2)], true);
    bench.assert_share("east", 1.0);
}

#[test]
fn held_back_traffic_comes_home_at_once_when_the_other_cluster_is_lost() {
    let mut bench = Bench::demo();
    let all = [east(0), east(1), east(2)];
    bench.set_ready(&all, false);
    bench.set_ready(&all, true);
    bench.assert_share("east", 0.0);
    bench.fixture.peers.clear();
    bench.update();
    bench.assert_share("east", 1.0);
}

#[test]
fn weights_count_while_idle_and_under_load() {
    let mut fixture = Fixture::new().with("east", "a", 2);
    fixture.change(&east(0), |endpoint| endpoint.weight = 3);
    let mut bench = Bench::new(fixture);
    let idle = (0..4000)
        .filter(|_| bench.pick(&[]).unwrap().endpoint().id == east(0))
        .count();
    assert!((2800..3200).contains(&idle), "{idle}");
    let held: Vec<Pick> = (0..400).map(|_| bench.pick(&[]).unwrap()).collect();
    let busy = held
        .iter()
        .filter(|pick| pick.endpoint().id == east(0))
        .count();
    assert!((280..320).contains(&busy), "{busy}");
}

#[test]
fn sources_use_different_subsets_and_together_all() {
    let fixture = Fixture::new().with("east", "a", 100);
    let mut used = std::collections::BTreeSet::new();
    for seed in 0..40 {
        let balancer = Balancer::new(place(), 80, seed);
        let now = Instant::now();
        balancer.update(now, &fixture.service(), &fixture.peers);
        let mut random = random(seed);
        let mut pick = || {
            balancer
                .pick(now, &mut random, Try::First)
                .unwrap()
                .endpoint()
                .id
                .clone()
        };
        let own: std::collections::BTreeSet<_> = (0..2000).map(|_| pick()).collect();
        assert_eq!(own.len(), crate::pick::SUBSET);
        used.extend(own);
    }
    assert!(used.len() > 95);
}

#[test]
fn many_threads_pick_report_and_update_at_once() {
    let bench = Bench::demo();
    let (balancer, start) = (&bench.balancer, bench.now);
    let service = bench.fixture.service();
    let failures = [
        Failure::Connect,
        Failure::Status5xx,
        Failure::Gone,
        Failure::Timeout,
    ];
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let (service, peers) = (&service, &bench.fixture.peers);
            scope.spawn(move || {
                let mut random = random(thread);
                for round in 0..2000u64 {
                    let now = start + Duration::from_millis(10 * round);
                    if round % 50 == 0 {
                        balancer.update(now, service, peers);
                    }
                    let pick = balancer.pick(now, &mut random, Try::First).unwrap();
                    match random() % 8 {
                        0 => pick.failed(now, failures[(random() % 4) as usize]),
                        _ => pick.succeeded(now, Duration::from_millis(2)),
                    }
                }
            });
        }
    });
    let plan = bench.balancer.shared.plan.load();
    let tiers = &Option::as_ref(&plan).unwrap().tiers;
    let mut candidates = tiers
        .iter()
        .flat_map(|tier| tier.pools.iter().chain(&tier.reserve))
        .flat_map(|pool| &pool.candidates);
    assert!(candidates.all(|candidate| candidate.vitals.load.in_flight() == 0));
    let sum: f64 = bench
        .balancer
        .explain()
        .iter()
        .map(|share| share.share)
        .sum();
    assert!((sum - 1.0).abs() < 1e-9);
}

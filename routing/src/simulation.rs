//! A discrete-event simulation of one source that keeps a number of requests in flight over
//! several endpoints: what the choice of two by load comes to. Deterministic.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::{Duration, Instant};

use crate::balancer::{Balancer, Pick, Try};
use crate::ids::EndpointId;
use crate::testing::{Fixture, endpoint_id, place, random};

const ENDPOINTS: u32 = 6;
const IN_FLIGHT: usize = 32;

/// How long the endpoint with this number takes for a request that begins at this time.
type Service = fn(u32, Duration) -> Duration;

struct World {
    balancer: Balancer,
    names: BTreeMap<EndpointId, u32>,
    start: Instant,
    /// Added to every answer.
    network: Duration,
    service: Service,
}

impl World {
    fn new(cluster: &str, network: Duration, service: Service) -> Self {
        // The own cluster has no endpoints when they are all remote.
        let fixture = Fixture::new().with(cluster, "a", ENDPOINTS);
        let balancer = Balancer::new(place(), 80, 1);
        let start = Instant::now();
        balancer.update(start, &fixture.service(), &fixture.peers);
        let names = (0..ENDPOINTS)
            .map(|at| (endpoint_id(cluster, "a", at), at))
            .collect();
        Self {
            balancer,
            names,
            start,
            network,
            service,
        }
    }

    /// Runs for `length` with `in_flight` requests always under way; counts those that begin
    /// after `from`, per endpoint as multiples of its fair share.
    fn run(&self, in_flight: usize, from: Duration, length: Duration) -> Vec<f64> {
        let mut random = random(7);
        let mut under_way: BinaryHeap<Reverse<(Duration, usize)>> = BinaryHeap::new();
        let mut picks: Vec<Option<(Pick, Duration)>> = (0..in_flight).map(|_| None).collect();
        let mut counts = vec![0u32; ENDPOINTS as usize];
        let mut met = vec![false; ENDPOINTS as usize];
        under_way.extend((0..in_flight).map(|slot| Reverse((Duration::ZERO, slot))));
        while let Some(Reverse((now, slot))) = under_way.pop() {
            if let Some((pick, began)) = picks[slot].take() {
                pick.succeeded(self.start + now, now - began);
            }
            if now >= length {
                continue;
            }
            let pick = self
                .balancer
                .pick(self.start + now, &mut random, Try::First)
                .unwrap();
            let at = self.names[&pick.endpoint().id];
            counts[at as usize] += u32::from(now >= from);
            // Up to a tenth of jitter, and the first request pays for the handshake.
            let jitter = self
                .service_time(at, now)
                .mul_f64(random() as f64 / u64::MAX as f64 / 10.0);
            let handshake = if std::mem::replace(&mut met[at as usize], true) {
                0
            } else {
                8
            };
            let took = self.service_time(at, now) + jitter + Duration::from_millis(handshake);
            picks[slot] = Some((pick, now));
            under_way.push(Reverse((now + took, slot)));
        }
        let fair = f64::from(counts.iter().sum::<u32>()) / f64::from(ENDPOINTS);
        counts
            .into_iter()
            .map(|count| f64::from(count) / fair)
            .collect()
    }

    fn service_time(&self, at: u32, now: Duration) -> Duration {
        (self.service)(at, now) + self.network
    }
}

fn equal(_: u32, _: Duration) -> Duration {
    Duration::from_millis(2)
}

fn one_ten_times_slower(at: u32, _: Duration) -> Duration {
    Duration::from_millis(if at == 0 { 20 } else { 2 })
}

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

const LOCAL: (&str, Duration) = ("east", Duration::ZERO);
const REMOTE: (&str, Duration) = ("west", Duration::from_millis(20));
const NEAR_REMOTE: (&str, Duration) = ("west", Duration::from_micros(500));

fn assert_fair(shares: &[f64]) {
    assert!(
        shares.iter().all(|share| (0.5..=1.5).contains(share)),
        "{shares:?}"
    );
}

#[test]
fn equal_endpoints_get_equal_shares_here_and_behind_the_tunnel() {
    for (cluster, network) in [LOCAL, NEAR_REMOTE, REMOTE] {
        let world = World::new(cluster, network, equal);
        let shares = world.run(IN_FLIGHT, Duration::ZERO, seconds(5));
        assert_fair(&shares);
        let alone = World::new(cluster, network, equal).run(1, Duration::ZERO, seconds(60));
        assert_fair(&alone);
    }
}

#[test]
fn a_ten_times_slower_endpoint_falls_below_a_third_of_its_share() {
    // Behind 20 ms of tunnel an endpoint that takes 20 ms is only twice as slow; there the
    // slow one takes ten times the whole.
    fn slow_behind_tunnel(at: u32, _: Duration) -> Duration {
        Duration::from_millis(if at == 0 { 200 } else { 2 })
    }
    let worlds = [
        World::new(LOCAL.0, LOCAL.1, one_ten_times_slower),
        World::new(NEAR_REMOTE.0, NEAR_REMOTE.1, one_ten_times_slower),
        World::new(REMOTE.0, REMOTE.1, slow_behind_tunnel),
    ];
    for world in worlds {
        let shares = world.run(IN_FLIGHT, Duration::ZERO, seconds(5));
        assert!(shares[0] < 0.3, "{shares:?}");
        assert_fair(&shares[1..]);
    }
}

#[test]
fn a_slow_endpoint_is_avoided_by_a_single_connection_too() {
    let world = World::new(LOCAL.0, LOCAL.1, one_ten_times_slower);
    let shares = world.run(1, Duration::ZERO, seconds(60));
    assert!(shares[0] < 0.1, "{shares:?}");
}

#[test]
fn an_endpoint_that_has_recovered_gets_its_share_again() {
    fn slow_at_first(at: u32, now: Duration) -> Duration {
        Duration::from_millis(if at == 0 && now < Duration::from_secs(5) {
            200
        } else {
            2
        })
    }
    for in_flight in [1, IN_FLIGHT] {
        let world = World::new(LOCAL.0, LOCAL.1, slow_at_first);
        assert_fair(&world.run(in_flight, seconds(35), seconds(60)));
    }
}

#[test]
fn one_pause_does_not_empty_an_endpoint() {
    fn one_pause(at: u32, now: Duration) -> Duration {
        let paused = at == 0 && (1000..1003).contains(&now.as_millis());
        Duration::from_millis(if paused { 100 } else { 2 })
    }
    let world = World::new(LOCAL.0, LOCAL.1, one_pause);
    assert_fair(&world.run(IN_FLIGHT, Duration::ZERO, seconds(10)));
}

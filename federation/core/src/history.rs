//! What callers here have been shown of each service lately, so that what they do because of
//! it (traffic that is held back after a failure) can be told.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use linkspan_routing::{Moment, UsablePeers};

use crate::capacity;
use crate::model::{Service, ServiceKey};
use crate::plan::Desired;

/// Moments kept of each service: more than a failure and its recovery have steps, endpoint by
/// endpoint.
const KEPT: usize = 16;

/// The last moments of every service.
#[derive(Clone, Debug, Default)]
pub struct History {
    services: BTreeMap<ServiceKey, Past>,
}

/// What is remembered of one service.
#[derive(Clone, Debug, Default)]
pub struct Past {
    /// Oldest first.
    moments: VecDeque<Moment>,
    /// Whether there were others before.
    forgot: bool,
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
            let past = self.services.entry(key.clone()).or_default();
            past.observe(service, &peers, now);
        }
    }

    /// What is remembered of one service.
    pub fn of(&self, service: &ServiceKey) -> Past {
        self.services.get(service).cloned().unwrap_or_default()
    }
}

impl Past {
    fn observe(&mut self, service: &Arc<Service>, peers: &UsablePeers, now: Instant) {
        let shown = |last: &Moment| last.service == *service && last.peers == *peers;
        if self.moments.back().is_some_and(shown) {
            return;
        }
        let moment = Moment {
            at: now,
            service: Arc::clone(service),
            peers: peers.clone(),
        };
        if self.moments.len() == KEPT && !self.fold() {
            self.moments.pop_front();
            self.forgot = true;
        }
        self.moments.push_back(moment);
    }

    /// Makes room for one where nothing is lost by it. A mark of capacity falls for ten minutes,
    /// in many steps: when it began says when health began to rise; of what is long ago, only
    /// how far it then came matters.
    fn fold(&mut self) -> bool {
        let alike = |at: usize| {
            differ_by_capacity_alone(&self.moments[at - 2], &self.moments[at - 1])
                && differ_by_capacity_alone(&self.moments[at - 1], &self.moments[at])
        };
        let Some(at) = (2..self.moments.len()).find(|at| alike(*at)) else {
            return false;
        };
        if let Some(folded) = self.moments.remove(at) {
            self.moments[at - 1].service = folded.service;
        }
        true
    }

    /// The moments, oldest first.
    pub fn moments(&self) -> impl Iterator<Item = &Moment> {
        self.moments.iter()
    }

    /// Since when callers may have seen what is not remembered and still act upon it; none if
    /// there is no such thing. That is for as long as a loss is felt: until marks of capacity
    /// have fallen, and what came back has been held down and ramped.
    pub fn too_short_since(&self, now: Instant) -> Option<Duration> {
        let (first, last) = self.moments.front().zip(self.moments.back())?;
        let failback = last.service.failback;
        let felt = [capacity::DECAY, failback.hold, failback.ramp];
        let felt = felt
            .into_iter()
            .fold(Duration::ZERO, Duration::saturating_add);
        let age = now.saturating_duration_since(first.at);
        (self.forgot && age < felt).then_some(age)
    }
}

/// Whether callers were shown the same but for how many endpoints there should be.
fn differ_by_capacity_alone(one: &Moment, other: &Moment) -> bool {
    let (a, b) = (&*one.service, &*other.service);
    let ports = |of: &Service| -> Vec<_> {
        let clusters = of.clusters.iter();
        clusters
            .map(|(cluster, capacity)| (cluster.clone(), capacity.ports.clone()))
            .collect()
    };
    one.peers == other.peers
        && a.endpoints == b.endpoints
        && a.ports == b.ports
        && (a.failback, &a.policy, &a.drained) == (b.failback, &b.policy, &b.drained)
        && ports(a) == ports(b)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use linkspan_routing::{Place, rehearse};

    use super::*;
    use crate::model::{AppProtocol, ClusterCapacity, FailbackConfig, Locality, ServicePort};
    use crate::testing::endpoint;

    const PORT: u16 = 80;

    /// So many endpoints of two clusters, of which `east` should have more.
    fn shown(east: u32, expected: u32) -> Service {
        let numbers = |cluster: &'static str, count: u32| {
            (0..count).map(move |at| endpoint(cluster, "shop/checkout", &format!("{cluster}-{at}")))
        };
        let endpoints = numbers("east", east).chain(numbers("west", 20));
        let capacity = |count| ClusterCapacity {
            localities: vec![(Locality::unknown(), count)],
            ports: vec![PORT],
        };
        Service {
            key: crate::testing::service("shop/checkout"),
            ports: vec![ServicePort {
                name: None,
                port: PORT,
                app_protocol: AppProtocol::Http,
            }],
            clusters: [("east", expected), ("west", 20)]
                .map(|(cluster, count)| (cluster.parse().expect("good"), capacity(count)))
                .into(),
            endpoints: endpoints.map(|of| of.endpoint).collect(),
            failback: FailbackConfig::default(),
            policy: None,
            drained: BTreeSet::new(),
        }
    }

    struct World {
        start: Instant,
        past: Past,
        /// Everything.
        all: Vec<Moment>,
    }

    impl World {
        fn new() -> Self {
            Self {
                start: Instant::now(),
                past: Past::default(),
                all: Vec::new(),
            }
        }

        fn show(&mut self, second: u64, service: Service) {
            let (at, service) = (self.start + Duration::from_secs(second), Arc::new(service));
            let peers: UsablePeers = [("west".parse().expect("good"), true)].into();
            self.past.observe(&service, &peers, at);
            self.all.push(Moment { at, service, peers });
        }

        fn share(&self, moments: &[Moment], second: u64) -> f64 {
            let now = self.start + Duration::from_secs(second);
            let east = Place {
                cluster: "east".parse().expect("good"),
                locality: Locality::unknown(),
            };
            let rehearsal = rehearse(east, PORT, 0, moments, &BTreeSet::new(), now);
            rehearsal.shares[0].share
        }

        fn remembered(&self) -> Vec<Moment> {
            self.past.moments().cloned().collect()
        }
    }

    #[test]
    fn a_mark_that_falls_does_not_displace_the_loss_that_it_follows() {
        let mut world = World::new();
        world.show(0, shown(100, 100));
        world.show(10, shown(40, 100));
        for step in 1..=40 {
            world.show(
                10 + step * 5,
                shown(40, 100 - u32::try_from(step).expect("few")),
            );
            let second = 10 + step * 5;
            let (whole, kept) = (&world.all, &world.remembered());
            let (real, told) = (world.share(whole, second), world.share(kept, second));
            assert!((real - told).abs() < 0.02, "{second}: {real}, told {told}");
        }
        // What then comes back is held back.
        world.show(215, shown(100, 100));
        let (real, told) = (
            world.share(&world.all, 220),
            world.share(&world.remembered(), 220),
        );
        assert!(told < 0.99 && (real - told).abs() < 0.02, "{real}, {told}");
        let now = world.start + Duration::from_secs(220);
        assert_eq!(world.past.too_short_since(now), None);
    }

    #[test]
    fn who_has_forgotten_says_so_as_long_as_it_matters() {
        let mut world = World::new();
        let kept = u64::try_from(KEPT).expect("few");
        for second in 0..=kept {
            world.show(second, shown(u32::try_from(second).expect("few") + 1, 100));
        }
        assert_eq!(world.remembered().len(), KEPT);
        let after = |seconds| world.start + Duration::from_secs(seconds);
        let since = world.past.too_short_since(after(kept));
        assert_eq!(since, Some(Duration::from_secs(kept - 1)));
        assert_eq!(world.past.too_short_since(after(3600)), None);
    }
}

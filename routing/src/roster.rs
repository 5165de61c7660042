//! Who serves: the endpoints of a service as a source sees them, with what it has learnt about
//! each. The one place where something changes; every change ends in a new [`Plan`].

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::balancer::NoEndpoint;
use crate::explain::{Group, Standing};
use crate::failback::Failback;
use crate::health::{FORGET_EJECTIONS, Outlier, Vitals};
use crate::ids::ClusterId;
use crate::locality::{PerRank, RANKS, Rank};
use crate::model::{Endpoint, FailbackConfig, Locality, Place, Service, UsablePeers, is_restart};
use crate::pick::{Candidate, SUBSET, subset};
use crate::plan::{Plan, Tier, Trial};
use crate::priority::{EPSILON, health, loads, panic_loads, relieve};

/// How often a plan should be renewed while traffic returns, so that `explain` follows.
const RAMP_STEP: Duration = Duration::from_millis(500);

/// One source's view of one port of one service.
#[derive(Debug)]
pub(crate) struct Roster {
    place: Place,
    port: u16,
    seed: u64,
    /// Whether a service has been seen at all.
    known: bool,
    peers: UsablePeers,
    groups: Vec<Group>,
    members: Vec<Member>,
    failback: PerRank<Failback>,
    config: FailbackConfig,
}

#[derive(Debug)]
struct Member {
    endpoint: Arc<Endpoint>,
    /// Index of its group.
    group: usize,
    vitals: Arc<Vitals>,
    outlier: Outlier,
    pardon: Pardon,
}

/// When an endpoint's ejection was last ended for its own sake.
#[derive(Debug)]
struct Pardon {
    /// The latest incarnation that was ready; 0 while none is known.
    incarnation: u64,
    at: Option<Instant>,
}

impl Pardon {
    /// Whether an endpoint that is ready, and was not if `again`, is pardoned: if it was restarted
    /// or is ready again, and the last pardon is long ago, lest crashing or flapping be a way to
    /// avoid ejection.
    fn grant(&mut self, now: Instant, incarnation: u64, again: bool) -> bool {
        let restarted = is_restart(self.incarnation, incarnation);
        self.incarnation = self.incarnation.max(incarnation);
        let lately = |at: Instant| now.saturating_duration_since(at) < FORGET_EJECTIONS;
        let granted = (restarted || again) && !self.at.is_some_and(lately);
        if granted {
            self.at = Some(now);
        }
        granted
    }
}

impl Member {
    fn new(now: Instant, endpoint: &Arc<Endpoint>, group: usize) -> Self {
        Self {
            endpoint: Arc::clone(endpoint),
            group,
            vitals: Arc::new(Vitals::new(now)),
            outlier: Outlier::default(),
            pardon: Pardon {
                incarnation: endpoint.incarnation,
                at: None,
            },
        }
    }

    /// The same endpoint as a new snapshot lists it.
    fn relisted(
        mut self,
        now: Instant,
        endpoint: &Arc<Endpoint>,
        group: usize,
        reachable_again: bool,
    ) -> Self {
        let ready_again = !self.endpoint.ready;
        let pardoned = endpoint.ready && self.pardon.grant(now, endpoint.incarnation, ready_again);
        if pardoned {
            // It may be tried now; if it fails, it is out for as long as if it had not been.
            self.outlier.restore(now);
            self.vitals.acquit(self.pardon.incarnation);
        }
        if reachable_again || endpoint.address != self.endpoint.address {
            self.outlier = Outlier::default();
            self.vitals.set_ejected(false);
        }
        self.endpoint = Arc::clone(endpoint);
        self.group = group;
        self
    }
}

/// What the members of one rank come to.
#[derive(Debug, Default, Clone)]
struct Tally {
    expected: u32,
    available: Vec<Candidate>,
    ejected: Vec<(Candidate, Instant)>,
}

impl Roster {
    pub(crate) fn new(place: Place, port: u16, seed: u64) -> Self {
        Self {
            place,
            port,
            seed,
            known: false,
            peers: UsablePeers::new(),
            groups: Vec::new(),
            members: Vec::new(),
            failback: [Failback::default(); RANKS],
            config: FailbackConfig::default(),
        }
    }

    /// Takes over a new snapshot. Load and outlier state stay with endpoints that are listed
    /// again, except that an endpoint which comes back (at a new address, or in a cluster that is
    /// usable again) starts with a clean record: what it did wrong was done by what it was before.
    /// One that was restarted, or is ready again, is put back into rotation; see [`Pardon`].
    pub(crate) fn update(&mut self, now: Instant, service: &Service, peers: &UsablePeers) {
        let former_peers = std::mem::replace(&mut self.peers, peers.clone());
        let mut former: HashMap<_, _> = std::mem::take(&mut self.members)
            .into_iter()
            .map(|member| {
                (
                    (member.endpoint.cluster.clone(), member.endpoint.id.clone()),
                    member,
                )
            })
            .collect();
        self.known = true;
        self.config = service.failback;
        self.groups = self.groups_of(service);
        let groups: HashMap<_, _> = (self.groups.iter().enumerate())
            .map(|(at, group)| (group.key(), at))
            .collect();
        let mut members = Vec::with_capacity(service.endpoints.len());
        for endpoint in distinct(service) {
            let Some(group) = groups.get(&(&endpoint.cluster, &endpoint.locality)) else {
                continue;
            };
            let key = (endpoint.cluster.clone(), endpoint.id.clone());
            let member = match former.remove(&key) {
                Some(member) => {
                    let reachable_again = self.usable(&endpoint.cluster)
                        && !usable(&self.place, &former_peers, &endpoint.cluster);
                    member.relisted(now, endpoint, *group, reachable_again)
                }
                None => Member::new(now, endpoint, *group),
            };
            members.push(member);
        }
        self.members = members;
    }

    /// One group for each cluster and locality that offers the service, nearest first.
    fn groups_of(&self, service: &Service) -> Vec<Group> {
        let mut listed: BTreeMap<(&ClusterId, &Locality), u32> = BTreeMap::new();
        let mut expected: BTreeMap<(&ClusterId, &Locality), u32> = BTreeMap::new();
        let mut seen = std::collections::HashSet::new();
        for endpoint in &service.endpoints {
            if seen.insert((&endpoint.cluster, &endpoint.id)) {
                *listed
                    .entry((&endpoint.cluster, &endpoint.locality))
                    .or_default() += 1;
            }
        }
        for (cluster, capacity) in &service.clusters {
            for (locality, count) in &capacity.localities {
                let sum = expected.entry((cluster, locality)).or_default();
                *sum = sum.saturating_add(*count);
            }
        }
        for (key, listed) in listed {
            let expected = expected.entry(key).or_default();
            *expected = listed.max(*expected);
        }
        let mut groups: Vec<Group> = expected
            .into_iter()
            .filter(|(_, expected)| *expected > 0)
            .map(|((cluster, locality), expected)| Group {
                rank: Rank::of(&self.place, cluster, locality),
                cluster: cluster.clone(),
                locality: locality.clone(),
                standing: self.standing(service, cluster),
                available: 0,
                ejected: 0,
                expected,
            })
            .collect();
        groups.sort_by_key(|group| group.rank);
        groups
    }

    fn standing(&self, service: &Service, cluster: &ClusterId) -> Standing {
        let capacity = service.clusters.get(cluster);
        if !capacity.is_some_and(|capacity| capacity.ports.contains(&self.port)) {
            Standing::PortNotExposed
        } else if self.usable(cluster) {
            Standing::Usable
        } else {
            Standing::PeerUnusable
        }
    }

    fn usable(&self, cluster: &ClusterId) -> bool {
        usable(&self.place, &self.peers, cluster)
    }

    /// Takes an endpoint out of rotation. False if that is no news.
    pub(crate) fn eject(&mut self, now: Instant, vitals: &Arc<Vitals>, on_trial: bool) -> bool {
        match self.member(vitals) {
            Some(member) if on_trial || member.outlier.ejected_until().is_none() => {
                member.outlier.eject(now);
                vitals.set_ejected(true);
                true
            }
            _ => false,
        }
    }

    /// Puts an endpoint back into rotation. False if that is no news.
    pub(crate) fn restore(&mut self, now: Instant, vitals: &Arc<Vitals>) -> bool {
        match self.member(vitals) {
            Some(member) if member.outlier.ejected_until().is_some() => {
                member.outlier.restore(now);
                vitals.set_ejected(false);
                true
            }
            _ => false,
        }
    }

    fn member(&mut self, vitals: &Arc<Vitals>) -> Option<&mut Member> {
        self.members
            .iter_mut()
            .find(|member| Arc::ptr_eq(&member.vitals, vitals))
    }

    /// What follows from all this.
    pub(crate) fn plan(&mut self, now: Instant) -> Plan {
        let tallies = self.tally();
        let count = |tally: &Tally| (tally.available.len() as u32, tally.ejected.len() as u32);
        let numbers = tallies.each_ref().map(count);
        let real: PerRank<f64> =
            std::array::from_fn(|rank| health(numbers[rank].0, tallies[rank].expected));
        for (rank, failback) in self.failback.iter_mut().enumerate() {
            failback.observe(now, self.config, numbers[rank].0, real[rank]);
        }
        let curves = self.failback.map(|failback| failback.curve(now));
        let counted = relieve(&real, &curves.map(|curve| curve.at(now)));
        let total: f64 = real.iter().sum();
        let panic = total <= 0.0;
        let shares = if panic {
            panic_loads(&numbers.map(|(_, ejected)| ejected))
        } else {
            loads(&counted)
        };
        let mut plan = Plan {
            tiers: Vec::new(),
            health: real,
            shares,
            damped: (!panic && curves.iter().any(|curve| curve.moves(now))).then_some(curves),
            panic,
            trials: Vec::new(),
            groups: self.groups.clone(),
            built: now,
            vacancy: self.vacancy(),
        };
        let mut nearer = 0.0;
        for (rank, tally) in Rank::ALL.into_iter().zip(tallies) {
            if tally.expected > 0 {
                // Whether an ejected endpoint has recovered is worth finding out only where
                // requests would go to it then.
                let try_ejected = nearer < 1.0 - EPSILON;
                self.add_tier(&mut plan, rank, tally, try_ejected, total < 1.0 - EPSILON);
            }
            nearer += counted[rank.index()];
        }
        plan
    }

    fn add_tier(
        &self,
        plan: &mut Plan,
        rank: Rank,
        mut tally: Tally,
        try_ejected: bool,
        readmit: bool,
    ) {
        let tier = plan.tiers.len();
        if try_ejected {
            tally.ejected.sort_by_key(|(_, from)| *from);
            // Each request looks through the trials; those that come first make room.
            plan.trials.extend(
                tally
                    .ejected
                    .iter()
                    .take(SUBSET)
                    .map(|(candidate, from)| Trial {
                        tier,
                        candidate: candidate.clone(),
                        from: *from,
                    }),
            );
        }
        let ejected = tally
            .ejected
            .into_iter()
            .map(|(candidate, _)| candidate)
            .collect();
        let (candidates, reserve) = match (plan.panic, readmit) {
            (true, _) => (ejected, Vec::new()),
            (false, true) => (tally.available, ejected),
            (false, false) => (tally.available, Vec::new()),
        };
        let (candidates, reserve) = (self.shortlist(candidates), self.shortlist(reserve));
        plan.tiers.push(Tier {
            rank,
            candidates,
            reserve,
        });
    }

    /// This source's subset, with weights relative to one another.
    fn shortlist(&self, mut candidates: Vec<Candidate>) -> Vec<Candidate> {
        subset(&mut candidates, self.seed, |candidate| {
            &candidate.endpoint.id
        });
        let sum: u32 = candidates.iter().map(|candidate| candidate.weight).sum();
        let mean = sum as f32 / candidates.len().max(1) as f32;
        for candidate in &mut candidates {
            candidate.capacity = candidate.weight as f32 / mean;
        }
        candidates
    }

    /// Sorts members into ranks and counts them into their groups.
    fn tally(&mut self) -> PerRank<Tally> {
        let mut tallies: PerRank<Tally> = Default::default();
        for group in &mut self.groups {
            (group.available, group.ejected) = (0, 0);
            if group.standing != Standing::PortNotExposed {
                let expected = &mut tallies[group.rank.index()].expected;
                *expected = expected.saturating_add(group.expected);
            }
        }
        for member in &self.members {
            let group = &mut self.groups[member.group];
            if !member.endpoint.ready || group.standing != Standing::Usable {
                continue;
            }
            let tally = &mut tallies[group.rank.index()];
            let candidate = Candidate {
                endpoint: Arc::clone(&member.endpoint),
                vitals: Arc::clone(&member.vitals),
                weight: member.endpoint.effective_weight(),
                capacity: 1.0,
            };
            match member.outlier.ejected_until() {
                None => {
                    group.available += 1;
                    tally.available.push(candidate);
                }
                Some(until) => {
                    group.ejected += 1;
                    tally.ejected.push((candidate, until));
                }
            }
        }
        tallies
    }

    /// Why nothing can be chosen, if nothing can.
    fn vacancy(&self) -> NoEndpoint {
        let standing = |wanted| move |group: &&Group| group.standing == wanted;
        let usable = self
            .groups
            .iter()
            .filter(standing(Standing::Usable))
            .count();
        let unusable = self
            .groups
            .iter()
            .filter(standing(Standing::PeerUnusable))
            .count();
        if !self.known {
            NoEndpoint::NotYetKnown
        } else if usable > 0 {
            NoEndpoint::NoneReady
        } else if unusable > 0 {
            NoEndpoint::PeersUnusable
        } else if !self.groups.is_empty() {
            NoEndpoint::PortNotExposed { port: self.port }
        } else {
            NoEndpoint::NoneListed
        }
    }

    /// When the plan will say something else though nothing happens.
    pub(crate) fn next_change(&self, now: Instant) -> Option<Duration> {
        let trials = self
            .members
            .iter()
            .filter_map(|member| member.outlier.ejected_until());
        let returns = self
            .failback
            .iter()
            .map(|failback| failback.curve(now))
            .filter_map(|curve| {
                let end = curve.start + curve.ramp;
                let next = if now < curve.start {
                    curve.start
                } else {
                    end.min(now + RAMP_STEP)
                };
                curve.moves(now).then_some(next)
            });
        let next = trials.chain(returns).filter(|at| *at > now).min()?;
        Some(next.saturating_duration_since(now))
    }
}

fn usable(place: &Place, peers: &UsablePeers, cluster: &ClusterId) -> bool {
    *cluster == place.cluster || peers.get(cluster).copied().unwrap_or(false)
}

/// The endpoints of a service, each cluster and id once.
fn distinct(service: &Service) -> impl Iterator<Item = &Arc<Endpoint>> {
    let mut seen = HashSet::new();
    service
        .endpoints
        .iter()
        .filter(move |one| seen.insert((&one.cluster, &one.id)))
}

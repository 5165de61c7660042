//! Who serves: the endpoints of a service as a source sees them, with what it has learnt about
//! each. The one place where something changes; every change ends in a new [`Plan`].

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::allowance::Allowance;
use crate::balancer::NoEndpoint;
use crate::failback::{Curve, Failback};
use crate::groups::{Group, Grouping, Standing, View};
use crate::health::{FORGET_EJECTIONS, Outlier, Vitals};
use crate::model::{Endpoint, FailbackConfig, Place, Service, UsablePeers, is_restart};
use crate::pick::{Candidate, SUBSET};
use crate::plan::{Cap, Plan, Tier, Trial};
use crate::policy::{FailoverPolicy, TierMatch, Unlisted};
use crate::pool::{Ingredients, Pool, weight};
use crate::priority::{EPSILON, OVERPROVISIONING, health, loads, panic_loads, relieve};
use crate::slot::{PerSlot, SLOTS, Slot};
use crate::undrain::Undrain;

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
    failback: PerSlot<Failback>,
    undrain: Undrain,
    config: FailbackConfig,
    policy: Option<Arc<FailoverPolicy>>,
    allowance: Arc<Allowance>,
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

/// What the members of one priority come to.
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
            failback: [Failback::default(); SLOTS],
            undrain: Undrain::default(),
            config: FailbackConfig::default(),
            policy: None,
            allowance: Arc::default(),
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
        self.follow(service.policy.as_ref());
        self.undrain.observe(now, self.config, &service.drained);
        let view = View {
            place: &self.place,
            port: self.port,
            peers: &self.peers,
        };
        let before = View {
            peers: &former_peers,
            ..view
        };
        let Grouping { groups, members } = view.grouping(service);
        let member = |(endpoint, group): (&Arc<Endpoint>, usize)| {
            let key = (endpoint.cluster.clone(), endpoint.id.clone());
            let reachable_again =
                view.usable(&endpoint.cluster) && !before.usable(&endpoint.cluster);
            match former.remove(&key) {
                Some(member) => member.relisted(now, endpoint, group, reachable_again),
                None => Member::new(now, endpoint, group),
            }
        };
        self.members = members.into_iter().map(member).collect();
        self.groups = groups;
    }

    /// Priorities of another order are other priorities: what was damped there means nothing.
    fn follow(&mut self, policy: Option<&Arc<FailoverPolicy>>) {
        // No policy and one that says nothing of the order are the same order.
        fn order(policy: Option<&Arc<FailoverPolicy>>) -> (&[TierMatch], Unlisted) {
            policy.map_or((&[], Unlisted::default()), |policy| {
                (&policy.order, policy.unlisted)
            })
        }
        if order(policy) != order(self.policy.as_ref()) {
            self.failback = [Failback::default(); SLOTS];
            self.undrain.forget();
        }
        self.policy = policy.cloned();
        let cap = self.policy.as_deref().and_then(|of| of.max_remote_share);
        self.allowance.cap(cap);
    }

    /// What may leave the caller's cluster, as requests earn and spend it.
    pub(crate) fn allowance(&self) -> Arc<Allowance> {
        Arc::clone(&self.allowance)
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
        let real = self.real_health(&tallies);
        for (slot, failback) in self.failback.iter_mut().enumerate() {
            failback.observe(now, self.config, numbers[slot].0, real[slot]);
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
            cap: self.cap(),
            overprovisioning: self.overprovisioning(),
        };
        let mut nearer = 0.0;
        for (slot, tally) in Slot::all().zip(tallies) {
            if tally.expected > 0 {
                // Whether an ejected endpoint has recovered is worth finding out only where
                // requests would go to it then.
                let try_ejected = nearer < 1.0 - EPSILON;
                self.add_tier(&mut plan, slot, tally, try_ejected, total < 1.0 - EPSILON);
            }
            nearer += counted[slot.index()];
        }
        plan
    }

    fn overprovisioning(&self) -> f64 {
        let percent = |policy: &FailoverPolicy| f64::from(policy.overprovisioning) / 100.0;
        self.policy.as_deref().map_or(OVERPROVISIONING, percent)
    }

    fn cap(&self) -> Option<Cap> {
        let percent = self.policy.as_deref()?.max_remote_share?.min(100);
        Some(Cap {
            percent,
            allowance: Arc::clone(&self.allowance),
        })
    }

    /// The health of each slot by what is available there. What is drained has none while
    /// anything else has any.
    fn real_health(&self, tallies: &PerSlot<Tally>) -> PerSlot<f64> {
        let factor = self.overprovisioning();
        let mut real = tallies
            .each_ref()
            .map(|of| health(of.available.len() as u32, of.expected, factor));
        let drained = Slot::DRAINED.index();
        if real[..drained].iter().any(|health| *health > 0.0) {
            real[drained] = 0.0;
        }
        real
    }

    fn add_tier(
        &self,
        plan: &mut Plan,
        slot: Slot,
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
        let (candidates, mut reserve) = match (plan.panic, readmit) {
            (true, _) => (ejected, Vec::new()),
            (false, _) => (tally.available, ejected),
        };
        if !readmit {
            // Behind a cap, home is asked for more than its health allows; then what is ejected
            // there is better than nothing.
            reserve.retain(|candidate: &Candidate| plan.cap.is_some() && !candidate.remote);
        }
        let pools = self.pools(candidates, (!plan.panic).then_some(plan.built));
        let returns = pools.iter().any(|pool| pool.returning.is_some());
        plan.tiers.push(Tier {
            slot,
            pools,
            reserve: self.pools(reserve, None),
            settled: returns.then(|| self.settled(slot, plan.built)),
        });
    }

    /// The health of a slot without the clusters that come back from a drain.
    fn settled(&self, slot: Slot, now: Instant) -> f64 {
        let (mut available, mut expected) = (0, 0u32);
        for group in &self.groups {
            let counts = group.slot == Some(slot) && group.standing.counts();
            if counts && self.undrain.curve(&group.cluster, now).is_none() {
                available += group.available;
                expected = expected.saturating_add(group.expected);
            }
        }
        health(available, expected, self.overprovisioning())
    }

    /// Without a policy a priority is one pool, in which load decides; what comes back from a
    /// drain as of `now` is another meanwhile. With a policy, each locality is a pool of its own
    /// that gets the share it is said to get, and load decides only within.
    fn pools(&self, candidates: Vec<Candidate>, now: Option<Instant>) -> Vec<Pool> {
        let returning = |of: &Candidate| {
            let cluster = &self.groups[of.group].cluster;
            now.and_then(|now| self.undrain.curve(cluster, now))
        };
        let Some(policy) = &self.policy else {
            let mut by_return: Vec<(Option<Curve>, Vec<Candidate>)> = vec![(None, Vec::new())];
            for candidate in candidates {
                let curve = returning(&candidate);
                match by_return.iter_mut().find(|(of, _)| *of == curve) {
                    Some((_, all)) => all.push(candidate),
                    None => by_return.push((curve, vec![candidate])),
                }
            }
            let ingredients = |(returning, candidates): (_, Vec<Candidate>)| Ingredients {
                group: None,
                returning,
                amount: weight(&candidates),
                candidates,
            };
            return Pool::of(by_return.into_iter().map(ingredients), self.seed);
        };
        let mut by_group: BTreeMap<usize, Vec<Candidate>> = BTreeMap::new();
        for candidate in candidates {
            by_group.entry(candidate.group).or_default().push(candidate);
        }
        let ingredients = |(group, candidates): (usize, Vec<Candidate>)| Ingredients {
            group: Some(group),
            returning: candidates.first().and_then(returning),
            amount: match policy.weights.is_empty() {
                true => weight(&candidates),
                // Envoy's locality weights: scaled down as the locality loses endpoints.
                false => {
                    let (group, available) = (&self.groups[group], candidates.len() as u32);
                    let health = health(available, group.expected, self.overprovisioning());
                    f64::from(group.weight.max(1)) * health
                }
            },
            candidates,
        };
        Pool::of(by_group.into_iter().map(ingredients), self.seed)
    }

    /// Sorts members into slots and counts them into their groups.
    fn tally(&mut self) -> PerSlot<Tally> {
        let mut tallies: PerSlot<Tally> = std::array::from_fn(|_| Tally::default());
        for group in &mut self.groups {
            (group.available, group.ejected, group.not_ready) = (0, 0, 0);
            if let Some(slot) = group.slot.filter(|_| group.standing.counts()) {
                let expected = &mut tallies[slot.index()].expected;
                *expected = expected.saturating_add(group.expected);
            }
        }
        for member in &self.members {
            let group = &mut self.groups[member.group];
            group.not_ready += u32::from(!member.endpoint.ready);
            let Some(slot) = group.slot else { continue };
            if !member.endpoint.ready || group.standing != Standing::Usable {
                continue;
            }
            let tally = &mut tallies[slot.index()];
            let candidate = Candidate {
                endpoint: Arc::clone(&member.endpoint),
                vitals: Arc::clone(&member.vitals),
                weight: member.endpoint.effective_weight(),
                capacity: 1.0,
                group: member.group,
                rank: group.rank,
                remote: group.remote,
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
        let any = |wanted| self.groups.iter().any(|group| group.standing == wanted);
        if !self.known {
            NoEndpoint::NotYetKnown
        } else if any(Standing::Usable) {
            NoEndpoint::NoneReady
        } else if any(Standing::PeerUnusable) {
            NoEndpoint::PeersUnusable
        } else if any(Standing::Excluded) {
            NoEndpoint::Excluded
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
            .chain(self.undrain.curves())
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

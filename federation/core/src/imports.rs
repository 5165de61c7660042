//! On which port of the gateways clients without a sidecar reach an import.
//!
//! Each port of an import has one number, the same at all gateways of the cluster, for as long as
//! the import lives, over restarts, too: clients write it down. A number that is given back must not
//! soon mean another service, since some gateway or client may not have heard of that: it rests for
//! [`REST`], and until every gateway that may have it open has told that it is closed. Even then it
//! goes to another only where there is none that nobody ever had: a link that is cut for an hour must
//! not lead those who wrote a number down to somebody else.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::gateways::{Gateway, Gateways};
use crate::model::{ClusterId, Condition, ConditionStatus, ImportType, Service, ServiceKey};
use crate::plan::Desired;
use crate::presence::Presence;

#[cfg(test)]
mod tests;

/// How long a number that is given back is not used for anything else.
pub const REST: Duration = Duration::from_secs(600);
/// Most numbers that one cluster's exports take, those that rest included: whoever exports without
/// end, or anew again and again, leaves the rest to the others, and each is a listening socket of
/// every gateway.
pub const MOST_OF_ONE: usize = 512;
/// Numbers that have rested and are still remembered for whom they had been; beyond, those that were
/// given back first are forgotten. With the longest names they take 40 KiB, unpacked.
const MOST_REMEMBERED: usize = 256;
/// A gateway's word counts as later than the return of a number after this time: longer than the
/// lease for which a silent one counts as connected.
const SURELY_LATER: Duration = Duration::from_secs(15);
/// How long a gateway that is not heard of may have ports open: its certificate for unmeshed clients
/// lasts for a day, and without that it reaches nobody.
const FORGOTTEN: Duration = Duration::from_secs(25 * 3600);
/// That a gateway lives is written down anew when what is written is so old.
const NOTED: Duration = Duration::from_secs(600);

/// One port of an import.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ImportPort {
    /// The imported service.
    pub service: ServiceKey,
    /// Its Service port.
    pub port: u16,
}

/// What is to be remembered over a restart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum KeptPort {
    /// A number in use, or at rest.
    Number {
        /// The number.
        number: u16,
        /// For what it is or was used.
        of: ImportPort,
        /// Set where it was given back.
        rests: Option<Rest>,
    },
    /// A gateway that has ports open.
    Gateway {
        /// Its replica name.
        replica: String,
        /// When it was heard, roughly.
        heard: SystemTime,
    },
}

/// Since when a number rests, and whom it waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rest {
    since: SystemTime,
    /// Replicas that may have it open.
    waiting: BTreeSet<String>,
    /// In whose share it counts.
    #[serde(default)]
    provider: Option<ClusterId>,
}

/// Which number stands for which port of which import.
#[derive(Clone, Debug)]
pub struct PortBook {
    range: RangeInclusive<u16>,
    used: BTreeMap<ImportPort, u16>,
    /// In whose share those count. What is withdrawn says it no more.
    providers: BTreeMap<ImportPort, ClusterId>,
    /// Numbers that were given back, for whom they had been: they rest, or have rested.
    resting: BTreeMap<u16, (ImportPort, Rest)>,
    gateways: BTreeMap<String, SystemTime>,
}

impl PortBook {
    /// A book that gives out the numbers of `range`, with what was kept before a restart. Numbers
    /// that are kept twice, which nobody writes, count once.
    pub fn new(range: RangeInclusive<u16>, kept: impl IntoIterator<Item = KeptPort>) -> Self {
        let mut this = Self {
            range,
            used: BTreeMap::new(),
            providers: BTreeMap::new(),
            resting: BTreeMap::new(),
            gateways: BTreeMap::new(),
        };
        for kept in kept {
            match kept {
                KeptPort::Gateway { replica, heard } => {
                    this.gateways.insert(replica, heard);
                }
                KeptPort::Number { number, .. } if this.is_held(number) => {}
                KeptPort::Number {
                    number,
                    of,
                    rests: None,
                } => {
                    this.used.insert(of, number);
                }
                KeptPort::Number {
                    number,
                    of,
                    rests: Some(rest),
                } => {
                    this.resting.insert(number, (of, rest));
                }
            }
        }
        this
    }

    /// What is to be kept, in a fixed order.
    pub fn kept(&self) -> Vec<KeptPort> {
        let number = |number: &u16, of: &ImportPort, rests| KeptPort::Number {
            number: *number,
            of: of.clone(),
            rests,
        };
        let used = self.used.iter().map(|(of, held)| number(held, of, None));
        let resting = self
            .resting
            .iter()
            .map(|(held, (of, rest))| number(held, of, Some(rest.clone())));
        let gateways = self.gateways.iter().map(|(replica, heard)| {
            let (replica, heard) = (replica.clone(), *heard);
            KeptPort::Gateway { replica, heard }
        });
        used.chain(resting).chain(gateways).collect()
    }

    /// Gives numbers to what `desired` offers to clients without a sidecar, and says so there: the
    /// numbers, and on which imports there was none left. While no gateway serves such clients
    /// nothing is offered. While `hold` is set, nothing is given back: after a restart, peers may
    /// not have told yet what they export.
    pub fn assign(
        &mut self,
        desired: &mut Desired,
        gateways: &Gateways,
        hold: bool,
        now: SystemTime,
    ) {
        self.hear(gateways, now);
        let wanted = match self.gateways.is_empty() {
            true => BTreeSet::new(),
            false => offered(desired),
        };
        self.note_providers(desired);
        if !hold {
            self.give_back(&wanted, now);
        }
        self.end_rests(gateways, now);
        for service in self.take_all(&wanted, desired, gateways, now) {
            let condition = exhausted(&self.range);
            desired.import_conditions.insert(service, vec![condition]);
        }
        desired.import_ports = self.used.clone();
    }

    /// Notes the gateways that serve clients without a sidecar, and forgets those long gone, and
    /// those that went in order.
    fn hear(&mut self, gateways: &Gateways, now: SystemTime) {
        for gateway in gateways.iter().filter(has_left) {
            self.gateways.remove(&gateway.registration.replica);
        }
        let serving = gateways.counting().filter(|gateway| !has_left(gateway));
        let serving = serving.map(|gateway| gateway.registration);
        for registration in serving.filter(|of| of.imports.is_some()) {
            let heard = self.gateways.get(&registration.replica);
            if heard.is_none_or(|heard| age(*heard, now) >= NOTED) {
                self.gateways.insert(registration.replica.clone(), now);
            }
        }
        self.gateways
            .retain(|_, heard| age(*heard, now) < FORGOTTEN);
    }

    /// As long as an import is there, it says who counts.
    fn note_providers(&mut self, desired: &Desired) {
        for port in self.used.keys() {
            if let Some(cluster) = provider(&port.service, desired) {
                self.providers.insert(port.clone(), cluster);
            }
        }
    }

    fn give_back(&mut self, wanted: &BTreeSet<ImportPort>, now: SystemTime) {
        let waiting: BTreeSet<_> = self.gateways.keys().cloned().collect();
        let (range, resting) = (&self.range, &mut self.resting);
        let providers = &mut self.providers;
        self.used.retain(|of, number| {
            let stays = wanted.contains(of) && range.contains(number);
            if !stays {
                let rest = Rest {
                    since: now,
                    waiting: waiting.clone(),
                    provider: providers.remove(of),
                };
                resting.insert(*number, (of.clone(), rest));
            }
            stays
        });
    }

    fn end_rests(&mut self, gateways: &Gateways, now: SystemTime) {
        let open_at: Vec<_> = gateways
            .iter()
            .filter(|gateway| matches!(gateway.presence, Presence::Connected { .. }))
            .map(|gateway| (&gateway.registration.replica, open(gateway.registration)))
            .collect();
        let known = &self.gateways;
        self.resting.retain(|number, (_, rest)| {
            if age(rest.since, now) >= SURELY_LATER {
                for (replica, open) in &open_at {
                    if !open.is_some_and(|open| open.contains(number)) {
                        rest.waiting.remove(*replica);
                    }
                }
            }
            rest.waiting.retain(|replica| known.contains_key(replica));
            true
        });
        let rested = self.rested(now);
        for number in rested.iter().rev().skip(MOST_REMEMBERED) {
            self.resting.remove(number);
        }
    }

    /// Numbers that have rested, those first that were given back first.
    fn rested(&self, now: SystemTime) -> Vec<u16> {
        let over = |rest: &Rest| age(rest.since, now) >= REST && rest.waiting.is_empty();
        let rested = self.resting.iter().filter(|(_, (_, rest))| over(rest));
        let mut rested: Vec<_> = rested
            .map(|(number, (_, rest))| (rest.since, *number))
            .collect();
        rested.sort_unstable();
        rested.into_iter().map(|(_, number)| number).collect()
    }

    /// Finds numbers for what has none; gives back who got none. Each has the one that it had before,
    /// else the lowest that nobody is known to have had, else the one that was given back first. One that a gateway has open without our knowledge (a crash may
    /// lose the newest of what is kept) is not free. One pass over all numbers, however much is
    /// wanted: peers say how much.
    fn take_all(
        &mut self,
        wanted: &BTreeSet<ImportPort>,
        desired: &Desired,
        gateways: &Gateways,
        now: SystemTime,
    ) -> BTreeSet<ServiceKey> {
        let missing: Vec<_> = wanted
            .iter()
            .filter(|port| !self.used.contains_key(*port))
            .collect();
        let mut without = BTreeSet::new();
        if missing.is_empty() {
            return without;
        }
        let range = self.range.clone();
        let rested = self.resting.iter();
        let mut before: BTreeMap<_, _> = rested
            .filter(|(number, _)| range.contains(number))
            .map(|(number, (of, _))| (of.clone(), *number))
            .collect();
        let registrations = gateways.iter().map(|gateway| gateway.registration);
        let mut held: BTreeSet<u16> = registrations.filter_map(open).flatten().copied().collect();
        let returns = missing.iter().filter_map(|port| before.get(*port));
        let reserved: BTreeSet<u16> = held.iter().chain(returns).copied().collect();
        let rested = self.rested(now);
        let over: BTreeSet<u16> = rested.iter().copied().collect();
        let mut shares = self.shares(&over);
        let rested = rested.into_iter();
        let rested = rested.filter(|number| range.contains(number) && !reserved.contains(number));
        let rested: Vec<_> = rested.collect();
        held.extend(self.used.values().chain(self.resting.keys()));
        let mut free = range.filter(|number| !held.contains(number)).chain(rested);
        for port in missing {
            let provider = provider(&port.service, desired);
            let returning = before.get(port).filter(|number| !over.contains(*number));
            let returning = returning.and_then(|number| self.resting.get(number));
            let counted = returning.is_some_and(|(_, rest)| rest.provider == provider);
            let share = shares.entry(provider.clone()).or_default();
            let found = match counted || *share < MOST_OF_ONE {
                true => before.remove(port).or_else(|| free.next()),
                false => None,
            };
            let Some(number) = found else {
                without.insert(port.service.clone());
                continue;
            };
            *share += usize::from(!counted);
            self.resting.remove(&number);
            self.used.insert(port.clone(), number);
            if let Some(provider) = provider {
                self.providers.insert(port.clone(), provider);
            }
        }
        without
    }

    /// How many numbers are not free because of each cluster: all but those whose rest is `over`.
    fn shares(&self, over: &BTreeSet<u16>) -> BTreeMap<Option<ClusterId>, usize> {
        let used = self.used.keys().map(|port| self.providers.get(port));
        let resting = self.resting.iter();
        let resting = resting.filter(|(number, _)| !over.contains(*number));
        let resting = resting.map(|(_, (_, rest))| rest.provider.as_ref());
        let mut shares = BTreeMap::new();
        for provider in used.chain(resting) {
            *shares.entry(provider.cloned()).or_default() += 1;
        }
        shares
    }

    /// Takes out of `desired` what is not in `kept`, the newest that a restart would find: a number
    /// that a crash forgets must not have been told to anybody.
    pub fn tell_only_kept(desired: &mut Desired, kept: &[KeptPort]) {
        let kept: BTreeMap<&ImportPort, u16> = kept
            .iter()
            .filter_map(|kept| match kept {
                KeptPort::Number {
                    number,
                    of,
                    rests: None,
                } => Some((of, *number)),
                _ => None,
            })
            .collect();
        let is_kept = |of: &ImportPort, number: &mut u16| kept.get(of) == Some(number);
        desired.import_ports.retain(is_kept);
    }

    fn is_held(&self, number: u16) -> bool {
        self.resting.contains_key(&number) || self.used.values().any(|used| *used == number)
    }
}

/// Whether it has gone in order: it closed everything, and then ended. It has nothing open any more.
fn has_left(gateway: &Gateway<'_>) -> bool {
    let ended = !matches!(gateway.presence, Presence::Connected { .. });
    let closed = open(gateway.registration).is_some_and(BTreeSet::is_empty);
    ended && closed && gateway.registration.draining
}

fn open(registration: &crate::gateways::GatewayRegistration) -> Option<&BTreeSet<u16>> {
    registration.imports.as_ref().map(|imports| &imports.open)
}

/// Zero where the clock was set back.
fn age(since: SystemTime, now: SystemTime) -> Duration {
    now.duration_since(since).unwrap_or_default()
}

/// To which cluster the ports of an import are put down: one of those that admit such clients.
fn provider(service: &ServiceKey, desired: &Desired) -> Option<ClusterId> {
    let import = desired.imports.get(service)?;
    import.unmeshed_clients.first().cloned()
}

/// What clients without a sidecar may use: the ports of imports with one address, at clusters that
/// admit such clients.
fn offered(desired: &Desired) -> BTreeSet<ImportPort> {
    let mut offered = BTreeSet::new();
    for (key, import) in &desired.imports {
        let has_address = import.import_type == ImportType::ClusterSetIP;
        let of = desired.services.get(key).filter(|_| has_address);
        let of = of.and_then(|service| admitting(service, desired));
        for port in of.iter().flat_map(|service| &service.ports) {
            offered.insert(ImportPort {
                service: key.clone(),
                port: port.port,
            });
        }
    }
    offered
}

/// The part of a service that admits clients without a sidecar; `None` where no part does.
pub fn admitting(service: &Service, desired: &Desired) -> Option<Service> {
    let import = desired.imports.get(&service.key)?;
    let admits = |cluster: &_| import.unmeshed_clients.contains(cluster);
    let mut part = service.clone();
    part.clusters.retain(|cluster, _| admits(cluster));
    part.endpoints.retain(|endpoint| admits(&endpoint.cluster));
    let clusters = part.clusters.values();
    let exposed: BTreeSet<u16> = clusters.flat_map(|of| of.ports.iter().copied()).collect();
    part.ports.retain(|port| exposed.contains(&port.port));
    (!part.ports.is_empty()).then_some(part)
}

fn exhausted(range: &RangeInclusive<u16>) -> Condition {
    let message = format!(
        "no port from {} to {} is free for clients without a sidecar, or the exports of one cluster \
         have {MOST_OF_ONE} already, those counted that rest since they were withdrawn; widen `importPorts` of federation, or export less to them",
        range.start(),
        range.end()
    );
    Condition::new("Ready", ConditionStatus::False, "PortsExhausted", message)
}

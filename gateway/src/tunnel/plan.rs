//! Which address to dial next, and when: the dialler's decisions, without a clock or a socket.
//!
//! For each link a gateway wants data connections to `min(ready, 3)` distinct replicas of the
//! peer and one sync connection, whichever side dialled them; suspect and draining connections
//! do not count. Several addresses are tried side by side, started [`STAGGER`] apart, as in
//! happy eyeballs; an address that failed, or that led to a replica which we hold already, rests
//! for a jittered, growing time. A budget bounds the tries of a link to
//! [`TRIES_PER_MINUTE`] in any minute.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// More distinct replicas than this carry no more safety, only more handshakes.
pub const DISTINCT_REPLICAS: u32 = 3;
/// Tries of one link in any minute.
pub const TRIES_PER_MINUTE: u32 = 16;
/// Half of the tries may come in a burst, the other half trickles in over the minute: together
/// never more than all of them within one minute, and never a whole minute without any.
const BURST: u32 = TRIES_PER_MINUTE / 2;
const TRICKLE: Duration = Duration::from_millis(60_000 / BURST as u64);
/// Between the starts of two tries.
pub const STAGGER: Duration = Duration::from_millis(300);
/// First rest of an address that failed; doubles, with full jitter.
const REST: Duration = Duration::from_millis(200);
/// Longest rest: short enough that a peer that returns is found by its dialler soon.
const LONGEST_REST: Duration = Duration::from_secs(8);
/// First rest of an address that leads to a replica which we hold already.
const SURPLUS_REST: Duration = Duration::from_secs(2);
const LONGEST_SURPLUS_REST: Duration = Duration::from_secs(60);

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Purpose {
    /// Streams of workloads.
    Data,
    /// The federations' own streams, so that bulk data cannot delay them.
    Sync,
}

/// What the link has now; suspect and draining connections are left out.
#[derive(Clone, Debug, Default)]
pub struct Held {
    /// Remote replicas of the data connections.
    pub data: Vec<Arc<str>>,
    /// Whether there is a sync connection.
    pub sync: bool,
    /// Ready replicas that the peer told of; 0 if it has not.
    pub ready: u32,
}

impl Held {
    fn distinct(&self) -> u32 {
        let mut replicas: Vec<&str> = self.data.iter().map(|replica| &**replica).collect();
        replicas.sort_unstable();
        replicas.dedup();
        u32::try_from(replicas.len()).unwrap_or(u32::MAX)
    }

    /// The most urgent purpose first: any connection, then sync, then more replicas. While the
    /// peer cannot be reached at all, only one kind of try is worth its place in the budget.
    fn wants(&self) -> Option<Purpose> {
        let distinct = self.distinct();
        if distinct == 0 {
            Some(Purpose::Data)
        } else if !self.sync {
            Some(Purpose::Sync)
        } else if distinct < self.ready.clamp(1, DISTINCT_REPLICAS) {
            Some(Purpose::Data)
        } else {
            None
        }
    }

    fn holds(&self, replica: Option<&Arc<str>>) -> bool {
        replica.is_some_and(|replica| self.data.contains(replica))
    }
}

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Start this try; it is accounted for.
    Dial(SocketAddr, Purpose),
    /// Nothing before this much time has passed.
    Wait(Duration),
    /// Nothing until the link, its addresses or its connections change.
    Idle,
}

/// How a try ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A connection to this replica.
    Connected(Arc<str>),
    /// A connection to a replica that we held already.
    Surplus(Arc<str>),
    /// None.
    Failed,
}

#[derive(Debug)]
struct Address {
    in_flight: bool,
    not_before: Instant,
    failures: u32,
    surplus: u32,
    replica: Option<Arc<str>>,
    /// Orders addresses that are otherwise equal: the one longest not tried first.
    tried: u64,
}

impl Address {
    fn new(now: Instant) -> Self {
        Self {
            in_flight: false,
            not_before: now,
            failures: 0,
            surplus: 0,
            replica: None,
            tried: 0,
        }
    }
}

/// The memory of one link's dialler.
#[derive(Debug)]
pub struct Plan {
    addresses: BTreeMap<SocketAddr, Address>,
    tokens: u32,
    refilled: Instant,
    started: Option<Instant>,
    tries: u64,
}

impl Plan {
    /// A plan without addresses.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            addresses: BTreeMap::new(),
            tokens: BURST,
            refilled: now,
            started: None,
            tries: 0,
        }
    }

    /// Replaces the addresses; what is known about those that stay is kept.
    pub fn set_addresses(&mut self, now: Instant, addresses: &[SocketAddr]) {
        self.addresses
            .retain(|address, _| addresses.contains(address));
        for address in addresses {
            self.addresses
                .entry(*address)
                .or_insert_with(|| Address::new(now));
        }
    }

    /// Whether that is one of the addresses.
    #[must_use]
    pub fn knows(&self, address: SocketAddr) -> bool {
        self.addresses.contains_key(&address)
    }

    /// Whether some address has failed since it last worked, so that names should be resolved anew.
    #[must_use]
    pub fn is_failing(&self) -> bool {
        self.addresses.values().any(|address| address.failures > 0)
    }

    /// What to do now.
    pub fn next(&mut self, now: Instant, held: &Held) -> Step {
        let Some(purpose) = held.wants() else {
            return Step::Idle;
        };
        self.refill(now);
        let Some((address, due)) = self.best(held, purpose) else {
            return Step::Idle;
        };
        let wait = due.max(self.earliest(now)).saturating_duration_since(now);
        if wait > Duration::ZERO {
            return Step::Wait(wait);
        }
        self.start(now, address);
        Step::Dial(address, purpose)
    }

    /// A try that [`Plan::next`] asked for has ended; `random` is in 0..1.
    pub fn ended(&mut self, now: Instant, address: SocketAddr, outcome: Outcome, random: f64) {
        let Some(entry) = self.addresses.get_mut(&address) else {
            return;
        };
        entry.in_flight = false;
        let rest = match outcome {
            Outcome::Connected(replica) => {
                (entry.failures, entry.surplus, entry.replica) = (0, 0, Some(replica));
                Duration::ZERO
            }
            Outcome::Surplus(replica) => {
                (entry.failures, entry.replica) = (0, Some(replica));
                entry.surplus = entry.surplus.saturating_add(1);
                grown(SURPLUS_REST, entry.surplus, LONGEST_SURPLUS_REST)
            }
            Outcome::Failed => {
                entry.failures = entry.failures.saturating_add(1);
                grown(REST, entry.failures, LONGEST_REST)
            }
        };
        entry.not_before = now + rest.mul_f64(random.clamp(0.0, 1.0));
    }

    /// A data connection was lost: what rested only because we held its replica need not any more.
    pub fn lost(&mut self, now: Instant, replica: &str) {
        let led_there = |entry: &&mut Address| entry.replica.as_deref() == Some(replica);
        for entry in self.addresses.values_mut().filter(led_there) {
            if entry.failures == 0 {
                (entry.surplus, entry.not_before) = (0, now);
            }
        }
    }

    fn refill(&mut self, now: Instant) {
        while self.tokens < BURST && now.saturating_duration_since(self.refilled) >= TRICKLE {
            self.tokens += 1;
            self.refilled += TRICKLE;
        }
        if self.tokens == BURST {
            self.refilled = now;
        }
    }

    /// When budget and stagger allow the next start.
    fn earliest(&self, now: Instant) -> Instant {
        let budget = if self.tokens == 0 {
            self.refilled + TRICKLE
        } else {
            now
        };
        let stagger = self.started.map_or(now, |started| started + STAGGER);
        budget.max(stagger)
    }

    /// The address to try, and when it may be: for more replicas those first that are not known
    /// to lead where we are already, then the earliest due, then the longest not tried.
    fn best(&self, held: &Held, purpose: Purpose) -> Option<(SocketAddr, Instant)> {
        let idle = self.addresses.iter().filter(|(_, entry)| !entry.in_flight);
        let rank = |entry: &Address| {
            let known = purpose == Purpose::Data && held.holds(entry.replica.as_ref());
            (known, entry.not_before, entry.tried)
        };
        let (address, entry) = idle.min_by_key(|(_, entry)| rank(entry))?;
        Some((*address, entry.not_before))
    }

    fn start(&mut self, now: Instant, address: SocketAddr) {
        self.tries += 1;
        self.tokens = self.tokens.saturating_sub(1);
        self.started = Some(now);
        if let Some(entry) = self.addresses.get_mut(&address) {
            (entry.in_flight, entry.tried) = (true, self.tries);
        }
    }
}

/// `first` doubled for each time after the first, at most `longest`.
fn grown(first: Duration, times: u32, longest: Duration) -> Duration {
    first
        .saturating_mul(1 << times.clamp(1, 16).saturating_sub(1))
        .min(longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, last], 15443))
    }

    fn replica(name: &str) -> Arc<str> {
        Arc::from(name)
    }

    fn plan(now: Instant, addresses: &[SocketAddr]) -> Plan {
        let mut plan = Plan::new(now);
        plan.set_addresses(now, addresses);
        plan
    }

    fn held(data: &[&str], sync: bool, ready: u32) -> Held {
        Held {
            data: data.iter().map(|name| replica(name)).collect(),
            sync,
            ready,
        }
    }

    #[test]
    fn nothing_to_dial_without_addresses() {
        let now = Instant::now();
        assert_eq!(plan(now, &[]).next(now, &Held::default()), Step::Idle);
    }

    #[test]
    fn any_connection_first_then_sync_then_more_replicas() {
        let now = Instant::now();
        let addresses = [address(1), address(2), address(3)];
        let mut plan = plan(now, &addresses);
        let Step::Dial(first, Purpose::Data) = plan.next(now, &Held::default()) else {
            panic!()
        };
        plan.ended(now, first, Outcome::Connected(replica("a")), 0.5);
        let now = now + STAGGER;
        let Step::Dial(second, Purpose::Sync) = plan.next(now, &held(&["a"], false, 2)) else {
            panic!()
        };
        plan.ended(now, second, Outcome::Connected(replica("b")), 0.5);
        let now = now + STAGGER;
        let Step::Dial(third, Purpose::Data) = plan.next(now, &held(&["a"], true, 2)) else {
            panic!()
        };
        assert_ne!(third, first, "that one leads where we are");
        assert_eq!(plan.next(now, &held(&["a", "b"], true, 2)), Step::Idle);
    }

    #[test]
    fn several_addresses_are_tried_side_by_side_one_stagger_apart() {
        let now = Instant::now();
        let mut plan = plan(now, &[address(1), address(2)]);
        assert!(matches!(plan.next(now, &Held::default()), Step::Dial(..)));
        assert_eq!(plan.next(now, &Held::default()), Step::Wait(STAGGER));
        assert!(matches!(
            plan.next(now + STAGGER, &Held::default()),
            Step::Dial(..)
        ));
        assert_eq!(plan.next(now + STAGGER * 2, &Held::default()), Step::Idle);
    }

    #[test]
    fn a_failed_address_rests_longer_each_time_but_never_longer_than_the_ceiling() {
        let mut now = Instant::now();
        let mut plan = plan(now, &[address(1)]);
        let mut longest = Duration::ZERO;
        for _ in 0..30 {
            match plan.next(now, &Held::default()) {
                Step::Dial(address, _) => plan.ended(now, address, Outcome::Failed, 1.0),
                Step::Wait(wait) => {
                    longest = longest.max(wait);
                    now += wait;
                }
                Step::Idle => panic!("an address is left"),
            }
        }
        assert_eq!(longest, LONGEST_REST);
    }

    #[test]
    fn at_most_sixteen_tries_in_any_minute_and_never_long_without() {
        let begin = Instant::now();
        let mut now = begin;
        let mut plan = plan(now, &[address(1), address(2), address(3), address(4)]);
        let mut tries = Vec::new();
        while now < begin + Duration::from_secs(300) {
            match plan.next(now, &Held::default()) {
                Step::Dial(address, _) => {
                    tries.push(now);
                    plan.ended(now, address, Outcome::Failed, 0.0);
                }
                Step::Wait(wait) => now += wait,
                Step::Idle => panic!("addresses are left"),
            }
        }
        for (index, start) in tries.iter().enumerate() {
            let within = tries[index..]
                .iter()
                .take_while(|t| **t < *start + Duration::from_secs(60));
            assert!(within.count() <= TRIES_PER_MINUTE as usize);
        }
        assert!(
            tries
                .windows(2)
                .all(|pair| pair[1] - pair[0] <= TRICKLE + STAGGER)
        );
    }

    #[test]
    fn a_lost_replica_is_dialled_again_at_once() {
        let now = Instant::now();
        let mut plan = plan(now, &[address(1)]);
        assert!(matches!(plan.next(now, &Held::default()), Step::Dial(..)));
        plan.ended(now, address(1), Outcome::Surplus(replica("a")), 1.0);
        let later = now + STAGGER;
        assert!(matches!(
            plan.next(later, &held(&["a"], true, 2)),
            Step::Wait(_)
        ));
        plan.lost(later, "a");
        assert_eq!(
            plan.next(later, &Held::default()),
            Step::Dial(address(1), Purpose::Data)
        );
    }

    #[test]
    fn addresses_that_stay_keep_what_is_known_of_them() {
        let now = Instant::now();
        let mut plan = plan(now, &[address(1)]);
        plan.next(now, &Held::default());
        plan.ended(now, address(1), Outcome::Failed, 1.0);
        plan.set_addresses(now, &[address(1), address(2)]);
        assert!(plan.is_failing());
        plan.set_addresses(now, &[address(2)]);
        assert!(!plan.is_failing());
    }
}

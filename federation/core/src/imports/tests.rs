use std::sync::Arc;

use super::*;
use crate::Session;
use crate::gateways::{GatewayRegistration, ImportListeners};
use crate::merge::{Contribution, merge};
use crate::testing::{Clock, export, port, service};

/// A book, gateways that come and go, and a clock.
struct Bench {
    clock: Clock,
    gateways: Gateways,
    book: PortBook,
    hold: bool,
}

impl Bench {
    fn new(range: RangeInclusive<u16>) -> Self {
        let clock = Clock::default();
        Self {
            clock,
            gateways: Gateways::new(),
            book: PortBook::new(range, []),
            hold: false,
        }
    }

    /// Replica `name` says that it has these ports open.
    fn says(&mut self, name: &str, open: &[u16]) {
        self.tells(name, open, false);
    }

    fn tells(&mut self, name: &str, open: &[u16], draining: bool) {
        let registration = GatewayRegistration {
            replica: name.to_owned(),
            egress_address: ([127, 0, 0, 1], 1).into(),
            tunnel_addresses: Vec::new(),
            ready: true,
            draining,
            imports: Some(ImportListeners {
                address: [127, 0, 0, 1].into(),
                open: open.iter().copied().collect(),
                failed: BTreeSet::new(),
            }),
        };
        let now = self.clock.now().instant;
        self.gateways
            .register(registration, Session(1), now)
            .unwrap();
    }

    fn pass(&mut self, time: Duration) {
        let now = self.clock.pass(time);
        self.gateways.tick(now.instant);
    }

    /// The numbers of these services' ports 80, as assigned now; and who got none.
    fn assign(&mut self, services: &[&str]) -> (BTreeMap<String, u16>, Vec<String>) {
        let mut desired = desired(services, true);
        let now = self.clock.now().wall;
        self.book
            .assign(&mut desired, &self.gateways, self.hold, now);
        let numbers = desired.import_ports.iter();
        let numbers = numbers.map(|(of, number)| (of.service.to_string(), *number));
        let without = desired.import_conditions.iter();
        let without = without.filter(|(_, conditions)| conditions[0].reason == "PortsExhausted");
        (
            numbers.collect(),
            without.map(|(key, _)| key.to_string()).collect(),
        )
    }

    fn of(&mut self, services: &[&str]) -> Vec<u16> {
        self.assign(services).0.into_values().collect()
    }
}

/// West exports these with port 80.
fn desired(services: &[&str], unmeshed_clients: bool) -> Desired {
    desired_of("west", services, unmeshed_clients)
}

fn desired_of(cluster: &str, services: &[&str], unmeshed_clients: bool) -> Desired {
    let mut desired = Desired::default();
    for key in services {
        let contribution = Contribution {
            cluster: cluster.parse().unwrap(),
            export: Arc::new(crate::Export {
                unmeshed_clients,
                ..export(key, vec![port(80)], 1)
            }),
        };
        let key = service(key);
        let merged = merge(&"east".parse().unwrap(), &key, &[contribution]).unwrap();
        let of = Service {
            key: key.clone(),
            ports: merged.seen.ports.clone(),
            clusters: merged.seen.clusters.clone(),
            endpoints: Vec::new(),
            failback: Default::default(),
            policy: None,
            drained: BTreeSet::new(),
        };
        desired.services.insert(key.clone(), Arc::new(of));
        desired.imports.insert(key, merged.import);
    }
    desired
}

const RANGE: RangeInclusive<u16> = 16_000..=16_002;

#[test]
fn each_import_keeps_its_number() {
    let mut bench = Bench::new(RANGE);
    bench.says("g1", &[]);
    assert_eq!(bench.of(&["shop/b"]), [16_000]);
    let (numbers, _) = bench.assign(&["shop/a", "shop/b"]);
    assert_eq!((numbers["shop/a"], numbers["shop/b"]), (16_001, 16_000));
    // Over a restart, too.
    bench.book = PortBook::new(RANGE, bench.book.kept());
    assert_eq!(bench.assign(&["shop/a", "shop/b"]).0, numbers);
}

#[test]
fn nothing_is_offered_that_no_gateway_serves_or_no_cluster_admits() {
    let mut bench = Bench::new(RANGE);
    assert!(bench.of(&["shop/a"]).is_empty());
    bench.says("g1", &[]);
    let mut refused = desired(&["shop/a"], false);
    let now = bench.clock.now().wall;
    bench.book.assign(&mut refused, &bench.gateways, false, now);
    assert!(refused.import_ports.is_empty() && refused.import_conditions.is_empty());
    assert_eq!(bench.of(&["shop/a"]).len(), 1);
}

#[test]
fn a_number_that_is_given_back_rests() {
    let mut bench = Bench::new(16_000..=16_000);
    bench.says("g1", &[]);
    bench.of(&["shop/a"]);
    bench.says("g1", &[16_000]);
    assert!(bench.of(&[]).is_empty());
    bench.says("g1", &[]);
    // It comes back to whom it belonged at once, and to nobody else.
    let mut other = bench.book.clone();
    std::mem::swap(&mut bench.book, &mut other);
    assert_eq!(bench.of(&["shop/a"]), [16_000]);
    std::mem::swap(&mut bench.book, &mut other);
    let mut waited = Duration::ZERO;
    while waited < REST {
        let (numbers, without) = bench.assign(&["shop/b"]);
        assert_eq!((numbers.len(), &*without), (0, &["shop/b".to_owned()][..]));
        bench.pass(Duration::from_secs(5));
        bench.says("g1", &[]);
        waited += Duration::from_secs(5);
    }
    assert_eq!(bench.of(&["shop/b"]), [16_000]);
}

#[test]
fn a_number_rests_until_each_gateway_has_closed_it() {
    let mut bench = Bench::new(16_000..=16_000);
    for name in ["g1", "g2"] {
        bench.says(name, &[16_000]);
    }
    bench.book.used.insert(
        ImportPort {
            service: service("shop/a"),
            port: 80,
        },
        16_000,
    );
    bench.of(&[]);
    // One has closed it; of the other nothing is heard, for hours and over a restart.
    for _ in 0..20 {
        bench.pass(Duration::from_secs(3600));
        bench.says("g1", &[]);
        assert!(bench.of(&["shop/b"]).is_empty());
        bench.book = PortBook::new(16_000..=16_000, bench.book.kept());
    }
    // It has still got it open; then it has not.
    bench.says("g2", &[16_000]);
    assert!(bench.of(&["shop/b"]).is_empty());
    bench.says("g2", &[]);
    assert_eq!(bench.of(&["shop/b"]), [16_000]);
}

#[test]
fn a_gateway_that_never_returns_is_waited_for_while_its_certificate_lasts() {
    let mut bench = Bench::new(16_000..=16_000);
    bench.says("gone", &[]);
    bench.says("g1", &[]);
    assert_eq!(bench.of(&["shop/a"]), [16_000]);
    bench.of(&[]);
    let hour = Duration::from_secs(3600);
    let mut hours = 0;
    while bench.of(&["shop/b"]).is_empty() {
        bench.pass(hour);
        bench.says("g1", &[]);
        hours += 1;
    }
    assert_eq!(hour * hours, FORGOTTEN);
}

#[test]
fn a_gateway_that_went_in_order_is_not_waited_for() {
    let mut bench = Bench::new(16_000..=16_000);
    bench.says("g1", &[]);
    bench.says("goes", &[]);
    assert_eq!(bench.of(&["shop/a"]), [16_000]);
    let goes = |bench: &mut Bench, open: &[u16]| {
        bench.tells("goes", open, true);
        let now = bench.clock.now().instant;
        bench.gateways.disconnect("goes", Session(1), now);
        bench.of(&[]);
    };
    // Cut off while it had the port open, it may still have it.
    goes(&mut bench, &[16_000]);
    bench.pass(REST);
    bench.says("g1", &[]);
    assert!(bench.of(&["shop/b"]).is_empty());
    bench.tells("goes", &[], true);
    goes(&mut bench, &[]);
    assert_eq!(bench.of(&["shop/b"]), [16_000]);
}

#[test]
fn nobody_gets_anothers_number_while_there_are_new_ones() {
    let mut bench = Bench::new(RANGE);
    bench.says("g1", &[]);
    let hour = Duration::from_secs(3600);
    let later = |bench: &mut Bench| {
        bench.pass(hour);
        bench.says("g1", &[]);
        bench.book = PortBook::new(RANGE, bench.book.kept());
    };
    assert_eq!(bench.of(&["shop/a"]), [16_000]);
    // The link is cut for long; somebody else exports meanwhile.
    bench.of(&[]);
    later(&mut bench);
    assert_eq!(bench.of(&["shop/b"]), [16_001]);
    later(&mut bench);
    assert_eq!(bench.of(&["shop/a", "shop/b"]), [16_000, 16_001]);
    // Where there is no other any more, the one that has been free for longest; not one that
    // comes back to whom it belonged at the same time.
    bench.of(&["shop/b"]);
    later(&mut bench);
    bench.of(&[]);
    later(&mut bench);
    assert_eq!(bench.of(&["shop/c"]), [16_002]);
    let (numbers, _) = bench.assign(&["shop/c", "shop/d"]);
    assert_eq!(numbers["shop/d"], 16_000);
    bench.of(&["shop/c"]);
    later(&mut bench);
    let (numbers, without) = bench.assign(&["shop/a", "shop/b", "shop/c"]);
    assert_eq!((numbers["shop/a"], numbers["shop/b"]), (16_000, 16_001));
    assert!(without.is_empty());
}

#[test]
fn not_more_is_remembered_than_there_is_room_for() {
    let mut bench = Bench::new(16_000..=31_999);
    bench.says("g1", &[]);
    let names: Vec<_> = (0..MOST_OF_ONE)
        .map(|number| format!("shop/s{number}"))
        .collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    assert_eq!(bench.of(&names).len(), MOST_OF_ONE);
    bench.of(&[]);
    assert_eq!(bench.book.kept().len(), MOST_OF_ONE + 1, "they rest");
    bench.pass(REST);
    bench.says("g1", &[]);
    bench.of(&[]);
    assert_eq!(bench.book.kept().len(), MOST_REMEMBERED + 1);
}

/// Or it would have all numbers in a moment, and nobody another one for ten minutes.
#[test]
fn who_exports_anew_again_and_again_takes_no_more_than_its_share() {
    let names = |round: usize| -> Vec<String> {
        let numbers = 0..MOST_OF_ONE;
        numbers.map(|n| format!("shop/r{round}-{n}")).collect()
    };
    let mut bench = Bench::new(16_000..=31_999);
    bench.says("g1", &[]);
    for round in 0..3 {
        let names = names(round);
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        let (numbers, without) = bench.assign(&names);
        let expected = if round == 0 { MOST_OF_ONE } else { 0 };
        assert_eq!(numbers.len(), expected, "round {round}");
        assert_eq!(without.len(), MOST_OF_ONE - expected);
        assert_eq!(bench.book.resting.len(), MOST_OF_ONE - expected);
        // A restart forgets none of it: before anything is given back, peers have told what they export.
        bench.book = PortBook::new(16_000..=31_999, bench.book.kept());
        assert_eq!(bench.assign(&names).0.len(), expected);
    }
    // Others have theirs.
    let mut north = desired_of("north", &["shop/cart"], true);
    let now = bench.clock.now().wall;
    bench.book.assign(&mut north, &bench.gateways, false, now);
    assert_eq!(north.import_ports.len(), 1);
    // What comes back has its own, as many as they are.
    let first = names(0);
    let mut first: Vec<_> = first.iter().map(String::as_str).collect();
    first.push("shop/more");
    let (numbers, without) = bench.assign(&first);
    assert_eq!(numbers.len(), MOST_OF_ONE);
    assert_eq!(without, ["shop/more"]);
    // What has rested counts for nobody.
    bench.assign(&[]);
    bench.pass(REST);
    bench.says("g1", &[]);
    let second = names(1);
    let second: Vec<_> = second.iter().map(String::as_str).collect();
    assert_eq!(bench.assign(&second).0.len(), MOST_OF_ONE);
}

#[test]
fn a_rest_that_was_kept_without_its_cluster_is_read() {
    let kept = r#"{"kind": "number", "number": 16000, "of": {"service": "shop/a", "port": 80},
        "rests": {"since": {"secs_since_epoch": 1, "nanos_since_epoch": 0}, "waiting": []}}"#;
    let kept: KeptPort = serde_json::from_str(kept).unwrap();
    assert!(PortBook::new(RANGE, [kept]).is_held(16_000));
}

#[test]
fn nothing_is_given_back_while_peers_are_waited_for() {
    let mut bench = Bench::new(RANGE);
    bench.says("g1", &[]);
    let before = bench.of(&["shop/a", "shop/b"]);
    bench.hold = true;
    assert_eq!(bench.of(&[]), before);
    assert_eq!(bench.of(&["shop/c"]).len(), 3);
    bench.hold = false;
    assert_eq!(bench.of(&["shop/c"]), [16_002]);
}

#[test]
fn a_number_that_is_open_somewhere_is_not_free() {
    let mut bench = Bench::new(RANGE);
    // A crash has lost what it was for.
    bench.says("g1", &[16_000]);
    assert_eq!(bench.of(&["shop/a"]), [16_001]);
}

#[test]
fn another_range_moves_what_is_outside() {
    let mut bench = Bench::new(RANGE);
    bench.says("g1", &[]);
    bench.of(&["shop/a"]);
    bench.book = PortBook::new(17_000..=17_009, bench.book.kept());
    assert_eq!(bench.of(&["shop/a"]), [17_000]);
    assert!(bench.book.is_held(16_000), "clients may still use it");
}

#[test]
fn who_was_too_many_is_told_and_the_others_stay() {
    let mut bench = Bench::new(RANGE);
    bench.says("g1", &[]);
    let (numbers, without) = bench.assign(&["shop/a", "shop/b", "shop/c", "shop/d"]);
    assert_eq!((numbers.len(), &*without), (3, &["shop/d".to_owned()][..]));
}

#[test]
fn a_number_is_told_only_once_a_restart_would_find_it() {
    let mut bench = Bench::new(16_000..=16_009);
    bench.says("gateway-1", &[]);
    bench.assign(&["shop/a"]);
    let before = bench.book.kept();
    let mut told = desired(&["shop/a", "shop/b"], true);
    let now = bench.clock.now().wall;
    bench.book.assign(&mut told, &bench.gateways, false, now);
    assert_eq!(told.import_ports.len(), 2);
    for (kept, numbers) in [
        (bench.book.kept(), vec![16_000, 16_001]),
        (before, vec![16_000]),
        (Vec::new(), Vec::new()),
    ] {
        PortBook::tell_only_kept(&mut told, &kept);
        let found: Vec<_> = told.import_ports.values().copied().collect();
        assert_eq!(found, numbers);
    }
}

/// The quota of a peer's records allows 200,000 ports.
#[test]
fn one_cluster_takes_its_share_and_no_more_however_much_it_exports() {
    let names: Vec<_> = (0..20_000).map(|number| format!("aaa/s{number}")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let mut bench = Bench::new(16_000..=17_999);
    bench.says("g1", &[16_000]);
    let mut greedy = desired(&names, true);
    let honest = ServiceKey::new("shop", "cart").unwrap();
    let mut of = desired_of("north", &["shop/cart"], true);
    greedy.imports.append(&mut of.imports);
    greedy.services.append(&mut of.services);
    let begun = std::time::Instant::now();
    for _ in 0..3 {
        let mut desired = greedy.clone();
        let now = bench.clock.now().wall;
        bench.book.assign(&mut desired, &bench.gateways, false, now);
        assert_eq!(desired.import_ports.len(), MOST_OF_ONE + 1);
        assert!(desired.import_ports.keys().any(|of| of.service == honest));
        let numbers: BTreeSet<_> = desired.import_ports.values().collect();
        assert_eq!(numbers.len(), MOST_OF_ONE + 1);
        assert!(!numbers.contains(&16_000), "a gateway has it open");
        let told = desired.import_conditions.len();
        assert_eq!(told, names.len() - MOST_OF_ONE);
    }
    // Quadratic it would take minutes.
    assert!(begun.elapsed() < Duration::from_secs(20));
}

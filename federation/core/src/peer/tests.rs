//! The state machine driven by hand: clock, gateways and the peer's words.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::view::SHOWN_REFUSALS;
use super::*;
use crate::model::Bundle;
use crate::model::ImportFilter;
use crate::record::{Quotas, RecordBody, endpoint_key, export_key};
use crate::testing::{Clock, bundle, endpoint, export, identity, link, port, received, service};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

struct Hand {
    clock: Clock,
    peer: Peer,
}

impl Hand {
    fn new() -> Self {
        Self::with(PeerSettings::new("demo"))
    }

    fn with(settings: PeerSettings) -> Self {
        let clock = Clock::default();
        Self {
            peer: Peer::new(link("west"), Arc::new(settings), clock.now()),
            clock,
        }
    }

    fn does(&mut self, event: Event) -> Decision {
        self.peer.handle(event, self.clock.now())
    }

    fn tunnel(&mut self, gateways_up: u32) -> Decision {
        self.does(Event::Tunnel { gateways_up })
    }

    fn begin(&mut self, epoch: u64) -> Decision {
        let clock = self.clock.now().wall;
        let (cluster, clusterset) = ("west".into(), "demo".into());
        self.does(Event::Begin(Begin {
            cluster,
            clusterset,
            epoch,
            clock,
        }))
    }

    fn record(&mut self, body: RecordBody) -> Decision {
        self.does(Event::Record(Box::new(received(body))))
    }

    fn export(&mut self, key: &str) -> Decision {
        self.record(RecordBody::Export(export(key, vec![port(80)], 10)))
    }

    fn endpoint(&mut self, key: &str, uid: &str) -> Decision {
        self.record(RecordBody::Endpoint(endpoint("west", key, uid)))
    }

    /// Live, with one exported service and one endpoint of it.
    fn live() -> Self {
        let mut hand = Self::new();
        hand.go_live();
        hand
    }

    fn go_live(&mut self) {
        let _ = self.tunnel(1);
        let _ = self.begin(7);
        let _ = self.export("shop/checkout");
        let _ = self.endpoint("shop/checkout", "w1");
        let _ = self.does(Event::Complete);
        assert_eq!(self.peer.state(), PeerState::Live);
    }

    fn pass(&mut self, time: Duration) -> Decision {
        self.clock.pass(time);
        self.does(Event::Tick)
    }

    fn view(&self) -> PeerView {
        self.peer.view(self.clock.now())
    }

    fn services(&self) -> Vec<String> {
        self.view()
            .records
            .exports()
            .map(|export| export.service.to_string())
            .collect()
    }

    fn endpoints(&self, key: &str) -> usize {
        self.view().records.endpoints(&service(key)).count()
    }
}

#[test]
fn a_link_becomes_live_step_by_step() {
    let mut hand = Hand::new();
    assert_eq!(hand.peer.state(), PeerState::Pending);
    assert!(!hand.view().usable);
    assert_eq!(
        hand.tunnel(1),
        Decision {
            subscribe: true,
            changed: true,
            hangup: None
        }
    );
    assert_eq!(hand.peer.state(), PeerState::Connecting);
    assert_eq!(hand.begin(7), Decision::default());
    assert_eq!(hand.peer.state(), PeerState::Syncing);
    assert_eq!(hand.export("shop/checkout"), Decision::default());
    assert_eq!(hand.endpoint("shop/checkout", "w1"), Decision::default());
    assert!(
        hand.services().is_empty(),
        "a snapshot counts when it is complete"
    );
    assert_eq!(
        hand.does(Event::Complete),
        Decision {
            changed: true,
            ..Decision::default()
        }
    );
    assert_eq!(hand.services(), ["shop/checkout"]);
    assert_eq!(hand.endpoints("shop/checkout"), 1);
    let view = hand.view();
    assert!(view.usable && !view.stale && view.completed && view.epoch == 7);
}

#[test]
fn changes_count_at_once_when_live() {
    let mut hand = Hand::live();
    assert!(hand.endpoint("shop/checkout", "w2").changed);
    assert!(
        !hand.endpoint("shop/checkout", "w2").changed,
        "the same again changes nothing"
    );
    assert_eq!(hand.endpoints("shop/checkout"), 2);
    let key = endpoint_key(
        &service("shop/checkout"),
        &endpoint("west", "shop/checkout", "w1").endpoint.id,
    );
    assert!(hand.does(Event::Remove { key: key.clone() }).changed);
    assert!(!hand.does(Event::Remove { key }).changed);
    assert_eq!(hand.endpoints("shop/checkout"), 1);
}

#[test]
fn without_a_tunnel_the_peer_is_unusable_at_once_but_its_records_stay() {
    let mut hand = Hand::live();
    assert!(hand.tunnel(0).changed);
    assert!(!hand.view().usable);
    assert_eq!(hand.services(), ["shop/checkout"]);
    assert!(hand.tunnel(2).changed);
    assert!(hand.view().usable);
    assert_eq!(hand.tunnel(1), Decision::default(), "one gateway is enough");
}

#[test]
fn silence_makes_stale_and_asks_again() {
    let mut hand = Hand::live();
    hand.clock.pass(SECOND * 3);
    assert_eq!(hand.does(Event::Heartbeat), Decision::default());
    assert_eq!(hand.pass(SECOND * 3), Decision::default());
    let decision = hand.pass(SECOND);
    assert_eq!(
        decision,
        Decision {
            hangup: Some(Hangup::Silent),
            subscribe: true,
            changed: true
        }
    );
    let view = hand.view();
    assert!(view.usable && view.stale && view.record_age == Some(SECOND * 4));
    assert_eq!(hand.services(), ["shop/checkout"]);
}

#[test]
fn records_are_withdrawn_five_minutes_after_the_last_tunnel() {
    let mut hand = Hand::live();
    let _ = hand.does(Event::Lost);
    let _ = hand.pass(MINUTE * 10);
    assert_eq!(
        hand.services(),
        ["shop/checkout"],
        "a tunnel is up: old records are kept"
    );
    let _ = hand.tunnel(0);
    assert_eq!(hand.pass(MINUTE * 5 - SECOND), Decision::default());
    let decision = hand.pass(SECOND);
    assert_eq!(decision.hangup, Some(Hangup::Withdrawn));
    assert!(decision.changed && !decision.subscribe);
    assert!(hand.services().is_empty());
    assert_eq!(hand.peer.state(), PeerState::Pending);
}

#[test]
fn a_tunnel_that_returns_in_time_saves_the_records() {
    let mut hand = Hand::live();
    let _ = hand.tunnel(0);
    let _ = hand.pass(MINUTE * 4);
    assert!(hand.tunnel(1).subscribe, "the old stream has been silent");
    let _ = hand.pass(MINUTE * 4);
    assert_eq!(hand.services(), ["shop/checkout"]);
}

#[test]
fn a_day_without_a_word_withdraws_even_with_a_tunnel() {
    let mut hand = Hand::live();
    let _ = hand.does(Event::Lost);
    let _ = hand.pass(MINUTE * 60 * 24 - SECOND);
    assert_eq!(hand.services(), ["shop/checkout"]);
    assert!(hand.pass(SECOND).changed);
    assert!(hand.services().is_empty());
    assert_eq!(hand.peer.state(), PeerState::Connecting);
}

#[test]
fn a_resync_deletes_only_when_complete() {
    let mut hand = Hand::live();
    let _ = hand.does(Event::Lost);
    assert_eq!(hand.peer.subscription().epoch, 7);
    assert_eq!(hand.peer.subscription().known.len(), 2);
    let _ = hand.begin(8);
    let _ = hand.export("shop/mail");
    assert_eq!(hand.services(), ["shop/checkout"]);
    assert!(hand.view().stale);
    let _ = hand.does(Event::Complete);
    assert_eq!(hand.services(), ["shop/mail"]);
}

#[test]
fn a_resync_that_breaks_off_leaves_everything_as_it_was() {
    let mut hand = Hand::live();
    let _ = hand.does(Event::Lost);
    let _ = hand.begin(8);
    let _ = hand.export("shop/mail");
    let decision = hand.does(Event::Lost);
    assert!(decision.subscribe);
    assert_eq!(
        (hand.peer.state(), hand.services()),
        (PeerState::Stale, vec!["shop/checkout".into()])
    );
}

#[test]
fn unchanged_records_are_carried_over() {
    let mut hand = Hand::live();
    let known = hand.peer.subscription().known;
    let _ = hand.does(Event::Lost);
    let _ = hand.begin(7);
    for (key, hash) in &known {
        assert_eq!(
            hand.does(Event::Unchanged {
                key: key.clone(),
                hash: *hash
            }),
            Decision::default()
        );
    }
    let _ = hand.does(Event::Complete);
    assert_eq!(hand.peer.subscription().known, known);
    assert_eq!(hand.endpoints("shop/checkout"), 1);
}

#[test]
fn an_unchanged_record_that_is_not_held_ends_the_stream() {
    let mut hand = Hand::live();
    let _ = hand.begin(7);
    let key = export_key(&service("shop/mail"));
    let decision = hand.does(Event::Unchanged {
        key: key.clone(),
        hash: RecordHash([0; 16]),
    });
    assert_eq!(decision.hangup, Some(Hangup::NotHeld(key)));
    assert!(decision.subscribe);
}

#[test]
fn a_lower_epoch_is_refused() {
    let mut hand = Hand::live();
    let _ = hand.does(Event::Lost);
    let decision = hand.begin(6);
    assert_eq!(
        decision.hangup,
        Some(Hangup::OldEpoch {
            held: 7,
            offered: 6
        })
    );
    assert_eq!(hand.services(), ["shop/checkout"]);
    assert!(
        hand.view().problems[0].contains("epoch is 6"),
        "{:?}",
        hand.view().problems
    );
    assert_eq!(hand.begin(7).hangup, None);
}

#[test]
fn strangers_are_refused() {
    let mut hand = Hand::new();
    let _ = hand.tunnel(1);
    let now = hand.clock.now().wall;
    let begin = |cluster: &str, clusterset: &str, clock| {
        Event::Begin(Begin {
            cluster: cluster.into(),
            clusterset: clusterset.into(),
            epoch: 1,
            clock,
        })
    };
    assert!(matches!(
        hand.does(begin("north", "demo", now)).hangup,
        Some(Hangup::WrongCluster { .. })
    ));
    assert!(matches!(
        hand.does(begin("west", "prod", now)).hangup,
        Some(Hangup::WrongClusterset { .. })
    ));
    for wrong in [now + MINUTE * 6, now - MINUTE * 6] {
        let hangup = hand
            .does(begin("west", "demo", wrong))
            .hangup
            .expect("refused");
        assert!(hangup.to_string().contains("360s"), "{hangup}");
    }
    assert_eq!(
        hand.does(begin("west", "demo", now + MINUTE * 4)).hangup,
        None
    );
}

#[test]
fn messages_out_of_order_end_the_stream() {
    for early in [
        Event::Complete,
        Event::Heartbeat,
        Event::Remove { key: "x".into() },
    ] {
        let mut hand = Hand::new();
        let _ = hand.tunnel(1);
        assert!(matches!(
            hand.does(early).hangup,
            Some(Hangup::OutOfOrder(_))
        ));
    }
    let mut hand = Hand::live();
    assert!(matches!(
        hand.does(Event::Complete).hangup,
        Some(Hangup::OutOfOrder(_))
    ));
}

#[track_caller]
fn refused(hand: &mut Hand, body: RecordBody, words: &str) {
    let before = hand.view();
    assert!(!hand.record(body).changed);
    let after = hand.view();
    assert_eq!(after.records, before.records);
    assert_eq!(after.refused, before.refused + 1);
    let problem = after.problems.last().expect("a reason");
    assert!(problem.contains(words), "`{words}` is not in: {problem}");
}

#[test]
fn what_breaks_a_rule_of_the_link_is_refused_and_told() {
    let mut hand = Hand::live();
    let altered = |change: fn(&mut crate::model::Endpoint)| {
        let mut record = endpoint("west", "shop/checkout", "w9");
        change(Arc::make_mut(&mut record.endpoint));
        RecordBody::Endpoint(record)
    };
    refused(
        &mut hand,
        altered(|e| e.cluster = "east".parse().expect("valid")),
        "of another cluster",
    );
    refused(
        &mut hand,
        altered(|e| e.identity = identity("east", "shop", "sa")),
        "trust domain",
    );
    refused(
        &mut hand,
        altered(|e| e.identity = link("west").gateway_id),
        "not that of a workload",
    );
    refused(
        &mut hand,
        altered(|e| e.locality.zone = "z".repeat(64).into()),
        "63 characters",
    );
    refused(
        &mut hand,
        altered(|e| e.locality.zone = "\u{1b}[2J".into()),
        "not printable",
    );
    let odd = crate::model::Address {
        host: "west\n.test".into(),
        port: 1,
    };
    refused(&mut hand, RecordBody::Gateways(vec![odd]), "address");
    refused(
        &mut hand,
        RecordBody::Export(export("kube-system/dns", vec![port(53)], 1)),
        "spec.imports",
    );
    refused(
        &mut hand,
        RecordBody::Endpoint(endpoint("west", "linkspan-system/x", "w1")),
        "spec.imports",
    );
    refused(
        &mut hand,
        RecordBody::Export(export("shop/a", vec![], 1)),
        "no ports",
    );
    refused(
        &mut hand,
        RecordBody::Export(export("shop/a", vec![port(1), port(1)], 1)),
        "distinct",
    );
    refused(
        &mut hand,
        RecordBody::Export(export("shop/a", vec![port(0)], 1)),
        "above 0",
    );
    let empty = Bundle {
        roots: vec![],
        ..bundle("west.test", 3)
    };
    refused(&mut hand, RecordBody::Bundle(empty), "no roots");
}

#[test]
fn a_refused_record_leaves_its_last_good_version_also_in_a_resync() {
    let mut hand = Hand::live();
    let _ = hand.begin(8);
    let _ = hand.record(RecordBody::Export(export("shop/checkout", vec![], 1)));
    let _ = hand.does(Event::Undecodable {
        key: endpoint_key(
            &service("shop/checkout"),
            &endpoint("west", "shop/checkout", "w1").endpoint.id,
        ),
        problem: "damaged".into(),
    });
    let _ = hand.does(Event::Complete);
    assert_eq!(hand.services(), ["shop/checkout"]);
    assert_eq!(
        (hand.endpoints("shop/checkout"), hand.view().refused),
        (1, 2)
    );
}

#[test]
fn a_creation_time_is_clamped_to_the_first_receipt() {
    let mut hand = Hand::new();
    let mut early = export("shop/mail", vec![port(80)], 0);
    early.created += MINUTE * 60;
    let mut held = Vec::new();
    for epoch in [7, 8] {
        let _ = hand.tunnel(1);
        let _ = hand.begin(epoch);
        let _ = hand.record(RecordBody::Export(early.clone()));
        let _ = hand.does(Event::Complete);
        held.push(
            hand.view()
                .records
                .export(&service("shop/mail"))
                .expect("held")
                .created,
        );
        hand.clock.pass(MINUTE);
    }
    assert_eq!(held[0], held[1]);
}

#[test]
fn a_key_must_fit_its_body() {
    let mut hand = Hand::live();
    let mut record = received(RecordBody::Export(export("shop/mail", vec![port(80)], 1)));
    record.key = "export/shop/checkout".into();
    let _ = hand.does(Event::Record(Box::new(record)));
    assert_eq!(
        (hand.services(), hand.view().refused),
        (vec!["shop/checkout".into()], 1)
    );
}

#[test]
fn reasons_are_bounded_and_start_anew_with_each_snapshot() {
    let mut hand = Hand::live();
    for _ in 0..1000 {
        let (key, problem) = ("\u{1b}[31m".repeat(1000), "y".repeat(1000));
        let _ = hand.does(Event::Undecodable { key, problem });
    }
    let view = hand.view();
    assert_eq!((view.refused, view.problems.len()), (1000, SHOWN_REFUSALS));
    assert!(
        view.problems
            .iter()
            .all(|p| p.len() < 400 && !p.contains('\u{1b}'))
    );
    let _ = hand.begin(7);
    assert_eq!(hand.view().refused, 0);
    assert!(
        hand.view().refused_total > 0,
        "for a counter, which never falls"
    );
}

#[test]
fn quotas_bound_what_a_peer_can_contribute() {
    let quotas = Quotas {
        services: 1,
        endpoints: 2,
        bytes: 1400,
    };
    let mut hand = Hand::with(PeerSettings {
        quotas,
        ..PeerSettings::new("demo")
    });
    hand.go_live();
    refused(
        &mut hand,
        RecordBody::Export(export("shop/mail", vec![port(80)], 1)),
        "1 services",
    );
    let _ = hand.endpoint("shop/checkout", "w2");
    refused(
        &mut hand,
        RecordBody::Endpoint(endpoint("west", "shop/checkout", "w3")),
        "2 endpoints",
    );
    assert!(
        hand.record(RecordBody::Export(export(
            "shop/checkout",
            vec![port(81)],
            1
        )))
        .changed,
        "replacing is no more"
    );
    let many = (1..80).map(port).collect();
    refused(
        &mut hand,
        RecordBody::Export(export("shop/checkout", many, 1)),
        "1400 bytes",
    );
}

#[test]
fn quotas_hold_over_resyncs_too() {
    let quotas = Quotas {
        endpoints: 2,
        ..Quotas::default()
    };
    let mut hand = Hand::with(PeerSettings {
        quotas,
        ..PeerSettings::new("demo")
    });
    hand.go_live();
    let _ = hand.endpoint("shop/checkout", "w2");
    let held = ["w1", "w2"]
        .map(|uid| received(RecordBody::Endpoint(endpoint("west", "shop/checkout", uid))));
    let _ = hand.begin(7);
    let _ = hand.export("shop/checkout");
    let _ = hand.endpoint("shop/checkout", "w3");
    let _ = hand.endpoint("shop/checkout", "w4");
    let [refused, unchanged] = held;
    let _ = hand.does(Event::Undecodable {
        key: refused.key,
        problem: "on purpose".into(),
    });
    let _ = hand.does(Event::Unchanged {
        key: unchanged.key,
        hash: unchanged.hash,
    });
    let _ = hand.does(Event::Complete);
    assert_eq!(hand.peer.state(), PeerState::Live);
    assert_eq!(hand.endpoints("shop/checkout"), 2);
    let problems = hand.view().problems;
    assert!(
        problems.iter().any(|p| p.contains("2 endpoints")),
        "{problems:?}"
    );
}

#[test]
fn creation_times_in_the_future_are_receipt() {
    let mut hand = Hand::live();
    let mut early = export("shop/mail", vec![port(80)], 0);
    early.created += MINUTE;
    let _ = hand.record(RecordBody::Export(early));
    let held = hand
        .view()
        .records
        .export(&service("shop/mail"))
        .expect("held")
        .created;
    assert_eq!(held, hand.clock.now().wall);
}

#[test]
fn announced_roots_count_until_roots_are_declared_anew() {
    let mut hand = Hand::live();
    assert_eq!(hand.view().bundle(), &hand.peer.link().bundle);
    let announced = bundle("west.test", 9);
    let _ = hand.record(RecordBody::Bundle(announced.clone()));
    assert_eq!(hand.view().bundle(), &announced);
    refused(
        &mut hand,
        RecordBody::Bundle(bundle("west.test", 8)),
        "lower than 9",
    );
    let declared = Link {
        bundle: bundle("west.test", 0),
        ..link("west")
    };
    assert!(hand.peer.relink(declared.clone(), hand.clock.now()).changed);
    assert_eq!(hand.view().bundle(), &declared.bundle);
}

#[test]
fn connecting_again_does_not_bring_old_roots_back() {
    let mut hand = Hand::live();
    let announced = bundle("west.test", 9);
    let _ = hand.record(RecordBody::Bundle(announced.clone()));
    let _ = hand.does(Event::Lost);
    let _ = hand.begin(7);
    refused(
        &mut hand,
        RecordBody::Bundle(bundle("west.test", 8)),
        "lower than 9",
    );
    let _ = hand.does(Event::Complete);
    assert_eq!(hand.view().bundle(), &announced);
    let newer = bundle("west.test", 10);
    let _ = hand.begin(8);
    let _ = hand.record(RecordBody::Bundle(newer.clone()));
    let _ = hand.does(Event::Complete);
    assert_eq!(hand.view().bundle(), &newer);
}

#[test]
fn roots_that_are_left_out_or_outlived_are_not_forgotten() {
    let mut hand = Hand::live();
    let announced = bundle("west.test", 9);
    let _ = hand.record(RecordBody::Bundle(announced.clone()));
    let old = || RecordBody::Bundle(bundle("west.test", 8));
    // A snapshot without roots, a removal, and the loss of all records.
    let _ = hand.begin(8);
    let _ = hand.does(Event::Complete);
    refused(&mut hand, old(), "lower than 9");
    let _ = hand.does(Event::Remove {
        key: crate::record::BUNDLE_KEY.into(),
    });
    refused(&mut hand, old(), "lower than 9");
    assert_eq!(hand.view().bundle(), &announced);
    let _ = hand.does(Event::Tunnel { gateways_up: 0 });
    let _ = hand.does(Event::Lost);
    hand.clock.pass(MINUTE * 60 * 25);
    let _ = hand.does(Event::Tick);
    assert!(hand.view().records.is_empty(), "withdrawn");
    assert_eq!(hand.view().bundle(), &announced);
}

#[test]
fn announced_roots_outlive_a_restart_but_not_the_declaration() {
    let mut hand = Hand::live();
    let announced = bundle("west.test", 9);
    let _ = hand.record(RecordBody::Bundle(announced.clone()));
    let kept = hand.peer.announced().expect("it announced");
    let now = hand.clock.now();
    let settings = || Arc::new(PeerSettings::new("demo"));
    let declared = (**hand.peer.link()).clone();
    let mut again = Peer::new(declared.clone(), settings(), now);
    again.restore(kept.clone());
    assert_eq!(again.view(now).bundle(), &announced);
    assert_eq!(again.subscription().roots[0], announced);
    let edited = Link {
        bundle: Bundle {
            roots: bundle("north.test", 0).roots,
            ..declared.bundle.clone()
        },
        ..declared
    };
    let mut other = Peer::new(edited.clone(), settings(), now);
    other.restore(kept);
    assert_eq!(other.view(now).bundle(), &edited.bundle);
    assert_eq!(other.subscription().roots, [edited.bundle]);
}

#[test]
fn narrower_imports_take_effect_at_once() {
    let mut hand = Hand::live();
    let imports = ImportFilter {
        patterns: Some(vec![]),
    };
    let narrower = Link {
        imports,
        ..(**hand.peer.link()).clone()
    };
    let decision = hand.peer.relink(narrower, hand.clock.now());
    assert!(decision.changed && decision.subscribe && decision.hangup == Some(Hangup::Relinked));
    assert!(hand.services().is_empty());
}

#[test]
fn other_addresses_do_not_disturb_a_live_link() {
    let mut hand = Hand::live();
    let mut moved = (**hand.peer.link()).clone();
    moved.addresses.push(crate::model::Address {
        host: "10.0.0.1".into(),
        port: 1,
    });
    let decision = hand.peer.relink(moved.clone(), hand.clock.now());
    assert_eq!(
        decision,
        Decision {
            changed: true,
            ..Decision::default()
        }
    );
    assert_eq!(hand.peer.state(), PeerState::Live);
    assert_eq!(
        hand.peer.relink(moved, hand.clock.now()),
        Decision::default()
    );
}

#[test]
fn another_trust_domain_is_another_peer() {
    let mut hand = Hand::live();
    let other = Link {
        cluster: "west".parse().expect("valid"),
        ..link("north")
    };
    assert!(hand.peer.relink(other, hand.clock.now()).changed);
    assert!(hand.services().is_empty());
    assert_eq!(hand.peer.subscription().epoch, 0);
}

#[test]
fn a_removed_link_leaves_nothing() {
    let mut hand = Hand::live();
    assert!(hand.peer.remove().changed);
    assert!(hand.services().is_empty() && !hand.view().usable && !hand.peer.wants_sync());
    assert_eq!(hand.begin(9).hangup, Some(Hangup::Removed));
}

fn any_event() -> impl Strategy<Value = (u32, Option<Event>)> {
    let uid = prop::sample::select(vec!["w1", "w2", "w3"]);
    let key = prop::sample::select(vec!["shop/checkout", "shop/mail", "kube-system/dns"]);
    let event = prop_oneof![
        (0u32..3).prop_map(|gateways_up| Event::Tunnel { gateways_up }),
        key.clone().prop_map(
            |key| Event::Record(Box::new(received(RecordBody::Export(export(
                key,
                vec![port(80)],
                1
            )))))
        ),
        (key.clone(), uid).prop_map(|(key, uid)| Event::Record(Box::new(received(
            RecordBody::Endpoint(endpoint("west", key, uid))
        )))),
        key.prop_map(|key| Event::Remove {
            key: export_key(&service(key))
        }),
        Just(Event::Complete),
        Just(Event::Heartbeat),
        Just(Event::Lost),
        Just(Event::Tick),
    ];
    // `None` stands for Begin, which needs the clock.
    (0u32..400, prop::option::weighted(0.85, event))
}

proptest! {
    /// Whatever happens in whatever order: records go only by a complete snapshot, by a
    /// removal when live, or by the two deadlines; counts add up; nothing panics.
    #[test]
    fn nothing_is_deleted_before_its_time(events in prop::collection::vec(any_event(), 1..80)) {
        let mut hand = Hand::live();
        for (seconds, event) in events {
            hand.clock.pass(SECOND * seconds);
            let before = hand.view();
            let may_delete = matches!(event, Some(Event::Complete | Event::Remove { .. }))
                || matches!(before.record_age, Some(age) if age >= MINUTE * 5 && !before.usable);
            let decision = match event {
                Some(event) => hand.does(event),
                None => hand.begin(7),
            };
            let after = hand.view();
            if !may_delete {
                for key in before.records.known().keys() {
                    prop_assert!(after.records.known().contains_key(key), "{key} went from {:?} to {:?}", before.state, after.state);
                }
            }
            if before.records.known() != after.records.known() || before.usable != after.usable {
                prop_assert!(decision.changed);
            }
            prop_assert_eq!(after.stale, after.state != PeerState::Live);
            prop_assert!(after.records.exports().all(|e| e.service.namespace.as_str() == "shop"));
            if after.state == PeerState::Pending || after.state == PeerState::Connecting {
                prop_assert!(after.records.is_empty());
            }
        }
    }
}

//! Streams, leases and restarts, by hand.

use proptest::prelude::*;

use super::*;
use crate::testing::{Clock, identity, registration};

const SECOND: Duration = Duration::from_secs(1);

fn presence(workloads: &Workloads, uid: &str) -> &'static str {
    workloads
        .get(uid)
        .map_or("unknown", |workload| workload.presence.text())
}

fn register(
    workloads: &mut Workloads,
    uid: &str,
    session: u64,
    clock: &Clock,
) -> Result<bool, RegistrationError> {
    workloads.register(
        registration(uid, "shop", "checkout"),
        Session(session),
        clock.now().instant,
    )
}

fn counting(workloads: &Workloads) -> Vec<&str> {
    workloads
        .counting()
        .map(|registration| registration.uid.as_str())
        .collect()
}

#[test]
fn a_workload_counts_while_heard_and_one_lease_longer() {
    let (mut clock, mut workloads) = (Clock::default(), Workloads::default());
    assert_eq!(register(&mut workloads, "w1", 1, &clock), Ok(true));
    clock.pass(SECOND * 9);
    assert_eq!(
        register(&mut workloads, "w1", 1, &clock),
        Ok(false),
        "a heartbeat"
    );
    assert!(!workloads.tick(clock.pass(SECOND * 9).instant));
    assert_eq!(presence(&workloads, "w1"), "connected");
    workloads.disconnect("w1", Session(1), clock.now().instant);
    assert_eq!(presence(&workloads, "w1"), "lease");
    assert_eq!(counting(&workloads), ["w1"]);
    assert_eq!(workloads.next_lapse(), Some(clock.now().instant + SECOND));
    assert!(workloads.tick(clock.pass(SECOND).instant));
    assert_eq!(
        (presence(&workloads, "w1"), counting(&workloads)),
        ("lapsed", vec![])
    );
    assert_eq!(workloads.next_lapse(), None);
}

#[test]
fn a_silent_stream_lapses_without_an_end() {
    let (mut clock, mut workloads) = (Clock::default(), Workloads::default());
    register(&mut workloads, "w1", 1, &clock).expect("good");
    assert!(workloads.tick(clock.pass(LEASE).instant));
    assert_eq!(presence(&workloads, "w1"), "lapsed");
}

#[test]
fn a_stream_given_up_for_its_silence_does_not_renew_the_lease() {
    let (mut clock, mut workloads) = (Clock::default(), Workloads::default());
    register(&mut workloads, "w1", 1, &clock).expect("good");
    let now = clock.pass(LEASE).instant;
    workloads.disconnect("w1", Session(1), now);
    assert!(workloads.tick(now));
    assert_eq!(presence(&workloads, "w1"), "lapsed");
}

#[test]
fn one_that_lapsed_can_return_and_is_forgotten_if_not() {
    let (mut clock, mut workloads) = (Clock::default(), Workloads::default());
    register(&mut workloads, "w1", 1, &clock).expect("good");
    workloads.tick(clock.pass(LEASE).instant);
    assert_eq!(
        register(&mut workloads, "w1", 2, &clock),
        Ok(true),
        "it counts again"
    );
    workloads.tick(clock.pass(LEASE).instant);
    assert!(workloads.tick(clock.pass(KEEP_LAPSED).instant));
    assert_eq!(presence(&workloads, "w1"), "unknown");
}

#[test]
fn only_the_newest_stream_speaks() {
    let (clock, mut workloads) = (Clock::default(), Workloads::default());
    register(&mut workloads, "w1", 1, &clock).expect("good");
    register(&mut workloads, "w1", 2, &clock).expect("good");
    let late = register(&mut workloads, "w1", 1, &clock);
    assert_eq!(
        late,
        Err(RegistrationError::Superseded { uid: "w1".into() })
    );
    workloads.disconnect("w1", Session(1), clock.now().instant);
    assert_eq!(presence(&workloads, "w1"), "connected");
}

#[test]
fn one_identity_cannot_lock_the_others_out() {
    let (mut clock, mut workloads) = (Clock::default(), Workloads::default());
    for number in 0..MAX_PER_IDENTITY {
        let greedy = registration(&format!("g{number}"), "shop", "greedy");
        workloads
            .register(greedy, Session(1), clock.now().instant)
            .expect("within the limit");
    }
    let one_more = registration("g", "shop", "greedy");
    let refused = workloads.register(one_more.clone(), Session(1), clock.now().instant);
    assert!(
        matches!(refused, Err(RegistrationError::TooMany { .. })),
        "{refused:?}"
    );
    assert_eq!(register(&mut workloads, "w1", 1, &clock), Ok(true));
    workloads.tick(clock.pass(LEASE).instant);
    let later = workloads.register(one_more, Session(1), clock.now().instant);
    assert_eq!(later, Ok(true), "the others do not count any more");
}

#[test]
fn those_that_lapsed_make_room() {
    let mut clock = Clock::default();
    let many = (0..MAX_WORKLOADS).map(|n| registration(&format!("w{n}"), "shop", "checkout"));
    let mut workloads = Workloads::restored(many, LEASE, clock.now().instant);
    let refused = register(&mut workloads, "new", 1, &clock);
    assert!(refused.is_err(), "all count: {refused:?}");
    workloads.tick(clock.pass(LEASE).instant);
    assert_eq!(register(&mut workloads, "new", 1, &clock), Ok(true));
    assert_eq!(workloads.iter().count(), 1);
}

#[test]
fn a_uid_stays_with_the_identity_that_registered_it_first() {
    let (mut clock, mut workloads) = (Clock::default(), Workloads::default());
    register(&mut workloads, "w1", 1, &clock).expect("good");
    let thief = Registration {
        identity: identity("east", "shop", "thief"),
        ..registration("w1", "shop", "thief")
    };
    let refused = workloads.register(thief.clone(), Session(2), clock.now().instant);
    assert!(
        matches!(refused, Err(RegistrationError::Taken { .. })),
        "{refused:?}"
    );
    // Nor from one that is gone, also after a restart.
    workloads.tick(clock.pass(LEASE).instant);
    let now = clock.pass(LEASE * 1_000).instant;
    workloads.tick(now);
    assert!(workloads.iter().next().is_none());
    let mut again = Workloads::restored([], LEASE, now);
    again.restore_owners(workloads.owned());
    for workloads in [&mut workloads, &mut again] {
        let refused = workloads.register(thief.clone(), Session(3), now);
        assert!(
            matches!(refused, Err(RegistrationError::Taken { .. })),
            "{refused:?}"
        );
    }
}

#[test]
fn after_a_restart_each_counts_for_one_full_lease() {
    let mut clock = Clock::default();
    let persisted = [
        registration("w1", "shop", "checkout"),
        registration("w2", "shop", "checkout"),
    ];
    let mut workloads = Workloads::restored(persisted, LEASE, clock.now().instant);
    assert!(!workloads.settled());
    assert_eq!(counting(&workloads), ["w1", "w2"]);
    clock.pass(SECOND * 4);
    assert_eq!(
        register(&mut workloads, "w1", 1, &clock),
        Ok(false),
        "it says what it said before"
    );
    assert!(!workloads.settled());
    assert!(workloads.tick(clock.pass(SECOND * 6).instant));
    assert!(workloads.settled());
    assert_eq!(counting(&workloads), ["w1"]);
}

#[test]
fn what_was_persisted_wrongly_is_left_out() {
    let bad = Registration {
        weight: 0,
        ..registration("w1", "shop", "checkout")
    };
    let workloads = Workloads::restored([bad], LEASE, Clock::default().now().instant);
    assert!(workloads.settled() && counting(&workloads).is_empty());
}

#[test]
fn registrations_survive_the_disk() {
    let mut written = registration("w1", "shop", "checkout");
    written.locality = Locality {
        region: "eu".into(),
        zone: "a".into(),
    };
    let text = serde_json::to_string(&written).expect("writes");
    assert_eq!(
        serde_json::from_str::<Registration>(&text).expect("reads"),
        written
    );
}

#[test]
fn each_field_has_its_rule() {
    let good = || registration("w1", "shop", "checkout");
    assert_eq!(good().check(), Ok(()));
    let cases = [
        (
            "identity",
            Registration {
                identity: crate::testing::link("east").gateway_id,
                ..good()
            },
        ),
        (
            "namespace",
            Registration {
                namespace: "other".into(),
                ..good()
            },
        ),
        (
            "uid",
            Registration {
                uid: String::new(),
                ..good()
            },
        ),
        (
            "uid",
            Registration {
                uid: "a\nb".into(),
                ..good()
            },
        ),
        (
            "uid",
            Registration {
                uid: "123E4567-e89b-12d3-a456-426614174000".into(),
                ..good()
            },
        ),
        (
            "labels",
            Registration {
                labels: (0..20)
                    .map(|n| (n.to_string().repeat(60), "v".repeat(63)))
                    .collect(),
                ..good()
            },
        ),
        (
            "labels",
            Registration {
                labels: (0..65).map(|n| (n.to_string(), String::new())).collect(),
                ..good()
            },
        ),
        (
            "locality",
            Registration {
                locality: Locality {
                    region: "r".repeat(64).into(),
                    zone: "".into(),
                },
                ..good()
            },
        ),
        (
            "hostname",
            Registration {
                hostname: "h".repeat(254),
                ..good()
            },
        ),
        (
            "address",
            Registration {
                address: ([0, 0, 0, 0], 1).into(),
                ..good()
            },
        ),
        (
            "address",
            Registration {
                address: ([127, 0, 0, 1], 0).into(),
                ..good()
            },
        ),
        (
            "weight",
            Registration {
                weight: 129,
                ..good()
            },
        ),
    ];
    for (field, registration) in cases {
        let error = registration.check().expect_err(field).to_string();
        assert!(
            error.starts_with(&format!("workload {field} is ")),
            "{error}"
        );
    }
}

proptest! {
    /// A workload counts exactly while it was heard less than one lease ago.
    #[test]
    fn leases_are_exact(steps in prop::collection::vec((0u64..15, 0u8..3), 1..40)) {
        let (mut clock, mut workloads) = (Clock::default(), Workloads::default());
        let mut until = None;
        let mut open = false;
        for (seconds, what) in steps {
            let now = clock.pass(SECOND * u32::try_from(seconds).expect("small")).instant;
            workloads.tick(now);
            if until.is_some_and(|until| now >= until) {
                open = false;
            }
            match what {
                0 => {
                    register(&mut workloads, "w1", 1, &clock).expect("good");
                    (until, open) = (Some(now + LEASE), true);
                }
                1 if open => {
                    workloads.disconnect("w1", Session(1), now);
                    // What is left of the lease, not a new one.
                    open = false;
                }
                _ => {}
            }
            let counts = until.is_some_and(|until| now < until);
            prop_assert_eq!(counting(&workloads).len(), usize::from(counts));
        }
    }
}

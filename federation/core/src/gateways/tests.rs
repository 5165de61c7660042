//! What replicas see adds up, for as long as they count.

use super::*;
use crate::testing::Clock;

fn gateway(replica: &str, port: u16) -> GatewayRegistration {
    GatewayRegistration {
        replica: replica.into(),
        egress_address: ([127, 0, 0, 1], port).into(),
        tunnel_addresses: vec![Address {
            host: "127.0.0.1".into(),
            port,
        }],
        ready: true,
        draining: false,
        imports: None,
    }
}

fn west() -> ClusterId {
    "west".parse().expect("valid")
}

fn up(connections: u32, millis: u64) -> BTreeMap<ClusterId, PeerHealth> {
    BTreeMap::from([(
        west(),
        PeerHealth {
            up: true,
            connections,
            rtt: Duration::from_millis(millis),
            removed: None,
        },
    )])
}

#[test]
fn a_peer_is_up_while_any_replica_has_it_up() {
    let (mut clock, mut gateways) = (Clock::default(), Gateways::default());
    for (replica, port, session) in [("g1", 1, 1), ("g2", 2, 2)] {
        assert_eq!(
            gateways.register(
                gateway(replica, port),
                Session(session),
                clock.now().instant
            ),
            Ok(true)
        );
    }
    assert_eq!(gateways.summary(&west()), LinkSummary::default());
    assert!(gateways.report("g1", Session(1), up(2, 9)));
    assert!(gateways.report("g2", Session(2), up(1, 7)));
    assert!(
        !gateways.report("g2", Session(2), up(1, 7)),
        "the same again changes nothing"
    );
    let both = LinkSummary {
        gateways_up: 2,
        connections: 3,
        rtt: Duration::from_millis(7),
    };
    assert_eq!(gateways.summary(&west()), both);
    gateways.disconnect("g2", Session(2), clock.now().instant);
    assert!(gateways.tick(clock.pass(PARTED).instant));
    assert_eq!(
        gateways.summary(&west()).gateways_up,
        1,
        "the other is silent, but there"
    );
    assert!(gateways.tick(clock.pass(LEASE - PARTED).instant));
    assert_eq!(gateways.summary(&west()), LinkSummary::default());
}

#[test]
fn a_removal_is_what_a_replica_that_counts_was_told() {
    let (mut clock, mut gateways) = (Clock::default(), Gateways::default());
    let now = clock.now().instant;
    gateways
        .register(gateway("g1", 1), Session(1), now)
        .expect("good");
    assert_eq!(gateways.removals(&west()).count(), 0);
    let removed = Removed {
        invitation: Some(InvitationId([7; 16])),
    };
    let health = PeerHealth {
        removed: Some(removed),
        ..PeerHealth::default()
    };
    gateways.report("g1", Session(1), [(west(), health)].into());
    assert!(gateways.removals(&west()).eq([removed]));
    let later = clock.pass(LEASE).instant;
    gateways.tick(later);
    assert_eq!(gateways.removals(&west()).count(), 0);
}

#[test]
fn an_old_stream_reports_nothing() {
    let (clock, mut gateways) = (Clock::default(), Gateways::default());
    gateways
        .register(gateway("g1", 1), Session(1), clock.now().instant)
        .expect("good");
    gateways
        .register(gateway("g1", 1), Session(2), clock.now().instant)
        .expect("good");
    assert!(!gateways.report("g1", Session(1), up(1, 1)));
    assert!(
        !gateways.report("g9", Session(1), up(1, 1)),
        "nor does a stranger"
    );
    let late = gateways.register(gateway("g1", 1), Session(1), clock.now().instant);
    assert_eq!(
        late,
        Err(GatewayError::Superseded {
            replica: "g1".into()
        })
    );
}

#[test]
fn a_replica_that_lapsed_starts_without_its_former_health() {
    let (mut clock, mut gateways) = (Clock::default(), Gateways::default());
    gateways
        .register(gateway("g1", 1), Session(1), clock.now().instant)
        .expect("good");
    gateways.report("g1", Session(1), up(1, 1));
    gateways.tick(clock.pass(LEASE).instant);
    gateways
        .register(gateway("g1", 1), Session(2), clock.now().instant)
        .expect("good");
    assert_eq!(gateways.summary(&west()).gateways_up, 0);
}

#[test]
fn peers_are_told_of_replicas_that_take_tunnels() {
    let (clock, mut gateways) = (Clock::default(), Gateways::default());
    let now = clock.now().instant;
    gateways
        .register(gateway("g1", 1), Session(1), now)
        .expect("good");
    gateways
        .register(gateway("g1-twin", 1), Session(2), now)
        .expect("good");
    gateways
        .register(
            GatewayRegistration {
                draining: true,
                imports: None,
                ..gateway("g2", 2)
            },
            Session(3),
            now,
        )
        .expect("good");
    gateways
        .register(
            GatewayRegistration {
                ready: false,
                ..gateway("g3", 3)
            },
            Session(4),
            now,
        )
        .expect("good");
    assert_eq!(
        gateways.tunnel_addresses(),
        gateway("g1", 1).tunnel_addresses
    );
}

#[test]
fn who_advertises_nothing_is_reached_at_what_stands_before_all() {
    let (clock, mut gateways) = (Clock::default(), Gateways::default());
    let balancer = vec![Address {
        host: "lb.example".into(),
        port: 15443,
    }];
    assert!(gateways.reached_at(balancer.clone()));
    assert!(!gateways.reached_at(balancer.clone()));
    // Before there is a replica nobody would answer there.
    assert_eq!(gateways.tunnel_addresses(), []);
    let plain = GatewayRegistration {
        tunnel_addresses: Vec::new(),
        ..gateway("g1", 1)
    };
    let now = clock.now().instant;
    gateways.register(plain, Session(1), now).expect("good");
    assert_eq!(gateways.tunnel_addresses(), balancer);
    let own = gateway("g2", 2);
    gateways
        .register(own.clone(), Session(2), now)
        .expect("good");
    let both: std::collections::BTreeSet<_> =
        balancer.into_iter().chain(own.tunnel_addresses).collect();
    assert_eq!(gateways.tunnel_addresses(), Vec::from_iter(both));
}

#[test]
fn replicas_need_names() {
    let (clock, mut gateways) = (Clock::default(), Gateways::default());
    for name in ["", &"g".repeat(64)] {
        let refused = gateways.register(gateway(name, 1), Session(1), clock.now().instant);
        assert!(matches!(refused, Err(GatewayError::Name { .. })));
    }
}

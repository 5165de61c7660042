//! Links come and go; gateways see the peers or do not.

use super::*;
use crate::gateways::{GatewayRegistration, LEASE, PeerHealth};
use crate::peer::{Hangup, PeerState};
use crate::presence::Session;
use crate::testing::{Clock, link};

fn links(clusters: &[&str]) -> BTreeMap<ClusterId, Link> {
    clusters
        .iter()
        .map(|cluster| link(cluster))
        .map(|link| (link.cluster.clone(), link))
        .collect()
}

fn gateways_that_see(cluster: &str, clock: &Clock) -> Gateways {
    let mut gateways = Gateways::new();
    let registration = GatewayRegistration {
        replica: "g1".into(),
        egress_address: ([127, 0, 0, 1], 1).into(),
        tunnel_addresses: vec![],
        ready: true,
        draining: false,
        imports: None,
    };
    gateways
        .register(registration, Session(1), clock.now().instant)
        .expect("good");
    let health = PeerHealth {
        up: true,
        connections: 1,
        ..PeerHealth::default()
    };
    let cluster = cluster.parse().expect("valid");
    gateways.report("g1", Session(1), BTreeMap::from([(cluster, health)]));
    gateways
}

#[test]
fn only_peers_that_are_seen_are_asked() {
    let clock = Clock::default();
    let mut peers = Peers::new(PeerSettings::new("demo"));
    assert_eq!(
        peers.relink(&links(&["north", "west"]), clock.now()).len(),
        2
    );
    let decisions = peers.observe(&gateways_that_see("west", &clock), clock.now());
    let subscribed: Vec<_> = decisions
        .iter()
        .map(|(id, d)| (id.to_string(), d.subscribe))
        .collect();
    assert_eq!(subscribed, [("west".to_owned(), true)]);
    let view = peers.view(clock.now());
    let states: Vec<_> = view
        .values()
        .map(|peer| (peer.state, peer.usable))
        .collect();
    assert_eq!(
        states,
        [(PeerState::Pending, false), (PeerState::Connecting, true)]
    );
}

#[test]
fn a_gateway_that_lapses_takes_its_peers_along() {
    let mut clock = Clock::default();
    let mut peers = Peers::new(PeerSettings::new("demo"));
    let _ = peers.relink(&links(&["west"]), clock.now());
    let mut gateways = gateways_that_see("west", &clock);
    let _ = peers.observe(&gateways, clock.now());
    gateways.tick(clock.pass(LEASE).instant);
    let decisions = peers.observe(&gateways, clock.now());
    assert!(decisions[0].1.changed);
    assert!(peers.view(clock.now()).values().all(|peer| !peer.usable));
}

#[test]
fn a_link_that_is_gone_is_hung_up_and_forgotten() {
    let clock = Clock::default();
    let mut peers = Peers::new(PeerSettings::new("demo"));
    let mut declared = links(&["north", "west"]);
    let _ = peers.relink(&declared, clock.now());
    declared.retain(|cluster, _| cluster.as_str() == "north");
    let decisions = peers.relink(&declared, clock.now());
    let west: ClusterId = "west".parse().expect("valid");
    assert_eq!(decisions.len(), 1, "north is as it was");
    assert_eq!(
        (&decisions[0].0, &decisions[0].1.hangup),
        (&west, &Some(Hangup::Removed))
    );
    assert!(peers.get(&west).is_none());
    let late = peers.handle(&west, Event::Heartbeat, clock.now());
    assert_eq!(late.hangup, Some(Hangup::Removed));
}

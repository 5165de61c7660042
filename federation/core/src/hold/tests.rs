//! Nothing is taken away before everybody has had a chance to speak.

use super::*;
use crate::peer::{Begin, Event, PeerSettings};
use crate::peers::Peers;
use crate::testing::{Clock, link};

fn west() -> ClusterId {
    "west".parse().expect("valid")
}

fn linked(clock: &Clock) -> Peers {
    let mut peers = Peers::new(PeerSettings::new("demo"));
    let links = [(west(), link("west"))].into_iter().collect();
    let _ = peers.relink(&links, clock.now());
    peers
}

fn complete(peers: &mut Peers, clock: &Clock) {
    let begin = Begin {
        cluster: "west".into(),
        clusterset: "demo".into(),
        epoch: 1,
        clock: clock.now().wall,
    };
    for event in [
        Event::Tunnel { gateways_up: 1 },
        Event::Begin(begin),
        Event::Complete,
    ] {
        let _ = peers.handle(&west(), event, clock.now());
    }
}

#[test]
fn it_ends_when_workloads_have_settled_and_links_completed() {
    let clock = Clock::default();
    let now = clock.now();
    let mut peers = linked(&clock);
    let mut hold = RemovalHold::new([west()], LINK_GRACE, now.instant);
    assert!(hold.holds());
    assert!(!hold.observe(true, &peers.view(now), now.instant));
    complete(&mut peers, &clock);
    assert!(!hold.observe(false, &peers.view(now), now.instant));
    assert!(hold.observe(true, &peers.view(now), now.instant));
    assert!(!hold.holds());
    assert!(
        !hold.observe(true, &peers.view(now), now.instant),
        "it ends once"
    );
}

#[test]
fn a_dead_link_is_waited_for_no_longer_than_its_grace() {
    let mut clock = Clock::default();
    let peers = linked(&clock);
    let mut hold = RemovalHold::new([west()], LINK_GRACE, clock.now().instant);
    let now = clock.pass(LINK_GRACE);
    assert_eq!(hold.grace_ends(), Some(now.instant));
    assert!(
        !hold.observe(false, &peers.view(now), now.instant),
        "workloads are always waited for"
    );
    assert!(hold.observe(true, &peers.view(now), now.instant));
}

#[test]
fn a_link_that_was_removed_is_not_waited_for() {
    let clock = Clock::default();
    let mut hold = RemovalHold::new([west()], LINK_GRACE, clock.now().instant);
    assert!(hold.observe(true, &PeersView::new(), clock.now().instant));
}

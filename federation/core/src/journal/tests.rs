use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::model::{Address, Endpoint, Export, ExportedEndpoint};
use crate::peer::{Event, Now, Peer, PeerSettings, PeerState};
use crate::peers::{Journals, Peers};
use crate::record::RecordBody;
use crate::testing::{self, Clock, endpoint, export, named_port, received};

fn labelled() -> ExportedEndpoint {
    let mut of = endpoint("west", "shop/checkout", "pod-1");
    let labels = [("version".to_owned(), "v2".to_owned())].into();
    of.endpoint = Arc::new(Endpoint {
        labels,
        ..Arc::unwrap_or_clone(of.endpoint)
    });
    of
}

fn bodies() -> Vec<RecordBody> {
    vec![
        RecordBody::Export(Export {
            unmeshed_clients: true,
            ..export("shop/checkout", vec![named_port("http", 80)], 50)
        }),
        RecordBody::Endpoint(labelled()),
        RecordBody::Bundle(testing::bundle("west.test", 7)),
        RecordBody::Gateways(vec![Address {
            host: "gateway.west.example".into(),
            port: 15443,
        }]),
    ]
}

fn kept(link: &Link, now: Now) -> Kept {
    let mut records = PeerRecords::default();
    for body in bodies() {
        records
            .accept(link, &Quotas::default(), received(body), now.wall)
            .expect("a good record");
    }
    Kept {
        trust_domain: link.trust_domain.clone(),
        epoch: 9,
        confirmed: now.wall,
        records: Arc::new(records),
    }
}

fn read(bytes: &[u8], link: &Link) -> Kept {
    decode(bytes, link, &Quotas::default())
        .expect("whole")
        .expect("of this link")
}

#[test]
fn what_was_kept_is_read_back() {
    let link = testing::link("west");
    let kept = kept(&link, Clock::default().now());
    assert_eq!(read(&encode(&kept, &link), &link), kept);
}

#[test]
fn of_another_trust_domain_nothing_is_taken_over() {
    let link = testing::link("west");
    let bytes = encode(&kept(&link, Clock::default().now()), &link);
    let other = Link {
        trust_domain: "other.test".parse().expect("a domain"),
        ..link
    };
    assert_eq!(decode(&bytes, &other, &Quotas::default()), Ok(None));
}

#[test]
fn roots_declared_anew_replace_announced_ones() {
    let link = testing::link("west");
    let bytes = encode(&kept(&link, Clock::default().now()), &link);
    let renewed = Link {
        bundle: testing::bundle("west.test", 0),
        ..link
    };
    let records = read(&bytes, &renewed).records;
    assert_eq!(records.bundle(), None);
    assert_eq!(records.len(), bodies().len() - 1);
}

#[test]
fn what_the_link_no_longer_allows_is_left_out() {
    let mut link = testing::link("west");
    let bytes = encode(&kept(&link, Clock::default().now()), &link);
    link.imports.patterns = Some(Vec::new());
    assert_eq!(read(&bytes, &link).records.exports().count(), 0);
}

#[test]
fn what_another_version_wrote_is_asked_for_again() {
    let link = testing::link("west");
    let kept = kept(&link, Clock::default().now());
    let mut document = super::read(&encode(&kept, &link)).expect("whole");
    document.version = "0.0.0".into();
    let records = read(&pack(&document), &link).records;
    assert_eq!(records.len(), kept.records.len());
    assert!(records.known().values().all(|hash| *hash == STALE_HASH));
}

proptest! {
    #[test]
    fn damage_is_noticed(at in any::<prop::sample::Index>(), bit in 0..8_u8, cut in any::<bool>()) {
        let link = testing::link("west");
        let mut bytes = encode(&kept(&link, Clock::default().now()), &link);
        let at = at.index(bytes.len());
        if cut { bytes.truncate(at) } else { bytes[at] ^= 1 << bit }
        prop_assert_eq!(
            decode(&bytes, &link, &Quotas::default()),
            Err(DamagedJournal::Checksum)
        );
    }

    #[test]
    fn bytes_with_a_good_checksum_never_panic(packed in any::<Vec<u8>>()) {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(digest(&SHA256, &packed).as_ref());
        bytes.extend_from_slice(&packed);
        let _ = decode(&bytes, &testing::link("west"), &Quotas::default());
    }
}

fn settings() -> PeerSettings {
    PeerSettings::new("demo")
}

fn restarted(link: &Link, journal: Result<Vec<u8>, String>, now: Now) -> Peers {
    let journals = Journals::from([(link.cluster.clone(), journal)]);
    let mut peers = Peers::new(settings());
    peers.remember(journals);
    peers.relink(&[(link.cluster.clone(), link.clone())].into(), now);
    peers
}

#[test]
fn a_peer_that_is_cut_off_keeps_its_records_over_a_restart_until_stale_ttl() {
    let link = testing::link("west");
    let mut clock = Clock::default();
    let bytes = encode(&kept(&link, clock.now()), &link);
    // Longer down than records outlive a tunnel: nothing is deleted nevertheless.
    let mut peers = restarted(&link, Ok(bytes), clock.pass(Duration::from_secs(3600)));
    let view = |peers: &Peers, now| peers.view(now)[&link.cluster].clone();
    let seen = view(&peers, clock.now());
    assert_eq!(
        (seen.state, seen.usable, seen.stale),
        (PeerState::Stale, false, true)
    );
    assert_eq!(seen.records.exports().count(), 1);
    assert_eq!(seen.record_age, Some(Duration::from_secs(3600)));
    peers.tick(clock.pass(settings().stale_ttl - Duration::from_secs(1)));
    assert_eq!(view(&peers, clock.now()).records.exports().count(), 1);
    peers.tick(clock.pass(Duration::from_secs(1)));
    assert_eq!(view(&peers, clock.now()).records.exports().count(), 0);
}

#[test]
fn a_restored_peer_says_what_it_holds() {
    let link = testing::link("west");
    let now = Clock::default().now();
    let kept = kept(&link, now);
    let mut peer = Peer::restored(link, Arc::new(settings()), kept.clone(), now);
    let start = peer.subscription();
    assert_eq!((start.epoch, start.known), (9, kept.records.known()));
    let decision = peer.handle(Event::Tunnel { gateways_up: 1 }, now);
    assert!(decision.subscribe);
    assert_eq!(peer.keep(now), Keep::This(kept));
}

#[test]
fn a_damaged_journal_is_told_and_hurts_nobody() {
    let link = testing::link("west");
    let now = Clock::default().now();
    let mut bytes = encode(&kept(&link, now), &link);
    bytes.pop();
    for journal in [Ok(bytes), Err("2 of 3 parts are missing".to_owned())] {
        let peers = restarted(&link, journal, now);
        let view = &peers.view(now)[&link.cluster];
        assert_eq!(view.state, PeerState::Pending);
        assert!(
            view.problems[0].contains("cannot be used"),
            "{:?}",
            view.problems
        );
    }
}

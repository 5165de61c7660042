use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use proptest::prelude::*;

use super::*;
use crate::model::{ClusterId, OwnCluster, TrustDomain};
use crate::testing::link;
use crate::testing::secret::traces;

const MINUTE: Duration = Duration::from_secs(60);

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn cluster(name: &str) -> ClusterId {
    name.parse().unwrap()
}

fn domain(name: &str) -> TrustDomain {
    format!("{name}.test").parse().unwrap()
}

fn accepter(name: &str, roots: u8) -> Accepter {
    Accepter {
        cluster: cluster(name),
        roots: RootsDigest([roots; 32]),
    }
}

const ID: InvitationId = InvitationId([7; 16]);

fn offered(offer: Offer) -> LinkBook {
    let mut book = LinkBook::default();
    book.offer(ID, [1; 32], now() + 15 * MINUTE, offer).unwrap();
    book
}

fn problem<T: std::fmt::Debug>(result: Result<T, Refusal>) -> Problem {
    result.unwrap_err().problem
}

fn take(book: &mut LinkBook, by: Accepter, at: SystemTime) -> Result<Consumed, Refusal> {
    let domain = domain(by.cluster.as_str());
    book.consume(&ID, by, domain, at)
}

#[test]
fn the_first_accepter_takes_it_and_may_take_it_again() {
    let mut book = offered(Offer::default());
    take(&mut book, accepter("east", 1), now()).unwrap();
    let held = book.clone();
    take(&mut book, accepter("east", 1), now() + MINUTE).unwrap();
    assert_eq!(book, held, "trying again changes nothing");
    // The same name with other roots is somebody else.
    for other in [accepter("east", 2), accepter("north", 1)] {
        assert_eq!(problem(take(&mut book, other, now())), Problem::Used);
    }
    assert_eq!(book, held);
}

#[test]
fn unknown_expired_and_others_invitations_are_refused() {
    let mut book = offered(Offer {
        peer: Some(cluster("east")),
        ..Offer::default()
    });
    let north = take(&mut book, accepter("north", 1), now());
    assert_eq!(problem(north), Problem::OtherPeer);
    let late = take(&mut book, accepter("east", 1), now() + 15 * MINUTE);
    assert_eq!(problem(late), Problem::Expired);
    let unknown = book.check(&InvitationId([8; 16]), &accepter("east", 1), now());
    assert_eq!(problem(unknown), Problem::Unknown);
    assert!(book.invitation(&ID).unwrap().is_open());
}

#[test]
fn an_invitation_can_be_taken_back_until_it_is_used() {
    let mut book = offered(Offer {
        peer: Some(cluster("east")),
        ..Offer::default()
    });
    let other = book.revoke(&InvitationId([8; 16]), now());
    assert_eq!(problem(other), Problem::Unknown);
    let late = book.revoke(&ID, now() + 15 * MINUTE);
    assert_eq!(problem(late), Problem::Unknown);
    let mut used = book.clone();
    take(&mut used, accepter("east", 1), now()).unwrap();
    let refused = used.revoke(&ID, now()).unwrap_err();
    assert_eq!(refused.problem, Problem::Used);
    assert!(refused.message.contains("link remove east"), "{refused}");
    assert_eq!(book.revoke(&ID, now()).unwrap().peer, Some(cluster("east")));
    let gone = take(&mut book, accepter("east", 1), now());
    assert_eq!(problem(gone), Problem::Unknown);
}

#[test]
fn a_link_is_pending_until_its_first_tunnel_and_overdue_without_one() {
    let mut book = offered(Offer::default());
    take(&mut book, accepter("east", 1), now()).unwrap();
    let (east, its) = (cluster("east"), domain("east"));
    let until = book.joined(&east, &its).unwrap().pending_until();
    assert_eq!(until, Some(now() + 15 * MINUTE));
    assert!(book.overdue(now() + 14 * MINUTE).is_empty());
    assert_eq!(
        book.overdue(now() + 15 * MINUTE),
        std::slice::from_ref(&east)
    );
    assert!(book.activate(&east, now() + MINUTE));
    assert!(!book.activate(&east, now() + 2 * MINUTE), "only once");
    assert!(book.overdue(now() + 60 * MINUTE).is_empty());
    // A retry after that does not take the link back.
    take(&mut book, accepter("east", 1), now() + 2 * MINUTE).unwrap();
    assert_eq!(book.joined(&east, &its).unwrap().pending_until(), None);
    // Somebody else declared under that name is not this link.
    assert!(book.joined(&east, &domain("other")).is_none());
}

#[test]
fn a_removed_link_leaves_at_most_a_tombstone() {
    for buried in [false, true] {
        let mut book = offered(Offer::default());
        take(&mut book, accepter("east", 1), now()).unwrap();
        let east = link("east");
        book.remove(&east.cluster, buried.then_some(&east), now());
        assert!(book.joined(&east.cluster, &domain("east")).is_none());
        assert_eq!(
            problem(take(&mut book, accepter("east", 1), now())),
            Problem::Unknown,
            "nobody comes back by the same invitation"
        );
        let stones: Vec<_> = book
            .tombstones()
            .map(|(domain, _)| domain.clone())
            .collect();
        assert_eq!(
            stones,
            if buried {
                vec![east.trust_domain.clone()]
            } else {
                vec![]
            }
        );
        book.sweep(&BTreeMap::new(), now() + MINUTE);
        assert_eq!(book.tombstones().count(), usize::from(buried));
        book.sweep(&BTreeMap::new(), now() + TOMBSTONE_LIFE);
        assert_eq!(book, LinkBook::default());
    }
}

#[test]
fn a_link_that_is_being_removed_never_becomes_active() {
    let mut book = offered(Offer::default());
    take(&mut book, accepter("east", 1), now()).unwrap();
    let east = link("east");
    let name = &east.cluster;
    book.begin_removal(name, None, Some(&east), now());
    assert!(!book.activate(name, now()));
    assert!(!book.joined(name, &east.trust_domain).unwrap().is_active());
    assert_eq!(book.removing(), std::slice::from_ref(name));
    let again = take(&mut book, accepter("east", 1), now());
    assert_eq!(problem(again), Problem::Unknown, "its invitation is gone");
    // The mark and the tombstone stay for as long as it takes, also over a restart.
    let text = serde_json::to_string(&book).unwrap();
    let mut book: LinkBook = serde_json::from_str(&text).unwrap();
    for declared in [[(name.clone(), east.clone())].into(), BTreeMap::new()] {
        assert!(!book.sweep(&declared, now() + 60 * MINUTE));
    }
    assert!(book.is_leaving(&cluster("new"), &east.trust_domain));
    book.remove(name, None, now());
    assert!(book.removing().is_empty());
    let stones: Vec<_> = book.tombstones().map(|(_, of)| of.invitation).collect();
    assert_eq!(stones, [Some(ID)], "it says which link");
    // Whoever removes it once more knows less by now, and must not unname it.
    book.remove(name, Some(&east), now());
    let stones: Vec<_> = book.tombstones().map(|(_, of)| of.invitation).collect();
    assert_eq!(stones, [Some(ID)]);
}

#[test]
fn where_the_book_was_lost_the_declaration_names_the_tombstone() {
    let (mut book, mut east) = (LinkBook::default(), link("east"));
    east.made_by = Some(ID);
    assert_eq!(book.origin(&east), Some(ID));
    book.begin_removal(&east.cluster, Some(&east.trust_domain), Some(&east), now());
    book.remove(&east.cluster, Some(&east), now());
    let stones: Vec<_> = book.tombstones().map(|(_, of)| of.invitation).collect();
    assert_eq!(stones, [Some(ID)]);
}

#[test]
fn a_declared_link_is_marked_too_and_came_of_nothing() {
    let (mut book, east) = (LinkBook::default(), link("east"));
    book.begin_removal(&east.cluster, None, None, now());
    assert!(book.removing().is_empty(), "there is no such link");
    book.begin_removal(&east.cluster, Some(&east.trust_domain), Some(&east), now());
    assert!(book.is_leaving(&east.cluster, &east.trust_domain));
    assert_eq!(book.made_by(&east.cluster, &east.trust_domain), None);
    book.remove(&east.cluster, Some(&east), now());
    assert!(book.tombstones().all(|(_, of)| of.invitation.is_none()));
}

#[test]
fn a_tombstone_ends_when_its_domain_is_declared_anew() {
    let mut book = LinkBook::default();
    let east = link("east");
    book.remove(&east.cluster, Some(&east), now());
    assert!(!book.sweep(&BTreeMap::new(), now()));
    assert!(book.sweep(&[(east.cluster.clone(), east)].into(), now()));
    assert_eq!(book.tombstones().count(), 0);
}

/// The declaration was read before it was removed, and arrives after.
#[test]
fn an_echo_of_a_removed_link_is_known_as_one() {
    let mut book = offered(Offer::default());
    take(&mut book, accepter("east", 1), now()).unwrap();
    let east = link("east");
    assert!(!book.has_just_ended(&east.trust_domain));
    book.begin_removal(&east.cluster, None, Some(&east), now());
    book.remove(&east.cluster, Some(&east), now());
    assert!(book.has_just_ended(&east.trust_domain));
    let echo = [(east.cluster.clone(), east.clone())].into();
    book.sweep(&echo, now() + Duration::from_secs(1));
    assert_eq!(book.tombstones().count(), 1, "an echo lifts no tombstone");
    assert_eq!(book.links().count(), 0);
    let text = serde_json::to_string(&book).unwrap();
    let mut book: LinkBook = serde_json::from_str(&text).unwrap();
    let mut anew = book.clone();
    let until = now() + MINUTE;
    anew.pend(
        east.cluster.clone(),
        east.trust_domain.clone(),
        ID,
        until,
        now(),
    );
    assert!(!anew.has_just_ended(&east.trust_domain));
    // What is declared later is declared anew.
    assert!(book.sweep(&echo, now() + MINUTE));
    assert!(!book.has_just_ended(&east.trust_domain));
    assert_eq!(book.tombstones().count(), 0);
}

#[test]
fn a_link_that_is_there_is_a_rival_of_another_invitation_only() {
    let mut book = offered(Offer::default());
    take(&mut book, accepter("east", 1), now()).unwrap();
    let (east, other) = (cluster("east"), InvitationId([8; 16]));
    for active in [false, true] {
        assert!(!book.has_rival(&ID, &east, &domain("east")));
        assert!(book.has_rival(&other, &east, &domain("new")));
        assert!(book.has_rival(&other, &cluster("new"), &domain("east")));
        assert!(!book.has_rival(&other, &cluster("new"), &domain("new")));
        assert_eq!(book.activate(&east, now()), !active);
    }
}

#[test]
fn linking_anew_lifts_the_tombstone() {
    let mut book = LinkBook::default();
    let east = link("east");
    book.remove(&east.cluster, Some(&east), now());
    book.pend(
        east.cluster.clone(),
        east.trust_domain.clone(),
        ID,
        now() + MINUTE,
        now(),
    );
    assert_eq!(book.tombstones().count(), 0);
}

#[test]
fn offers_are_bounded_and_swept() {
    let mut book = LinkBook::default();
    let offer = |book: &mut LinkBook, n: u128, until| {
        book.offer(
            InvitationId(n.to_be_bytes()),
            [0; 32],
            until,
            Offer::default(),
        )
    };
    for n in 0..MAX_INVITATIONS as u128 {
        offer(&mut book, n, now() + MINUTE).unwrap();
    }
    let full = offer(&mut book, 1_000, now() + MINUTE);
    assert_eq!(problem(full), Problem::Failed);
    assert!(book.sweep(&BTreeMap::new(), now() + MINUTE));
    offer(&mut book, 1_000, now() + 2 * MINUTE).unwrap();
}

#[test]
fn the_book_is_the_same_after_it_was_written_and_has_no_secret() {
    let seed: [u8; 32] = std::array::from_fn(|at| 73_u8.wrapping_mul(at as u8).wrapping_add(200));
    let seed = Seed::new(seed);
    let mut book = LinkBook::default();
    let offer = Offer {
        peer: Some(cluster("east")),
        allow_loopback: true,
        imports: Some(vec![linkspan_resources::ImportPattern::default()]),
    };
    book.offer(ID, public_key(&seed), now() + MINUTE, offer)
        .unwrap();
    take(&mut book, accepter("east", 3), now()).unwrap();
    let gone = link("west");
    book.remove(&gone.cluster, Some(&gone), now());
    let text = serde_json::to_string(&book).unwrap();
    assert_eq!(serde_json::from_str::<LinkBook>(&text).unwrap(), book);
    for shown in [text, format!("{book:?} {seed:?} {seed:#?}")] {
        assert!(
            traces(seed.expose(), shown.as_bytes()).is_empty(),
            "{shown}"
        );
    }
}

fn transcript() -> Transcript {
    let party = |name: &str, roots| Party {
        cluster: cluster(name),
        trust_domain: domain(name),
        roots: RootsDigest([roots; 32]),
    };
    Transcript {
        exporter: [9; 32],
        invitation: ID,
        inviter: party("west", 1),
        accepter: party("east", 2),
    }
}

#[test]
fn a_proof_holds_for_its_own_transcript_only() {
    let seed = Seed::new([5; 32]);
    let (public, good) = (public_key(&seed), transcript());
    let proof = sign(&seed, &good);
    assert!(verify(&public, &good, &proof));
    let tampered: [fn(&mut Transcript); 8] = [
        |t| t.exporter[0] ^= 1,
        |t| t.invitation.0[0] ^= 1,
        |t| t.inviter.cluster = cluster("wes"),
        |t| t.inviter.trust_domain = domain("other"),
        |t| t.inviter.roots.0[31] ^= 1,
        |t| t.accepter.cluster = cluster("north"),
        |t| t.accepter.trust_domain = domain("north"),
        |t| t.accepter.roots.0[31] ^= 1,
    ];
    for tamper in tampered {
        let mut other = good.clone();
        tamper(&mut other);
        assert!(!verify(&public, &other, &proof), "{other:?}");
    }
    let swapped = Transcript {
        inviter: good.accepter.clone(),
        accepter: good.inviter.clone(),
        ..good.clone()
    };
    assert!(!verify(&public, &swapped, &proof));
    assert!(!verify(&public_key(&Seed::new([6; 32])), &good, &proof));
}

proptest! {
    #[test]
    fn foreign_proofs_never_hold_and_never_panic(proof in proptest::collection::vec(any::<u8>(), 0..100)) {
        prop_assert!(!verify(&public_key(&Seed::new([5; 32])), &transcript(), &proof));
    }

    #[test]
    fn a_digest_does_not_depend_on_order_and_repetition(
        roots in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..20), 1..6)
    ) {
        let mut other = roots.clone();
        other.reverse();
        other.push(roots[0].clone());
        prop_assert_eq!(roots_digest(&roots), roots_digest(&other));
        let mut longer = roots.clone();
        longer.push(b"a root that is longer than all the others".to_vec());
        prop_assert_ne!(roots_digest(&roots), roots_digest(&longer));
    }

    #[test]
    fn hexadecimal_is_read_back(bytes: [u8; 16], text in ".{0,40}") {
        prop_assert_eq!(from_hex(&Hex(&bytes).to_string()), Some(bytes));
        // Whatever it is, it is read or refused.
        let _ = from_hex::<16>(&text);
    }
}

fn own() -> OwnCluster {
    OwnCluster {
        cluster: cluster("west"),
        clusterset: "demo".into(),
        trust_domain: domain("west"),
        unmeshed_clients: false,
    }
}

fn fit(
    change: impl FnOnce(&mut (ClusterId, &'static str, TrustDomain, &'static str, bool)),
) -> Result<(), Refusal> {
    let links = [(cluster("north"), link("north"))].into();
    let own = own();
    let site = Site {
        own: &own,
        version: "1.4.2",
        links: &links,
    };
    let mut said = (cluster("east"), "demo", domain("east"), "1.5.0", false);
    change(&mut said);
    check_fit(
        &site,
        &Candidate {
            cluster: &said.0,
            clusterset: said.1,
            trust_domain: &said.2,
            version: said.3,
            again: said.4,
        },
    )
}

#[test]
fn what_does_not_fit_is_told_apart() {
    fit(|_| {}).unwrap();
    assert_eq!(
        problem(fit(|it| it.0 = cluster("west"))),
        Problem::DuplicateCluster
    );
    assert_eq!(
        problem(fit(|it| it.0 = cluster("north"))),
        Problem::DuplicateCluster
    );
    assert_eq!(problem(fit(|it| it.1 = "prod")), Problem::OtherClusterset);
    assert_eq!(
        problem(fit(|it| it.2 = domain("west"))),
        Problem::TrustDomainTaken
    );
    let taken = link("north").trust_domain;
    assert_eq!(
        problem(fit(|it| it.2 = taken.clone())),
        Problem::TrustDomainTaken
    );
    for version in ["1.2.9", "1.6.0", "2.4.2", "", "one", "1"] {
        assert_eq!(
            problem(fit(|it| it.3 = version)),
            Problem::Version,
            "{version}"
        );
    }
    for version in ["1.3.0", "1.4.0", "1.5.9", "1.5"] {
        fit(|it| it.3 = version).unwrap();
    }
    // The same link, tried again.
    fit(|it| {
        it.0 = cluster("north");
        it.2 = taken;
        it.4 = true;
    })
    .unwrap();
}

#[test]
fn a_skew_names_both_clocks() {
    let clocks = |peer| Clocks {
        own: now(),
        peer,
        tolerance: 5 * MINUTE,
    };
    let show = |time: SystemTime| {
        let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap();
        since.as_secs().to_string()
    };
    let (west, east) = (cluster("west"), cluster("east"));
    for peer in [now() + 5 * MINUTE, now() - 5 * MINUTE] {
        check_clock(&west, &east, clocks(peer), show).unwrap();
    }
    for peer in [now() + 6 * MINUTE, now() - 6 * MINUTE] {
        let refused = check_clock(&west, &east, clocks(peer), show).unwrap_err();
        assert_eq!(refused.problem, Problem::ClockSkew);
        for part in ["360 s", "1800000000", &show(peer)] {
            assert!(refused.message.contains(part), "{part}: {refused}");
        }
    }
}

//! What can go wrong with an invitation: each mistake has an answer of its own, which says what to
//! do, and costs nothing.

use std::time::{Duration, SystemTime};

use linkspan_core::{
    Address,
    join::{Invitation, InvitationId, Problem, Seed},
};
use linkspan_trust::SpiffeId;

use super::{
    join::{
        Way, accept, dialled_at, dialling, invite, linked, pending, problem_of, proof, say,
        session_with,
    },
    proxy::health,
};
use crate::{
    join::{invitation, messages::Card},
    testing::{Home, cluster, domain},
};

const HOUR: Duration = Duration::from_secs(3600);

/// Of west, which is nowhere.
fn from_west() -> Invitation {
    // Whole seconds, as they are written.
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(now.unwrap().as_secs());
    Invitation {
        cluster: cluster("west"),
        clusterset: "demo".into(),
        trust_domain: domain("west"),
        addresses: vec![Address {
            host: "gw.west.example".into(),
            port: 15443,
        }],
        pins: vec![[3; 32]],
        id: InvitationId([4; 16]),
        seed: Seed::new([5; 32]),
        created: now,
        expires: now + HOUR,
        peer: None,
    }
}

/// What is changed, and what is said to it.
type Mistake<T> = (fn(&mut T), Problem, &'static [&'static str]);

/// Nobody is asked for these: there is no gateway to ask through.
#[tokio::test]
async fn what_the_invitation_itself_shows_is_refused_at_once() {
    let home = Home::new("east");
    let east = home.start().await;
    east.until("the world", |world| world.generation > 0).await;
    let mistakes: [Mistake<Invitation>; 6] = [
        (
            |it| it.expires = it.created - HOUR,
            Problem::Expired,
            &["expired at", "it is", "linkspan link invite east"],
        ),
        (
            |it| it.peer = Some(cluster("north")),
            Problem::OtherPeer,
            &["meant for cluster `north`", "linkspan link invite east"],
        ),
        (
            |it| it.created += HOUR,
            Problem::ClockSkew,
            &["cluster `east` says", "cluster `west` says", "NTP"],
        ),
        (
            |it| it.clusterset = "other".into(),
            Problem::OtherClusterset,
            &["`other`", "`demo`", "correct `clusterset`"],
        ),
        (
            |it| it.cluster = cluster("east"),
            Problem::DuplicateCluster,
            &["both clusters have the id `east`", "another `cluster`"],
        ),
        (
            |it| it.trust_domain = domain("east"),
            Problem::TrustDomainTaken,
            &["both have the trust domain", "`trustDomain`"],
        ),
    ];
    for (change, problem, parts) in mistakes {
        let mut invitation = from_west();
        change(&mut invitation);
        let refused = accept(&east, &invitation::encode(&invitation)).await;
        let refused = refused.unwrap_err();
        assert_eq!(problem_of(&refused), problem, "{refused}");
        for part in parts {
            assert!(refused.message().contains(part), "{part}: {refused}");
        }
    }
    let text = invitation::encode(&from_west());
    let cut = accept(&east, &text[..text.len() - 9]).await.unwrap_err();
    assert_eq!(problem_of(&cut), Problem::Malformed);
    // Nothing is wrong with it as it was.
    let none = accept(&east, &text).await.unwrap_err();
    assert_eq!(problem_of(&none), Problem::NoGateway);
    east.stop().await;
}

/// What only the inviter can see, or sees for itself.
#[tokio::test]
async fn what_the_inviter_finds_wrong_is_told_and_the_invitation_stays_good() {
    let home = Home::new("west");
    let west = home.start().await;
    let _reached = dialled_at(&west, west.addresses.grpc).await;
    let text = invite(&west, "").await;
    let invitation = invitation::decode(&text).unwrap();
    let mistakes: [Mistake<Card>; 5] = [
        (
            |it| it.version = "99.1.0".into(),
            Problem::Version,
            &["99.1.0", crate::version::VERSION, "upgrade the older one"],
        ),
        (
            |it| it.clusterset = "other".into(),
            Problem::OtherClusterset,
            &["`other`", "`demo`", "correct `clusterset`"],
        ),
        (
            |it| it.cluster = cluster("west"),
            Problem::DuplicateCluster,
            &["both clusters have the id `west`", "another `cluster`"],
        ),
        (
            |it| {
                it.trust_domain = domain("west");
                it.gateway_id = SpiffeId::gateway(&it.trust_domain);
                it.federation_id = SpiffeId::federation(&it.trust_domain);
            },
            Problem::TrustDomainTaken,
            &["both have the trust domain", "`trustDomain`"],
        ),
        (
            |it| it.now -= HOUR,
            Problem::ClockSkew,
            &["cluster `west` says", "cluster `east` says", "NTP"],
        ),
    ];
    for (change, problem, parts) in mistakes {
        let (mut tls, mut own, roots, exporter) = session_with(&west, &invitation).await;
        change(&mut own);
        let proof = proof(exporter, &invitation, roots, &own);
        let refused = say(&mut tls, &own.request(invitation.id, proof)).await;
        let refused = refused.unwrap_err();
        assert_eq!(refused.problem, problem, "{refused}");
        for part in parts {
            assert!(refused.message.contains(part), "{part}: {refused}");
        }
    }
    assert!(west.worlds.borrow().declared.links.is_empty());
    let (mut tls, own, roots, exporter) = session_with(&west, &invitation).await;
    let proof = proof(exporter, &invitation, roots, &own);
    say(&mut tls, &own.request(invitation.id, proof))
        .await
        .unwrap();
    west.until("the link", |world| linked(world, "east")).await;
    west.stop().await;
}

/// Who has proved nothing hears no name of anybody.
#[tokio::test]
async fn a_stranger_learns_nothing_from_a_refusal() {
    let home = Home::new("west");
    let west = home.start().await;
    let _reached = dialled_at(&west, west.addresses.grpc).await;
    let good = invitation::decode(&invite(&west, "east").await).unwrap();
    for unknown in [true, false] {
        let (mut tls, own, roots, exporter) = session_with(&west, &good).await;
        let mut guess = good.clone();
        guess.seed = Seed::new([1; 32]);
        if unknown {
            guess.id = InvitationId([1; 16]);
        }
        let proof = proof(exporter, &guess, roots, &own);
        let refused = say(&mut tls, &own.request(guess.id, proof)).await;
        let refused = refused.unwrap_err();
        let problem = match unknown {
            true => Problem::Unknown,
            false => Problem::BadProof,
        };
        assert_eq!(refused.problem, problem);
        for name in ["west", "east", "demo", crate::version::VERSION] {
            assert!(!refused.message.contains(name), "{refused}");
        }
    }
    west.stop().await;
}

/// The operators have narrowed the link since, and it is active: both stay so.
#[tokio::test]
async fn a_used_invitation_resets_nothing() {
    let (east_home, west_home) = (Home::new("east"), Home::new("west"));
    let (east, west) = (east_home.start().await, west_home.start().await);
    let reached = dialled_at(&west, west.addresses.grpc).await;
    let _dialling = dialling(&east, Way::Honest).await;
    let invitation = invite(&west, "").await;
    accept(&east, &invitation).await.unwrap();
    west.until("the link", |world| linked(world, "east")).await;
    reached.say(health("east", true)).await;
    west.until("active", |world| pending(world, "east") == Some(false))
        .await;
    let narrowed = [(&west_home, "east"), (&east_home, "west")].map(|(home, peer)| {
        let file = format!("clusterlink-{peer}.yaml");
        let path = home.resources().join(&file);
        let made = std::fs::read_to_string(&path).unwrap();
        let narrowed = made.replace("namespace: '*'", "namespace: shop");
        let narrowed = narrowed.replace("namespace: \"*\"", "namespace: shop");
        assert!(narrowed.contains("namespace: shop"), "{made}");
        let narrowed = format!("# ours\n{narrowed}");
        home.declare(&file, &narrowed);
        (path, narrowed)
    });
    let again = accept(&east, &invitation).await.unwrap();
    assert_eq!(again.path, "", "nothing was written");
    for (path, narrowed) in narrowed {
        assert_eq!(std::fs::read_to_string(&path).unwrap(), narrowed);
    }
    assert_eq!(pending(&west.worlds.borrow(), "east"), Some(false));
    east.stop().await;
    west.stop().await;
}

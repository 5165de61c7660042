use std::{cell::Cell, rc::Rc};

use linkspan_runtime::config::parse_yaml;
use linkspan_trust::testing::{Pki, workload};
use tokio::time::Instant;

use super::{fresh::merged, *};
use crate::fake_federation::{DOMAIN, FakeFederation, client_of};

const HOUR: Duration = Duration::from_secs(3600);

fn own() -> TrustDomain {
    DOMAIN.parse().unwrap()
}

async fn federation() -> (
    Arc<Pki>,
    FakeFederation,
    FederationClient,
    tempfile::TempDir,
) {
    let pki = Arc::new(Pki::new(&[DOMAIN, "west.test"]));
    let federation = FakeFederation::start(&pki, &SpiffeId::federation(&own()), None).await;
    let directory = tempfile::tempdir().unwrap();
    let client = client_of(&pki, federation.address, &directory);
    (pki, federation, client, directory)
}

#[tokio::test]
async fn a_token_buys_the_first_certificate_and_that_one_the_next() {
    let (_pki, _federation, client, _directory) = federation().await;
    let (_writer, reader) = first_contact(&client).await.unwrap();
    let first = reader.current();
    assert_eq!(*first.svid().id(), workload(DOMAIN, "shop", "checkout"));
    assert!(first.bundles().get(&own()).is_some());
    std::fs::remove_file(&client.token).unwrap();
    let (next, _bundle) = renew(&reader, &client).await.unwrap();
    assert_eq!(next.id(), first.svid().id());
    assert_ne!(next.chain()[0], first.svid().chain()[0]);
}

#[tokio::test]
async fn an_expired_certificate_is_replaced_by_token() {
    let (pki, _federation, client, _directory) = federation().await;
    let id = workload(DOMAIN, "shop", "checkout");
    let now = SystemTime::now();
    let expired = pki.svid_between(&id, now - 3 * HOUR, now - 2 * HOUR);
    let (_writer, reader) = material(expired, pki.bundles());
    let (next, _bundle) = renew(&reader, &client).await.unwrap();
    assert!(next.not_after() > now);
}

/// A pod proves itself anew each time: federation gives nothing for its certificate.
#[tokio::test]
async fn with_a_projected_token_the_certificate_is_not_shown() {
    let (_pki, _federation, client, _directory) = federation().await;
    let (_writer, reader) = first_contact(&client).await.unwrap();
    std::fs::write(&client.token, "eyJhbGciOiJub25lIn0.e30.c2ln").unwrap();
    let error = renew(&reader, &client).await.unwrap_err();
    assert!(
        matches!(&error, IdentityError::Refused { message, .. } if message == "unknown token"),
        "{error:?}"
    );
}

#[tokio::test]
async fn nobody_becomes_somebody_else() {
    let (pki, _federation, client, _directory) = federation().await;
    let now = SystemTime::now();
    let other = workload(DOMAIN, "shop", "payment");
    let expired = pki.svid_between(&other, now - 3 * HOUR, now - 2 * HOUR);
    let (_writer, reader) = material(expired, pki.bundles());
    // The token is that of `checkout`.
    let error = renew(&reader, &client).await.unwrap_err();
    assert!(matches!(error, IdentityError::Answer(_)), "{error:?}");
}

#[tokio::test]
async fn failures_say_what_to_do() {
    let (_pki, mut federation, client, _directory) = federation().await;
    std::fs::write(&client.token, "guess").unwrap();
    let error = first_contact(&client).await.unwrap_err();
    assert!(matches!(error, IdentityError::Refused { .. }), "{error:?}");
    assert!(!chain(&error).contains("guess"));
    std::fs::remove_file(&client.token).unwrap();
    let error = first_contact(&client).await.unwrap_err();
    assert!(matches!(error, IdentityError::Token { .. }), "{error:?}");
    std::fs::write(&client.token, "guess").unwrap();
    federation.close().await;
    let error = first_contact(&client).await.unwrap_err();
    assert!(
        matches!(error, IdentityError::Unreachable { .. }),
        "{error:?}"
    );
}

#[tokio::test]
async fn the_wrong_roots_are_noticed() {
    let (_pki, _federation, mut client, _directory) = federation().await;
    client.roots = Pki::new(&[DOMAIN]).authority(DOMAIN).bundle();
    let error = first_contact(&client).await.unwrap_err();
    assert!(
        matches!(error, IdentityError::Unreachable { .. }),
        "{error:?}"
    );
}

#[tokio::test]
async fn first_contact_ends_with_the_stop() {
    let (_pki, mut federation, client, _directory) = federation().await;
    federation.close().await;
    let stop = Stop::new();
    let contact = first_contact_until(&client, &stop);
    tokio::pin!(contact);
    assert!(futures_util::poll!(&mut contact).is_pending());
    stop.drain();
    assert!(contact.await.is_none());
}

/// Material kept fresh on a clock that follows tokio's.
struct Kept {
    fresh: Fresh<Box<dyn Fn() -> SystemTime>>,
    reader: MaterialReader,
    snapshots: watch::Sender<Option<Arc<Snapshot>>>,
    pki: Rc<Pki>,
    start: (Instant, SystemTime),
}

fn kept() -> Kept {
    let (instant, time) = (Instant::now(), SystemTime::now());
    let pki = Rc::new(Pki::at(time, &[DOMAIN, "west.test"]));
    let svid = pki.svid_between(&workload(DOMAIN, "shop", "checkout"), time, time + HOUR);
    let (writer, reader) = material(svid, pki.bundles_of(&[DOMAIN]));
    let (snapshots, seen) = watch::channel(None);
    let fresh = Fresh {
        writer,
        reader: reader.clone(),
        own: own(),
        snapshots: seen,
        metrics: ControlMetrics::detached(),
        now: Box::new(move || time + instant.elapsed()) as Box<dyn Fn() -> SystemTime>,
    };
    Kept {
        fresh,
        reader,
        snapshots,
        pki,
        start: (instant, time),
    }
}

#[tokio::test(start_paused = true)]
async fn renews_at_half_life_and_tries_on_after_failures() {
    let Kept {
        mut fresh,
        mut reader,
        pki,
        start: (instant, time),
        snapshots: _snapshots,
    } = kept();
    let metrics = fresh.metrics.clone();
    let tries = Cell::new(0);
    let renew = || async {
        tries.set(tries.get() + 1);
        if tries.get() < 4 {
            return Err(IdentityError::Timeout);
        }
        let now = time + instant.elapsed();
        let svid = pki.svid_between(&workload(DOMAIN, "shop", "checkout"), now, now + HOUR);
        Ok((svid, pki.authority(DOMAIN).bundle()))
    };
    tokio::select! {
        () = fresh.keep(renew) => unreachable!("it never ends"),
        changed = reader.changed() => changed.unwrap(),
    }
    let at = instant.elapsed();
    assert!(at > HOUR / 3 && at < HOUR * 2 / 3, "{at:?}");
    assert_eq!(
        (
            tries.get(),
            metrics.renewals_failed.get(),
            metrics.renewals_ok.get()
        ),
        (4, 3, 1)
    );
    let left = reader
        .current()
        .svid()
        .not_after()
        .duration_since(time + at)
        .unwrap();
    assert!(left > HOUR - Duration::from_secs(2), "{left:?}");
}

#[tokio::test(start_paused = true)]
async fn bundles_are_applied_while_a_renewal_fails() {
    let Kept {
        mut fresh,
        mut reader,
        snapshots,
        pki,
        ..
    } = kept();
    let bundles = pki.bundles();
    snapshots.send_replace(Some(Arc::new(Snapshot {
        bundles: bundles.clone(),
        ..Snapshot::default()
    })));
    tokio::select! {
        () = fresh.keep(|| async { Err(IdentityError::Timeout) }) => unreachable!("it never ends"),
        changed = reader.changed() => changed.unwrap(),
    }
    assert_eq!(*reader.current().bundles(), bundles);
}

fn set(bundles: &[(&str, Bundle)]) -> BundleSet {
    let mut set = BundleSet::new();
    for (domain, bundle) in bundles {
        set.insert(domain.parse().unwrap(), bundle.clone()).unwrap();
    }
    set
}

#[test]
fn linked_domains_come_and_go_but_the_own_one_stays() {
    let pki = Pki::new(&[DOMAIN, "west.test", "south.test"]);
    let now = pki.bundles_of(&[DOMAIN, "west.test"]);
    let told = pki.bundles_of(&["south.test"]);
    assert_eq!(
        merged(&now, &own(), None, Some(&told)),
        pki.bundles_of(&[DOMAIN, "south.test"])
    );
    assert_eq!(merged(&now, &own(), None, None), now);
}

#[test]
fn our_own_bundle_does_not_give_way_to_an_older_one() {
    let pki = Pki::new(&[DOMAIN]);
    let at = |sequence| Bundle {
        sequence,
        ..pki.authority(DOMAIN).bundle()
    };
    let west = Pki::new(&["west.test"]);
    let west_at = |sequence| Bundle {
        sequence,
        ..west.authority("west.test").bundle()
    };
    let now = set(&[(DOMAIN, at(5)), ("west.test", west_at(5))]);
    let older = set(&[(DOMAIN, at(4)), ("west.test", west_at(5))]);
    assert_eq!(merged(&now, &own(), Some(&at(3)), Some(&older)), now);
    // What an operator declares has no sequence, and counts at once.
    let edited = set(&[(DOMAIN, at(5)), ("west.test", west_at(0))]);
    assert_eq!(merged(&now, &own(), None, Some(&edited)), edited);
    let newer = set(&[(DOMAIN, at(6)), ("west.test", west_at(7))]);
    assert_eq!(merged(&now, &own(), None, Some(&newer)), newer);
    assert_eq!(
        merged(&now, &own(), Some(&at(9)), None)
            .get(&own())
            .unwrap()
            .sequence,
        9
    );
}

#[test]
fn the_raw_form_reports_every_problem() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("roots.pem");
    let text = format!(
        "{{address: host, trustDomain: 'a b', roots: {}, token: ''}}",
        file.display()
    );
    let raw: RawFederation = parse_yaml(&file, &text).unwrap();
    let mut problems = Problems::new("sidecar.yaml");
    assert!(raw.parse("federation", &mut problems).is_none());
    let text = problems.finish(()).unwrap_err().to_string();
    for key in ["address", "trustDomain", "roots", "token"] {
        assert!(text.contains(&format!("federation.{key}: ")), "{text}");
    }
    std::fs::write(
        &file,
        Pki::new(&[DOMAIN]).authority(DOMAIN).bundle().to_pem(),
    )
    .unwrap();
    let text = format!(
        "{{address: 'localhost:15010', trustDomain: {DOMAIN}, roots: {}, token: t}}",
        file.display()
    );
    let raw: RawFederation = parse_yaml(&file, &text).unwrap();
    let mut problems = Problems::new("sidecar.yaml");
    let client = raw.parse("federation", &mut problems).unwrap();
    assert_eq!(client.identity(), SpiffeId::federation(&own()));
}

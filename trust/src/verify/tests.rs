//! Handshakes with peers that should not be believed, over real TLS in memory. Each forgery is
//! shown once by a client and once by a server, and what is asserted is the honest side's reason.

mod path;

use std::error::Error as _;

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, ExtendedKeyUsagePurpose, GeneralSubtree,
    IsCa, KeyUsagePurpose, NameConstraints,
};
use rustls::pki_types::pem::PemObject;
use rustls::sign::CertifiedKey;
use rustls::{AlertDescription, Error};

use super::*;
use crate::forge::{Forged, ForgedCa, dns, handshake, raw_uri, uri, uri_constraint};
use crate::testing::{Pki, clock_at, id, trust_domain, workload};
use crate::{Bundle, IdError, TrustPolicy};

const EAST: &str = "east.test";
const MALLORY: &str = "spiffe://east.test/ns/shop/sa/mallory";

/// Everybody of the domains that occur here, so that only the proof decides.
fn anybody() -> TrustPolicy {
    TrustPolicy::Domains([EAST, "west.test", "south.test"].map(trust_domain).into())
}

/// What the honest side, which knows `bundles`, says to `shown` by a client and by a server.
fn verdicts(bundles: &BundleSet, shown: Arc<CertifiedKey>) -> [Option<Error>; 2] {
    let pki = Pki::new(&[EAST]);
    let honest = pki.svid(&workload(EAST, "shop", "honest")).certified();
    let bundles = Arc::new(bundles.clone());
    let credulous = || Arc::new(pki.bundles());

    let server = Verifier::of_clients(bundles.clone(), ClientPolicy::Required(anybody()));
    let by_client = handshake(
        tls::client(
            Verifier::of_servers(credulous(), anybody()),
            Some(shown.clone()),
        ),
        tls::server(server, honest.clone()),
    );
    let client = Verifier::of_servers(bundles, anybody());
    let nobody = ClientPolicy::Optional(anybody());
    let by_server = handshake(
        tls::client(client, None),
        tls::server(Verifier::of_clients(credulous(), nobody), shown),
    );
    // Without an error the handshake must indeed be complete.
    assert_eq!(
        by_client.server_error.is_none(),
        !by_client.server.is_handshaking()
    );
    assert_eq!(
        by_server.client_error.is_none(),
        !by_server.client.is_handshaking()
    );
    [by_client.server_error, by_server.client_error]
}

fn assert_accepted(bundles: &BundleSet, shown: &Forged) {
    assert_eq!(verdicts(bundles, shown.certified()), [None, None]);
}

#[track_caller]
fn assert_error(bundles: &BundleSet, shown: &Forged, expected: TlsError) {
    for verdict in verdicts(bundles, shown.certified()) {
        assert_eq!(verdict, Some(Error::InvalidCertificate(expected.clone())));
    }
}

/// The error inside of `CertificateError::Other`.
fn inner<E: std::error::Error + Clone + 'static>(error: &Error) -> Option<E> {
    match error {
        Error::InvalidCertificate(TlsError::Other(other)) => {
            other.source()?.downcast_ref().cloned()
        }
        _ => None,
    }
}

#[track_caller]
fn assert_refused(bundles: &BundleSet, shown: &Forged, expected: Refusal) {
    for verdict in verdicts(bundles, shown.certified()) {
        let verdict = verdict.expect("a refusal");
        assert_eq!(
            inner::<Refusal>(&verdict),
            Some(expected.clone()),
            "{verdict:?}"
        );
    }
}

#[track_caller]
fn assert_no_path(bundles: &BundleSet, shown: &Forged, expected: webpki::Error) {
    for verdict in verdicts(bundles, shown.certified()) {
        let verdict = verdict.expect("a refusal");
        assert_eq!(
            inner::<webpki::Error>(&verdict),
            Some(expected.clone()),
            "{verdict:?}"
        );
    }
}

/// A trusted root and intermediate of east, and bundles with that root.
fn east() -> (ForgedCa, ForgedCa, BundleSet) {
    let root = ForgedCa::root(EAST, |_| {});
    let intermediate = root.intermediate(EAST, |_| {});
    let bundles = root.bundles(EAST);
    (root, intermediate, bundles)
}

/// Signs a leaf with one fault, which is the only reason for which it can be refused.
fn faulty(change: impl FnOnce(&mut CertificateParams)) -> (BundleSet, Forged) {
    let (_, intermediate, bundles) = east();
    (bundles, intermediate.leaf(MALLORY, change))
}

#[test]
fn faultless_chains_are_accepted() {
    let (root, intermediate, bundles) = east();
    assert_accepted(&bundles, &intermediate.leaf(MALLORY, |_| {}));
    assert_accepted(&bundles, &root.leaf(MALLORY, |_| {}));
    // The subject alternative names may hold other kinds of names.
    let with_dns = intermediate.leaf(MALLORY, |p| p.subject_alt_names.push(dns("a.example")));
    assert_accepted(&bundles, &with_dns);
    // An authority made elsewhere may have an intermediate without a SPIFFE ID.
    let plain = root.intermediate(EAST, |p| p.subject_alt_names.clear());
    assert_accepted(&bundles, &plain.leaf(MALLORY, |_| {}));
    // The root may be sent along.
    let mut with_root = intermediate.leaf(MALLORY, |_| {});
    with_root.chain.push(root.certificate.clone());
    assert_accepted(&bundles, &with_root);
    // Without an extended key usage there is no limit on it.
    assert_accepted(
        &bundles,
        &root.leaf(MALLORY, |p| p.extended_key_usages.clear()),
    );
}

#[test]
fn certificates_out_of_their_time_are_refused_and_both_clocks_named() {
    let hour = Duration::from_secs(3600);
    let now = SystemTime::now();
    let pki = Pki::new(&[EAST]);
    let alice = workload(EAST, "shop", "alice");
    let over = pki.svid_between(&alice, now - 2 * hour, now - hour);
    let early = pki.svid_between(&alice, now + hour, now + 2 * hour);
    let unix = |time: SystemTime| {
        UnixTime::since_unix_epoch(time.duration_since(SystemTime::UNIX_EPOCH).unwrap())
    };

    for verdict in verdicts(&pki.bundles(), over.certified()) {
        let Some(Error::InvalidCertificate(TlsError::ExpiredContext { time, not_after })) = verdict
        else {
            panic!("{verdict:?}");
        };
        assert!(time >= unix(now));
        assert_eq!(not_after, unix(now - hour));
    }
    for verdict in verdicts(&pki.bundles(), early.certified()) {
        let Some(Error::InvalidCertificate(TlsError::NotValidYetContext { time, not_before })) =
            verdict
        else {
            panic!("{verdict:?}");
        };
        assert!(time >= unix(now));
        assert_eq!(not_before, unix(now + hour));
    }
}

#[test]
fn a_leaf_has_exactly_one_uri() {
    let (bundles, none) = faulty(|p| p.subject_alt_names.clear());
    assert_refused(&bundles, &none, Refusal::Leaf(CertificateError::NoUri));
    let (bundles, only_dns) = faulty(|p| p.subject_alt_names = vec![dns("east.test")]);
    assert_refused(&bundles, &only_dns, Refusal::Leaf(CertificateError::NoUri));
    for second in [
        "spiffe://east.test/ns/shop/sa/admin",
        "https://east.test/",
        MALLORY,
    ] {
        let two = Refusal::Leaf(CertificateError::SeveralUris { count: 2 });
        let (bundles, after) = faulty(|p| p.subject_alt_names.push(uri(second)));
        assert_refused(&bundles, &after, two.clone());
        let (bundles, before) = faulty(|p| p.subject_alt_names.insert(0, uri(second)));
        assert_refused(&bundles, &before, two);
    }
}

#[test]
fn a_leafs_uri_is_a_spiffe_id_with_a_path() {
    let (_, intermediate, bundles) = east();
    for (uri, error) in [
        ("https://east.test/x", CertificateError::Id(IdError::Scheme)),
        (
            "SPIFFE://east.test/x",
            CertificateError::Id(IdError::Scheme),
        ),
        (
            "spiffe://east.test/x/",
            CertificateError::Id(IdError::TrailingSlash),
        ),
        (
            "spiffe://east.test/../x",
            CertificateError::Id(IdError::DotSegment),
        ),
        ("spiffe://east.test", CertificateError::NoPath),
    ] {
        let leaf = intermediate.leaf(uri, |_| {});
        assert_refused(&bundles, &leaf, Refusal::Leaf(error));
    }
    let prefix = "spiffe://east.test/";
    let longest = format!("{prefix}{}", "x".repeat(2048 - prefix.len()));
    assert_accepted(&bundles, &intermediate.leaf(&longest, |_| {}));
    let over = intermediate.leaf(&format!("{longest}x"), |_| {});
    let long = CertificateError::Id(IdError::LongId { length: 2049 });
    assert_refused(&bundles, &over, Refusal::Leaf(long));
}

#[test]
fn each_byte_of_a_leafs_uri_is_judged() {
    let (root, _, bundles) = east();
    let proved = |uri: &[u8]| {
        let leaf = root.leaf(MALLORY, |p| {
            p.subject_alt_names.clear();
            p.custom_extensions.push(raw_uri(uri));
        });
        prove(&bundles, &leaf.chain[0], &[], Role::Client, UnixTime::now())
    };
    for byte in 0..=255 {
        let (mut in_domain, mut in_path) = (*b"spiffe://east.test/x", *b"spiffe://east.test/x.x");
        in_domain[12] = byte;
        in_path[20] = byte;
        // The only byte at this place that leaves it the trusted domain.
        let ok = proved(&in_domain).is_ok();
        assert_eq!(ok, byte == b't', "byte {byte:#04x} in the trust domain");
        let allowed = byte.is_ascii_alphanumeric() || b".-_/".contains(&byte);
        match proved(&in_path) {
            Ok(id) => assert_eq!(id.as_str().as_bytes(), in_path),
            Err(Rejection::Refused(Refusal::Leaf(_))) => {
                assert!(!allowed, "byte {byte:#04x} in the path is refused");
                continue;
            }
            Err(other) => panic!("byte {byte:#04x} in the path: {other:?}"),
        }
        assert!(allowed, "byte {byte:#04x} in the path is accepted");
    }
}

#[test]
fn a_doubled_or_unreadable_name_is_malformed() {
    let (bundles, doubled) = faulty(|p| {
        p.custom_extensions
            .push(raw_uri(b"spiffe://east.test/admin"));
    });
    assert_error(&bundles, &doubled, TlsError::BadEncoding);
    let (bundles, invalid) = faulty(|p| {
        p.subject_alt_names.clear();
        p.custom_extensions
            .push(raw_uri(b"spiffe://east.test/\xff"));
    });
    assert_error(&bundles, &invalid, TlsError::BadEncoding);
}

#[test]
fn a_leafs_key_signs_handshakes_and_nothing_else() {
    use KeyUsagePurpose::{CrlSign, DigitalSignature, KeyCertSign, KeyEncipherment};
    for (usages, error) in [
        (vec![], CertificateError::NoKeyUsage),
        (vec![KeyEncipherment], CertificateError::NoDigitalSignature),
        (
            vec![DigitalSignature, KeyCertSign],
            CertificateError::SigningLeaf,
        ),
        (
            vec![DigitalSignature, CrlSign],
            CertificateError::SigningLeaf,
        ),
    ] {
        let (bundles, leaf) = faulty(|p| p.key_usages = usages);
        assert_refused(&bundles, &leaf, Refusal::Leaf(error));
    }
    let (bundles, more) = faulty(|p| p.key_usages.push(KeyEncipherment));
    assert_accepted(&bundles, &more);
}

#[test]
fn the_extended_key_usage_must_fit_the_role() {
    use ExtendedKeyUsagePurpose::{ClientAuth, CodeSigning, ServerAuth};
    let wrong = Some(Error::InvalidCertificate(TlsError::InvalidPurpose));
    for (usage, expected) in [
        (ClientAuth, [None, wrong.clone()]),
        (ServerAuth, [wrong.clone(), None]),
        (CodeSigning, [wrong.clone(), wrong.clone()]),
    ] {
        let (bundles, leaf) = faulty(|p| p.extended_key_usages = vec![usage.clone()]);
        assert_eq!(
            verdicts(&bundles, leaf.certified()),
            expected,
            "leaf with {usage:?}"
        );
        let (root, _, bundles) = east();
        let ca = root.intermediate(EAST, |p| p.extended_key_usages = vec![usage.clone()]);
        let leaf = ca.leaf(MALLORY, |_| {});
        assert_eq!(
            verdicts(&bundles, leaf.certified()),
            expected,
            "intermediate with {usage:?}"
        );
    }
}

#[test]
fn a_ca_certificate_is_no_leaf() {
    let any = IsCa::Ca(BasicConstraints::Unconstrained);
    let (bundles, ca) = faulty(|p| p.is_ca = any);
    assert_refused(&bundles, &ca, Refusal::Leaf(CertificateError::CaAsLeaf));
    // A real intermediate, shown with its own key, names no workload to begin with.
    let pki = Pki::new(&[EAST]);
    let pem = pki.authority(EAST).to_pem();
    let shown = Forged {
        chain: vec![CertificateDer::from_pem_slice(pem.intermediate_cert.as_bytes()).unwrap()],
        key: crate::PrivateKey::from_pem(pem.intermediate_key.as_bytes()).unwrap(),
    };
    assert_refused(
        &pki.bundles(),
        &shown,
        Refusal::Leaf(CertificateError::NoPath),
    );
}

#[test]
fn unknown_critical_extensions_are_refused() {
    let (bundles, leaf) = faulty(|p| {
        let mut extension = CustomExtension::from_oid_content(&[1, 3, 9999, 1], vec![5, 0]);
        extension.set_criticality(true);
        p.custom_extensions.push(extension);
    });
    assert_error(&bundles, &leaf, TlsError::UnhandledCriticalExtension);
}

#[test]
fn a_certificate_without_its_key_is_worth_nothing() {
    let (bundles, mut stolen) = faulty(|_| {});
    stolen.key = crate::PrivateKey::generate().unwrap();
    assert_error(&bundles, &stolen, TlsError::BadSignature);
}

#[test]
fn only_whom_the_policy_names_is_accepted() {
    let pki = Pki::new(&[EAST, "west.test"]);
    let alice = workload(EAST, "shop", "alice");
    let alice_svid = pki.svid(&alice);
    let accepted = |policy: TrustPolicy| {
        let bundles = Arc::new(pki.bundles());
        let server = Verifier::of_clients(bundles.clone(), ClientPolicy::Required(policy));
        let client = Verifier::of_servers(bundles, anybody());
        let shaken = handshake(
            tls::client(client, Some(alice_svid.certified())),
            tls::server(
                server,
                pki.svid(&workload("west.test", "shop", "bob")).certified(),
            ),
        );
        match &shaken.server_error {
            None => assert!(shaken.succeeded()),
            Some(error) => {
                assert_eq!(inner(error), Some(Refusal::Policy { id: alice.clone() }));
                let unspecific = Error::AlertReceived(AlertDescription::CertificateUnknown);
                assert_eq!(shaken.client_error, Some(unspecific));
            }
        }
        shaken.succeeded()
    };
    let west = || TrustPolicy::domain(trust_domain("west.test"));
    let others = TrustPolicy::only(workload(EAST, "shop", "alice2"));
    assert!(accepted(TrustPolicy::only(alice.clone())));
    assert!(!accepted(others.clone()));
    assert!(!accepted(TrustPolicy::only(workload(
        "west.test",
        "shop",
        "alice"
    ))));
    assert!(accepted(TrustPolicy::domain(trust_domain(EAST))));
    assert!(!accepted(west()));
    assert!(!accepted(TrustPolicy::domain(trust_domain("test"))));
    assert!(accepted(TrustPolicy::AnyOf(vec![
        west(),
        TrustPolicy::only(alice.clone())
    ])));
    assert!(!accepted(TrustPolicy::AnyOf(vec![west(), others])));
    assert!(!accepted(TrustPolicy::AnyOf(vec![])));
    assert!(!accepted(TrustPolicy::Exactly(Default::default())));
}

#[test]
fn handshakes_happen_at_the_time_of_the_configurations_clock() {
    let day = Duration::from_secs(24 * 60 * 60);
    let pki = Pki::new(&[EAST]);
    let bundles = Arc::new(pki.bundles());
    let svid = pki.svid(&id(MALLORY));
    let verdict = |now: SystemTime| {
        let mut client = tls::client(Verifier::of_servers(bundles.clone(), anybody()), None);
        client.time_provider = clock_at(now);
        let optional = ClientPolicy::Optional(anybody());
        let server = Verifier::of_clients(bundles.clone(), optional);
        handshake(client, tls::server(server, svid.certified())).client_error
    };
    assert_eq!(verdict(pki.now()), None);
    assert_eq!(verdict(pki.now() - Duration::from_secs(9 * 60)), None);
    let early = verdict(pki.now() - Duration::from_secs(11 * 60));
    assert!(
        matches!(
            early,
            Some(Error::InvalidCertificate(
                TlsError::NotValidYetContext { .. }
            ))
        ),
        "{early:?}"
    );
    let late = verdict(pki.now() + day + Duration::from_secs(1));
    assert!(
        matches!(
            late,
            Some(Error::InvalidCertificate(TlsError::ExpiredContext { .. }))
        ),
        "{late:?}"
    );
}

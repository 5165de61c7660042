use rcgen::{ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::FromDer;

use super::*;
use crate::CertificateError;
use crate::forge::ForgedCa;
use crate::testing::{clock_at, trust_domain, workload};
use crate::{csr, generate_csr};

const YEAR: Duration = Duration::from_secs(365 * DAY.as_secs());
const HOUR: Duration = Duration::from_secs(3600);

fn now() -> SystemTime {
    // Whole seconds, as in certificates.
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn east() -> CertificateAuthority {
    CertificateAuthority::create(&trust_domain("east.test"), now()).unwrap()
}

fn grant(lifetime: Duration) -> Grant {
    Grant {
        id: workload("east.test", "shop", "alice"),
        lifetime,
    }
}

/// Whether a peer with the authority's bundle believes `svid` at `at`.
fn trusted(ca: &CertificateAuthority, svid: &Svid, at: SystemTime) -> bool {
    let mut bundles = BundleSet::new();
    bundles
        .insert(ca.trust_domain().clone(), ca.bundle())
        .unwrap();
    let at = clock_at(at).current_time().unwrap();
    let chain = svid.chain();
    prove(&bundles, &chain[0], &chain[1..], Role::Server, at).as_ref() == Ok(svid.id())
}

fn reread(pem: &CaPem, at: SystemTime) -> Result<CertificateAuthority, CaError> {
    CertificateAuthority::from_pem(&trust_domain("east.test"), pem, at)
}

#[test]
fn issues_what_was_granted_and_no_longer_than_granted() {
    let ca = east();
    let svid = ca.issue_svid(&grant(HOUR), now()).unwrap();
    assert_eq!(svid.id(), &workload("east.test", "shop", "alice"));
    assert_eq!(svid.not_before(), now() - Duration::from_secs(600));
    assert_eq!(svid.not_after(), now() + HOUR);
    assert!(trusted(&ca, &svid, now()));
    assert!(trusted(&ca, &svid, now() + HOUR));
    assert!(!trusted(&ca, &svid, now() + HOUR + Duration::from_secs(1)));
    let short = ca
        .issue_svid(&grant(Duration::from_secs(60)), now())
        .unwrap();
    assert_eq!(short.not_before(), now() - Duration::from_secs(15));
}

#[test]
fn no_certificate_outlives_its_issuer() {
    let ca = east();
    let long = ca.issue_svid(&grant(20 * YEAR), now()).unwrap();
    assert_eq!(long.not_after(), now() + 90 * DAY);
    // The leaf by itself, not only together with its issuers.
    let leaf = crate::certificate::Leaf::parse(&long.chain()[0]).unwrap();
    assert_eq!(leaf.validity.not_after, now() + 90 * DAY);
    let forever = ca.issue_svid(&grant(Duration::MAX), now());
    assert_eq!(forever.unwrap_err(), IssueError::Time);
    // Nor is one valid before its issuer is.
    assert_eq!(long.not_before(), now() - BACKDATE);

    let mut ca = ca;
    ca.rotate_intermediate(now() + 10 * YEAR - DAY).unwrap();
    let last = ca
        .issue_svid(&grant(10 * DAY), now() + 10 * YEAR - DAY)
        .unwrap();
    assert_eq!(last.not_after(), now() + 10 * YEAR);
}

#[test]
fn grants_that_are_not_its_to_make_are_refused() {
    let ca = east();
    let (_, request) = generate_csr().unwrap();
    let csr = csr::Csr::parse(&request).unwrap();
    let issue = |id: SpiffeId, lifetime| ca.issue(&csr, &Grant { id, lifetime }, now());
    let west = workload("west.test", "shop", "alice");
    let other = IssueError::OtherDomain {
        id: west.clone(),
        own: trust_domain("east.test"),
    };
    assert_eq!(issue(west, HOUR), Err(other));
    assert_eq!(
        issue(trust_domain("east.test").id(), HOUR),
        Err(IssueError::NoPath)
    );
    let alice = workload("east.test", "shop", "alice");
    assert_eq!(
        issue(alice.clone(), Duration::from_millis(999)),
        Err(IssueError::NoLifetime)
    );
    assert!(issue(alice, Duration::from_secs(1)).is_ok());
}

#[test]
fn a_leaf_carries_the_note_of_its_issuer_and_nobody_elses() {
    let ca = east();
    let (_, request) = generate_csr().unwrap();
    let csr = csr::Csr::parse(&request).unwrap();
    let issue = |note| ca.issue_noted(&csr, &grant(HOUR), note, now());
    let longest = "a".repeat(80);
    for note in ["pod:2f1c-AB", "0123456789ab", &longest] {
        let chain = issue(Some(note)).unwrap();
        assert_eq!(crate::note_of(&chain).as_deref(), Some(note));
        assert_eq!(crate::spiffe_id_of(&chain).unwrap(), grant(HOUR).id);
        assert_eq!(crate::note_of(&chain[1..]), None, "the intermediate");
    }
    assert_eq!(crate::note_of(&issue(None).unwrap()), None);
    for odd in ["", "a b", "a,CN=b", "\u{e9}", &"a".repeat(81)] {
        assert_eq!(issue(Some(odd)), Err(IssueError::Note), "{odd}");
    }
}

#[test]
fn nothing_is_issued_when_the_intermediate_is_not_valid() {
    let ca = east();
    let not_after = now() + 90 * DAY;
    for at in [not_after + Duration::from_secs(1), now() - HOUR] {
        let refused = ca.issue_svid(&grant(HOUR), at).unwrap_err();
        assert_eq!(refused, IssueError::NotValid { not_after });
    }
}

#[test]
fn certificates_have_the_extensions_that_the_standard_demands() {
    let ca = east();
    let svid = ca.issue_svid(&grant(HOUR), now()).unwrap();
    let root = ca.bundle().roots.remove(0);
    let certificates = [&root, &svid.chain()[1], &svid.chain()[0]];
    let parsed = certificates.map(|der| X509Certificate::from_der(der).unwrap().1);
    let uris = [
        "spiffe://east.test",
        "spiffe://east.test",
        svid.id().as_str(),
    ];
    for ((certificate, uri), path_length) in parsed.iter().zip(uris).zip([Some(1), Some(0), None]) {
        let leaf = path_length.is_none();
        let names = certificate.subject_alternative_name().unwrap().unwrap();
        assert_eq!(names.value.general_names.len(), 1);
        assert!(format!("{:?}", names.value.general_names[0]).contains(&format!("{uri:?}")));
        // RFC 5280 section 4.1.2.6: critical if and only if there is no subject.
        assert_eq!(names.critical, leaf);
        assert_eq!(certificate.subject().iter().count() == 0, leaf);
        let constraints = certificate.basic_constraints().unwrap().unwrap();
        assert!(constraints.critical && constraints.value.ca != leaf);
        assert_eq!(constraints.value.path_len_constraint, path_length);
        let usage = certificate.key_usage().unwrap().unwrap();
        assert!(usage.critical);
        assert_eq!(usage.value.digital_signature(), leaf);
        assert_eq!(usage.value.key_cert_sign(), !leaf);
        let extended = certificate.extended_key_usage().unwrap();
        assert_eq!(
            extended.is_some_and(|e| e.value.server_auth && e.value.client_auth),
            leaf
        );
        assert!(certificate.raw_serial().len() == 16 && certificate.raw_serial()[0] < 0x80);
        assert!(certificate.name_constraints().unwrap().is_none());
    }
    // Each names its issuer's key, and says which its own is.
    let own = |c: &X509Certificate<'_>| {
        c.extensions()
            .iter()
            .find_map(|e| match e.parsed_extension() {
                ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
                _ => None,
            })
    };
    let issuers = |c: &X509Certificate<'_>| {
        c.extensions()
            .iter()
            .find_map(|e| match e.parsed_extension() {
                ParsedExtension::AuthorityKeyIdentifier(id) => {
                    Some(id.key_identifier.clone()?.0.to_vec())
                }
                _ => None,
            })
    };
    let [root, intermediate, leaf] = &parsed;
    assert!(own(root).is_some() && own(intermediate).is_some());
    assert_eq!(issuers(intermediate), own(root));
    assert_eq!(issuers(leaf), own(intermediate));
}

#[test]
fn two_certificates_for_one_key_differ_in_their_serials() {
    let ca = east();
    let (_, request) = generate_csr().unwrap();
    let csr = csr::Csr::parse(&request).unwrap();
    let serial = || {
        let chain = ca.issue(&csr, &grant(HOUR), now()).unwrap();
        X509Certificate::from_der(&chain[0])
            .unwrap()
            .1
            .raw_serial()
            .to_vec()
    };
    assert_ne!(serial(), serial());
}

#[test]
fn an_authority_survives_its_text() {
    let ca = east();
    let read = reread(&ca.to_pem(), now()).unwrap();
    assert_eq!(read.bundle(), ca.bundle());
    assert_eq!(ca.bundle().sequence, 1_800_000_000);
    let svid = read.issue_svid(&grant(HOUR), now()).unwrap();
    assert!(trusted(&ca, &svid, now()));
    assert_eq!(read.to_pem().root_key, ca.to_pem().root_key);
}

#[test]
fn keys_in_sec1_form_are_read() {
    use aws_lc_rs::encoding::{AsDer, EcPrivateKeyRfc5915Der};
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
    let ca = east();
    let mut pem = ca.to_pem();
    let der = ca.intermediate.key.to_pkcs8();
    let pair =
        EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, der.secret_pkcs8_der()).unwrap();
    let sec1: EcPrivateKeyRfc5915Der<'_> = pair.private_key().as_der().unwrap();
    pem.intermediate_key = pem_of("EC PRIVATE KEY", sec1.as_ref());
    assert!(reread(&pem, now()).is_ok());
}

#[test]
fn mixed_up_parts_are_refused() {
    let (ca, other) = (east().to_pem(), east().to_pem());
    let mixed = |change: fn(&mut CaPem, CaPem)| {
        let mut pem = CaPem {
            root_cert: ca.root_cert.clone(),
            root_key: ca.root_key.clone(),
            intermediate_cert: ca.intermediate_cert.clone(),
            intermediate_key: ca.intermediate_key.clone(),
        };
        let other = CaPem {
            root_cert: other.root_cert.clone(),
            root_key: other.root_key.clone(),
            intermediate_cert: other.intermediate_cert.clone(),
            intermediate_key: other.intermediate_key.clone(),
        };
        change(&mut pem, other);
        reread(&pem, now()).unwrap_err()
    };
    let (root, intermediate) = (CaPart::Root, CaPart::Intermediate);
    let key = mixed(|pem, other| pem.root_key = other.root_key);
    assert_eq!(key, CaError::OtherKey { part: root });
    let key = mixed(|pem, other| pem.intermediate_key = other.intermediate_key);
    assert_eq!(key, CaError::OtherKey { part: intermediate });
    // The right kind and domain, but signed by another root.
    let foreign = mixed(|pem, other| {
        pem.intermediate_cert = other.intermediate_cert;
        pem.intermediate_key = other.intermediate_key;
    });
    assert!(matches!(foreign, CaError::Untrusted { .. }), "{foreign:?}");

    let no_cert = mixed(|pem, _| pem.root_cert = pem.root_key.to_string());
    assert_eq!(no_cert, CaError::NoCertificate { part: root });
    let no_key = mixed(|pem, _| *pem.root_key = pem.root_cert.clone());
    assert_eq!(
        no_key,
        CaError::Key {
            part: root,
            source: KeyError::NoKey
        }
    );
    let empty = mixed(|pem, _| pem.intermediate_cert.clear());
    assert_eq!(empty, CaError::NoCertificate { part: intermediate });
}

#[test]
fn authorities_of_other_domains_are_refused() {
    let pem = east().to_pem();
    let west = trust_domain("west.test");
    let refused = CertificateAuthority::from_pem(&west, &pem, now()).unwrap_err();
    let (found, part) = (trust_domain("east.test"), CaPart::Root);
    assert_eq!(
        refused,
        CaError::OtherDomain {
            part,
            found,
            expected: west
        }
    );
}

#[test]
fn certificates_that_cannot_sign_are_refused() {
    let root = ForgedCa::root("east.test", |_| {});
    let text = |ca: ForgedCa| {
        (
            String::clone(&pem_of("CERTIFICATE", &ca.certificate)),
            ca.key.to_pem(),
        )
    };
    let under = |change: fn(&mut CertificateParams)| {
        let (intermediate_cert, intermediate_key) = text(root.intermediate("east.test", change));
        let root_cert = String::clone(&pem_of("CERTIFICATE", &root.certificate));
        let root_key = root.key.to_pem();
        let pem = CaPem {
            root_cert,
            root_key,
            intermediate_cert,
            intermediate_key,
        };
        reread(&pem, SystemTime::now())
    };
    assert!(under(|_| {}).is_ok());
    let part = CaPart::Intermediate;
    let no_ca = under(|p| p.is_ca = IsCa::ExplicitNoCa).unwrap_err();
    assert_eq!(
        no_ca,
        CaError::Certificate {
            part,
            source: CertificateError::NotCa
        }
    );
    let usage = under(|p| p.key_usages = vec![KeyUsagePurpose::DigitalSignature]).unwrap_err();
    assert_eq!(
        usage,
        CaError::Certificate {
            part,
            source: CertificateError::NoKeyCertSign
        }
    );
    // One that may sign, but for one role only, would be of little use.
    let one_role = under(|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]);
    assert!(
        matches!(one_role, Err(CaError::Untrusted { .. })),
        "{one_role:?}"
    );
    let on_uris = under(|p| {
        p.custom_extensions
            .push(crate::forge::uri_constraint("east.test"));
    });
    assert!(
        matches!(on_uris, Err(CaError::Untrusted { .. })),
        "{on_uris:?}"
    );
}

#[test]
fn expired_authorities_are_refused_and_a_root_outlives_its_intermediate() {
    let pem = east().to_pem();
    let refused = |at| match reread(&pem, at).unwrap_err() {
        CaError::NotValid { part, .. } => part,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(now() - HOUR), CaPart::Root);
    assert_eq!(refused(now() + 91 * DAY), CaPart::Intermediate);
    assert_eq!(refused(now() + 11 * YEAR), CaPart::Root);

    let later = now() + 91 * DAY;
    let domain = trust_domain("east.test");
    let ca = CertificateAuthority::from_root_pem(&domain, &pem, later).unwrap();
    let svid = ca.issue_svid(&grant(HOUR), later).unwrap();
    assert!(trusted(&ca, &svid, later));
    assert!(reread(&ca.to_pem(), later).is_ok());
    let over = CertificateAuthority::from_root_pem(&domain, &pem, now() + 11 * YEAR).unwrap_err();
    assert!(matches!(
        over,
        CaError::NotValid {
            part: CaPart::Root,
            ..
        }
    ));
}

#[test]
fn a_new_intermediate_takes_over_and_the_old_ones_certificates_stay_good() {
    let mut ca = east();
    let before = ca.bundle();
    let old = ca.issue_svid(&grant(90 * DAY), now()).unwrap();
    assert!(!ca.intermediate_due(now()));
    assert!(!ca.intermediate_due(now() + 44 * DAY));
    assert!(ca.intermediate_due(now() + 45 * DAY));

    let later = now() + 45 * DAY;
    ca.rotate_intermediate(later).unwrap();
    assert!(!ca.intermediate_due(later));
    assert_eq!(ca.bundle(), before);
    let new = ca.issue_svid(&grant(HOUR), later).unwrap();
    assert_ne!(old.chain()[1], new.chain()[1]);
    assert!(trusted(&ca, &old, later) && trusted(&ca, &new, later));
    let over = ca.rotate_intermediate(now() + 11 * YEAR).unwrap_err();
    assert!(matches!(
        over,
        CaError::NotValid {
            part: CaPart::Root,
            ..
        }
    ));
}

#[test]
fn times_that_no_certificate_can_hold_are_refused() {
    let domain = trust_domain("east.test");
    let create = |at| CertificateAuthority::create(&domain, at).map(|_| ());
    assert_eq!(create(SystemTime::UNIX_EPOCH), Err(CaError::Time));
    assert_eq!(
        create(SystemTime::UNIX_EPOCH + 100_000 * YEAR),
        Err(CaError::Time)
    );
}

/// As the API server verifies it: by name, chain and root.
#[test]
fn a_host_certificate_proves_a_name_and_no_identity() {
    let ca = east();
    let name = "linkspan-federation.linkspan-system.svc";
    let host = ca.issue_host(name, HOUR, now()).unwrap();
    assert_eq!(host.renew_at(), now() + HOUR / 2);
    let chain = host.chain();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca.bundle().roots[0].clone()).unwrap();
    let verifier = rustls::client::WebPkiServerVerifier::builder_with_provider(
        roots.into(),
        crate::tls::provider().clone(),
    );
    let verifier = verifier.build().unwrap();
    let at = clock_at(now()).current_time().unwrap();
    let verify = |name: &'static str| {
        use rustls::client::danger::ServerCertVerifier as _;
        let name = name.try_into().unwrap();
        verifier.verify_server_cert(&chain[0], &chain[1..], &name, &[], at)
    };
    verify(name).unwrap();
    verify("other.linkspan-system.svc").unwrap_err();
    assert_eq!(crate::spiffe_id_of(chain), Err(CertificateError::NoUri));
}

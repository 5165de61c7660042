use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;
use rcgen::{BasicConstraints, IsCa, KeyUsagePurpose};
use serde_json::{Value, json};

use super::*;
use crate::forge::{ForgedCa, uri};
use crate::testing::{Pki, trust_domain};

const EAST: &str = "east.test";

fn root(change: impl FnOnce(&mut rcgen::CertificateParams)) -> CertificateDer<'static> {
    ForgedCa::root(EAST, change).certificate
}

fn refused(root: CertificateDer<'static>) -> BundleError {
    Bundle::new(1, None, vec![root]).unwrap_err()
}

#[test]
fn pem_round_trips() {
    let bundle = Bundle::new(7, None, vec![root(|_| {}), root(|_| {})]).unwrap();
    let pem = bundle.to_pem();
    assert!(pem.lines().all(|line| line.len() <= 64));
    assert_eq!(Bundle::from_pem(7, pem.as_bytes()), Ok(bundle.clone()));
    // Text between the certificates is a comment, and blocks of other kinds are not ours.
    let other = "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n";
    let commented = format!("# the roots of east\n{other}{pem}");
    assert_eq!(Bundle::from_pem(7, commented.as_bytes()), Ok(bundle));
}

#[test]
fn pem_without_certificates_or_damaged_is_refused() {
    let other = b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n";
    for text in [&b""[..], b"no PEM at all", other] {
        assert_eq!(Bundle::from_pem(1, text), Err(BundleError::NoRoots));
    }
    let pem = Bundle::new(1, None, vec![root(|_| {})]).unwrap().to_pem();
    let cut = pem.replace("-----END CERTIFICATE-----", "");
    assert_eq!(Bundle::from_pem(1, cut.as_bytes()), Err(BundleError::Pem));
    let damaged = pem.replacen('M', "!", 1);
    assert_eq!(
        Bundle::from_pem(1, damaged.as_bytes()),
        Err(BundleError::Pem)
    );
}

#[test]
fn roots_are_signing_certificates() {
    let error = |source| BundleError::Root { index: 0, source };
    assert_eq!(
        refused(vec![1, 2, 3].into()),
        error(CertificateError::Malformed)
    );
    let leaf = root(|p| p.is_ca = IsCa::ExplicitNoCa);
    assert_eq!(refused(leaf), error(CertificateError::NotCa));
    let no_usage = root(|p| p.key_usages.clear());
    assert_eq!(refused(no_usage), error(CertificateError::NoKeyUsage));
    let no_sign = root(|p| p.key_usages = vec![KeyUsagePurpose::CrlSign]);
    assert_eq!(refused(no_sign), error(CertificateError::NoKeyCertSign));
    let with_path = root(|p| p.subject_alt_names = vec![uri("spiffe://east.test/ca")]);
    assert_eq!(refused(with_path), error(CertificateError::SigningPath));
    let trailing = [&root(|_| {})[..], &[0]].concat();
    assert_eq!(refused(trailing.into()), error(CertificateError::Malformed));

    let second = Bundle::new(1, None, vec![root(|_| {}), vec![].into()]).unwrap_err();
    assert_eq!(
        second,
        BundleError::Root {
            index: 1,
            source: CertificateError::Malformed
        }
    );
    let limited = root(|p| p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)));
    assert!(Bundle::new(1, None, vec![limited]).is_ok());
}

#[test]
fn the_number_of_roots_is_bounded() {
    let root = root(|_| {});
    assert!(Bundle::new(1, None, vec![root.clone(); 64]).is_ok());
    let over = Bundle::new(1, None, vec![root; 65]);
    assert_eq!(over, Err(BundleError::TooMany { count: 65 }));
}

#[test]
fn a_set_takes_only_roots_of_the_domain() {
    let (east, west) = (trust_domain(EAST), trust_domain("west.test"));
    let good = Bundle::new(1, None, vec![root(|_| {})]).unwrap();
    let mut set = BundleSet::new();
    set.insert(east.clone(), good.clone()).unwrap();
    let other = set.insert(west.clone(), good.clone());
    let expected = BundleError::OtherDomain {
        index: 0,
        found: east.clone(),
        expected: west.clone(),
    };
    assert_eq!(other, Err(expected));
    // A root of no domain in particular belongs to whose bundle it is in.
    let neutral = Bundle::new(2, None, vec![root(|p| p.subject_alt_names.clear())]).unwrap();
    set.insert(west.clone(), neutral.clone()).unwrap();

    // A refused bundle, put together by hand, leaves the last good one in place.
    let broken = Bundle {
        sequence: 9,
        refresh_hint: None,
        roots: vec![vec![0].into()],
    };
    assert!(set.insert(east.clone(), broken).is_err());
    assert_eq!(set.get(&east), Some(&good));

    let all: Vec<_> = set
        .iter()
        .map(|(domain, bundle)| (domain.as_str(), bundle))
        .collect();
    assert_eq!(all, [(EAST, &good), ("west.test", &neutral)]);
    let copy = set.clone();
    assert_eq!(set.remove(&west), Some(neutral));
    assert_eq!(set.get(&west), None);
    assert_ne!(set, copy);
    assert_eq!(set.remove(&west), None);
}

#[test]
fn spiffe_json_round_trips_and_has_the_standards_fields() {
    let mut bundle = Pki::new(&[EAST]).authority(EAST).bundle();
    bundle.sequence = u64::MAX;
    bundle.refresh_hint = Some(Duration::from_secs(300));
    let text = bundle.to_spiffe_json();
    assert_eq!(
        Bundle::from_spiffe_json(text.as_bytes()),
        Ok(bundle.clone())
    );

    let value: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(value["spiffe_sequence"], json!(u64::MAX));
    assert_eq!(value["spiffe_refresh_hint"], json!(300));
    let key = &value["keys"][0];
    assert_eq!(
        [&key["kty"], &key["use"], &key["crv"]],
        ["EC", "x509-svid", "P-256"]
    );
    assert_eq!(key["x5c"], json!([STANDARD.encode(&bundle.roots[0])]));
    assert_eq!(key.get("kid"), None);
    // The coordinates are those of the point that ends the certificate's public key.
    let x = key["x"].as_str().unwrap();
    let x = base64::engine::general_purpose::URL_SAFE_NO_PAD
        .decode(x)
        .unwrap();
    assert_eq!(x.len(), 32);
    assert!(
        bundle.roots[0]
            .windows(33)
            .any(|w| w[0] == 4 && w[1..] == x[..])
    );
}

#[test]
fn keys_that_the_standard_says_to_ignore_are_ignored() {
    let bundle = Bundle::new(3, None, vec![root(|_| {}), root(|_| {})]).unwrap();
    let cert = |index: usize| STANDARD.encode(&bundle.roots[index]);
    let document = json!({
        "spiffe_sequence": 3,
        "keys": [
            {"kty": "EC", "use": "jwt-svid", "kid": "a", "crv": "P-256", "x": "AA", "y": "AA"},
            {"kty": "EC", "use": "X509-SVID", "x5c": [cert(1)]},
            {"kty": "quantum", "use": "x509-svid", "x5c": [cert(1)]},
            {"kty": "EC", "use": "x509-svid"},
            {"kty": "EC", "use": "x509-svid", "x5c": []},
            {"use": "x509-svid", "x5c": [cert(1)]},
            {"kty": "EC", "x5c": [cert(1)]},
            // Of several certificates only the first counts, whatever the others are.
            {"kty": "EC", "use": "x509-svid", "x5c": [cert(0), "not base64"]},
        ],
        "other": {"a": 1},
    });
    let read = Bundle::from_spiffe_json(document.to_string().as_bytes()).unwrap();
    assert_eq!(
        read,
        Bundle {
            roots: vec![bundle.roots[0].clone()],
            ..bundle
        }
    );
    let none = Bundle::from_spiffe_json(br#"{"keys": []}"#).unwrap();
    assert_eq!(
        none,
        Bundle {
            sequence: 0,
            refresh_hint: None,
            roots: vec![]
        }
    );
}

#[test]
fn what_is_no_spiffe_bundle_is_refused() {
    let leaf = root(|p| p.is_ca = IsCa::ExplicitNoCa);
    let no_ca =
        json!({"keys": [{"kty": "EC", "use": "x509-svid", "x5c": [STANDARD.encode(leaf)]}]});
    let no_ca = Bundle::from_spiffe_json(no_ca.to_string().as_bytes());
    assert_eq!(
        no_ca,
        Err(BundleError::Root {
            index: 0,
            source: CertificateError::NotCa
        })
    );
    for text in [
        "",
        "[]",
        "{}",
        r#"{"keys": 1}"#,
        r#"{"keys": [1]}"#,
        r#"{"keys": [], "spiffe_sequence": -1}"#,
        r#"{"keys": [], "spiffe_sequence": 1.5}"#,
        r#"{"keys": [], "spiffe_sequence": 18446744073709551616}"#,
        r#"{"keys": [{"kty": "EC", "use": "x509-svid", "x5c": ["%"]}]}"#,
        r#"{"keys": []} {}"#,
    ] {
        let refused = Bundle::from_spiffe_json(text.as_bytes());
        assert!(
            matches!(refused, Err(BundleError::Json { .. })),
            "{text}: {refused:?}"
        );
    }
    let long = format!(r#"{{"keys": []{}}}"#, " ".repeat(1024 * 1024));
    let refused = Bundle::from_spiffe_json(long.as_bytes());
    assert_eq!(
        refused,
        Err(BundleError::Json {
            reason: "more than 1048576 bytes".into()
        })
    );
}

proptest! {
    #[test]
    fn any_bytes_are_a_bundle_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = Bundle::from_pem(1, &bytes);
        let _ = Bundle::from_spiffe_json(&bytes);
        let _ = Bundle::new(1, None, vec![bytes.into()]);
    }

    #[test]
    fn mutated_documents_are_a_bundle_or_refused(at in any::<prop::sample::Index>(), byte: u8) {
        let bundle = Pki::new(&[EAST]).authority(EAST).bundle();
        let mut json = bundle.to_spiffe_json().into_bytes();
        let mut pem = bundle.to_pem().into_bytes();
        let mut der = bundle.roots[0].to_vec();
        for text in [&mut json, &mut pem, &mut der] {
            let at = at.index(text.len());
            text[at] = byte;
        }
        let _ = Bundle::from_spiffe_json(&json);
        let _ = Bundle::from_pem(1, &pem);
        let _ = Bundle::new(1, None, vec![der.into()]);
    }
}

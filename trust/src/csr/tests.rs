use std::time::SystemTime;

use proptest::prelude::*;
use rcgen::{BasicConstraints, IsCa, KeyPair, KeyUsagePurpose, PublicKeyData, SanType};
use rustls_pki_types::UnixTime;

use super::*;
use crate::testing::{Pki, workload};
use crate::verify::{Role, prove};
use crate::{DEFAULT_SVID_LIFETIME, Grant, spiffe_id_of};

fn request_with(
    algorithm: &'static rcgen::SignatureAlgorithm,
    change: impl FnOnce(&mut CertificateParams),
) -> Vec<u8> {
    let key = KeyPair::generate_for(algorithm).unwrap();
    let mut params = CertificateParams::default();
    change(&mut params);
    params.serialize_request(&key).unwrap().der().to_vec()
}

#[test]
fn a_request_carries_the_generated_key() {
    let (key, request) = generate_csr().unwrap();
    let csr = Csr::parse(&request).unwrap();
    assert_eq!(
        csr.public_key.subject_public_key_info(),
        key.public_key_info()
    );
}

#[test]
fn certificates_for_each_accepted_kind_of_key_are_trusted() {
    let pki = Pki::new(&["east.test"]);
    let id = workload("east.test", "shop", "alice");
    for algorithm in [
        &rcgen::PKCS_ECDSA_P256_SHA256,
        &rcgen::PKCS_ED25519,
        &rcgen::PKCS_RSA_SHA256,
        &rcgen::PKCS_RSA_SHA384,
        &rcgen::PKCS_RSA_SHA512,
    ] {
        let csr = Csr::parse(&request_with(algorithm, |_| {})).unwrap();
        let grant = Grant {
            id: id.clone(),
            lifetime: DEFAULT_SVID_LIFETIME,
        };
        let chain = pki
            .authority("east.test")
            .issue(&csr, &grant, pki.now())
            .unwrap();
        let now = UnixTime::now();
        let proved = prove(&pki.bundles(), &chain[0], &chain[1..], Role::Client, now);
        assert_eq!(proved, Ok(id.clone()), "{algorithm:?}");
    }
}

#[test]
fn other_keys_are_refused() {
    for algorithm in [
        &rcgen::PKCS_ECDSA_P384_SHA384,
        &rcgen::PKCS_ECDSA_P521_SHA512,
    ] {
        let refused = Csr::parse(&request_with(algorithm, |_| {}));
        assert_eq!(refused.unwrap_err(), CsrError::Key, "{algorithm:?}");
    }
}

#[test]
fn small_rsa_keys_are_refused() {
    let pem = include_bytes!("rsa1024.csr.pem");
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem).unwrap();
    // Well-formed and well signed, but its key is too small to be used at all.
    let (_, request) = X509CertificationRequest::from_der(&pem.contents).unwrap();
    assert_eq!(
        request
            .certification_request_info
            .subject_pki
            .parsed()
            .unwrap()
            .key_size(),
        1024
    );
    assert_eq!(Csr::parse(&pem.contents).unwrap_err(), CsrError::Signature);
    let (_, pem) = x509_parser::pem::parse_x509_pem(include_bytes!("rsa2048.csr.pem")).unwrap();
    assert!(Csr::parse(&pem.contents).is_ok());
}

#[test]
fn what_a_request_asks_for_is_ignored() {
    let request = request_with(&rcgen::PKCS_ECDSA_P256_SHA256, |params| {
        let admin = "spiffe://east.test/ns/kube-system/sa/admin";
        params.subject_alt_names = vec![SanType::URI(admin.try_into().unwrap())];
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    });
    let pki = Pki::new(&["east.test"]);
    let id = workload("east.test", "shop", "alice");
    let grant = Grant {
        id: id.clone(),
        lifetime: DEFAULT_SVID_LIFETIME,
    };
    let csr = Csr::parse(&request).unwrap();
    let chain = pki
        .authority("east.test")
        .issue(&csr, &grant, SystemTime::now())
        .unwrap();
    assert_eq!(spiffe_id_of(&chain), Ok(id));
}

#[test]
fn what_is_not_exactly_one_request_is_refused() {
    let (_, request) = generate_csr().unwrap();
    let refused = |der: &[u8]| Csr::parse(der).unwrap_err();
    assert_eq!(refused(&[]), CsrError::Malformed);
    assert_eq!(refused(&[&request[..], &[0]].concat()), CsrError::Malformed);
    assert_eq!(refused(&request[..request.len() - 1]), CsrError::Malformed);
    assert_eq!(refused(&vec![0x30; 8 * 1024]), CsrError::Malformed);
    assert_eq!(
        refused(&vec![0x30; 8 * 1024 + 1]),
        CsrError::Long { length: 8193 }
    );
}

#[test]
fn a_key_that_the_sender_does_not_hold_is_refused() {
    let (_, own) = generate_csr().unwrap();
    let (victim, other) = generate_csr().unwrap();
    let point = |key: &PrivateKey| key.public_key_info()[26..].to_vec();
    // The sender's own request, with the victim's public key in place of its own.
    let own_csr = Csr::parse(&own).unwrap();
    let own_point = own_csr.public_key.der_bytes();
    let at = own
        .windows(own_point.len())
        .position(|w| w == own_point)
        .unwrap();
    let mut forged = own.clone();
    forged[at..at + own_point.len()].copy_from_slice(&point(&victim));
    assert_eq!(Csr::parse(&forged).unwrap_err(), CsrError::Signature);
    assert!(Csr::parse(&other).is_ok());
}

#[test]
fn each_flipped_bit_is_noticed() {
    let (_, request) = generate_csr().unwrap();
    assert!(Csr::parse(&request).is_ok());
    for bit in 0..request.len() * 8 {
        let mut flipped = request.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(Csr::parse(&flipped).is_err(), "bit {bit}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_a_request_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        prop_assert!(Csr::parse(&bytes).is_err());
    }
}

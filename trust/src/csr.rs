//! Certificate signing requests (PKCS #10, RFC 2986): making one, and checking a foreign one.
//!
//! A request is only a proof that its sender holds a key. Whatever names or extensions it asks for
//! are ignored: the identity comes from the [`Grant`](crate::Grant) alone.

use aws_lc_rs::signature::{self, UnparsedPublicKey, VerificationAlgorithm};
use rcgen::{CertificateParams, DistinguishedName};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::oid_registry as oid;
use x509_parser::prelude::FromDer;
use x509_parser::x509::{AlgorithmIdentifier, SubjectPublicKeyInfo};

use crate::key::Signer;
use crate::{KeyError, PrivateKey, der};

/// The largest request accepted. One for RSA-8192, the largest key, has about 2.2 KiB.
const MAX_CSR: usize = 8 * 1024;
/// The length of an uncompressed point on P-256.
const P256_POINT: usize = 65;

/// Makes a new key on P-256 and a request (DER) that proves it.
///
/// # Errors
/// Only if the system gives no randomness.
pub fn generate_csr() -> Result<(PrivateKey, Vec<u8>), CsrError> {
    let key = PrivateKey::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let request = params
        .serialize_request(&Signer(&key))
        .map_err(|_| CsrError::Sign)?;
    let der = request.der().to_vec();
    Ok((key, der))
}

/// A request whose signature has been checked: its sender holds the private key.
#[derive(Debug, Clone)]
pub struct Csr {
    pub(crate) public_key: rcgen::SubjectPublicKeyInfo,
}

impl Csr {
    /// Parses a request in DER and checks its signature.
    ///
    /// # Errors
    /// If it is too long, malformed, followed by other bytes, not signed by its own key, or for a
    /// key other than ECDSA P-256, Ed25519 or RSA of 2048 to 8192 bits.
    pub fn parse(der: &[u8]) -> Result<Self, CsrError> {
        if der.len() > MAX_CSR {
            return Err(CsrError::Long { length: der.len() });
        }
        let (rest, request) =
            X509CertificationRequest::from_der(der).map_err(|_| CsrError::Malformed)?;
        if !rest.is_empty() {
            return Err(CsrError::Malformed);
        }
        if encoded(&request) != der {
            return Err(CsrError::Malformed);
        }
        let info = &request.certification_request_info;
        let algorithm = algorithm_of(&request.signature_algorithm, &info.subject_pki)?;
        UnparsedPublicKey::new(algorithm, &info.subject_pki.subject_public_key.data)
            .verify(info.raw, &request.signature_value.data)
            .map_err(|_| CsrError::Signature)?;
        let public_key = rcgen::SubjectPublicKeyInfo::from_der(info.subject_pki.raw)
            .map_err(|_| CsrError::Key)?;
        Ok(Self { public_key })
    }
}

/// The only encoding of a request, around the part that is signed as it is. The parser is lenient
/// about tags, and lenient readers disagree.
fn encoded(request: &X509CertificationRequest<'_>) -> Vec<u8> {
    const SEQUENCE: u8 = 0x30;
    const OID: u8 = 0x06;
    const BIT_STRING: u8 = 0x03;
    const NULL: [u8; 2] = [5, 0];
    let algorithm = &request.signature_algorithm;
    let mut identifier = der::encode(OID, algorithm.algorithm.as_bytes());
    // RFC 4055 section 5 wants a null for RSA; the other algorithms have no parameters.
    if algorithm.parameters.is_some() {
        identifier.extend(NULL);
    }
    let signature = [&[0], &*request.signature_value.data].concat();
    let parts = [
        request.certification_request_info.raw,
        &der::encode(SEQUENCE, &identifier),
        &der::encode(BIT_STRING, &signature),
    ];
    der::encode(SEQUENCE, &parts.concat())
}

/// The one algorithm that fits both the key and what the request says of its signature. The bounds
/// on RSA keys are those of the algorithms chosen here.
fn algorithm_of(
    signed_with: &AlgorithmIdentifier<'_>,
    key: &SubjectPublicKeyInfo<'_>,
) -> Result<&'static dyn VerificationAlgorithm, CsrError> {
    let signed_with = &signed_with.algorithm;
    let algorithm: &'static dyn VerificationAlgorithm = match Kind::of(key)? {
        Kind::P256 if *signed_with == oid::OID_SIG_ECDSA_WITH_SHA256 => {
            &signature::ECDSA_P256_SHA256_ASN1
        }
        Kind::P256 if *signed_with == oid::OID_SIG_ECDSA_WITH_SHA384 => {
            &signature::ECDSA_P256_SHA384_ASN1
        }
        Kind::Ed25519 if *signed_with == oid::OID_SIG_ED25519 => &signature::ED25519,
        Kind::Rsa if *signed_with == oid::OID_PKCS1_SHA256WITHRSA => {
            &signature::RSA_PKCS1_2048_8192_SHA256
        }
        Kind::Rsa if *signed_with == oid::OID_PKCS1_SHA384WITHRSA => {
            &signature::RSA_PKCS1_2048_8192_SHA384
        }
        Kind::Rsa if *signed_with == oid::OID_PKCS1_SHA512WITHRSA => {
            &signature::RSA_PKCS1_2048_8192_SHA512
        }
        _ => return Err(CsrError::SignatureAlgorithm),
    };
    Ok(algorithm)
}

/// The kinds of keys that get a certificate.
enum Kind {
    P256,
    Ed25519,
    Rsa,
}

impl Kind {
    fn of(key: &SubjectPublicKeyInfo<'_>) -> Result<Self, CsrError> {
        let algorithm = &key.algorithm.algorithm;
        if *algorithm == oid::OID_KEY_TYPE_EC_PUBLIC_KEY {
            let curve = key
                .algorithm
                .parameters
                .as_ref()
                .and_then(|any| any.as_oid().ok());
            let point = &key.subject_public_key.data;
            if curve == Some(oid::OID_EC_P256) && point.len() == P256_POINT && point[0] == 4 {
                return Ok(Self::P256);
            }
        } else if *algorithm == oid::OID_SIG_ED25519 {
            return Ok(Self::Ed25519);
        } else if *algorithm == oid::OID_PKCS1_RSAENCRYPTION {
            return Ok(Self::Rsa);
        }
        Err(CsrError::Key)
    }
}

/// Why a request cannot be made, or is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CsrError {
    /// No key could be made.
    #[error("no key for the request")]
    NoKey(#[from] KeyError),
    /// The request could not be signed.
    #[error("the certificate request could not be signed")]
    Sign,
    /// More bytes than a request for any accepted key has.
    #[error("the certificate request has {length} bytes; at most 8192 are accepted")]
    Long {
        /// Its length in bytes.
        length: usize,
    },
    /// Not the DER of exactly one PKCS #10 request.
    #[error("the certificate request is not one PKCS #10 request in DER")]
    Malformed,
    /// A key of another kind.
    #[error("the requested key is none of ECDSA P-256, Ed25519, RSA of 2048 to 8192 bits")]
    Key,
    /// The signature's algorithm does not fit the key.
    #[error("the certificate request is signed with an algorithm that does not fit its key")]
    SignatureAlgorithm,
    /// The signature is wrong, or the key is damaged or of a refused size.
    #[error("the certificate request is not signed by the key that it names")]
    Signature,
}

#[cfg(test)]
mod tests;

//! What X509-SVID asks of single certificates: leaves and signing certificates.
//!
//! Chains, signatures and validity are [`verify`](crate::verify)'s part.

use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, KeyUsage};
use x509_parser::oid_registry::OID_X509_SERIALNUMBER;
use x509_parser::prelude::FromDer;
use x509_parser::time::ASN1Time;
use zeroize::{Zeroize, Zeroizing};

use crate::{IdError, SpiffeId};

/// The SPIFFE ID of a chain's leaf (the first certificate), checked by the rules for leaves.
///
/// This proves nothing by itself: use it on the chain of a finished handshake, which has.
///
/// # Errors
/// If the chain is empty or its first certificate is not a leaf SVID.
pub fn spiffe_id_of(chain: &[CertificateDer<'_>]) -> Result<SpiffeId, CertificateError> {
    let leaf = chain.first().ok_or(CertificateError::NoCertificate)?;
    Ok(Leaf::parse(leaf)?.id)
}

/// When a chain's leaf (the first certificate) expires.
///
/// # Errors
/// If the chain is empty or its first certificate is not a leaf SVID.
pub fn expiry_of(chain: &[CertificateDer<'_>]) -> Result<SystemTime, CertificateError> {
    let leaf = chain.first().ok_or(CertificateError::NoCertificate)?;
    Ok(Leaf::parse(leaf)?.validity.not_after)
}

/// The note with which the issuer of a chain's leaf (the first certificate) issued it; `None` where
/// there is none, or the certificate cannot be read. It is worth what its issuer is: ask for it
/// only once the chain is verified, and of the own trust domain only.
pub fn note_of(chain: &[CertificateDer<'_>]) -> Option<String> {
    let certificate = parse(chain.first()?).ok()?;
    let mut notes = certificate.subject().iter_by_oid(&OID_X509_SERIALNUMBER);
    let (Some(note), None) = (notes.next(), notes.next()) else {
        return None;
    };
    Some(note.as_str().ok()?.to_owned())
}

/// A leaf certificate that follows X509-SVID: one URI, a SPIFFE ID with a path; no CA; its key may
/// sign handshakes and nothing else of consequence.
#[derive(Debug)]
pub(crate) struct Leaf {
    pub(crate) id: SpiffeId,
    pub(crate) validity: Validity,
    pub(crate) public_key_info: Vec<u8>,
}

impl Leaf {
    pub(crate) fn parse(der: &[u8]) -> Result<Self, CertificateError> {
        let certificate = parse(der)?;
        let id = match uris(&certificate)?.as_slice() {
            [] => return Err(CertificateError::NoUri),
            [uri] => SpiffeId::from_bytes(uri)?,
            more => return Err(CertificateError::SeveralUris { count: more.len() }),
        };
        if id.path().is_empty() {
            return Err(CertificateError::NoPath);
        }
        if is_ca(&certificate)? {
            return Err(CertificateError::CaAsLeaf);
        }
        let usage = key_usage(&certificate)?;
        if usage.key_cert_sign() || usage.crl_sign() {
            return Err(CertificateError::SigningLeaf);
        }
        if !usage.digital_signature() {
            return Err(CertificateError::NoDigitalSignature);
        }
        Ok(Self {
            id,
            validity: Validity::of(&certificate),
            public_key_info: certificate.public_key().raw.to_vec(),
        })
    }
}

/// A certificate that may sign others: a CA with `keyCertSign`. If it carries a SPIFFE ID, that is
/// the ID of a trust domain itself.
#[derive(Debug)]
pub(crate) struct Signing {
    pub(crate) id: Option<SpiffeId>,
    pub(crate) validity: Validity,
    pub(crate) public_key_info: Vec<u8>,
}

impl Signing {
    pub(crate) fn parse(der: &[u8]) -> Result<Self, CertificateError> {
        let certificate = parse(der)?;
        if !is_ca(&certificate)? {
            return Err(CertificateError::NotCa);
        }
        if !key_usage(&certificate)?.key_cert_sign() {
            return Err(CertificateError::NoKeyCertSign);
        }
        Ok(Self {
            id: signing_id(&uris(&certificate)?)?,
            validity: Validity::of(&certificate),
            public_key_info: certificate.public_key().raw.to_vec(),
        })
    }
}

/// The SPIFFE ID of a signing certificate, if it has one. A CA that also serves other ends may
/// carry other URIs, but once it has a SPIFFE ID it is an SVID, and has that URI only.
fn signing_id(uris: &[&[u8]]) -> Result<Option<SpiffeId>, CertificateError> {
    let scheme = |uri: &&&[u8]| {
        uri.get(..7)
            .is_some_and(|s| s.eq_ignore_ascii_case(b"spiffe:"))
    };
    let Some(uri) = uris.iter().find(scheme) else {
        return Ok(None);
    };
    if uris.len() > 1 {
        return Err(CertificateError::SeveralUris { count: uris.len() });
    }
    let id = SpiffeId::from_bytes(uri)?;
    if !id.path().is_empty() {
        return Err(CertificateError::SigningPath);
    }
    Ok(Some(id))
}

/// From when until when a certificate holds, both inclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Validity {
    pub(crate) not_before: SystemTime,
    pub(crate) not_after: SystemTime,
}

impl Validity {
    fn of(certificate: &X509Certificate<'_>) -> Self {
        let validity = certificate.validity();
        Self {
            not_before: time_of(validity.not_before),
            not_after: time_of(validity.not_after),
        }
    }

    pub(crate) fn contains(&self, now: SystemTime) -> bool {
        (self.not_before..=self.not_after).contains(&now)
    }

    /// When both hold.
    pub(crate) fn within(self, other: Self) -> Self {
        Self {
            not_before: self.not_before.max(other.not_before),
            not_after: self.not_after.min(other.not_after),
        }
    }
}

/// Times before 1970 count as 1970: nothing here is that old, and both are over.
fn time_of(time: ASN1Time) -> SystemTime {
    let seconds = u64::try_from(time.timestamp()).unwrap_or(0);
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, CertificateError> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        _ => Err(CertificateError::Malformed),
    }
}

/// All URIs of the subject alternative names. An unreadable name of any kind is an error, since it
/// could be a URI that another reader would see.
fn uris<'a>(certificate: &'a X509Certificate<'_>) -> Result<Vec<&'a [u8]>, CertificateError> {
    let names = certificate
        .subject_alternative_name()
        .map_err(|_| CertificateError::Malformed)?;
    let names = names.map_or(&[][..], |extension| &extension.value.general_names);
    let mut uris = Vec::new();
    for name in names {
        match name {
            GeneralName::URI(uri) => uris.push(uri.as_bytes()),
            GeneralName::Invalid(..) => return Err(CertificateError::Malformed),
            _ => {}
        }
    }
    Ok(uris)
}

fn is_ca(certificate: &X509Certificate<'_>) -> Result<bool, CertificateError> {
    let constraints = certificate
        .basic_constraints()
        .map_err(|_| CertificateError::Malformed)?;
    Ok(constraints.is_some_and(|extension| extension.value.ca))
}

fn key_usage<'a>(certificate: &'a X509Certificate<'_>) -> Result<&'a KeyUsage, CertificateError> {
    let usage = certificate
        .key_usage()
        .map_err(|_| CertificateError::Malformed)?;
    Ok(usage.ok_or(CertificateError::NoKeyUsage)?.value)
}

/// A PEM text (RFC 7468) in lines of 64. The copies made on the way are wiped, since it may be a
/// key.
pub(crate) fn pem_of(label: &str, der: &[u8]) -> Zeroizing<String> {
    let mut encoded = STANDARD.encode(der);
    // The exact size, so that no copy is left behind by growing.
    let lines = encoded.len().div_ceil(64);
    let mut pem = Zeroizing::new(String::with_capacity(
        encoded.len() + lines + 2 * label.len() + "-----BEGIN ----------END -----\n\n".len() + 2,
    ));
    pem.push_str("-----BEGIN ");
    pem.push_str(label);
    pem.push_str("-----\n");
    for start in (0..encoded.len()).step_by(64) {
        pem.push_str(&encoded[start..encoded.len().min(start + 64)]);
        pem.push('\n');
    }
    pem.push_str("-----END ");
    pem.push_str(label);
    pem.push_str("-----\n");
    encoded.zeroize();
    pem
}

/// How a certificate breaks the rules of X509-SVID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CertificateError {
    /// There is no certificate at all.
    #[error("no certificate was presented")]
    NoCertificate,
    /// Not exactly one X.509 certificate in DER, or one with an unreadable or doubled extension.
    #[error("the certificate is malformed")]
    Malformed,
    /// A leaf without a URI among its subject alternative names.
    #[error("the certificate carries no SPIFFE ID")]
    NoUri,
    /// More than one URI: which one counts would be a matter of taste.
    #[error("the certificate carries {count} URIs; an SVID has exactly one")]
    SeveralUris {
        /// How many there are.
        count: usize,
    },
    /// The URI is not a SPIFFE ID.
    #[error("the certificate's URI is not a SPIFFE ID")]
    Id(#[from] IdError),
    /// A leaf with the ID of a whole trust domain.
    #[error("the certificate's SPIFFE ID has no path, so it names no workload")]
    NoPath,
    /// A CA certificate where a leaf belongs.
    #[error("a CA certificate is not accepted as a leaf")]
    CaAsLeaf,
    /// There is no key usage extension.
    #[error("the certificate has no key usage extension")]
    NoKeyUsage,
    /// A leaf whose key may sign certificates or revocation lists.
    #[error("the leaf's key usage has keyCertSign or cRLSign")]
    SigningLeaf,
    /// A leaf whose key may not sign handshakes.
    #[error("the leaf's key usage lacks digitalSignature")]
    NoDigitalSignature,
    /// A root or intermediate that is not a CA.
    #[error("the issuing certificate is not a CA")]
    NotCa,
    /// A root or intermediate whose key may not sign certificates.
    #[error("the issuing certificate's key usage lacks keyCertSign")]
    NoKeyCertSign,
    /// A root or intermediate with the SPIFFE ID of a workload.
    #[error("the issuing certificate's SPIFFE ID has a path")]
    SigningPath,
}

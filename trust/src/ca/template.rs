//! What stands in the certificates that an authority signs.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, DnValue,
    ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SanType, SerialNumber,
};
use time::OffsetDateTime;

use super::CaError;
use crate::certificate::Validity;
use crate::{KeyError, SpiffeId, TrustDomain};

/// Certificates are valid from a while ago, for verifiers whose clocks are behind; at most a
/// quarter of their life, so that a short one is not over before the renewal that its half calls
/// for.
pub(super) const BACKDATE: Duration = Duration::from_secs(10 * 60);

/// The attribute `serialNumber` of X.520, in which a leaf carries its issuer's note.
const NOTE_OID: [u64; 4] = [2, 5, 4, 5];
/// Longest note: each handshake carries it.
const MAX_NOTE: usize = 80;

/// From a little before `now` until `lifetime` after it.
pub(super) fn validity(now: SystemTime, lifetime: Duration) -> Result<Validity, CaError> {
    let not_before = now
        .checked_sub(BACKDATE.min(lifetime / 4))
        .ok_or(CaError::Time)?;
    let not_after = now.checked_add(lifetime).ok_or(CaError::Time)?;
    Ok(Validity {
        not_before,
        not_after,
    })
}

/// What roots and intermediates have in common. They are SVIDs of the trust domain itself.
pub(super) fn signing_params(
    trust_domain: &TrustDomain,
    kind: &str,
    path_length: u8,
    validity: Validity,
) -> Result<CertificateParams, CaError> {
    let mut params = params(uri(&trust_domain.id()), validity).ok_or(CaError::Time)?;
    // Names tell issuers apart when a verifier looks for one, so that no two may share theirs.
    let mut unique = [0; 8];
    aws_lc_rs::rand::fill(&mut unique).map_err(|_| CaError::NoKey(KeyError::Random))?;
    let name = format!("Linkspan {kind} {:016x}", u64::from_be_bytes(unique));
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_length));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

pub(super) fn leaf_params(id: &SpiffeId, validity: Validity) -> Option<CertificateParams> {
    let mut params = params(uri(id), validity)?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    Some(params)
}

/// A leaf for a server whose clients ask for a DNS name; `None` also if `name` is none.
pub(super) fn host_params(name: &str, validity: Validity) -> Option<CertificateParams> {
    let mut params = params(Some(SanType::DnsName(name.try_into().ok()?)), validity)?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    Some(params)
}

fn uri(id: &SpiffeId) -> Option<SanType> {
    Some(SanType::URI(id.as_str().try_into().ok()?))
}

/// The subject of a leaf with a note: its `serialNumber`, which is nobody's name.
pub(super) fn noted(note: &str) -> Option<DistinguishedName> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, ':' | '-');
    if !(1..=MAX_NOTE).contains(&note.len()) || !note.chars().all(plain) {
        return None;
    }
    let mut name = DistinguishedName::new();
    let value = DnValue::PrintableString(note.try_into().ok()?);
    name.push(DnType::CustomDnType(NOTE_OID.to_vec()), value);
    Some(name)
}

/// `None` if a time cannot be written into a certificate, or there is no randomness.
fn params(name: Option<SanType>, validity: Validity) -> Option<CertificateParams> {
    let mut serial = [0; 16];
    aws_lc_rs::rand::fill(&mut serial).ok()?;
    // Positive, and of the same length always.
    serial[0] = serial[0] & 0x7f | 0x40;
    let mut params = CertificateParams::default();
    params.serial_number = Some(SerialNumber::from(serial.to_vec()));
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![name?];
    params.not_before = certificate_time(validity.not_before)?;
    params.not_after = certificate_time(validity.not_after)?;
    params.use_authority_key_identifier_extension = true;
    Some(params)
}

/// The years that X.509 can write, from 1970.
fn certificate_time(time: SystemTime) -> Option<OffsetDateTime> {
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs();
    OffsetDateTime::from_unix_timestamp(seconds.try_into().ok()?).ok()
}

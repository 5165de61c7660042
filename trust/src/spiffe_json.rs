//! The SPIFFE bundle format: a JWK set (RFC 7517) whose `x509-svid` keys carry one certificate.
//!
//! See "SPIFFE Trust Domain and Bundle", section 4, and X509-SVID, section 6.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use x509_parser::certificate::X509Certificate;
use x509_parser::oid_registry as oid;
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;

use crate::{Bundle, BundleError};

/// The largest document accepted: 64 roots fit many times over.
const MAX_DOCUMENT: usize = 1024 * 1024;
const USE: &str = "x509-svid";

#[derive(Serialize, Deserialize)]
struct Document {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    spiffe_sequence: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    spiffe_refresh_hint: Option<u64>,
    keys: Vec<Jwk>,
}

#[derive(Default, Serialize, Deserialize)]
struct Jwk {
    #[serde(default)]
    kty: String,
    #[serde(default, rename = "use")]
    usage: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    crv: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    x: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    y: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    n: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    e: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    x5c: Vec<String>,
}

pub(crate) fn parse(json: &[u8]) -> Result<Bundle, BundleError> {
    if json.len() > MAX_DOCUMENT {
        return Err(BundleError::Json {
            reason: format!("more than {MAX_DOCUMENT} bytes"),
        });
    }
    let document: Document = serde_json::from_slice(json).map_err(|error| BundleError::Json {
        reason: error.to_string(),
    })?;
    let mut roots = Vec::new();
    for (index, key) in document.keys.iter().enumerate() {
        roots.extend(root_of(index, key)?);
    }
    let refresh_hint = document.spiffe_refresh_hint.map(Duration::from_secs);
    Bundle::new(document.spiffe_sequence.unwrap_or(0), refresh_hint, roots)
}

/// The certificate of a key that is for X509-SVIDs; of several certificates only the first counts.
fn root_of(index: usize, key: &Jwk) -> Result<Option<CertificateDer<'static>>, BundleError> {
    let known = matches!(key.kty.as_str(), "EC" | "RSA" | "OKP");
    let Some(root) = key.x5c.first().filter(|_| known && key.usage == USE) else {
        return Ok(None);
    };
    match STANDARD.decode(root) {
        Ok(der) => Ok(Some(der.into())),
        Err(_) => Err(BundleError::Json {
            reason: format!("keys[{index}].x5c[0]: not base64"),
        }),
    }
}

pub(crate) fn print(bundle: &Bundle) -> String {
    let document = Document {
        spiffe_sequence: Some(bundle.sequence),
        spiffe_refresh_hint: bundle.refresh_hint.map(|hint| hint.as_secs()),
        keys: bundle.roots.iter().filter_map(jwk_of).collect(),
    };
    serde_json::to_string(&document).expect("strings and numbers always have a JSON form")
}

/// `None` for a root with a kind of key that no verifier here knows, and that would not be usable.
fn jwk_of(root: &CertificateDer<'_>) -> Option<Jwk> {
    let (_, certificate) = X509Certificate::from_der(root).ok()?;
    let info = certificate.public_key();
    let encode = |bytes: &[u8]| Some(URL_SAFE_NO_PAD.encode(bytes));
    let mut jwk = Jwk {
        usage: USE.into(),
        x5c: vec![STANDARD.encode(root)],
        ..Default::default()
    };
    match info.parsed().ok()? {
        PublicKey::EC(point) => {
            // An uncompressed point: 0x04, then both coordinates at full width.
            let (crv, width) = match point.data() {
                [4, rest @ ..] if rest.len() == 64 => ("P-256", 32),
                [4, rest @ ..] if rest.len() == 96 => ("P-384", 48),
                [4, rest @ ..] if rest.len() == 132 => ("P-521", 66),
                _ => return None,
            };
            let (x, y) = point.data()[1..].split_at(width);
            (jwk.kty, jwk.crv, jwk.x, jwk.y) =
                ("EC".into(), Some(crv.into()), encode(x), encode(y));
        }
        PublicKey::RSA(key) => {
            let trimmed = |number: &[u8]| {
                let start = number.iter().position(|byte| *byte != 0).unwrap_or(0);
                encode(&number[start..])
            };
            jwk.kty = "RSA".into();
            (jwk.n, jwk.e) = (trimmed(key.modulus), trimmed(key.exponent));
        }
        _ if info.algorithm.algorithm == oid::OID_SIG_ED25519 => {
            jwk.kty = "OKP".into();
            (jwk.crv, jwk.x) = (
                Some("Ed25519".into()),
                encode(&info.subject_public_key.data),
            );
        }
        _ => return None,
    }
    Some(jwk)
}

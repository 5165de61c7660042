//! Is the peer who it says, and is that who we want? The rustls verifiers.
//!
//! The order of the checks, of which the first that fails decides:
//!
//! 1. the leaf follows X509-SVID, and so has exactly one SPIFFE ID;
//! 2. the trust domain of that ID has a bundle here;
//! 3. webpki builds a path from the leaf to a root **of that bundle**, now valid, for the peer's
//!    role (extended key usage), within all path-length and name constraints;
//! 4. each signing certificate on that path has `keyCertSign`, and if it carries a SPIFFE ID, that
//!    of the same trust domain;
//! 5. the [`TrustPolicy`] accepts the ID.
//!
//! That the peer holds the leaf's private key is then checked by rustls with the handshake's
//! signature. Host names are never looked at.
//!
//! Our own intermediates carry no name constraints, although X509-SVID allows them: webpki does not
//! evaluate constraints on URIs and refuses each chain that has one together with a URI, which is
//! the safe side but would refuse every SVID. Step 4 and the rule of one bundle per domain take
//! their place. Chains of foreign authorities with URI constraints are refused for that reason.

use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError as TlsError, DigitallySignedStruct, DistinguishedName, OtherError,
    PeerIncompatible, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use tracing::debug;
use webpki::{EndEntityCert, KeyUsage, VerifiedPath};

use crate::bundle::Anchor;
use crate::certificate::{Leaf, Signing};
use crate::{BundleSet, CertificateError, ClientPolicy, SpiffeId, TrustDomain, TrustPolicy, tls};

/// The most certificates after the leaf: as many as webpki would put into one path.
pub(crate) const MAX_INTERMEDIATES: usize = 6;

/// Which part the peer plays in the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Client,
    Server,
}

/// Proves whose chain this is: steps 1 to 4.
pub(crate) fn prove(
    bundles: &BundleSet,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    role: Role,
    now: UnixTime,
) -> Result<SpiffeId, Rejection> {
    if intermediates.len() > MAX_INTERMEDIATES {
        return Err(Refusal::LongChain {
            intermediates: intermediates.len(),
        }
        .into());
    }
    let id = Leaf::parse(leaf).map_err(Refusal::Leaf)?.id;
    let domain = id.trust_domain();
    let anchors = bundles.anchors(domain).ok_or_else(|| Refusal::NoBundle {
        trust_domain: domain.clone(),
    })?;
    let valid = valid_at(anchors, now);
    if valid.is_empty() {
        return Err(match out_of_time(anchors, now) {
            Some(source) => Rejection::Path {
                claimed: id,
                source,
            },
            None => Refusal::NoRoot {
                trust_domain: domain.clone(),
            }
            .into(),
        });
    }
    build_path(&id, leaf, intermediates, &valid, role, now)?;
    Ok(id)
}

/// The roots that are valid at the moment. webpki itself takes an anchor's word for ever.
fn valid_at(anchors: &[Anchor], now: UnixTime) -> Vec<TrustAnchor<'static>> {
    let now = Duration::from_secs(now.as_secs());
    let Some(now) = SystemTime::UNIX_EPOCH.checked_add(now) else {
        return Vec::new();
    };
    let valid = anchors
        .iter()
        .filter(|anchor| anchor.validity.contains(now));
    valid.map(|anchor| anchor.anchor.clone()).collect()
}

/// What is wrong with the time, given that no root is valid now: the first thing that shows when a
/// clock is wrong, so both times are named. `None` if there are no roots at all.
fn out_of_time(anchors: &[Anchor], now: UnixTime) -> Option<webpki::Error> {
    let unix = |at: SystemTime| {
        UnixTime::since_unix_epoch(
            at.duration_since(SystemTime::UNIX_EPOCH)
                .unwrap_or_default(),
        )
    };
    let validities = || anchors.iter().map(|anchor| anchor.validity);
    let first = validities()
        .map(|validity| unix(validity.not_before))
        .filter(|at| *at > now);
    if let Some(not_before) = first.min() {
        return Some(webpki::Error::CertNotValidYet {
            time: now,
            not_before,
        });
    }
    let not_after = validities()
        .map(|validity| unix(validity.not_after))
        .max()?;
    Some(webpki::Error::CertExpired {
        time: now,
        not_after,
    })
}

fn build_path(
    id: &SpiffeId,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    anchors: &[TrustAnchor<'static>],
    role: Role,
    now: UnixTime,
) -> Result<(), Rejection> {
    let usage = match role {
        Role::Client => KeyUsage::required_if_present(CLIENT_AUTH),
        Role::Server => KeyUsage::required_if_present(SERVER_AUTH),
    };
    // webpki asks this for each path that leads to a root, and tries others if it is refused, so
    // the reason has to be carried past it.
    let refused = Cell::new(None);
    let may_issue = |path: &VerifiedPath<'_>| {
        check_issuers(id.trust_domain(), path).map_err(|refusal| {
            refused.set(Some(refusal));
            webpki::Error::UnknownIssuer
        })
    };
    let path = EndEntityCert::try_from(leaf).and_then(|end_entity| {
        end_entity
            .verify_for_usage(
                algorithms().all,
                anchors,
                intermediates,
                now,
                usage,
                None,
                Some(&may_issue),
            )
            .map(|_| ())
    });
    path.map_err(|error| match refused.take() {
        Some(refusal) => refusal.into(),
        None => Rejection::Path {
            claimed: id.clone(),
            source: error,
        },
    })
}

/// What webpki leaves open about the signing certificates of a path: their key usage, and their
/// trust domain. Roots were checked when they entered their bundle.
fn check_issuers(domain: &TrustDomain, path: &VerifiedPath<'_>) -> Result<(), Refusal> {
    for certificate in path.intermediate_certificates() {
        let signing = Signing::parse(&certificate.der()).map_err(Refusal::Issuer)?;
        match signing.id {
            Some(id) if id.trust_domain() != domain => {
                let (leaf, issuer) = (domain.clone(), id.trust_domain().clone());
                return Err(Refusal::IssuerDomain { leaf, issuer });
            }
            _ => {}
        }
    }
    Ok(())
}

/// Object identifiers of id-kp-serverAuth and id-kp-clientAuth, RFC 5280 section 4.2.1.12.
const SERVER_AUTH: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 1];
const CLIENT_AUTH: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 2];

pub(crate) fn algorithms() -> WebPkiSupportedAlgorithms {
    tls::provider().signature_verification_algorithms
}

/// Why a peer is not accepted, where TLS itself has no word for it.
///
/// rustls hands it on as the source of `CertificateError::Other`. An unknown trust domain and an
/// unknown root are `CertificateError::UnknownIssuer`, a certificate out of its time is
/// `ExpiredContext` or `NotValidYetContext` (which name both times), and so on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The leaf breaks the rules of X509-SVID.
    #[error("the peer's certificate is not an X509-SVID")]
    Leaf(#[source] CertificateError),
    /// No bundle for the trust domain that the leaf names.
    #[error("no trust bundle for the peer's trust domain `{trust_domain}`; is it linked?")]
    NoBundle {
        /// The domain in the leaf's SPIFFE ID.
        trust_domain: TrustDomain,
    },
    /// The bundle is empty: nobody of this domain is trusted.
    #[error("the trust bundle of the peer's trust domain `{trust_domain}` is empty")]
    NoRoot {
        /// The domain in the leaf's SPIFFE ID.
        trust_domain: TrustDomain,
    },
    /// None of the certificates that came along is a root that is known by its pin.
    #[error("the peer's chain ends in none of the pinned roots of trust domain `{trust_domain}`")]
    NotPinned {
        /// The domain of the server that was expected.
        trust_domain: TrustDomain,
    },
    /// More certificates than any sane chain has.
    #[error("the peer sent {intermediates} certificates after its leaf; at most 6 are accepted")]
    LongChain {
        /// How many follow the leaf.
        intermediates: usize,
    },
    /// An intermediate that may not sign certificates.
    #[error("the peer's chain holds a certificate that may not issue others")]
    Issuer(#[source] CertificateError),
    /// An intermediate of another trust domain than the leaf's.
    #[error("the peer is of trust domain `{leaf}` but was issued by `{issuer}`")]
    IssuerDomain {
        /// The leaf's domain.
        leaf: TrustDomain,
        /// The domain in the intermediate's SPIFFE ID.
        issuer: TrustDomain,
    },
    /// Proved, but not wanted here.
    #[error("the peer proved to be `{id}`, which is not accepted here")]
    Policy {
        /// The proved identity.
        id: SpiffeId,
    },
}

/// Everything for which a chain can be rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Rejection {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("no valid path from `{claimed}` to a root of its trust domain")]
    Path {
        /// Who the leaf says it is, unproved.
        claimed: SpiffeId,
        source: webpki::Error,
    },
}

impl From<Rejection> for rustls::Error {
    fn from(rejection: Rejection) -> Self {
        Self::InvalidCertificate(match rejection {
            Rejection::Refused(Refusal::Leaf(CertificateError::Malformed)) => TlsError::BadEncoding,
            Rejection::Refused(Refusal::NoBundle { .. } | Refusal::NoRoot { .. }) => {
                TlsError::UnknownIssuer
            }
            Rejection::Refused(refusal) => TlsError::Other(OtherError(Arc::new(refusal))),
            Rejection::Path { source, .. } => path_error(source),
        })
    }
}

/// webpki's errors in the words of rustls, as rustls's own verifiers choose them.
fn path_error(error: webpki::Error) -> TlsError {
    use webpki::Error;
    match error {
        Error::BadDer | Error::BadDerTime | Error::TrailingData(_) => TlsError::BadEncoding,
        Error::CertExpired { time, not_after } => TlsError::ExpiredContext { time, not_after },
        Error::CertNotValidYet { time, not_before } => {
            TlsError::NotValidYetContext { time, not_before }
        }
        Error::InvalidCertValidity => TlsError::Expired,
        Error::UnknownIssuer => TlsError::UnknownIssuer,
        Error::InvalidSignatureForPublicKey => TlsError::BadSignature,
        Error::UnsupportedCriticalExtension => TlsError::UnhandledCriticalExtension,
        Error::RequiredEkuNotFoundContext(_) => TlsError::InvalidPurpose,
        other => TlsError::Other(OtherError(Arc::new(other))),
    }
}

/// The verifier for either side.
#[derive(Debug)]
pub(crate) struct Verifier {
    bundles: Arc<BundleSet>,
    policy: TrustPolicy,
    mandatory: bool,
}

impl Verifier {
    /// Servers are checked by their identity alone.
    pub(crate) fn of_servers(bundles: Arc<BundleSet>, policy: TrustPolicy) -> Self {
        Self {
            bundles,
            policy,
            mandatory: true,
        }
    }

    pub(crate) fn of_clients(bundles: Arc<BundleSet>, policy: ClientPolicy) -> Self {
        let (policy, mandatory) = match policy {
            ClientPolicy::Required(policy) => (policy, true),
            ClientPolicy::Optional(policy) => (policy, false),
        };
        Self {
            bundles,
            policy,
            mandatory,
        }
    }

    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        role: Role,
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let accepted = prove(&self.bundles, leaf, intermediates, role, now).and_then(|id| {
            if self.policy.accepts(&id) {
                Ok(())
            } else {
                Err(Refusal::Policy { id }.into())
            }
        });
        accepted.map_err(|rejection| {
            let cause = std::error::Error::source(&rejection).map(ToString::to_string);
            let cause = cause.unwrap_or_default();
            debug!(?role, reason = %rejection, cause, "peer certificate refused");
            rejection.into()
        })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verify(end_entity, intermediates, Role::Server, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(tls12_refused())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        algorithms().supported_schemes()
    }
}

impl ClientCertVerifier for Verifier {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    /// Empty: a client is not told which roots are known here.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.verify(end_entity, intermediates, Role::Client, now)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(tls12_refused())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        algorithms().supported_schemes()
    }
}

/// No configuration made here offers TLS 1.2, so this is never reached; were it, it refuses.
pub(crate) fn tls12_refused() -> rustls::Error {
    PeerIncompatible::Tls12NotOffered.into()
}

#[cfg(test)]
mod tests;

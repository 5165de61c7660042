//! The certificate authority of one trust domain: a long-lived root that only signs intermediates,
//! and an intermediate that issues SVIDs.

mod error;
mod template;

use std::fmt;
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, Issuer, PublicKeyData};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, UnixTime};
use zeroize::Zeroizing;

pub use self::error::{CaError, CaPart, IssueError};
use self::template::{BACKDATE, host_params, leaf_params, noted, signing_params, validity};
use crate::certificate::{Signing, Validity, pem_of};
use crate::key::Signer;
use crate::verify::{Role, prove};
use crate::{
    Bundle, BundleSet, Csr, HostCertificate, KeyError, PrivateKey, SpiffeId, Svid, TrustDomain,
};

/// How long an SVID lives unless its grant says otherwise.
pub const DEFAULT_SVID_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * DAY.as_secs());
const INTERMEDIATE_LIFETIME: Duration = Duration::from_secs(90 * DAY.as_secs());

/// What an authority is to put into a certificate. Deciding that is the caller's part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// Whose identity.
    pub id: SpiffeId,
    /// For how long from now; it is cut where the issuing certificate ends.
    pub lifetime: Duration,
}

/// An authority as text, for files that only their owner may read. The keys are PKCS #8 and are
/// wiped when dropped.
pub struct CaPem {
    /// The root certificate.
    pub root_cert: String,
    /// The root's private key.
    pub root_key: Zeroizing<String>,
    /// The issuing intermediate's certificate.
    pub intermediate_cert: String,
    /// The issuing intermediate's private key.
    pub intermediate_key: Zeroizing<String>,
}

impl fmt::Debug for CaPem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CaPem")
            .field("root_cert", &self.root_cert)
            .field("intermediate_cert", &self.intermediate_cert)
            .finish_non_exhaustive()
    }
}

/// Issues the identities of one trust domain.
///
/// The root lives for ten years and only signs intermediates; the intermediate lives for 90 days,
/// and a new one can take its place at any time without anybody's trust changing
/// ([`rotate_intermediate`](Self::rotate_intermediate)). All keys are ECDSA on P-256.
pub struct CertificateAuthority {
    trust_domain: TrustDomain,
    root: Authority,
    intermediate: Authority,
}

/// A signing certificate with its key.
struct Authority {
    certificate: CertificateDer<'static>,
    validity: Validity,
    key: PrivateKey,
}

impl CertificateAuthority {
    /// Makes a new authority with new keys.
    ///
    /// # Errors
    /// If the system gives no randomness, or `now` is outside of the years 1970 to 9999.
    pub fn create(trust_domain: &TrustDomain, now: SystemTime) -> Result<Self, CaError> {
        let key = PrivateKey::generate()?;
        let params = signing_params(trust_domain, "root", 1, validity(now, ROOT_LIFETIME)?)?;
        let certificate = params
            .self_signed(&Signer(&key))
            .map_err(|_| CaError::Sign)?;
        let root = Authority::new(certificate.into(), key)?;
        let intermediate = root.sign_intermediate(trust_domain, now)?;
        Ok(Self {
            trust_domain: trust_domain.clone(),
            root,
            intermediate,
        })
    }

    /// Reads back an authority, or takes over one that was made elsewhere.
    ///
    /// # Errors
    /// If a part is unreadable, a key does not belong to its certificate, a certificate is no
    /// signing certificate, carries another trust domain's SPIFFE ID or is not valid at `now`, or
    /// if what the intermediate issues would not be trusted by the root.
    pub fn from_pem(
        trust_domain: &TrustDomain,
        pem: &CaPem,
        now: SystemTime,
    ) -> Result<Self, CaError> {
        let read =
            |part, cert: &str, key: &str| Authority::from_pem(trust_domain, part, cert, key, now);
        let ca = Self {
            trust_domain: trust_domain.clone(),
            root: read(CaPart::Root, &pem.root_cert, &pem.root_key)?,
            intermediate: read(
                CaPart::Intermediate,
                &pem.intermediate_cert,
                &pem.intermediate_key,
            )?,
        };
        ca.prove_chain(now)?;
        Ok(ca)
    }

    /// Takes the root and makes a new intermediate: for an authority whose intermediate ran out
    /// while nobody was there to rotate it. The intermediate in `pem` is not looked at.
    ///
    /// # Errors
    /// As [`from_pem`](Self::from_pem), of the root.
    pub fn from_root_pem(
        trust_domain: &TrustDomain,
        pem: &CaPem,
        now: SystemTime,
    ) -> Result<Self, CaError> {
        let (cert, key) = (&pem.root_cert, &pem.root_key);
        let root = Authority::from_pem(trust_domain, CaPart::Root, cert, key, now)?;
        let intermediate = root.sign_intermediate(trust_domain, now)?;
        let ca = Self {
            trust_domain: trust_domain.clone(),
            root,
            intermediate,
        };
        ca.prove_chain(now)?;
        Ok(ca)
    }

    /// The authority as text, keys included.
    pub fn to_pem(&self) -> CaPem {
        let cert =
            |authority: &Authority| String::clone(&pem_of("CERTIFICATE", &authority.certificate));
        CaPem {
            root_cert: cert(&self.root),
            root_key: self.root.key.to_pem(),
            intermediate_cert: cert(&self.intermediate),
            intermediate_key: self.intermediate.key.to_pem(),
        }
    }

    /// The trust domain whose identities this authority issues.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The bundle by which this authority's certificates are verified. Its sequence is the time at
    /// which the root was made, in seconds since 1970.
    pub fn bundle(&self) -> Bundle {
        let made = self.root.validity.not_before.checked_add(BACKDATE);
        let made = made.and_then(|made| made.duration_since(SystemTime::UNIX_EPOCH).ok());
        Bundle {
            sequence: made.unwrap_or_default().as_secs(),
            refresh_hint: None,
            roots: vec![self.root.certificate.clone()],
        }
    }

    /// Issues a certificate for the key of `csr`: the leaf, then the intermediate, without the
    /// root. It is valid from ten minutes ago (a quarter of its lifetime, if that is less), and
    /// never longer than its issuers.
    ///
    /// # Errors
    /// If the grant is for another trust domain, for the trust domain itself or for no time, or if
    /// the intermediate is not valid at `now`.
    pub fn issue(
        &self,
        csr: &Csr,
        grant: &Grant,
        now: SystemTime,
    ) -> Result<Vec<CertificateDer<'static>>, IssueError> {
        self.issue_noted(csr, grant, None, now)
    }

    /// As [`issue`](Self::issue), with a word of the issuer's own in the certificate, for
    /// [`note_of`](crate::note_of). Whoever sees the certificate can read it.
    ///
    /// # Errors
    /// As [`issue`](Self::issue), and for a note that is empty, longer than 80 bytes, or has other
    /// characters than letters, digits, `:` and `-`.
    pub fn issue_noted(
        &self,
        csr: &Csr,
        grant: &Grant,
        note: Option<&str>,
        now: SystemTime,
    ) -> Result<Vec<CertificateDer<'static>>, IssueError> {
        let validity = self.validity(grant.lifetime, now)?;
        self.issue_for(&csr.public_key, &grant.id, note, validity)
    }

    /// Makes a key and issues a certificate for it: for identities of the authority's own process.
    ///
    /// # Errors
    /// As [`issue`](Self::issue), and if the system gives no randomness.
    pub fn issue_svid(&self, grant: &Grant, now: SystemTime) -> Result<Svid, IssueError> {
        let (key, public_key) = new_key()?;
        let chain = self.issue(&Csr { public_key }, grant, now)?;
        Ok(Svid::new(chain, key)?)
    }

    /// Makes a key and issues a certificate for a DNS name, for a server of the authority's own
    /// process whose clients know nothing of SPIFFE. It is verified by [`bundle`](Self::bundle).
    ///
    /// # Errors
    /// As [`issue_svid`](Self::issue_svid), and if `name` is no DNS name.
    pub fn issue_host(
        &self,
        name: &str,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<HostCertificate, IssueError> {
        let validity = self.validity(lifetime, now)?;
        let (key, public_key) = new_key()?;
        let params = host_params(name, validity).ok_or(IssueError::Sign)?;
        let leaf = self
            .intermediate
            .sign(&params, &public_key)
            .ok_or(IssueError::Sign)?;
        let chain = vec![leaf, self.intermediate.certificate.clone()];
        let host = HostCertificate::new(chain, &key, now, validity.not_after)?;
        Ok(host)
    }

    /// From when until when a certificate counts that is to live so long.
    fn validity(&self, lifetime: Duration, now: SystemTime) -> Result<Validity, IssueError> {
        if lifetime < Duration::from_secs(1) {
            return Err(IssueError::NoLifetime);
        }
        let issuers = self.intermediate.validity.within(self.root.validity);
        if !issuers.contains(now) {
            return Err(IssueError::NotValid {
                not_after: issuers.not_after,
            });
        }
        let wanted = validity(now, lifetime).map_err(|_| IssueError::Time)?;
        Ok(wanted.within(issuers))
    }

    /// Issues for any time, however little sense it makes: for tests of what must be refused.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn issue_between(
        &self,
        id: &SpiffeId,
        not_before: SystemTime,
        not_after: SystemTime,
    ) -> Result<Svid, IssueError> {
        let (key, public_key) = new_key()?;
        let chain = self.issue_for(
            &public_key,
            id,
            None,
            Validity {
                not_before,
                not_after,
            },
        )?;
        Ok(Svid::new(chain, key)?)
    }

    fn issue_for(
        &self,
        public_key: &impl PublicKeyData,
        id: &SpiffeId,
        note: Option<&str>,
        validity: Validity,
    ) -> Result<Vec<CertificateDer<'static>>, IssueError> {
        if *id.trust_domain() != self.trust_domain {
            let (id, own) = (id.clone(), self.trust_domain.clone());
            return Err(IssueError::OtherDomain { id, own });
        }
        if id.path().is_empty() {
            return Err(IssueError::NoPath);
        }
        let mut params = leaf_params(id, validity).ok_or(IssueError::Time)?;
        if let Some(note) = note {
            params.distinguished_name = noted(note).ok_or(IssueError::Note)?;
        }
        let leaf = self
            .intermediate
            .sign(&params, public_key)
            .ok_or(IssueError::Sign)?;
        Ok(vec![leaf, self.intermediate.certificate.clone()])
    }

    /// Whether it is time for a new intermediate: half of its life is over.
    pub fn intermediate_due(&self, now: SystemTime) -> bool {
        let Validity {
            not_before,
            not_after,
        } = self.intermediate.validity;
        let life = not_after.duration_since(not_before).unwrap_or_default();
        now >= not_before + life / 2
    }

    /// Makes a new intermediate under the same root. Certificates of the old one stay good; store
    /// the authority ([`to_pem`](Self::to_pem)) before issuing more.
    ///
    /// # Errors
    /// If the root is not valid at `now`, or the system gives no randomness.
    pub fn rotate_intermediate(&mut self, now: SystemTime) -> Result<(), CaError> {
        self.root.check_time(CaPart::Root, now)?;
        self.intermediate = self.root.sign_intermediate(&self.trust_domain, now)?;
        Ok(())
    }

    /// Issues a certificate as for a workload and verifies it as a peer would, so that whatever a
    /// verifier could hold against this authority shows now.
    fn prove_chain(&self, now: SystemTime) -> Result<(), CaError> {
        let (key, public_key) = new_key()?;
        let id = SpiffeId::federation(&self.trust_domain);
        let grant = Grant {
            id,
            lifetime: DEFAULT_SVID_LIFETIME,
        };
        let chain = self
            .issue(&Csr { public_key }, &grant, now)
            .map_err(|error| CaError::Untrusted {
                reason: error.to_string(),
            })?;
        drop(key);
        let mut bundles = BundleSet::new();
        bundles
            .insert(self.trust_domain.clone(), self.bundle())
            .map_err(CaError::Bundle)?;
        let since_1970 = now
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_err(|_| CaError::Time)?;
        let now = UnixTime::since_unix_epoch(since_1970);
        for role in [Role::Client, Role::Server] {
            prove(&bundles, &chain[0], &chain[1..], role, now).map_err(|rejection| {
                let cause = std::error::Error::source(&rejection);
                let cause = cause.map_or_else(|| rejection.to_string(), ToString::to_string);
                CaError::Untrusted { reason: cause }
            })?;
        }
        Ok(())
    }
}

impl fmt::Debug for CertificateAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertificateAuthority")
            .field("trust_domain", &self.trust_domain)
            .field("root_not_after", &self.root.validity.not_after)
            .field(
                "intermediate_not_after",
                &self.intermediate.validity.not_after,
            )
            .finish_non_exhaustive()
    }
}

impl Authority {
    fn new(certificate: CertificateDer<'static>, key: PrivateKey) -> Result<Self, CaError> {
        let validity = Signing::parse(&certificate)
            .map_err(|_| CaError::Sign)?
            .validity;
        Ok(Self {
            certificate,
            validity,
            key,
        })
    }

    fn from_pem(
        trust_domain: &TrustDomain,
        part: CaPart,
        cert: &str,
        key: &str,
        now: SystemTime,
    ) -> Result<Self, CaError> {
        let certificate = CertificateDer::from_pem_slice(cert.as_bytes())
            .map_err(|_| CaError::NoCertificate { part })?;
        let key =
            PrivateKey::from_pem(key.as_bytes()).map_err(|source| CaError::Key { part, source })?;
        let signing =
            Signing::parse(&certificate).map_err(|source| CaError::Certificate { part, source })?;
        if signing.public_key_info != key.public_key_info() {
            return Err(CaError::OtherKey { part });
        }
        if let Some(id) = signing.id.filter(|id| id.trust_domain() != trust_domain) {
            let (found, expected) = (id.trust_domain().clone(), trust_domain.clone());
            return Err(CaError::OtherDomain {
                part,
                found,
                expected,
            });
        }
        let authority = Self {
            certificate,
            validity: signing.validity,
            key,
        };
        authority.check_time(part, now)?;
        Ok(authority)
    }

    fn check_time(&self, part: CaPart, now: SystemTime) -> Result<(), CaError> {
        if self.validity.contains(now) {
            return Ok(());
        }
        let Validity {
            not_before,
            not_after,
        } = self.validity;
        Err(CaError::NotValid {
            part,
            not_before,
            not_after,
        })
    }

    fn sign_intermediate(
        &self,
        trust_domain: &TrustDomain,
        now: SystemTime,
    ) -> Result<Self, CaError> {
        let key = PrivateKey::generate()?;
        let validity = validity(now, INTERMEDIATE_LIFETIME)?.within(self.validity);
        let params = signing_params(trust_domain, "intermediate", 0, validity)?;
        let certificate = self.sign(&params, &Signer(&key)).ok_or(CaError::Sign)?;
        Self::new(certificate, key)
    }

    fn sign(
        &self,
        params: &CertificateParams,
        public_key: &impl PublicKeyData,
    ) -> Option<CertificateDer<'static>> {
        let issuer = Issuer::from_ca_cert_der(&self.certificate, Signer(&self.key)).ok()?;
        Some(params.signed_by(public_key, &issuer).ok()?.into())
    }
}

fn new_key() -> Result<(PrivateKey, rcgen::SubjectPublicKeyInfo), KeyError> {
    let key = PrivateKey::generate()?;
    let info = rcgen::SubjectPublicKeyInfo::from_der(&key.public_key_info());
    Ok((key, info.map_err(|_| KeyError::NotP256)?))
}

#[cfg(test)]
mod tests;

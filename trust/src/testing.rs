//! A PKI of several trust domains in memory, for tests (feature `testing`).
//!
//! Keys and serial numbers are random; everything else depends only on the domains and the time
//! given. Whatever goes wrong panics, since in a test it is the test that is wrong.
//!
//! ```
//! use linkspan_trust::testing::{Pki, workload};
//! use linkspan_trust::{ClientPolicy, TrustPolicy};
//!
//! let pki = Pki::new(&["east.test", "west.test"]);
//! let frontend = workload("east.test", "shop", "frontend");
//! let (_writer, reader) = pki.material(&workload("west.test", "shop", "checkout"));
//! let clients = ClientPolicy::Required(TrustPolicy::only(frontend));
//! let server = reader.current().server_config(clients, &[b"h2"])?;
//! # Ok::<(), linkspan_trust::MaterialError>(())
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::time_provider::TimeProvider;
use rustls_pki_types::UnixTime;

use crate::{
    BundleSet, CertificateAuthority, DEFAULT_SVID_LIFETIME, Grant, MaterialReader, MaterialWriter,
    SpiffeId, Svid, TrustDomain, WorkloadId, material,
};

/// The authorities of some trust domains, all made at one time.
#[derive(Debug)]
pub struct Pki {
    now: SystemTime,
    authorities: BTreeMap<TrustDomain, CertificateAuthority>,
}

impl Pki {
    /// An authority for each of `domains`, made now.
    pub fn new(domains: &[&str]) -> Self {
        Self::at(SystemTime::now(), domains)
    }

    /// An authority for each of `domains`, made at `now`, which is also when SVIDs are issued.
    pub fn at(now: SystemTime, domains: &[&str]) -> Self {
        let authority = |name: &&str| {
            let domain = trust_domain(name);
            let ca = CertificateAuthority::create(&domain, now).expect("a new authority");
            (domain, ca)
        };
        Self {
            now,
            authorities: domains.iter().map(authority).collect(),
        }
    }

    /// When this PKI was made.
    pub fn now(&self) -> SystemTime {
        self.now
    }

    /// The authority of one of the domains.
    pub fn authority(&self, domain: &str) -> &CertificateAuthority {
        let authority = self.authorities.get(&trust_domain(domain));
        authority.unwrap_or_else(|| panic!("this PKI has no trust domain `{domain}`"))
    }

    /// The bundles of all domains.
    pub fn bundles(&self) -> BundleSet {
        self.bundles_for(self.authorities.keys().cloned())
    }

    /// The bundles of some of the domains.
    pub fn bundles_of(&self, domains: &[&str]) -> BundleSet {
        self.bundles_for(domains.iter().map(|name| trust_domain(name)))
    }

    fn bundles_for(&self, domains: impl Iterator<Item = TrustDomain>) -> BundleSet {
        let mut bundles = BundleSet::new();
        for domain in domains {
            let bundle = self.authority(domain.as_str()).bundle();
            bundles
                .insert(domain, bundle)
                .expect("an authority's own bundle");
        }
        bundles
    }

    /// An SVID of the default lifetime, issued by the authority of the ID's domain.
    pub fn svid(&self, id: &SpiffeId) -> Svid {
        let grant = Grant {
            id: id.clone(),
            lifetime: DEFAULT_SVID_LIFETIME,
        };
        let ca = self.authority(id.trust_domain().as_str());
        ca.issue_svid(&grant, self.now)
            .expect("an SVID of the own domain")
    }

    /// An SVID for any time, past or future, even beyond its issuer's.
    pub fn svid_between(
        &self,
        id: &SpiffeId,
        not_before: SystemTime,
        not_after: SystemTime,
    ) -> Svid {
        let ca = self.authority(id.trust_domain().as_str());
        ca.issue_between(id, not_before, not_after)
            .expect("an SVID of the own domain")
    }

    /// Material for `id` that knows the bundles of all domains.
    pub fn material(&self, id: &SpiffeId) -> (MaterialWriter, MaterialReader) {
        material(self.svid(id), self.bundles())
    }
}

/// Parses a trust domain.
pub fn trust_domain(name: &str) -> TrustDomain {
    name.parse()
        .unwrap_or_else(|error| panic!("`{name}`: {error}"))
}

/// Parses a SPIFFE ID.
pub fn id(uri: &str) -> SpiffeId {
    uri.parse()
        .unwrap_or_else(|error| panic!("`{uri}`: {error}"))
}

/// The SPIFFE ID of a workload.
pub fn workload(domain: &str, namespace: &str, service_account: &str) -> SpiffeId {
    let name = WorkloadId::new(namespace, service_account);
    let name = name.unwrap_or_else(|error| panic!("`{namespace}/{service_account}`: {error}"));
    SpiffeId::workload(&trust_domain(domain), &name)
}

/// A clock that stands still, for the `time_provider` of a rustls configuration: handshakes with it
/// happen at `now`.
pub fn clock_at(now: SystemTime) -> Arc<dyn TimeProvider> {
    let since_1970 = now
        .duration_since(SystemTime::UNIX_EPOCH)
        .expect("a time after 1970");
    Arc::new(Stopped(UnixTime::since_unix_epoch(since_1970)))
}

#[derive(Debug)]
struct Stopped(UnixTime);

impl TimeProvider for Stopped {
    fn current_time(&self) -> Option<UnixTime> {
        Some(self.0)
    }
}

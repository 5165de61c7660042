//! Who is who: SPIFFE identities, the certificate authority of a trust domain, trust bundles, and
//! TLS that accepts a peer only for the identity that its certificate proves.
//!
//! The way of an identity through this crate:
//!
//! 1. [`generate_csr`] makes a key that never leaves its process, and a request for it.
//! 2. [`Csr::parse`] checks a request strictly; [`CertificateAuthority::issue`] grants it an id.
//! 3. [`Svid`] holds the issued chain together with the key.
//! 4. [`material`] publishes an [`Svid`] and a [`BundleSet`]; each [`TlsMaterial`] is one immutable
//!    generation that makes rustls configurations.
//! 5. In a handshake a peer's leaf is checked against the roots of the trust domain that its SPIFFE
//!    ID names, never against a union of roots, and then against a [`TrustPolicy`].
//!
//! Host names play no part anywhere but in a [`HostCertificate`], which is nobody's identity. TLS is 1.3 only; resumption, tickets and 0-RTT are off.
//!
//! The standards followed are [SPIFFE-ID] and [X509-SVID].
//!
//! [SPIFFE-ID]: https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE-ID.md
//! [X509-SVID]: https://github.com/spiffe/spiffe/blob/main/standards/X509-SVID.md

mod bundle;
mod ca;
mod certificate;
mod csr;
mod der;
#[cfg(test)]
mod forge;
mod host;
mod id;
mod key;
mod material;
mod pin;
mod policy;
mod spiffe_json;
mod svid;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod tls;
mod verify;

pub use bundle::{Bundle, BundleError, BundleSet};
pub use ca::{
    CaError, CaPart, CaPem, CertificateAuthority, DEFAULT_SVID_LIFETIME, Grant, IssueError,
};
pub use certificate::{CertificateError, expiry_of, note_of, spiffe_id_of};
pub use csr::{Csr, CsrError, generate_csr};
pub use host::HostCertificate;
pub use id::{IdError, SYSTEM_NAMESPACE, SpiffeId, TrustDomain, WorkloadId};
pub use key::{KeyError, PrivateKey};
pub use material::{
    MaterialClosed, MaterialError, MaterialReader, MaterialWriter, TlsMaterial,
    first_contact_config, material,
};
pub use pin::{RootPin, carrier_config, pinned_config, root_pins};
pub use policy::{ClientPolicy, TrustPolicy};
pub use svid::{Svid, SvidError};
pub use verify::Refusal;

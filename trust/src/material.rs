//! What a process shows and whom it believes, renewed while in use: one writer, many readers.
//!
//! A [`TlsMaterial`] is one immutable generation: identity and bundles that belong together.
//! Connections that are open keep what they were made with; whoever makes or accepts a new one asks
//! the [`MaterialReader`] for the current generation first.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::{ClientConfig, ServerConfig};
use tokio::sync::watch;
use tracing::warn;

use crate::verify::Verifier;
use crate::{
    Bundle, BundleError, BundleSet, ClientPolicy, SpiffeId, Svid, TrustDomain, TrustPolicy, tls,
};

/// Publishes the first generation of an identity and its bundles.
pub fn material(svid: Svid, bundles: BundleSet) -> (MaterialWriter, MaterialReader) {
    let first = Arc::new(TlsMaterial::new(svid, Arc::new(bundles), None));
    let (changes, changed) = watch::channel(first.generation);
    let current = Arc::new(ArcSwap::new(first));
    let writer = MaterialWriter {
        current: current.clone(),
        changes,
    };
    (writer, MaterialReader { current, changed })
}

/// The only one who may change the material. Dropping it leaves the last generation in place.
#[derive(Debug)]
pub struct MaterialWriter {
    current: Arc<ArcSwap<TlsMaterial>>,
    changes: watch::Sender<u64>,
}

impl MaterialWriter {
    /// Puts a renewed SVID in place of the current one.
    ///
    /// # Errors
    /// If it is for another SPIFFE ID: a process does not change who it is. The last good material
    /// stays.
    pub fn set_svid(&mut self, svid: Svid) -> Result<(), MaterialError> {
        let current = self.current.load_full();
        let id = current.svid.id();
        if svid.id() != id {
            let (own, found) = (id.clone(), svid.id().clone());
            return Err(MaterialError::OtherIdentity { own, found });
        }
        self.publish(svid, current.bundles.clone());
        Ok(())
    }

    /// Puts other bundles in place of all current ones; nothing happens if they are the same.
    ///
    /// A root that is gone is refused in each handshake from now on, even if it is the one that
    /// issued the own SVID: taking trust away must never wait for something else.
    pub fn set_bundles(&mut self, bundles: BundleSet) {
        let current = self.current.load_full();
        if *current.bundles == bundles {
            return;
        }
        let own = current.svid.id().trust_domain();
        if bundles.get(own).is_none() {
            warn!(trust_domain = %own, "the new trust bundles lack that of the own trust domain");
        }
        self.publish(current.svid.clone(), Arc::new(bundles));
    }

    /// The current generation.
    pub fn current(&self) -> Arc<TlsMaterial> {
        self.current.load_full()
    }

    /// One more reader.
    pub fn reader(&self) -> MaterialReader {
        MaterialReader {
            current: self.current.clone(),
            changed: self.changes.subscribe(),
        }
    }

    fn publish(&mut self, svid: Svid, bundles: Arc<BundleSet>) {
        let next = TlsMaterial::new(svid, bundles, Some(&self.current.load()));
        let generation = next.generation;
        // First the material, then the news of it: who is woken finds at least this generation.
        self.current.store(Arc::new(next));
        self.changes.send_replace(generation);
    }
}

/// Sees the current material, and can wait for the next.
#[derive(Debug, Clone)]
pub struct MaterialReader {
    current: Arc<ArcSwap<TlsMaterial>>,
    changed: watch::Receiver<u64>,
}

impl MaterialReader {
    /// The current generation. Takes no lock.
    pub fn current(&self) -> Arc<TlsMaterial> {
        self.current.load_full()
    }

    /// Waits until there is a generation that this reader has not waited for yet. Cancel-safe.
    ///
    /// # Errors
    /// If the writer is gone, so that there will be no other.
    pub async fn changed(&mut self) -> Result<(), MaterialClosed> {
        self.changed.changed().await.map_err(|_| MaterialClosed)
    }
}

/// One generation: an identity, and the bundles by which peers are judged.
pub struct TlsMaterial {
    generation: u64,
    /// The generation that brought the SVID.
    svid_since: u64,
    /// The generations that brought the roots of each trust domain.
    roots_since: HashMap<TrustDomain, u64>,
    svid: Svid,
    bundles: Arc<BundleSet>,
    /// What all client configurations of this generation share. It accepts nobody.
    client: ClientConfig,
}

impl TlsMaterial {
    fn new(svid: Svid, bundles: Arc<BundleSet>, before: Option<&Self>) -> Self {
        let generation = before.map_or(1, |before| before.generation + 1);
        let same_svid = before.filter(|before| before.svid.chain() == svid.chain());
        let since = |(domain, bundle): (&TrustDomain, &Bundle)| {
            let same = before.filter(|before| {
                let held = before.bundles.get(domain);
                held.is_some_and(|held| held.roots == bundle.roots)
            });
            let since = same.and_then(|before| before.roots_since.get(domain).copied());
            (domain.clone(), since.unwrap_or(generation))
        };
        let roots_since = bundles.iter().map(since).collect();
        let nobody = Verifier::of_servers(bundles.clone(), TrustPolicy::AnyOf(Vec::new()));
        let client = tls::client(nobody, Some(svid.certified()));
        Self {
            generation,
            svid_since: same_svid.map_or(generation, |before| before.svid_since),
            roots_since,
            svid,
            bundles,
            client,
        }
    }

    /// Counts the generations of one writer, from 1.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The generation since which connections to peers of `domain` are made of the same material:
    /// the own SVID and the roots of that domain. What comes of other domains does not change it.
    pub fn generation_towards(&self, domain: &TrustDomain) -> u64 {
        let roots = self.roots_since.get(domain).copied().unwrap_or_default();
        self.svid_since.max(roots)
    }

    /// The own identity.
    pub fn svid(&self) -> &Svid {
        &self.svid
    }

    /// The bundles by which peers are judged.
    pub fn bundles(&self) -> &BundleSet {
        &self.bundles
    }

    /// A configuration for connections to servers that `servers` accepts. The own SVID is shown
    /// when a server asks for it; of `alpn` the server chooses.
    ///
    /// Parsed keys and roots are shared by all configurations of a generation, so making one costs
    /// a few small allocations: cheap enough for each connection.
    ///
    /// # Errors
    /// If a protocol of `alpn` is empty or longer than 255 bytes.
    pub fn client_config(
        &self,
        servers: TrustPolicy,
        alpn: &[&[u8]],
    ) -> Result<ClientConfig, MaterialError> {
        let verifier = Verifier::of_servers(self.bundles.clone(), servers);
        let mut config = self.client.clone();
        config.alpn_protocols = checked_alpn(alpn)?;
        config
            .dangerous()
            .set_certificate_verifier(Arc::new(verifier));
        Ok(config)
    }

    /// A configuration for a server that accepts `clients` and speaks the protocols of `alpn`, the
    /// preferred one first. Make it once per generation, not per connection.
    ///
    /// # Errors
    /// If a protocol of `alpn` is empty or longer than 255 bytes.
    pub fn server_config(
        &self,
        clients: ClientPolicy,
        alpn: &[&[u8]],
    ) -> Result<ServerConfig, MaterialError> {
        let verifier = Verifier::of_clients(self.bundles.clone(), clients);
        let mut config = tls::server(verifier, self.svid.certified());
        config.alpn_protocols = checked_alpn(alpn)?;
        Ok(config)
    }
}

impl fmt::Debug for TlsMaterial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsMaterial")
            .field("generation", &self.generation)
            .field("svid", &self.svid)
            .field("bundles", &self.bundles)
            .finish_non_exhaustive()
    }
}

/// A client's configuration for the time before it has an identity: it accepts `server` and nobody
/// else, proved by `roots` as those of that server's trust domain, and shows no certificate.
///
/// # Errors
/// If `roots` is not a usable bundle of that trust domain, or a protocol of `alpn` is empty or
/// longer than 255 bytes.
pub fn first_contact_config(
    server: &SpiffeId,
    roots: &Bundle,
    alpn: &[&[u8]],
) -> Result<ClientConfig, MaterialError> {
    let mut bundles = BundleSet::new();
    bundles.insert(server.trust_domain().clone(), roots.clone())?;
    let verifier = Verifier::of_servers(Arc::new(bundles), TrustPolicy::only(server.clone()));
    let mut config = tls::client(verifier, None);
    config.alpn_protocols = checked_alpn(alpn)?;
    Ok(config)
}

pub(crate) fn checked_alpn(alpn: &[&[u8]]) -> Result<Vec<Vec<u8>>, MaterialError> {
    if alpn
        .iter()
        .any(|protocol| protocol.is_empty() || protocol.len() > 255)
    {
        return Err(MaterialError::Alpn);
    }
    Ok(alpn.iter().map(|protocol| protocol.to_vec()).collect())
}

/// Why material is refused, or no configuration can be made of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MaterialError {
    /// An SVID for somebody else.
    #[error("this process is `{own}`; an SVID for `{found}` is refused")]
    OtherIdentity {
        /// The identity of the current SVID.
        own: SpiffeId,
        /// That of the refused one.
        found: SpiffeId,
    },
    /// The bundle cannot be used.
    #[error("the trust bundle is not usable")]
    Bundle(#[from] BundleError),
    /// TLS has no room for such a protocol name.
    #[error("an ALPN protocol has 1 to 255 bytes")]
    Alpn,
}

/// The writer is gone: the material will not change any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("nobody renews this TLS material any more")]
pub struct MaterialClosed;

#[cfg(test)]
mod tests;

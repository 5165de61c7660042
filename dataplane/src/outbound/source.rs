//! Who calls: an identity, and what can be called with it.

use std::sync::Arc;

use linkspan_routing::ServiceKey;
use linkspan_trust::{MaterialReader, SpiffeId};
use tokio::sync::SetOnce;

use super::services::{Destination, Services};

/// A source of calls. Each has destinations of its own, so that no connection is ever shared
/// between two identities.
#[derive(Clone, Debug)]
pub struct Source {
    material: MaterialReader,
    services: Arc<Services>,
}

impl Source {
    /// One that calls with this identity.
    #[must_use]
    pub fn new(material: MaterialReader, services: Arc<Services>) -> Self {
        Self { material, services }
    }

    /// With which identity it calls.
    #[must_use]
    pub fn own(&self) -> SpiffeId {
        self.material.current().svid().id().clone()
    }

    /// Its certificate and roots.
    #[must_use]
    pub fn material(&self) -> &MaterialReader {
        &self.material
    }

    /// Its destinations.
    #[must_use]
    pub fn services(&self) -> &Arc<Services> {
        &self.services
    }

    /// The destination for a port of a service.
    pub(super) fn destination(&self, service: &ServiceKey, port: u16) -> Option<Arc<Destination>> {
        self.services.destination(service, port)
    }
}

/// Empty until there is a certificate. Clones are the same cell.
#[derive(Clone, Debug, Default)]
pub struct SourceCell(Arc<SetOnce<Source>>);

impl SourceCell {
    /// The source, if there is a certificate.
    #[must_use]
    pub fn get(&self) -> Option<&Source> {
        self.0.get()
    }

    /// Waits for the certificate. Cancel-safe.
    pub async fn wait(&self) -> &Source {
        self.0.wait().await
    }

    /// There is a certificate. Only the first call counts.
    pub fn set(&self, source: Source) {
        // A second one would be a bug; the first stays in force.
        let _ = self.0.set(source);
    }
}

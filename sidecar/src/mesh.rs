//! What a sidecar has once it has a certificate: destinations to call, and an identity to call with.

use std::sync::Arc;

use linkspan_dataplane::discover::Snapshot;
use linkspan_routing::ServiceKey;
use linkspan_trust::{MaterialReader, SpiffeId};
use tokio::sync::{SetOnce, watch};

use crate::{
    inbound::Inbound,
    services::{Destination, Services},
};

/// The mesh as its listeners see it.
#[derive(Debug)]
pub(crate) struct Mesh {
    pub(crate) material: MaterialReader,
    pub(crate) services: Arc<Services>,
    pub(crate) inbound: Inbound,
    pub(crate) snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
}

impl Mesh {
    /// Our own identity.
    pub(crate) fn own(&self) -> SpiffeId {
        self.material.current().svid().id().clone()
    }

    /// The destination for a port of a service.
    pub(crate) fn destination(&self, service: &ServiceKey, port: u16) -> Option<Arc<Destination>> {
        self.services.destination(service, port)
    }
}

/// Empty until there is a certificate. Clones are the same cell.
#[derive(Clone, Debug, Default)]
pub(crate) struct MeshCell(Arc<SetOnce<Mesh>>);

impl MeshCell {
    /// The mesh, if there is a certificate.
    pub(crate) fn get(&self) -> Option<&Mesh> {
        self.0.get()
    }

    /// Waits for the certificate. Cancel-safe.
    pub(crate) async fn wait(&self) -> &Mesh {
        self.0.wait().await
    }

    /// There is a certificate. Only the first call counts.
    pub(crate) fn set(&self, mesh: Mesh) {
        // A second one would be a bug; the first stays in force.
        let _ = self.0.set(mesh);
    }
}

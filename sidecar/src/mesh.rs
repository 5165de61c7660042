//! What a sidecar has once it has a certificate: a source of calls, and a place where calls arrive.

use std::sync::Arc;

use linkspan_dataplane::{
    discover::Snapshot,
    inbound::Inbound,
    outbound::{Source, SourceCell},
};
use tokio::sync::{SetOnce, watch};

use crate::capture::Used;

/// The mesh as the sidecar sees it.
#[derive(Debug)]
pub(crate) struct Mesh {
    pub(crate) source: Source,
    pub(crate) inbound: Inbound,
    pub(crate) snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    /// What captured calls use, where calls are captured.
    pub(crate) used: Option<Used>,
}

/// Empty until there is a certificate. Clones are the same cell.
#[derive(Clone, Debug, Default)]
pub(crate) struct MeshCell {
    mesh: Arc<SetOnce<Mesh>>,
    source: SourceCell,
}

impl MeshCell {
    /// The mesh, if there is a certificate.
    pub(crate) fn get(&self) -> Option<&Mesh> {
        self.mesh.get()
    }

    /// The mesh's source, for listeners.
    pub(crate) fn source(&self) -> SourceCell {
        self.source.clone()
    }

    /// Waits for the certificate. Cancel-safe.
    pub(crate) async fn wait(&self) -> &Mesh {
        self.mesh.wait().await
    }

    /// There is a certificate. Only the first call counts.
    pub(crate) fn set(&self, mesh: Mesh) {
        self.source.set(mesh.source.clone());
        // A second one would be a bug; the first stays in force.
        let _ = self.mesh.set(mesh);
    }
}

//! Calls that the packet filter led here: each goes where its caller meant it to go.
//!
//! ```text
//! connection ─► meant for? ─┬─ an address of the mesh ─► the path of explicit listeners
//!                           ├─ any other address ──────► that address, byte for byte
//!                           └─ ourselves ──────────────► reset
//! ```
//!
//! Until it is known which addresses are the mesh's, calls are held, and then refused: what belongs
//! into the mesh never leaves unencrypted because we knew too little.

mod past;
pub mod rules;
pub(crate) mod used;

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use linkspan_dataplane::{
    accept::Accept, discover::Snapshot, forward::bytes::Duplex as _, outbound::HOLD,
};
use linkspan_routing::ServiceKey;
use linkspan_runtime::stop::Stop;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{Instant, timeout_at},
};
use tracing::{debug, error};

use crate::{
    mesh::{Mesh, MeshCell},
    original_dst::original_dst,
};

pub(crate) use past::Past;
pub(crate) use used::Used;

/// Connections held at a time while nothing is known; more are refused at once. As many as one
/// service may hold.
const MAX_HELD: usize = 1_024;

/// Takes captured calls.
#[derive(Clone, Debug)]
pub(crate) struct Capture {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    cell: MeshCell,
    past: Past,
    held: Semaphore,
}

/// Where a captured call goes.
#[derive(Debug, PartialEq, Eq)]
enum Way {
    /// Into the mesh.
    Mesh(ServiceKey, u16),
    /// Where it was meant to go.
    Past,
}

/// Why a captured call is refused.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("it was made to the sidecar itself, not led to it")]
    Direct,
    #[error("nothing is known of the mesh yet; is federation reachable?")]
    Unknown,
    #[error("too many calls wait until something is known of the mesh")]
    TooMany,
    #[error("{address} is service `{service}`, which has no port {port}")]
    NoPort {
        address: IpAddr,
        service: ServiceKey,
        port: u16,
    },
    #[error("the workload calls too many services at once")]
    Full,
}

impl Capture {
    pub(crate) fn new(cell: MeshCell, past: Past) -> Self {
        let held = Semaphore::new(MAX_HELD);
        Self {
            inner: Arc::new(Inner { cell, past, held }),
        }
    }

    /// Accepts connections until drained, and serves them to their ends.
    pub(crate) async fn run(self, listener: TcpListener, stop: Stop) {
        let handler = |socket, caller| {
            let capture = self.clone();
            async move { Box::pin(capture.connection(socket, caller)).await }
        };
        Accept::default().run(listener, stop, handler).await;
    }

    async fn connection(self, mut socket: TcpStream, caller: SocketAddr) {
        if self.inner.past.is_own(caller) {
            error!(
                "our own calls are led back to us; run the sidecar as the user that \
                 `linkspan capture up --uid` names"
            );
            return socket.reset();
        }
        match self.inner.serve(&mut socket, caller).await {
            Ok(Some(call)) => call.serve(socket, caller).await,
            Ok(None) => {}
            Err(refused) => {
                debug!(%caller, %refused, "captured call refused");
                socket.reset();
            }
        }
    }
}

impl Inner {
    /// What calls into the mesh is given back; the rest is served here.
    async fn serve(
        &self,
        socket: &mut TcpStream,
        caller: SocketAddr,
    ) -> Result<Option<used::Call>, Refused> {
        let meant = meant(socket)?;
        let (mesh, snapshot) = self.known().await?;
        match way(&snapshot, meant)? {
            Way::Mesh(service, port) => {
                let used = mesh.used.as_ref().ok_or(Refused::Unknown)?;
                let call = used.call(service, port, Instant::now());
                call.map(Some).ok_or(Refused::Full)
            }
            Way::Past => {
                drop(snapshot);
                self.past.carry(socket, caller, meant).await;
                Ok(None)
            }
        }
    }

    /// The mesh and what is known of it; waits for both, within bounds.
    async fn known(&self) -> Result<(&Mesh, Arc<Snapshot>), Refused> {
        if let Some(mesh) = self.cell.get() {
            let snapshot = mesh.snapshots.borrow().clone();
            if let Some(snapshot) = snapshot {
                return Ok((mesh, snapshot));
            }
        }
        let _held = self.held.try_acquire().map_err(|_| Refused::TooMany)?;
        let known = async {
            let mesh = self.cell.wait().await;
            let mut snapshots = mesh.snapshots.clone();
            let snapshot = snapshots.wait_for(Option::is_some).await.ok()?.clone();
            Some((mesh, snapshot?))
        };
        let known = timeout_at(Instant::now() + HOLD, known).await;
        known.ok().flatten().ok_or(Refused::Unknown)
    }
}

/// For whom a connection was meant; never for us.
fn meant(socket: &TcpStream) -> Result<SocketAddr, Refused> {
    let meant = original_dst(socket).map_err(|_| Refused::Direct)?;
    let ours = socket.local_addr().map_err(|_| Refused::Direct)?;
    // Loopback is never captured: whoever means it has found our port.
    if meant == ours || meant.ip().is_loopback() || meant.ip().is_unspecified() {
        return Err(Refused::Direct);
    }
    Ok(meant)
}

fn way(snapshot: &Snapshot, meant: SocketAddr) -> Result<Way, Refused> {
    let Some(vip) = snapshot.vips.get(&meant.ip()) else {
        return Ok(Way::Past);
    };
    let (service, port) = (vip.service.clone(), meant.port());
    if vip.ports.contains(&port) {
        return Ok(Way::Mesh(service, port));
    }
    Err(Refused::NoPort {
        address: meant.ip(),
        service,
        port,
    })
}

#[cfg(test)]
mod tests {
    use linkspan_dataplane::discover::Vip;

    use super::*;

    #[test]
    fn an_address_of_the_mesh_is_never_passed_by() {
        let vip = Vip {
            service: "shop/checkout".parse().unwrap(),
            ports: [80].into(),
        };
        let snapshot = Snapshot {
            vips: [("10.99.0.1".parse().unwrap(), vip)].into(),
            ..Snapshot::default()
        };
        let way = |meant: &str| way(&snapshot, meant.parse().unwrap());
        let service = "shop/checkout".parse().unwrap();
        assert_eq!(way("10.99.0.1:80").unwrap(), Way::Mesh(service, 80));
        let refused = way("10.99.0.1:81").unwrap_err().to_string();
        assert!(
            refused.contains("`shop/checkout`, which has no port 81"),
            "{refused}"
        );
        assert_eq!(way("10.99.0.2:80").unwrap(), Way::Past);
    }
}

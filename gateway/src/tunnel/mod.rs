//! The tunnel: the QUIC connections between our gateway and those of the linked clusters.
//!
//! ```text
//! endpoint ── listener ─┐                     (they dial us)
//!                       ├─ handshake ─ session ─ streams
//! plan ─ dialer ────────┘                     (we dial them)
//! ```
//!
//! A link is a set of connections, dialled by either side. [`health`], [`plan`] and the codecs
//! are pure; the tasks around them move bytes and keep time.

pub mod addresses;
pub mod close;
pub mod connection;
pub mod control;
pub(crate) mod dialer;
pub(crate) mod endpoint;
pub(crate) mod handshake;
pub mod health;
pub mod hello;
pub(crate) mod listener;
mod lookup;
pub mod open;
pub mod plan;
pub(crate) mod retire;
pub(crate) mod session;
pub(crate) mod streams;
pub(crate) mod surplus;
pub(crate) mod watched;
mod wear;

use std::sync::Arc;

use linkspan_routing::ClusterId;
use linkspan_runtime::telemetry::{LinkHandles, LinkLabels, LinkMetrics};
use linkspan_trust::{MaterialReader, TlsMaterial};
use quinn::TransportConfig;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use crate::limits::{Limits, Timers};
use crate::peers::Peers;
use connection::Connection;
use handshake::{ControlStream, Own};
use hello::Hello;
use session::{Session, Shared};

/// What listener and diallers share, and the owner of all sessions.
pub(crate) struct Tunnel {
    own: Own,
    shared: Shared,
    peers: watch::Receiver<Arc<Peers>>,
    material: MaterialReader,
    transport: Arc<TransportConfig>,
    metrics: LinkMetrics,
    sessions: TaskTracker,
}

impl Tunnel {
    pub(crate) fn new(
        own: Own,
        shared: Shared,
        peers: watch::Receiver<Arc<Peers>>,
        material: MaterialReader,
        metrics: LinkMetrics,
    ) -> Self {
        let transport = endpoint::transport(&shared.timers, &shared.limits);
        Self {
            own,
            shared,
            peers,
            material,
            transport,
            metrics,
            sessions: TaskTracker::new(),
        }
    }

    /// Starts the session of a connection whose hellos are done. `endpoint` is its own, where it
    /// has one, and lives as long as the session.
    fn start(
        &self,
        quic: quinn::Connection,
        hello: Hello,
        control: ControlStream,
        endpoint: Option<quinn::Endpoint>,
    ) -> Arc<Connection> {
        let dialled = endpoint.is_some();
        let retire_at = retire::at(&quic, self.material().svid());
        let connection = Arc::new(Connection::new(
            quic,
            hello,
            dialled,
            retire_at,
            &self.metrics,
        ));
        let metrics = self.link_metrics(&connection.cluster);
        let session = Session::new(self.shared.clone(), connection.clone(), metrics);
        self.sessions.spawn(async move {
            session.run(control).await;
            drop(endpoint);
        });
        connection
    }

    /// The peer's gateway, having proved itself, says that the link that came of `invitation` is
    /// removed.
    async fn unlinked(&self, cluster: &ClusterId, invitation: String) {
        self.shared.reporter.unlinked(cluster, invitation).await;
    }

    /// Completes once every session has ended; none may be started any more.
    pub(crate) async fn ended(&self) {
        self.sessions.close();
        self.sessions.wait().await;
    }

    pub(crate) fn peers(&self) -> Arc<Peers> {
        self.peers.borrow().clone()
    }

    pub(crate) fn watch_peers(&self) -> watch::Receiver<Arc<Peers>> {
        self.peers.clone()
    }

    pub(crate) fn transport(&self) -> Arc<TransportConfig> {
        self.transport.clone()
    }

    pub(crate) fn timers(&self) -> &Timers {
        &self.shared.timers
    }

    fn own(&self) -> &Own {
        &self.own
    }

    fn limits(&self) -> &Limits {
        &self.shared.limits
    }

    fn material(&self) -> Arc<TlsMaterial> {
        self.material.current()
    }

    fn link_metrics(&self, cluster: &ClusterId) -> LinkHandles {
        self.metrics.link(&LinkLabels {
            peer: cluster.as_str(),
        })
    }
}

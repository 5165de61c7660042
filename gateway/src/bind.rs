//! From a configuration to a running gateway: sockets first, so that errors come early, then
//! identity, discovery and the plane that carries traffic.

use std::collections::BTreeSet;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use linkspan_api::v1;
use linkspan_dataplane::discover::{self, Registration, Snapshot};
use linkspan_dataplane::identity::{self, Unmeshed};
use linkspan_dataplane::outbound::SourceCell;
use linkspan_runtime::BoxError;
use linkspan_runtime::admin::{self, Admin, Dumps};
use linkspan_runtime::process::{Exit, Tasks};
use linkspan_runtime::readiness::{Gate, Readiness};
use linkspan_runtime::stop::Stop;
use linkspan_runtime::telemetry::{ControlMetrics, GatewayMetrics, Registry, TelemetryError};
use linkspan_trust::MaterialReader;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};

use crate::config::Config;
use crate::peers::Peers;
use crate::{debug, plane, registration};

/// After the drain's grace: for closing connections and for the outer tasks to notice.
const MARGIN: Duration = Duration::from_secs(5);

/// Why a gateway cannot start.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// An address cannot be bound.
    #[error("cannot bind {address} ({key}); is another process using it?")]
    Listen {
        /// The key in the configuration.
        key: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// Metrics cannot be registered.
    #[error("cannot register metrics")]
    Metrics(#[from] TelemetryError),
}

/// The addresses that were bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// UDP, for peers.
    pub tunnel: SocketAddr,
    /// TCP, for sidecars and federation.
    pub egress: SocketAddr,
    /// TCP, the public admin face.
    pub admin: SocketAddr,
    /// TCP, the loopback admin face.
    pub debug: SocketAddr,
}

/// What a gateway hears and to whom it speaks; from federation, or from a test.
#[derive(Debug)]
pub struct Sources {
    /// Our certificate and everybody's roots.
    pub material: MaterialReader,
    /// The newest snapshot; `None` until the first is complete.
    pub snapshot: watch::Receiver<Option<Arc<Snapshot>>>,
    /// What federation is told of this gateway.
    pub registration: watch::Sender<Registration>,
    /// What federation is told of the links.
    pub health: watch::Sender<v1::LinkHealth>,
    /// What federation asks to be dialled for a join.
    pub joins: mpsc::Receiver<v1::JoinDial>,
    /// The certificate with which clients without a sidecar are served; `None` until there is one.
    pub unmeshed_clients: watch::Receiver<Option<MaterialReader>>,
    /// The one with which calls are taken for servers without a sidecar.
    pub unmeshed_servers: watch::Receiver<Option<MaterialReader>>,
}

/// Joins that wait to be dialled: an operator asks for one at a time.
const JOINS: usize = 4;

/// A gateway whose sockets are bound.
#[derive(Debug)]
pub struct Bound {
    config: Config,
    addresses: Addresses,
    readiness: Readiness,
    registry: Registry,
    peers: watch::Sender<Arc<Peers>>,
    sockets: Sockets,
    gates: Gates,
    metrics: GatewayMetrics,
    unmeshed: SourceCell,
    faces: [TcpListener; 2],
}

/// The sockets that carry traffic.
#[derive(Debug)]
pub(crate) struct Sockets {
    pub(crate) tunnel: UdpSocket,
    pub(crate) egress: TcpListener,
}

#[derive(Debug)]
struct Gates {
    identity: Gate,
    snapshot: Gate,
}

/// Binds all sockets.
///
/// # Errors
/// If one cannot be bound.
pub async fn bind(config: Config) -> Result<Bound, BindError> {
    let tunnel = udp("tunnelListen", config.tunnel_listen)?;
    let egress = tcp("egressListen", config.egress_listen).await?;
    let admin = tcp("adminListen", config.admin_listen).await?;
    let debug = tcp("debugListen", config.debug_listen).await?;
    let local = |key, address, found: io::Result<SocketAddr>| {
        found.map_err(|source| BindError::Listen {
            key,
            address,
            source,
        })
    };
    let addresses = Addresses {
        tunnel: local("tunnelListen", config.tunnel_listen, tunnel.local_addr())?,
        egress: local("egressListen", config.egress_listen, egress.local_addr())?,
        admin: local("adminListen", config.admin_listen, admin.local_addr())?,
        debug: local("debugListen", config.debug_listen, debug.local_addr())?,
    };
    let (readiness, registry) = (Readiness::new(), Registry::new());
    let metrics = GatewayMetrics::register(&registry)?;
    let gates = Gates {
        identity: readiness.gate("identity"),
        snapshot: readiness.gate("snapshot"),
    };
    let sockets = Sockets { tunnel, egress };
    let peers = watch::Sender::default();
    let faces = [admin, debug];
    Ok(Bound {
        config,
        addresses,
        readiness,
        registry,
        peers,
        sockets,
        gates,
        metrics,
        unmeshed: SourceCell::default(),
        faces,
    })
}

fn udp(key: &'static str, address: SocketAddr) -> Result<UdpSocket, BindError> {
    UdpSocket::bind(address).map_err(|source| BindError::Listen {
        key,
        address,
        source,
    })
}

async fn tcp(key: &'static str, address: SocketAddr) -> Result<TcpListener, BindError> {
    let bound = TcpListener::bind(address).await;
    bound.map_err(|source| BindError::Listen {
        key,
        address,
        source,
    })
}

impl Bound {
    /// The addresses that were bound.
    #[must_use]
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Whether certificate and first snapshot have come.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        self.readiness.clone()
    }

    /// The metrics.
    #[must_use]
    pub fn registry(&self) -> Registry {
        self.registry.clone()
    }

    /// The peer table, to follow.
    #[must_use]
    pub fn peers(&self) -> watch::Receiver<Arc<Peers>> {
        self.peers.subscribe()
    }

    /// Runs until the stop: fetches a certificate, follows federation, carries traffic. When the
    /// stop drains, takes nothing new and ends once all streams have, or the grace is over.
    ///
    /// # Errors
    /// If a task without which nothing can be served ended.
    pub async fn run(self, stop: Stop) -> Result<(), Exit> {
        self.start(stop, |running, stop| {
            Box::pin(running.with_federation(stop))
        })
        .await
    }

    /// As [`Bound::run`], with identity and snapshots from elsewhere.
    ///
    /// # Errors
    /// If a task without which nothing can be served ended.
    pub async fn run_with(self, sources: Sources, stop: Stop) -> Result<(), Exit> {
        self.start(stop, |running, stop| {
            Box::pin(running.with_sources(sources, stop))
        })
        .await
    }

    async fn start<F>(self, stop: Stop, serve: impl FnOnce(Running, Stop) -> F) -> Result<(), Exit>
    where
        F: Future<Output = Result<(), BoxError>> + Send + 'static,
    {
        let grace = self.config.drain_grace + MARGIN;
        let mut tasks = Tasks::new(stop.clone());
        let dumps = self.dumps();
        let face = |dumps| Admin {
            readiness: self.readiness.clone(),
            registry: self.registry.clone(),
            dumps,
        };
        let (public, loopback) = (face(None), face(Some(dumps)));
        let [admin, debug] = self.faces;
        tasks.background("admin face", admin::serve(admin, public, stop.clone()));
        tasks.background("debug face", admin::serve(debug, loopback, stop.clone()));
        let running = Running {
            config: self.config,
            addresses: self.addresses,
            peers: self.peers,
            sockets: self.sockets,
            gates: self.gates,
            metrics: self.metrics,
            unmeshed: self.unmeshed,
        };
        tasks.essential("gateway", serve(running, stop));
        tasks.run(grace).await
    }

    fn dumps(&self) -> Dumps {
        let (mut dumps, config) = (Dumps::new(), self.config.dump());
        let (peers, again) = (self.peers.subscribe(), self.peers.subscribe());
        dumps.add("config", move || config.clone());
        let unmeshed = self.unmeshed.clone();
        dumps.add("debug", move || debug::dump(&peers.borrow(), &unmeshed));
        dumps.add("snapshot", move || debug::links(&again.borrow()));
        dumps
    }
}

/// What is left of [`Bound`] once the admin faces run.
struct Running {
    config: Config,
    addresses: Addresses,
    peers: watch::Sender<Arc<Peers>>,
    sockets: Sockets,
    gates: Gates,
    metrics: GatewayMetrics,
    unmeshed: SourceCell,
}

impl Running {
    async fn with_federation(self, stop: Stop) -> Result<(), BoxError> {
        let client = self.config.federation.clone();
        let Some((writer, material)) = identity::first_contact_until(&client, &stop).await else {
            return Ok(());
        };
        let registration = watch::Sender::new(registration::first(&self.config, &self.addresses));
        let health = watch::Sender::new(v1::LinkHealth::default());
        let (_subscribed, subscription) = watch::channel(BTreeSet::new());
        let (discovery, snapshot) = discover::client(
            client.clone(),
            material.clone(),
            registration.subscribe(),
            subscription,
            health.subscribe(),
        );
        // Both follow the stop to its end: during a drain federation must still hear of us.
        let inner = stop.child();
        let mut tasks = Tasks::new(inner.clone());
        let control = self.metrics.control.clone();
        let (asked, joins) = mpsc::channel(JOINS);
        let discovery = discovery
            .of_cluster(&self.config.cluster)
            .with_metrics(control.clone())
            .with_joins(asked);
        tasks.background("discovery", discovery.run(inner.clone()));
        let fresh = (writer, material.clone(), client, snapshot.clone());
        let keep = identity::keep_fresh_counted(
            fresh.0,
            fresh.1,
            fresh.2,
            fresh.3,
            control,
            inner.clone(),
        );
        tasks.background("identity", keep);
        let known = || (material.clone(), snapshot.clone());
        let (clients, unmeshed_clients) = watch::channel(None);
        if self.config.imports.is_some() {
            let keep = self.keep_unmeshed(Unmeshed::Clients, clients, known(), inner.clone());
            tasks.background("identity of unmeshed clients", keep);
        }
        let (servers, unmeshed_servers) = watch::channel(None);
        let keep = self.keep_unmeshed(Unmeshed::Servers, servers, known(), inner.clone());
        let has_servers = has_servers(snapshot.clone(), inner.clone());
        tasks.background("identity of unmeshed servers", async move {
            if has_servers.await {
                keep.await;
            }
        });
        let grace = self.config.drain_grace + MARGIN;
        let sources = Sources {
            material,
            snapshot,
            registration,
            health,
            joins,
            unmeshed_clients,
            unmeshed_servers,
        };
        tasks.essential("plane", self.with_sources(sources, inner));
        Ok(tasks.run(grace).await?)
    }

    /// Fetches the certificate for those who have no sidecar, and keeps it fresh.
    fn keep_unmeshed(
        &self,
        whom: Unmeshed,
        ready: watch::Sender<Option<MaterialReader>>,
        (gateway, snapshot): (MaterialReader, watch::Receiver<Option<Arc<Snapshot>>>),
        stop: Stop,
    ) -> impl Future<Output = ()> + Send + use<> {
        let client = self.config.federation.clone();
        let metrics = ControlMetrics {
            // That gauge is the gateway's own.
            certificate_expiry: ControlMetrics::detached().certificate_expiry,
            ..self.metrics.control.clone()
        };
        async move {
            let first = identity::unmeshed_until(whom, &client, &gateway, &stop).await;
            let Some((writer, reader)) = first else {
                return;
            };
            ready.send_replace(Some(reader.clone()));
            let own = (writer, reader);
            let keep =
                identity::keep_unmeshed_fresh(whom, own, gateway, client, snapshot, metrics, stop);
            keep.await;
        }
    }

    async fn with_sources(self, sources: Sources, stop: Stop) -> Result<(), BoxError> {
        self.gates.identity.open();
        sources
            .registration
            .send_replace(registration::first(&self.config, &self.addresses));
        let plane = plane::Plane {
            config: self.config,
            addresses: self.addresses,
            sources,
            peers: self.peers,
            links: self.metrics.links,
            traffic: self.metrics.traffic,
            spans: self.metrics.spans,
            unmeshed: self.unmeshed,
            ready: self.gates.snapshot,
        };
        Ok(plane.run(self.sockets, stop).await?)
    }
}

/// Waits until there is a server without a sidecar; false if the stop drains before.
async fn has_servers(mut snapshot: watch::Receiver<Option<Arc<Snapshot>>>, stop: Stop) -> bool {
    let some = |snapshot: &Option<Arc<Snapshot>>| {
        let snapshot = snapshot.as_ref();
        snapshot.is_some_and(|snapshot| !snapshot.servers.is_empty())
    };
    tokio::select! {
        () = stop.draining() => false,
        found = snapshot.wait_for(some) => found.is_ok(),
    }
}

//! Starting: everything that can fail does so here, before anything is served.

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use linkspan_core::OwnCluster;
use linkspan_runtime::{
    BoxError,
    admin::{self, Admin},
    process::Exit,
    readiness::{Gate, Readiness},
    stop::Stop,
    telemetry::{FederationMetrics, TelemetryError},
};
use linkspan_trust::{MaterialReader, MaterialWriter};
use prometheus::Registry;
use tokio::{
    net::{TcpListener, UnixListener},
    sync::watch,
};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    config::Config,
    dns,
    home::{self, Backend},
    identity::{Authority, Credentials, Issuer, Pods, Traces, tokens::JoinTokens},
    join::LinkStore,
    operator::socket,
    state::{Epoch, Remembered, StateDir, StateError, next_epoch, store::Slots},
    sync::Dial,
    wiring,
};

/// How long streams may take to end when federation stops: they end at once, their clients'
/// connections a little later.
const GRACE: Duration = Duration::from_secs(5);

/// Why federation cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// The state directory cannot be used.
    #[error("the state directory cannot be used")]
    State(#[from] StateError),
    /// The resources directory cannot be watched.
    #[error("resources directory `{}` cannot be watched; create it, or correct resourcesDir", path.display())]
    Resources {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: notify::Error,
    },
    /// The Kubernetes API cannot be called.
    #[error("the Kubernetes home cannot be used")]
    Kubernetes(#[from] linkspan_kube::ConnectError),
    /// Whether there was an earlier life cannot be told.
    #[error("it cannot be told whether this is the first start")]
    Roots(#[source] linkspan_kube::PublishError),
    /// An address cannot be listened on.
    #[error("cannot listen on `{address}` ({key}); free it, or choose another")]
    Listen {
        /// The configuration key.
        key: &'static str,
        /// What was to be listened on.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// The authority cannot issue federation's own certificate.
    #[error("federation's own certificate cannot be issued")]
    Certificate(#[source] BoxError),
    /// Metrics are registered already.
    #[error("metrics cannot be registered")]
    Telemetry(#[from] TelemetryError),
}

/// Where a federation can be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// The gRPC port.
    pub grpc: SocketAddr,
    /// The public admin face.
    pub admin: SocketAddr,
    /// The loopback admin face.
    pub debug: SocketAddr,
    /// DNS, where it is served.
    pub dns: Option<SocketAddr>,
    /// The operator's unix socket.
    pub operator: PathBuf,
}

/// A federation that listens and does not serve yet.
pub struct Bound {
    pub(crate) addresses: Addresses,
    pub(crate) readiness: Readiness,
    /// Opened once resources were read.
    pub(crate) ready: Gate,
    /// The public admin face, which is served already.
    pub(crate) admin: Face,
    pub(crate) config: Config,
    pub(crate) state: StateDir,
    pub(crate) slots: Slots,
    pub(crate) epoch: Epoch,
    pub(crate) remembered: Remembered,
    pub(crate) links: Arc<LinkStore>,
    pub(crate) issuer: Arc<Issuer>,
    pub(crate) credentials: Credentials,
    pub(crate) material: (MaterialWriter, MaterialReader),
    pub(crate) backend: Backend,
    /// Whether another federation writes what is kept.
    pub(crate) taken_over: watch::Receiver<bool>,
    pub(crate) listeners: Listeners,
    pub(crate) registry: Registry,
    pub(crate) metrics: FederationMetrics,
    /// How peers are reached, where not through gateways.
    pub(crate) dial: Option<Arc<dyn Dial>>,
    /// Who is shown the worlds.
    #[cfg(test)]
    pub(crate) observer: Option<crate::controller::Observer>,
}

pub(crate) struct Listeners {
    pub(crate) grpc: TcpListener,
    pub(crate) debug: TcpListener,
    pub(crate) dns: Option<dns::Sockets>,
    pub(crate) webhook: Option<TcpListener>,
    pub(crate) operator: UnixListener,
}

/// Opens the state directory, makes or reads the authority, and listens. On Kubernetes it first waits
/// until this replica leads, for as long as that takes; it is not ready meanwhile, and healthy. Needs
/// a tokio runtime.
///
/// # Errors
/// See [`BindError`]; nothing is left listening then.
pub async fn bind(config: Config) -> Result<Bound, BindError> {
    let now = SystemTime::now();
    let state = StateDir::open(&config.state_dir)?;
    let registry = Registry::new();
    let metrics = FederationMetrics::register(&registry)?;
    let readiness = Readiness::new();
    let ready = readiness.gate("resources");
    // All that follows may wait for others: probes are told meanwhile that this process is well.
    let admin = Face::serve(&config, &readiness, &registry).await?;
    let (mut backend, attestor) = Backend::open(&config, own_cluster(&config), &state).await?;
    backend.leading.wait().await;
    let (slots, taken_over) = home::slots(&config.home, &state)?;
    let traces = Traces {
        epochs: slots.epochs().collect(),
        published: backend.published().await?,
    };
    let domain = &config.trust_domain;
    let authority = Authority::load_or_create(&slots.authority, &traces, domain, now)?;
    let authority = Arc::new(authority);
    let lifetime = config.timers.svid_lifetime;
    let tokens = Arc::new(JoinTokens::open(slots.tokens.clone())?);
    let domain = config.trust_domain.clone();
    let credentials = Credentials::new(Arc::clone(&authority), &domain, lifetime);
    let proofs = (tokens, Pods::new(attestor));
    let issuer = Issuer::new(domain, authority, proofs, lifetime, &metrics);
    let remembered = Remembered::load(&slots)?;
    let links = Arc::new(LinkStore::open(slots.links.clone())?);
    let listeners = Listeners::bind(&config, &state.operator_socket()).await?;
    // Last, so that a start that failed is not taken for a life.
    let epoch = next_epoch(&slots.epoch, now)?;
    for mark in &slots.marks {
        mark.write(epoch.number.to_string().as_bytes())?;
    }
    Ok(Bound {
        addresses: listeners.addresses(&state, admin.address)?,
        readiness,
        ready,
        admin,
        state,
        slots,
        taken_over,
        epoch,
        remembered,
        links,
        issuer: Arc::new(issuer),
        material: credentials
            .first()
            .map_err(|error| BindError::Certificate(error.into()))?,
        credentials,
        backend,
        listeners,
        registry,
        metrics,
        dial: None,
        #[cfg(test)]
        observer: None,
        config,
    })
}

pub(crate) fn own_cluster(config: &Config) -> OwnCluster {
    OwnCluster {
        cluster: config.cluster.clone(),
        clusterset: config.clusterset.clone(),
        trust_domain: config.trust_domain.clone(),
        unmeshed_clients: config.unmeshed_clients,
    }
}

impl Listeners {
    async fn bind(config: &Config, operator: &Path) -> Result<Self, BindError> {
        let socket = socket::bind(operator).map_err(|source| BindError::Listen {
            key: "operator.sock in stateDir",
            address: operator.display().to_string(),
            source,
        });
        let dns = match config.dns_listen {
            None => None,
            Some(address) => {
                let sockets = dns::Sockets::bind(address).await;
                Some(sockets.map_err(|source| BindError::Listen {
                    key: "dnsListen",
                    address: address.to_string(),
                    source,
                })?)
            }
        };
        let webhook = match &config.webhook {
            Some(webhook) => Some(listen("webhook.listen", webhook.listen).await?),
            None => None,
        };
        Ok(Self {
            dns,
            webhook,
            grpc: listen("listen", config.listen).await?,
            debug: listen("debugListen", config.debug_listen).await?,
            operator: socket?,
        })
    }

    fn addresses(&self, state: &StateDir, admin: SocketAddr) -> Result<Addresses, BindError> {
        Ok(Addresses {
            grpc: address("listen", &self.grpc)?,
            admin,
            debug: address("debugListen", &self.debug)?,
            dns: self.dns.as_ref().map(|sockets| sockets.address),
            operator: state.operator_socket(),
        })
    }
}

/// The public admin face, from before there is anything else until the very end.
pub(crate) struct Face {
    address: SocketAddr,
    serving: AbortOnDropHandle<()>,
    stop: Stop,
}

impl Face {
    async fn serve(
        config: &Config,
        readiness: &Readiness,
        registry: &Registry,
    ) -> Result<Self, BindError> {
        let listener = listen("adminListen", config.admin_listen).await?;
        let admin = Admin {
            readiness: readiness.clone(),
            registry: registry.clone(),
            dumps: None,
        };
        let stop = Stop::new();
        Ok(Self {
            address: address("adminListen", &listener)?,
            serving: AbortOnDropHandle::new(tokio::spawn(admin::serve(
                listener,
                admin,
                stop.clone(),
            ))),
            stop,
        })
    }

    /// Until `stop` aborts.
    pub(crate) async fn until(self, stop: Stop) {
        stop.aborted().await;
        self.stop.abort();
        let _ = self.serving.await;
    }
}

fn address(key: &'static str, listener: &TcpListener) -> Result<SocketAddr, BindError> {
    listener.local_addr().map_err(|source| BindError::Listen {
        key,
        address: "?".into(),
        source,
    })
}

async fn listen(key: &'static str, address: SocketAddr) -> Result<TcpListener, BindError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| BindError::Listen {
            key,
            address: address.to_string(),
            source,
        })
}

impl Bound {
    /// Where it can be reached.
    #[must_use]
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Whether it serves; open once resources were read for the first time.
    #[must_use]
    pub fn readiness(&self) -> &Readiness {
        &self.readiness
    }

    /// Serves until `stop` drains.
    ///
    /// # Errors
    /// What ended an essential task although nobody asked it to stop.
    pub async fn run(self, stop: Stop) -> Result<(), Exit> {
        let (tasks, _locked) = wiring::start(self, stop);
        tasks.run(GRACE).await
    }
}

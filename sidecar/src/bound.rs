//! From a configuration to a running sidecar.

use std::{
    io::ErrorKind,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use linkspan_api::v1;
use linkspan_dataplane::{
    connect::{
        mtls::{ConnectLimits, Connector},
        pool::PoolLimits,
    },
    discover::{self, Registration, Snapshot},
    forward::http::serve::ServeLimits,
    identity::{first_contact_until, keep_fresh_counted},
    inbound::{self, Inbound},
    outbound::{Driver, Listener, Means, Outbound, Services, Source},
};
use linkspan_runtime::{
    admin::{self, Admin, Dumps},
    process::{Exit, Tasks},
    readiness::{Gate, Readiness},
    stop::Stop,
    telemetry::{Registry, SidecarMetrics, TelemetryError},
    trace::{Sender, Tracer},
};
use linkspan_trust::{MaterialReader, MaterialWriter};
use tokio::{net::TcpListener, sync::watch};

use crate::{
    Config,
    capture::{Capture, Past, Used, used},
    dump,
    mesh::{Mesh, MeshCell},
    workload,
};

/// Why a sidecar cannot start.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// A listener cannot be had.
    #[error("cannot listen on {address} ({key}); is another process using that port?")]
    Listen {
        /// The configuration key.
        key: String,
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// The metrics clash: a bug.
    #[error("cannot register metrics; please report this bug")]
    Metrics(#[from] TelemetryError),
}

/// A sidecar whose listeners are bound; connections wait in their backlogs until it runs.
#[derive(Debug)]
pub struct Bound {
    config: Config,
    inbound: (TcpListener, SocketAddr),
    outbound: Vec<TcpListener>,
    outbound_addresses: Vec<SocketAddr>,
    capture: Vec<TcpListener>,
    admin: (TcpListener, SocketAddr),
    debug: (TcpListener, SocketAddr),
    registry: Registry,
    metrics: SidecarMetrics,
    readiness: Readiness,
    gates: Gates,
}

/// What must be there before the sidecar is ready.
#[derive(Debug)]
struct Gates {
    certificate: Gate,
    discovery: Gate,
}

/// Binds all listeners of a sidecar.
///
/// # Errors
/// If one cannot be bound.
pub async fn bind(config: Config) -> Result<Bound, BindError> {
    let inbound = listen("inboundListen", config.inbound_listen).await?;
    let (mut outbound, mut outbound_addresses) = (Vec::new(), Vec::new());
    for (index, wanted) in config.outbound.iter().enumerate() {
        let (listener, address) =
            listen(&format!("outbound[{index}].listen"), wanted.listen).await?;
        outbound.push(listener);
        outbound_addresses.push(address);
    }
    let capture = match config.capture {
        Some(port) => capture(port).await?,
        None => Vec::new(),
    };
    let admin = listen("adminListen", config.admin_listen).await?;
    let debug = listen("debugListen", config.debug_listen).await?;
    let registry = Registry::new();
    let metrics = SidecarMetrics::register(&registry)?;
    let readiness = Readiness::new();
    let gates = Gates {
        certificate: readiness.gate("certificate"),
        discovery: readiness.gate("discovery"),
    };
    Ok(Bound {
        config,
        inbound,
        outbound,
        outbound_addresses,
        capture,
        admin,
        debug,
        registry,
        metrics,
        readiness,
        gates,
    })
}

async fn listen(key: &str, address: SocketAddr) -> Result<(TcpListener, SocketAddr), BindError> {
    let failed = |source| BindError::Listen {
        key: key.to_owned(),
        address,
        source,
    };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

/// Loopback only: a port that carries connections anywhere is not for others to use. IPv6 where the
/// machine has it; where it has not, nothing is led there.
async fn capture(port: u16) -> Result<Vec<TcpListener>, BindError> {
    let key = "capture.port";
    let (four, address) = listen(key, (Ipv4Addr::LOCALHOST, port).into()).await?;
    let mut listeners = vec![four];
    let six = listen(key, (Ipv6Addr::LOCALHOST, address.port()).into()).await;
    match six {
        Ok((six, _)) => listeners.push(six),
        Err(BindError::Listen { source, .. }) if no_ipv6(&source) => {}
        Err(error) => return Err(error),
    }
    Ok(listeners)
}

fn no_ipv6(error: &std::io::Error) -> bool {
    error.kind() == ErrorKind::AddrNotAvailable
        || error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error())
}

impl Bound {
    /// Where inner mTLS is accepted.
    #[must_use]
    pub fn inbound(&self) -> SocketAddr {
        self.inbound.1
    }

    /// Where the workload's calls are accepted, in the order of the configuration.
    #[must_use]
    pub fn outbound(&self) -> &[SocketAddr] {
        &self.outbound_addresses
    }

    /// The public admin face.
    #[must_use]
    pub fn admin(&self) -> SocketAddr {
        self.admin.1
    }

    /// The loopback debug face.
    #[must_use]
    pub fn debug(&self) -> SocketAddr {
        self.debug.1
    }

    /// Open once the sidecar has a certificate and a complete snapshot from discovery.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        self.readiness.clone()
    }

    /// Serves until told to stop, then drains: the workload is registered as not ready, listeners
    /// close, callers are told, and what is under way may finish within the grace period.
    ///
    /// # Errors
    /// If a part without which nothing can be served ends or fails.
    pub async fn run(self, stop: Stop) -> Result<(), Exit> {
        let grace = self.config.drain_grace;
        let cell = MeshCell::default();
        let mut tasks = Tasks::new(stop.clone());
        let control = Control {
            advertised: self.advertised(),
            config: self.config.clone(),
            tracer: tracer(&self.config, &self.metrics, &mut tasks, &stop),
            metrics: self.metrics.clone(),
            gates: self.gates,
            cell: cell.clone(),
        };
        let dumps = dump::dumps(&self.config, &cell);
        for (listener, dumps) in [(self.admin.0, None), (self.debug.0, Some(dumps))] {
            let face = Face {
                readiness: self.readiness.clone(),
                registry: self.registry.clone(),
                dumps,
            };
            tasks.background("admin", face.serve(listener, stop.clone()));
        }
        for (listener, wanted) in self.outbound.into_iter().zip(&self.config.outbound) {
            let outbound = Outbound::new(Listener {
                service: wanted.service.clone(),
                port: wanted.port,
                source: cell.source(),
                idle: self.config.idle_timeout,
                access_log: self.config.access_log,
                limits: ServeLimits::default(),
                requests: None,
                stop: stop.clone(),
            });
            tasks.essential("outbound", async move {
                outbound.run(listener).await;
                Ok(())
            });
        }
        let past = Past::new(&self.metrics.traffic, self.config.access_log);
        for listener in self.capture {
            let capture = Capture::new(cell.clone(), past.clone());
            let stop = stop.clone();
            tasks.essential("capture", async move {
                capture.run(listener, stop).await;
                Ok(())
            });
        }
        tasks.essential("inbound", serve_inbound(self.inbound.0, cell, stop.clone()));
        tasks.background("control", control.run(stop));
        tasks.run(grace).await
    }

    /// Where others reach us.
    fn advertised(&self) -> SocketAddr {
        let bound = self.inbound.1;
        let address = self.config.workload.address.unwrap_or(bound.ip());
        SocketAddr::new(address, bound.port())
    }
}

struct Face {
    readiness: Readiness,
    registry: Registry,
    dumps: Option<Dumps>,
}

impl Face {
    async fn serve(self, listener: TcpListener, stop: Stop) {
        let Self {
            readiness,
            registry,
            dumps,
        } = self;
        admin::serve(
            listener,
            Admin {
                readiness,
                registry,
                dumps,
            },
            stop,
        )
        .await;
    }
}

async fn serve_inbound(
    listener: TcpListener,
    cell: MeshCell,
    stop: Stop,
) -> Result<(), linkspan_runtime::BoxError> {
    tokio::select! {
        () = stop.draining() => {}
        mesh = cell.wait() => mesh.inbound.clone().run(listener).await,
    }
    Ok(())
}

/// What keeps a sidecar informed: certificate, discovery, registration.
struct Control {
    config: Config,
    advertised: SocketAddr,
    metrics: SidecarMetrics,
    tracer: Tracer,
    gates: Gates,
    cell: MeshCell,
}

impl Control {
    /// Gets a certificate, then keeps everything fresh until the stop aborts.
    async fn run(self, stop: Stop) {
        let contact = first_contact_until(&self.config.federation, &stop).await;
        let Some((writer, reader)) = contact else {
            return;
        };
        self.gates.certificate.open();
        Box::pin(self.keep(writer, reader, stop)).await;
    }

    async fn keep(self, writer: MaterialWriter, reader: MaterialReader, stop: Stop) {
        let Self {
            config,
            advertised,
            metrics,
            tracer,
            gates,
            cell,
        } = self;
        let first = workload::registration(&config.workload, advertised, incarnation());
        let (registration, registered) = watch::channel(Registration::Workload(first));
        let (subscription, subscribed) = watch::channel(config.services());
        // Only gateways have links to tell of.
        let (_health, health) = watch::channel(v1::LinkHealth::default());
        let (discovery, snapshots) = discover::client(
            config.federation.clone(),
            reader.clone(),
            registered,
            subscribed,
            health,
        );
        let mut mesh = mesh(&config, &reader, (&metrics, &tracer), &snapshots, &stop);
        let (used, sweeper) = Used::new(used::Means {
            explicit: config.ports(),
            services: Arc::clone(mesh.source.services()),
            subscription,
            source: cell.source(),
            idle: config.idle_timeout,
            access_log: config.access_log,
            stop: stop.clone(),
        });
        mesh.used = config.capture.is_some().then_some(used);
        let (services, inbound) = (Arc::clone(mesh.source.services()), mesh.inbound.clone());
        cell.set(mesh);
        let driver = Driver::new(services, snapshots.clone(), config.cluster.clone());
        tokio::join!(
            discovery
                .of_cluster(&config.cluster)
                .capturing(config.capture.is_some())
                .with_metrics(metrics.control.clone())
                .run(stop.clone()),
            keep_fresh_counted(
                writer,
                reader,
                config.federation,
                snapshots.clone(),
                metrics.control,
                stop.clone(),
            ),
            driver.run(stop.clone()),
            sweeper.run(stop.clone()),
            inbound.follow(snapshots.clone()),
            workload::follow(config.workload, registration, stop),
            open_when_known(gates.discovery, snapshots),
        );
    }
}

/// Records what the configuration says, and sends it in a task of its own.
fn tracer(config: &Config, metrics: &SidecarMetrics, tasks: &mut Tasks, stop: &Stop) -> Tracer {
    let Some(otlp) = &config.otlp else {
        return Tracer::off();
    };
    let workload = &config.workload;
    let sender = Sender {
        service: workload.service_account.clone(),
        namespace: workload.namespace.clone(),
        instance: workload.uid.clone(),
        cluster: config.cluster.to_string(),
    };
    let (tracer, exporter) = Tracer::new(otlp, &sender, metrics.spans.clone());
    tasks.background("traces", exporter.run(stop.clone()));
    tracer
}

/// The mesh as this workload uses it and serves in it.
fn mesh(
    config: &Config,
    reader: &MaterialReader,
    (metrics, tracer): (&SidecarMetrics, &Tracer),
    snapshots: &watch::Receiver<Option<Arc<Snapshot>>>,
    stop: &Stop,
) -> Mesh {
    let means = Means {
        material: reader.clone(),
        connector: Arc::new(Connector::new(reader.clone(), ConnectLimits::default())),
        traffic: metrics.traffic.clone(),
        tracer: tracer.clone(),
        place: config.place(),
        seed: seed(config),
        limits: PoolLimits::default(),
        nearest_gateway: None,
    };
    let inbound = Inbound::new(inbound::Means {
        material: reader.clone(),
        own: inbound::Own {
            endpoint: config.endpoint(),
            cluster: config.cluster.label(),
            trust_domain: config.federation.trust_domain.clone(),
        },
        cluster: config.cluster.clone(),
        locality: config.place().locality,
        application: config.workload.application(),
        traffic: metrics.traffic.clone(),
        tracer: tracer.clone(),
        idle: config.idle_timeout,
        access_log: config.access_log,
        limits: ServeLimits::default(),
        requests: None,
        stop: stop.clone(),
    });
    Mesh {
        source: Source::new(
            reader.clone(),
            Arc::new(Services::new(config.ports(), means)),
        ),
        inbound,
        snapshots: snapshots.clone(),
        used: None,
    }
}

/// A number that grows with each start of the process: the clock's milliseconds. Should the clock
/// have been set back, others take this for no restart, and learn of our health by trying.
fn incarnation() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let millis = since.unwrap_or_default().as_millis();
    u64::try_from(millis).unwrap_or(u64::MAX)
}

/// A number that differs between workloads and stays with each of them (FNV-1a of its id).
fn seed(config: &Config) -> u64 {
    let id = config.endpoint();
    id.as_str()
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        })
}

async fn open_when_known(gate: Gate, mut snapshots: watch::Receiver<Option<Arc<Snapshot>>>) {
    // An error means that discovery has ended with the process.
    if snapshots.wait_for(Option::is_some).await.is_ok() {
        gate.open();
    }
}

//! From the mesh to a workload: who calls what, may they, and on to the application.
//!
//! The source's sidecar and the gateways have checked before; this is the last check, and the only
//! one that the workload's owner has to trust. A sidecar does it for its workload, a gateway for each
//! server without a sidecar.

mod app;
mod check;
mod dial;
mod http;
mod tcp;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    accept::Accept,
    connect::mtls::{Accepted, Acceptor, AcceptorLimits, Alpn},
    detect::http::{DETECT_TIMEOUT, NoHttp, Protocol, detect_http},
    discover::{InboundPort, InboundService, PeerInfo, Snapshot},
    forward::{bytes::Duplex, http::serve::ServeLimits},
    outbound::meter::locality_label,
    report::Access,
    target::TargetName,
};
use arc_swap::ArcSwap;
use linkspan_routing::{AppProtocol, ClusterId, Locality};
use linkspan_runtime::access_log::AccessLog;
use linkspan_runtime::{
    logging::Sparing,
    process::chain,
    stop::Stop,
    telemetry::{Direction, End, Path, TrafficMetrics},
    trace::Tracer,
};
use linkspan_trust::{
    ClientPolicy, MaterialReader, SpiffeId, TrustDomain, TrustPolicy, WorkloadId,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    time::{interval, timeout},
};
use tokio_rustls::server::TlsStream;
use tracing::{debug, warn};

use app::App;
use check::{Passage, Refusal};
use dial::Distance;

pub use check::Own;

/// Between two warnings of refused calls.
const REFUSALS: Duration = Duration::from_secs(10);
/// How often unused connections to the application are looked for.
const SWEEP: Duration = Duration::from_secs(1);
/// How long the application may take to see connections close that carry nothing any more.
const FAREWELL: Duration = Duration::from_secs(1);

/// Serves the mesh's calls to one workload.
#[derive(Clone, Debug)]
pub struct Inbound {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    acceptor: Acceptor,
    material: MaterialReader,
    own: Own,
    cluster: ClusterId,
    locality: String,
    application: Application,
    rules: ArcSwap<Rules>,
    app: App,
    traffic: TrafficMetrics,
    tracer: Tracer,
    idle: Duration,
    access_log: AccessLog,
    limits: ServeLimits,
    requests: Option<Arc<Semaphore>>,
    refusals: Sparing,
    stop: Stop,
}

/// What discovery says of calls to this workload.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rules {
    /// Services that it serves.
    pub services: Vec<InboundService>,
    /// Linked clusters.
    pub peers: Vec<PeerInfo>,
}

/// Where the application listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Application {
    /// Beside us, at the target ports of the services.
    Here {
        /// Its address.
        address: IpAddr,
        /// Target ports for which it listens on another port.
        ports: BTreeMap<u16, u16>,
    },
    /// Elsewhere in the cluster, at these addresses, by Service port.
    There(BTreeMap<u16, SocketAddr>),
}

impl Application {
    fn at(&self, port: &InboundPort) -> Option<SocketAddr> {
        match self {
            Self::Here { address, ports } => {
                let target = port.target_port;
                let port = ports.get(&target).copied().unwrap_or(target);
                Some(SocketAddr::new(*address, port))
            }
            Self::There(addresses) => addresses.get(&port.port).copied(),
        }
    }

    fn distance(&self) -> Distance {
        match self {
            Self::Here { .. } => Distance::Machine,
            Self::There(_) => Distance::Cluster,
        }
    }
}

/// What an [`Inbound`] is made with.
#[derive(Debug)]
pub struct Means {
    /// The workload's certificate.
    pub material: MaterialReader,
    /// Which endpoint it is.
    pub own: Own,
    /// Its cluster.
    pub cluster: ClusterId,
    /// Where in it, as far as that is known.
    pub locality: Locality,
    /// Where its application listens.
    pub application: Application,
    /// Counts.
    pub traffic: TrafficMetrics,
    /// Records.
    pub tracer: Tracer,
    /// Longest time in which nothing of a request moves.
    pub idle: Duration,
    /// Whether each request and opaque connection gets a line.
    pub access_log: AccessLog,
    /// Of each HTTP connection.
    pub limits: ServeLimits,
    /// Requests that may wait for their answers at a time, shared with others; more are refused as
    /// not processed. `None`: as many as the callers' connections carry.
    pub requests: Option<Arc<Semaphore>>,
    /// Ends it.
    pub stop: Stop,
}

/// A caller that may pass, and where to.
#[derive(Debug)]
struct Caller {
    id: SpiffeId,
    /// Where the connection comes from, if that is known.
    address: Option<SocketAddr>,
    passage: Passage,
    /// Where the application listens.
    app: SocketAddr,
}

impl Inbound {
    /// One that admits nobody until it is told whom.
    #[must_use]
    pub fn new(means: Means) -> Self {
        let Means {
            material,
            own,
            cluster,
            locality,
            application,
            traffic,
            tracer,
            idle,
            access_log,
            limits,
            requests,
            stop,
        } = means;
        let policy = admitted(&own.trust_domain, &Rules::default());
        let acceptor = Acceptor::new(material.clone(), policy, AcceptorLimits::default());
        let (rules, app) = (ArcSwap::default(), App::new(application.distance()));
        let inner = Inner {
            acceptor,
            material,
            own,
            cluster,
            locality: locality_label(&locality),
            application,
            rules,
            app,
            traffic,
            tracer,
            idle,
            access_log,
            limits,
            requests,
            refusals: Sparing::new(REFUSALS),
            stop,
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Takes over what discovery says of calls to this workload, until the stop aborts. Meanwhile
    /// closes unused connections to the application.
    pub async fn follow(self, mut snapshots: watch::Receiver<Option<Arc<Snapshot>>>) {
        let mut sweep = interval(SWEEP);
        loop {
            if let Some(snapshot) = snapshots.borrow_and_update().clone() {
                self.apply(Rules {
                    services: snapshot.inbound.clone(),
                    peers: snapshot.peers.clone(),
                });
            }
            let changed = tokio::select! {
                () = self.inner.stop.aborted() => return,
                changed = snapshots.changed() => changed,
                now = sweep.tick() => {
                    self.sweep(now.into_std());
                    continue;
                }
            };
            if changed.is_err() {
                return;
            }
        }
    }

    /// Takes over what discovery says of calls to this workload.
    pub fn apply(&self, rules: Rules) {
        if **self.inner.rules.load() == rules {
            return;
        }
        self.inner
            .acceptor
            .set_policy(admitted(&self.inner.own.trust_domain, &rules));
        self.inner.rules.store(Arc::new(rules));
    }

    /// Closes connections to the application that have been unused for long. Meant to be called
    /// every few seconds.
    pub fn sweep(&self, now: Instant) {
        self.inner.app.sweep(now);
        self.inner.traffic.sweep(now);
    }

    /// Accepts connections until drained, serves them to their ends, and closes those to the
    /// application.
    pub async fn run(self, listener: TcpListener) {
        let stop = self.inner.stop.clone();
        let handler = |socket: TcpStream, caller| {
            let inbound = self.clone();
            async move { Box::pin(inbound.connection(socket, Some(caller))).await }
        };
        Accept::default().run(listener, stop, handler).await;
        self.close().await;
    }

    /// Closes connections to the application once no more calls come.
    pub async fn close(&self) {
        let closed = timeout(FAREWELL, self.inner.app.close()).await;
        if closed.is_err() {
            debug!("the application holds on to connections");
        }
    }

    /// One connection, from its inner ClientHello on: who, where to, may they, and on.
    pub async fn connection<IO>(self, socket: IO, address: Option<SocketAddr>)
    where
        IO: Duplex + 'static,
    {
        let accepted = match self.inner.acceptor.accept(socket).await {
            Ok(accepted) => accepted,
            Err(error) => return debug!(?address, error = %chain(&error), "caller refused"),
        };
        let Accepted {
            mut io,
            peer,
            target,
            alpn,
        } = accepted;
        let rules = self.inner.rules.load_full();
        let passage = check::passage(&self.inner.own, &rules.services, &peer, &target);
        let passage = passage.and_then(|passage| {
            let app = self.inner.application.at(&passage.port);
            Ok((passage, app.ok_or(Refusal::NoPort)?))
        });
        let (passage, app) = match passage {
            Ok(passage) => passage,
            Err(refusal) => {
                self.tell_refused(&peer, &target, &refusal);
                let access = self.access_of(&peer, address, &target);
                return self.refuse(io, alpn, refusal, access).await;
            }
        };
        let caller = Caller {
            id: peer,
            address,
            passage,
            app,
        };
        match (alpn, caller.passage.port.app_protocol) {
            (Alpn::Http1 | Alpn::Http2, AppProtocol::Tcp) => io.reset(),
            (Alpn::Http1 | Alpn::Http2, _) => self.http(io, caller).await,
            (Alpn::Tcp, AppProtocol::Tcp) => self.tcp(io, caller).await,
            (Alpn::Tcp, AppProtocol::Detect) => self.detect(io, caller).await,
            // The application would see an HTTP request that names its caller itself.
            (Alpn::Tcp, AppProtocol::Http | AppProtocol::Http2) => {
                self.tell_refused(&caller.id, &target, &"opaque bytes to an HTTP port");
                io.reset();
            }
        }
    }

    /// Callers can make this happen as often as they like.
    fn tell_refused(&self, caller: &SpiffeId, target: &TargetName, why: &dyn Display) {
        match self.inner.refusals.due(Instant::now()) {
            Some(unsaid) => warn!(%caller, %target, %why, unsaid, "call refused"),
            None => debug!(%caller, %target, %why, "call refused"),
        }
    }

    /// Looks again at what the source took for opaque: if it is HTTP after all, its caller must not
    /// get to name itself to the application.
    async fn detect<IO>(&self, io: TlsStream<IO>, caller: Caller)
    where
        IO: Duplex + 'static,
    {
        match detect_http(io, DETECT_TIMEOUT).await {
            Ok((Protocol::Opaque, io)) => self.tcp(NoHttp::new(io), caller).await,
            Ok((Protocol::Http1 | Protocol::Http2, io)) => self.http(io, caller).await,
            Err(error) => debug!(error = %chain(&error), "connection ended before its first bytes"),
        }
    }

    /// Of a caller that may not pass.
    fn access_of(
        &self,
        peer: &SpiffeId,
        address: Option<SocketAddr>,
        target: &TargetName,
    ) -> Access {
        let mut access = Access::new(Direction::Inbound);
        access.log = self.inner.access_log.draw();
        access.caller = address;
        access.source = Some(peer.clone());
        access.cluster = self.cluster_of(peer);
        access.endpoint = Some(self.inner.own.endpoint.clone());
        access.destination = Some(self.own_id());
        if let TargetName::Service(target) = target {
            access.service = Some(target.service.clone());
            access.port = Some(target.port);
        }
        access
    }

    fn access(&self, caller: &Caller) -> Access {
        let inner = &self.inner;
        let mut access = Access::new(Direction::Inbound);
        access.log = inner.access_log.draw();
        access.caller = caller.address;
        access.source = Some(caller.id.clone());
        access.service = Some(caller.passage.service.clone());
        access.port = Some(caller.passage.port.port);
        access.cluster = self.cluster_of(&caller.id);
        access.endpoint = Some(inner.own.endpoint.clone());
        access
    }

    /// The cluster that a caller's trust domain belongs to.
    fn cluster_of(&self, caller: &SpiffeId) -> Option<ClusterId> {
        if *caller.trust_domain() == self.inner.own.trust_domain {
            return Some(self.inner.cluster.clone());
        }
        let rules = self.inner.rules.load();
        let mut peers = rules.peers.iter();
        peers
            .find(|peer| peer.trust_domain == *caller.trust_domain())
            .map(|peer| peer.cluster.clone())
    }

    /// The path of a caller's calls, for as long as `count` looks at it.
    fn on_path<T>(&self, caller: &Caller, count: impl FnOnce(&Path<'_>) -> T) -> T {
        let cluster = self.cluster_of(&caller.id);
        let (source, own) = (caller.id.workload_id(), self.own_id().workload_id());
        let source = End {
            cluster: cluster.as_ref().map_or("", ClusterId::as_str),
            ..end(source.as_ref())
        };
        let destination = End {
            cluster: self.inner.cluster.as_str(),
            locality: &self.inner.locality,
            ..end(own.as_ref())
        };
        let service = &caller.passage.service;
        count(&Path {
            direction: Direction::Inbound,
            source,
            destination,
            namespace: &service.namespace,
            service: &service.name,
        })
    }

    fn own_id(&self) -> SpiffeId {
        self.inner.material.current().svid().id().clone()
    }
}

/// Whom handshakes admit: our own domain and those to which anything is exported. The service that
/// a caller asks for narrows it.
fn admitted(own: &TrustDomain, rules: &Rules) -> ClientPolicy {
    let exported = rules
        .services
        .iter()
        .flat_map(|service| &service.exported_to);
    let domains: BTreeSet<_> = exported.chain([own]).cloned().collect();
    ClientPolicy::Required(TrustPolicy::Domains(domains))
}

fn end(workload: Option<&WorkloadId>) -> End<'_> {
    End {
        namespace: workload.map_or("", WorkloadId::namespace),
        workload: workload.map_or("", WorkloadId::service_account),
        ..End::default()
    }
}

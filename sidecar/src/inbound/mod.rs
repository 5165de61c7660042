//! From the mesh to the workload: who calls what, may they, and on to the application.
//!
//! The source's sidecar and the gateways have checked before; this is the last check, and the only
//! one that the workload's owner has to trust.

mod app;
mod check;
mod dial;
mod http;
mod tcp;

use std::{
    collections::BTreeSet,
    fmt::Display,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use linkspan_dataplane::{
    accept::Accept,
    connect::mtls::{Accepted, Acceptor, AcceptorLimits, Alpn},
    detect::http::{DETECT_TIMEOUT, NoHttp, Protocol, detect_http},
    discover::{InboundService, PeerInfo, Snapshot},
    forward::bytes::Duplex,
    report::Access,
    target::TargetName,
};
use linkspan_routing::{AppProtocol, ClusterId};
use linkspan_runtime::{
    logging::Sparing,
    process::chain,
    stop::Stop,
    telemetry::{Direction, TrafficLabels, TrafficMetrics},
};
use linkspan_trust::{ClientPolicy, MaterialReader, SpiffeId, TrustDomain, TrustPolicy};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    time::{interval, timeout},
};
use tokio_rustls::server::TlsStream;
use tracing::{debug, warn};

use crate::config::Workload;
use app::App;
use check::{Own, Passage};

/// Between two warnings of refused calls.
const REFUSALS: Duration = Duration::from_secs(10);
/// How often unused connections to the application are looked for.
const SWEEP: Duration = Duration::from_secs(1);
/// How long the application may take to see connections close that carry nothing any more.
const FAREWELL: Duration = Duration::from_secs(1);

/// Serves the mesh's calls to the workload.
#[derive(Clone, Debug)]
pub(crate) struct Inbound {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    acceptor: Acceptor,
    material: MaterialReader,
    own: Own,
    cluster: ClusterId,
    workload: Workload,
    rules: ArcSwap<Rules>,
    app: App,
    traffic: TrafficMetrics,
    idle: Duration,
    access_log: bool,
    refusals: Sparing,
    stop: Stop,
}

/// What discovery says of calls to this workload.
#[derive(Debug, Default)]
struct Rules {
    services: Vec<InboundService>,
    peers: Vec<PeerInfo>,
}

/// What an inbound listener is made with.
pub(crate) struct Means {
    pub(crate) material: MaterialReader,
    pub(crate) own: Own,
    pub(crate) cluster: ClusterId,
    pub(crate) workload: Workload,
    pub(crate) traffic: TrafficMetrics,
    pub(crate) idle: Duration,
    pub(crate) access_log: bool,
    pub(crate) stop: Stop,
}

pub(crate) use check::Own as Identity;

/// A caller that may pass, and where to.
#[derive(Debug)]
struct Caller {
    id: SpiffeId,
    address: SocketAddr,
    passage: Passage,
}

impl Inbound {
    pub(crate) fn new(means: Means) -> Self {
        let Means {
            material,
            own,
            cluster,
            workload,
            traffic,
            idle,
            access_log,
            stop,
        } = means;
        let policy = admitted(&own.trust_domain, &Rules::default());
        let acceptor = Acceptor::new(material.clone(), policy, AcceptorLimits::default());
        let (rules, app) = (ArcSwap::default(), App::new());
        let inner = Inner {
            acceptor,
            material,
            own,
            cluster,
            workload,
            rules,
            app,
            traffic,
            idle,
            access_log,
            refusals: Sparing::new(REFUSALS),
            stop,
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Takes over what discovery says of calls to this workload, until the stop aborts. Meanwhile
    /// closes unused connections to the application.
    pub(crate) async fn follow(self, mut snapshots: watch::Receiver<Option<Arc<Snapshot>>>) {
        let mut sweep = interval(SWEEP);
        loop {
            if let Some(snapshot) = snapshots.borrow_and_update().clone() {
                self.apply(&snapshot);
            }
            let changed = tokio::select! {
                () = self.inner.stop.aborted() => return,
                changed = snapshots.changed() => changed,
                now = sweep.tick() => {
                    self.inner.app.sweep(now.into_std());
                    continue;
                }
            };
            if changed.is_err() {
                return;
            }
        }
    }

    pub(crate) fn apply(&self, snapshot: &Snapshot) {
        let before = self.inner.rules.load();
        if before.services == snapshot.inbound && before.peers == snapshot.peers {
            return;
        }
        let rules = Rules {
            services: snapshot.inbound.clone(),
            peers: snapshot.peers.clone(),
        };
        self.inner
            .acceptor
            .set_policy(admitted(&self.inner.own.trust_domain, &rules));
        self.inner.rules.store(Arc::new(rules));
    }

    /// Accepts connections until drained, serves them to their ends, and closes those to the
    /// application.
    pub(crate) async fn run(self, listener: TcpListener) {
        let stop = self.inner.stop.clone();
        let handler = |socket, caller| {
            let inbound = self.clone();
            async move { Box::pin(inbound.connection(socket, caller)).await }
        };
        Accept::default().run(listener, stop, handler).await;
        let closed = timeout(FAREWELL, self.inner.app.close()).await;
        if closed.is_err() {
            debug!("the application holds on to connections");
        }
    }

    /// One connection: who, where to, may they, and on.
    async fn connection(self, socket: TcpStream, address: SocketAddr) {
        let accepted = match self.inner.acceptor.accept(socket).await {
            Ok(accepted) => accepted,
            Err(error) => return debug!(%address, error = %chain(&error), "caller refused"),
        };
        let Accepted {
            mut io,
            peer,
            target,
            alpn,
        } = accepted;
        let rules = self.inner.rules.load_full();
        let passage = match check::passage(&self.inner.own, &rules.services, &peer, &target) {
            Ok(passage) => passage,
            Err(refusal) => {
                self.tell_refused(&peer, &target, &refusal);
                return self.refuse(io, alpn, refusal).await;
            }
        };
        let caller = Caller {
            id: peer,
            address,
            passage,
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
    async fn detect(&self, io: TlsStream<TcpStream>, caller: Caller) {
        match detect_http(io, DETECT_TIMEOUT).await {
            Ok((Protocol::Opaque, io)) => self.tcp(NoHttp::new(io), caller).await,
            Ok((Protocol::Http1 | Protocol::Http2, io)) => self.http(io, caller).await,
            Err(error) => debug!(error = %chain(&error), "connection ended before its first bytes"),
        }
    }

    fn access(&self, caller: &Caller) -> Access {
        let inner = &self.inner;
        let mut access = Access::new(Direction::Inbound);
        access.log = inner.access_log;
        access.caller = Some(caller.address);
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

fn labels<'a>(service: &'a str, cluster: &'a str) -> TrafficLabels<'a> {
    TrafficLabels {
        direction: Direction::Inbound,
        service,
        cluster,
    }
}

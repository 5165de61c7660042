//! The part that carries traffic: peer table, tunnel, diallers, ingress and egress, wired.

use std::sync::Arc;
use std::time::Duration;

use linkspan_dataplane::outbound::SourceCell;
use linkspan_runtime::BoxError;
use linkspan_runtime::places::Places;
use linkspan_runtime::process::{Exit, Tasks};
use linkspan_runtime::readiness::Gate;
use linkspan_runtime::stop::Stop;
use linkspan_runtime::telemetry::{LinkMetrics, SpanMetrics, TrafficMetrics};
use linkspan_runtime::trace::{Sender, Tracer};
use linkspan_trust::SYSTEM_NAMESPACE;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use crate::bind::{Addresses, Sockets, Sources};
use crate::config::Config;
use crate::egress::{Egress, Here};
use crate::ingress::{Ingress, Streams};
use crate::join;
use crate::own::Reaching;
use crate::peers::{self, Peers};
use crate::registration;
use crate::tunnel::close::CloseCode;
use crate::tunnel::handshake::Own;
use crate::tunnel::session::Shared;
use crate::tunnel::{Tunnel, dialer, endpoint, listener};
use crate::unmeshed::{Imports, Servers, Table};

/// For the last packets, which tell the peers that we close.
const CLOSING: Duration = Duration::from_secs(1);

/// Everything that the plane is made of.
pub(crate) struct Plane {
    pub(crate) config: Config,
    pub(crate) addresses: Addresses,
    pub(crate) sources: Sources,
    pub(crate) peers: watch::Sender<Arc<Peers>>,
    pub(crate) links: LinkMetrics,
    pub(crate) traffic: TrafficMetrics,
    pub(crate) spans: SpanMetrics,
    /// Who calls for clients without a sidecar.
    pub(crate) unmeshed: SourceCell,
    pub(crate) ready: Gate,
}

impl Plane {
    /// Runs until the stop drains and everything has ended, or it aborts.
    pub(crate) async fn run(self, sockets: Sockets, stop: Stop) -> Result<(), Exit> {
        let (stop, grace) = (stop.child(), self.config.drain_grace);
        let mut tasks = Tasks::new(stop.clone());
        let wired = self.wire(sockets, &mut tasks, &stop).await;
        wired.map_err(|source| Exit::Failed {
            name: "tunnel endpoint",
            source,
        })?;
        tasks.run(grace).await
    }

    async fn wire(self, sockets: Sockets, tasks: &mut Tasks, stop: &Stop) -> Result<(), BoxError> {
        let Self {
            config,
            addresses,
            sources,
            peers: published,
            links,
            traffic,
            spans,
            unmeshed,
            ready: gate,
        } = self;
        let Sources {
            material,
            snapshot,
            registration,
            health,
            joins,
            unmeshed_clients,
            unmeshed_servers,
        } = sources;
        let (timers, limits) = (config.timers, config.limits);
        let tracer = tracer(&config, spans, tasks, stop);
        let (peer_table, reporter) = peers::Table::new(
            limits.connections,
            snapshot.clone(),
            published.clone(),
            health,
            links.clone(),
        );
        let peers = published.subscribe();
        let ready = watch::Sender::new(1);
        let own = Own {
            cluster: config.cluster.clone(),
            replica: config.replica.clone(),
            ready: ready.subscribe(),
        };
        let reaching = Reaching::new(&config, &addresses).await;
        let (table, servers) = watch::channel(Table::default());
        let taken = Places::halves(limits.servers);
        let taking = Servers {
            cluster: config.cluster.clone(),
            trust_domain: config.federation.trust_domain.clone(),
            config: config.servers.clone(),
            snapshot: snapshot.clone(),
            traffic: traffic.clone(),
            tracer: tracer.clone(),
            table,
            stop: stop.clone(),
        };
        tasks.background("unmeshed servers", taking.run(unmeshed_servers));
        let ingress = Arc::new(Ingress {
            tracer: tracer.clone(),
            own: config.cluster.label(),
            federation: config.federation.address.clone(),
            reach: reaching.subscribe(),
            snapshot: snapshot.clone(),
            timers,
            servers: servers.clone(),
            taken: taken.clone(),
            places: Places::halves(limits.ingress),
            tasks: TaskTracker::new(),
            stop: stop.clone(),
        });
        let shared = Shared {
            reporter,
            incoming: Arc::new(Streams(ingress.clone())),
            ready: own.ready.clone(),
            timers,
            limits,
            stop: stop.clone(),
        };
        let tunnel = Arc::new(Tunnel::new(
            own,
            shared,
            peers.clone(),
            material.clone(),
            links.clone(),
        ));
        let endpoint = endpoint::listen(sockets.tunnel)?;
        let accept = join::accept::Accept::new(config.federation.address.clone(), timers.connect);
        let dial = join::dial::Dial {
            federation: config.federation.clone(),
            material: material.clone(),
            timers,
        };
        tasks.background("joins", dial.run(joins, stop.clone()));
        let egress = Egress::new(
            config.cluster.label(),
            config.federation.identity(),
            material.clone(),
            peers.clone(),
            Here {
                servers,
                taken,
                own: config.cluster.clone(),
                reach: reaching.subscribe(),
                snapshot: snapshot.clone(),
            },
            (&links, tracer.clone()),
            (timers, limits),
        );
        if let Some(imports) = config.imports.clone() {
            let imports = Imports {
                egress: registration::egress(&config, &addresses),
                imports,
                snapshot: snapshot.clone(),
                peers: peers.clone(),
                reach: reaching.subscribe(),
                registration: registration.clone(),
                traffic,
                tracer,
                source: unmeshed,
                stop: stop.clone(),
                config,
            };
            tasks.essential("imports", done(imports.run(unmeshed_clients)));
        }
        let registered = registration::keep(registration, snapshot, ready, gate, stop.clone());
        tasks.background("peer table", until_aborted(stop.clone(), peer_table.run()));
        tasks.background("registration", registered);
        let keep = endpoint::keep_config(
            endpoint.clone(),
            material,
            peers,
            endpoint::listening(&timers, &limits),
            timers,
        );
        tasks.background("tunnel's TLS", until_draining(stop.clone(), keep));
        let reaching = until_aborted(stop.clone(), reaching.keep());
        tasks.background("own addresses", reaching);
        tasks.background("diallers", dialer::run(tunnel.clone(), stop.clone()));
        tasks.essential("egress", done(egress.run(sockets.egress, stop.clone())));
        let serving = serve_tunnel(tunnel, ingress, endpoint, accept, stop.clone());
        tasks.essential("tunnel", done(serving));
        Ok(())
    }
}

/// Records what the configuration says, and sends it in a task of its own.
fn tracer(config: &Config, metrics: SpanMetrics, tasks: &mut Tasks, stop: &Stop) -> Tracer {
    let Some(otlp) = &config.otlp else {
        return Tracer::off();
    };
    let sender = Sender {
        service: "linkspan-gateway".to_owned(),
        namespace: SYSTEM_NAMESPACE.to_owned(),
        instance: config.replica.to_string(),
        cluster: config.cluster.to_string(),
    };
    let (tracer, exporter) = Tracer::new(otlp, &sender, metrics);
    tasks.background("traces", exporter.run(stop.clone()));
    tracer
}

/// Listens until the stop drains; then each session takes its leave, the endpoint closes once all
/// have, or the stop aborts, and what peers' streams held on our side has been let go.
async fn serve_tunnel(
    tunnel: Arc<Tunnel>,
    ingress: Arc<Ingress>,
    endpoint: quinn::Endpoint,
    joins: Arc<join::accept::Accept>,
    stop: Stop,
) {
    listener::run(tunnel.clone(), endpoint.clone(), joins, stop.clone()).await;
    tokio::select! {
        () = tunnel.ended() => {}
        () = stop.aborted() => {
            for peer in tunnel.peers().iter() {
                peer.connections.iter().for_each(|held| held.close(CloseCode::Drained));
            }
        }
    }
    endpoint.close(
        CloseCode::Drained.wire(),
        CloseCode::Drained.label().as_bytes(),
    );
    // Without connections there is nothing left to relay.
    let _ = timeout(CLOSING, ingress.ended()).await;
    // Whoever misses the last packets finds out by its heartbeats.
    let _ = timeout(CLOSING, endpoint.wait_idle()).await;
}

async fn done(task: impl Future<Output = ()>) -> Result<(), BoxError> {
    task.await;
    Ok(())
}

async fn until_draining(stop: Stop, task: impl Future<Output = ()>) {
    tokio::select! {
        () = stop.draining() => {}
        () = task => {}
    }
}

async fn until_aborted(stop: Stop, task: impl Future<Output = ()>) {
    tokio::select! {
        () = stop.aborted() => {}
        () = task => {}
    }
}

//! Putting the parts together: the one place that knows them all.
//!
//! ```text
//! controller ─► World ─┬─► discovery sessions
//!                      ├─► gate (gateways first) ─► sync subscriptions
//!                      ├─► sink (statuses, imports; the leader only)
//!                      └─► derived: roots, peers' identities, ways through gateways
//! ```

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use linkspan_api::v1::{
    discovery_server::DiscoveryServer, identity_server::IdentityServer,
    operator_server::OperatorServer, sync_server::SyncServer,
};
use linkspan_core::{
    OwnCluster,
    backend::{Applied, LinkHome, Removals, Sink, SinkError},
    inject::Injection,
    join::LinkBook,
    peer::{Now, PeerSettings},
};
use linkspan_kube::Lead;
use linkspan_runtime::{
    BoxError,
    admin::{self, Admin, Dumps},
    process::{Tasks, chain},
    readiness::{Gate, Readiness},
    stop::Stop,
    telemetry::FederationMetrics,
};
use linkspan_trust::{BundleSet, MaterialReader, SpiffeId};
use prometheus::Registry;
use tokio::{
    net::{TcpListener, UnixListener},
    sync::{Mutex, Notify, mpsc, oneshot, watch},
};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::task::TaskTracker;
use tonic::transport::Server;

use crate::{
    bound::{Bound, own_cluster},
    config::{Config, Home},
    controller::{self, Foundation, INPUTS, Input, State, World},
    discovery::{self, AppliedReader, AppliedWriter, DiscoveryService, applied, gate},
    dns, dumps,
    home::{AnyDeclarations, Backend, Leading, Surroundings, keep_journal},
    identity::{IdentityService, Issuer, keep_authority, keep_fresh},
    join::{self, Dials, InHand, LinkStore, Linker},
    listener::{accept, follow_links},
    operator::OperatorService,
    state::{Epoch, Remembered, StateDir, kept, roots::Kept, store::Slots},
    sync::{self, Dial, GatewayPaths, Subscribers, SyncService, ViaGateways},
    webhook::{self, Certificates, Webhook, keep_certificate},
};

/// Streams of one connection: a proxy has one, and a certificate request now and then.
const STREAMS: u32 = 32;
/// Largest message of a proxy: a subscription to thousands of services.
const PROXY_MESSAGE: usize = 1024 * 1024;
/// Largest message of a subscriber: the hashes of all that it knows.
const PEER_MESSAGE: usize = 8 * 1024 * 1024;
/// A connection that answers no ping for this long is cut.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// How long the streams of a connection that is too old may go on.
const AGE_GRACE: Duration = Duration::from_secs(30);
/// No answer to an operator takes longer: an invitation may have three gateways dial in turn.
const OPERATOR_TIMEOUT: Duration = Duration::from_secs(40);
/// Pause after a write that was refused, if nothing else calls for a look.
const REFUSED_RETRY: Duration = Duration::from_secs(30);
/// Pause after statuses could not be written.
const SINK_RETRY: Duration = Duration::from_secs(5);

/// For so much longer than a certificate lives a uid stays whose it was: clocks differ.
const OWNERS_MARGIN: Duration = Duration::from_secs(3600);

/// What all parts have in common.
struct Site {
    config: Config,
    own: OwnCluster,
    epoch: Epoch,
    issuer: Arc<Issuer>,
    material: MaterialReader,
    metrics: FederationMetrics,
    worlds: watch::Receiver<Arc<World>>,
    inputs: mpsc::Sender<Input>,
    /// Streams and link tasks; joined when federation stops.
    streams: TaskTracker,
    stop: Stop,
}

/// Starts everything. The tasks are to be run; the state directory stays locked until its
/// handle is dropped, which must be after them.
pub(crate) fn start(bound: Bound, stop: Stop) -> (Tasks, StateDir) {
    let (worlds_sender, worlds) = watch::channel(Arc::new(World::default()));
    let (cleared_sender, cleared) = watch::channel(Arc::new(World::default()));
    let (inputs, inputs_receiver) = mpsc::channel(INPUTS);
    let (applied, applied_reader) = applied();
    let (writer, reader) = bound.material;
    let site = Site {
        own: own_cluster(&bound.config),
        config: bound.config,
        epoch: bound.epoch,
        issuer: bound.issuer,
        material: reader,
        metrics: bound.metrics,
        worlds,
        inputs,
        streams: TaskTracker::new(),
        stop,
    };
    #[cfg(test)]
    if let Some(observer) = bound.observer {
        let _ = observer.send(site.worlds.clone());
    }
    let mut tasks = Tasks::new(site.stop.clone());
    let derived = Derived::new(&site, bound.ready);
    let dial = bound
        .dial
        .unwrap_or_else(|| site.via_gateways(derived.gateways.subscribe()));
    let federations = derived.federations.subscribe();
    let bundles = derived.bundles.subscribe();
    let Backend {
        source,
        sink,
        journal,
        declarations,
        place,
        nudge,
        links,
        leading,
        surroundings,
    } = bound.backend;
    let Leading { lead, task } = leading;
    if let Some(task) = task {
        // It ends by itself: once those that write have ended.
        tasks.essential("lease", done(task));
    }
    let linker = Arc::new(site.linker(
        bound.links,
        Arc::clone(&dial),
        links,
        applied_reader.clone(),
    ));
    site.follow_owner(&mut tasks, bound.taken_over);
    if let Some(surroundings) = surroundings {
        if let Some(listener) = bound.listeners.webhook {
            site.start_webhook(&mut tasks, listener, surroundings.clone(), lead.clone());
        }
        site.start_surroundings(&mut tasks, surroundings, lead.clone());
    }
    let uses = Arc::clone(&site.issuer.tokens).keep(site.stop.clone());
    tasks.essential("token-uses", done(while_led(lead.clone(), uses)));
    let wait = site.config.timers.export_wait;

    let book = linker.store.subscribe();
    let mut foundation = site.foundation(
        &mut tasks,
        (&bound.slots, &lead),
        bound.remembered,
        dial,
        book,
    );
    let (persist_journal, newest) = watch::channel(None);
    foundation.persist_journal = persist_journal;
    let (loaded, journals) = oneshot::channel();
    let writes = site.metrics.journal.clone();
    let keep = keep_journal(
        (journal, writes),
        loaded,
        newest,
        lead.clone(),
        site.stop.clone(),
    );
    tasks.essential("journal", done(keep));
    let state = State::new(
        foundation,
        Now {
            instant: Instant::now(),
            wall: SystemTime::now(),
        },
    );
    site.start_port(
        &mut tasks,
        bound.listeners.grpc,
        federations,
        cleared,
        applied,
        &linker,
    );
    let declared = (declarations, place, nudge);
    site.start_operator(&mut tasks, bound.listeners.operator, declared, &linker);
    site.background(&mut tasks, "links", join::keep(linker));
    tasks.background("admin", bound.admin.until(site.stop.clone()));
    if let Some(sockets) = bound.listeners.dns {
        let serving = sockets.serve(
            derived.zone.subscribe(),
            site.metrics.dns.clone(),
            site.stop.clone(),
        );
        tasks.essential("dns", done(serving));
    }
    let dumps = dumps::dumps(&site.config, site.worlds.clone());
    let debug = bound.listeners.debug;
    site.start_debug(&mut tasks, debug, dumps, &bound.readiness, &bound.registry);
    let renewing = keep_fresh(
        bound.credentials,
        writer,
        site.material.clone(),
        bundles,
        site.metrics.certificate_expiry.clone(),
    );
    site.background(&mut tasks, "own-certificate", renewing);
    site.background(
        &mut tasks,
        "authority",
        keep_authority(Arc::clone(&site.issuer.authority)),
    );
    site.background(&mut tasks, "derived", derived.follow(site.worlds.clone()));
    site.background(
        &mut tasks,
        "status",
        write_status(sink, site.worlds.clone(), lead, site.metrics.clone()),
    );
    let gate = gate(site.worlds.clone(), applied_reader, wait, cleared_sender);
    site.background(&mut tasks, "export-gate", gate);
    tasks.essential(
        "streams",
        join_streams(site.streams.clone(), site.stop.clone()),
    );
    let controller = controller::run(
        state,
        (source, journals),
        inputs_receiver,
        worlds_sender,
        site.stop.clone(),
    );
    tasks.essential("controller", controller);
    (tasks, bound.state)
}

impl Site {
    fn via_gateways(&self, gateways: watch::Receiver<Arc<GatewayPaths>>) -> Arc<dyn Dial> {
        let domain = self.own.trust_domain.clone();
        Arc::new(ViaGateways {
            domain,
            material: self.material.clone(),
            gateways,
        })
    }

    /// Ends this federation once another one writes what is kept: it could keep nothing any more.
    fn follow_owner(&self, tasks: &mut Tasks, mut taken_over: watch::Receiver<bool>) {
        let stop = self.stop.clone();
        tasks.essential("state", async move {
            tokio::select! {
                Ok(_) = taken_over.wait_for(|taken| *taken) => {
                    Err("another federation has taken over what this one keeps".into())
                }
                () = stop.draining() => Ok(()),
            }
        });
    }

    /// Puts sidecars into pods.
    fn start_webhook(
        &self,
        tasks: &mut Tasks,
        listener: TcpListener,
        surroundings: Surroundings,
        lead: watch::Receiver<Lead>,
    ) {
        let Some(webhook) = self.config.webhook.clone() else {
            return;
        };
        let authority = Arc::clone(&self.issuer.authority);
        let (sender, configs) = watch::channel(None);
        let certificates = Certificates {
            authority: Arc::clone(&authority),
            lifetime: self.config.timers.svid_lifetime,
        };
        self.background(
            tasks,
            "webhook-certificate",
            keep_certificate(certificates, sender),
        );
        let trusting = surroundings.trust_webhook(Arc::clone(&authority), lead);
        self.background(tasks, "webhook-trust", trusting);
        let config = self.config.clone();
        let injections = Arc::new(move || Injection {
            cluster: config.cluster.clone(),
            trust_domain: config.trust_domain.clone(),
            federation: webhook.federation.clone(),
            roots: authority.bundle().to_pem(),
            locality: config.locality.clone(),
            image: webhook.image.clone(),
            image_pull_policy: webhook.image_pull_policy.clone(),
        });
        let webhook = Webhook::new(configs, injections);
        let serving = webhook::serve(listener, webhook, self.stop.clone());
        tasks.essential("webhook", done(serving));
    }

    /// What the cluster is told of us, and tells.
    fn start_surroundings(
        &self,
        tasks: &mut Tasks,
        surroundings: Surroundings,
        lead: watch::Receiver<Lead>,
    ) {
        let authority = Arc::clone(&self.issuer.authority);
        let publishing = surroundings.clone().publish(authority, lead);
        self.background(tasks, "roots", publishing);
        let (told, mut newest) = watch::channel(Vec::new());
        let inputs = self.inputs.clone();
        self.background(tasks, "reach", async move {
            let telling = async {
                while newest.changed().await.is_ok() {
                    let addresses = newest.borrow_and_update().clone();
                    if inputs.send(Input::Reach(addresses)).await.is_err() {
                        return;
                    }
                }
            };
            tokio::join!(surroundings.follow_reach(told), telling);
        });
    }

    /// What links and unlinks.
    fn linker(
        &self,
        store: Arc<LinkStore>,
        peers: Arc<dyn Dial>,
        home: Box<dyn LinkHome>,
        applied: AppliedReader,
    ) -> Linker {
        Linker {
            own: self.own.clone(),
            authority: Arc::clone(&self.issuer.authority),
            worlds: self.worlds.clone(),
            store,
            home,
            dials: Arc::default(),
            peers,
            applied,
            in_hand: InHand::default(),
            clock_skew: self.config.timers.tolerated_skew(),
        }
    }

    /// What the controller starts with, and the tasks that keep what must outlive it.
    fn foundation(
        &self,
        tasks: &mut Tasks,
        (slots, lead): (&Slots, &watch::Receiver<Lead>),
        remembered: Remembered,
        dial: Arc<dyn Dial>,
        book: watch::Receiver<Arc<LinkBook>>,
    ) -> Foundation {
        let timers = &self.config.timers;
        let mut peers = PeerSettings::new(self.config.clusterset.clone());
        peers.stale_ttl = self.config.stale_ttl;
        peers.silence = timers.sync_silence;
        peers.max_skew = timers.tolerated_skew();
        let troubles = &slots.troubles;
        let (persist, newest) = watch::channel(Arc::new(remembered.registrations.clone()));
        let keep = kept::keep(
            slots.registrations.clone(),
            troubles.clone(),
            newest,
            self.stop.clone(),
        );
        tasks.essential("registrations", done(while_led(lead.clone(), keep)));
        let roots = remembered.announced.iter().map(Kept::from).collect();
        let (persist_roots, newest) = watch::channel(Arc::new(roots));
        let keep = kept::keep(
            slots.roots.clone(),
            troubles.clone(),
            newest,
            self.stop.clone(),
        );
        tasks.essential("announced-roots", done(while_led(lead.clone(), keep)));
        let (persist_owned, newest) = watch::channel(Arc::new(remembered.owned.clone()));
        let keep = kept::keep(
            slots.uids.clone(),
            troubles.clone(),
            newest,
            self.stop.clone(),
        );
        tasks.essential("uids", done(while_led(lead.clone(), keep)));
        let (persist_marks, newest) = watch::channel(Arc::new(remembered.marks.clone()));
        let keep = kept::keep(
            slots.capacity.clone(),
            troubles.clone(),
            newest,
            self.stop.clone(),
        );
        tasks.essential("capacity", done(while_led(lead.clone(), keep)));
        let (persist_ports, newest) = watch::channel(Arc::new(remembered.import_ports.clone()));
        let (kept, kept_ports) = watch::channel(Arc::new(remembered.import_ports.clone()));
        let written = move |ports| drop(kept.send_replace(ports));
        let slot = slots.import_ports.clone();
        let stop = self.stop.clone();
        let keep = kept::keep_telling(slot, troubles.clone(), newest, written, stop);
        tasks.essential("import-ports", done(while_led(lead.clone(), keep)));
        Foundation {
            own: self.own.clone(),
            own_bundle: self.issuer.authority.bundle(),
            failback: self.config.failback,
            derives: match self.config.home {
                Home::Kubernetes { .. } => Some(self.config.locality.clone()),
                Home::Directory { .. } => None,
            },
            peers,
            lease: timers.lease,
            keep_owners: timers.svid_lifetime + timers.lease + OWNERS_MARGIN,
            restarted: self.epoch.restarted,
            remembered,
            import_ports: self.config.import_ports.clone(),
            context: sync::Context {
                own: self.own.clone(),
                dial,
                material: self.material.clone(),
                inputs: self.inputs.clone(),
                silence: timers.sync_silence,
                metrics: self.metrics.clone(),
            },
            tasks: self.streams.clone(),
            metrics: self.metrics.clone(),
            persist,
            persist_roots,
            persist_owned,
            persist_marks,
            persist_ports,
            kept_ports,
            book,
            persist_journal: watch::Sender::new(None),
            troubles: troubles.clone(),
        }
    }

    /// The port for proxies and peers.
    fn start_port(
        &self,
        tasks: &mut Tasks,
        port: TcpListener,
        federations: watch::Receiver<BTreeSet<SpiffeId>>,
        cleared: watch::Receiver<Arc<World>>,
        applied: AppliedWriter,
        linker: &Arc<Linker>,
    ) {
        let (configs, newest) = watch::channel(None);
        let domain = self.own.trust_domain.clone();
        let following = follow_links(domain.clone(), self.material.clone(), federations, configs);
        self.background(tasks, "tls", following);
        let (joins, inbound) = join::doors();
        let subscribers = Subscribers::default();
        let stop = self.stop.clone();
        let (accepting, incoming) = accept(port, domain, newest, subscribers.clone(), joins, stop);
        self.background(tasks, "accept", accepting);
        let joining = join::serve(Arc::clone(linker), inbound, self.stop.clone());
        self.background(tasks, "joins", joining);
        let dials = Arc::clone(&linker.dials);
        let discovery = DiscoveryService::new(self.discovery(applied, dials), self.streams.clone());
        let sync = SyncService::new(
            self.sync(cleared, linker),
            subscribers,
            self.streams.clone(),
        );
        let identity = IdentityService(Arc::clone(&self.issuer));
        let stop = self.stop.clone();
        let server = Server::builder()
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE))
            .max_concurrent_streams(STREAMS)
            .max_connection_age(self.connection_age())
            .max_connection_age_grace(AGE_GRACE)
            .add_service(IdentityServer::new(identity).max_decoding_message_size(64 * 1024))
            .add_service(DiscoveryServer::new(discovery).max_decoding_message_size(PROXY_MESSAGE))
            .add_service(SyncServer::new(sync).max_decoding_message_size(PEER_MESSAGE));
        tasks.essential("grpc", async move {
            let stopping = async move { stop.draining().await };
            server
                .serve_with_incoming_shutdown(incoming, stopping)
                .await
                .map_err(BoxError::from)
        });
    }

    /// Certificates are renewed at half their life, so at least half of one is left at any
    /// handshake; 80 % of that is how long a connection may rest on it.
    fn connection_age(&self) -> Duration {
        self.config.timers.svid_lifetime.mul_f64(0.5 * 0.8)
    }

    fn discovery(&self, applied: AppliedWriter, dials: Arc<Dials>) -> discovery::Shared {
        discovery::Shared {
            cluster: self.own.cluster.clone(),
            domain: self.own.trust_domain.clone(),
            issuer: Arc::clone(&self.issuer),
            inputs: self.inputs.clone(),
            worlds: self.worlds.clone(),
            applied,
            silence: self.config.timers.lease,
            metrics: self.metrics.clone(),
            dials,
            locality: self.config.locality.clone(),
            stop: self.stop.clone(),
        }
    }

    fn sync(&self, cleared: watch::Receiver<Arc<World>>, linker: &Arc<Linker>) -> sync::Shared {
        let timers = &self.config.timers;
        sync::Shared {
            own: self.own.clone(),
            epoch: self.epoch.number,
            worlds: cleared,
            heartbeat: timers.heartbeat,
            // An acknowledgement takes a heartbeat and two ways through the tunnel.
            silence: timers.sync_silence * 2,
            clock_skew: timers.tolerated_skew(),
            metrics: self.metrics.clone(),
            linker: Arc::clone(linker),
            stop: self.stop.clone(),
        }
    }

    fn start_operator(
        &self,
        tasks: &mut Tasks,
        socket: UnixListener,
        (declarations, place, nudge): (AnyDeclarations, String, Arc<Notify>),
        linker: &Arc<Linker>,
    ) {
        let service = OperatorService {
            linker: Arc::clone(linker),
            issuer: Arc::clone(&self.issuer),
            inputs: self.inputs.clone(),
            worlds: self.worlds.clone(),
            own: self.own.cluster.clone(),
            declarations,
            place,
            nudge,
            changing: Mutex::default(),
        };
        let stop = self.stop.clone();
        let server = Server::builder()
            .timeout(OPERATOR_TIMEOUT)
            .add_service(OperatorServer::new(service).max_decoding_message_size(64 * 1024));
        tasks.essential("operator", async move {
            let incoming = UnixListenerStream::new(socket);
            let stopping = async move { stop.draining().await };
            server
                .serve_with_incoming_shutdown(incoming, stopping)
                .await
                .map_err(BoxError::from)
        });
    }

    fn start_debug(
        &self,
        tasks: &mut Tasks,
        listener: TcpListener,
        dumps: Dumps,
        readiness: &Readiness,
        registry: &Registry,
    ) {
        let (readiness, registry) = (readiness.clone(), registry.clone());
        let admin = Admin {
            readiness,
            registry,
            dumps: Some(dumps),
        };
        tasks.background("debug", admin::serve(listener, admin, self.stop.clone()));
    }

    /// A task without which federation would rot silently: its end is the process's. Those
    /// that have no end of their own are ended by the drain.
    fn background(
        &self,
        tasks: &mut Tasks,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        let stop = self.stop.clone();
        tasks.essential(name, async move {
            tokio::select! {
                () = task => {}
                () = stop.draining() => {}
            }
            Ok(())
        });
    }
}

/// Ends with `task`, and the lease, which is given up once nobody listens to it, not before: who
/// leads next reads what this task writes last.
async fn while_led<T>(lead: watch::Receiver<Lead>, task: impl Future<Output = T> + Send) -> T {
    let done = task.await;
    drop(lead);
    done
}

async fn done(task: impl Future<Output = ()>) -> Result<(), BoxError> {
    task.await;
    Ok(())
}

impl Derived {
    fn new(site: &Site, ready: Gate) -> Self {
        Self {
            bundles: watch::Sender::new(site.material.current().bundles().clone()),
            federations: watch::Sender::default(),
            gateways: watch::Sender::default(),
            zone: watch::Sender::default(),
            ready,
        }
    }

    async fn follow(self, mut worlds: watch::Receiver<Arc<World>>) {
        while worlds.changed().await.is_ok() {
            let world = Arc::clone(&worlds.borrow_and_update());
            replace(&self.bundles, world.bundles.clone());
            replace(
                &self.federations,
                world.federations().map(|(id, _)| id.clone()).collect(),
            );
            replace(&self.gateways, Arc::new(world.gateway_paths()));
            replace(&self.zone, Some(Arc::clone(&world.desired.zone)));
            self.ready.open();
        }
    }
}

/// Wakes readers only for what differs.
fn replace<T: PartialEq>(sender: &watch::Sender<T>, next: T) {
    sender.send_if_modified(|last| {
        let news = *last != next;
        *last = next;
        news
    });
}

/// What is derived from each world for those that need little of it.
struct Derived {
    bundles: watch::Sender<BundleSet>,
    federations: watch::Sender<BTreeSet<SpiffeId>>,
    gateways: watch::Sender<Arc<GatewayPaths>>,
    zone: watch::Sender<dns::Newest>,
    ready: Gate,
}

/// Keeps what is written what the newest world says, while this replica leads; a full disk or a
/// lost API server delays it and nothing else.
async fn write_status(
    mut sink: impl Sink,
    mut worlds: watch::Receiver<Arc<World>>,
    mut lead: watch::Receiver<Lead>,
    metrics: FederationMetrics,
) {
    let mut failing = false;
    let mut refused = Vec::new();
    loop {
        tokio::select! {
            changed = worlds.changed() => if changed.is_err() { return },
            () = sink.disturbed() => {}
            // A right may have been granted, or a quota raised, of which nothing here tells.
            () = tokio::time::sleep(REFUSED_RETRY), if !refused.is_empty() => {}
            // Where nobody is elected it never changes.
            Ok(()) = lead.changed() => {}
        }
        let world = Arc::clone(&worlds.borrow_and_update());
        // Before the first plan nothing is known, which is not that nothing should be.
        if world.generation == 0 || !lead.borrow_and_update().may_write(Instant::now()) {
            continue;
        }
        match apply(&mut sink, &world, &mut lead).await {
            // Somebody else leads now.
            None => {}
            Some(Ok(applied)) => {
                metrics.applied.inc();
                let count = i64::try_from(applied.refused.len()).unwrap_or(i64::MAX);
                metrics.apply_refused.set(count);
                if std::mem::take(&mut failing) {
                    tracing::info!("statuses are written again");
                }
                if applied.refused != refused {
                    for (what, why) in &applied.refused {
                        tracing::warn!(what, why, "is refused");
                    }
                    refused = applied.refused;
                }
            }
            Some(Err(error)) => {
                metrics.not_applied.inc();
                if !std::mem::replace(&mut failing, true) {
                    tracing::error!(error = chain(&error), "statuses cannot be written");
                }
                tokio::time::sleep(SINK_RETRY).await;
                worlds.mark_changed();
            }
        }
    }
}

/// Writes one world; `None` where we stopped leading in between.
async fn apply(
    sink: &mut impl Sink,
    world: &World,
    lead: &mut watch::Receiver<Lead>,
) -> Option<Result<Applied, SinkError>> {
    let removals = match world.settled {
        true => Removals::Made,
        false => Removals::Held,
    };
    tokio::select! {
        biased;
        Ok(_) = lead.wait_for(|lead| !lead.leading) => None,
        applied = sink.apply(&world.desired, removals) => Some(applied),
    }
}

/// Waits for all streams and link tasks after the drain; each ends by itself then.
async fn join_streams(streams: TaskTracker, stop: Stop) -> Result<(), BoxError> {
    stop.draining().await;
    streams.close();
    streams.wait().await;
    Ok(())
}

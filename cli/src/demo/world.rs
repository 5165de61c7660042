//! The two clusters, running: processes, wire, load and what they tell.

use std::{
    collections::HashMap,
    ffi::OsString,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use linkspan_api::v1;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior, interval, sleep},
};

use super::{
    ports::Ports,
    samples::{Instances, Samples, Side, Window},
    supervisor::{Ended, Spec, Supervisor},
    topology::{CHECKOUTS, Cluster, GATEWAYS, Gateway, NAMESPACE, Workload},
    wire::Wire,
};
use crate::{
    apps::{
        echo, grpc,
        report::{Batch, Moment},
    },
    operator::Operator,
    secret_file::SecretFile,
};

/// How often federations are asked for their status.
const ASK_EVERY: Duration = Duration::from_millis(200);
/// How often a condition is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(25);
/// How long the clusters may take to come up, on a busy machine.
const START_PATIENCE: Duration = Duration::from_secs(45);
/// How long a call to an echo may take.
const ECHO_PATIENCE: Duration = Duration::from_secs(5);
/// Reports of the load on their way: ten a second; when full the frontend waits.
const REPORTS: usize = 64;
/// What the parts log: what operators should know, no line per request.
const LOG_FILTER: &str = "info,access=warn";

/// How much a frontend calls.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Requests per second.
    pub rate: u32,
    /// HTTP/2 connections.
    pub connections: u16,
}

/// What one federation last said; none while it does not answer.
pub type Status = watch::Receiver<Option<Arc<v1::StatusResponse>>>;

/// Everything that runs.
pub struct World {
    /// All processes.
    pub supervisor: Supervisor,
    /// The wire between the gateways.
    pub wire: Wire,
    /// East, then west.
    pub clusters: [Cluster; 2],
    view: View,
    nonces: HashMap<String, String>,
}

/// What can be seen of the world without touching it.
#[derive(Clone)]
pub struct View {
    /// Of east's and of west's frontend.
    samples: [Arc<Mutex<Samples>>; 2],
    instances: Arc<Mutex<Instances>>,
    statuses: [Status; 2],
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl View {
    /// What one federation last said.
    #[must_use]
    pub fn status(&self, side: Side) -> Option<Arc<v1::StatusResponse>> {
        self.statuses[index(side)].borrow().clone()
    }

    /// The link to the peer as a federation sees it.
    #[must_use]
    pub fn link(&self, side: Side) -> Option<v1::LinkStatus> {
        let peer = side.other().name();
        let status = self.status(side)?;
        status.links.iter().find(|l| l.cluster == peer).cloned()
    }

    /// Ready `checkout` endpoints of a cluster, as east sees them.
    #[must_use]
    pub fn ready(&self, seen_by: Side, of: Side) -> u32 {
        let Some(status) = self.status(seen_by) else {
            return 0;
        };
        let is_checkout =
            |key: &v1::ServiceKey| key.namespace == NAMESPACE && key.name == "checkout";
        let mut services = status.services.iter();
        let service = services.find(|service| service.key.as_ref().is_some_and(is_checkout));
        let clusters = service.map(|service| service.clusters.iter());
        let cluster = clusters.and_then(|mut all| all.find(|c| c.cluster == of.name()));
        cluster.map_or(0, |cluster| cluster.ready)
    }

    /// The requests of east's frontend that began within `[from, to)`.
    #[must_use]
    pub fn window(&self, from: Moment, to: Moment) -> Window {
        lock(&self.samples[0]).window(from, to)
    }

    /// Those of west's frontend, which has all it needs in its own cluster.
    #[must_use]
    pub fn neighbour(&self, from: Moment, to: Moment) -> Window {
        lock(&self.samples[1]).window(from, to)
    }

    /// The newest requests of east's frontend of which all are settled.
    #[must_use]
    pub fn recent(&self, span: Duration) -> Window {
        let samples = lock(&self.samples[0]);
        let to = samples.settled_before();
        samples.window(to.minus(span), to)
    }

    /// Every request that began before this moment is settled.
    #[must_use]
    pub fn settled_before(&self) -> Moment {
        let [east, west] = &self.samples;
        let (east, west) = (lock(east).settled_before(), lock(west).settled_before());
        east.min(west)
    }

    /// Both frontends have ended and everything is settled.
    #[must_use]
    pub fn load_ended(&self) -> bool {
        self.samples.iter().all(|samples| lock(samples).ended())
    }
}

fn index(side: Side) -> usize {
    match side {
        Side::East => 0,
        Side::West => 1,
    }
}

/// Waits until a condition holds.
///
/// # Errors
/// If it does not within `limit`; the message says what was waited for.
pub async fn until<T>(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> Option<T>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + limit;
    let mut ticks = interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if let Some(value) = condition() {
            return Ok(value);
        }
        anyhow::ensure!(Instant::now() < deadline, "not within {limit:?}: {what}");
    }
}

impl World {
    /// Starts everything but the load and waits until both clusters see each other whole.
    ///
    /// # Errors
    /// If anything does not start in time.
    pub async fn start(seed: u64) -> anyhow::Result<(Self, mpsc::Receiver<Ended>)> {
        let (supervisor, ends) = Supervisor::start().await?;
        let mut ports = Ports::new(seed);
        let dir = supervisor.dir().to_owned();
        let clusters = [
            Cluster::plan(Side::East, &dir, &mut ports)?,
            Cluster::plan(Side::West, &dir, &mut ports)?,
        ];
        let ways: Vec<_> = clusters.iter().flat_map(Cluster::ways).collect();
        let wire = Wire::start(&ways)?;
        let statuses = [follow(clusters[0].socket()), follow(clusters[1].socket())];
        let view = View {
            samples: Default::default(),
            instances: Arc::default(),
            statuses,
        };
        let world = Self {
            supervisor,
            wire,
            clusters,
            view,
            nonces: HashMap::new(),
        };
        Ok((world, ends))
    }

    /// Brings the clusters up, from the federations to the last sidecar.
    ///
    /// # Errors
    /// If anything does not come up in time.
    pub async fn bring_up(&mut self, say: &impl Fn(&str)) -> anyhow::Result<()> {
        say("starting the federations of east and west");
        for side in Side::BOTH {
            self.cluster(side).write_federation()?;
            self.start_federation(side)?;
        }
        self.write_roots().await?;
        say("starting gateways, applications and sidecars");
        for side in Side::BOTH {
            self.make_tokens(side).await?;
            let cluster = self.cluster(side).clone();
            for gateway in &cluster.gateways {
                cluster.write_gateway(gateway)?;
                self.start_gateway(side, gateway)?;
            }
            for workload in &cluster.workloads {
                cluster.write_sidecar(workload)?;
                self.start_workload(workload)?;
            }
        }
        say("linking east to west by an invitation");
        self.link().await?;
        say("waiting until the clusters see each other");
        let view = self.view();
        until("both clusters whole and linked", START_PATIENCE, || {
            let whole = Side::BOTH.iter().all(|side| is_whole(&view, *side));
            whole.then_some(())
        })
        .await
    }

    /// What can be seen.
    #[must_use]
    pub fn view(&self) -> View {
        self.view.clone()
    }

    /// One of the clusters.
    #[must_use]
    pub fn cluster(&self, side: Side) -> &Cluster {
        &self.clusters[index(side)]
    }

    async fn write_roots(&self) -> anyhow::Result<()> {
        for cluster in &self.clusters {
            let mut operator = operator_of(cluster).await?;
            let bundle = operator.bundle().await.map_err(in_words)?;
            cluster.write_roots(&bundle.pem)?;
        }
        Ok(())
    }

    /// West invites, east accepts: what `linkspan link invite` and `link accept` do.
    async fn link(&self) -> anyhow::Result<()> {
        let view = self.view();
        until("gateways ready to be linked", START_PATIENCE, || {
            let ready = Side::BOTH.iter().all(|side| gateways_ready(&view, *side));
            ready.then_some(())
        })
        .await?;
        let [east, west] = &self.clusters;
        let invite = v1::InviteRequest {
            peer: east.side.name().to_owned(),
            // Here both clusters are on one machine.
            allow_loopback: true,
            ..Default::default()
        };
        let invited = operator_of(west).await?.invite(invite).await;
        let accept = v1::AcceptRequest {
            invitation: invited.map_err(in_words)?.invitation,
            allow_loopback: true,
            ..Default::default()
        };
        let accepted = operator_of(east).await?.accept(accept).await;
        accepted.map(drop).map_err(in_words)
    }

    async fn make_tokens(&self, side: Side) -> anyhow::Result<()> {
        let cluster = self.cluster(side);
        let mut operator = operator_of(cluster).await?;
        for (namespace, account) in cluster.accounts() {
            let ttl = Duration::from_secs(24 * 3600);
            let reply = operator.create_token(namespace, account, ttl).await;
            let file = SecretFile::new(&cluster.token(account))?;
            file.write(&reply.map_err(in_words)?.token)?;
        }
        Ok(())
    }

    /// Starts a federation.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start_federation(&mut self, side: Side) -> anyhow::Result<()> {
        let cluster = self.cluster(side);
        let config = cluster.dir.join("federation.yaml");
        let name = cluster.federation_process();
        self.start_part(name, "federation", config)
    }

    /// Starts a gateway.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start_gateway(&mut self, side: Side, gateway: &Gateway) -> anyhow::Result<()> {
        let file = format!("{}.yaml", gateway.replica);
        let config = self.cluster(side).dir.join(file);
        self.start_part(gateway.process.clone(), "gateway", config)
    }

    /// Starts an application (not the load) and its sidecar.
    ///
    /// # Errors
    /// If one of them cannot be started.
    pub fn start_workload(&mut self, workload: &Workload) -> anyhow::Result<()> {
        if workload.app != "frontend" {
            self.start_app(workload)?;
        }
        let cluster = self.cluster(workload.side);
        let config = cluster.dir.join(format!("{}.yaml", workload.name));
        self.start_part(workload.sidecar_process(), "sidecar", config)
    }

    fn start_part(&mut self, name: String, part: &str, config: PathBuf) -> anyhow::Result<()> {
        let arguments: [OsString; 6] = [
            "run".into(),
            "--log".into(),
            LOG_FILTER.into(),
            part.into(),
            "--config".into(),
            config.into(),
        ];
        self.supervisor.spawn(&Spec::new(name, arguments))
    }

    /// Each start has a nonce of its own, so that answers tell the processes apart.
    fn start_app(&mut self, workload: &Workload) -> anyhow::Result<()> {
        let nonce = format!("{:016x}", rand::random::<u64>());
        let mut arguments = vec![
            "app".to_owned(),
            workload.app.to_owned(),
            "--listen".to_owned(),
            format!("127.0.0.1:{}", workload.app_port),
            "--instance".to_owned(),
            nonce.clone(),
        ];
        if workload.app == "checkout" {
            let cluster = workload.side.name().to_owned();
            arguments.extend(["--cluster".to_owned(), cluster]);
            arguments.extend(["--name".to_owned(), workload.name.clone()]);
        }
        lock(&self.view.instances).started(&nonce, workload.side);
        let process = workload.app_process();
        self.supervisor.spawn(&Spec::new(&process, arguments))?;
        self.nonces.insert(process, nonce);
        Ok(())
    }

    /// Starts a frontend; what it reports is seen in the view.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start_load(&mut self, side: Side, load: Load) -> anyhow::Result<()> {
        let frontend = self.frontend(side)?.clone();
        let target = frontend.outbound("checkout");
        let target = target.context("the frontend calls no checkout")?;
        let (lines, reports) = mpsc::channel(REPORTS);
        let arguments = [
            "app".to_owned(),
            "frontend".to_owned(),
            format!("--target={target}"),
            format!("--identity={}", frontend.spiffe_id()),
            format!("--rate={}", load.rate),
            format!("--connections={}", load.connections),
        ];
        let mut spec = Spec::new(frontend.app_process(), arguments);
        spec.lines = Some(lines);
        self.supervisor.spawn(&spec)?;
        let samples = Arc::clone(&self.view.samples[index(side)]);
        tokio::spawn(take_in(reports, samples, Arc::clone(&self.view.instances)));
        Ok(())
    }

    /// Ends both frontends once what they have in flight is settled.
    ///
    /// # Errors
    /// If that takes longer than `patience`.
    pub async fn finish_load(&mut self, patience: Duration) -> anyhow::Result<()> {
        for side in Side::BOTH {
            let frontend = self.frontend(side)?.app_process();
            if self.supervisor.is_running(&frontend) {
                self.supervisor.finish(&frontend, patience).await?;
            }
        }
        let view = self.view();
        let ended = || view.load_ended().then_some(());
        until("the last reports", patience, ended).await
    }

    fn frontend(&self, side: Side) -> anyhow::Result<&Workload> {
        let mut frontends = self.cluster(side).running("frontend");
        frontends.next().context("there is no frontend")
    }

    /// Kills an application and its sidecar, as when a pod's node dies, and sees them gone.
    ///
    /// # Errors
    /// If one of them does not go.
    pub async fn kill_workload(&mut self, workload: &Workload) -> anyhow::Result<()> {
        let app = workload.app_process();
        self.supervisor.kill(&app).await?;
        if let Some(nonce) = self.nonces.remove(&app) {
            lock(&self.view.instances).ended(&nonce, Moment::now());
        }
        self.supervisor.kill(&workload.sidecar_process()).await?;
        Ok(())
    }

    /// Calls the gRPC and the TCP echo once each from east's frontend; tells who answered.
    ///
    /// # Errors
    /// If one of them does not answer, or wrongly.
    pub async fn call_echoes(&self) -> anyhow::Result<[Side; 2]> {
        let frontend = self.frontend(Side::East)?;
        let at = |service| {
            let address = frontend.outbound(service);
            address.with_context(|| format!("the frontend calls no {service}"))
        };
        let (grpc_at, tcp_at) = (at("grpc-echo")?, at("tcp-echo")?);
        let begun = Moment::now();
        let message = format!("{:032x}", rand::random::<u128>());
        // More than any buffer on the way holds.
        let bytes: Vec<u8> = (0..300_000_u32).map(|i| (i % 251) as u8).collect();
        let grpc = tokio::time::timeout(ECHO_PATIENCE, grpc::call(grpc_at, &message));
        let grpc = grpc.await.context("gRPC echo: no answer")?;
        let tcp = tokio::time::timeout(ECHO_PATIENCE, echo::call(tcp_at, &bytes));
        let tcp = tcp.await.context("TCP echo: no answer")?;
        let instances = lock(&self.view.instances);
        let side = |what: &str, nonce: anyhow::Result<String>| {
            let nonce = nonce.with_context(|| what.to_owned())?;
            let side = instances.side_of(&nonce, begun);
            side.map_err(|why| anyhow::anyhow!("{what}: {why}"))
        };
        Ok([side("gRPC echo", grpc)?, side("TCP echo", tcp)?])
    }
}

/// Whether all gateways of a cluster could be dialled, and dial.
fn gateways_ready(view: &View, side: Side) -> bool {
    let status = view.status(side);
    let ready = status.map(|status| status.gateways.iter().filter(|of| of.ready).count());
    ready == Some(GATEWAYS)
}

/// Whether a cluster's federation sees both clusters' endpoints, its gateways and the link.
pub(super) fn is_whole(view: &View, side: Side) -> bool {
    let Some(status) = view.status(side) else {
        return false;
    };
    let gateways = status.gateways.iter().filter(|gateway| {
        gateway.ready && gateway.up.iter().any(|peer| peer == side.other().name())
    });
    let all = u32::try_from(CHECKOUTS).unwrap_or_default();
    let connected = |w: &v1::WorkloadStatus| w.ready && w.presence == "connected";
    Side::BOTH.iter().all(|of| view.ready(side, *of) == all)
        && gateways.count() == GATEWAYS
        && status.workloads.iter().all(connected)
        && view.link(side).is_some_and(|link| link.usable)
}

fn in_words(failure: crate::exit::Failure) -> anyhow::Error {
    use crate::exit::Failure;
    match failure {
        Failure::Failed(error)
        | Failure::Usage(error)
        | Failure::Unreachable(error)
        | Failure::TimedOut(error)
        | Failure::NotLinked(_, error) => error,
        Failure::Reported | Failure::Interrupted => anyhow::anyhow!("stopped"),
    }
}

/// Connects to a federation that may still be starting.
async fn operator_of(cluster: &Cluster) -> anyhow::Result<Operator> {
    let deadline = Instant::now() + START_PATIENCE;
    loop {
        match Operator::connect(cluster.socket()).await {
            Ok(operator) => return Ok(operator),
            Err(failure) if Instant::now() >= deadline => return Err(in_words(failure)),
            Err(_) => sleep(LOOK_EVERY).await,
        }
    }
}

/// Asks a federation for its status again and again, for as long as anybody looks.
fn follow(socket: PathBuf) -> Status {
    let (told, status) = watch::channel(None);
    tokio::spawn(async move {
        let mut ticks = interval(ASK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut operator = None;
        while !told.is_closed() {
            ticks.tick().await;
            if operator.is_none() {
                operator = Operator::connect(socket.clone()).await.ok();
            }
            let answer = match &mut operator {
                Some(operator) => operator.status().await.ok(),
                None => None,
            };
            if answer.is_none() {
                operator = None;
            }
            told.send_replace(answer.map(Arc::new));
        }
    });
    status
}

/// Takes in what the frontend reports. A line that is no report is a bug of ours; the samples
/// that it held are missed when their step waits for them.
async fn take_in(
    mut reports: mpsc::Receiver<String>,
    samples: Arc<Mutex<Samples>>,
    instances: Arc<Mutex<Instances>>,
) {
    while let Some(line) = reports.recv().await {
        if let Ok(batch) = serde_json::from_str::<Batch>(&line) {
            lock(&samples).add(batch, &lock(&instances));
        }
    }
}

//! Clusters of real processes: federation, gateways, sidecars, each started from the binary
//! that a user would run, on this host or on a machine of the [`Lab`](crate::lab::Lab).

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use linkspan::{
    demo::ports::Ports,
    lifeline,
    operator::{Operator, SOCKET_NAME},
};
use linkspan_api::v1;
use linkspan_dataplane::identity::{FederationClient, RawFederation};
use linkspan_runtime::config::Problems;
use linkspan_trust::{Bundle, TrustDomain};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

/// Name of the clusterset of all of these.
const CLUSTERSET: &str = "test";
/// Namespace of all workloads.
pub const NAMESPACE: &str = "shop";
/// How long anything may take to come up on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where processes run: makes the command that starts a program there.
pub trait Machine {
    /// The address that the processes listen on.
    fn address(&self) -> IpAddr;
    /// A port on which nobody listens yet; each is handed out once.
    fn port(&self) -> Result<u16>;
    /// A command that will run there.
    fn command(&self, program: &Path) -> Command;
    /// Where peers reach a tunnel that listens on `tunnel`; none if only we dial.
    ///
    /// # Errors
    /// When there is no way to it.
    fn advertised(&self, tunnel: SocketAddr) -> Result<Option<SocketAddr>> {
        Ok(Some(tunnel))
    }
}

/// This machine: everything on loopback.
#[derive(Debug, Clone)]
pub struct Host {
    ports: Arc<Mutex<Ports>>,
}

impl Host {
    /// Ports are handed out from a place that `seed` decides; clones share them.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            ports: Arc::new(Mutex::new(Ports::new(seed))),
        }
    }
}

impl Machine for Host {
    fn address(&self) -> IpAddr {
        Ipv4Addr::LOCALHOST.into()
    }

    fn port(&self) -> Result<u16> {
        self.ports
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    fn command(&self, program: &Path) -> Command {
        Command::new(program)
    }
}

/// A service that a cluster declares.
#[derive(Debug, Clone, Copy)]
pub struct Service {
    /// Its name; workloads with the same `app` label are its endpoints.
    pub name: &'static str,
    /// Kubernetes' `appProtocol`.
    pub app_protocol: &'static str,
    /// Whether linked clusters may use it.
    pub exported: bool,
}

/// The only port of every [`Service`] here.
pub const PORT: u16 = 80;

/// A cluster that runs. Dropping it kills its processes.
pub struct Cluster<M> {
    id: &'static str,
    region: &'static str,
    zone: &'static str,
    machine: M,
    binary: PathBuf,
    dir: TempDir,
    federation: SocketAddr,
    tunnels: Vec<SocketAddr>,
    egresses: Vec<SocketAddr>,
    /// The debug faces of sidecars, by name.
    debug_faces: BTreeMap<String, SocketAddr>,
    /// Where servers without a sidecar listen, by name.
    servers: BTreeMap<String, SocketAddr>,
    services: Vec<Service>,
    /// Addresses that stand for services.
    vips: BTreeMap<String, Vec<IpAddr>>,
    /// What proxies tell of, from now on.
    telemetry: Option<Value>,
    processes: BTreeMap<String, Process>,
}

/// What a command said, and how it ended.
#[derive(Debug, Clone)]
pub struct Said {
    /// Its exit code; none if a signal ended it.
    pub code: Option<i32>,
    /// Its standard output.
    pub out: String,
    /// Its standard error.
    pub err: String,
}

impl Said {
    /// Its standard output, if it succeeded.
    ///
    /// # Errors
    /// With all it said, if it did not.
    pub fn success(self) -> Result<String> {
        match self.code {
            Some(0) => Ok(self.out),
            _ => bail!("{self:?}"),
        }
    }
}

struct Process {
    arguments: Vec<String>,
    log: PathBuf,
    child: Child,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl<M: Machine> Cluster<M> {
    /// Starts a federation that declares and exports `services`, and `gateways` gateways.
    ///
    /// # Errors
    /// When a process does not come up; the message ends with its log.
    pub async fn start(
        id: &'static str,
        machine: M,
        services: &[Service],
        gateways: usize,
    ) -> Result<Self> {
        Self::start_with_vips(id, machine, services, gateways, &[]).await
    }

    /// The same, with addresses that stand for services.
    ///
    /// # Errors
    /// See [`start`](Self::start).
    pub async fn start_with_vips(
        id: &'static str,
        machine: M,
        services: &[Service],
        gateways: usize,
        vips: &[(&str, &[IpAddr])],
    ) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let federation = SocketAddr::new(machine.address(), machine.port()?);
        let mut cluster = Self {
            id,
            region: id,
            zone: "a",
            machine,
            binary: binary()?,
            dir,
            federation,
            tunnels: Vec::new(),
            egresses: Vec::new(),
            debug_faces: BTreeMap::new(),
            servers: BTreeMap::new(),
            services: services.to_vec(),
            vips: vips
                .iter()
                .map(|(name, of)| (format!("{NAMESPACE}/{name}"), of.to_vec()))
                .collect(),
            telemetry: None,
            processes: BTreeMap::new(),
        };
        cluster.start_federation().await?;
        for number in 1..=gateways {
            cluster.start_gateway(number).await?;
        }
        Ok(cluster)
    }

    /// Puts all workloads from now on into this region; it is named after the cluster otherwise.
    #[must_use]
    pub fn in_region(mut self, region: &'static str) -> Self {
        self.region = region;
        self
    }

    /// Its cluster id.
    #[must_use]
    pub fn id(&self) -> &'static str {
        self.id
    }

    /// Puts all workloads from now on into this zone; it is `a` otherwise.
    pub fn move_to_zone(&mut self, zone: &'static str) {
        self.zone = zone;
    }

    async fn start_federation(&mut self) -> Result<()> {
        for dir in ["state", "resources"] {
            fs::create_dir_all(self.dir.path().join(dir))?;
        }
        for service in self.services.clone() {
            self.write_resource(service.name, &service_yaml(service))?;
            if service.exported {
                self.write_resource(&format!("export-{}", service.name), &export_yaml(service))?;
            }
        }
        let config = json!({
            "cluster": self.id,
            "clusterset": CLUSTERSET,
            "stateDir": self.dir.path().join("state"),
            "resourcesDir": self.dir.path().join("resources"),
            "listen": self.federation,
            "adminListen": self.listen()?,
            "debugListen": self.debug()?,
            "failback": {"hold": "1s", "ramp": "1s"},
            "clustersetIPs": self.vips,
        });
        self.run("federation", "federation", &config)?;
        let bundle = self.wait_for_bundle().await?;
        fs::write(self.roots(), bundle.pem)?;
        Ok(())
    }

    /// Starts one more gateway, which serves clients without a sidecar at that address.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn serve_unmeshed(&mut self, number: usize, listen: IpAddr) -> Result<()> {
        let imports = json!({"listen": listen, "accessLog": true});
        self.start_gateway_with(number, Some(imports)).await
    }

    /// Has the proxies that start from now on write access logs, and send traces to this collector: those that they are
    /// asked for, and next to no others.
    pub fn trace_to(&mut self, collector: SocketAddr) {
        let endpoint = format!("http://{collector}");
        let otlp = json!({"endpoint": endpoint, "samplingRatio": 1e-9});
        self.telemetry = Some(json!({"otlp": otlp}));
    }

    /// Starts one more gateway.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn start_gateway(&mut self, number: usize) -> Result<()> {
        self.start_gateway_with(number, None).await
    }

    async fn start_gateway_with(&mut self, number: usize, imports: Option<Value>) -> Result<()> {
        let replica = format!("gateway-{number}");
        let (tunnel, egress) = (self.listen()?, self.listen()?);
        let advertised = self.machine.advertised(tunnel)?;
        let mut config = json!({
            "cluster": self.id,
            "replica": replica,
            "federation": self.federation_client("linkspan-system", "linkspan-gateway").await?,
            "tunnelListen": tunnel,
            "tunnelAddresses": advertised.iter().copied().map(address).collect::<Vec<_>>(),
            "egressListen": egress,
            "adminListen": self.listen()?,
            "debugListen": self.debug()?,
            "allowLoopbackEndpoints": self.machine.address().is_loopback(),
            "drainGrace": "1s",
        });
        if let Some(imports) = imports {
            config["imports"] = imports;
        }
        self.tunnels.extend(advertised);
        self.egresses.push(egress);
        self.run(&replica, "gateway", &config)
    }

    /// Declares the link to a peer.
    ///
    /// # Errors
    /// When the peer's federation does not answer.
    pub async fn link<N: Machine>(&self, peer: &Cluster<N>) -> Result<()> {
        let bundle = peer.operator().await?.bundle().await.map_err(cause)?;
        let link = json!({
            "apiVersion": "linkspan.io/v1alpha1",
            "kind": "ClusterLink",
            "metadata": {"name": peer.id},
            "spec": {
                "trustDomain": bundle.trust_domain,
                "addresses": peer.tunnels.iter().copied().map(address).collect::<Vec<_>>(),
                "bundle": bundle.pem,
                "allowLoopback": self.machine.address().is_loopback(),
            },
        });
        self.write_resource(&format!("link-{}", peer.id), &link)
    }

    /// Links to `inviter` by its invitation, as an operator would, and waits until data may pass.
    ///
    /// # Errors
    /// When either side refuses, or no tunnel comes up.
    pub async fn accept_from<N: Machine>(&self, inviter: &Cluster<N>) -> Result<()> {
        inviter.wait_for_gateways().await?;
        self.wait_for_gateways().await?;
        let loopback = self
            .machine
            .address()
            .is_loopback()
            .then_some("--allow-loopback");
        let invite = ["link", "invite", self.id].into_iter().chain(loopback);
        let invited = inviter.cli(&invite.collect::<Vec<_>>(), "")?.success()?;
        let accept = ["link", "accept", "-"].into_iter().chain(loopback);
        self.cli(&accept.collect::<Vec<_>>(), &invited)?.success()?;
        self.cli(&["link", "wait", inviter.id], "")?.success()?;
        inviter.cli(&["link", "wait", self.id], "")?.success()?;
        Ok(())
    }

    /// Waits until every gateway of this cluster takes connections.
    ///
    /// # Errors
    /// See [`wait_until`](Self::wait_until).
    pub async fn wait_for_gateways(&self) -> Result<()> {
        let all = self.egresses.len();
        let ready = |status: &v1::StatusResponse| {
            status
                .gateways
                .iter()
                .filter(|gateway| gateway.ready)
                .count()
                >= all
        };
        self.wait_until("ready: all gateways", ready)
            .await
            .map(drop)
    }

    /// Runs the command line against this cluster's federation.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn cli(&self, arguments: &[&str], input: &str) -> Result<Said> {
        let mut child = Command::new(&self.binary)
            .args(arguments)
            .arg("--state-dir")
            .arg(self.state())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut stdin = child.stdin.take().context("piped")?;
        // Whoever does not read its input does not need it.
        let _ = stdin.write_all(input.as_bytes());
        drop(stdin);
        let output = child.wait_with_output()?;
        Ok(Said {
            code: output.status.code(),
            out: String::from_utf8(output.stdout)?,
            err: String::from_utf8(output.stderr)?,
        })
    }

    /// Everything that its processes read and write: state, resources, configuration, logs.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.dir.path()
    }

    /// The state directory of its federation.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// The resources directory of its federation.
    #[must_use]
    pub fn resources(&self) -> PathBuf {
        self.dir.path().join("resources")
    }

    /// Where its processes can be asked for what they hold, by part.
    ///
    /// # Errors
    /// When a configuration that was written cannot be read.
    pub fn debug_address(&self, part: &str) -> Result<SocketAddr> {
        let text = fs::read_to_string(self.dir.path().join(format!("{part}.yaml")))?;
        let config: Value = serde_json::from_str(&text)?;
        let address = config["debugListen"].as_str().context("a debugListen")?;
        Ok(address.parse()?)
    }

    /// Starts an endpoint of a service: `program` with its arguments, listening on the port that
    /// replaces `{listen}` in them, and a sidecar for it. Tells where the program listens.
    ///
    /// # Errors
    /// When a process cannot be started.
    pub async fn endpoint(
        &mut self,
        service: &'static str,
        name: &str,
        program: &Path,
        arguments: &[String],
    ) -> Result<SocketAddr> {
        let listen = self.listen()?;
        let arguments: Vec<_> = arguments
            .iter()
            .map(|text| text.replace("{listen}", &listen.to_string()))
            .collect();
        self.spawn(&format!("{name}-app"), program, arguments)?;
        let workload = json!({
            "uid": format!("{}-{name}", self.id),
            "namespace": NAMESPACE,
            "serviceAccount": service,
            "labels": {"app": service},
            "locality": {"region": self.region, "zone": self.zone},
            "appAddress": self.machine.address(),
            "ports": {PORT.to_string(): listen.port()},
            "probe": {"tcp": {"port": listen.port()}},
        });
        self.sidecar(name, service, workload, &BTreeMap::new())
            .await?;
        Ok(listen)
    }

    /// Starts a server of a service, as [`endpoint`](Self::endpoint), but without a sidecar, and
    /// declares it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn server(
        &mut self,
        service: &str,
        name: &str,
        program: &Path,
        arguments: &[String],
    ) -> Result<SocketAddr> {
        let listen = self.listen()?;
        let arguments = arguments
            .iter()
            .map(|text| text.replace("{listen}", &listen.to_string()));
        self.spawn(&format!("{name}-app"), program, arguments.collect())?;
        self.declare_server(service, name, listen, true)?;
        self.servers.insert(name.to_owned(), listen);
        Ok(listen)
    }

    /// Where a server without a sidecar listens.
    #[must_use]
    pub fn server_address(&self, name: &str) -> Option<SocketAddr> {
        self.servers.get(name).copied()
    }

    /// Where gateways of this cluster take calls of clients without a sidecar.
    ///
    /// # Errors
    /// When federation does not answer.
    pub async fn import_listeners(&self) -> Result<Vec<SocketAddr>> {
        let reply = self.operator().await?.services().await.map_err(cause)?;
        let imports = reply.services.into_iter().filter_map(|of| of.import);
        let listeners = imports.flat_map(|import| import.listeners);
        let open = listeners.flat_map(|listener| listener.open);
        open.map(|at| Ok(at.parse()?)).collect()
    }

    /// Declares a server without a sidecar.
    ///
    /// # Errors
    /// When the resource cannot be written.
    pub fn declare_server(
        &self,
        service: &str,
        name: &str,
        at: SocketAddr,
        ready: bool,
    ) -> Result<()> {
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{service}-{name}"),
                "namespace": NAMESPACE,
                "labels": {"kubernetes.io/service-name": service},
            },
            "addressType": if at.is_ipv4() { "IPv4" } else { "IPv6" },
            "endpoints": [{"addresses": [at.ip()], "conditions": {"ready": ready}, "zone": self.zone}],
            "ports": [{"name": "main", "port": at.port()}],
        });
        self.write_resource(&format!("server-{name}"), &slice)
    }

    /// Starts the sidecar of a caller and tells where it listens for calls to each service.
    ///
    /// # Errors
    /// When a process cannot be started.
    pub async fn caller(
        &mut self,
        name: &str,
        services: &[&'static str],
    ) -> Result<BTreeMap<&'static str, SocketAddr>> {
        let mut outbound = BTreeMap::new();
        for service in services {
            outbound.insert(*service, self.listen()?);
        }
        let workload = json!({
            "uid": format!("{}-{name}", self.id),
            "namespace": NAMESPACE,
            "serviceAccount": name,
            "locality": {"region": self.region, "zone": self.zone},
            "appAddress": self.machine.address(),
            "ready": true,
        });
        self.sidecar(name, name, workload, &outbound).await?;
        Ok(outbound)
    }

    /// Configures the sidecar of a caller on a machine of its own; it takes captured calls at port
    /// 15001 of loopback. Where its public admin face will be, and how it is started.
    ///
    /// # Errors
    /// When federation makes no token.
    pub async fn captured<N: Machine>(
        &self,
        name: &str,
        machine: &N,
    ) -> Result<(SocketAddr, Vec<String>)> {
        let listen = || Ok::<_, anyhow::Error>(SocketAddr::new(machine.address(), machine.port()?));
        let admin = listen()?;
        let config = json!({
            "cluster": self.id,
            "federation": self.federation_client(NAMESPACE, name).await?,
            "workload": {
                "uid": format!("{}-{name}", self.id),
                "namespace": NAMESPACE,
                "serviceAccount": name,
                "locality": {"region": self.region, "zone": self.zone},
                "appAddress": machine.address(),
                "ready": true,
            },
            "inboundListen": listen()?,
            "capture": {},
            "adminListen": admin,
            "debugListen": SocketAddr::new([127, 0, 0, 1].into(), machine.port()?),
            "drainGrace": "1s",
            "accessLog": true,
        });
        let arguments = self.configure(&format!("{name}-sidecar"), "sidecar", &config)?;
        Ok((admin, arguments))
    }

    /// Starts a process of Linkspan on another machine.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_on<N: Machine>(
        &mut self,
        machine: &N,
        name: &str,
        arguments: Vec<String>,
    ) -> Result<()> {
        let command = machine.command(&self.binary);
        self.spawn_by(name, command, arguments)
    }

    async fn sidecar(
        &mut self,
        name: &str,
        account: &str,
        workload: Value,
        outbound: &BTreeMap<&str, SocketAddr>,
    ) -> Result<()> {
        let outbound: Vec<_> = outbound
            .iter()
            .map(|(service, listen)| json!({"listen": listen, "service": format!("{NAMESPACE}/{service}"), "port": PORT}))
            .collect();
        let debug = self.debug()?;
        self.debug_faces.insert(name.to_owned(), debug);
        let config = json!({
            "cluster": self.id,
            "federation": self.federation_client(NAMESPACE, account).await?,
            "workload": workload,
            "inboundListen": self.listen()?,
            "outbound": outbound,
            "adminListen": self.listen()?,
            "debugListen": debug,
            "drainGrace": "1s",
        });
        self.run(&format!("{name}-sidecar"), "sidecar", &config)
    }

    /// Where the sidecar of that workload shows what it does.
    #[must_use]
    pub fn debug_face(&self, name: &str) -> Option<SocketAddr> {
        self.debug_faces.get(name).copied()
    }

    /// Where its gateways accept connections of sidecars.
    #[must_use]
    pub fn egresses(&self) -> &[SocketAddr] {
        &self.egresses
    }

    /// What a process needs to become a workload with that service account.
    ///
    /// # Errors
    /// When federation makes no token.
    pub async fn membership(&self, account: &str) -> Result<FederationClient> {
        let raw = self.federation_client(NAMESPACE, account).await?;
        let raw: RawFederation = serde_json::from_value(raw)?;
        let mut problems = Problems::new("membership");
        raw.parse("federation", &mut problems)
            .context("a federation that cannot be addressed")
    }

    /// Its roots.
    ///
    /// # Errors
    /// When federation does not answer.
    pub async fn bundle(&self) -> Result<(TrustDomain, Bundle)> {
        let bundle = self.operator().await?.bundle().await.map_err(cause)?;
        Ok((
            bundle.trust_domain.parse()?,
            Bundle::from_pem(1, bundle.pem.as_bytes())?,
        ))
    }

    async fn federation_client(&self, namespace: &str, account: &str) -> Result<Value> {
        let token = self.dir.path().join(format!("token-{account}"));
        let made = self
            .operator()
            .await?
            .create_token(namespace, account, Duration::from_secs(3600))
            .await;
        fs::write(&token, made.map_err(cause)?.token)?;
        Ok(json!({
            "address": self.federation.to_string(),
            "trustDomain": format!("{}.{CLUSTERSET}.linkspan.internal", self.id),
            "roots": self.roots(),
            "token": token,
        }))
    }

    fn roots(&self) -> PathBuf {
        self.dir.path().join("roots.pem")
    }

    fn listen(&self) -> Result<SocketAddr> {
        Ok(SocketAddr::new(
            self.machine.address(),
            self.machine.port()?,
        ))
    }

    fn debug(&self) -> Result<SocketAddr> {
        Ok(SocketAddr::new([127, 0, 0, 1].into(), self.machine.port()?))
    }

    fn write_resource(&self, name: &str, resource: &Value) -> Result<()> {
        write_yaml(
            &self
                .dir
                .path()
                .join("resources")
                .join(format!("{name}.yaml")),
            resource,
        )
    }

    fn run(&mut self, name: &str, part: &str, config: &Value) -> Result<()> {
        let arguments = self.configure(name, part, config)?;
        let binary = self.binary.clone();
        self.spawn(name, &binary, arguments)
    }

    /// Writes the configuration of a part; tells with which arguments it runs.
    fn configure(&self, name: &str, part: &str, config: &Value) -> Result<Vec<String>> {
        let path = self.dir.path().join(format!("{name}.yaml"));
        let mut config = config.clone();
        if let Some(telemetry) = self.telemetry.as_ref().filter(|_| part != "federation") {
            config["telemetry"] = telemetry.clone();
            if part == "sidecar" {
                config["accessLog"] = json!(true);
            }
        }
        write_yaml(&path, &config)?;
        let (parent, path) = (std::process::id().to_string(), path.display().to_string());
        let arguments = [lifeline::OPTION, &parent, "run", part, "--config", &path];
        Ok(arguments.map(str::to_owned).to_vec())
    }

    fn spawn(&mut self, name: &str, program: &Path, arguments: Vec<String>) -> Result<()> {
        let command = self.machine.command(program);
        self.spawn_by(name, command, arguments)
    }

    fn spawn_by(&mut self, name: &str, mut command: Command, arguments: Vec<String>) -> Result<()> {
        let log = self.dir.path().join(format!("{name}.log"));
        let output = fs::File::options().create(true).append(true).open(&log)?;
        let child = command
            .args(&arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(output)
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        self.processes.insert(
            name.to_owned(),
            Process {
                arguments,
                log,
                child,
            },
        );
        Ok(())
    }

    /// Kills a process with SIGKILL and waits until it is gone.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn kill(&mut self, name: &str) -> Result<()> {
        let process = self
            .processes
            .get_mut(name)
            .with_context(|| format!("no process {name}"))?;
        process.child.kill()?;
        process.child.wait()?;
        Ok(())
    }

    /// Starts a killed process of Linkspan again, as it was.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn restart(&mut self, name: &str, program: Option<&Path>) -> Result<()> {
        let process = self
            .processes
            .remove(name)
            .with_context(|| format!("no process {name}"))?;
        let program = program.map_or_else(|| self.binary.clone(), Path::to_owned);
        self.spawn(name, &program, process.arguments.clone())
    }

    /// Starts a killed federation again and waits until it answers.
    ///
    /// # Errors
    /// When it does not.
    pub async fn restart_federation(&mut self) -> Result<()> {
        self.restart("federation", None)?;
        self.wait_for_bundle().await.map(drop)
    }

    /// Starts a killed application again, with other arguments for some.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn restart_with(
        &mut self,
        name: &str,
        program: &Path,
        change: impl FnOnce(&mut Vec<String>),
    ) -> Result<()> {
        let process = self.processes.get_mut(name);
        change(
            &mut process
                .with_context(|| format!("no process {name}"))?
                .arguments,
        );
        self.restart(name, Some(program))
    }

    /// A connection to the operator socket of its federation.
    ///
    /// # Errors
    /// When federation does not answer.
    pub async fn operator(&self) -> Result<Operator> {
        Operator::connect(self.dir.path().join("state").join(SOCKET_NAME))
            .await
            .map_err(cause)
    }

    async fn wait_for_bundle(&self) -> Result<v1::BundleResponse> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Ok(mut operator) = self.operator().await
                && let Ok(bundle) = operator.bundle().await
            {
                return Ok(bundle);
            }
            if Instant::now() > deadline {
                bail!("federation of {} does not answer\n{}", self.id, self.logs());
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Polls federation's status until `holds` accepts it.
    ///
    /// # Errors
    /// After a minute, with the last status and the logs.
    pub async fn wait_until(
        &self,
        what: &str,
        holds: impl Fn(&v1::StatusResponse) -> bool,
    ) -> Result<v1::StatusResponse> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.operator().await?.status().await.map_err(cause)?;
            if holds(&status) {
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!(
                    "{}: still not {what}\n{status:#?}\n{}",
                    self.id,
                    self.logs()
                );
            }
            // Status is a question, not a stream: asking is the only way to wait for it.
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until the link is usable and `service` has this many ready endpoints in each cluster.
    ///
    /// # Errors
    /// See [`wait_until`](Self::wait_until).
    pub async fn wait_for_endpoints(&self, service: &str, ready: &[(&str, u32)]) -> Result<()> {
        let what = format!("ready: {service} with {ready:?}");
        self.wait_until(&what, |status| {
            let found = status
                .services
                .iter()
                .find(|found| found.key.as_ref().is_some_and(|key| key.name == service));
            found.is_some_and(|found| {
                ready.iter().all(|(cluster, count)| {
                    found
                        .clusters
                        .iter()
                        .any(|c| c.cluster == *cluster && c.ready == *count)
                })
            })
        })
        .await
        .map(drop)
    }

    /// Waits until this cluster considers its only peer usable, or not.
    ///
    /// # Errors
    /// See [`wait_until`](Self::wait_until).
    pub async fn wait_for_link(&self, usable: bool) -> Result<()> {
        let what = if usable { "linked" } else { "cut off" };
        self.wait_until(what, |status| {
            !status.links.is_empty() && status.links.iter().all(|link| link.usable == usable)
        })
        .await
        .map(drop)
    }

    /// The end of each process's log.
    #[must_use]
    pub fn logs(&self) -> String {
        let tail = |process: &Process| {
            let text = fs::read_to_string(&process.log).unwrap_or_default();
            let lines: Vec<_> = text.lines().collect();
            lines[lines.len().saturating_sub(12)..].join("\n")
        };
        let each = self
            .processes
            .iter()
            .map(|(name, process)| format!("--- {}/{name}\n{}", self.id, tail(process)));
        each.collect::<Vec<_>>().join("\n")
    }
}

/// The `linkspan` binary of the build that this program belongs to.
///
/// # Errors
/// When it has not been built.
pub fn binary() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    own.ancestors()
        .skip(1)
        .map(|dir| dir.join("linkspan"))
        .find(|path| path.is_file())
        .with_context(|| {
            format!(
                "no `linkspan` beside {}; run `cargo build` on the same profile first",
                own.display()
            )
        })
}

fn cause(failure: linkspan::exit::Failure) -> anyhow::Error {
    match failure {
        linkspan::exit::Failure::Failed(error)
        | linkspan::exit::Failure::Usage(error)
        | linkspan::exit::Failure::Unreachable(error) => error,
        #[allow(unreachable_patterns)]
        other => anyhow::anyhow!("{other:?}"),
    }
}

fn address(socket: SocketAddr) -> Value {
    json!({"host": socket.ip(), "port": socket.port()})
}

fn service_yaml(service: Service) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": service.name, "namespace": NAMESPACE},
        "spec": {
            "selector": {"app": service.name},
            "ports": [{"name": "main", "port": PORT, "appProtocol": service.app_protocol}],
        },
    })
}

fn export_yaml(service: Service) -> Value {
    json!({
        "apiVersion": "multicluster.x-k8s.io/v1beta1",
        "kind": "ServiceExport",
        "metadata": {"name": service.name, "namespace": NAMESPACE},
    })
}

/// JSON is YAML; written beside and renamed, because directories of resources are watched.
fn write_yaml(path: &Path, value: &Value) -> Result<()> {
    let unfinished = path.with_extension("tmp");
    fs::write(&unfinished, serde_json::to_vec_pretty(value)?)?;
    fs::rename(&unfinished, path).with_context(|| format!("writing {}", path.display()))
}

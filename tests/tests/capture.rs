//! Calls that a packet filter leads to a sidecar, in network namespaces: the caller knows nothing of
//! the mesh. Needs root, `ip`, `nft` and `setpriv`; `./test` runs these with `--ignored` where it can.

use std::{
    collections::BTreeSet,
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Command, Output},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use linkspan::apps::checkout::Answer;
use linkspan_tests::{
    clusters::{Cluster, Machine, Service, binary},
    lab::{Lab, LabMachine, Side},
};

const CHECKOUT: Service = Service {
    name: "checkout",
    app_protocol: "http",
    exported: true,
};
/// What nobody declares how to speak to.
const ECHO: Service = Service {
    name: "echo",
    app_protocol: "tcp",
    exported: true,
};
/// Longest silence of a connection.
const PATIENCE: Duration = Duration::from_secs(30);
/// As whom the sidecar runs.
const UID: &str = "15000";
const CHECKOUT_4: &str = "10.99.0.1";
const CHECKOUT_6: &str = "fd99::1";
const ECHO_4: &str = "10.99.0.2";
/// Of a service that nobody has.
const NOBODYS: &str = "10.99.0.3";

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// The pod's namespace, for its sidecar: a user without rights there, but for reading what the test
/// has put into directories of its own.
struct PodMachine(LabMachine);

impl Machine for PodMachine {
    fn address(&self) -> IpAddr {
        self.0.address()
    }

    fn port(&self) -> Result<u16> {
        self.0.port()
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = self.0.command(Path::new("setpriv"));
        command.args(["--reuid", UID, "--regid", UID, "--clear-groups"]);
        command.args(["--bounding-set", "-all,+dac_read_search"]);
        command.args(["--inh-caps", "-all,+dac_read_search"]);
        command.args(["--ambient-caps", "-all,+dac_read_search"]);
        command.arg(program);
        command
    }
}

/// Two clusters, each with a `checkout` and an `echo`, and a pod of east whose calls are captured.
struct World {
    lab: Arc<Lab>,
    east: Cluster<LabMachine>,
    _west: Cluster<LabMachine>,
    pod: PodMachine,
    admin: SocketAddr,
    /// How the pod's sidecar is started.
    sidecar: Vec<String>,
}

impl World {
    /// All of it but the pod's sidecar.
    async fn start() -> Result<Self> {
        let lab = Arc::new(Lab::new()?);
        let machine = |side| LabMachine::new(Arc::clone(&lab), side);
        let services = [CHECKOUT, ECHO];
        let (four, six) = (ip(CHECKOUT_4), ip(CHECKOUT_6));
        let vips: [(&str, &[IpAddr]); 3] = [
            ("checkout", &[four, six]),
            ("echo", &[ip(ECHO_4)]),
            ("nobodys", &[ip(NOBODYS)]),
        ];
        let east = machine(Side::East);
        let mut east = Cluster::start_with_vips("east", east, &services, 1, &vips).await?;
        let mut west = Cluster::start("west", machine(Side::West), &services, 1).await?;
        east.link(&west).await?;
        west.link(&east).await?;
        let binary = binary()?;
        for (cluster, name) in [(&mut east, "east"), (&mut west, "west")] {
            for (service, arguments) in [("checkout", checkout(name)), ("echo", echo(name))] {
                let workload = format!("{service}-{name}");
                let started = cluster.endpoint(service, &workload, &binary, &arguments);
                started.await?;
            }
        }
        for service in ["checkout", "echo"] {
            let ready = [("east", 1), ("west", 1)];
            east.wait_for_endpoints(service, &ready).await?;
        }
        let pod = PodMachine(machine(Side::Pod));
        let (admin, sidecar) = east.captured("frontend", &pod).await?;
        Ok(Self {
            lab,
            east,
            _west: west,
            pod,
            admin,
            sidecar,
        })
    }

    fn start_sidecar(&mut self, until: &str) -> Result<()> {
        let sidecar = self.sidecar.clone();
        self.east.start_on(&self.pod, "frontend-sidecar", sidecar)?;
        self.until(until, || self.get(self.admin, until).is_ok())
    }

    /// Polls what only another process knows.
    fn until(&self, what: &str, holds: impl Fn() -> bool) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !holds() {
            ensure!(
                Instant::now() < deadline,
                "not so: {what}\n{}",
                self.east.logs()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    fn capture(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.lab.command(Side::Pod, "env");
        command.arg(binary()?).arg("capture").args(arguments);
        success(&command.output()?)
    }

    /// A connection of a program in the pod.
    fn connect(&self, to: SocketAddr) -> Result<TcpStream> {
        self.lab.enter(Side::Pod, move || {
            let stream = TcpStream::connect_timeout(&to, Duration::from_secs(10))?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            Ok(stream)
        })
    }

    /// Whether a connection to there is reset, although it was accepted.
    fn is_refused(&self, to: SocketAddr) -> Result<bool> {
        match self.connect(to) {
            Ok(stream) => Ok(end_of(stream) == Err(ErrorKind::ConnectionReset)),
            Err(error) if is_reset(&error) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Says this from the pod, ends its direction, and reads to the end.
    fn call(&self, to: SocketAddr, said: &[u8]) -> Result<String> {
        let mut stream = self.connect(to)?;
        stream.write_all(said)?;
        stream.shutdown(Shutdown::Write)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    fn get(&self, from: SocketAddr, path: &str) -> Result<String> {
        let request = format!("GET {path} HTTP/1.0\r\nhost: test\r\nconnection: close\r\n\r\n");
        let mut stream = self.connect(from)?;
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no head")?;
        let first = head.lines().next().unwrap_or_default();
        ensure!(first.contains(" 200"), "{first}");
        Ok(body.to_owned())
    }

    /// Connections that the sidecar passed by so far.
    fn passed(&self) -> Result<u64> {
        let metrics = self.get(self.admin, "/metrics")?;
        let passed = metrics.lines().filter(|line| {
            line.starts_with("linkspan_connections_total") && line.contains("\"passthrough\"")
        });
        let counts = passed.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
        Ok(counts.sum())
    }

    /// Which clusters answer these calls to `checkout`.
    fn answers(&self, at: &str, calls: usize) -> Result<BTreeSet<String>> {
        let to = SocketAddr::new(ip(at), 80);
        let mut clusters = BTreeSet::new();
        for _ in 0..calls {
            let body = self.get(to, "/").with_context(|| format!("{to}"))?;
            let answer: Answer = serde_json::from_str(body.trim())?;
            ensure!(answer.caller.contains("/sa/frontend"), "{answer:?}");
            clusters.insert(answer.cluster);
        }
        Ok(clusters)
    }
}

fn success(output: &Output) -> Result<String> {
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{said}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn checkout(cluster: &str) -> Vec<String> {
    let instance = format!("checkout-{cluster}");
    let name = instance.clone();
    [
        "app",
        "checkout",
        "--listen",
        "{listen}",
        "--cluster",
        cluster,
    ]
    .map(str::to_owned)
    .into_iter()
    .chain(["--instance".into(), instance, "--name".into(), name])
    .collect()
}

fn echo(cluster: &str) -> Vec<String> {
    [
        "app",
        "tcp-echo",
        "--listen",
        "{listen}",
        "--instance",
        cluster,
    ]
    .map(str::to_owned)
    .to_vec()
}

/// What a connection comes to on which nothing is said.
fn end_of(mut stream: TcpStream) -> Result<usize, ErrorKind> {
    stream.read(&mut [0; 64]).map_err(|error| error.kind())
}

/// That both ends of a connection hear each other.
fn exchange(one: &mut TcpStream, other: &mut TcpStream) -> Result<()> {
    other.set_read_timeout(Some(PATIENCE))?;
    let mut heard = [0; 5];
    one.write_all(b"there")?;
    other.read_exact(&mut heard)?;
    ensure!(&heard == b"there");
    other.write_all(b"again")?;
    one.read_exact(&mut heard)?;
    ensure!(&heard == b"again");
    Ok(())
}

/// A reset may come before the caller knows that there was a connection.
fn is_reset(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<std::io::Error>();
    io.is_some_and(|error| error.kind() == ErrorKind::ConnectionReset)
}

/// A server of the other machine that has nothing to do with the mesh.
fn bystander(lab: &Lab) -> Result<(TcpListener, SocketAddr)> {
    let address = SocketAddr::new(Side::West.address(), 9_000);
    let listener = lab.enter(Side::West, move || Ok(TcpListener::bind(address)?))?;
    Ok((listener, address))
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and network namespaces"]
async fn who_knows_nothing_of_the_mesh_calls_through_it() -> Result<()> {
    let mut world = World::start().await?;
    world.start_sidecar("/readyz")?;
    ensure!(world.capture(&["show"])?.contains("not captured"));
    world.capture(&["up"])?;
    world.capture(&["up"]).context("once more")?;
    ensure!(world.capture(&["show"])?.contains("skuid 15000 return"));
    world.lab.watch_for("10.99.0.0/24")?;

    for address in [CHECKOUT_4, CHECKOUT_6] {
        ensure!(world.answers(address, 3)? == ["east".to_owned()].into());
    }
    let echoed = world
        .call((ip(ECHO_4), 80).into(), b"hello")
        .context("echo")?;
    ensure!(echoed == "east\nhello", "{echoed}");

    // The other cluster answers where the own one cannot.
    world.east.kill("checkout-east-app")?;
    ensure!(world.answers(CHECKOUT_4, 5)?.contains("west"));

    // What leads nowhere in the mesh leads nowhere else.
    for (address, port) in [(CHECKOUT_4, 81), (NOBODYS, 80)] {
        let to = SocketAddr::new(ip(address), port);
        ensure!(world.is_refused(to)?, "{to}");
    }
    ensure!(
        world.lab.seen()? == 0,
        "something left for an address of the mesh"
    );
    ensure!(
        world.passed()? == 0,
        "the sidecar's own connections were captured"
    );

    // What is captured stays so when the rules go; what is new is not.
    let mut standing = world.connect((ip(ECHO_4), 80).into())?;
    let mut name = [0; "east\n".len()];
    standing.read_exact(&mut name).context("the echo's name")?;
    world.capture(&["down"])?;
    standing.write_all(b"after")?;
    let mut echoed = [0; "after".len()];
    standing
        .read_exact(&mut echoed)
        .context("after the rules")?;
    ensure!(&echoed == b"after" && world.lab.seen()? == 0);
    let outside = world.connect((ip(CHECKOUT_4), 80).into());
    ensure!(outside.is_err() && world.lab.seen()? > 0, "the router sees");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and network namespaces"]
async fn what_is_not_of_the_mesh_passes_untouched() -> Result<()> {
    let mut world = World::start().await?;
    world.start_sidecar("/readyz")?;
    let (listener, address) = bystander(&world.lab)?;

    // What stands before there are rules is nobody's business.
    let mut standing = world.connect(address)?;
    let (mut other_end, from) = listener.accept()?;
    ensure!(from == standing.local_addr()?);
    world.capture(&["up"])?;
    exchange(&mut standing, &mut other_end).context("before the rules")?;
    ensure!(world.passed()? == 0);

    let mut client = world.connect(address)?;
    client.write_all(b"ping")?;
    client.shutdown(Shutdown::Write)?;
    let (mut server, _) = listener.accept()?;
    let (mut said, mut answer) = (Vec::new(), Vec::new());
    server.read_to_end(&mut said)?;
    server.write_all(b"pong")?;
    drop(server);
    client.read_to_end(&mut answer)?;
    ensure!(said == b"ping" && answer == b"pong");
    ensure!(world.passed()? == 1);

    // Nobody listens there.
    let nobody = SocketAddr::new(Side::West.address(), 9_001);
    ensure!(world.is_refused(nobody)?);
    ensure!(world.passed()? == 2);

    // Exceptions, and no rules at all: the sidecar sees nothing of it.
    let direct = |world: &World| -> Result<()> {
        let client = world.connect(address)?;
        let (server, from) = listener.accept()?;
        ensure!(from == client.local_addr()?, "somebody is between them");
        drop(server);
        ensure!(end_of(client) == Ok(0));
        ensure!(world.passed()? == 2);
        Ok(())
    };
    world.capture(&["up", "--except", "9000"])?;
    direct(&world).context("by its port")?;
    world.capture(&["up", "--except", "10.210.0.0/16", "--except", "fd00::/8"])?;
    direct(&world).context("by its network")?;
    world.capture(&["down"])?;
    world.capture(&["down"]).context("once more")?;
    ensure!(world.capture(&["show"])?.contains("not captured"));
    direct(&world).context("without rules")?;

    // Rules that know another user lead the sidecar's calls back to it: that ends at once.
    world.capture(&["up", "--uid", "1"])?;
    ensure!(world.is_refused(address)?);
    ensure!(
        world.east.logs().contains("led back to us"),
        "{}",
        world.east.logs()
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and network namespaces"]
async fn what_is_known_too_late_is_refused_and_never_passed_by() -> Result<()> {
    let mut world = World::start().await?;
    world.east.kill("federation")?;
    world.start_sidecar("/healthz")?;
    world.capture(&["up"])?;
    world.lab.watch_for(CHECKOUT_4)?;
    let began = Instant::now();
    ensure!(world.is_refused((ip(CHECKOUT_4), 80).into())?);
    let held = began.elapsed();
    ensure!(held >= Duration::from_secs(5), "held for {held:?} only");
    world.east.restart_federation().await?;
    world.until("the sidecar is ready", || {
        world.get(world.admin, "/readyz").is_ok()
    })?;
    ensure!(!world.answers(CHECKOUT_4, 2)?.is_empty());
    ensure!(
        world.lab.seen()? == 0,
        "something left for an address of the mesh"
    );
    Ok(())
}

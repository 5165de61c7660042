//! Who is where: two clusters, their parts, workloads and ports, and their files.

use std::{
    collections::BTreeMap,
    fs,
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use linkspan_resources::SYSTEM_NAMESPACE;
use serde_json::{Value, json};

use super::{ports::Ports, samples::Side, wire::Way};

/// The clusterset of the demo.
pub const CLUSTERSET: &str = "demo";
/// Namespace of the sample applications.
pub const NAMESPACE: &str = "shop";
/// Gateways per cluster.
pub const GATEWAYS: usize = 2;
/// `checkout` endpoints per cluster.
pub const CHECKOUTS: usize = 3;

/// The services of the demo: name, Service port, the port that workloads declare, protocol.
pub const SERVICES: [Service; 3] = [
    Service {
        name: "checkout",
        port: 80,
        target_port: 8080,
        app_protocol: "http",
    },
    Service {
        name: "grpc-echo",
        port: 50051,
        target_port: 50051,
        app_protocol: "kubernetes.io/h2c",
    },
    Service {
        name: "tcp-echo",
        port: 7,
        target_port: 7000,
        app_protocol: "tcp",
    },
];

/// A service of the demo.
#[derive(Clone, Copy, Debug)]
pub struct Service {
    /// Its name, which is also the label and the service account of its workloads.
    pub name: &'static str,
    /// The Service port.
    pub port: u16,
    target_port: u16,
    app_protocol: &'static str,
}

/// Ports of a federation.
#[derive(Clone, Copy, Debug)]
pub struct FederationPorts {
    grpc: u16,
    admin: u16,
    debug: u16,
}

/// One gateway.
#[derive(Clone, Debug)]
pub struct Gateway {
    /// Name of its process, unique over both clusters.
    pub process: String,
    /// Name of the replica.
    pub replica: String,
    tunnel: u16,
    wire: u16,
    egress: u16,
    admin: u16,
    debug: u16,
}

/// One workload: an application and its sidecar.
#[derive(Clone, Debug)]
pub struct Workload {
    /// Cluster.
    pub side: Side,
    /// Name, unique within the cluster.
    pub name: String,
    /// What it runs: `checkout`, `grpc-echo`, `tcp-echo` or `frontend`.
    pub app: &'static str,
    /// Where the application listens; the frontend does not.
    pub app_port: u16,
    inbound: u16,
    admin: u16,
    debug: u16,
    outbound: BTreeMap<&'static str, u16>,
}

impl Workload {
    /// Name of the application's process.
    #[must_use]
    pub fn app_process(&self) -> String {
        format!("{}/{}", self.side.name(), self.name)
    }

    /// Name of the sidecar's process.
    #[must_use]
    pub fn sidecar_process(&self) -> String {
        format!("{}/{}-sidecar", self.side.name(), self.name)
    }

    /// Where its sidecar listens for calls to a service.
    #[must_use]
    pub fn outbound(&self, service: &str) -> Option<SocketAddr> {
        self.outbound.get(service).copied().map(loopback)
    }

    /// Its identity.
    #[must_use]
    pub fn spiffe_id(&self) -> String {
        let domain = trust_domain(self.side);
        format!("spiffe://{domain}/ns/{NAMESPACE}/sa/{}", self.app)
    }
}

/// One cluster.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// Which.
    pub side: Side,
    /// Its files.
    pub dir: PathBuf,
    federation: FederationPorts,
    /// Its gateways.
    pub gateways: Vec<Gateway>,
    /// Its workloads.
    pub workloads: Vec<Workload>,
}

/// The default trust domain of a cluster.
#[must_use]
pub fn trust_domain(side: Side) -> String {
    format!("{}.{CLUSTERSET}.linkspan.internal", side.name())
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

fn at(port: u16) -> String {
    loopback(port).to_string()
}

impl Cluster {
    /// Decides names, ports and directories; writes nothing.
    ///
    /// # Errors
    /// If there are no ports left.
    pub fn plan(side: Side, dir: &Path, ports: &mut Ports) -> anyhow::Result<Self> {
        let mut gateways = Vec::new();
        for number in 1..=GATEWAYS {
            gateways.push(Gateway {
                process: format!("{}/gateway-{number}", side.name()),
                replica: format!("gateway-{number}"),
                tunnel: ports.take()?,
                wire: ports.take()?,
                egress: ports.take()?,
                admin: ports.take()?,
                debug: ports.take()?,
            });
        }
        let mut workloads = Vec::new();
        for (name, app) in workload_names() {
            workloads.push(plan_workload(side, name, app, ports)?);
        }
        Ok(Self {
            side,
            dir: dir.join(side.name()),
            federation: FederationPorts {
                grpc: ports.take()?,
                admin: ports.take()?,
                debug: ports.take()?,
            },
            gateways,
            workloads,
        })
    }

    /// Name of federation's process.
    #[must_use]
    pub fn federation_process(&self) -> String {
        format!("{}/federation", self.side.name())
    }

    /// Its operator socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.dir.join("state").join(crate::operator::SOCKET_NAME)
    }

    /// The workloads that run an application.
    pub fn running<'a>(&'a self, app: &'a str) -> impl Iterator<Item = &'a Workload> {
        self.workloads
            .iter()
            .filter(move |workload| workload.app == app)
    }

    /// The ways of the wire to its gateways.
    pub fn ways(&self) -> impl Iterator<Item = Way> {
        self.gateways.iter().map(|gateway| Way {
            gateway: gateway.process.clone(),
            wire: loopback(gateway.wire),
            tunnel: loopback(gateway.tunnel),
        })
    }

    /// All ports by what they are for.
    #[must_use]
    pub fn ports(&self) -> BTreeMap<String, u16> {
        let mut ports = BTreeMap::new();
        let mut name = |process: &str, what: &str, port| {
            ports.insert(format!("{process} {what}"), port);
        };
        let federation = self.federation_process();
        name(&federation, "grpc", self.federation.grpc);
        name(&federation, "admin", self.federation.admin);
        name(&federation, "debug", self.federation.debug);
        for gateway in &self.gateways {
            name(&gateway.process, "tunnel", gateway.tunnel);
            name(&gateway.process, "wire", gateway.wire);
            name(&gateway.process, "egress", gateway.egress);
            name(&gateway.process, "admin", gateway.admin);
            name(&gateway.process, "debug", gateway.debug);
        }
        for workload in &self.workloads {
            if workload.app != "frontend" {
                name(&workload.app_process(), "app", workload.app_port);
            }
            let sidecar = workload.sidecar_process();
            name(&sidecar, "inbound", workload.inbound);
            name(&sidecar, "admin", workload.admin);
            name(&sidecar, "debug", workload.debug);
            for (service, port) in &workload.outbound {
                name(&sidecar, &format!("outbound {service}"), *port);
            }
        }
        ports
    }

    /// Makes the directories and what federation needs to start: its configuration,
    /// the Services and their exports.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn write_federation(&self) -> anyhow::Result<PathBuf> {
        for dir in ["state", "resources", "tokens"] {
            let dir = self.dir.join(dir);
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&dir)
                .with_context(|| format!("cannot make {}", dir.display()))?;
        }
        for service in SERVICES {
            let resources = [service_yaml(service), export_yaml(service)];
            let path = self
                .dir
                .join("resources")
                .join(format!("{}.yaml", service.name));
            write_yaml(&path, &resources)?;
        }
        let config = json!({
            "cluster": self.side.name(),
            "clusterset": CLUSTERSET,
            "stateDir": self.dir.join("state"),
            "resourcesDir": self.dir.join("resources"),
            "listen": at(self.federation.grpc),
            "adminListen": at(self.federation.admin),
            "debugListen": at(self.federation.debug),
            "failback": {"hold": "2s", "ramp": "3s"},
        });
        self.write_config("federation", &config)
    }

    /// Writes the own roots, which gateways and sidecars start with.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write_roots(&self, pem: &str) -> anyhow::Result<()> {
        let path = self.roots();
        fs::write(&path, pem).with_context(|| format!("cannot write {}", path.display()))
    }

    fn roots(&self) -> PathBuf {
        self.dir.join("roots.pem")
    }

    /// Where the token of a service account is kept.
    #[must_use]
    pub fn token(&self, service_account: &str) -> PathBuf {
        self.dir.join("tokens").join(service_account)
    }

    /// Namespace and service account of all that need a token.
    #[must_use]
    pub fn accounts(&self) -> Vec<(&'static str, &'static str)> {
        let mut accounts = vec![(SYSTEM_NAMESPACE, "linkspan-gateway")];
        let apps = self
            .workloads
            .iter()
            .map(|workload| (NAMESPACE, workload.app));
        accounts.extend(apps);
        accounts.sort_unstable();
        accounts.dedup();
        accounts
    }

    fn federation_client(&self, service_account: &str) -> Value {
        json!({
            "address": at(self.federation.grpc),
            "trustDomain": trust_domain(self.side),
            "roots": self.roots(),
            "token": self.token(service_account),
        })
    }

    /// Writes a gateway's configuration.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write_gateway(&self, gateway: &Gateway) -> anyhow::Result<PathBuf> {
        let config = json!({
            "cluster": self.side.name(),
            "replica": gateway.replica,
            "federation": self.federation_client("linkspan-gateway"),
            "tunnelListen": at(gateway.tunnel),
            "tunnelAddresses": [address(gateway.wire)],
            "egressListen": at(gateway.egress),
            // Here all of a cluster is on one machine.
            "allowLoopbackEndpoints": true,
            "adminListen": at(gateway.admin),
            "debugListen": at(gateway.debug),
            "drainGrace": "1s",
        });
        self.write_config(&gateway.replica, &config)
    }

    /// Writes a sidecar's configuration.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write_sidecar(&self, workload: &Workload) -> anyhow::Result<PathBuf> {
        let mut itself = json!({
            "uid": format!("{}-{}", self.side.name(), workload.name),
            "namespace": NAMESPACE,
            "serviceAccount": workload.app,
            "labels": {"app": workload.app},
            "locality": {"region": self.side.name(), "zone": "a"},
            "hostname": workload.name,
            "appAddress": Ipv4Addr::LOCALHOST.to_string(),
        });
        if let Some(service) = SERVICES.iter().find(|s| s.name == workload.app) {
            // On one machine every workload needs a port of its own.
            itself["ports"] = json!({service.target_port.to_string(): workload.app_port});
            itself["probe"] = json!({"tcp": {"port": workload.app_port}});
        } else {
            itself["ready"] = json!(true);
        }
        let outbound = SERVICES.iter().filter_map(|service| {
            let listen = workload.outbound(service.name)?;
            Some(json!({
                "listen": listen.to_string(),
                "service": format!("{NAMESPACE}/{}", service.name),
                "port": service.port,
            }))
        });
        let config = json!({
            "cluster": self.side.name(),
            "federation": self.federation_client(workload.app),
            "workload": itself,
            "inboundListen": at(workload.inbound),
            "outbound": outbound.collect::<Vec<_>>(),
            "adminListen": at(workload.admin),
            "debugListen": at(workload.debug),
            "drainGrace": "1s",
        });
        self.write_config(&workload.name, &config)
    }

    fn write_config(&self, name: &str, config: &Value) -> anyhow::Result<PathBuf> {
        let path = self.dir.join(format!("{name}.yaml"));
        write_yaml(&path, std::slice::from_ref(config))?;
        Ok(path)
    }
}

fn workload_names() -> Vec<(String, &'static str)> {
    let mut names = vec![("frontend".to_owned(), "frontend")];
    names.extend((1..=CHECKOUTS).map(|number| (format!("checkout-{number}"), "checkout")));
    names.push(("grpc-echo".to_owned(), "grpc-echo"));
    names.push(("tcp-echo".to_owned(), "tcp-echo"));
    names
}

fn plan_workload(
    side: Side,
    name: String,
    app: &'static str,
    ports: &mut Ports,
) -> anyhow::Result<Workload> {
    let mut outbound = BTreeMap::new();
    if app == "frontend" {
        for service in SERVICES {
            outbound.insert(service.name, ports.take()?);
        }
    }
    Ok(Workload {
        side,
        name,
        app,
        app_port: ports.take()?,
        inbound: ports.take()?,
        admin: ports.take()?,
        debug: ports.take()?,
        outbound,
    })
}

fn address(port: u16) -> Value {
    json!({"host": Ipv4Addr::LOCALHOST.to_string(), "port": port})
}

fn service_yaml(service: Service) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": service.name, "namespace": NAMESPACE},
        "spec": {
            "selector": {"app": service.name},
            "ports": [{
                "name": service.name,
                "port": service.port,
                "targetPort": service.target_port,
                "appProtocol": service.app_protocol,
                "protocol": "TCP",
            }],
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

/// Writes documents as one YAML file, complete or not at all: directories are watched.
fn write_yaml(path: &Path, documents: &[Value]) -> anyhow::Result<()> {
    let texts: Result<Vec<_>, _> = documents.iter().map(serde_saphyr::to_string).collect();
    let text = texts.context("cannot render YAML")?.join("---\n");
    let unfinished = path.with_extension("tmp");
    fs::write(&unfinished, text)
        .and_then(|()| fs::rename(&unfinished, path))
        .with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(dir: &Path) -> Cluster {
        Cluster::plan(Side::East, dir, &mut Ports::new(11)).expect("ports")
    }

    #[test]
    fn every_port_is_named_and_used_once() {
        let cluster = cluster(Path::new("/nowhere"));
        let ports = cluster.ports();
        let mut distinct: Vec<_> = ports.values().collect();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(distinct.len(), ports.len(), "{ports:?}");
        assert!(ports.contains_key("east/gateway-2 wire"));
        assert!(ports.contains_key("east/frontend-sidecar outbound checkout"));
    }

    #[test]
    fn a_gateway_advertises_only_the_wire() {
        let dir = tempfile::tempdir().expect("a directory");
        let cluster = cluster(dir.path());
        cluster.write_federation().expect("written");
        let gateway = &cluster.gateways[0];
        let path = cluster.write_gateway(gateway).expect("written");
        let text = fs::read_to_string(path).expect("read");
        let config: Value = serde_saphyr::from_str(&text).expect("YAML");
        assert_eq!(config["tunnelAddresses"][0]["port"], gateway.wire);
        assert_eq!(config["tunnelListen"], at(gateway.tunnel));
        assert_ne!(gateway.wire, gateway.tunnel);
    }

    #[test]
    fn each_service_is_declared_and_exported() {
        let dir = tempfile::tempdir().expect("a directory");
        let east = cluster(dir.path());
        east.write_federation().expect("written");
        let checkout = fs::read_to_string(east.dir.join("resources/checkout.yaml"));
        assert_eq!(checkout.expect("read").matches("kind:").count(), 2);
    }
}

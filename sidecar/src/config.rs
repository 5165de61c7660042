//! The configuration of a sidecar: raw YAML to a value that cannot be wrong.

mod labels;
mod raw;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use linkspan_dataplane::{identity::FederationClient, inbound::Application};
use linkspan_routing::{ClusterId, EndpointId, Locality, Place, ServiceKey};
use linkspan_runtime::access_log::AccessLog;
use linkspan_runtime::{
    config::{ConfigError, Problems, read_yaml},
    trace::Otlp,
};

/// How long requests may go on after SIGTERM, where the file does not say.
pub const DRAIN_GRACE: Duration = Duration::from_secs(30);
/// How long a request may be silent, where the file does not say.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(300);
/// How often the workload is probed, where the file does not say.
pub const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// How long a probe may take, where the file does not say.
pub const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// What a sidecar needs to know before it starts. Ports of 0 are chosen by the system.
#[derive(Clone, Debug)]
pub struct Config {
    /// Our own cluster.
    pub cluster: ClusterId,
    /// How to reach and recognise our own federation.
    pub federation: FederationClient,
    /// The workload beside us.
    pub workload: Workload,
    /// Where inner mTLS is accepted.
    pub inbound_listen: SocketAddr,
    /// Where the workload's calls are accepted.
    pub outbound: Vec<Outbound>,
    /// Port of loopback to which the packet filter leads the workload's calls; none: they are not
    /// captured.
    pub capture: Option<u16>,
    /// TCP address of the public admin face.
    pub admin_listen: SocketAddr,
    /// TCP address of the loopback admin face.
    pub debug_listen: SocketAddr,
    /// How long requests and connections may go on after SIGTERM.
    pub drain_grace: Duration,
    /// How long a request may pass without a byte in either direction.
    pub idle_timeout: Duration,
    /// Whether each request and connection is logged.
    pub access_log: AccessLog,
    /// Where traces go; `None` where they are not wanted.
    pub otlp: Option<Otlp>,
}

/// What is one workload's own, where many read the same file; goes before what the file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Own {
    /// Stable for the life of the workload.
    pub uid: Option<String>,
    /// Its namespace.
    pub namespace: Option<String>,
    /// Its service account.
    pub service_account: Option<String>,
    /// Its host name.
    pub hostname: Option<String>,
    /// Where others reach the sidecar.
    pub address: Option<IpAddr>,
    /// File with its labels, a line `name="value"` for each, as Kubernetes' downward API writes it.
    pub labels: Option<PathBuf>,
}

/// The workload beside a sidecar.
#[derive(Clone, Debug)]
pub struct Workload {
    /// Stable for the life of the workload.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its service account.
    pub service_account: String,
    /// By which Services select it.
    pub labels: BTreeMap<String, String>,
    /// Its region and zone.
    pub locality: Locality,
    /// Its host name; may be empty.
    pub hostname: String,
    /// Relative weight, 1 to 128.
    pub weight: u32,
    /// Where its application listens.
    pub app_address: IpAddr,
    /// Where others reach the sidecar; the address listened on where it is not given.
    pub address: Option<IpAddr>,
    /// Target ports of Services whose application listens on another port.
    pub ports: BTreeMap<u16, u16>,
    /// How to find out whether it is ready.
    pub readiness: Readiness,
}

/// How the sidecar knows whether its workload wants traffic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// As the configuration says.
    Fixed(bool),
    /// By asking it.
    Probe(Probe),
}

/// A question that a ready workload answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The application's port.
    pub port: u16,
    /// `GET` this path and expect 200–399; without one, accepting a connection is enough.
    pub path: Option<String>,
    /// How often.
    pub interval: Duration,
    /// How long an answer may take.
    pub timeout: Duration,
}

/// An explicit listener for calls to one port of one service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outbound {
    /// Where the workload calls it.
    pub listen: SocketAddr,
    /// The service.
    pub service: ServiceKey,
    /// Its Service port.
    pub port: u16,
}

impl Config {
    /// Reads and checks a YAML file.
    ///
    /// # Errors
    /// All problems together, each with its key, what was found and what to do.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        Self::load_with(path, Own::default())
    }

    /// The same, with what is this workload's own.
    ///
    /// # Errors
    /// See [`Config::load`]; or if the file with the labels cannot be read.
    pub fn load_with(path: impl AsRef<Path>, own: Own) -> Result<Self, ConfigError> {
        let path = path.as_ref();
        let mut raw: raw::Raw = read_yaml(path)?;
        let mut problems = Problems::new(path);
        raw.fill(own, &mut problems);
        raw::check(raw, problems)
    }

    /// Where this workload is.
    pub(crate) fn place(&self) -> Place {
        Place {
            cluster: self.cluster.clone(),
            locality: self.workload.locality.clone(),
        }
    }

    /// The workload as an endpoint.
    pub(crate) fn endpoint(&self) -> EndpointId {
        EndpointId::from_uid(&self.workload.uid)
    }

    /// What the workload calls through explicit listeners.
    pub(crate) fn ports(&self) -> BTreeSet<(ServiceKey, u16)> {
        self.outbound
            .iter()
            .map(|outbound| (outbound.service.clone(), outbound.port))
            .collect()
    }

    /// The services of these.
    pub(crate) fn services(&self) -> BTreeSet<ServiceKey> {
        self.ports()
            .into_iter()
            .map(|(service, _)| service)
            .collect()
    }

    /// The configuration as the debug face shows it; without secrets.
    pub(crate) fn dump(&self) -> serde_json::Value {
        let outbound = |outbound: &Outbound| {
            serde_json::json!({
                "listen": outbound.listen.to_string(),
                "service": outbound.service.to_string(),
                "port": outbound.port,
            })
        };
        serde_json::json!({
            "cluster": self.cluster.to_string(),
            "federation": {
                "address": self.federation.address,
                "trustDomain": self.federation.trust_domain.to_string(),
            },
            "workload": self.workload.dump(),
            "inboundListen": self.inbound_listen.to_string(),
            "outbound": self.outbound.iter().map(outbound).collect::<Vec<_>>(),
            "capture": self.capture.map(|port| serde_json::json!({ "port": port })),
            "adminListen": self.admin_listen.to_string(),
            "debugListen": self.debug_listen.to_string(),
            "drainGrace": format!("{:?}", self.drain_grace),
            "idleTimeout": format!("{:?}", self.idle_timeout),
            "accessLog": self.access_log,
            "telemetry": { "otlp": self.otlp.as_ref().map(Otlp::dump) },
        })
    }
}

impl Workload {
    fn dump(&self) -> serde_json::Value {
        serde_json::json!({
            "uid": self.uid,
            "namespace": self.namespace,
            "serviceAccount": self.service_account,
            "labels": self.labels,
            "locality": self.locality,
            "hostname": self.hostname,
            "weight": self.weight,
            "appAddress": self.app_address,
            "address": self.address,
            "ports": self.ports,
            "readiness": format!("{:?}", self.readiness),
        })
    }

    /// Where the application takes connections.
    pub(crate) fn application(&self) -> Application {
        Application::Here {
            address: self.app_address,
            ports: self.ports.clone(),
        }
    }
}

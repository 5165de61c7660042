//! The configuration of a gateway: the file's YAML, checked, as typed values.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use linkspan_dataplane::identity::{FederationClient, RawFederation};
use linkspan_routing::{ClusterId, Locality};
use linkspan_runtime::access_log::AccessLog;
use linkspan_runtime::config::{ConfigError, HumanDuration, Problems, read_yaml};
use linkspan_runtime::trace::{Otlp, RawTelemetry};
use serde::Deserialize;

use crate::limits::{Limits, Timers};

/// How long streams may go on after SIGTERM, where the file does not say.
pub const DRAIN_GRACE: Duration = Duration::from_secs(30);
/// Addresses beyond this many are of no use: a peer's dialler takes no more.
const MAX_ADDRESSES: usize = 8;
const MAX_REPLICA: usize = 253;

/// What a gateway needs to know before it starts. Ports of 0 are chosen by the system.
#[derive(Clone, Debug)]
pub struct Config {
    /// Our own cluster.
    pub cluster: ClusterId,
    /// Stable name of this replica.
    pub replica: Arc<str>,
    /// How to reach and recognise our own federation.
    pub federation: FederationClient,
    /// UDP address on which peers dial us.
    pub tunnel_listen: SocketAddr,
    /// Hosts and ports that peers are told; port 0 stands for the port that was bound.
    pub tunnel_addresses: Vec<(String, u16)>,
    /// TCP address for sidecars and federation.
    pub egress_listen: SocketAddr,
    /// IP address that sidecars are told; the one listened on where it is not given.
    pub egress_address: Option<IpAddr>,
    /// TCP address of the public admin face.
    pub admin_listen: SocketAddr,
    /// TCP address of the loopback admin face.
    pub debug_listen: SocketAddr,
    /// How long streams may go on after SIGTERM.
    pub drain_grace: Duration,
    /// Endpoints on loopback and link-local addresses may be dialled for peers.
    pub allow_loopback_endpoints: bool,
    /// Where this gateway is; what is unknown is near to nothing.
    pub locality: Locality,
    /// How clients without a sidecar are served; `None` where they are not.
    pub imports: Option<ImportsConfig>,
    /// How calls are taken for servers without a sidecar.
    pub servers: ServersConfig,
    /// Where traces go; `None` where they are not wanted.
    pub otlp: Option<Otlp>,
    /// How long to wait for what; not in the file.
    pub timers: Timers,
    /// How much to hold at once; not in the file.
    pub limits: Limits,
}

/// What is one replica's own, where all read the same file; goes before what the file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Own {
    /// Stable name of the replica.
    pub replica: Option<String>,
    /// IP address that sidecars are told, and clients without one where `imports` says no other.
    pub egress_address: Option<IpAddr>,
}

/// Longest time in which nothing of a request moves, where the file does not say.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(300);

/// How clients without a sidecar are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportsConfig {
    /// IP address on which the ports of imports are opened.
    pub listen: IpAddr,
    /// IP address that clients are told.
    pub address: IpAddr,
    /// Longest time in which nothing of a request moves.
    pub idle: Duration,
    /// Whether each request and opaque connection gets a line.
    pub access_log: AccessLog,
}

/// How calls are taken for servers without a sidecar. Which ones there are, federation knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServersConfig {
    /// Longest time in which nothing of a request moves.
    pub idle: Duration,
    /// Whether each request and opaque connection gets a line.
    pub access_log: AccessLog,
}

impl Default for ServersConfig {
    fn default() -> Self {
        Self {
            idle: IDLE_TIMEOUT,
            access_log: AccessLog::OFF,
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawServers {
    idle_timeout: Option<HumanDuration>,
    #[serde(default)]
    access_log: AccessLog,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawImports {
    listen: String,
    address: Option<String>,
    idle_timeout: Option<HumanDuration>,
    #[serde(default)]
    access_log: AccessLog,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawLocality {
    #[serde(default)]
    region: String,
    #[serde(default)]
    zone: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Raw {
    cluster: String,
    #[serde(default)]
    replica: String,
    federation: RawFederation,
    tunnel_listen: String,
    #[serde(default)]
    tunnel_addresses: Vec<RawAddress>,
    egress_listen: String,
    egress_address: Option<String>,
    admin_listen: String,
    debug_listen: String,
    drain_grace: Option<HumanDuration>,
    #[serde(default)]
    allow_loopback_endpoints: bool,
    #[serde(default)]
    locality: RawLocality,
    imports: Option<RawImports>,
    #[serde(default)]
    servers: RawServers,
    #[serde(default)]
    telemetry: RawTelemetry,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawAddress {
    host: String,
    port: u16,
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// All problems at once, each with its key, what was found and what to do.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        Self::load_with(path, Own::default())
    }

    /// The same, with what is this replica's own.
    ///
    /// # Errors
    /// See [`Config::load`].
    pub fn load_with(path: impl AsRef<Path>, own: Own) -> Result<Self, ConfigError> {
        let path = path.as_ref();
        let mut raw: Raw = read_yaml(path)?;
        if let Some(replica) = own.replica {
            raw.replica = replica;
        }
        if let Some(address) = own.egress_address {
            raw.egress_address = Some(address.to_string());
            if let Some(imports) = &mut raw.imports {
                imports.address.get_or_insert_with(|| address.to_string());
            }
        }
        Self::check(raw, Problems::new(path))
    }

    fn check(raw: Raw, mut problems: Problems) -> Result<Self, ConfigError> {
        let cluster: Option<ClusterId> =
            problems.check("cluster", &raw.cluster, raw.cluster.parse());
        let replica = replica(&raw.replica, &mut problems);
        let federation = raw.federation.parse("federation", &mut problems);
        let tunnel_addresses = addresses(raw.tunnel_addresses, &mut problems);
        let tunnel_listen = listen("tunnelListen", &raw.tunnel_listen, &mut problems);
        let egress_listen = listen("egressListen", &raw.egress_listen, &mut problems);
        let egress_address =
            advertised(egress_listen, raw.egress_address.as_deref(), &mut problems);
        let admin_listen = listen("adminListen", &raw.admin_listen, &mut problems);
        let debug_listen = loopback("debugListen", &raw.debug_listen, &mut problems);
        let imports = raw.imports.map(|raw| imports(raw, &mut problems));
        let otlp = raw.telemetry.typed(&mut problems);
        let drain_grace = raw.drain_grace.map_or(DRAIN_GRACE, |grace| grace.0);
        problems.finish_with(|| {
            Some(Self {
                cluster: cluster?,
                replica,
                federation: federation?,
                tunnel_listen,
                tunnel_addresses,
                egress_listen,
                egress_address,
                admin_listen,
                debug_listen,
                drain_grace,
                allow_loopback_endpoints: raw.allow_loopback_endpoints,
                locality: Locality {
                    region: raw.locality.region.into(),
                    zone: raw.locality.zone.into(),
                },
                // One that is not good is a problem, and then there is no configuration.
                imports: imports.flatten(),
                servers: ServersConfig {
                    idle: raw.servers.idle_timeout.map_or(IDLE_TIMEOUT, |idle| idle.0),
                    access_log: raw.servers.access_log,
                },
                otlp,
                timers: Timers::default(),
                limits: Limits::default(),
            })
        })
    }

    /// The configuration as the admin face shows it; without secrets.
    pub(crate) fn dump(&self) -> serde_json::Value {
        let host = |(host, port): &(String, u16)| format!("{host}:{port}");
        serde_json::json!({
            "cluster": self.cluster.to_string(),
            "replica": self.replica,
            "federation": {
                "address": self.federation.address,
                "trustDomain": self.federation.trust_domain.to_string(),
            },
            "tunnelListen": self.tunnel_listen.to_string(),
            "tunnelAddresses": self.tunnel_addresses.iter().map(host).collect::<Vec<_>>(),
            "egressListen": self.egress_listen.to_string(),
            "egressAddress": self.egress_address.map(|address| address.to_string()),
            "adminListen": self.admin_listen.to_string(),
            "debugListen": self.debug_listen.to_string(),
            "drainGrace": format!("{:?}", self.drain_grace),
            "allowLoopbackEndpoints": self.allow_loopback_endpoints,
            "locality": self.locality,
            "imports": self.imports.as_ref().map(ImportsConfig::dump),
            "servers": {
                "idleTimeout": format!("{:?}", self.servers.idle),
                "accessLog": self.servers.access_log,
            },
            "telemetry": { "otlp": self.otlp.as_ref().map(Otlp::dump) },
        })
    }
}

impl ImportsConfig {
    fn dump(&self) -> serde_json::Value {
        serde_json::json!({
            "listen": self.listen.to_string(),
            "address": self.address.to_string(),
            "idleTimeout": format!("{:?}", self.idle),
            "accessLog": self.access_log,
        })
    }
}

/// `None` after a problem was added.
fn imports(raw: RawImports, problems: &mut Problems) -> Option<ImportsConfig> {
    let ip = |key: &str, text: &str, problems: &mut Problems| -> Option<IpAddr> {
        problems.check(key, text, text.parse())
    };
    let listen = ip("imports.listen", &raw.listen, problems);
    let address = match raw.address {
        Some(text) => ip("imports.address", &text, problems),
        None if listen.is_some_and(|listen| listen.is_unspecified()) => {
            let fix = "give the IP address at which clients reach this gateway";
            let found = "nothing, while imports.listen is any address";
            problems.add("imports.address", found, fix);
            None
        }
        None => listen,
    };
    Some(ImportsConfig {
        listen: listen?,
        address: address?,
        idle: raw.idle_timeout.map_or(IDLE_TIMEOUT, |idle| idle.0),
        access_log: raw.access_log,
    })
}

fn replica(name: &str, problems: &mut Problems) -> Arc<str> {
    let fits = (1..=MAX_REPLICA).contains(&name.len());
    if !fits || !name.bytes().all(|byte| byte.is_ascii_graphic()) {
        let fix = "give the replica a stable name of printable ASCII without spaces, here or with \
                   --replica";
        problems.add("replica", format_args!("`{name}`"), fix);
    }
    name.into()
}

fn addresses(raw: Vec<RawAddress>, problems: &mut Problems) -> Vec<(String, u16)> {
    if raw.len() > MAX_ADDRESSES {
        let fix = format!("give at most {MAX_ADDRESSES}; peers dial no more");
        problems.add(
            "tunnelAddresses",
            format_args!("{} addresses", raw.len()),
            fix,
        );
    }
    for (index, address) in raw.iter().enumerate() {
        if address.host.is_empty() {
            let fix = "give the host name or IP address at which peers reach this gateway";
            problems.add(
                format!("tunnelAddresses[{index}].host"),
                "an empty host",
                fix,
            );
        }
    }
    raw.into_iter()
        .map(|address| (address.host, address.port))
        .collect()
}

fn listen(key: &str, text: &str, problems: &mut Problems) -> SocketAddr {
    let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    text.parse().unwrap_or_else(|_| {
        problems.add(
            key,
            format_args!("`{text}`"),
            "give IP:port, e.g. `0.0.0.0:15443`",
        );
        any
    })
}

fn loopback(key: &str, text: &str, problems: &mut Problems) -> SocketAddr {
    match text.parse::<SocketAddr>() {
        Ok(address) if !address.ip().is_loopback() => {
            let fix = "give a loopback address: this face shows configuration and connections";
            problems.add(key, address, fix);
            address
        }
        _ => listen(key, text, problems),
    }
}

/// Sidecars must be told an address that they can dial.
fn advertised(listen: SocketAddr, given: Option<&str>, problems: &mut Problems) -> Option<IpAddr> {
    let address: Option<IpAddr> =
        given.and_then(|text| problems.check("egressAddress", text, text.parse()));
    if given.is_none() && listen.ip().is_unspecified() {
        let fix = "give the IP address at which sidecars reach this gateway";
        problems.add(
            "egressAddress",
            "nothing, while egressListen is any address",
            fix,
        );
    }
    address
}

#[cfg(test)]
mod tests {
    use super::*;
    use linkspan_runtime::config::parse_yaml;
    use linkspan_trust::testing::Pki;

    /// A complete file; `roots` must exist.
    fn yaml(roots: &Path) -> String {
        format!(
            "cluster: east\nreplica: gateway-1\nfederation:\n  address: 127.0.0.1:15010\n  \
             trustDomain: east.test\n  roots: {}\n  token: token\ntunnelListen: 127.0.0.1:15443\n\
             tunnelAddresses: [{{host: east.example, port: 15443}}]\n\
             egressListen: 127.0.0.1:15444\nadminListen: 127.0.0.1:15020\n\
             debugListen: 127.0.0.1:15021\n",
            roots.display()
        )
    }

    fn check(change: impl FnOnce(String) -> String) -> Result<Config, ConfigError> {
        let roots = tempfile::NamedTempFile::new().unwrap();
        let pem = Pki::new(&["east.test"])
            .authority("east.test")
            .bundle()
            .to_pem();
        std::fs::write(roots.path(), pem).unwrap();
        let file = Path::new("gateway.yaml");
        let raw = parse_yaml(file, &change(yaml(roots.path())))?;
        Config::check(raw, Problems::new(file))
    }

    fn problems(change: impl FnOnce(String) -> String) -> Vec<String> {
        match check(change) {
            Err(ConfigError::Invalid { problems, .. }) => {
                problems.into_iter().map(|problem| problem.key).collect()
            }
            other => panic!("not refused for its values: {other:?}"),
        }
    }

    #[test]
    fn a_complete_file_is_accepted_with_its_defaults() {
        let config = check(|yaml| yaml).unwrap();
        assert_eq!(config.drain_grace, DRAIN_GRACE);
        assert!(!config.allow_loopback_endpoints);
        assert_eq!(
            config.tunnel_addresses,
            [("east.example".to_owned(), 15443)]
        );
    }

    #[test]
    fn every_problem_is_told_at_once() {
        let keys = problems(|yaml| {
            yaml.replace("cluster: east", "cluster: No Cluster")
                .replace("replica: gateway-1", "replica: ''")
                .replace("127.0.0.1:15020", "nowhere")
                .replace("127.0.0.1:15021", "0.0.0.0:15021")
        });
        assert_eq!(keys, ["cluster", "replica", "adminListen", "debugListen"]);
    }

    #[test]
    fn sidecars_must_be_told_an_address_that_they_can_dial() {
        let any = |yaml: String| yaml.replace("127.0.0.1:15444", "0.0.0.0:15444");
        assert_eq!(problems(any), ["egressAddress"]);
        let given = check(|yaml| any(yaml) + "egressAddress: 192.0.2.7\n").unwrap();
        assert_eq!(given.egress_address, Some([192, 0, 2, 7].into()));
    }

    #[test]
    fn unmeshed_clients_are_served_only_where_it_says_so() {
        assert_eq!(check(|yaml| yaml).unwrap().imports, None);
        let with = |imports: &str| check(|yaml| yaml + "imports: " + imports + "\n");
        let imports = with("{listen: 192.0.2.7}").unwrap().imports.unwrap();
        assert_eq!(imports.address, imports.listen);
        let imports = with("{listen: '::', address: 192.0.2.8}").unwrap().imports;
        assert_eq!(imports.unwrap().address, IpAddr::from([192, 0, 2, 8]));
        for (imports, key) in [
            ("{listen: 0.0.0.0}", "imports.address"),
            ("{listen: '192.0.2.7:80'}", "imports.listen"),
        ] {
            let found = problems(|yaml| yaml + "imports: " + imports + "\n");
            assert_eq!(found, [key]);
        }
    }

    #[test]
    fn unknown_keys_are_refused() {
        let refused = check(|yaml| yaml + "tunelListen: 127.0.0.1:1\n");
        assert!(
            matches!(refused, Err(ConfigError::Parse { .. })),
            "{refused:?}"
        );
    }

    #[test]
    fn the_dump_has_no_secrets() {
        let dump = check(|yaml| yaml).unwrap().dump().to_string();
        assert!(!dump.contains("token"), "{dump}");
    }

    /// The reference's example is a good file, and the table has every key.
    #[test]
    fn the_reference_is_true() {
        let text = include_str!("../../docs/reference/gateway.md");
        let example = text
            .split("```yaml\n")
            .nth(1)
            .unwrap()
            .split("```")
            .next()
            .unwrap();
        let from_example = |yaml: String| {
            let roots = yaml
                .lines()
                .find(|line| line.contains("roots:"))
                .unwrap()
                .to_owned();
            example
                .replace("  roots: /etc/linkspan/roots.pem", &roots)
                .replace("east.demo.linkspan.internal", "east.test")
        };
        let config = check(from_example).unwrap();
        assert_eq!(config.egress_address, Some([192, 0, 2, 7].into()));
        for key in config.dump().as_object().unwrap().keys() {
            assert!(text.contains(&format!("| `{key}")), "{key}");
        }
    }
}

//! Federation's configuration: YAML in, a value that cannot be wrong out.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use linkspan_core::declared::Vips;
use linkspan_routing::{ClusterId, DnsLabel, FailbackConfig, Locality, ServiceKey};
use linkspan_runtime::config::{ConfigError, HumanDuration, Problems, read_yaml};
use linkspan_trust::{SYSTEM_NAMESPACE, TrustDomain};
use serde::Deserialize;

/// What one federation needs to know to start.
#[derive(Clone, Debug)]
pub struct Config {
    /// This cluster; unique in the clusterset.
    pub cluster: ClusterId,
    /// The clusterset that this cluster and its peers belong to.
    pub clusterset: String,
    /// Default `<cluster>.<clusterset>.linkspan.internal`.
    pub trust_domain: TrustDomain,
    /// Where workloads are that do not say it; unknown by default.
    pub locality: Locality,
    /// CA, tokens, registrations, operator socket; mode 0700, one federation each.
    pub state_dir: PathBuf,
    /// Where resources are declared.
    pub home: Home,
    /// The gRPC port for proxies and, through gateways, peers.
    pub listen: SocketAddr,
    /// `/healthz`, `/readyz` and `/metrics`.
    pub admin_listen: SocketAddr,
    /// `/config`, `/snapshot` and `/debug`; a loopback address.
    pub debug_listen: SocketAddr,
    /// DNS for `clusterset.local`, over UDP and TCP; off unless set.
    pub dns_listen: Option<SocketAddr>,
    /// How slowly traffic returns after a failover; default 30 s and 30 s.
    pub failback: FailbackConfig,
    /// How long a peer's records are kept with no tunnel to it up; default 5 minutes.
    pub stale_ttl: Duration,
    /// Clocks that no configuration file sets.
    pub timers: Timers,
    /// Whether exports that do not say it themselves admit clients without a sidecar; default no.
    pub unmeshed_clients: bool,
    /// Ports of gateways that stand for imports, for clients without a sidecar.
    pub import_ports: RangeInclusive<u16>,
    /// Addresses that stand for imports, where resources live in a directory; Kubernetes has its own.
    pub vips: Vips,
    /// Puts sidecars into pods; none unless set.
    pub webhook: Option<WebhookConfig>,
}

/// The webhook that puts sidecars into pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebhookConfig {
    /// Where the API server asks.
    pub listen: SocketAddr,
    /// Where pods reach federation, `host:port`.
    pub federation: String,
    /// The image of sidecars.
    pub image: String,
    /// When nodes fetch it.
    pub image_pull_policy: String,
}

/// Where resources are declared and statuses written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Home {
    /// YAML files, watched; statuses go to the state directory.
    Directory {
        /// The directory.
        resources: PathBuf,
    },
    /// The API of the cluster.
    Kubernetes {
        /// How to reach it; default: as a pod of the cluster.
        kubeconfig: Option<PathBuf>,
        /// The namespace of the Lease and the journal.
        namespace: String,
    },
}

/// The ports that stand for imports where nothing else is said: below what systems give to outgoing
/// connections, above what services usually have.
pub const IMPORT_PORTS: RangeInclusive<u16> = 16_000..=31_999;

/// Clocks with fixed values in every deployment; tests shorten some.
#[derive(Clone, Debug)]
pub struct Timers {
    /// How long a proxy counts as before after its stream was lost; default 10 s.
    pub lease: Duration,
    /// How long an endpoint waits for the gateways before peers hear of it; default 1 s.
    pub export_wait: Duration,
    /// How often each side of sync speaks; default 1 s.
    pub heartbeat: Duration,
    /// Silence after which a sync stream is given up; default 3 s.
    pub sync_silence: Duration,
    /// Largest difference of wall clocks between peers, if certificates live long enough
    /// ([`Timers::tolerated_skew`]); default 5 minutes.
    pub max_clock_skew: Duration,
    /// Life of certificates; default 24 h.
    pub svid_lifetime: Duration,
    /// How often the resources directory is read even without a sign of change; default 30 s.
    pub rescan: Duration,
}

impl Default for Timers {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(10),
            export_wait: Duration::from_secs(1),
            heartbeat: Duration::from_secs(1),
            sync_silence: Duration::from_secs(3),
            max_clock_skew: Duration::from_secs(300),
            svid_lifetime: Duration::from_secs(24 * 3600),
            rescan: Duration::from_secs(30),
        }
    }
}

impl Timers {
    /// How far clocks may differ: no further than a quarter of a certificate's life, by which
    /// short-lived ones are back-dated, or the handshakes would fail that sync promises to bear.
    #[must_use]
    pub fn tolerated_skew(&self) -> Duration {
        self.max_clock_skew.min(self.svid_lifetime / 4)
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Raw {
    cluster: String,
    clusterset: String,
    trust_domain: Option<String>,
    #[serde(default)]
    locality: Locality,
    state_dir: PathBuf,
    resources_dir: Option<PathBuf>,
    home: Option<RawHome>,
    listen: String,
    admin_listen: String,
    debug_listen: String,
    dns_listen: Option<String>,
    #[serde(default)]
    failback: RawFailback,
    #[serde(rename = "staleTTL")]
    stale_ttl: Option<HumanDuration>,
    #[serde(default)]
    unmeshed_clients: RawAdmission,
    import_ports: Option<RawPorts>,
    #[serde(default, rename = "clustersetIPs")]
    clusterset_ips: BTreeMap<String, Vec<String>>,
    webhook: Option<RawWebhook>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawWebhook {
    listen: String,
    federation: String,
    image: String,
    #[serde(default = "pull_policy")]
    image_pull_policy: String,
}

fn pull_policy() -> String {
    "IfNotPresent".to_owned()
}

#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
enum RawAdmission {
    Allow,
    #[default]
    Deny,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawPorts {
    first: u16,
    last: u16,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
enum RawHome {
    Directory(RawDirectory),
    Kubernetes(RawKubernetes),
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawDirectory {
    resources_dir: PathBuf,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawKubernetes {
    kubeconfig: Option<PathBuf>,
    #[serde(default = "system_namespace")]
    namespace: String,
}

fn system_namespace() -> String {
    SYSTEM_NAMESPACE.to_owned()
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawFailback {
    hold: Option<HumanDuration>,
    ramp: Option<HumanDuration>,
}

impl Config {
    /// Reads and checks a configuration file.
    ///
    /// # Errors
    /// Everything that is wrong with it, at once.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let raw: Raw = read_yaml(path)?;
        let mut check = Check(Problems::new(path));
        let config = raw.typed(&mut check);
        check.0.finish_with(|| config)
    }
}

impl Raw {
    /// `None` after at least one problem was added.
    fn typed(self, check: &mut Check) -> Option<Config> {
        let cluster = check.parsed("cluster", &self.cluster);
        let clusterset = check.label("clusterset", &self.clusterset);
        let default = format!("{}.{}.linkspan.internal", self.cluster, self.clusterset);
        let domain = self.trust_domain.as_deref().unwrap_or(&default);
        let trust_domain = check.parsed("trustDomain", domain);
        let listen = check.address("listen", &self.listen);
        let admin_listen = check.address("adminListen", &self.admin_listen);
        let debug_listen = check.loopback("debugListen", &self.debug_listen);
        let dns_listen = self.dns_listen.as_deref();
        let dns_listen = dns_listen.map(|text| check.address("dnsListen", text));
        let home = check.home(self.resources_dir, self.home);
        let import_ports = check.ports("importPorts", self.import_ports);
        let vips = check.vips("clustersetIPs", &self.clusterset_ips, home.as_ref());
        let webhook = self.webhook.map(|raw| check.webhook(raw, home.as_ref()));
        let or = |set: Option<HumanDuration>, seconds| {
            set.map_or(Duration::from_secs(seconds), Duration::from)
        };
        Some(Config {
            cluster: cluster?,
            clusterset: clusterset?,
            trust_domain: trust_domain?,
            locality: self.locality,
            state_dir: self.state_dir,
            home: home?,
            listen: listen?,
            admin_listen: admin_listen?,
            debug_listen: debug_listen?,
            dns_listen: match dns_listen {
                None => None,
                set => Some(set.flatten()?),
            },
            failback: FailbackConfig {
                hold: or(self.failback.hold, 30),
                ramp: or(self.failback.ramp, 30),
            },
            stale_ttl: or(self.stale_ttl, 300),
            timers: Timers::default(),
            unmeshed_clients: self.unmeshed_clients == RawAdmission::Allow,
            import_ports: import_ports?,
            vips,
            webhook: match webhook {
                Some(webhook) => Some(webhook?),
                None => None,
            },
        })
    }
}

/// Collects problems while values are typed.
struct Check(Problems);

impl Check {
    fn parsed<T>(&mut self, key: &str, text: &str) -> Option<T>
    where
        T: FromStr<Err: Display>,
    {
        self.0.check(key, text, text.parse())
    }

    fn address(&mut self, key: &str, text: &str) -> Option<SocketAddr> {
        let parsed = text.parse().ok();
        if parsed.is_none() {
            let fix = "use an IP address and a port, such as `127.0.0.1:15010`";
            self.0.add(key, format_args!("`{text}`"), fix);
        }
        parsed
    }

    fn loopback(&mut self, key: &str, text: &str) -> Option<SocketAddr> {
        let address = self.address(key, text)?;
        if address.ip().is_loopback() {
            return Some(address);
        }
        let fix = "use a loopback address: this face shows internals";
        self.0.add(key, format_args!("`{text}`"), fix);
        None
    }

    /// `resourcesDir` at the top is the directory's, as it was before there was another home.
    fn home(&mut self, resources: Option<PathBuf>, home: Option<RawHome>) -> Option<Home> {
        match (resources, home) {
            (Some(resources), None) => Some(Home::Directory { resources }),
            (None, Some(RawHome::Directory(of))) => Some(Home::Directory {
                resources: of.resources_dir,
            }),
            (None, Some(RawHome::Kubernetes(of))) => Some(Home::Kubernetes {
                namespace: self.system_namespace(&of.namespace)?,
                kubeconfig: of.kubeconfig,
            }),
            (Some(resources), Some(_)) => {
                let fix = "resources have one home: remove either `resourcesDir` or `home`";
                self.0.add("resourcesDir", resources.display(), fix);
                None
            }
            (None, None) => {
                let fix = "name a directory in `resourcesDir`, or a home in `home`";
                self.0.add("resourcesDir", "is missing", fix);
                None
            }
        }
    }

    /// The namespace of our own parts. It is part of their identities: were it another one, whoever
    /// can make a namespace of this name would get these.
    fn system_namespace(&mut self, text: &str) -> Option<String> {
        if text == SYSTEM_NAMESPACE {
            return Some(text.to_owned());
        }
        let fix = format!(
            "write `{SYSTEM_NAMESPACE}`: the identities of gateways and federation name it"
        );
        self.0
            .add("home.kubernetes.namespace", format_args!("`{text}`"), fix);
        None
    }

    fn ports(&mut self, key: &str, given: Option<RawPorts>) -> Option<RangeInclusive<u16>> {
        let Some(RawPorts { first, last }) = given else {
            return Some(IMPORT_PORTS);
        };
        if first > 0 && first <= last {
            return Some(first..=last);
        }
        let fix = "give a first port from 1 on, and a last one that is not below it";
        self.0.add(key, format_args!("{first} to {last}"), fix);
        None
    }

    /// Only the API server of a cluster asks.
    fn webhook(&mut self, raw: RawWebhook, home: Option<&Home>) -> Option<WebhookConfig> {
        if matches!(home, Some(Home::Directory { .. })) {
            let fix = "remove it, or set `home.kubernetes`: nobody makes pods in a directory";
            self.0.add("webhook", "with a directory", fix);
        }
        Some(WebhookConfig {
            listen: self.address("webhook.listen", &raw.listen)?,
            federation: raw.federation,
            image: raw.image,
            image_pull_policy: raw.image_pull_policy,
        })
    }

    /// Each address stands for one service, and can be somebody's.
    fn vips(
        &mut self,
        key: &str,
        given: &BTreeMap<String, Vec<String>>,
        home: Option<&Home>,
    ) -> Vips {
        if !given.is_empty() && matches!(home, Some(Home::Kubernetes { .. })) {
            let fix =
                "remove it: in Kubernetes they are the addresses of Services that federation makes";
            self.0.add(key, "with `home.kubernetes`", fix);
        }
        let (mut vips, mut seen) = (Vips::new(), BTreeSet::new());
        for (service, addresses) in given {
            let Some(service) = self.parsed::<ServiceKey>(key, service) else {
                continue;
            };
            for text in addresses {
                let Some(address) = self.parsed::<IpAddr>(key, text) else {
                    continue;
                };
                if address.is_loopback() || address.is_unspecified() || address.is_multicast() {
                    let fix = "give an address that is routed and that nobody has";
                    self.0.add(key, address, fix);
                } else if !seen.insert(address) {
                    self.0
                        .add(key, address, "let each address stand for one service");
                }
                vips.entry(service.clone()).or_default().push(address);
            }
        }
        vips
    }

    fn label(&mut self, key: &str, text: &str) -> Option<String> {
        if text.parse::<DnsLabel>().is_ok() {
            return Some(text.to_owned());
        }
        self.0.add(
            key,
            format_args!("`{text}`"),
            "use one lower-case DNS label such as `demo`",
        );
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "
cluster: east
clusterset: demo
stateDir: /var/lib/linkspan
resourcesDir: /etc/linkspan
listen: 127.0.0.1:15010
adminListen: 127.0.0.1:15020
debugListen: 127.0.0.1:15021
";

    fn load(text: &str) -> Result<Config, ConfigError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("federation.yaml");
        std::fs::write(&path, text).unwrap();
        Config::load(&path)
    }

    #[test]
    fn fills_in_the_defaults() {
        let config = load(GOOD).unwrap();
        assert_eq!(config.trust_domain.as_str(), "east.demo.linkspan.internal");
        assert_eq!(config.stale_ttl, Duration::from_secs(300));
        assert_eq!(config.failback.hold, Duration::from_secs(30));
        assert_eq!(config.dns_listen, None);
    }

    #[test]
    fn reads_what_is_optional() {
        let more = "trustDomain: a.test\ndnsListen: 127.0.0.1:15053\nfailback: {hold: 2s, ramp: 3s}\nstaleTTL: 1m\n";
        let config = load(&format!("{GOOD}{more}")).unwrap();
        assert_eq!(config.trust_domain.as_str(), "a.test");
        assert_eq!(config.failback.ramp, Duration::from_secs(3));
        assert_eq!(config.dns_listen.unwrap().port(), 15_053);
        assert_eq!(config.stale_ttl, Duration::from_secs(60));
    }

    #[test]
    fn clients_without_a_sidecar_are_denied_unless_it_is_said() {
        assert!(!load(GOOD).unwrap().unmeshed_clients);
        let with = |word: &str| load(&format!("{GOOD}unmeshedClients: {word}\n"));
        assert!(with("allow").unwrap().unmeshed_clients);
        assert!(!with("deny").unwrap().unmeshed_clients);
        let error = with("true").unwrap_err().to_string();
        assert!(error.contains("unmeshedClients"), "{error}");
    }

    #[test]
    fn ports_for_imports_are_a_range() {
        assert_eq!(load(GOOD).unwrap().import_ports, 16_000..=31_999);
        let with = |ports: &str| load(&format!("{GOOD}importPorts: {ports}\n"));
        let config = with("{first: 20000, last: 20000}").unwrap();
        assert_eq!(config.import_ports, 20_000..=20_000);
        for ports in ["{first: 2, last: 1}", "{first: 0, last: 1}"] {
            let error = with(ports).unwrap_err().to_string();
            assert!(error.contains("importPorts"), "{error}");
        }
    }

    #[test]
    fn addresses_of_imports_are_given_where_nobody_else_gives_them() {
        let with = |ips: &str| load(&format!("{GOOD}clustersetIPs: {ips}\n"));
        let config = with("{shop/web: [10.99.0.1, \"fd99::1\"]}").unwrap();
        assert_eq!(config.vips[&"shop/web".parse().unwrap()].len(), 2);
        for wrong in [
            "{web: [10.99.0.1]}",
            "{shop/web: [here]}",
            "{shop/web: [127.0.0.1]}",
            "{shop/web: [10.99.0.1], shop/api: [10.99.0.1]}",
        ] {
            let error = with(wrong).unwrap_err().to_string();
            assert!(error.contains("clustersetIPs"), "{error}");
        }
    }

    #[test]
    fn only_an_api_server_asks_for_sidecars() {
        let webhook = "webhook: {listen: \"0.0.0.0:15017\", federation: \"f:15010\", image: a:b}\n";
        let error = load(&format!("{GOOD}{webhook}")).unwrap_err().to_string();
        assert!(error.contains("webhook"), "{error}");
        let kubernetes = GOOD.replace("resourcesDir: /etc/linkspan", "home: {kubernetes: {}}");
        let config = load(&format!("{kubernetes}{webhook}")).unwrap();
        assert_eq!(config.webhook.unwrap().image_pull_policy, "IfNotPresent");
        assert_eq!(load(GOOD).unwrap().webhook, None);
    }

    #[test]
    fn reports_every_problem_at_once() {
        let text = GOOD
            .replace("clusterset: demo", "clusterset: De_mo\ntrustDomain: a/b")
            .replace("127.0.0.1:15010", "here")
            .replace("127.0.0.1:15021", "10.0.0.1:15021");
        let error = load(&text).unwrap_err().to_string();
        for key in ["clusterset", "trustDomain", "listen", "debugListen"] {
            assert!(error.contains(key), "{key} is missing: {error}");
        }
    }

    #[test]
    fn resources_have_one_home() {
        let directory = "home: {directory: {resourcesDir: /etc/linkspan}}\n";
        let kubernetes = "home: {kubernetes: {kubeconfig: /etc/kubeconfig}}\n";
        let without = GOOD.replace("resourcesDir: /etc/linkspan\n", "");
        let config = load(&format!("{without}{directory}")).unwrap();
        assert_eq!(config.home, load(GOOD).unwrap().home);
        let config = load(&format!("{without}{kubernetes}")).unwrap();
        let expected = Home::Kubernetes {
            kubeconfig: Some("/etc/kubeconfig".into()),
            namespace: "linkspan-system".into(),
        };
        assert_eq!(config.home, expected);
        for (text, fix) in [
            (format!("{GOOD}{kubernetes}"), "one home"),
            (without.clone(), "name a directory"),
            (
                format!("{without}home: {{kubernetes: {{namespace: mesh}}}}\n"),
                "home.kubernetes.namespace",
            ),
        ] {
            let error = load(&text).unwrap_err().to_string();
            assert!(error.contains(fix), "{error}");
        }
    }

    #[test]
    fn unknown_fields_are_refused() {
        let error = load(&format!("{GOOD}staleTtl: 1m\n"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("staleTtl"), "{error}");
    }

    #[test]
    fn tolerated_skew_is_five_minutes_or_a_quarter_of_a_certificates_life() {
        let mut timers = Timers::default();
        assert_eq!(timers.tolerated_skew(), Duration::from_secs(300));
        timers.svid_lifetime = Duration::from_secs(600);
        assert_eq!(timers.tolerated_skew(), Duration::from_secs(150));
    }
}

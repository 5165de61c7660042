//! What `linkspan install` was asked for: flags in, a value that cannot be wrong out.

use std::{fmt, net::IpAddr};

use anyhow::anyhow;
use linkspan_core::ClusterId;
use linkspan_routing::DnsLabel;
use linkspan_trust::TrustDomain;

/// Where peers dial, when an address names no port.
const TUNNEL: u16 = super::gateway::TUNNEL;
/// Peers dial no more.
const MAX_ADDRESSES: usize = 8;
/// More are a mistake: each holds tunnels to every peer.
const MAX_GATEWAYS: u16 = 100;
/// Longest label value in Kubernetes, and so of what names a place.
const MAX_PLACE: usize = 63;

/// The flags, each by itself good.
#[derive(Clone, Debug, clap::Args)]
pub(in crate::verbs) struct Flags {
    /// Id of this cluster, unique in the clusterset
    #[arg(long, value_name = "ID", value_parser = cluster)]
    cluster: ClusterId,
    /// The set of clusters that may be linked
    #[arg(long, value_name = "NAME", value_parser = clusterset)]
    clusterset: String,
    /// What all identities of this cluster begin with [default: CLUSTER.CLUSTERSET.linkspan.internal]
    #[arg(long, value_name = "DOMAIN", value_parser = trust_domain)]
    trust_domain: Option<TrustDomain>,
    /// Region of workloads that do not say where they are
    #[arg(long, value_name = "REGION", value_parser = place)]
    region: Option<String>,
    /// Zone of workloads that do not say where they are
    #[arg(long, value_name = "ZONE", value_parser = place, requires = "region")]
    zone: Option<String>,
    /// Image of all parts; the default is what deploy/image makes
    #[arg(long, value_name = "NAME:TAG", value_parser = image, default_value = default_image())]
    image: String,
    /// When nodes fetch the image
    #[arg(long, value_enum, value_name = "WHEN", default_value_t)]
    image_pull_policy: Pull,
    /// Replicas of the gateway
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_GATEWAYS)))]
    gateways: u16,
    /// How peers reach the gateways: an address of a load balancer, the nodes, or not by a Service
    #[arg(long, value_enum, value_name = "HOW", default_value_t)]
    expose: Expose,
    /// With NodePort: this port instead of one that Kubernetes chooses
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    node_port: Option<u16>,
    /// Tell peers this address instead of the Service's; port 15443 unless said. Repeat for more
    #[arg(long = "gateway-address", value_name = "HOST[:PORT]", value_parser = address)]
    addresses: Vec<Address>,
    /// Whether exports that do not say it themselves admit clients without a sidecar, for whom gateways
    /// of any linked cluster call
    #[arg(long, value_enum, value_name = "allow|deny", default_value_t)]
    unmeshed_clients: Admission,
    /// Leave the CustomResourceDefinitions out: somebody else keeps them
    #[arg(long)]
    without_crds: bool,
}

/// Where peers reach gateways.
pub(super) type Address = (String, u16);

/// How peers reach the gateways.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
#[clap(rename_all = "PascalCase")]
pub(super) enum Expose {
    /// A Service of type LoadBalancer
    #[default]
    LoadBalancer,
    /// A Service of type NodePort
    NodePort,
    /// Not from outside of the cluster: only this side dials, or --gateway-address says what is made
    /// elsewhere
    None,
}

/// Whether somebody is admitted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Admission {
    /// Whoever reaches a gateway
    Allow,
    /// Only workloads with an identity of their own
    #[default]
    Deny,
}

/// When nodes fetch the image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
#[clap(rename_all = "PascalCase")]
pub(super) enum Pull {
    /// Where they have not got it
    #[default]
    IfNotPresent,
    /// At each start
    Always,
    /// Never: it is loaded onto them
    Never,
}

impl Pull {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::IfNotPresent => "IfNotPresent",
            Self::Always => "Always",
            Self::Never => "Never",
        }
    }
}

impl fmt::Display for Expose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LoadBalancer => "LoadBalancer",
            Self::NodePort => "NodePort",
            Self::None => "None",
        })
    }
}

/// What is to be installed.
#[derive(Clone, Debug)]
pub(in crate::verbs) struct Settings {
    pub(super) cluster: ClusterId,
    pub(super) clusterset: String,
    pub(super) trust_domain: TrustDomain,
    pub(super) region: Option<String>,
    pub(super) zone: Option<String>,
    pub(super) image: String,
    pub(super) pull: Pull,
    pub(super) gateways: u16,
    pub(super) expose: Expose,
    pub(super) node_port: Option<u16>,
    /// Sorted, without doubles.
    pub(super) addresses: Vec<Address>,
    pub(super) unmeshed_clients: Admission,
    pub(super) crds: bool,
}

impl Settings {
    /// Checks the flags against each other.
    ///
    /// # Errors
    /// Flags that do not fit together; the error says which, and what to do.
    pub(in crate::verbs) fn of(flags: &Flags) -> anyhow::Result<Self> {
        let trust_domain = match &flags.trust_domain {
            Some(domain) => domain.clone(),
            None => default_domain(&flags.cluster, &flags.clusterset)?,
        };
        if flags.node_port.is_some() && flags.expose != Expose::NodePort {
            return Err(anyhow!(
                "--node-port is for --expose NodePort, not for --expose {}; leave one of them out",
                flags.expose
            ));
        }
        let mut addresses = flags.addresses.clone();
        addresses.sort();
        addresses.dedup();
        if addresses.len() > MAX_ADDRESSES {
            return Err(anyhow!(
                "--gateway-address is given {} times; peers dial {MAX_ADDRESSES} addresses at most: \
                 name a load balancer in front of them instead",
                addresses.len()
            ));
        }
        Ok(Self {
            cluster: flags.cluster.clone(),
            clusterset: flags.clusterset.clone(),
            trust_domain,
            region: flags.region.clone(),
            zone: flags.zone.clone(),
            image: flags.image.clone(),
            pull: flags.image_pull_policy,
            gateways: flags.gateways,
            expose: flags.expose,
            node_port: flags.node_port,
            addresses,
            unmeshed_clients: flags.unmeshed_clients,
            crds: !flags.without_crds,
        })
    }

    /// Settings of which no object is missing that any settings bring.
    pub(super) fn everything() -> Self {
        let flags = ["linkspan", "--cluster", "any", "--clusterset", "any"];
        let parsed = <One as clap::Parser>::try_parse_from(flags).ok();
        parsed
            .and_then(|one| Self::of(&one.flags).ok())
            .expect("these flags are good")
    }

    /// The flags that say the same, all of them and always in the same order.
    pub(super) fn flags(&self) -> String {
        let mut flags = vec![
            format!("--cluster={}", self.cluster),
            format!("--clusterset={}", self.clusterset),
            format!("--expose={}", self.expose),
        ];
        let addresses = self.addresses.iter();
        flags.extend(
            addresses.map(|(host, port)| format!("--gateway-address={}", join(host, *port))),
        );
        flags.push(format!("--gateways={}", self.gateways));
        flags.push(format!("--image={}", self.image));
        flags.push(format!("--image-pull-policy={}", self.pull.word()));
        let optional = [
            ("node-port", self.node_port.map(|port| port.to_string())),
            ("region", self.region.clone()),
        ];
        let optional = optional
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?)));
        flags.extend(optional.map(|(name, value)| format!("--{name}={value}")));
        flags.push(format!("--trust-domain={}", self.trust_domain));
        if self.unmeshed_clients == Admission::Allow {
            flags.push("--unmeshed-clients=allow".to_owned());
        }
        if !self.crds {
            flags.push("--without-crds".to_owned());
        }
        flags.extend(self.zone.as_ref().map(|zone| format!("--zone={zone}")));
        flags.join(" ")
    }
}

/// Flags alone, as a command line.
#[derive(clap::Parser)]
struct One {
    #[command(flatten)]
    flags: Flags,
}

#[cfg(test)]
impl Settings {
    /// Of a command line without its verb.
    pub(super) fn parse(line: &str) -> Result<Self, String> {
        let words = std::iter::once("linkspan").chain(line.split_whitespace());
        let one =
            <One as clap::Parser>::try_parse_from(words).map_err(|error| error.to_string())?;
        Self::of(&one.flags).map_err(|error| error.to_string())
    }
}

fn default_image() -> &'static str {
    concat!("linkspan:", env!("CARGO_PKG_VERSION"))
}

fn default_domain(cluster: &ClusterId, clusterset: &str) -> anyhow::Result<TrustDomain> {
    let domain = format!("{cluster}.{clusterset}.linkspan.internal");
    domain.parse().map_err(|error| {
        anyhow!("`{domain}` cannot be the trust domain ({error}); choose one with --trust-domain")
    })
}

fn cluster(text: &str) -> Result<ClusterId, String> {
    text.parse().map_err(|error| {
        format!("{error}; use a lower-case DNS name such as `east`, unique in the clusterset")
    })
}

fn clusterset(text: &str) -> Result<String, String> {
    match text.parse::<DnsLabel>() {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err("use one lower-case DNS label such as `demo`".to_owned()),
    }
}

fn trust_domain(text: &str) -> Result<TrustDomain, String> {
    text.parse()
        .map_err(|error| format!("{error}; use a name such as `east.demo.linkspan.internal`"))
}

/// As it stands in the topology labels of nodes.
fn place(text: &str) -> Result<String, String> {
    let ends = text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.ends_with(|c: char| c.is_ascii_alphanumeric());
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    match ends && text.len() <= MAX_PLACE && text.chars().all(plain) {
        true => Ok(text.to_owned()),
        false => Err(format!(
            "use what nodes have as `topology.kubernetes.io/region` or `zone`, such as `eu-1`: \
             letters, digits, `-`, `_`, `.`, at most {MAX_PLACE}"
        )),
    }
}

fn image(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-/:@".contains(c);
    let last = text.rsplit('/').next().unwrap_or_default();
    let named = last
        .split_once([':', '@'])
        .is_some_and(|(name, tag)| !name.is_empty() && !tag.is_empty());
    match text.chars().all(plain) && named {
        true => Ok(text.to_owned()),
        false => Err(
            "use NAME:TAG or NAME@DIGEST: without either, which version runs is left to chance"
                .to_owned(),
        ),
    }
}

/// A name or an IP address, perhaps with a port; IPv6 with a port stands in brackets.
fn address(text: &str) -> Result<Address, String> {
    let refused = || {
        "use HOST or HOST:PORT at which peers reach the gateways, such as `gw.example.org:15443`, \
         `192.0.2.7` or `[2001:db8::7]:15443`; the port is 1 to 65535"
            .to_owned()
    };
    if let Ok(ip) = text
        .trim_start_matches('[')
        .trim_end_matches(']')
        .parse::<IpAddr>()
    {
        return Ok((ip.to_string(), TUNNEL));
    }
    let (host, port) = match text.rsplit_once(':') {
        None => (text, TUNNEL),
        Some((host, port)) => (host, port.parse().map_err(|_| refused())?),
    };
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    if let Some(ip) = bare {
        let ip: std::net::Ipv6Addr = ip.parse().map_err(|_| refused())?;
        return (port != 0)
            .then_some((ip.to_string(), port))
            .ok_or_else(refused);
    }
    let labels = || {
        host.split('.')
            .all(|label| label.parse::<DnsLabel>().is_ok())
    };
    let known =
        host.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv4()) || (labels() && host.len() <= 253);
    match known && port != 0 {
        true => Ok((host.to_owned(), port)),
        false => Err(refused()),
    }
}

fn join(host: &str, port: u16) -> String {
    match host.contains(':') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    }
}

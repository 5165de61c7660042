//! The zone as a value, and what it answers.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::name::{Asked, ORIGIN};
use crate::model::{ClusterId, ServiceKey};

#[cfg(test)]
mod tests;

/// Version of the scheme of names, as KEP-1645 has it.
const SCHEME: &str = "1.0.0";
/// Longest name, without the dot of the root.
const MAX_NAME: usize = 253;
/// Endpoints of a headless service in one answer; with more, these stand for all. So an answer with
/// an SRV record for each fits into a message over TCP.
const MAX_HOSTS: usize = 200;
/// Records of one answer, for the same reason.
const MAX_RECORDS: usize = 200;

/// What `clusterset.local` holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Zone {
    services: BTreeMap<ServiceKey, Entry>,
}

/// One imported service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// With addresses that stand for the service.
    ClusterSetIP {
        /// The clusterset IPs; none where this cluster gives none.
        addresses: Vec<IpAddr>,
        /// Its named ports.
        ports: Vec<Port>,
    },
    /// With addresses of its endpoints only: those that are ready and can be reached from this
    /// cluster at an address, by `HOST.CLUSTER`.
    Headless(BTreeMap<String, Host>),
}

/// Endpoints of one host name in one cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// Where they are.
    pub addresses: Vec<IpAddr>,
    /// The named ports, by the numbers at which they listen.
    pub ports: Vec<Port>,
}

/// A named port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port {
    /// Its name.
    pub name: Arc<str>,
    /// Its number.
    pub number: u16,
}

/// Of which type records are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// IPv4 addresses.
    A,
    /// IPv6 addresses.
    Aaaa,
    /// Ports and the names that serve them.
    Srv,
    /// Texts.
    Txt,
    /// Who answers for the zone.
    Soa,
    /// Anything else.
    Other,
}

/// What there is to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// These records, all at the name that was asked for.
    Records(Vec<Data>),
    /// The name is there, without such records.
    NoData,
    /// There is no such name, and nothing below it.
    NoName,
    /// Not ours to say.
    Refused,
}

/// What a record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data {
    /// An address of the wanted family.
    Address(IpAddr),
    /// Where a port is served.
    Service {
        /// Number of the port.
        port: u16,
        /// Absolute name, without the dot of the root.
        target: String,
    },
    /// A text.
    Text(&'static str),
    /// Who answers for the zone.
    Authority,
}

impl Zone {
    /// Adds a service.
    pub fn insert(&mut self, service: ServiceKey, entry: Entry) {
        self.services.insert(service, entry);
    }

    /// What the zone says of a name.
    pub fn answer(&self, asked: &Asked, want: Want) -> Answer {
        match asked {
            Asked::Elsewhere => Answer::Refused,
            Asked::Nothing => Answer::NoName,
            Asked::Origin if want == Want::Soa => Answer::Records(vec![Data::Authority]),
            Asked::Version if want == Want::Txt => Answer::Records(vec![Data::Text(SCHEME)]),
            Asked::Origin | Asked::Version | Asked::Services => Answer::NoData,
            Asked::Namespace(namespace) => self.namespace(namespace),
            Asked::Service(key, below) => match self.services.get(key) {
                Some(entry) => entry.answer(key, below, want),
                None => Answer::NoName,
            },
        }
    }

    fn namespace(&self, namespace: &str) -> Answer {
        let mut services = self.services.iter();
        let named = |(key, entry): (&ServiceKey, &Entry)| {
            key.namespace.as_str() == namespace && entry.is_there()
        };
        match services.any(named) {
            true => Answer::NoData,
            false => Answer::NoName,
        }
    }
}

impl Entry {
    /// A headless service without ready endpoints has no name.
    fn is_there(&self) -> bool {
        match self {
            Self::ClusterSetIP { .. } => true,
            Self::Headless(hosts) => !hosts.is_empty(),
        }
    }

    fn answer(&self, key: &ServiceKey, below: &str, want: Want) -> Answer {
        if !self.is_there() {
            return Answer::NoName;
        }
        if below.is_empty() {
            return addresses(self.addresses(), want);
        }
        if let Some(port) = below
            .strip_suffix("._tcp")
            .and_then(|p| p.strip_prefix('_'))
        {
            return self.port(key, port, want);
        }
        match self {
            _ if below == "_tcp" && self.ports().next().is_some() => Answer::NoData,
            Self::ClusterSetIP { .. } => Answer::NoName,
            Self::Headless(hosts) => match hosts.get(below) {
                Some(host) => addresses(host.addresses.iter().copied(), want),
                None => under(hosts, below),
            },
        }
    }

    fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let (own, hosts) = match self {
            Self::ClusterSetIP { addresses, .. } => (addresses.as_slice(), None),
            Self::Headless(hosts) => (&[][..], Some(hosts)),
        };
        let hosts = hosts.into_iter().flat_map(BTreeMap::values);
        let of_hosts = hosts.take(MAX_HOSTS).flat_map(|host| &host.addresses);
        own.iter().chain(of_hosts).copied()
    }

    /// Named ports, with the name that serves each; empty for the service's own.
    fn ports(&self) -> impl Iterator<Item = (&Port, &str)> {
        let (own, hosts) = match self {
            // What has no address is served nowhere.
            Self::ClusterSetIP { addresses, .. } if addresses.is_empty() => (&[][..], None),
            Self::ClusterSetIP { ports, .. } => (ports.as_slice(), None),
            Self::Headless(hosts) => (&[][..], Some(hosts)),
        };
        let hosts = hosts.into_iter().flatten().take(MAX_HOSTS);
        let of_hosts =
            hosts.flat_map(|(name, host)| host.ports.iter().map(move |port| (port, &**name)));
        own.iter().map(|port| (port, "")).chain(of_hosts)
    }

    fn port(&self, key: &ServiceKey, name: &str, want: Want) -> Answer {
        let of_name = self.ports().filter(|(port, _)| &*port.name == name);
        let records = of_name.take(MAX_RECORDS).map(|(port, host)| Data::Service {
            port: port.number,
            target: full_name(host, key),
        });
        let records: Vec<_> = records.collect();
        match records.is_empty() {
            true => Answer::NoName,
            false if want == Want::Srv => Answer::Records(records),
            false => Answer::NoData,
        }
    }
}

/// Those of the wanted family.
fn addresses(all: impl Iterator<Item = IpAddr>, want: Want) -> Answer {
    let wanted = all.filter(|address| match want {
        Want::A => address.is_ipv4(),
        Want::Aaaa => address.is_ipv6(),
        _ => false,
    });
    let records: Vec<_> = wanted.take(MAX_RECORDS).map(Data::Address).collect();
    match records.is_empty() {
        true => Answer::NoData,
        false => Answer::Records(records),
    }
}

/// Of a name that has nothing itself. `CLUSTER.SVC.NS…` has no records ever; but where there are hosts
/// below it, saying that it does not exist would deny them, too (RFC 8020).
fn under(hosts: &BTreeMap<String, Host>, below: &str) -> Answer {
    let is_under = |host: &String| {
        let rest = host.strip_suffix(below);
        rest.is_some_and(|rest| rest.ends_with('.'))
    };
    match hosts.keys().any(is_under) {
        true => Answer::NoData,
        false => Answer::NoName,
    }
}

/// The absolute name of a service, or of a host of it.
fn full_name(host: &str, key: &ServiceKey) -> String {
    let [first, last] = ORIGIN;
    let dot = if host.is_empty() { "" } else { "." };
    format!(
        "{host}{dot}{}.{}.svc.{first}.{last}",
        key.name, key.namespace
    )
}

/// The name of an endpoint below its service: its host name where that is one label, else its id.
/// `None` where the whole name would be too long.
pub(crate) fn host_name(
    hostname: &str,
    id: &str,
    cluster: &ClusterId,
    key: &ServiceKey,
) -> Option<String> {
    let is_label = hostname.parse::<linkspan_routing::DnsLabel>().is_ok();
    let first = if is_label { hostname } else { id };
    let host = format!("{first}.{cluster}");
    (full_name(&host, key).len() <= MAX_NAME).then_some(host)
}

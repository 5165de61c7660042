//! Which addresses are our own parts', and so never dialled for a peer, whatever is registered.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::lookup_host;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use crate::admit::Reach;
use crate::bind::Addresses;
use crate::config::Config;

/// Resolving federation's name; one that takes longer has failed this time.
const RESOLVE: Duration = Duration::from_secs(2);
/// The name is resolved this many times more often while that fails.
const FAILING: u32 = 6;

/// The addresses of our own parts.
#[derive(Clone, Debug)]
pub struct OwnParts {
    /// Bound or advertised exactly so, and federation's.
    pub exactly: BTreeSet<SocketAddr>,
    /// Ports that were bound on any address: ours on each address of this machine.
    pub anywhere: BTreeSet<u16>,
    /// All our ports; our siblings have the same on addresses of their own.
    pub ports: BTreeSet<u16>,
    /// Where ports for clients without a sidecar are opened.
    pub imports: Option<IpAddr>,
    /// Whether an address is one of this machine's.
    pub is_here: fn(IpAddr) -> bool,
}

impl OwnParts {
    /// Whether this, in its canonical spelling, leads to one of them.
    #[must_use]
    pub fn contains(&self, address: SocketAddr) -> bool {
        self.exactly.contains(&address)
            || (self.anywhere.contains(&address.port()) && (self.is_here)(address.ip()))
    }

    /// Whether this leads to a port that is one of the `imports`, ours or a sibling's whose egress is one of
    /// `siblings`: nothing is carried in a circle.
    #[must_use]
    pub fn is_import(
        &self,
        address: SocketAddr,
        imports: impl FnOnce(u16) -> bool,
        siblings: &[SocketAddr],
    ) -> bool {
        let ip = address.ip().to_canonical();
        let anywhere = self.imports.is_some_and(|listen| listen.is_unspecified());
        let at_one = |at: IpAddr| at.to_canonical() == ip;
        let listens =
            self.imports.is_some_and(at_one) || siblings.iter().map(SocketAddr::ip).any(at_one);
        // Asking the system comes last.
        (listens || anywhere) && imports(address.port()) && (listens || (self.is_here)(ip))
    }

    /// Whether this leads to a part of a sibling whose egress is at `egress`.
    #[must_use]
    pub fn of_sibling(&self, egress: SocketAddr, address: SocketAddr) -> bool {
        let same_machine = egress.ip().to_canonical() == address.ip().to_canonical();
        same_machine && (egress.port() == address.port() || self.ports.contains(&address.port()))
    }
}

/// What is ours but for federation, whose address is a name.
pub(crate) fn parts(config: &Config, addresses: &Addresses) -> OwnParts {
    let bound = [
        addresses.tunnel,
        addresses.egress,
        addresses.admin,
        addresses.debug,
    ];
    let told = config
        .egress_address
        .map(|ip| SocketAddr::new(ip, addresses.egress.port()));
    // Names need no look-up: they lead here, or to a load balancer in front.
    let tunnel = config.tunnel_addresses.iter().filter_map(|(host, port)| {
        let port = if *port == 0 {
            addresses.tunnel.port()
        } else {
            *port
        };
        Some(SocketAddr::new(host.parse().ok()?, port))
    });
    let (any, exactly): (Vec<_>, Vec<_>) =
        bound.into_iter().partition(|at| at.ip().is_unspecified());
    OwnParts {
        exactly: exactly
            .into_iter()
            .chain(told)
            .chain(tunnel)
            .map(canonical)
            .collect(),
        anywhere: any.iter().map(SocketAddr::port).collect(),
        ports: bound.iter().map(SocketAddr::port).collect(),
        imports: config.imports.as_ref().map(|imports| imports.listen),
        is_here,
    }
}

/// Whether a socket can be bound there. Asked anew each time: addresses come and go, and this is
/// one system call for endpoints on our own ports only.
fn is_here(ip: IpAddr) -> bool {
    // Any other error (no descriptors left) says nothing about the address: better not dialled.
    !matches!(UdpSocket::bind((ip, 0)), Err(error) if error.kind() == ErrorKind::AddrNotAvailable)
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Where federation is now; `None` where its name has no answer.
async fn look_up(federation: &str) -> Option<BTreeSet<SocketAddr>> {
    let found = timeout(RESOLVE, lookup_host(federation)).await.ok()?.ok()?;
    Some(found.map(canonical).collect())
}

/// What may be dialled, with federation where it is now.
pub(crate) struct Reaching {
    own: OwnParts,
    allow_loopback: bool,
    federation: String,
    every: Duration,
    sender: watch::Sender<Arc<Reach>>,
    failing: bool,
}

impl Reaching {
    /// Looks federation up for the first time.
    pub(crate) async fn new(config: &Config, addresses: &Addresses) -> Self {
        let own = parts(config, addresses);
        let reach = Reach {
            allow_loopback: config.allow_loopback_endpoints,
            own: own.clone(),
        };
        let mut this = Self {
            own,
            allow_loopback: config.allow_loopback_endpoints,
            federation: config.federation.address.clone(),
            every: config.timers.resolve,
            sender: watch::Sender::new(Arc::new(reach)),
            failing: false,
        };
        this.refresh().await;
        this
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Arc<Reach>> {
        self.sender.subscribe()
    }

    /// Federation may move: its name is resolved again and again. Never ends.
    pub(crate) async fn keep(mut self) {
        loop {
            let every = match self.failing {
                true => self.every / FAILING,
                false => self.every,
            };
            sleep(every).await;
            self.refresh().await;
        }
    }

    /// While there is no answer, the last one counts.
    async fn refresh(&mut self) {
        let name = &self.federation;
        let Some(found) = look_up(name).await else {
            if !std::mem::replace(&mut self.failing, true) {
                warn!(
                    name,
                    "the name of our federation cannot be resolved; trying on"
                );
            }
            return;
        };
        self.failing = false;
        let mut own = self.own.clone();
        own.exactly.extend(found);
        let next = Reach {
            allow_loopback: self.allow_loopback,
            own,
        };
        self.sender.send_if_modified(|last| {
            let news = last.own.exactly != next.own.exactly;
            if news {
                debug!(name, "our federation is at other addresses than before");
                *last = Arc::new(next);
            }
            news
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on_any(port: u16) -> OwnParts {
        OwnParts {
            exactly: BTreeSet::from([at("10.0.0.5:15021")]),
            anywhere: BTreeSet::from([port]),
            ports: BTreeSet::from([port, 15_021]),
            imports: Some([10, 0, 0, 5].into()),
            is_here: |ip| ["10.0.0.5", "127.0.0.1"].contains(&&*ip.to_string()),
        }
    }

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_port_bound_on_any_address_is_ours_on_each_of_this_machine() {
        let own = on_any(15_444);
        for ours in ["10.0.0.5:15444", "127.0.0.1:15444", "10.0.0.5:15021"] {
            assert!(own.contains(at(ours)), "{ours}");
        }
        for other in ["10.0.0.6:15444", "10.0.0.5:15445", "127.0.0.1:15021"] {
            assert!(!own.contains(at(other)), "{other}");
        }
    }

    #[test]
    fn a_siblings_ports_are_those_that_we_have() {
        let own = on_any(15_443);
        let egress = at("10.0.0.6:15999");
        for theirs in [
            "10.0.0.6:15999",
            "10.0.0.6:15443",
            "[::ffff:10.0.0.6]:15021",
        ] {
            assert!(own.of_sibling(egress, at(theirs)), "{theirs}");
        }
        for other in ["10.0.0.6:8080", "10.0.0.7:15443"] {
            assert!(!own.of_sibling(egress, at(other)), "{other}");
        }
    }

    #[test]
    fn ports_of_imports_are_ours_and_our_siblings() {
        let (own, imports) = (on_any(15_443), |port| port == 16_000);
        let is_import = |address| own.is_import(at(address), imports, &[at("10.0.0.6:15444")]);
        for ours in [
            "10.0.0.5:16000",
            "10.0.0.6:16000",
            "[::ffff:10.0.0.5]:16000",
        ] {
            assert!(is_import(ours), "{ours}");
        }
        for other in ["10.0.0.5:16001", "10.0.0.7:16000"] {
            assert!(!is_import(other), "{other}");
        }
    }

    #[test]
    fn this_machine_knows_its_addresses() {
        assert!(is_here([127, 0, 0, 1].into()));
        // Of the range for documentation: nobody's.
        assert!(!is_here([192, 0, 2, 1].into()));
    }
}

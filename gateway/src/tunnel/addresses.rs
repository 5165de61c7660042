//! From what a link declares to the socket addresses that may be dialled.
//!
//! Names are resolved anew by the dialler; of all results at most [`MOST`] are used, taken in
//! turn from each declared address so that one name cannot crowd out the others. Addresses that
//! could only lead back to this machine are refused unless the link allows them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use linkspan_dataplane::discover::TunnelAddress;

/// So many addresses of one link are dialled at most.
pub const MOST: usize = 8;
/// A name that has not been resolved by then is left out this time.
const RESOLVE: Duration = Duration::from_secs(2);

/// Whether an address never belongs to another machine's gateway.
#[must_use]
pub fn is_local_only(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.is_loopback() || ip.is_link_local() || is_no_host_v4(ip),
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unicast_link_local() || is_no_host_v6(ip),
    }
}

/// Whether an address belongs to no single host at all; nothing allows dialling those.
#[must_use]
pub fn is_no_host(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => is_no_host_v4(ip),
        IpAddr::V6(ip) => is_no_host_v6(ip),
    }
}

fn is_no_host_v4(ip: Ipv4Addr) -> bool {
    ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast()
}

fn is_no_host_v6(ip: Ipv6Addr) -> bool {
    ip.is_unspecified() || ip.is_multicast()
}

/// Whether this address may be dialled.
#[must_use]
pub fn may_dial(address: SocketAddr, allow_loopback: bool) -> bool {
    let refused = if allow_loopback {
        is_no_host
    } else {
        is_local_only
    };
    address.port() != 0 && !refused(address.ip())
}

/// What resolving a link's addresses gave.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Resolved {
    /// May be dialled; at most [`MOST`].
    pub addresses: Vec<SocketAddr>,
    /// Resolved, but refused because they are local.
    pub refused: Vec<SocketAddr>,
}

/// Resolves the declared hosts and ports of a link; remembers the last good answer for each, so
/// that a failing name server does not take the addresses away.
#[derive(Clone, Debug, Default)]
pub struct Resolver {
    known: BTreeMap<TunnelAddress, Vec<SocketAddr>>,
}

impl Resolver {
    /// Resolves anew, each name within two seconds.
    pub async fn resolve(&mut self, declared: &[TunnelAddress], allow_loopback: bool) -> Resolved {
        let declared = &declared[..declared.len().min(MOST)];
        let found = futures_util::future::join_all(declared.iter().map(look_up)).await;
        self.known.retain(|of, _| declared.contains(of));
        for (of, found) in declared.iter().zip(found) {
            if let Some(found) = found {
                self.known.insert(of.clone(), found);
            }
        }
        let found: Vec<_> = declared
            .iter()
            .filter_map(|of| self.known.get(of))
            .cloned()
            .collect();
        choose(&found, allow_loopback)
    }
}

async fn look_up(of: &TunnelAddress) -> Option<Vec<SocketAddr>> {
    let found = tokio::net::lookup_host((of.host.as_str(), of.port));
    let found = tokio::time::timeout(RESOLVE, found).await.ok()?.ok()?;
    Some(found.collect())
}

fn choose(found: &[Vec<SocketAddr>], allow_loopback: bool) -> Resolved {
    let mut resolved = Resolved::default();
    let longest = found.iter().map(Vec::len).max().unwrap_or(0);
    let in_turn = (0..longest).flat_map(|turn| found.iter().filter_map(move |of| of.get(turn)));
    for address in in_turn {
        let list = if may_dial(*address, allow_loopback) {
            &mut resolved.addresses
        } else {
            &mut resolved.refused
        };
        if list.len() < MOST && !list.contains(address) {
            list.push(*address);
        }
    }
    resolved
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_addresses_are_refused_in_every_spelling() {
        for ip in [
            "127.0.0.1",
            "::1",
            "169.254.1.1",
            "fe80::1",
            "::ffff:127.0.0.1",
            "0.0.0.0",
            "::",
        ] {
            let ip: IpAddr = ip.parse().unwrap();
            assert!(is_local_only(ip), "{ip}");
            assert!(!may_dial(SocketAddr::new(ip, 15443), false), "{ip}");
        }
        assert!(!is_local_only("10.1.2.3".parse().unwrap()));
    }

    #[test]
    fn a_link_may_allow_loopback_but_never_what_is_no_host() {
        assert!(may_dial("127.0.0.1:1".parse().unwrap(), true));
        for address in [
            "0.0.0.0:1",
            "[::]:1",
            "224.0.0.1:1",
            "255.255.255.255:1",
            "127.0.0.1:0",
        ] {
            assert!(!may_dial(address.parse().unwrap(), true), "{address}");
        }
    }

    #[test]
    fn one_name_cannot_crowd_out_the_others() {
        let many = (1..=20)
            .map(|last| SocketAddr::from(([192, 0, 2, last], 1)))
            .collect();
        let one = SocketAddr::from(([198, 51, 100, 1], 2));
        let resolved = choose(&[many, vec![one]], false);
        assert_eq!(resolved.addresses.len(), MOST);
        assert!(resolved.addresses.contains(&one));
    }

    #[tokio::test]
    async fn literal_addresses_need_no_resolver() {
        let at = |host: &str| TunnelAddress {
            host: host.to_owned(),
            port: 15443,
        };
        let declared = [at("127.0.0.1"), at("192.0.2.7")];
        let resolved = Resolver::default().resolve(&declared, false).await;
        assert_eq!(resolved.addresses, ["192.0.2.7:15443".parse().unwrap()]);
        assert_eq!(resolved.refused, ["127.0.0.1:15443".parse().unwrap()]);
    }
}

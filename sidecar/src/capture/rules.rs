//! The packet filter's rules that lead an application's connections to its sidecar: text for `nft`,
//! made here and loaded by `linkspan capture up`.
//!
//! No loop is possible: what the sidecar's own user sends is left alone, and so is loopback, to which
//! what was redirected goes. Only what begins a connection is led anywhere: connections that stand when
//! rules come stay what they are. All of it is in one table of our own, which replaces its former self
//! in one transaction.

use std::{collections::BTreeSet, fmt::Write as _};

use ipnet::IpNet;

/// Name of the table, in the family `inet`.
pub const TABLE: &str = "linkspan_capture";
/// Port of loopback on which a sidecar takes captured calls.
pub const OUTBOUND_PORT: u16 = 15_001;
/// The user as whom a sidecar runs that is injected into pods; no application may run as it, or its
/// calls would be taken for the sidecar's.
pub const SIDECAR_UID: u32 = 15_000;

/// TCP by number: the image has no /etc/protocols in which `nft` could look its name up.
const TCP: u8 = 6;

/// What is led to the sidecar. TCP only: nothing else is ever touched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirection {
    /// The sidecar's port of loopback.
    pub to: u16,
    /// As whom the sidecar runs.
    pub uid: u32,
    /// Ports that are called directly.
    pub except_ports: BTreeSet<u16>,
    /// Addresses that are called directly.
    pub except_networks: BTreeSet<IpNet>,
}

impl Default for Redirection {
    fn default() -> Self {
        Self {
            to: OUTBOUND_PORT,
            uid: SIDECAR_UID,
            except_ports: BTreeSet::new(),
            except_networks: BTreeSet::new(),
        }
    }
}

impl Redirection {
    /// The rules, in place of all that were there: one transaction, the same however often. The
    /// priority is that of destination NAT, by number: old versions of `nft` know no name for it here.
    #[must_use]
    pub fn ruleset(&self) -> String {
        table(&self.rules())
    }

    /// In the order in which a packet meets them; only the first packet of a connection does, or the
    /// first that is seen of one that stands.
    fn rules(&self) -> Vec<String> {
        let mut rules = vec![
            format!("meta l4proto != {TCP} return"),
            // The sidecar's own calls, or they would come back to it.
            format!("meta skuid {} return", self.uid),
            // Whatever stays on this machine: loopback, and its own addresses.
            "oifname \"lo\" return".to_owned(),
        ];
        for (family, networks) in [
            (
                "ip",
                self.networks(|network| matches!(network, IpNet::V4(_))),
            ),
            (
                "ip6",
                self.networks(|network| matches!(network, IpNet::V6(_))),
            ),
        ] {
            if !networks.is_empty() {
                rules.push(format!(
                    "{family} daddr {{ {} }} return",
                    networks.join(", ")
                ));
            }
        }
        if !self.except_ports.is_empty() {
            let ports: Vec<_> = self.except_ports.iter().map(u16::to_string).collect();
            rules.push(format!("tcp dport {{ {} }} return", ports.join(", ")));
        }
        // Without `== syn` the tracking of connections, which begins with these rules, would take what
        // stands for new, and cut it: databases, and whoever is logged in to type this.
        let begins = "tcp flags & (fin | syn | rst | ack) == syn";
        rules.push(format!("{begins} redirect to :{}", self.to));
        rules
    }

    /// Those of one family, none of which is part of another: sets of the packet filter refuse that.
    fn networks(&self, family: impl Fn(&IpNet) -> bool) -> Vec<String> {
        let networks: Vec<_> = self.except_networks.iter().copied().collect();
        let merged = IpNet::aggregate(&networks);
        merged
            .iter()
            .filter(|network| family(network))
            .map(ToString::to_string)
            .collect()
    }
}

/// The table that leads nothing anywhere, for when calls are captured no more. It has to stay: the kernel
/// translates the addresses of captured connections only while there is a chain of this type, and
/// tracks them only while a rule asks for it, as this one does that changes nothing. Without, it would
/// send the rest of them to where they were meant for, in the clear.
#[must_use]
pub fn at_rest() -> String {
    table(&["ct state new return".to_owned()])
}

/// The table with these rules, in place of the former one, also where there is none.
fn table(rules: &[String]) -> String {
    let mut text = format!("add table inet {TABLE}\ndelete table inet {TABLE}\n");
    let _ = writeln!(text, "table inet {TABLE} {{");
    let _ = writeln!(text, "\tchain outbound {{");
    let _ = writeln!(
        text,
        "\t\ttype nat hook output priority -100; policy accept;"
    );
    for rule in rules {
        let _ = writeln!(text, "\t\t{rule}");
    }
    text.push_str("\t}\n}\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(change: impl FnOnce(&mut Redirection)) -> String {
        let mut redirection = Redirection::default();
        change(&mut redirection);
        redirection.ruleset()
    }

    #[track_caller]
    fn before(rules: &str, first: &str, then: &str) {
        let place = |text| {
            rules
                .find(text)
                .unwrap_or_else(|| panic!("no `{text}` in {rules}"))
        };
        assert!(place(first) < place(then), "{rules}");
    }

    #[test]
    fn all_tcp_goes_to_the_sidecar_but_its_own_and_what_stays_here() {
        let rules = rules(|_| {});
        let redirect = "redirect to :15001";
        before(&rules, "meta l4proto != 6 return", redirect);
        before(&rules, "meta skuid 15000 return", redirect);
        before(&rules, "oifname \"lo\" return", redirect);
        before(&rules, "== syn redirect", "}");
        assert!(!rules.contains("daddr") && !rules.contains("dport"));
    }

    #[test]
    fn the_table_replaces_itself_in_one_transaction() {
        let rules = rules(|_| {});
        before(&rules, "add table", "delete table");
        assert_eq!(at_rest().matches(" redirect ").count(), 0);
        before(&at_rest(), "delete table", "type nat hook output");
        before(&rules, "delete table", "table inet linkspan_capture {");
    }

    #[test]
    fn what_is_excepted_is_named_by_family() {
        let rules = rules(|rules| {
            rules.to = 16_001;
            rules.uid = 7;
            rules.except_ports = [25, 5432].into();
            rules.except_networks = ["10.0.0.0/8", "10.1.0.0/16", "fd00::/8", "192.0.2.7/32"]
                .map(|network| network.parse().unwrap())
                .into();
        });
        assert!(
            rules.contains("ip daddr { 10.0.0.0/8, 192.0.2.7/32 } return"),
            "{rules}"
        );
        assert!(rules.contains("ip6 daddr { fd00::/8 } return"), "{rules}");
        assert!(rules.contains("tcp dport { 25, 5432 } return"), "{rules}");
        assert!(rules.contains("meta skuid 7 return"), "{rules}");
        before(&rules, "tcp dport", "redirect to :16001");
    }
}

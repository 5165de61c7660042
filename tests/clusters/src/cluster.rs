//! What one cluster is, as data: its name, place and addresses.

use std::net::Ipv4Addr;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

/// Equal in all clusters on purpose: whatever works here works where networks overlap.
pub const POD_CIDR: &str = "10.244.0.0/16";
/// As [`POD_CIDR`].
pub const SERVICE_CIDR: &str = "10.96.0.0/16";
/// The part of [`POD_CIDR`] that the only node gets.
pub(crate) const NODE_POD_CIDR: &str = "10.244.0.0/24";
/// The API server's ClusterIP, the first of [`SERVICE_CIDR`].
pub(crate) const API_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
/// The ClusterIP of the cluster's DNS.
pub const DNS_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);

/// One cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// Its name, which is its node's name, too.
    pub name: String,
    /// The node's `topology.kubernetes.io/region`.
    pub region: String,
    /// The node's `topology.kubernetes.io/zone`.
    pub zone: String,
    /// The address of its node, and so of its API server.
    pub address: Ipv4Addr,
    /// The API server's port; etcd has the two before it.
    pub port: u16,
}

/// The name and the place of a cluster, as they are given on the command line:
/// `NAME`, or `NAME=REGION/ZONE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The cluster's name, a DNS label of at most 20 characters.
    pub name: String,
    /// By default the name.
    pub region: String,
    /// By default the region and `-a`.
    pub zone: String,
}

impl std::str::FromStr for Place {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (name, place) = text.split_once('=').unwrap_or((text, ""));
        let (region, zone) = place.split_once('/').unwrap_or((place, ""));
        let region = if region.is_empty() { name } else { region };
        let zone = match zone {
            "" => format!("{region}-a"),
            zone => zone.to_owned(),
        };
        for (what, label) in [("cluster", name), ("region", region), ("zone", &zone)] {
            ensure!(
                is_label(label),
                "`{text}`: the {what} `{label}` is no DNS label of at most 20 characters; write NAME or NAME=REGION/ZONE"
            );
        }
        Ok(Self {
            name: name.to_owned(),
            region: region.to_owned(),
            zone,
        })
    }
}

/// Short, because it becomes a part of host names and of folders with sockets in them.
fn is_label(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=20).contains(&text.len())
        && text.chars().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_name_is_its_own_region() {
        let place: Place = "east".parse().unwrap();
        assert_eq!((&*place.region, &*place.zone), ("east", "east-a"));
    }

    #[test]
    fn region_and_zone_are_taken_as_given() {
        let place: Place = "east=europe/europe-2".parse().unwrap();
        assert_eq!((&*place.region, &*place.zone), ("europe", "europe-2"));
        let place: Place = "east=europe".parse().unwrap();
        assert_eq!((&*place.region, &*place.zone), ("europe", "europe-a"));
    }

    #[test]
    fn names_that_would_leave_the_folder_are_refused() {
        for name in [
            "",
            "..",
            "a/b",
            "East",
            "-a",
            "a-",
            "a=b/..",
            &"a".repeat(21),
        ] {
            assert!(name.parse::<Place>().is_err(), "{name}");
        }
    }
}

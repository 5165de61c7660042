//! Whether two clusters can be linked: ids, clusterset, trust domains, versions, clocks.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use super::{Problem, Refusal};
use crate::model::{ClusterId, Link, OwnCluster, TrustDomain};

/// This side.
#[derive(Clone, Copy, Debug)]
pub struct Site<'a> {
    /// Who we are.
    pub own: &'a OwnCluster,
    /// Our version.
    pub version: &'a str,
    /// The links that there are.
    pub links: &'a BTreeMap<ClusterId, Link>,
}

/// The other side, as it says of itself.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// Its cluster id.
    pub cluster: &'a ClusterId,
    /// Its clusterset.
    pub clusterset: &'a str,
    /// Its trust domain.
    pub trust_domain: &'a TrustDomain,
    /// Its version.
    pub version: &'a str,
    /// Whether the link that there is to it is this very one, tried again.
    pub again: bool,
}

/// Whether the other side can be linked.
///
/// # Errors
/// The first of these that does not fit: cluster id, clusterset, trust domain, version.
pub fn check_fit(site: &Site<'_>, peer: &Candidate<'_>) -> Result<(), Refusal> {
    check_cluster(site, peer)?;
    if peer.clusterset != site.own.clusterset {
        return Err(Refusal::new(
            Problem::OtherClusterset,
            format!(
                "cluster `{}` is of clusterset `{}`, cluster `{}` of `{}`; only clusters of one \
                 clusterset can be linked: correct `clusterset` in one federation's configuration",
                peer.cluster,
                shown(peer.clusterset),
                site.own.cluster,
                site.own.clusterset
            ),
        ));
    }
    check_trust_domain(site, peer)?;
    check_version(site, peer)
}

fn check_cluster(site: &Site<'_>, peer: &Candidate<'_>) -> Result<(), Refusal> {
    let refuse = |message| Err(Refusal::new(Problem::DuplicateCluster, message));
    if *peer.cluster == site.own.cluster {
        return refuse(format!(
            "both clusters have the id `{}`; give one of them another `cluster` in its \
             federation's configuration",
            peer.cluster
        ));
    }
    if site.links.contains_key(peer.cluster) && !peer.again {
        return refuse(format!(
            "cluster `{}` has a link to a cluster `{1}` already; if it is to be replaced, run \
             `linkspan link remove {1}` there first",
            site.own.cluster, peer.cluster
        ));
    }
    let label = peer.cluster.label();
    let known = site.links.keys().chain([&site.own.cluster]);
    let twin = known
        .filter(|known| *known != peer.cluster)
        .find(|known| known.label() == label);
    match twin {
        Some(twin) => refuse(format!(
            "cluster ids `{}` and `{twin}` share the label `{label}`; rename one",
            peer.cluster
        )),
        None => Ok(()),
    }
}

fn check_trust_domain(site: &Site<'_>, peer: &Candidate<'_>) -> Result<(), Refusal> {
    let refuse = |message| Err(Refusal::new(Problem::TrustDomainTaken, message));
    if *peer.trust_domain == site.own.trust_domain {
        return refuse(format!(
            "clusters `{}` and `{}` both have the trust domain `{}`; each needs one of its own \
             (`trustDomain` in the federation's configuration)",
            peer.cluster, site.own.cluster, peer.trust_domain
        ));
    }
    let owner = site
        .links
        .values()
        .find(|link| link.trust_domain == *peer.trust_domain && link.cluster != *peer.cluster);
    match owner {
        Some(owner) => refuse(format!(
            "trust domain `{}` of cluster `{}` belongs to the link of `{}` to `{}` already; each \
             link owns exactly one: give one cluster another `trustDomain`",
            peer.trust_domain, peer.cluster, site.own.cluster, owner.cluster
        )),
        None => Ok(()),
    }
}

/// One minor version before and after work together.
fn check_version(site: &Site<'_>, peer: &Candidate<'_>) -> Result<(), Refusal> {
    let fits = match (numbers(site.version), numbers(peer.version)) {
        (Some((own, minor)), Some((other, its))) => own == other && minor.abs_diff(its) <= 1,
        _ => false,
    };
    if fits {
        return Ok(());
    }
    Err(Refusal::new(
        Problem::Version,
        format!(
            "cluster `{}` runs Linkspan {}, cluster `{}` runs {}; versions may be one minor apart: \
             upgrade the older one",
            peer.cluster,
            shown(peer.version),
            site.own.cluster,
            site.version
        ),
    ))
}

fn numbers(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Two clocks, read at nearly the same moment.
#[derive(Clone, Copy, Debug)]
pub struct Clocks {
    /// Ours.
    pub own: SystemTime,
    /// The other side's.
    pub peer: SystemTime,
    /// By how much they may differ.
    pub tolerance: Duration,
}

/// Whether the clocks are close enough; `show` renders a time.
///
/// # Errors
/// With both clocks.
pub fn check_clock(
    own: &ClusterId,
    peer: &ClusterId,
    clocks: Clocks,
    show: impl Fn(SystemTime) -> String,
) -> Result<(), Refusal> {
    let off = clocks
        .own
        .duration_since(clocks.peer)
        .unwrap_or_else(|behind| behind.duration());
    if off <= clocks.tolerance {
        return Ok(());
    }
    Err(Refusal::new(
        Problem::ClockSkew,
        format!(
            "clocks differ by {} s: cluster `{own}` says {}, cluster `{peer}` says {}; at most {} s \
             are tolerated, so set the clocks of both clusters (NTP)",
            off.as_secs(),
            show(clocks.own),
            show(clocks.peer),
            clocks.tolerance.as_secs()
        ),
    ))
}

/// Somebody else's word, short and without what could steer a terminal.
fn shown(text: &str) -> String {
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().map(plain).take(80).collect()
}

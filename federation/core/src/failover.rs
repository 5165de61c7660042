//! Which failover policy is in force for which service, and what is said about each.
//!
//! A policy that names a service goes before its namespace's default, and that before the
//! cluster's; of several of one kind the oldest stands, then the first by name. Policies are
//! not mixed, except that drains add up.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use linkspan_resources as resources;
use linkspan_resources::{OWN, StalePeers};

use crate::model::{
    Area, ClusterId, Condition, ConditionStatus, DEFAULT_OVERPROVISIONING, FailbackConfig,
    FailoverPolicy, LocalityWeight, Named, SYSTEM_NAMESPACE, ServiceKey, TierMatch, Unlisted,
};

#[cfg(test)]
pub(crate) mod tests;

/// How long a peer's records must not have been kept up to date before `stalePeers` applies: its
/// federation restarts, or the gateway that carried the sync drains, in less, and that alone must
/// not move anybody's traffic.
pub const STALE_AFTER: Duration = Duration::from_secs(30);

/// Services named in one message; the rest is counted.
const NAMED: usize = 5;

/// A FailoverPolicy as it is declared.
#[derive(Clone, Debug, PartialEq)]
pub struct DeclaredPolicy {
    /// Its own namespace and name.
    pub key: ServiceKey,
    /// When it was made.
    pub created: SystemTime,
    /// The services that it names; empty: all of its namespace, or of the cluster.
    pub targets: BTreeSet<ServiceKey>,
    /// What it says of the order, without what depends on peers.
    base: Arc<FailoverPolicy>,
    hold: Option<Duration>,
    ramp: Option<Duration>,
    stale_peers: StalePeers,
    /// Clusters that it drains.
    pub drain: BTreeSet<ClusterId>,
    /// Whether it says anything else.
    contests: bool,
    /// As it was written.
    pub spec: Arc<resources::FailoverPolicySpec>,
}

/// How precisely a policy means a service: the greater stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Precision {
    Cluster,
    Namespace,
    Service,
}

/// All that is declared, by namespace and name.
pub type Policies = BTreeMap<ServiceKey, DeclaredPolicy>;

/// What is in force for one service.
#[derive(Clone, Debug, PartialEq)]
pub struct InForce {
    /// None: the default order.
    pub policy: Option<Arc<FailoverPolicy>>,
    /// How traffic comes home.
    pub failback: FailbackConfig,
    /// Which clusters get no requests.
    pub drained: BTreeSet<ClusterId>,
}

impl DeclaredPolicy {
    /// Of a resource that has been validated.
    ///
    /// # Errors
    /// The field that cannot be read, and why.
    pub fn new(policy: resources::FailoverPolicy, created: SystemTime) -> Result<Self, String> {
        let key = ServiceKey::new(policy.metadata.namespace(), &policy.metadata.name)
            .map_err(|error| error.to_string())?;
        let spec = policy.spec;
        let target = |target: &resources::TargetRef| {
            ServiceKey::new(key.namespace.as_str(), &target.name)
                .map_err(|error| format!("spec.targetRefs: {error}"))
        };
        let cluster = |name: &String| {
            name.parse::<ClusterId>()
                .map_err(|error| format!("spec.drain: {error}"))
        };
        Ok(Self {
            targets: spec
                .target_refs
                .iter()
                .map(target)
                .collect::<Result<_, _>>()?,
            base: Arc::new(base(&key, &spec)?),
            hold: spec
                .failback
                .and_then(|of| of.hold)
                .map(|span| span.duration()),
            ramp: spec
                .failback
                .and_then(|of| of.ramp)
                .map(|span| span.duration()),
            stale_peers: spec.stale_peers.unwrap_or_default(),
            drain: spec.drain.iter().map(cluster).collect::<Result<_, _>>()?,
            contests: spec.says_more_than_drain(),
            spec: Arc::new(spec),
            created,
            key,
        })
    }

    /// How precisely it means the service; none if it does not.
    fn means(&self, service: &ServiceKey) -> Option<Precision> {
        let own_namespace = self.key.namespace == service.namespace;
        if !self.targets.is_empty() {
            self.targets.contains(service).then_some(Precision::Service)
        } else if self.key.namespace.as_str() == SYSTEM_NAMESPACE {
            Some(Precision::Cluster)
        } else {
            own_namespace.then_some(Precision::Namespace)
        }
    }

    /// Clusters that it names.
    pub fn clusters(&self) -> BTreeSet<ClusterId> {
        let areas = self.base.order.iter().map(|tier| &tier.area);
        let areas = areas.chain(self.base.weights.iter().map(|entry| &entry.area));
        let named = areas
            .flat_map(|area| &area.clusters)
            .filter_map(|of| match of {
                Named::Own => None,
                Named::Name(cluster) => Some(cluster.clone()),
            });
        named.chain(self.drain.iter().cloned()).collect()
    }
}

/// Those that contest a service: the one in force first.
fn contenders<'a>(policies: &'a Policies, service: &ServiceKey) -> Vec<&'a DeclaredPolicy> {
    let meant = policies
        .values()
        .filter(|policy| policy.contests)
        .filter_map(|policy| Some((policy.means(service)?, policy)));
    let mut meant: Vec<_> = meant.collect();
    let best = meant.iter().map(|(precision, _)| *precision).max();
    meant.retain(|(precision, _)| Some(*precision) == best);
    let mut contenders: Vec<_> = meant.into_iter().map(|(_, policy)| policy).collect();
    contenders.sort_by(|a, b| (a.created, &a.key).cmp(&(b.created, &b.key)));
    contenders
}

/// What is in force for a service, when these peers are stale.
pub fn in_force(
    policies: &Policies,
    service: &ServiceKey,
    default: FailbackConfig,
    stale: &BTreeSet<ClusterId>,
) -> InForce {
    let drained = drains(policies, service).into_keys().collect();
    let Some(policy) = contenders(policies, service).first().copied() else {
        return InForce {
            policy: None,
            failback: default,
            drained,
        };
    };
    let mut shown = Arc::clone(&policy.base);
    match policy.stale_peers {
        _ if stale.is_empty() => {}
        StalePeers::Keep => {}
        StalePeers::Avoid => Arc::make_mut(&mut shown).avoided.clone_from(stale),
        StalePeers::Exclude => Arc::make_mut(&mut shown).excluded.clone_from(stale),
    }
    InForce {
        policy: Some(shown),
        failback: FailbackConfig {
            hold: policy.hold.unwrap_or(default.hold),
            ramp: policy.ramp.unwrap_or(default.ramp),
        },
        drained,
    }
}

/// The clusters that are drained for a service, and by which policies.
pub fn drains(policies: &Policies, service: &ServiceKey) -> BTreeMap<ClusterId, Vec<ServiceKey>> {
    let mut drains: BTreeMap<ClusterId, Vec<ServiceKey>> = BTreeMap::new();
    for policy in policies.values() {
        if policy.means(service).is_some() {
            for cluster in &policy.drain {
                drains
                    .entry(cluster.clone())
                    .or_default()
                    .push(policy.key.clone());
            }
        }
    }
    drains
}

/// The conditions of every policy. `services` are those that callers here may use, `clusters`
/// the own one and those linked.
pub fn conditions(
    policies: &Policies,
    services: &BTreeSet<&ServiceKey>,
    clusters: &BTreeSet<&ClusterId>,
) -> BTreeMap<ServiceKey, Vec<Condition>> {
    let mut won: BTreeMap<&ServiceKey, usize> = BTreeMap::new();
    let mut lost: BTreeMap<&ServiceKey, Vec<String>> = BTreeMap::new();
    for service in services {
        let contenders = contenders(policies, service);
        let Some((winner, losers)) = contenders.split_first() else {
            continue;
        };
        *won.entry(&winner.key).or_default() += 1;
        for loser in losers {
            let message = format!("for `{service}` the older `{}` stands", winner.key);
            lost.entry(&loser.key).or_default().push(message);
        }
    }
    let of = |policy: &DeclaredPolicy| {
        let none = Vec::new();
        let lost = lost.get(&policy.key).unwrap_or(&none);
        let won = won.get(&policy.key).copied().unwrap_or(0);
        vec![
            accepted(policy, services, won, lost),
            conflict(lost),
            resolved(policy, clusters),
        ]
    };
    policies
        .iter()
        .map(|(key, policy)| (key.clone(), of(policy)))
        .collect()
}

fn accepted(
    policy: &DeclaredPolicy,
    services: &BTreeSet<&ServiceKey>,
    won: usize,
    lost: &[String],
) -> Condition {
    use ConditionStatus::{False, True};
    let missing: Vec<_> = policy
        .targets
        .iter()
        .filter(|key| !services.contains(key))
        .collect();
    let named: Vec<_> = missing
        .iter()
        .take(NAMED)
        .map(|key| format!("`{key}`"))
        .collect();
    let missing_text = format!(
        "no service {} is declared or imported here; correct spec.targetRefs or declare it",
        named.join(", ")
    );
    if !missing.is_empty() && missing.len() == policy.targets.len() {
        return Condition::new("Accepted", False, "TargetNotFound", missing_text);
    }
    if policy.contests && won == 0 && !lost.is_empty() {
        let message = "another policy stands wherever this one would; see Conflict";
        return Condition::new("Accepted", False, "Conflicted", message);
    }
    let mut message = match (policy.contests, won) {
        (true, 1) => "in force for 1 service".to_owned(),
        (true, won) => format!("in force for {won} services"),
        (false, _) => format!("drains {}", texts(policy.drain.iter())),
    };
    if !missing.is_empty() {
        message = format!("{message}; {missing_text}");
    }
    Condition::new("Accepted", True, "Accepted", message)
}

fn conflict(lost: &[String]) -> Condition {
    if lost.is_empty() {
        return Condition::new("Conflict", ConditionStatus::False, "NoConflicts", "");
    }
    let mut message = lost[..lost.len().min(NAMED)].join("; ");
    if lost.len() > NAMED {
        message = format!("{message}; and for {} more", lost.len() - NAMED);
    }
    Condition::new("Conflict", ConditionStatus::True, "Conflicted", message)
}

fn resolved(policy: &DeclaredPolicy, clusters: &BTreeSet<&ClusterId>) -> Condition {
    use ConditionStatus::{False, True};
    let named = policy.clusters();
    let unknown: Vec<_> = named.iter().filter(|of| !clusters.contains(of)).collect();
    if unknown.is_empty() {
        return Condition::new("ResolvedRefs", True, "ResolvedRefs", "");
    }
    let message = format!(
        "not linked: {}; linked are {}",
        texts(unknown.into_iter()),
        texts(clusters.iter())
    );
    Condition::new("ResolvedRefs", False, "ClusterNotFound", message)
}

fn texts(of: impl Iterator<Item = impl std::fmt::Display>) -> String {
    of.map(|one| one.to_string()).collect::<Vec<_>>().join(", ")
}

fn base(key: &ServiceKey, spec: &resources::FailoverPolicySpec) -> Result<FailoverPolicy, String> {
    let tier = |tier: &resources::Tier| {
        Ok::<_, String>(TierMatch {
            area: area(&tier.clusters, &tier.regions, &tier.zones)?,
            labels: tier.labels.clone(),
        })
    };
    let weight = |entry: &resources::LocalityWeight| {
        Ok::<_, String>(LocalityWeight {
            area: area(&entry.clusters, &entry.regions, &entry.zones)?,
            weight: entry.weight,
        })
    };
    Ok(FailoverPolicy {
        name: Arc::from(key.to_string()),
        order: spec.order.iter().map(tier).collect::<Result<_, _>>()?,
        unlisted: match spec.unlisted.unwrap_or_default() {
            resources::Unlisted::Last => Unlisted::Last,
            resources::Unlisted::Exclude => Unlisted::Exclude,
        },
        weights: spec
            .locality_weights
            .iter()
            .map(weight)
            .collect::<Result<_, _>>()?,
        overprovisioning: spec
            .overprovisioning_factor
            .unwrap_or(DEFAULT_OVERPROVISIONING),
        max_remote_share: spec.max_remote_share,
        avoided: BTreeSet::new(),
        excluded: BTreeSet::new(),
    })
}

fn area(clusters: &[String], regions: &[String], zones: &[String]) -> Result<Area, String> {
    let cluster = |name: &String| match name.as_str() {
        OWN => Ok(Named::Own),
        name => name
            .parse()
            .map(Named::Name)
            .map_err(|error| format!("clusters: {error}")),
    };
    let place = |name: &String| match name.as_str() {
        OWN => Named::Own,
        name => Named::Name(Arc::<str>::from(name)),
    };
    Ok(Area {
        clusters: clusters.iter().map(cluster).collect::<Result<_, _>>()?,
        regions: regions.iter().map(place).collect(),
        zones: zones.iter().map(place).collect(),
    })
}

//! `linkspan.io/v1alpha1 FailoverPolicy`: where the requests of this cluster's callers go first,
//! where next, and how much of it.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::metadata::NAMESPACED;
use crate::rules;
use crate::shape::{
    Findings, ObjectShape, Shape, at_most, describe, none_across, optional, required,
};
use crate::yaml::{Node, Value};
use crate::{Metadata, Span};

/// Stands for the caller's own cluster, region or zone where one is named.
pub const OWN: &str = "Own";
/// Most tiers of an order.
pub const MAX_TIERS: usize = 10;
/// Most entries of any other list.
const MAX_ENTRIES: usize = 100;

/// What is said about priorities and shares of some services.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FailoverPolicy {
    /// Name and namespace; the namespace is that of the services.
    pub metadata: Metadata,
    /// What is said.
    pub spec: FailoverPolicySpec,
}

/// `spec` of a [`FailoverPolicy`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FailoverPolicySpec {
    /// Services of the namespace; empty is all of them (in `linkspan-system`: of the cluster).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_ENTRIES))]
    pub target_refs: Vec<TargetRef>,
    /// Tiers, first one first; an endpoint belongs to the first that it fits. Absent or empty:
    /// by nearness.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_TIERS))]
    pub order: Vec<Tier>,
    /// What becomes of endpoints that fit no tier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unlisted: Option<Unlisted>,
    /// Parts of a priority by locality; absent or empty: in proportion to endpoints.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_ENTRIES))]
    pub locality_weights: Vec<LocalityWeight>,
    /// In percent; a tier takes everything while at least 1/factor of it is available.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 100, max = 1_000))]
    pub overprovisioning_factor: Option<u32>,
    /// The most that may leave the caller's cluster, in percent of requests, retries included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub max_remote_share: Option<u32>,
    /// How traffic comes home.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failback: Option<Failback>,
    /// What becomes of a peer whose records are not being kept up to date.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale_peers: Option<StalePeers>,
    /// Clusters that get no requests while anything else is healthy.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_ENTRIES))]
    pub drain: Vec<String>,
}

impl FailoverPolicySpec {
    /// Whether it says anything but which clusters are drained.
    pub fn says_more_than_drain(&self) -> bool {
        let rest = Self {
            target_refs: Vec::new(),
            drain: Vec::new(),
            ..self.clone()
        };
        // A policy of nothing at all is one: the default, where a wider policy says otherwise.
        rest != Self::default() || self.drain.is_empty()
    }
}

/// A service that a policy is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TargetRef {
    /// API group of the kind; empty for `Service`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(extend("enum" = ["", "multicluster.x-k8s.io"]))]
    pub group: String,
    /// `Service` or `ServiceImport`; either way all requests to that name are meant.
    pub kind: TargetKind,
    /// Its name.
    #[schemars(length(max = rules::MAX_LABEL), regex(pattern = rules::DNS_LABEL))]
    pub name: String,
}

/// Kind of a [`TargetRef`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum TargetKind {
    /// `v1 Service`.
    Service,
    /// `multicluster.x-k8s.io ServiceImport`.
    ServiceImport,
}

/// One tier: endpoints that fit everything that is said; what is left out fits all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Tier {
    /// Cluster ids, or `Own`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_ENTRIES))]
    pub clusters: Vec<String>,
    /// Regions, or `Own`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_ENTRIES))]
    pub regions: Vec<String>,
    /// Zones, or `Own`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_ENTRIES))]
    pub zones: Vec<String>,
    /// Labels of the workload.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = rules::MAX_TEXTS))]
    pub labels: BTreeMap<String, String>,
}

/// A locality's part of its priority.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LocalityWeight {
    /// Cluster ids, or `Own`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_ENTRIES))]
    pub clusters: Vec<String>,
    /// Regions, or `Own`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_ENTRIES))]
    pub regions: Vec<String>,
    /// Zones, or `Own`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_ENTRIES))]
    pub zones: Vec<String>,
    /// Relative weight of each locality that fits.
    #[schemars(range(min = 1, max = 1_000))]
    pub weight: u32,
}

/// `spec.failback` of a [`FailoverPolicy`]; what is left out is federation's default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Failback {
    /// How long a priority must have been better before traffic returns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hold: Option<Span>,
    /// How long the return then takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ramp: Option<Span>,
}

/// `spec.unlisted` of a [`FailoverPolicy`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Unlisted {
    /// They come after all tiers, by nearness among themselves.
    #[default]
    Last,
    /// They are not used.
    Exclude,
}

/// `spec.stalePeers` of a [`FailoverPolicy`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum StalePeers {
    /// They are used as before.
    #[default]
    Keep,
    /// They come after everything else.
    Avoid,
    /// They are not used.
    Exclude,
}

pub(crate) const SHAPE: ObjectShape = ObjectShape {
    fields: &[
        required("metadata", Shape::Object(&NAMESPACED)),
        required("spec", Shape::Object(&SPEC)),
        optional("status", Shape::Ignored),
    ],
    ignored: &[],
    across: none_across,
};

const SPEC: ObjectShape = ObjectShape {
    fields: &[
        optional("targetRefs", Shape::List(&Shape::Object(&TARGET))),
        optional("order", Shape::List(&Shape::Object(&TIER))),
        optional("unlisted", Shape::OneOf(&["last", "exclude"])),
        optional("localityWeights", Shape::List(&Shape::Object(&WEIGHT))),
        optional("overprovisioningFactor", Shape::Integer(100, 1_000)),
        optional("maxRemoteShare", Shape::Integer(0, 100)),
        optional("failback", Shape::Object(&FAILBACK)),
        optional("stalePeers", Shape::OneOf(&["keep", "avoid", "exclude"])),
        optional("drain", Shape::List(&Shape::Text(rules::cluster_id))),
    ],
    ignored: &[],
    across: lists_are_short,
};

const TARGET: ObjectShape = ObjectShape {
    fields: &[
        optional("group", Shape::OneOf(&["", "multicluster.x-k8s.io"])),
        required("kind", Shape::OneOf(&["Service", "ServiceImport"])),
        required("name", Shape::Text(rules::dns_label)),
    ],
    ignored: &[],
    across: group_fits_kind,
};

const CLUSTERS: crate::shape::Field =
    optional("clusters", Shape::List(&Shape::Text(rules::own_or_cluster)));
const REGIONS: crate::shape::Field =
    optional("regions", Shape::List(&Shape::Text(rules::own_or_place)));
const ZONES: crate::shape::Field =
    optional("zones", Shape::List(&Shape::Text(rules::own_or_place)));

const TIER: ObjectShape = ObjectShape {
    fields: &[
        CLUSTERS,
        REGIONS,
        ZONES,
        optional("labels", Shape::Texts(rules::label_key, rules::label_value)),
    ],
    ignored: &[],
    across: lists_are_short,
};

const WEIGHT: ObjectShape = ObjectShape {
    fields: &[
        CLUSTERS,
        REGIONS,
        ZONES,
        required("weight", Shape::Integer(1, 1_000)),
    ],
    ignored: &[],
    across: lists_are_short,
};

const FAILBACK: ObjectShape = ObjectShape {
    fields: &[
        optional("hold", Shape::Text(rules::span)),
        optional("ramp", Shape::Text(rules::span)),
    ],
    ignored: &[],
    across: none_across,
};

/// What every sidecar looks through for each plan must stay small.
fn lists_are_short(of: &Node, path: &str, findings: &mut Findings) {
    at_most(of, path, "labels", rules::MAX_TEXTS, findings);
    let Value::Map(entries) = &of.value else {
        return;
    };
    for (name, node) in entries {
        let most = if name == "order" {
            MAX_TIERS
        } else {
            MAX_ENTRIES
        };
        if node.items().len() > most {
            let fix = format!("list at most {most}");
            findings.add(node.line, &format!("{path}.{name}"), describe(node), fix);
        }
    }
}

fn group_fits_kind(target: &Node, path: &str, findings: &mut Findings) {
    let text = |field| target.get(field).and_then(Node::text);
    let right = match text("kind") {
        Some("ServiceImport") => "multicluster.x-k8s.io",
        _ => "",
    };
    if let Some(group) = target.get("group").filter(|_| text("group") != Some(right)) {
        let fix = format!("write `{right}`, the group of that kind, or leave it out");
        findings.add(group.line, &format!("{path}.group"), describe(group), fix);
    }
}

//! A service's failover policy, on the wire.

use std::fmt::Display;

use linkspan_api::v1;
use linkspan_core::{Area, FailoverPolicy, Named, Unlisted};

use crate::convert::wire_labels;

/// As proxies are told.
pub(super) fn wire_policy(policy: &FailoverPolicy) -> v1::FailoverPolicy {
    let order = policy.order.iter().map(|tier| v1::FailoverTier {
        area: Some(area(&tier.area)),
        labels: wire_labels(&tier.labels),
    });
    let weights = policy.weights.iter().map(|entry| v1::LocalityWeight {
        area: Some(area(&entry.area)),
        weight: entry.weight,
    });
    v1::FailoverPolicy {
        name: policy.name.to_string(),
        order: order.collect(),
        exclude_unlisted: policy.unlisted == Unlisted::Exclude,
        weights: weights.collect(),
        overprovisioning: policy.overprovisioning,
        max_remote_share: policy.max_remote_share,
        avoided: policy.avoided.iter().map(ToString::to_string).collect(),
        excluded: policy.excluded.iter().map(ToString::to_string).collect(),
    }
}

fn area(of: &Area) -> v1::FailoverArea {
    v1::FailoverArea {
        clusters: of.clusters.iter().map(named).collect(),
        regions: of.regions.iter().map(named).collect(),
        zones: of.zones.iter().map(named).collect(),
    }
}

fn named<T: Display>(of: &Named<T>) -> String {
    match of {
        Named::Own => "Own".to_owned(),
        Named::Name(name) => name.to_string(),
    }
}

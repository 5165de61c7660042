//! A service's failover policy, from the wire.

use std::{collections::BTreeMap, sync::Arc};

use linkspan_api::v1;
use linkspan_routing::{
    Area, ClusterId, DEFAULT_OVERPROVISIONING, FailoverPolicy, LocalityWeight, MAX_ORDER, Named,
    TierMatch, Unlisted,
};

use super::records::{RecordError, parse, parse_all};

/// What stands for the caller's own cluster, region or zone.
const OWN: &str = "Own";
/// Entries of a list; federation lets nobody declare more.
const MAX_ENTRIES: usize = 100;

/// The typed form.
pub(super) fn policy(wire: v1::FailoverPolicy) -> Result<FailoverPolicy, RecordError> {
    if wire.order.len() > MAX_ORDER || wire.weights.len() > MAX_ENTRIES {
        return Err(RecordError::new("failover", "too many tiers or weights"));
    }
    let tier = |tier: v1::FailoverTier| {
        Ok(TierMatch {
            area: area(tier.area.unwrap_or_default())?,
            labels: labels(tier.labels),
        })
    };
    let weight = |entry: v1::LocalityWeight| {
        Ok(LocalityWeight {
            area: area(entry.area.unwrap_or_default())?,
            weight: entry.weight,
        })
    };
    Ok(FailoverPolicy {
        name: wire.name.into(),
        order: wire.order.into_iter().map(tier).collect::<Result<_, _>>()?,
        unlisted: if wire.exclude_unlisted {
            Unlisted::Exclude
        } else {
            Unlisted::Last
        },
        weights: wire
            .weights
            .into_iter()
            .map(weight)
            .collect::<Result<_, _>>()?,
        overprovisioning: match wire.overprovisioning {
            0 => DEFAULT_OVERPROVISIONING,
            percent => percent.max(100),
        },
        max_remote_share: wire.max_remote_share.map(|percent| percent.min(100)),
        avoided: parse_all("failover.avoided", &wire.avoided)?,
        excluded: parse_all("failover.excluded", &wire.excluded)?,
    })
}

/// Labels by key.
pub(super) fn labels(wire: Vec<v1::Label>) -> BTreeMap<String, String> {
    let labels = wire.into_iter().take(MAX_ENTRIES);
    labels.map(|label| (label.key, label.value)).collect()
}

fn area(wire: v1::FailoverArea) -> Result<Area, RecordError> {
    if [&wire.clusters, &wire.regions, &wire.zones]
        .iter()
        .any(|list| list.len() > MAX_ENTRIES)
    {
        return Err(RecordError::new("failover", "too many names in a tier"));
    }
    let cluster = |name: String| {
        let named = || parse::<ClusterId>("failover.clusters", &name).map(Named::Name);
        if name == OWN { Ok(Named::Own) } else { named() }
    };
    let place = |name: String| match name.as_str() {
        OWN => Named::Own,
        name => Named::Name(Arc::<str>::from(name)),
    };
    Ok(Area {
        clusters: wire
            .clusters
            .into_iter()
            .map(cluster)
            .collect::<Result<_, _>>()?,
        regions: wire.regions.into_iter().map(place).collect(),
        zones: wire.zones.into_iter().map(place).collect(),
    })
}

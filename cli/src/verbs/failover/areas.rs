//! Tiers and weights as they are written on the command line.

use std::{collections::BTreeMap, str::FromStr};

use anyhow::{Context as _, bail};
use serde_json::{Map, Value, json};

/// Clusters, regions and zones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Area {
    clusters: Vec<String>,
    regions: Vec<String>,
    zones: Vec<String>,
}

impl Area {
    /// Takes in one item; false if it is of another kind.
    fn take(&mut self, item: &str) -> anyhow::Result<bool> {
        let (list, name) = match item.split_once('=') {
            None => (&mut self.clusters, item),
            Some(("cluster", name)) => (&mut self.clusters, name),
            Some(("region", name)) => (&mut self.regions, name),
            Some(("zone", name)) => (&mut self.zones, name),
            Some(_) => return Ok(false),
        };
        if name.is_empty() {
            bail!("a name is missing in {item:?}");
        }
        list.push(name.to_owned());
        Ok(true)
    }

    fn json(&self) -> Map<String, Value> {
        let lists = [
            ("clusters", &self.clusters),
            ("regions", &self.regions),
            ("zones", &self.zones),
        ];
        let said = lists.into_iter().filter(|(_, names)| !names.is_empty());
        said.map(|(name, names)| (name.to_owned(), json!(names)))
            .collect()
    }
}

/// One tier: `Own,zone=Own,label.version=v2`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tier {
    area: Area,
    labels: BTreeMap<String, String>,
}

impl Tier {
    pub(super) fn json(&self) -> Value {
        let mut tier = self.area.json();
        if !self.labels.is_empty() {
            tier.insert("labels".to_owned(), json!(self.labels));
        }
        Value::Object(tier)
    }
}

impl FromStr for Tier {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut tier = Self::default();
        for item in text.split(',') {
            if tier.area.take(item)? {
                continue;
            }
            match item
                .strip_prefix("label.")
                .and_then(|label| label.split_once('='))
            {
                Some((key, value)) if !key.is_empty() => {
                    tier.labels.insert(key.to_owned(), value.to_owned());
                }
                _ => bail!(
                    "{item:?} is none of NAME, cluster=NAME, region=NAME, zone=NAME, label.KEY=VALUE"
                ),
            }
        }
        Ok(tier)
    }
}

/// The weight of some localities: `cluster=west,zone=a:20`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Weight {
    area: Area,
    weight: u32,
}

impl Weight {
    pub(super) fn json(&self) -> Value {
        let mut entry = self.area.json();
        entry.insert("weight".to_owned(), json!(self.weight));
        Value::Object(entry)
    }
}

impl FromStr for Weight {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (items, weight) = text
            .rsplit_once(':')
            .context("write an area, a colon and a weight, for example zone=a:80")?;
        let weight = weight
            .parse()
            .with_context(|| format!("{weight:?} is no weight"))?;
        let mut area = Area::default();
        for item in items.split(',') {
            if !area.take(item)? {
                bail!("{item:?} is none of NAME, cluster=NAME, region=NAME, zone=NAME");
            }
        }
        Ok(Self { area, weight })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_malformed_is_refused_with_the_right_form() {
        for wrong in ["", "cluster=", "color=red", "label.=x", "west,,north"] {
            assert!(wrong.parse::<Tier>().is_err(), "{wrong}");
        }
        for wrong in ["zone=a", "zone=a:", "zone=a:x", "label.v=1:3", ":3"] {
            assert!(wrong.parse::<Weight>().is_err(), "{wrong}");
        }
    }
}

//! `linkspan explain NAMESPACE/SERVICE`.

use std::str::FromStr;

use anyhow::bail;
use linkspan_api::v1;
use serde::Serialize;

use super::service_name::ServiceName;
use crate::{
    exit::{Failure, help},
    operator::{self, OperatorArgs},
    output::{Format, percent, place, table},
};

/// Says where the next request to a service goes, and why, share by share.
///
/// The answer comes from the very functions that sidecars run, on the very records that they
/// are sent. What a single sidecar has learnt by its own requests (ejected endpoints) it shows
/// itself, on its debug address under /debug.
#[derive(Debug, clap::Args)]
#[command(after_long_help = help!(
    "linkspan explain shop/checkout",
    "linkspan explain shop/checkout --from east/a",
    "linkspan explain shop/checkout --from east/eu/a --without-cluster west",
    "linkspan explain shop/checkout --from west --port 80 -o json",
))]
pub struct Args {
    /// The service that is called
    #[arg(value_name = "NAMESPACE/SERVICE")]
    service: ServiceName,
    /// Where the caller is: its cluster, and its zone or region and zone [default: this cluster]
    #[arg(long, value_name = "CLUSTER[/[REGION/]ZONE]")]
    from: Option<Caller>,
    /// As if this cluster had just been lost; may be repeated
    #[arg(long, value_name = "CLUSTER")]
    without_cluster: Vec<String>,
    /// The Service port [default: the first]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    #[command(flatten)]
    operator: OperatorArgs,
    /// Text for people, JSON for programs
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Where a caller is; what is empty is not said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Caller {
    cluster: String,
    region: String,
    zone: String,
}

impl FromStr for Caller {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let words: Vec<_> = text.split('/').map(str::to_owned).collect();
        if words.iter().any(String::is_empty) {
            bail!("write it as CLUSTER, CLUSTER/ZONE or CLUSTER/REGION/ZONE");
        }
        let (cluster, region, zone) = match <[String; 3]>::try_from(words) {
            Ok([cluster, region, zone]) => (cluster, region, zone),
            Err(words) => match <[String; 2]>::try_from(words) {
                Ok([cluster, zone]) => (cluster, String::new(), zone),
                Err(words) => match <[String; 1]>::try_from(words) {
                    Ok([cluster]) => (cluster, String::new(), String::new()),
                    Err(_) => bail!("write it as CLUSTER, CLUSTER/ZONE or CLUSTER/REGION/ZONE"),
                },
            },
        };
        Ok(Self {
            cluster,
            region,
            zone,
        })
    }
}

pub(crate) fn explain(args: &Args) -> Result<(), Failure> {
    let from = args.from.clone().unwrap_or_default();
    let request = v1::ExplainRequest {
        key: Some(args.service.key()),
        port: args.port.unwrap_or(0).into(),
        cluster: from.cluster,
        region: from.region,
        zone: from.zone,
        without: args.without_cluster.clone(),
    };
    let reply = operator::block_on(async {
        let mut operator = args.operator.connect().await?;
        operator.explain(request).await
    })?;
    args.output.print(&View::from(reply), text)
}

/// The JSON shape, which scripts rely on.
#[derive(Debug, Serialize)]
struct View {
    service: String,
    port: u32,
    from: From,
    without: Vec<String>,
    /// None: the default order.
    policy: Option<String>,
    shares: Vec<Share>,
    refused: f64,
    refused_reason: Option<String>,
    notes: Vec<String>,
}

#[derive(Debug, Serialize)]
struct From {
    cluster: String,
    region: String,
    zone: String,
}

#[derive(Debug, Serialize)]
struct Share {
    priority: u32,
    /// Which entry of the policy's order, counted from 1.
    listed: Option<u32>,
    nearness: String,
    cluster: String,
    region: String,
    zone: String,
    share: f64,
    available: u32,
    expected: u32,
    not_ready: u32,
    ejected: u32,
    why: String,
    reason: String,
}

fn some(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

impl std::convert::From<v1::ExplainResponse> for View {
    fn from(reply: v1::ExplainResponse) -> Self {
        let at = reply.locality.unwrap_or_default();
        Self {
            service: ServiceName::from(reply.key.unwrap_or_default()).to_string(),
            port: reply.port,
            from: From {
                cluster: reply.cluster,
                region: at.region,
                zone: at.zone,
            },
            without: reply.without,
            policy: some(reply.policy),
            shares: reply.shares.into_iter().map(Share::from).collect(),
            refused: reply.refused,
            refused_reason: some(reply.refused_reason),
            notes: reply.notes,
        }
    }
}

impl std::convert::From<v1::ExplainedShare> for Share {
    fn from(share: v1::ExplainedShare) -> Self {
        let at = share.locality.unwrap_or_default();
        Self {
            priority: share.priority,
            listed: (share.listed > 0).then_some(share.listed),
            nearness: share.nearness,
            cluster: share.cluster,
            region: at.region,
            zone: at.zone,
            share: share.share,
            available: share.available,
            expected: share.expected,
            not_ready: share.not_ready,
            ejected: share.ejected,
            why: share.why,
            reason: share.reason,
        }
    }
}

fn text(view: &View) -> String {
    let mut text = format!(
        "{} port {}, called from {} {}\n",
        view.service,
        view.port,
        view.from.cluster,
        place(&view.from.region, &view.from.zone),
    );
    if !view.without.is_empty() {
        text.push_str(&format!("as if just lost: {}\n", view.without.join(", ")));
    }
    let policy = view.policy.as_deref();
    text.push_str(&match policy {
        Some(policy) => format!("failover policy {policy}\n\n"),
        None => "no failover policy: the default order, by nearness\n\n".to_owned(),
    });
    let row = |share: &Share| {
        let tier = share.listed.map(|listed| format!(" (tier {listed})"));
        [
            format!("{}{}", share.priority, tier.unwrap_or_default()),
            share.cluster.clone(),
            place(&share.region, &share.zone),
            percent(share.share),
            format!("{}/{}", share.available, share.expected),
            share.reason.clone(),
        ]
    };
    if view.shares.is_empty() {
        text.push_str("no cluster offers it\n");
    } else {
        let header = [
            "PRIORITY",
            "CLUSTER",
            "REGION/ZONE",
            "SHARE",
            "READY",
            "WHY",
        ];
        text.push_str(&table(header, view.shares.iter().map(row).collect()));
    }
    if let Some(reason) = &view.refused_reason {
        text.push_str(&format!("\n{} refused: {reason}\n", percent(view.refused)));
    }
    for note in &view.notes {
        text.push_str(&format!("\nnote: {note}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_is_a_cluster_and_perhaps_a_place() {
        let caller = |cluster: &str, region: &str, zone: &str| Caller {
            cluster: cluster.into(),
            region: region.into(),
            zone: zone.into(),
        };
        for (written, meant) in [
            ("east", caller("east", "", "")),
            ("east/a", caller("east", "", "a")),
            ("east/eu/a", caller("east", "eu", "a")),
        ] {
            assert_eq!(written.parse::<Caller>().expect("valid"), meant);
        }
        for wrong in ["", "/a", "east/", "a/b/c/d"] {
            assert!(wrong.parse::<Caller>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn text_names_every_share_and_what_is_refused() {
        let share = v1::ExplainedShare {
            priority: 1,
            listed: 2,
            cluster: "west".into(),
            locality: Some(v1::Locality {
                region: "eu".into(),
                zone: "a".into(),
            }),
            share: 0.3,
            available: 2,
            expected: 3,
            reason: "capped: at most 30 % may leave".into(),
            ..Default::default()
        };
        let view = View::from(v1::ExplainResponse {
            shares: vec![share],
            policy: "shop/checkout".into(),
            refused: 0.7,
            refused_reason: "no endpoint in the own cluster".into(),
            ..Default::default()
        });
        let text = text(&view);
        for part in [
            "failover policy shop/checkout",
            "1 (tier 2)",
            "eu/a",
            "30.0 %",
            "2/3",
            "70.0 % refused: no endpoint",
        ] {
            assert!(text.contains(part), "{part} not in\n{text}");
        }
    }
}

//! `linkspan link list` and `linkspan link show`.

use std::time::Duration;

use anyhow::anyhow;
use linkspan_api::v1;
use serde::Serialize;

use super::{addresses, rfc3339};
use crate::{
    exit::{Failure, help},
    operator::{self, OperatorArgs},
    output::{Format, table},
};

#[derive(Debug, clap::Args)]
#[command(after_long_help = help!("linkspan link list", "linkspan link list -o json"))]
pub(super) struct ListArgs {
    #[command(flatten)]
    operator: OperatorArgs,
    /// Text for people, JSON for programs
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Debug, clap::Args)]
#[command(after_long_help = help!("linkspan link show west", "linkspan link show west -o json"))]
pub(super) struct ShowArgs {
    /// Cluster id of the peer
    #[arg(value_name = "PEER")]
    peer: String,
    #[command(flatten)]
    operator: OperatorArgs,
    /// Text for people, JSON for programs
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// All that there is about links.
#[derive(Debug, Serialize)]
struct Links {
    links: Vec<Link>,
    removed: Vec<Removed>,
    invitations: Vec<Invitation>,
}

/// A link as people and programs see it.
#[derive(Debug, Serialize)]
pub(super) struct Link {
    pub(super) cluster: String,
    pub(super) trust_domain: String,
    /// `Pending` or `Active`.
    pub(super) state: &'static str,
    /// When it was made by invitation or became active; nothing where it is only declared.
    since: Option<String>,
    pending_until: Option<String>,
    pub(super) up: bool,
    gateways_up: u32,
    connections: u32,
    rtt_ms: Option<f64>,
    /// Where sync stands: Pending, Connecting, Syncing, Live, Stale.
    pub(super) sync: String,
    sync_age_ms: Option<u64>,
    records: u32,
    addresses: Vec<String>,
    imports: Vec<String>,
    problems: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Removed {
    cluster: String,
    trust_domain: String,
    told_until: String,
}

#[derive(Debug, Serialize)]
struct Invitation {
    id: String,
    peer: Option<String>,
    expires: String,
}

impl From<v1::LinkStatus> for Link {
    fn from(link: v1::LinkStatus) -> Self {
        let some = |unix| Some(rfc3339(unix)).filter(|text| !text.is_empty());
        Self {
            state: if link.pending { "Pending" } else { "Active" },
            since: some(link.since_unix),
            pending_until: some(link.pending_until_unix),
            up: link.gateways_up > 0,
            gateways_up: link.gateways_up,
            connections: link.connections,
            rtt_ms: (link.rtt_micros > 0).then(|| link.rtt_micros as f64 / 1000.0),
            sync: link.state,
            sync_age_ms: link.record_age_millis,
            records: link.records,
            addresses: addresses(&link.addresses),
            imports: link.imports,
            problems: link.problems,
            cluster: link.cluster,
            trust_domain: link.trust_domain,
        }
    }
}

impl From<v1::StatusResponse> for Links {
    fn from(status: v1::StatusResponse) -> Self {
        let removed = |of: v1::TombstoneStatus| Removed {
            cluster: of.cluster,
            trust_domain: of.trust_domain,
            told_until: rfc3339(of.until_unix),
        };
        let invitation = |of: v1::InvitationStatus| Invitation {
            id: of.id,
            peer: Some(of.peer).filter(|peer| !peer.is_empty()),
            expires: rfc3339(of.expires_unix),
        };
        Self {
            links: status.links.into_iter().map(Link::from).collect(),
            removed: status.tombstones.into_iter().map(removed).collect(),
            invitations: status.invitations.into_iter().map(invitation).collect(),
        }
    }
}

impl Link {
    fn tunnel(&self) -> String {
        match (self.up, self.rtt_ms) {
            (true, Some(rtt)) => format!("up ({} gateways, {rtt:.1} ms)", self.gateways_up),
            (true, None) => format!("up ({} gateways)", self.gateways_up),
            (false, _) => "down".to_owned(),
        }
    }

    fn sync(&self) -> String {
        match self.sync_age_ms {
            Some(age) => format!("{} ({} old)", self.sync, short(age)),
            None => self.sync.clone(),
        }
    }
}

/// An age to the second, below that to the millisecond.
fn short(millis: u64) -> String {
    let rounded = if millis >= 1_000 {
        millis / 1_000 * 1_000
    } else {
        millis
    };
    humantime::format_duration(Duration::from_millis(rounded)).to_string()
}

pub(super) fn list(args: &ListArgs) -> Result<(), Failure> {
    let status = ask(&args.operator)?;
    args.output.print(&Links::from(status), all)
}

pub(super) fn show(args: &ShowArgs) -> Result<(), Failure> {
    let links = Links::from(ask(&args.operator)?);
    match links
        .links
        .into_iter()
        .find(|link| link.cluster == args.peer)
    {
        Some(link) => args.output.print(&link, one),
        None => Err(Failure::Failed(anyhow!(
            "there is no link to `{}`; `linkspan link list` shows all",
            args.peer
        ))),
    }
}

fn ask(operator: &OperatorArgs) -> Result<v1::StatusResponse, Failure> {
    operator::block_on(async {
        let mut operator = operator.connect().await?;
        operator.status().await
    })
}

fn all(view: &Links) -> String {
    if view.links.is_empty() && view.removed.is_empty() && view.invitations.is_empty() {
        return "no links; `linkspan link invite` makes an invitation for another cluster\n".into();
    }
    let mut text = String::new();
    if !view.links.is_empty() {
        let row = |link: &Link| {
            [
                link.cluster.clone(),
                link.state.to_owned(),
                link.since.clone().unwrap_or_else(|| "declared".to_owned()),
                link.tunnel(),
                link.sync(),
                link.trust_domain.clone(),
            ]
        };
        let header = ["PEER", "STATE", "SINCE", "TUNNEL", "SYNC", "TRUST DOMAIN"];
        text += &table(header, view.links.iter().map(row).collect());
    }
    for gone in &view.removed {
        text += &format!(
            "removed: {} ({}); it is told so if it returns before {}\n",
            gone.cluster, gone.trust_domain, gone.told_until
        );
    }
    for open in &view.invitations {
        let whose = open.peer.as_deref().unwrap_or("any cluster");
        text += &format!(
            "invitation {} for {whose}, good until {}\n",
            open.id, open.expires
        );
    }
    for link in &view.links {
        for problem in &link.problems {
            text += &format!("{}: {problem}\n", link.cluster);
        }
    }
    text
}

fn one(link: &Link) -> String {
    let until = link
        .pending_until
        .as_ref()
        .map(|until| format!(", until {until} at most"));
    let since = link
        .since
        .as_ref()
        .map_or(", declared".to_owned(), |at| format!(" since {at}"));
    let mut rows = vec![
        ("peer", link.cluster.clone()),
        (
            "state",
            format!("{}{since}{}", link.state, until.unwrap_or_default()),
        ),
        ("trust domain", link.trust_domain.clone()),
        (
            "tunnel",
            format!("{}, {} connections", link.tunnel(), link.connections),
        ),
        ("sync", format!("{}, {} records", link.sync(), link.records)),
        (
            "addresses",
            joined(&link.addresses, "none: only the peer dials"),
        ),
        ("imports", joined(&link.imports, "none")),
    ];
    rows.extend(
        link.problems
            .iter()
            .map(|problem| ("problem", problem.clone())),
    );
    rows.iter()
        .map(|(name, value)| format!("{:<14}{value}\n", format!("{name}:")))
        .collect()
}

fn joined(all: &[String], none: &str) -> String {
    if all.is_empty() {
        none.to_owned()
    } else {
        all.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> v1::StatusResponse {
        v1::StatusResponse {
            links: vec![v1::LinkStatus {
                cluster: "west".into(),
                trust_domain: "west.test".into(),
                state: "Live".into(),
                gateways_up: 2,
                connections: 4,
                rtt_micros: 1_500,
                record_age_millis: Some(61_234),
                imports: vec!["*/*".into()],
                since_unix: 1_800_000_000,
                ..Default::default()
            }],
            tombstones: vec![v1::TombstoneStatus {
                cluster: "north".into(),
                trust_domain: "north.test".into(),
                until_unix: 1_800_000_000,
            }],
            invitations: vec![v1::InvitationStatus {
                id: "0a".into(),
                peer: String::new(),
                expires_unix: 1_800_000_000,
            }],
            ..Default::default()
        }
    }

    #[test]
    fn a_list_shows_links_tombstones_and_invitations() {
        let text = all(&Links::from(status()));
        for part in [
            "PEER",
            "west",
            "Active",
            "up (2 gateways, 1.5 ms)",
            "Live (1m 1s old)",
            "removed: north",
            "invitation 0a for any cluster",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(all(&Links::from(v1::StatusResponse::default())).contains("no links"));
    }

    #[test]
    fn a_link_is_shown_in_lines() {
        let mut link = status().links.remove(0);
        link.pending = true;
        link.pending_until_unix = 1_800_000_900;
        let text = one(&Link::from(link));
        for part in [
            "state:        Pending since 2027-01-15T08:00:00Z, until 2027-01-15T08:15:00Z at most",
            "addresses:    none: only the peer dials",
            "imports:      */*",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}

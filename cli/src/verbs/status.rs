//! `linkspan status`.

use std::fmt::Write as _;

use linkspan_api::v1;
use serde::Serialize;

use crate::{
    exit::{Failure, help},
    operator::{self, OperatorArgs},
    output::{Format, table},
};

/// Shows what a cluster's federation knows: links, services, gateways, workloads.
#[derive(Debug, clap::Args)]
#[command(after_long_help = help!(
    "linkspan status",
    "linkspan status --socket /var/lib/linkspan/operator.sock",
    "linkspan status --state-dir /var/lib/linkspan -o json",
))]
pub struct Args {
    #[command(flatten)]
    operator: OperatorArgs,
    /// Text for people, JSON for programs
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

pub(crate) fn status(args: &Args) -> Result<(), Failure> {
    let reply = operator::block_on(async {
        let mut operator = args.operator.connect().await?;
        operator.status().await
    })?;
    args.output.print(&View::from(reply), text)
}

/// The JSON shape, which scripts rely on; apart from the wire, which may grow otherwise.
#[derive(Debug, Serialize)]
struct View {
    cluster: String,
    clusterset: String,
    trust_domain: String,
    version: String,
    uptime_seconds: u64,
    links: Vec<Link>,
    services: Vec<Service>,
    gateways: Vec<Gateway>,
    workloads: Vec<Workload>,
    problems: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Link {
    cluster: String,
    trust_domain: String,
    state: String,
    usable: bool,
    gateways_up: u32,
    connections: u32,
    rtt_ms: Option<f64>,
    epoch: u64,
    records: u32,
    record_age_ms: Option<u64>,
    problems: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Service {
    name: String,
    declared: bool,
    exported: bool,
    endpoints: Vec<Endpoints>,
    conditions: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Endpoints {
    cluster: String,
    ready: u32,
    total: u32,
}

#[derive(Debug, Serialize)]
struct Gateway {
    replica: String,
    state: &'static str,
    egress_address: String,
    tunnel_addresses: Vec<String>,
    up: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Workload {
    uid: String,
    spiffe_id: String,
    address: String,
    ready: bool,
    presence: String,
}

impl From<v1::StatusResponse> for View {
    fn from(status: v1::StatusResponse) -> Self {
        Self {
            cluster: status.cluster,
            clusterset: status.clusterset,
            trust_domain: status.trust_domain,
            version: status.version,
            uptime_seconds: status.uptime_seconds,
            links: status.links.into_iter().map(Link::from).collect(),
            services: status.services.into_iter().map(Service::from).collect(),
            gateways: status.gateways.into_iter().map(Gateway::from).collect(),
            workloads: status.workloads.into_iter().map(Workload::from).collect(),
            problems: status.problems,
        }
    }
}

impl From<v1::LinkStatus> for Link {
    fn from(link: v1::LinkStatus) -> Self {
        Self {
            cluster: link.cluster,
            trust_domain: link.trust_domain,
            state: link.state,
            usable: link.usable,
            gateways_up: link.gateways_up,
            connections: link.connections,
            rtt_ms: (link.rtt_micros > 0).then(|| millis(link.rtt_micros)),
            epoch: link.epoch,
            records: link.records,
            record_age_ms: link.record_age_millis,
            problems: link.problems,
        }
    }
}

/// Microseconds as milliseconds, for display.
#[expect(
    clippy::cast_precision_loss,
    reason = "a round-trip time is far below 2^52 µs"
)]
fn millis(micros: u64) -> f64 {
    micros as f64 / 1000.0
}

impl From<v1::ServiceStatus> for Service {
    fn from(service: v1::ServiceStatus) -> Self {
        let key = service.key.unwrap_or_default();
        let endpoints = service.clusters.into_iter().map(|cluster| Endpoints {
            cluster: cluster.cluster,
            ready: cluster.ready,
            total: cluster.total,
        });
        Self {
            name: format!("{}/{}", key.namespace, key.name),
            declared: service.declared,
            exported: service.exported,
            endpoints: endpoints.collect(),
            conditions: service.conditions,
        }
    }
}

impl From<v1::GatewayStatus> for Gateway {
    fn from(gateway: v1::GatewayStatus) -> Self {
        let tunnel = gateway.tunnel_addresses.iter();
        Self {
            state: match (gateway.ready, gateway.draining) {
                (_, true) => "draining",
                (true, false) => "ready",
                (false, false) => "not ready",
            },
            tunnel_addresses: tunnel.map(|a| format!("{}:{}", a.host, a.port)).collect(),
            replica: gateway.replica,
            egress_address: gateway.egress_address,
            up: gateway.up,
        }
    }
}

impl From<v1::WorkloadStatus> for Workload {
    fn from(workload: v1::WorkloadStatus) -> Self {
        Self {
            uid: workload.uid,
            spiffe_id: workload.spiffe_id,
            address: workload.address,
            ready: workload.ready,
            presence: workload.presence,
        }
    }
}

fn text(view: &View) -> String {
    let mut text = format!(
        "cluster {} of clusterset {}, trust domain {}\nversion {}, up {}\n",
        view.cluster,
        view.clusterset,
        view.trust_domain,
        view.version,
        humantime::format_duration(std::time::Duration::from_secs(view.uptime_seconds)),
    );
    section(&mut text, "links", link_table(&view.links));
    section(&mut text, "services", service_table(&view.services));
    section(&mut text, "gateways", gateway_table(&view.gateways));
    section(&mut text, "workloads", workload_table(&view.workloads));
    for problem in problems(view) {
        let _ = write!(text, "\nproblem: {problem}");
    }
    text.push_str(if problems(view).next().is_some() {
        "\n"
    } else {
        ""
    });
    text
}

fn section(text: &mut String, name: &str, table: Option<String>) {
    match table {
        Some(table) => text.push_str(&format!("\n{table}")),
        None => text.push_str(&format!("\nno {name}\n")),
    }
}

fn link_table(links: &[Link]) -> Option<String> {
    let row = |link: &Link| {
        [
            link.cluster.clone(),
            link.state.clone(),
            yes(link.usable),
            link.gateways_up.to_string(),
            link.connections.to_string(),
            link.rtt_ms.map_or_else(dash, |rtt| format!("{rtt:.1} ms")),
            link.records.to_string(),
            link.record_age_ms
                .map_or_else(dash, |age| format!("{age} ms")),
        ]
    };
    let header = [
        "LINK", "STATE", "USABLE", "GATEWAYS", "CONNS", "RTT", "RECORDS", "AGE",
    ];
    (!links.is_empty()).then(|| table(header, links.iter().map(row).collect()))
}

fn service_table(services: &[Service]) -> Option<String> {
    let row = |service: &Service| {
        let endpoints = service
            .endpoints
            .iter()
            .map(|each| format!("{} {}/{}", each.cluster, each.ready, each.total));
        [
            service.name.clone(),
            yes(service.declared),
            yes(service.exported),
            some_list(endpoints.collect()),
            some_list(service.conditions.clone()),
        ]
    };
    let header = ["SERVICE", "DECLARED", "EXPORTED", "READY", "CONDITIONS"];
    (!services.is_empty()).then(|| table(header, services.iter().map(row).collect()))
}

fn gateway_table(gateways: &[Gateway]) -> Option<String> {
    let row = |gateway: &Gateway| {
        [
            gateway.replica.clone(),
            gateway.state.to_owned(),
            gateway.egress_address.clone(),
            some_list(gateway.tunnel_addresses.clone()),
            some_list(gateway.up.clone()),
        ]
    };
    let header = ["GATEWAY", "STATE", "EGRESS", "TUNNEL", "PEERS UP"];
    (!gateways.is_empty()).then(|| table(header, gateways.iter().map(row).collect()))
}

fn workload_table(workloads: &[Workload]) -> Option<String> {
    let row = |workload: &Workload| {
        [
            workload.uid.clone(),
            workload.address.clone(),
            yes(workload.ready),
            workload.presence.clone(),
            workload.spiffe_id.clone(),
        ]
    };
    let header = ["WORKLOAD", "ADDRESS", "READY", "PRESENCE", "IDENTITY"];
    (!workloads.is_empty()).then(|| table(header, workloads.iter().map(row).collect()))
}

fn problems(view: &View) -> impl Iterator<Item = String> {
    let links = view.links.iter().flat_map(|link| {
        link.problems
            .iter()
            .map(move |problem| format!("link {}: {problem}", link.cluster))
    });
    view.problems.iter().cloned().chain(links)
}

fn yes(value: bool) -> String {
    if value { "yes" } else { "no" }.to_owned()
}

fn dash() -> String {
    "-".to_owned()
}

fn some_list(list: Vec<String>) -> String {
    if list.is_empty() {
        dash()
    } else {
        list.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> v1::StatusResponse {
        v1::StatusResponse {
            cluster: "east".into(),
            clusterset: "demo".into(),
            trust_domain: "east.demo.linkspan.internal".into(),
            version: "0.1.0".into(),
            uptime_seconds: 61,
            links: vec![v1::LinkStatus {
                cluster: "west".into(),
                state: "Live".into(),
                usable: true,
                gateways_up: 2,
                rtt_micros: 1500,
                record_age_millis: Some(12),
                problems: vec!["endpoint refused".into()],
                ..Default::default()
            }],
            services: vec![v1::ServiceStatus {
                key: Some(v1::ServiceKey {
                    namespace: "shop".into(),
                    name: "checkout".into(),
                }),
                declared: true,
                exported: true,
                clusters: vec![v1::ClusterEndpoints {
                    cluster: "west".into(),
                    ready: 2,
                    total: 3,
                }],
                ..Default::default()
            }],
            ..Default::default()
        }
    }

    #[test]
    fn text_names_links_services_and_problems() {
        let text = text(&View::from(status()));
        for part in [
            "cluster east of clusterset demo",
            "up 1m 1s",
            "1.5 ms",
            "shop/checkout",
            "west 2/3",
            "no gateways",
            "problem: link west: endpoint refused",
        ] {
            assert!(text.contains(part), "{part} not in\n{text}");
        }
    }

    #[test]
    fn json_keeps_its_names() {
        let json = serde_json::to_value(View::from(status())).expect("JSON");
        assert_eq!(json["links"][0]["usable"], true);
        assert_eq!(json["links"][0]["rtt_ms"], 1.5);
        assert_eq!(json["services"][0]["endpoints"][0]["ready"], 2);
    }
}

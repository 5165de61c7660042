//! `linkspan services`.

use std::time::Duration;

use linkspan_api::v1;
use serde::Serialize;

use super::service_name::ServiceName;
use crate::{
    exit::{Failure, help},
    operator::{self, OperatorArgs},
    output::{Format, place, table},
};

/// Shows exports, imports, conflicts, and endpoints by cluster and zone with their age.
#[derive(Debug, clap::Args)]
#[command(after_long_help = help!(
    "linkspan services",
    "linkspan services --state-dir /var/lib/linkspan -o json",
))]
pub struct Args {
    #[command(flatten)]
    operator: OperatorArgs,
    /// Text for people, JSON for programs
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

pub(crate) fn services(args: &Args) -> Result<(), Failure> {
    let reply = operator::block_on(async {
        let mut operator = args.operator.connect().await?;
        operator.services().await
    })?;
    args.output.print(&View::from(reply), text)
}

/// The JSON shape, which scripts rely on.
#[derive(Debug, Serialize)]
struct View {
    cluster: String,
    services: Vec<Service>,
}

#[derive(Debug, Serialize)]
struct Service {
    name: String,
    declared: bool,
    export: Option<Export>,
    import: Option<Import>,
    clusters: Vec<Cluster>,
}

#[derive(Debug, Serialize)]
struct Export {
    created_unix: i64,
    conditions: Vec<Condition>,
}

#[derive(Debug, Serialize)]
struct Import {
    r#type: String,
    ports: Vec<Port>,
    session_affinity: String,
    conditions: Vec<Condition>,
    /// Where clients without a sidecar reach it.
    listeners: Vec<Listener>,
    /// Clusters whose exports admit such clients.
    unmeshed_clusters: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Listener {
    port: u32,
    listen: u32,
    open: Vec<String>,
    gateways: u32,
}

impl From<v1::ImportPortInfo> for Listener {
    fn from(of: v1::ImportPortInfo) -> Self {
        Self {
            port: of.port,
            listen: of.listen,
            open: of.open,
            gateways: of.gateways,
        }
    }
}

#[derive(Debug, Serialize)]
struct Port {
    name: String,
    port: u32,
}

#[derive(Debug, Serialize)]
pub(super) struct Condition {
    pub(super) r#type: String,
    pub(super) status: String,
    pub(super) reason: String,
    pub(super) message: String,
}

#[derive(Debug, Serialize)]
struct Cluster {
    cluster: String,
    exports: bool,
    created_unix: Option<i64>,
    ports: Vec<u32>,
    usable: bool,
    stale: bool,
    /// None for the own cluster.
    age_ms: Option<u64>,
    localities: Vec<Locality>,
    /// Endpoints without a sidecar.
    unmeshed: u32,
}

#[derive(Debug, Serialize)]
struct Locality {
    region: String,
    zone: String,
    ready: u32,
    total: u32,
    expected: u32,
}

impl From<v1::ServicesResponse> for View {
    fn from(reply: v1::ServicesResponse) -> Self {
        Self {
            cluster: reply.cluster,
            services: reply.services.into_iter().map(Service::from).collect(),
        }
    }
}

impl From<v1::ServiceInfo> for Service {
    fn from(of: v1::ServiceInfo) -> Self {
        let port = |port: v1::ServicePort| Port {
            name: port.name,
            port: port.port,
        };
        Self {
            name: ServiceName::from(of.key.unwrap_or_default()).to_string(),
            declared: of.declared,
            export: of.export.map(|export| Export {
                created_unix: export.created_unix,
                conditions: export.conditions.into_iter().map(Condition::from).collect(),
            }),
            import: of.import.map(|import| Import {
                r#type: import.r#type,
                ports: import.ports.into_iter().map(port).collect(),
                session_affinity: import.session_affinity,
                conditions: import.conditions.into_iter().map(Condition::from).collect(),
                listeners: import.listeners.into_iter().map(Listener::from).collect(),
                unmeshed_clusters: import.unmeshed_clusters,
            }),
            clusters: of.clusters.into_iter().map(Cluster::from).collect(),
        }
    }
}

impl From<v1::Condition> for Condition {
    fn from(of: v1::Condition) -> Self {
        Self {
            r#type: of.r#type,
            status: of.status,
            reason: of.reason,
            message: of.message,
        }
    }
}

impl From<v1::ClusterService> for Cluster {
    fn from(of: v1::ClusterService) -> Self {
        Self {
            cluster: of.cluster,
            exports: of.exports,
            created_unix: (of.created_unix > 0).then_some(of.created_unix),
            ports: of.ports,
            usable: of.usable,
            stale: of.stale,
            age_ms: of.age_millis,
            localities: of.localities.into_iter().map(Locality::from).collect(),
            unmeshed: of.unmeshed,
        }
    }
}

impl From<v1::LocalityService> for Locality {
    fn from(of: v1::LocalityService) -> Self {
        let at = of.locality.unwrap_or_default();
        Self {
            region: at.region,
            zone: at.zone,
            ready: of.ready,
            total: of.total,
            expected: of.expected,
        }
    }
}

fn text(view: &View) -> String {
    if view.services.is_empty() {
        return format!(
            "no service is declared in {} or imported there\n",
            view.cluster
        );
    }
    let rows = view.services.iter().flat_map(rows).collect();
    let header = [
        "SERVICE",
        "EXPORTED",
        "IMPORT",
        "CLUSTER",
        "REGION/ZONE",
        "READY",
        "STATE",
        "AGE",
    ];
    let mut text = table(header, rows);
    for service in &view.services {
        let lines = entrances(service).into_iter().chain(bare(service));
        for line in lines.chain(remarks(service)) {
            text.push_str(&format!("\n{}: {line}", service.name));
        }
    }
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

/// One for each cluster and zone; what is said of the service stands in the first.
fn rows(service: &Service) -> Vec<[String; 8]> {
    let exported = match (&service.export, service.declared) {
        (Some(_), _) => "yes",
        (None, true) => "no",
        (None, false) => "-",
    };
    let import = service.import.as_ref().map_or("-", |import| &import.r#type);
    let head = [service.name.clone(), exported.to_owned(), import.to_owned()];
    let mut rows: Vec<[String; 8]> = Vec::new();
    for cluster in &service.clusters {
        let nowhere = [Locality {
            region: String::new(),
            zone: String::new(),
            ready: 0,
            total: 0,
            expected: 0,
        }];
        let localities = match cluster.localities.as_slice() {
            [] => &nowhere,
            some => some,
        };
        for locality in localities {
            let first = rows.is_empty();
            let [name, exported, import] = head
                .clone()
                .map(|text| if first { text } else { String::new() });
            rows.push([
                name,
                exported,
                import,
                cluster.cluster.clone(),
                place(&locality.region, &locality.zone),
                ready(locality),
                state(cluster).to_owned(),
                cluster.age_ms.map_or_else(|| "-".to_owned(), age),
            ]);
        }
    }
    if rows.is_empty() {
        let [name, exported, import] = head;
        let none = || "-".to_owned();
        rows.push([
            name,
            exported,
            import,
            none(),
            none(),
            none(),
            none(),
            none(),
        ]);
    }
    rows
}

fn ready(locality: &Locality) -> String {
    let Locality {
        ready,
        total,
        expected,
        ..
    } = locality;
    if expected > total {
        return format!("{ready}/{total} of {expected}");
    }
    format!("{ready}/{total}")
}

fn state(cluster: &Cluster) -> &'static str {
    match (cluster.usable, cluster.stale) {
        (false, _) => "unreachable",
        (true, true) => "stale",
        (true, false) => "usable",
    }
}

/// Rounded: below a second nobody counts.
fn age(millis: u64) -> String {
    humantime::format_duration(Duration::from_secs(millis / 1000)).to_string()
}

/// Where clients without a sidecar reach the service, port by port.
fn entrances(service: &Service) -> Vec<String> {
    let import = service.import.iter();
    let one = |import: &Import, at: &Listener| {
        let clusters = import.unmeshed_clusters.join(", ");
        let where_ = match at.open.as_slice() {
            [] => format!("at no gateway yet, of {}", at.gateways),
            open => format!("at {}", open.join(", ")),
        };
        format!(
            "port {} is {} for clients without a sidecar ({where_}; admitted by {clusters})",
            at.port, at.listen
        )
    };
    import
        .flat_map(|import| import.listeners.iter().map(move |at| one(import, at)))
        .collect()
}

/// Where the mesh's encryption ends before the server.
fn bare(service: &Service) -> Vec<String> {
    let clusters = service.clusters.iter().filter(|of| of.unmeshed > 0);
    let one = |of: &Cluster| {
        format!(
            "{} in {} without a sidecar: gateways there decrypt what is sent to them",
            of.unmeshed, of.cluster
        )
    };
    clusters.map(one).collect()
}

/// What is wrong, or disputed.
fn remarks(service: &Service) -> Vec<String> {
    let of = |kind: &str, conditions: &[Condition]| -> Vec<String> {
        let worth = conditions.iter().filter(|of| match of.r#type.as_str() {
            "Conflict" => of.status == "True",
            _ => of.status != "True",
        });
        worth
            .map(|of| {
                format!(
                    "{kind} {}={}: {} ({})",
                    of.r#type, of.status, of.reason, of.message
                )
            })
            .collect()
    };
    let export = service.export.iter();
    let export = export.flat_map(|export| of("ServiceExport", &export.conditions));
    let import = service.import.iter();
    let import = import.flat_map(|import| of("ServiceImport", &import.conditions));
    export.chain(import).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply() -> v1::ServicesResponse {
        let locality = |zone: &str, ready| v1::LocalityService {
            locality: Some(v1::Locality {
                region: "eu".into(),
                zone: zone.into(),
            }),
            ready,
            total: 2,
            expected: 3,
        };
        let conflict = v1::Condition {
            r#type: "Conflict".into(),
            status: "True".into(),
            reason: "PortConflict".into(),
            message: "2 of 3 differ".into(),
        };
        v1::ServicesResponse {
            cluster: "east".into(),
            services: vec![v1::ServiceInfo {
                key: Some(v1::ServiceKey {
                    namespace: "shop".into(),
                    name: "checkout".into(),
                }),
                declared: true,
                export: Some(v1::ExportInfo {
                    created_unix: 1,
                    conditions: vec![conflict],
                }),
                import: Some(v1::ImportInfo {
                    r#type: "ClusterSetIP".into(),
                    ..Default::default()
                }),
                clusters: vec![v1::ClusterService {
                    cluster: "west".into(),
                    usable: true,
                    stale: true,
                    age_millis: Some(61_500),
                    localities: vec![locality("a", 1), locality("b", 2)],
                    ..Default::default()
                }],
            }],
        }
    }

    #[test]
    fn text_shows_each_zone_with_its_age_and_names_conflicts() {
        let text = text(&View::from(reply()));
        for part in [
            "eu/a",
            "eu/b",
            "1/2 of 3",
            "stale",
            "1m 1s",
            "PortConflict (2 of 3 differ)",
        ] {
            assert!(text.contains(part), "{part} not in\n{text}");
        }
        assert_eq!(text.matches("shop/checkout").count(), 2, "{text}");
    }

    #[test]
    fn json_keeps_its_names() {
        let json = serde_json::to_value(View::from(reply())).expect("JSON");
        let service = &json["services"][0];
        assert_eq!(service["export"]["conditions"][0]["reason"], "PortConflict");
        assert_eq!(service["clusters"][0]["localities"][1]["zone"], "b");
        assert_eq!(service["clusters"][0]["age_ms"], 61_500);
    }
}

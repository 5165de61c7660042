//! `linkspan failover show|set|drain`.

mod areas;

use linkspan_api::v1;
use serde::Serialize;
use serde_json::{Map, Value, json};

use self::areas::{Tier, Weight};
use super::{declared::Declared, service_name::ServiceName, services::Condition};
use crate::{
    exit::{Failure, help},
    operator::{self, OperatorArgs},
    output::{Format, table},
};

/// Shows and sets where requests go first, where next, and how much of it.
#[derive(Debug, clap::Args)]
#[command(after_long_help = help!(
    "linkspan failover show",
    "linkspan failover set shop/checkout --order Own --order west --max-remote-share 30",
    "linkspan failover drain west",
))]
pub struct Args {
    #[command(subcommand)]
    verb: FailoverVerb,
}

#[derive(Debug, clap::Subcommand)]
enum FailoverVerb {
    /// Shows the failover policies, what is in force, and what is drained
    Show(ShowArgs),
    /// Sets the failover policy of one service; what is not said stays as it was
    Set(SetArgs),
    /// Moves new requests away from a cluster, or lets them return
    ///
    /// Requests under way finish where they are. A drained cluster is used only when nothing
    /// else is healthy. When the drain ends, traffic returns as after a failure.
    Drain(DrainArgs),
}

#[derive(Debug, clap::Args)]
#[command(after_long_help = help!(
    "linkspan failover show",
    "linkspan failover show shop/checkout -o json",
))]
struct ShowArgs {
    /// Only what concerns this service
    #[arg(value_name = "NAMESPACE/SERVICE")]
    service: Option<ServiceName>,
    #[command(flatten)]
    operator: OperatorArgs,
    /// Text for people, JSON for programs
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Debug, clap::Args)]
#[command(after_long_help = help!(
    "linkspan failover set shop/checkout --order Own --order west --max-remote-share 30",
    "linkspan failover set shop/checkout --order cluster=Own,zone=Own --order region=Own --unlisted exclude",
    "linkspan failover set shop/checkout --weight zone=a:80 --weight cluster=west:20",
    "linkspan failover set shop/checkout --order Own,label.version=v2 --hold 1m --ramp 30s",
    "linkspan failover set shop/checkout --reset",
))]
struct SetArgs {
    /// The service
    #[arg(value_name = "NAMESPACE/SERVICE")]
    service: ServiceName,
    /// One tier, first tier first: NAME or cluster=NAME, region=, zone=, label.KEY=VALUE, with
    /// commas between them; several of a kind are alternatives; Own is the caller's
    #[arg(long, value_name = "TIER")]
    order: Vec<Tier>,
    /// What becomes of endpoints that fit no tier
    #[arg(long, value_parser = ["last", "exclude"])]
    unlisted: Option<String>,
    /// How a priority is shared among its localities: an area as in --order, a colon, 1 to 1000
    #[arg(long, value_name = "AREA:WEIGHT")]
    weight: Vec<Weight>,
    /// Percent; a priority takes everything while 1/factor of it is available [default: 140]
    #[arg(long, value_name = "PERCENT")]
    overprovisioning: Option<u32>,
    /// The most that may leave the caller's cluster; what may not is refused where home is dead
    #[arg(long, value_name = "PERCENT")]
    max_remote_share: Option<u32>,
    /// How long a priority must have been better before traffic returns
    #[arg(long, value_name = "TIME")]
    hold: Option<String>,
    /// How long the return then takes
    #[arg(long, value_name = "TIME")]
    ramp: Option<String>,
    /// What becomes of peers whose records are stale
    #[arg(long, value_parser = ["keep", "avoid", "exclude"])]
    stale_peers: Option<String>,
    /// Forget what was set before; alone: remove the policy
    #[arg(long)]
    reset: bool,
    #[command(flatten)]
    operator: OperatorArgs,
    /// Text for people, JSON for programs
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Debug, clap::Args)]
#[command(after_long_help = help!(
    "linkspan failover drain west",
    "linkspan failover drain west --service shop/checkout",
    "linkspan failover drain west --undo",
))]
struct DrainArgs {
    /// The cluster, this one or a linked one
    cluster: String,
    /// Only for this service [default: all]
    #[arg(long, value_name = "NAMESPACE/SERVICE")]
    service: Option<ServiceName>,
    /// End the drain
    #[arg(long)]
    undo: bool,
    #[command(flatten)]
    operator: OperatorArgs,
    /// Text for people, JSON for programs
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

pub(crate) fn failover(args: Args) -> Result<(), Failure> {
    match args.verb {
        FailoverVerb::Show(args) => show(&args),
        FailoverVerb::Set(args) => set(&args),
        FailoverVerb::Drain(args) => drain(&args),
    }
}

fn show(args: &ShowArgs) -> Result<(), Failure> {
    let key = args.service.as_ref().map(ServiceName::key);
    let reply = operator::block_on(async {
        let mut operator = args.operator.connect().await?;
        operator.failover(key).await
    })?;
    args.output.print(&View::from(reply), text)
}

fn set(args: &SetArgs) -> Result<(), Failure> {
    let spec = spec(args);
    if spec.is_empty() && !args.reset {
        return Err(Failure::Usage(anyhow::anyhow!(
            "nothing to set; say for example --order Own --order west, or --reset"
        )));
    }
    let request = v1::SetFailoverRequest {
        key: Some(args.service.key()),
        spec: if spec.is_empty() {
            String::new()
        } else {
            Value::Object(spec.clone()).to_string()
        },
        reset: args.reset,
    };
    let reply = operator::block_on(async {
        let mut operator = args.operator.connect().await?;
        operator.set_failover(request).await
    })?;
    Declared::from(reply).print(args.output, |changed| match (changed, spec.is_empty()) {
        (true, false) => format!("failover policy of {} set", args.service),
        (true, true) => format!("failover policy of {} removed", args.service),
        (false, false) => format!("failover policy of {} was so already", args.service),
        (false, true) => format!("{} had no failover policy", args.service),
    })
}

/// The fields that are said.
fn spec(args: &SetArgs) -> Map<String, Value> {
    let mut spec = Map::new();
    let mut set = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            spec.insert(name.to_owned(), value);
        }
    };
    let list = |items: Vec<Value>| (!items.is_empty()).then_some(Value::Array(items));
    set("order", list(args.order.iter().map(Tier::json).collect()));
    set("unlisted", args.unlisted.as_ref().map(|of| json!(of)));
    set(
        "localityWeights",
        list(args.weight.iter().map(Weight::json).collect()),
    );
    set(
        "overprovisioningFactor",
        args.overprovisioning.map(|of| json!(of)),
    );
    set("maxRemoteShare", args.max_remote_share.map(|of| json!(of)));
    let mut failback = Map::new();
    for (name, value) in [("hold", &args.hold), ("ramp", &args.ramp)] {
        if let Some(value) = value {
            failback.insert(name.to_owned(), json!(value));
        }
    }
    set(
        "failback",
        (!failback.is_empty()).then_some(Value::Object(failback)),
    );
    set("stalePeers", args.stale_peers.as_ref().map(|of| json!(of)));
    spec
}

fn drain(args: &DrainArgs) -> Result<(), Failure> {
    let request = v1::DrainRequest {
        cluster: args.cluster.clone(),
        key: args.service.as_ref().map(ServiceName::key),
        undo: args.undo,
    };
    let reply = operator::block_on(async {
        let mut operator = args.operator.connect().await?;
        operator.drain(request).await
    })?;
    let of = match &args.service {
        Some(service) => format!("for {service}"),
        None => "for all services".to_owned(),
    };
    let cluster = &args.cluster;
    Declared::from(reply).print(args.output, |changed| match (args.undo, changed) {
        (false, true) => format!("{cluster} is drained {of}: new requests go elsewhere"),
        (false, false) => format!("{cluster} was drained {of} already"),
        (true, true) => format!("{cluster} is no longer drained {of}: traffic returns"),
        (true, false) => format!("{cluster} was not drained {of}"),
    })
}

/// The JSON shape, which scripts rely on.
#[derive(Debug, Serialize)]
struct View {
    policies: Vec<Policy>,
    services: Vec<Service>,
}

#[derive(Debug, Serialize)]
struct Policy {
    name: String,
    targets: Vec<String>,
    spec: Value,
    conditions: Vec<Condition>,
}

#[derive(Debug, Serialize)]
struct Service {
    name: String,
    /// None: the default order.
    policy: Option<String>,
    drained: Vec<Drained>,
}

#[derive(Debug, Serialize)]
struct Drained {
    cluster: String,
    by: Vec<String>,
}

impl From<v1::FailoverResponse> for View {
    fn from(reply: v1::FailoverResponse) -> Self {
        let policy = |of: v1::FailoverPolicyStatus| Policy {
            name: format!("{}/{}", of.namespace, of.name),
            targets: of.targets,
            spec: serde_json::from_str(&of.spec).unwrap_or_default(),
            conditions: of.conditions.into_iter().map(Condition::from).collect(),
        };
        let drained = |of: v1::DrainedCluster| Drained {
            cluster: of.cluster,
            by: of.policies,
        };
        let service = |of: v1::ServiceFailover| Service {
            name: ServiceName::from(of.key.unwrap_or_default()).to_string(),
            policy: (!of.policy.is_empty()).then_some(of.policy),
            drained: of.drained.into_iter().map(drained).collect(),
        };
        Self {
            policies: reply.policies.into_iter().map(policy).collect(),
            services: reply.services.into_iter().map(service).collect(),
        }
    }
}

fn text(view: &View) -> String {
    let mut text = String::new();
    if view.policies.is_empty() {
        text.push_str("no failover policy is declared: everything goes by nearness\n");
    } else {
        let header = ["POLICY", "FOR", "STATUS", "SPEC"];
        text.push_str(&table(
            header,
            view.policies.iter().map(policy_row).collect(),
        ));
    }
    if !view.services.is_empty() {
        let row = |service: &Service| {
            let drained = service.drained.iter();
            let drained = drained.map(|of| format!("{} (by {})", of.cluster, of.by.join(", ")));
            let drained: Vec<_> = drained.collect();
            [
                service.name.clone(),
                service
                    .policy
                    .clone()
                    .unwrap_or_else(|| "default order".to_owned()),
                if drained.is_empty() {
                    "-".to_owned()
                } else {
                    drained.join(", ")
                },
            ]
        };
        let rows = view.services.iter().map(row).collect();
        text.push_str(&format!(
            "\n{}",
            table(["SERVICE", "IN FORCE", "DRAINED"], rows)
        ));
    }
    for policy in &view.policies {
        let worth = policy
            .conditions
            .iter()
            .filter(|of| match of.r#type.as_str() {
                "Conflict" => of.status == "True",
                _ => of.status != "True",
            });
        for of in worth {
            text.push_str(&format!(
                "\n{}: {}={}: {} ({})\n",
                policy.name, of.r#type, of.status, of.reason, of.message
            ));
        }
    }
    text
}

fn policy_row(policy: &Policy) -> [String; 4] {
    let accepted = policy.conditions.iter().find(|of| of.r#type == "Accepted");
    let spec = match &policy.spec {
        Value::Object(fields) => {
            let said = fields.iter().filter(|(name, _)| *name != "targetRefs");
            said.map(|(name, value)| format!("{name}: {value}"))
                .collect::<Vec<_>>()
                .join(" ")
        }
        other => other.to_string(),
    };
    let all = if policy.name.starts_with("linkspan-system/") {
        "all services"
    } else {
        "all of its namespace"
    };
    [
        policy.name.clone(),
        if policy.targets.is_empty() {
            all.to_owned()
        } else {
            policy.targets.join(", ")
        },
        accepted.map_or_else(|| "-".to_owned(), |of| of.message.clone()),
        spec,
    ]
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: SetArgs,
    }

    fn spec_of(words: &[&str]) -> Value {
        let line = ["set", "shop/checkout"].iter().chain(words);
        Value::Object(spec(
            &Line::try_parse_from(line)
                .unwrap_or_else(|e| panic!("{e}"))
                .args,
        ))
    }

    #[test]
    fn only_what_is_said_is_set() {
        assert_eq!(spec_of(&["--reset"]), json!({}));
        let words = [
            "--order",
            "Own,zone=Own",
            "--order",
            "west,north,label.version=v2",
        ];
        assert_eq!(
            spec_of(&words),
            json!({"order": [
                {"clusters": ["Own"], "zones": ["Own"]},
                {"clusters": ["west", "north"], "labels": {"version": "v2"}},
            ]})
        );
        let words = [
            "--weight",
            "zone=a:80",
            "--hold",
            "5s",
            "--max-remote-share",
            "30",
        ];
        assert_eq!(
            spec_of(&words),
            json!({
                "localityWeights": [{"zones": ["a"], "weight": 80}],
                "failback": {"hold": "5s"},
                "maxRemoteShare": 30,
            })
        );
    }

    #[test]
    fn text_names_policies_what_is_in_force_and_who_loses() {
        let condition = |kind: &str, status: &str, message: &str| v1::Condition {
            r#type: kind.into(),
            status: status.into(),
            reason: "Because".into(),
            message: message.into(),
        };
        let view = View::from(v1::FailoverResponse {
            policies: vec![v1::FailoverPolicyStatus {
                namespace: "shop".into(),
                name: "late".into(),
                spec: r#"{"maxRemoteShare":30}"#.into(),
                conditions: vec![
                    condition("Accepted", "True", "in force for 1 service"),
                    condition("Conflict", "True", "the older `shop/early` stands"),
                ],
                ..Default::default()
            }],
            services: vec![v1::ServiceFailover {
                key: Some(v1::ServiceKey {
                    namespace: "shop".into(),
                    name: "checkout".into(),
                }),
                policy: String::new(),
                drained: vec![v1::DrainedCluster {
                    cluster: "west".into(),
                    policies: vec!["linkspan-system/drain".into()],
                }],
            }],
        });
        let text = text(&view);
        for part in [
            "shop/late",
            "maxRemoteShare: 30",
            "all of its namespace",
            "default order",
            "west (by linkspan-system/drain)",
            "Conflict=True: Because (the older `shop/early` stands)",
        ] {
            assert!(text.contains(part), "{part} not in\n{text}");
        }
    }
}

//! `linkspan export NAMESPACE/SERVICE`.

use serde::Serialize;

use super::service_name::ServiceName;
use crate::{
    exit::{Failure, help},
    operator::{self, OperatorArgs},
    output::Format,
};

/// Exports a service of this cluster to the clusterset.
#[derive(Debug, clap::Args)]
#[command(after_long_help = help!(
    "linkspan export shop/checkout",
    "linkspan export shop/checkout --unmeshed-clients allow",
    "linkspan export shop/checkout --state-dir /var/lib/linkspan",
))]
pub struct Args {
    /// The service to export
    #[arg(value_name = "NAMESPACE/SERVICE")]
    service: ServiceName,
    /// Whether clients without a sidecar may use it, for whom gateways call; they may not at first
    #[arg(long, value_enum)]
    unmeshed_clients: Option<Admission>,
    #[command(flatten)]
    operator: OperatorArgs,
    /// Text for people, JSON for programs
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Whether somebody is admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Admission {
    Allow,
    Deny,
}

#[derive(Serialize)]
struct View {
    service: String,
    created: bool,
    changed: bool,
    path: String,
}

pub(crate) fn export(args: &Args) -> Result<(), Failure> {
    let key = args.service.key();
    let admitted = args.unmeshed_clients.map(|word| word == Admission::Allow);
    let reply = operator::block_on(async {
        let mut operator = args.operator.connect().await?;
        operator.export(key, admitted).await
    })?;
    let view = View {
        service: args.service.to_string(),
        created: reply.created,
        changed: reply.changed,
        path: reply.path,
    };
    args.output.print(&view, |view| {
        let verb = match (view.created, view.changed) {
            (true, _) => "exported",
            (false, true) => "is exported otherwise now",
            (false, false) => "was already exported",
        };
        format!("{} {verb} ({})\n", view.service, view.path)
    })
}

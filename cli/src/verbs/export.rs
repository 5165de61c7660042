//! `linkspan export NAMESPACE/SERVICE`.

use serde::Serialize;

use super::service_name::ServiceName;
use crate::{
    exit::{Failure, help},
    operator::{self, Operator, OperatorArgs},
    output::Format,
};

/// Exports a service of this cluster to the clusterset.
#[derive(Debug, clap::Args)]
#[command(after_long_help = help!(
    "linkspan export shop/checkout",
    "linkspan export shop/checkout --state-dir /var/lib/linkspan",
))]
pub struct Args {
    /// The service to export
    #[arg(value_name = "NAMESPACE/SERVICE")]
    service: ServiceName,
    #[command(flatten)]
    operator: OperatorArgs,
    /// Text for people, JSON for programs
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Serialize)]
struct View {
    service: String,
    created: bool,
    path: String,
}

pub(crate) fn export(args: &Args) -> Result<(), Failure> {
    let key = args.service.key();
    let reply = operator::block_on(async {
        let mut operator = Operator::connect(args.operator.path()).await?;
        operator.export(key).await
    })?;
    let view = View {
        service: args.service.to_string(),
        created: reply.created,
        path: reply.path,
    };
    args.output.print(&view, |view| {
        let verb = if view.created {
            "exported"
        } else {
            "was already exported"
        };
        format!("{} {verb} ({})\n", view.service, view.path)
    })
}

//! `linkspan unexport NAMESPACE/SERVICE`.

use super::{declared::Declared, service_name::ServiceName};
use crate::{
    exit::{Failure, help},
    operator::{self, OperatorArgs},
    output::Format,
};

/// Takes the export of a service back: linked clusters lose it.
#[derive(Debug, clap::Args)]
#[command(after_long_help = help!(
    "linkspan unexport shop/checkout",
    "linkspan unexport shop/checkout --state-dir /var/lib/linkspan -o json",
))]
pub struct Args {
    /// The service to unexport
    #[arg(value_name = "NAMESPACE/SERVICE")]
    service: ServiceName,
    #[command(flatten)]
    operator: OperatorArgs,
    /// Text for people, JSON for programs
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

pub(crate) fn unexport(args: &Args) -> Result<(), Failure> {
    let reply = operator::block_on(async {
        let mut operator = args.operator.connect().await?;
        operator.unexport(args.service.key()).await
    })?;
    Declared::from(reply).print(args.output, |changed| match changed {
        true => format!("{} is no longer exported", args.service),
        false => format!("{} was not exported", args.service),
    })
}

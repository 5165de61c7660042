//! `linkspan bundle`.

use serde::Serialize;

use crate::{
    exit::{Failure, help},
    operator::{self, OperatorArgs},
    output::Format,
};

/// Prints this cluster's trust bundle and the identities of its parts.
///
/// What the other side of a link must be told: its `ClusterLink` carries this bundle.
/// Nothing in it is secret, but it must arrive unchanged.
#[derive(Debug, clap::Args)]
#[command(after_long_help = help!(
    "linkspan bundle > west.pem",
    "linkspan bundle --state-dir /var/lib/linkspan -o json",
))]
pub struct Args {
    #[command(flatten)]
    operator: OperatorArgs,
    /// Text (PEM with the identities as comments) for people, JSON for programs
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Serialize)]
struct View {
    trust_domain: String,
    federation_id: String,
    gateway_id: String,
    pem: String,
}

pub(crate) fn bundle(args: &Args) -> Result<(), Failure> {
    let reply = operator::block_on(async {
        let mut operator = args.operator.connect().await?;
        operator.bundle().await
    })?;
    let view = View {
        trust_domain: reply.trust_domain,
        federation_id: reply.federation_spiffe_id,
        gateway_id: reply.gateway_spiffe_id,
        pem: reply.pem,
    };
    args.output.print(&view, text)
}

/// PEM files may carry text between certificates, so that this stays a valid bundle.
fn text(view: &View) -> String {
    format!(
        "# trust domain: {}\n# federation:   {}\n# gateway:      {}\n{}",
        view.trust_domain, view.federation_id, view.gateway_id, view.pem
    )
}

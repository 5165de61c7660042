//! `linkspan link revoke`.

use crate::{
    exit::{Failure, help},
    operator::{self, OperatorArgs},
    output,
};

#[derive(Debug, clap::Args)]
#[command(after_long_help = help!("linkspan link revoke 3fa90c11d27e4b0d8c5f6a7b8091a2b3"))]
pub(super) struct Args {
    /// The invitation's id, as `linkspan link list` shows it
    id: String,
    #[command(flatten)]
    operator: OperatorArgs,
}

pub(super) fn revoke(args: &Args) -> Result<(), Failure> {
    let reply = operator::block_on(async {
        let mut operator = args.operator.connect().await?;
        operator.revoke_invitation(&args.id).await
    })?;
    let whose = match reply.peer.as_str() {
        "" => "any cluster",
        peer => peer,
    };
    output::write_out(format!("revoked invitation {} for {whose}\n", args.id).as_bytes())
}

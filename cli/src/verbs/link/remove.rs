//! `linkspan link remove`, also as `linkspan unlink`.

use std::io::{BufRead as _, IsTerminal as _};

use anyhow::{Context as _, anyhow};
use serde::Serialize;

use super::rfc3339;
use crate::{
    exit::{Failure, help},
    operator::{self, Operator, OperatorArgs},
    output::Format,
};

/// Removes a link on both sides.
#[derive(Debug, clap::Args)]
#[command(after_long_help = help!(
    "linkspan link remove west",
    "linkspan unlink west --yes",
))]
pub struct Args {
    /// Cluster id of the peer
    #[arg(value_name = "PEER")]
    peer: String,
    /// Do not ask; nobody is asked either where input is no terminal
    #[arg(short, long)]
    yes: bool,
    #[command(flatten)]
    operator: OperatorArgs,
    /// Text for people, JSON for programs
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Serialize)]
struct View {
    cluster: String,
    /// Whether the peer has removed its side.
    told: bool,
    problem: Option<String>,
    told_until: Option<String>,
}

pub(crate) fn unlink(args: &Args) -> Result<(), Failure> {
    confirm(args)?;
    let reply = operator::block_on(async {
        let mut operator = Operator::connect(args.operator.path()).await?;
        operator.remove_link(&args.peer).await
    })?;
    let view = View {
        cluster: args.peer.clone(),
        told: reply.told,
        problem: Some(reply.problem).filter(|text| !text.is_empty()),
        told_until: Some(rfc3339(reply.tombstone_until_unix)).filter(|text| !text.is_empty()),
    };
    args.output.print(&view, text)
}

fn text(view: &View) -> String {
    match &view.problem {
        None => format!("link to {} removed on both sides\n", view.cluster),
        Some(problem) => format!(
            "link to {0} removed here; {0} could not be told ({problem}) and will be if it comes \
             back before {1}\n",
            view.cluster,
            view.told_until.as_deref().unwrap_or("long")
        ),
    }
}

/// Asks where somebody is there to answer.
fn confirm(args: &Args) -> Result<(), Failure> {
    if args.yes || !std::io::stdin().is_terminal() {
        return Ok(());
    }
    eprint!(
        "Remove the link to {}? Its services are withdrawn and its streams closed at once. [y/N] ",
        args.peer
    );
    let mut answer = String::new();
    let read = std::io::stdin().lock().read_line(&mut answer);
    read.context("cannot read the answer")?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(Failure::Failed(anyhow!(
            "not confirmed; nothing was changed"
        ))),
    }
}

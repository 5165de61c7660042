//! `linkspan link remove`, also as `linkspan unlink`.

use std::io::{BufRead as _, IsTerminal as _};

use anyhow::{Context as _, anyhow};
use serde::Serialize;

use super::rfc3339;
use crate::{
    exit::{Failure, help},
    operator::{self, OperatorArgs},
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
    /// Gateways that have not confirmed that they let go of the peer.
    late_gateways: Vec<String>,
}

pub(crate) fn unlink(args: &Args) -> Result<(), Failure> {
    confirm(args)?;
    let reply = operator::block_on(async {
        let mut operator = args.operator.connect().await?;
        operator.remove_link(&args.peer).await
    })?;
    let view = View {
        cluster: args.peer.clone(),
        told: reply.told,
        problem: Some(reply.problem).filter(|text| !text.is_empty()),
        told_until: Some(rfc3339(reply.tombstone_until_unix)).filter(|text| !text.is_empty()),
        late_gateways: reply.late_gateways,
    };
    args.output.print(&view, text)?;
    match view.late_gateways.is_empty() {
        true => Ok(()),
        false => Err(late(&view)),
    }
}

/// The link is gone, and yet streams of the peer may go on.
fn late(view: &View) -> Failure {
    Failure::TimedOut(anyhow!(
        "these gateways of this cluster have not confirmed that they let go of {}: {}; see whether \
         they run and reach federation (`linkspan status`, their logs), or stop them: until then \
         they may carry its streams",
        view.cluster,
        view.late_gateways.join(", ")
    ))
}

fn text(view: &View) -> String {
    match &view.problem {
        None => format!("link to {} removed on both sides\n", view.cluster),
        Some(problem) => {
            let later = match &view.told_until {
                Some(until) => format!("and will be if it comes back before {until}"),
                None => "and will not be: if it has the link, remove it there, too".to_owned(),
            };
            format!(
                "link to {0} removed here; {0} could not be told ({problem}) {later}\n",
                view.cluster
            )
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn view(told_until: Option<&str>) -> View {
        View {
            cluster: "west".into(),
            told: false,
            problem: Some("no tunnel to it is up".into()),
            told_until: told_until.map(str::to_owned),
            late_gateways: vec!["gateway-2".into()],
        }
    }

    #[test]
    fn who_was_not_told_and_whether_it_will_be_is_said() {
        let will = text(&view(Some("2027-01-15T08:00:00Z")));
        assert!(
            will.contains("comes back before 2027-01-15T08:00:00Z"),
            "{will}"
        );
        let never = text(&view(None));
        assert!(never.contains("remove it there, too"), "{never}");
    }

    #[test]
    fn a_gateway_that_did_not_confirm_is_named() {
        let failure = late(&view(None));
        assert_eq!(failure.code(), 4);
        assert!(
            failure.to_string().contains("west: gateway-2;"),
            "{failure}"
        );
    }
}

//! `linkspan link wait`.

use std::time::Duration;

use anyhow::anyhow;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::show::Link;
use crate::{
    exit::{Failure, help},
    operator::{self, OperatorArgs},
    output::write_out,
};

/// How often federation is asked; it answers from memory.
const LOOK: Duration = Duration::from_millis(200);

#[derive(Debug, clap::Args)]
#[command(after_long_help = help!(
    "linkspan link wait west",
    "linkspan link wait west --for up --timeout 2m",
))]
pub(super) struct Args {
    /// Cluster id of the peer
    #[arg(value_name = "PEER")]
    peer: String,
    /// What to wait for
    #[arg(long = "for", value_enum, default_value_t = Goal::Active)]
    goal: Goal,
    /// How long to wait
    #[arg(long, default_value = "60s", value_parser = humantime::parse_duration)]
    timeout: Duration,
    #[command(flatten)]
    operator: OperatorArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Goal {
    /// A tunnel has been up: data may pass
    Active,
    /// Active, a tunnel is up now and the peer's records are in
    Up,
}

impl Goal {
    fn reached(self, link: &Link) -> bool {
        let active = link.state == "Active";
        match self {
            Self::Active => active,
            Self::Up => active && link.up && link.sync == "Live",
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Up => "up",
        }
    }
}

pub(super) fn wait(args: &Args) -> Result<(), Failure> {
    let link = operator::block_on(until(args))?;
    write_out(format!("{} is {}\n", link.cluster, args.goal.word()).as_bytes())
}

async fn until(args: &Args) -> Result<Link, Failure> {
    let deadline = Instant::now() + args.timeout;
    let mut operator = args.operator.connect().await?;
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        look.tick().await;
        let links = operator.status().await?.links;
        let link = links.into_iter().find(|link| link.cluster == args.peer);
        let link = link.map(Link::from);
        match link {
            Some(link) if args.goal.reached(&link) => return Ok(link),
            other if Instant::now() >= deadline => return Err(too_late(args, other.as_ref())),
            _ => {}
        }
    }
}

fn too_late(args: &Args, link: Option<&Link>) -> Failure {
    let now = match link {
        None => "there is no such link".to_owned(),
        Some(link) => format!(
            "it is {}, its tunnel {}, sync {}",
            link.state,
            if link.up { "up" } else { "down" },
            link.sync
        ),
    };
    Failure::TimedOut(anyhow!(
        "the link to `{}` was not {} within {}: {now}; `linkspan link show {}` tells more",
        args.peer,
        args.goal.word(),
        humantime::format_duration(args.timeout),
        args.peer
    ))
}

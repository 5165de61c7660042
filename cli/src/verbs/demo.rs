//! `linkspan demo`.

use crate::{
    demo,
    exit::{Failure, help},
    output::Format,
};

/// Shows two linked clusters on this machine: real traffic, failures, recoveries.
///
/// Starts the clusters `east` and `west` as separate processes on loopback, sends
/// 200 requests per second through them, breaks things in seven steps and checks that
/// no request fails. Nothing is left behind when it ends, however it ends.
#[derive(Debug, clap::Args)]
#[command(after_long_help = help!(
    "linkspan demo",
    "linkspan demo --keep",
    "linkspan demo -o json > tour.json",
))]
pub struct Args {
    /// Leave everything running after the tour, until Ctrl-C, and print commands to try
    #[arg(long)]
    keep: bool,
    /// Text for people, one JSON document for programs
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    /// Seed of what is random (which ports, which victims); printed by every run
    #[arg(long)]
    seed: Option<u64>,
}

pub(crate) fn demo(args: Args) -> Result<(), Failure> {
    demo::run(&demo::Options {
        keep: args.keep,
        output: args.output,
        seed: args
            .seed
            .unwrap_or_else(|| u64::from(rand::random::<u32>())),
    })
}

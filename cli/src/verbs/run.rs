//! `linkspan run federation|gateway|sidecar`.

use std::path::PathBuf;

use crate::exit::{Failure, help};

/// Runs one part until it is told to stop.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    part: Part,
}

/// The parts; each takes one configuration file.
#[derive(Debug, clap::Subcommand)]
enum Part {
    /// Runs the control plane of a cluster
    #[command(after_long_help = help!("linkspan run federation --config federation.yaml"))]
    Federation(PartArgs),
    /// Runs a gateway, which holds the tunnels to other clusters
    #[command(after_long_help = help!("linkspan run gateway --config gateway.yaml"))]
    Gateway(PartArgs),
    /// Runs the sidecar of one workload
    #[command(after_long_help = help!("linkspan run sidecar --config sidecar.yaml"))]
    Sidecar(PartArgs),
}

#[derive(Debug, clap::Args)]
struct PartArgs {
    /// Configuration file (YAML)
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let (Part::Federation(args) | Part::Gateway(args) | Part::Sidecar(args)) = &args.part;
    Err(anyhow::anyhow!("cannot run {}", args.config.display()).into())
}

//! `linkspan version`.

use serde::Serialize;

use crate::{
    exit::{Failure, help},
    output::Format,
};

/// Prints the version.
#[derive(Debug, clap::Args)]
#[command(after_long_help = help!("linkspan version", "linkspan version -o json"))]
pub struct Args {
    /// Text for people, JSON for programs
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Serialize)]
struct Version {
    version: &'static str,
    os: &'static str,
    arch: &'static str,
}

pub(crate) fn version(args: &Args) -> Result<(), Failure> {
    let version = Version {
        version: env!("CARGO_PKG_VERSION"),
        os: std::env::consts::OS,
        arch: std::env::consts::ARCH,
    };
    args.output.print(&version, |version| {
        format!("linkspan {}\n", version.version)
    })
}

//! The `linkspan` command: it runs the parts, asks a running federation, and
//! shows the whole thing at work on one machine.
//!
//! - [`args`]: the command line as a type; one file per verb in [`verbs`].
//! - [`operator`]: the client of a federation's operator socket.
//! - [`output`]: tables for people, JSON for programs.
//! - [`demo`]: supervisor, UDP wire, load statistics and the tour.
//! - [`apps`]: the sample applications that the demo starts as processes.

pub mod apps;
pub mod args;
pub mod demo;
pub mod exit;
pub mod lifeline;
pub mod operator;
pub mod output;
mod secret_file;
pub mod verbs;

use std::process::ExitCode;

use clap::Parser as _;

/// Parses the command line, does what it says and tells the exit code.
#[must_use]
pub fn main() -> ExitCode {
    let cli = args::Cli::parse();
    if let Some(parent) = cli.die_with
        && let Err(error) = lifeline::tie_to(parent)
    {
        return exit::report(&exit::Failure::Failed(error));
    }
    match verbs::dispatch(cli.verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => exit::report(&failure),
    }
}

//! `clusters`: see the library.

use std::process::ExitCode;

use clap::Parser as _;
use linkspan_clusters::command::Arguments;

fn main() -> ExitCode {
    match Arguments::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("clusters: {error:#}");
            ExitCode::FAILURE
        }
    }
}

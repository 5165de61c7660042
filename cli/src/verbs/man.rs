//! `linkspan man`.

use std::{fs, path::PathBuf};

use anyhow::Context as _;
use clap::CommandFactory as _;

use crate::{
    args::Cli,
    exit::{Failure, help},
    output,
};

/// Prints the manual, or writes one page per verb.
#[derive(Debug, clap::Args)]
#[command(after_long_help = help!(
    "linkspan man > linkspan.1",
    "linkspan man --dir /usr/local/share/man/man1",
))]
pub struct Args {
    /// Write one page per verb into this directory instead
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

pub(crate) fn man(args: &Args) -> Result<(), Failure> {
    match &args.dir {
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(Cli::command())
                .render(&mut page)
                .context("cannot render the manual")?;
            output::write_out(&page)
        }
        Some(dir) => {
            fs::create_dir_all(dir)
                .with_context(|| format!("cannot make directory {}", dir.display()))?;
            clap_mangen::generate_to(Cli::command(), dir)
                .with_context(|| format!("cannot write the manual to {}", dir.display()))?;
            Ok(())
        }
    }
}

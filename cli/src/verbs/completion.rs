//! `linkspan completion SHELL`.

use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::{
    args::Cli,
    exit::{Failure, help},
    output,
};

/// Prints a completion script for a shell.
#[derive(Debug, clap::Args)]
#[command(after_long_help = help!(
    "linkspan completion bash > /etc/bash_completion.d/linkspan",
    "linkspan completion zsh",
))]
pub struct Args {
    /// Which shell
    #[arg(value_enum)]
    shell: Shell,
}

pub(crate) fn completion(args: &Args) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "linkspan", &mut script);
    output::write_out(&script)
}

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
    let mut command = shown(&Cli::command());
    clap_complete::generate(args.shell, &mut command, "linkspan", &mut script);
    output::write_out(&script)
}

/// The command without what `--help` hides: generators offer that, too.
fn shown(command: &clap::Command) -> clap::Command {
    let about = command.get_about().cloned().unwrap_or_default();
    let arguments = command.get_arguments().filter(|of| !of.is_hide_set());
    let verbs = command.get_subcommands().filter(|of| !of.is_hide_set());
    clap::Command::new(command.get_name().to_owned())
        .about(about)
        .args(arguments.cloned())
        .subcommands(verbs.map(shown))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_hidden_is_not_offered() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut script = Vec::new();
            let mut command = shown(&Cli::command());
            clap_complete::generate(shell, &mut command, "linkspan", &mut script);
            let script = String::from_utf8(script).expect("text");
            for hidden in ["die-with", "nursery", "reaper"] {
                assert!(!script.contains(hidden), "{shell}: {hidden}");
            }
            for offered in ["without-cluster", "allow-loopback", "revoke"] {
                assert!(script.contains(offered), "{shell}: {offered}");
            }
        }
    }
}

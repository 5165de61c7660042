//! The command line as a type.

use clap::{Parser, Subcommand};

use crate::{
    apps,
    exit::{exit_codes, help},
    verbs,
};

/// Joins services of different clusters as if they were one network.
#[derive(Debug, Parser)]
#[command(
    name = "linkspan",
    version,
    max_term_width = 100,
    after_help = concat!("Start with: linkspan demo\n\n", exit_codes!()),
    after_long_help = help!(
        "linkspan demo",
        "linkspan run federation --config federation.yaml",
        "linkspan status --socket /var/lib/linkspan/operator.sock",
        "linkspan status --context east",
    ),
    propagate_version = true,
    arg_required_else_help = true
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
    /// Set by a supervisor: end when that process ends.
    #[arg(long, value_name = "PID", hide = true, global = true)]
    pub die_with: Option<u32>,
}

/// All verbs.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Runs one part (federation, gateway or sidecar) until it is told to stop
    Run(verbs::run::Args),
    /// Shows two linked clusters on this machine: real traffic, failures, recoveries
    Demo(verbs::demo::Args),
    /// Shows what a cluster's federation knows: links, services, gateways, workloads
    Status(verbs::status::Args),
    /// Shows exports, imports, conflicts, and endpoints by cluster and zone with their age
    Services(verbs::services::Args),
    /// Exports a service of this cluster to the clusterset
    Export(verbs::export::Args),
    /// Takes the export of a service back: linked clusters lose it
    Unexport(verbs::unexport::Args),
    /// Shows and sets where requests go first, where next, and how much of it
    Failover(verbs::failover::Args),
    /// Says where the next request to a service goes, and why, share by share
    Explain(verbs::explain::Args),
    /// Links this cluster to others by invitation, shows and removes links
    Link(verbs::link::Args),
    /// Removes a link on both sides (the same as `link remove`)
    Unlink(verbs::link::UnlinkArgs),
    /// Makes, lists and revokes join tokens
    Token(verbs::token::Args),
    /// Prints this cluster's trust bundle and the identities of its parts
    Bundle(verbs::bundle::Args),
    /// Leads a workload's TCP calls to its sidecar, by nftables, or stops doing so
    Capture(verbs::capture::Args),
    /// Puts a sidecar into the pods of Kubernetes manifests
    Inject(verbs::inject::Args),
    /// Prints the manifests that make a Kubernetes cluster a member of a clusterset
    Install(Box<verbs::install::Args>),
    /// Prints what is to be deleted from a Kubernetes cluster that leaves
    Uninstall(verbs::uninstall::Args),
    /// Prints the version
    Version(verbs::version::Args),
    /// Prints a completion script for a shell
    Completion(verbs::completion::Args),
    /// Prints the manual, or writes one page per verb
    Man(verbs::man::Args),
    /// Carries standard input to the operator socket; what `--context` runs in federation's pod
    #[command(hide = true)]
    Relay(verbs::relay::Args),
    /// The sample applications of the demo
    #[command(hide = true)]
    App(apps::Args),
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_tree_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_example_in_a_help_text_parses() {
        let mut examples = Vec::new();
        collect(&Cli::command(), &mut examples);
        assert!(examples.len() > 10, "{examples:?}");
        for example in examples {
            let words = example.split_whitespace().take_while(|word| *word != ">");
            if let Err(error) = Cli::try_parse_from(words) {
                panic!("`{example}`: {error}");
            }
        }
    }

    fn collect(command: &clap::Command, into: &mut Vec<String>) {
        let help = command.get_after_long_help().map(ToString::to_string);
        let lines = help.as_deref().unwrap_or_default().lines();
        into.extend(
            lines
                .map(str::trim)
                .filter(|line| line.starts_with("linkspan "))
                .map(str::to_owned),
        );
        let visible = command.get_subcommands().filter(|sub| !sub.is_hide_set());
        for sub in visible {
            assert!(
                sub.has_subcommands() || sub.get_after_long_help().is_some(),
                "{} has no examples",
                sub.get_name()
            );
            collect(sub, into);
        }
    }
}

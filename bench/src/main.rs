//! The `linkspan-bench` command.

use std::{
    path::PathBuf,
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use linkspan::lifeline;
use linkspan_bench::{
    chain, failover,
    load::Load,
    origin::Origin,
    output::{Format, Report},
    pin, spread,
};
use tokio::signal::unix::{SignalKind, signal};

const EXIT_CODES: &str = "\
Exit codes:
  0    measured, and every bound holds
  1    measured, and a bound does not hold
  2    the command line is wrong
  3    it could not be measured
  130  interrupted";

/// Measures Linkspan on this machine: real processes, real traffic over loopback.
#[derive(Debug, Parser)]
#[command(
    name = "linkspan-bench",
    version,
    max_term_width = 100,
    arg_required_else_help = true,
    after_help = EXIT_CODES,
    after_long_help = format!("\
Examples:
  linkspan-bench chain
  linkspan-bench spread -o json
  linkspan-bench failover --trials 30

{EXIT_CODES}")
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
    /// How the result is printed
    #[arg(short, long, value_enum, default_value_t, global = true)]
    output: Format,
    /// Set by a parent: end when that process ends.
    #[arg(long, value_name = "PID", hide = true, global = true)]
    die_with: Option<u32>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Throughput and latency of the path: direct, a pair of sidecars, the four-hop chain
    Chain(chain::Args),
    /// How requests of one client connection spread over six endpoints
    Spread(spread::Args),
    /// The slowest answer when the endpoint, or the link, that all traffic uses is lost
    Failover(failover::Args),
    /// The client
    #[command(hide = true)]
    Load(Load),
    /// The server
    #[command(hide = true)]
    Origin(Origin),
    /// Becomes another program, on one processor core
    #[command(hide = true)]
    On {
        #[arg(long)]
        cpu: usize,
        program: PathBuf,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("linkspan-bench: {error:#}");
            ExitCode::from(3)
        }
    }
}

fn run(cli: Cli) -> Result<ExitCode> {
    if let Some(parent) = cli.die_with {
        lifeline::tie_to(parent)?;
    }
    // Children are tied to the thread that starts them, so everything stays on this one.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let done = async {
        match cli.verb {
            Verb::Load(load) => load.print().await.map(|()| ExitCode::SUCCESS),
            Verb::Origin(origin) => origin.run().await.map(|()| ExitCode::SUCCESS),
            Verb::On {
                cpu,
                program,
                arguments,
            } => become_program(cpu, &program, &arguments),
            Verb::Chain(args) => finish(cli.output, &chain::run(&args).await?),
            Verb::Spread(args) => finish(cli.output, &spread::run(&args).await?),
            Verb::Failover(args) => finish(cli.output, &failover::run(&args).await?),
        }
    };
    runtime.block_on(async {
        let (mut interrupt, mut terminate) = (
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
        );
        // Whatever a measurement has started ends when its future is dropped.
        tokio::select! {
            code = done => code,
            _ = interrupt.recv() => Ok(ExitCode::from(130)),
            _ = terminate.recv() => Ok(ExitCode::from(130)),
        }
    })
}

fn finish(format: Format, report: &impl Report) -> Result<ExitCode> {
    format.print(report)?;
    Ok(ExitCode::from(u8::from(!report.holds())))
}

fn become_program(cpu: usize, program: &PathBuf, arguments: &[String]) -> Result<ExitCode> {
    use std::os::unix::process::CommandExt as _;
    pin::to(cpu)?;
    let error = Command::new(program).args(arguments).exec();
    Err(error).with_context(|| format!("cannot start {}", program.display()))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_tree_is_consistent_and_every_example_parses() {
        Cli::command().debug_assert();
        let verbs = Cli::command();
        let help = |command: &clap::Command| command.get_after_long_help().map(ToString::to_string);
        let texts: Vec<_> = verbs.get_subcommands().filter_map(help).collect();
        let lines = texts.iter().flat_map(|text| text.lines()).map(str::trim);
        let examples: Vec<_> = lines.filter(|l| l.starts_with("linkspan-bench")).collect();
        assert!(examples.len() >= 6, "{examples:?}");
        for example in examples {
            if let Err(error) = Cli::try_parse_from(example.split_whitespace()) {
                panic!("`{example}`: {error}");
            }
        }
    }

    #[test]
    fn another_programs_options_are_its_own() {
        let line = ["linkspan-bench", "on", "--cpu", "1", "--", "linkspan"];
        let line = line
            .into_iter()
            .chain(["--die-with", "7", "run", "-o", "x"]);
        let Ok(Cli {
            verb: Verb::On { arguments, .. },
            die_with: None,
            ..
        }) = Cli::try_parse_from(line)
        else {
            panic!("parsed as something else");
        };
        assert_eq!(arguments, ["--die-with", "7", "run", "-o", "x"]);
    }
}

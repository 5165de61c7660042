//! The command line.

use std::{io::Read as _, path::PathBuf};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};

use crate::{BARE, Home, Programs};

/// Real Kubernetes clusters on this machine, for tests.
#[derive(Debug, Parser)]
#[command(name = "clusters", version, max_term_width = 100)]
pub struct Arguments {
    /// Where the clusters live. One folder, one set of clusters.
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        default_value = "/var/tmp/linkspan-clusters"
    )]
    dir: PathBuf,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Builds Kubernetes if the cache does not have it; prints the folder of its programs.
    Build,
    /// Starts etcd and one API server without nodes; prints its kubeconfig's path. Needs no root.
    ApiServer {
        /// Stay, and stop it when standard input ends: it then cannot outlive who started it.
        #[arg(long)]
        attached: bool,
    },
    /// Stops all that runs and removes all that was made, after a crash, too.
    Down,
}

impl Arguments {
    /// Does what was asked.
    ///
    /// # Errors
    /// If that fails; the error says what to do.
    pub fn run(&self) -> Result<()> {
        let home = Home::at(&self.dir)?;
        match &self.verb {
            Verb::Build => println!("{}", Programs::built()?.folder().display()),
            Verb::ApiServer { attached } => api_server(&home, *attached)?,
            Verb::Down => crate::down(&home)?,
        }
        Ok(())
    }
}

fn api_server(home: &Home, attached: bool) -> Result<()> {
    let programs = Programs::built()?;
    let started = crate::bare_up(home, &programs);
    if started.is_ok() {
        println!("{}", home.kubeconfig(BARE).display());
    }
    if !attached {
        return started;
    }
    let waited = started.and_then(|()| {
        std::io::stdin()
            .read_to_end(&mut Vec::new())
            .context("reading standard input")
    });
    crate::down(home)?;
    waited.map(|_| ())
}

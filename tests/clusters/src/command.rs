//! The command line.

use std::{io::Read as _, path::PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Parser, Subcommand};

use crate::{BARE, Fleet, Home, Place, Programs};

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
    /// Brings clusters up, each with one node and DNS; prints their kubeconfigs' paths. Needs root.
    Up {
        /// Their names, and where they are: NAME or NAME=REGION/ZONE.
        #[arg(long, value_delimiter = ',', default_value = "east,west")]
        clusters: Vec<Place>,
    },
    /// Stops all that runs and removes all that was made, after a crash, too.
    Down,
    /// Lists the programs of each cluster and their processes.
    Status,
    /// Prints the path of a cluster's kubeconfig.
    Kubeconfig {
        /// The cluster.
        name: String,
    },
    /// Gives a cluster's node the images of an archive; pods need `imagePullPolicy: Never`.
    Load {
        /// The cluster.
        name: String,
        /// As `docker save` or deploy/image writes it.
        archive: PathBuf,
    },
    /// Kills one program of a cluster, as `kill -9` does.
    Kill {
        /// The cluster.
        name: String,
        /// As `status` names it.
        program: String,
    },
    /// Starts a program that was killed.
    Start {
        /// The cluster.
        name: String,
        /// As `status` names it.
        program: String,
    },
    /// Brings two clusters up, proves that they work, and that nothing of them is left.
    Smoke,
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
            Verb::Up { clusters } => up(&home, clusters)?,
            Verb::Down => crate::down(&home)?,
            Verb::Smoke => smoke(&home)?,
            Verb::Kubeconfig { name } => {
                let programs = Programs::built()?;
                let cluster = Fleet::open(&home, &programs)?.cluster(name)?;
                println!("{}", home.kubeconfig(&cluster.name).display());
            }
            Verb::Status => status(&Fleet::open(&home, &Programs::built()?)?)?,
            Verb::Load { name, archive } => {
                Fleet::open(&home, &Programs::built()?)?.load(name, archive)?;
            }
            Verb::Kill { name, program } => {
                Fleet::open(&home, &Programs::built()?)?.kill(name, program)?;
            }
            Verb::Start { name, program } => {
                Fleet::open(&home, &Programs::built()?)?.start(name, program)?;
            }
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

fn up(home: &Home, places: &[Place]) -> Result<()> {
    if let Some(missing) = crate::missing() {
        bail!(missing);
    }
    crate::visible(home)?;
    let programs = Programs::built()?;
    let fleet = crate::up(home, &programs, places).with_context(|| {
        format!(
            "logs are in {}; `clusters down` removes what was made",
            home.path().display()
        )
    })?;
    for cluster in fleet.clusters()? {
        println!("{}", home.kubeconfig(&cluster.name).display());
    }
    Ok(())
}

fn status(fleet: &Fleet<'_>) -> Result<()> {
    for cluster in fleet.clusters()? {
        println!(
            "{}  {}  region {}, zone {}",
            cluster.name, cluster.address, cluster.region, cluster.zone
        );
        for (program, pid) in fleet.programs(&cluster)? {
            let state = pid.map_or("ended".to_owned(), |pid| pid.as_raw_nonzero().to_string());
            println!("  {:24} {state}", program.name);
        }
    }
    Ok(())
}

/// Where the machine lacks something, one line says so; in CI that is a failure.
fn smoke(home: &Home) -> Result<()> {
    if let Some(missing) = crate::missing() {
        let ci = std::env::var_os("CI").is_some_and(|value| value == "true");
        ensure!(!ci, "{missing}");
        println!("not run: {missing}");
        return Ok(());
    }
    crate::smoke(home, &Programs::built()?)
}

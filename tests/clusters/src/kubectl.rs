//! The one way in which this tool talks to an API server.

use std::{path::PathBuf, process::Command};

use anyhow::Result;

use crate::{Home, Programs, programs::run};

/// `kubectl` as one cluster's administrator.
#[derive(Debug)]
pub(crate) struct Kubectl {
    path: PathBuf,
    config: PathBuf,
}

impl Kubectl {
    pub(crate) fn new(home: &Home, cluster: &str, programs: &Programs) -> Self {
        Self {
            path: programs.path("kubectl"),
            config: home.kubeconfig(cluster),
        }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.path);
        command.arg("--kubeconfig").arg(&self.config);
        command.args(arguments);
        command
    }

    /// Runs it and gives what it printed.
    pub(crate) fn run(&self, arguments: &[&str]) -> Result<String> {
        run(&mut self.command(arguments))
    }
}

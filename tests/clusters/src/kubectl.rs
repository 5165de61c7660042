//! The one way in which this tool talks to an API server.

use std::{
    io::Write as _,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

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

    /// Applies manifests, YAML or JSON.
    pub(crate) fn apply(&self, manifests: &str) -> Result<()> {
        let mut child = self
            .command(&["apply", "--server-side", "-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting kubectl")?;
        let mut stdin = child.stdin.take().expect("it is piped");
        let written = stdin.write_all(manifests.as_bytes());
        drop(stdin);
        let output = child.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "kubectl apply: {}", said.trim());
        written.context("writing to kubectl")
    }
}

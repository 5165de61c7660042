//! East, where the origins are, and west, from where they are called through the tunnel.

use std::{env::current_exe, net::SocketAddr, time::Duration};

use anyhow::Result;
use linkspan_tests::clusters::{Cluster, Service};

use crate::{load, own, place::Place};

/// The service that is called.
pub const ORIGIN: &str = "origin";
/// How long a new caller may take until its first answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Two linked clusters; all origins are in east.
pub struct World {
    east: Cluster<Place>,
    west: Cluster<Place>,
    origins: Vec<SocketAddr>,
    callers: u32,
}

impl World {
    /// Starts the clusters with so many origins, `origin-1` and so on, and waits until both
    /// clusters know of all of them.
    ///
    /// # Errors
    /// When anything does not come up.
    pub async fn start(place: &Place, gateways: usize, count: u32, delay_ms: u64) -> Result<Self> {
        let service = Service {
            name: ORIGIN,
            app_protocol: "kubernetes.io/h2c",
            exported: true,
        };
        let mut east = Cluster::start("east", place.clone(), &[service], gateways).await?;
        let west = Cluster::start("west", place.clone(), &[], gateways).await?;
        east.link(&west).await?;
        west.link(&east).await?;
        let (program, mut origins) = (current_exe()?, Vec::new());
        for number in 1..=count {
            let name = format!("origin-{number}");
            let arguments = origin(&name, delay_ms);
            origins.push(east.endpoint(ORIGIN, &name, &program, &arguments).await?);
        }
        let world = Self {
            east,
            west,
            origins,
            callers: 0,
        };
        world.ready().await?;
        Ok(world)
    }

    async fn ready(&self) -> Result<()> {
        let all = [("east", u32::try_from(self.origins.len())?)];
        self.east.wait_for_endpoints(ORIGIN, &all).await?;
        self.west.wait_for_link(true).await?;
        self.west.wait_for_endpoints(ORIGIN, &all).await
    }

    /// Where the origins themselves listen.
    #[must_use]
    pub fn origins(&self) -> &[SocketAddr] {
        &self.origins
    }

    /// Starts a caller in east and tells where its sidecar takes calls to the origins.
    ///
    /// # Errors
    /// When it gets no answer.
    pub async fn near(&mut self) -> Result<SocketAddr> {
        self.callers += 1;
        caller(&mut self.east, self.callers).await
    }

    /// Starts a caller in west; its requests go through the tunnel.
    ///
    /// # Errors
    /// When it gets no answer.
    pub async fn far(&mut self) -> Result<SocketAddr> {
        self.callers += 1;
        caller(&mut self.west, self.callers).await
    }

    /// Replaces an origin by one that takes so many milliseconds.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn slow_down(&mut self, name: &str, delay_ms: u64) -> Result<()> {
        let app = format!("{name}-app");
        self.east.kill(&app)?;
        self.east.restart_with(&app, &current_exe()?, |arguments| {
            if let Some(delay) = arguments.last_mut() {
                *delay = delay_ms.to_string();
            }
        })?;
        self.ready().await
    }
}

async fn caller(cluster: &mut Cluster<Place>, number: u32) -> Result<SocketAddr> {
    let name = format!("caller-{number}");
    let outbound = cluster.caller(&name, &[ORIGIN]).await?[ORIGIN];
    let answered = load::first_answer(outbound, PATIENCE).await;
    answered.map_err(|error| error.context(cluster.logs()))?;
    Ok(outbound)
}

/// Arguments of an origin; the last one is its delay.
fn origin(name: &str, delay_ms: u64) -> Vec<String> {
    let arguments = [
        "origin",
        "--listen",
        "{listen}",
        "--name",
        name,
        "--delay-ms",
    ];
    let arguments = arguments.map(str::to_owned).into_iter();
    own::tie()
        .into_iter()
        .chain(arguments)
        .chain([delay_ms.to_string()])
        .collect()
}

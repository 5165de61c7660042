//! The only local endpoint is killed with -9, application and sidecar; another cluster has one.

use std::net::SocketAddr;

use anyhow::Result;
use linkspan_api::v1::WorkloadStatus;
use linkspan_tests::clusters::{Cluster, binary};

use super::{ALTERNATIVE, CHECKOUT, Scene, VICTIM, caller, checkout, endpoint};
use crate::place::Place;

/// Caller and victim in east, the alternative in west.
pub(super) struct DeadEndpoint {
    east: Cluster<Place>,
    _west: Cluster<Place>,
    outbound: SocketAddr,
}

impl DeadEndpoint {
    pub(super) async fn start() -> Result<Self> {
        let place = Place::new();
        let mut east = Cluster::start("east", place.clone(), &[checkout()], 2).await?;
        let mut west = Cluster::start("west", place, &[checkout()], 2).await?;
        east.link(&west).await?;
        west.link(&east).await?;
        endpoint(&mut east, VICTIM).await?;
        endpoint(&mut west, ALTERNATIVE).await?;
        let outbound = caller(&mut east).await?;
        ready(&east).await?;
        west.wait_for_link(true).await?;
        Ok(Self {
            east,
            _west: west,
            outbound,
        })
    }
}

async fn ready(east: &Cluster<Place>) -> Result<()> {
    east.wait_until("with the victim back", |status| {
        status.workloads.iter().any(is_victim_back)
    })
    .await?;
    east.wait_for_link(true).await?;
    east.wait_for_endpoints(CHECKOUT, &[("east", 1), ("west", 1)])
        .await
}

/// Its new process has registered, rather than the old one's lease going on.
fn is_victim_back(workload: &WorkloadStatus) -> bool {
    workload.uid == format!("east-{VICTIM}") && workload.ready && workload.presence == "connected"
}

impl Scene for DeadEndpoint {
    fn home(&mut self) -> &mut Cluster<Place> {
        &mut self.east
    }

    fn outbound(&self) -> SocketAddr {
        self.outbound
    }

    async fn strike(&mut self) -> Result<()> {
        // Each returns when its process is gone.
        self.east.kill(&format!("{VICTIM}-app"))?;
        self.east.kill(&format!("{VICTIM}-sidecar"))
    }

    fn observed(&self) -> Result<()> {
        Ok(())
    }

    async fn heal(&mut self) -> Result<()> {
        self.east
            .restart(&format!("{VICTIM}-app"), Some(&binary()?))?;
        self.east.restart(&format!("{VICTIM}-sidecar"), None)?;
        ready(&self.east).await
    }
}

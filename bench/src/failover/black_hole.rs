//! The link to the preferred cluster swallows everything; a second cluster stands by.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use linkspan_tests::clusters::Cluster;

use super::{ALTERNATIVE, CHECKOUT, Scene, VICTIM, caller, checkout, endpoint};
use crate::place::{Place, Wires};

/// The caller is in south, which has no endpoint. East's is in the same region and gets
/// everything, west's is elsewhere. South dials both: east through the wires, west directly.
pub(super) struct BlackHole {
    south: Cluster<Place>,
    east: Cluster<Place>,
    _west: Cluster<Place>,
    outbound: SocketAddr,
    wires: Wires,
    swallowed: u64,
}

impl BlackHole {
    pub(super) async fn start() -> Result<Self> {
        let (place, wires) = (Place::new(), Wires::default());
        let south = Cluster::start("south", place.unreachable(), &[], 2).await?;
        let east = Cluster::start("east", place.wired(&wires), &[checkout()], 2).await?;
        let west = Cluster::start("west", place, &[checkout()], 2).await?;
        let mut south = south.in_region("near");
        let (mut east, mut west) = (east.in_region("near"), west.in_region("far"));
        for peer in [&east, &west] {
            south.link(peer).await?;
            peer.link(&south).await?;
        }
        endpoint(&mut east, VICTIM).await?;
        endpoint(&mut west, ALTERNATIVE).await?;
        let outbound = caller(&mut south).await?;
        let scene = Self {
            south,
            east,
            _west: west,
            outbound,
            wires,
            swallowed: 0,
        };
        scene.ready().await?;
        Ok(scene)
    }

    async fn ready(&self) -> Result<()> {
        self.south.wait_for_link(true).await?;
        self.east.wait_for_link(true).await?;
        let each = [("east", 1), ("west", 1)];
        self.south.wait_for_endpoints(CHECKOUT, &each).await
    }
}

impl Scene for BlackHole {
    fn home(&mut self) -> &mut Cluster<Place> {
        &mut self.south
    }

    fn outbound(&self) -> SocketAddr {
        self.outbound
    }

    async fn strike(&mut self) -> Result<()> {
        self.swallowed = self.wires.swallowed();
        self.wires.swallow(true);
        Ok(())
    }

    fn observed(&self) -> Result<()> {
        let count = self.wires.swallowed() - self.swallowed;
        ensure!(count > 0, "the black hole swallowed nothing");
        Ok(())
    }

    async fn heal(&mut self) -> Result<()> {
        self.wires.swallow(false);
        self.ready().await
    }
}

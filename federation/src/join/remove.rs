//! Unlinking: the peer is asked to do the same; one that is not there is told when it returns.

use std::{
    io,
    sync::Arc,
    time::{Duration, SystemTime},
};

use linkspan_api::v1::{self, sync_client::SyncClient};
use linkspan_core::{
    ClusterId, Link, TrustDomain,
    join::{InvitationId, Problem, Refusal, TOMBSTONE_LIFE},
};
use tokio::time::timeout;

use super::linker::Linker;
use crate::{
    controller::World,
    sync::{Destination, Dial, channel},
};

/// For the peer to do its part; after that it is as good as dead.
const TELLING: Duration = Duration::from_secs(5);

/// What came of removing a link.
pub(crate) struct Removed {
    /// Why the peer does not know it; `None` if it does.
    pub(crate) untold: Option<String>,
    /// Until when it is told if it returns.
    pub(crate) tombstone_until: SystemTime,
}

impl Linker {
    /// Removes a link on both sides, or on ours alone. When this returns, our side is clean.
    pub(crate) async fn remove(&self, cluster: &ClusterId) -> Result<Removed, Refusal> {
        let world = Arc::clone(&self.worlds.borrow());
        let Some(link) = world.declared.links.get(cluster) else {
            return Err(not_linked(cluster, world.declared.links.keys()));
        };
        let up = world.desired.links.get(cluster).is_some_and(|link| link.up);
        let destination = Destination {
            cluster: cluster.clone(),
            federation: link.federation_id.clone(),
        };
        let untold = match up {
            true => self.tell(&destination, &link.trust_domain).await.err(),
            false => Some("no tunnel to it is up".to_owned()),
        };
        let buried = untold.is_some().then(|| in_force(&world, link));
        self.unlink(cluster, buried).await?;
        tracing::info!(peer = %cluster, told = untold.is_none(), "link removed");
        Ok(Removed {
            untold,
            tombstone_until: SystemTime::now() + TOMBSTONE_LIFE,
        })
    }

    async fn tell(&self, peer: &Destination, domain: &TrustDomain) -> Result<(), String> {
        let made_by = self.store.current().made_by(&peer.cluster, domain);
        let told = timeout(TELLING, ask_to_unlink(&*self.peers, peer, made_by)).await;
        let late = || format!("it did not answer within {} s", TELLING.as_secs());
        told.map_err(|_| late())?
            .map_err(|error| super::messages::shown(&error.to_string()))
    }
}

/// Asks a peer's federation to remove its side.
async fn ask_to_unlink(
    dial: &dyn Dial,
    peer: &Destination,
    made_by: Option<InvitationId>,
) -> io::Result<()> {
    let request = v1::UnlinkRequest {
        invitation: made_by.map(|id| id.to_string()).unwrap_or_default(),
    };
    let io = dial.dial(peer).await?;
    let channel = channel(io).await?;
    let asked = SyncClient::new(channel).unlink(request).await;
    asked
        .map(drop)
        .map_err(|status| io::Error::other(status.message().to_owned()))
}

/// The link with the roots by which its peer proves itself now: it may have announced newer ones
/// than were declared.
pub(super) fn in_force(world: &World, link: &Link) -> Link {
    let planned = world.desired.links.get(&link.cluster);
    Link {
        bundle: planned.map_or_else(|| link.bundle.clone(), |planned| planned.bundle.clone()),
        ..link.clone()
    }
}

fn not_linked<'a>(cluster: &ClusterId, known: impl Iterator<Item = &'a ClusterId>) -> Refusal {
    let known: Vec<_> = known.take(20).map(ToString::to_string).collect();
    let known = match known.is_empty() {
        true => "none".to_owned(),
        false => known.join(", "),
    };
    let message = format!("there is no link to `{cluster}` (there is: {known})");
    Refusal::new(Problem::Unavailable, message)
}

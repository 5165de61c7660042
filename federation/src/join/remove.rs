//! Unlinking: the peer is asked to do the same; one that is not there is told when it returns.

use std::{
    collections::BTreeSet,
    io,
    sync::Arc,
    time::{Duration, SystemTime},
};

use linkspan_api::v1::{self, sync_client::SyncClient};
use linkspan_core::{
    ClusterId, Link,
    join::{InvitationId, Problem, Refusal, TOMBSTONE_LIFE},
};
use tokio::{
    sync::oneshot,
    time::{Instant, timeout},
};

use super::linker::Linker;
use crate::{
    controller::World,
    sync::{Destination, Dial, channel},
};

/// For the peer to do its part; after that it is as good as dead.
const TELLING: Duration = Duration::from_secs(5);

/// For the peer to hear that its wish is granted, before the tunnel is cut over which it hears it.
const HEARING: Duration = Duration::from_secs(2);
/// For our gateways to let go of the peer: a lease, in which removals wait after a restart, and
/// some.
const LETTING_GO: Duration = Duration::from_secs(15);

/// What came of removing a link.
pub(crate) struct Removed {
    /// Why the peer does not know it; `None` if it does.
    pub(crate) untold: Option<String>,
    /// Until when it is told if it returns; `None` if it is not.
    pub(crate) tombstone_until: Option<SystemTime>,
    /// Gateways of ours that have not confirmed that they let go of the peer.
    pub(crate) late: Vec<String>,
}

impl Linker {
    /// Removes a link on both sides, or on ours alone; also one that is pending, or of which only
    /// the book knows. When this returns, our side is clean, but for the gateways that are named.
    pub(crate) async fn remove(&self, cluster: &ClusterId) -> Result<Removed, Refusal> {
        let world = self.known_world().await?;
        let Some(meant) = self.present(cluster) else {
            let book = self.store.current();
            let noted = book.links().map(|(name, _)| name);
            let known = world.declared.links.keys().chain(noted);
            return Err(not_linked(cluster, known));
        };
        let declared = world.declared.links.get(cluster);
        let untold = match declared {
            Some(link) => self.tell(&world, link).await.err(),
            None => Some("the link was not declared (any more)".to_owned()),
        };
        let buried = declared
            .filter(|_| untold.is_some())
            .map(|link| in_force(&world, link));
        let tombstone_until = buried.as_ref().map(|_| SystemTime::now() + TOMBSTONE_LIFE);
        let hold = self.in_hand.take(cluster).await;
        match self.present(cluster) {
            Some(found) if found == meant => self.unlink(cluster, &meant.domain, buried).await?,
            // Somebody else was faster.
            None => {}
            Some(_) => return Err(made_anew(cluster)),
        }
        drop(hold);
        let late = self.let_go(cluster).await;
        tracing::info!(peer = %cluster, told = untold.is_none(), ?late, "link removed");
        Ok(Removed {
            untold,
            tombstone_until,
            late,
        })
    }

    /// Removes a link because its peer asks for it. It is `told` once that is certain to happen;
    /// then the peer has a moment to hear it, until it has `gone`, before the tunnel is cut.
    pub(crate) async fn follow(
        &self,
        cluster: &ClusterId,
        made_by: &str,
        told: oneshot::Sender<Result<(), Refusal>>,
        gone: impl Future<Output = ()>,
    ) -> Result<(), Refusal> {
        let _hold = self.in_hand.take(cluster).await;
        let marked = match self.present(cluster) {
            // It is what was asked for.
            None => Ok(None),
            Some(_) if self.is_another(cluster, made_by) => Err(made_anew(cluster)),
            Some(found) => self.mark(cluster, None).await.map(|()| Some(found)),
        };
        let begun = marked.as_ref().map_or(None, Clone::clone);
        let _ = told.send(marked.map(drop));
        let Some(begun) = begun else {
            return Ok(());
        };
        let _ = timeout(HEARING, gone).await;
        self.unlink(cluster, &begun.domain, None).await
    }

    /// Waits until our gateways have let go of a peer whose link is gone; names those that have not
    /// in time.
    async fn let_go(&self, cluster: &ClusterId) -> Vec<String> {
        let begun = Instant::now();
        let mut worlds = self.worlds.clone();
        let gone =
            |world: &Arc<World>| world.own_settled && !world.declared.links.contains_key(cluster);
        let told = matches!(timeout(LETTING_GO, worlds.wait_for(gone)).await, Ok(Ok(_)));
        let world = Arc::clone(&self.worlds.borrow());
        let replicas = world.gateways.iter().map(|of| of.replica.clone());
        match told {
            true => {
                let left = LETTING_GO.saturating_sub(begun.elapsed());
                let late = self
                    .applied
                    .late(replicas.collect(), world.generation, left);
                late.await
            }
            false => replicas.collect(),
        }
    }

    /// Why the peer cannot be told, if so.
    async fn tell(&self, world: &World, link: &Link) -> Result<(), String> {
        let planned = world.desired.links.get(&link.cluster);
        if !planned.is_some_and(|planned| planned.up) {
            return Err("no tunnel to it is up".to_owned());
        }
        let peer = Destination {
            cluster: link.cluster.clone(),
            federation: link.federation_id.clone(),
        };
        let book = self.store.current();
        let made_by = book.origin(link);
        let told = timeout(TELLING, ask_to_unlink(&*self.peers, &peer, made_by)).await;
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

fn made_anew(cluster: &ClusterId) -> Refusal {
    let message = format!(
        "the link to `{cluster}` that was to be removed is removed already; there is a newer one"
    );
    Refusal::new(Problem::Used, message)
}

fn not_linked<'a>(cluster: &ClusterId, known: impl Iterator<Item = &'a ClusterId>) -> Refusal {
    let known: BTreeSet<_> = known.collect();
    let known: Vec<_> = known
        .into_iter()
        .take(20)
        .map(ToString::to_string)
        .collect();
    let known = match known.is_empty() {
        true => "none".to_owned(),
        false => known.join(", "),
    };
    let message = format!("there is no link to `{cluster}` (there is: {known})");
    Refusal::new(Problem::Failed, message)
}

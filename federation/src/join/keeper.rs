//! What becomes of links by themselves: active with the first tunnel, over without one in time,
//! removed when the peer says that it has removed its side.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, SystemTime},
};

use linkspan_core::{
    ClusterId,
    join::{LinkBook, Refusal},
};
use tokio::time::{MissedTickBehavior, interval};

use super::{
    linker::{Linker, stopping},
    remove::in_force,
};
use crate::controller::World;

/// How often it is looked whether something is over.
const LOOK: Duration = Duration::from_secs(1);

/// Keeps the book true; never ends while worlds are made.
pub(crate) async fn keep(linker: Arc<Linker>) {
    let mut worlds = linker.worlds.clone();
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failing = Failing::default();
    loop {
        tokio::select! {
            changed = worlds.changed() => if changed.is_err() { return },
            _ = look.tick() => {}
        }
        worlds.mark_unchanged();
        tend(&linker, &mut failing).await;
    }
}

/// What did not succeed with the last look, and is tried again with the next: it is told once.
#[derive(Default)]
struct Failing {
    book: bool,
    links: BTreeSet<ClusterId>,
}

/// Each link by itself: one that cannot be removed does not stop the others.
async fn tend(linker: &Linker, failing: &mut Failing) {
    let world = Arc::clone(&linker.worlds.borrow());
    if world.generation == 0 {
        return;
    }
    let noted = note(linker, proved(&world)).await;
    if let Err(refusal) = &noted
        && !failing.book
    {
        tracing::error!(reason = refusal.message, "links cannot be kept up to date");
    }
    failing.book = noted.is_err();
    let ending = ends(&world, &linker.store.current(), SystemTime::now());
    failing.links.retain(|cluster| ending.contains_key(cluster));
    for cluster in ending.into_keys() {
        // Whoever has it makes or removes it.
        let Some(_hold) = linker.in_hand.try_take(&cluster) else {
            continue;
        };
        let world = Arc::clone(&linker.worlds.borrow());
        let mut ends = ends(&world, &linker.store.current(), SystemTime::now());
        let Some(end) = ends.remove(&cluster) else {
            continue;
        };
        if !failing.links.contains(&cluster) {
            end.announce(&cluster);
        }
        match clean(linker, &world, &cluster, end).await {
            Ok(()) => drop(failing.links.remove(&cluster)),
            Err(refusal) => {
                if failing.links.insert(cluster.clone()) {
                    tracing::error!(peer = %cluster, reason = refusal.message, "a link cannot be removed");
                }
            }
        }
    }
}

/// Pending links that have a tunnel.
fn proved(world: &World) -> Vec<ClusterId> {
    let links = world.desired.links.iter();
    let fresh = links.filter(|(cluster, _)| !world.stale.contains(*cluster));
    let proved = fresh.filter(|(_, link)| link.link.pending && link.up);
    proved.map(|(cluster, _)| cluster.clone()).collect()
}

/// Why a link ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Its removal has begun already.
    Begun,
    /// No tunnel came up in time.
    Overdue,
    /// The peer has removed it.
    Removed,
}

impl End {
    fn announce(self, cluster: &ClusterId) {
        match self {
            Self::Begun => {}
            Self::Overdue => tracing::warn!(
                peer = %cluster,
                "no tunnel came up in time; the link is removed again"
            ),
            Self::Removed => {
                tracing::info!(peer = %cluster, "the peer has removed the link; cleaning up");
            }
        }
    }
}

/// The links that end now.
fn ends(world: &World, book: &LinkBook, now: SystemTime) -> BTreeMap<ClusterId, End> {
    let removed = world.removed.keys().map(|of| (of.clone(), End::Removed));
    let overdue = book.overdue(now).into_iter();
    let begun = book.removing().into_iter();
    // The later one counts.
    removed
        .chain(overdue.map(|of| (of, End::Overdue)))
        .chain(begun.map(|of| (of, End::Begun)))
        .collect()
}

async fn clean(
    linker: &Linker,
    world: &World,
    cluster: &ClusterId,
    end: End,
) -> Result<(), Refusal> {
    let declared = world.declared.links.get(cluster);
    let book = linker.store.current();
    if end == End::Removed {
        let Some(link) = declared else {
            return Ok(());
        };
        // It may have been made anew since that world was.
        let made_by = book.origin(link);
        return match world.removed.get(cluster) == Some(&made_by) {
            true => linker.unlink(cluster, &link.trust_domain, None).await,
            false => Ok(()),
        };
    }
    let Some((_, held)) = book.links().find(|(name, _)| *name == cluster) else {
        return Ok(());
    };
    if declared.is_some_and(|link| link.trust_domain != held.trust_domain) {
        // Somebody else was declared under that name; that link is not ours to remove.
        linker.mark(cluster, None).await?;
        return linker.forget(cluster, None).await;
    }
    // The peer may have seen a tunnel at the last moment.
    let buried = declared.filter(|_| end == End::Overdue);
    let buried = buried.map(|link| in_force(world, link));
    linker.unlink(cluster, &held.trust_domain, buried).await
}

/// Writes down what is active now, and forgets what is over.
async fn note(linker: &Linker, proved: Vec<ClusterId>) -> Result<(), Refusal> {
    let (store, worlds) = (Arc::clone(&linker.store), linker.worlds.clone());
    let written = tokio::task::spawn_blocking(move || {
        store.change(|book| {
            let now = SystemTime::now();
            for cluster in &proved {
                if book.activate(cluster, now) {
                    tracing::info!(peer = %cluster, "the first tunnel is up; the link is active");
                }
            }
            let world = Arc::clone(&worlds.borrow());
            book.sweep(&world.declared.links, now);
            Ok(())
        })
    });
    written.await.map_err(|_| stopping())?
}

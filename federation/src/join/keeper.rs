//! What becomes of links by themselves: active with the first tunnel, over without one in time,
//! removed when the peer says that it has removed its side.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use linkspan_core::{ClusterId, join::Refusal};
use tokio::time::{MissedTickBehavior, interval};

use super::{
    linker::{Linker, stopping},
    remove::in_force,
};

/// How often it is looked whether something is over.
const LOOK: Duration = Duration::from_secs(1);

/// Keeps the book true; never ends while worlds are made.
pub(crate) async fn keep(linker: Arc<Linker>) {
    let mut worlds = linker.worlds.clone();
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failing = false;
    loop {
        tokio::select! {
            changed = worlds.changed() => if changed.is_err() { return },
            _ = look.tick() => {}
        }
        worlds.mark_unchanged();
        match tend(&linker).await {
            Ok(()) => failing = false,
            // Tried again with the next look.
            Err(refusal) if !std::mem::replace(&mut failing, true) => {
                tracing::error!(reason = refusal.message, "links cannot be kept up to date");
            }
            Err(_) => {}
        }
    }
}

async fn tend(linker: &Linker) -> Result<(), Refusal> {
    let world = Arc::clone(&linker.worlds.borrow());
    if world.generation == 0 {
        return Ok(());
    }
    for cluster in &world.removed {
        tracing::info!(peer = %cluster, "the peer has removed the link; cleaning up");
        linker.unlink(cluster, None).await?;
    }
    let proved: Vec<_> = world
        .desired
        .links
        .iter()
        .filter(|(_, link)| link.link.pending && link.up)
        .map(|(cluster, _)| cluster.clone())
        .collect();
    note(linker, proved).await?;
    for cluster in linker.store.current().overdue(SystemTime::now()) {
        tracing::warn!(
            peer = %cluster,
            "no tunnel came up before the invitation expired; the link is removed again"
        );
        // The peer may have seen one at the last moment.
        let declared = world.declared.links.get(&cluster);
        let buried = declared.map(|link| in_force(&world, link));
        linker.unlink(&cluster, buried).await?;
    }
    Ok(())
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
            book.sweep(|cluster| world.declared.links.contains_key(cluster), now);
            Ok(())
        })
    });
    written.await.map_err(|_| stopping())?
}

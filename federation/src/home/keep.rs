//! Keeps the journal what peers told last: loads it once, then writes what changes.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use linkspan_core::{
    ClusterId, Link,
    backend::Journal,
    journal::{Kept, encode},
    peers::Journals,
};
use linkspan_kube::Lead;
use linkspan_runtime::{process::chain, stop::Stop};
use tokio::{
    sync::{oneshot, watch},
    time::sleep,
};

/// What is to be kept of each peer, with the link as it is declared; `None` before links are
/// declared.
pub(crate) type KeptPeers = Option<Arc<BTreeMap<ClusterId, (Arc<Link>, Kept)>>>;

/// Changes within this time are one write: a rollout at a peer changes records for minutes.
const DEBOUNCE: Duration = Duration::from_secs(5);
/// Pause after a journal that could not be read or written.
const RETRY: Duration = Duration::from_secs(5);
/// How old the time of the last confirmation may become in the journal of a peer that is heard:
/// little beside the day after which records are not used any more.
const REFRESH: Duration = Duration::from_secs(600);
/// A write at the end takes no longer; what is lost then is the last few seconds' changes.
const LAST: Duration = Duration::from_secs(3);

/// Loads the journal, tells what is in it, and keeps it until `stop` drains. Only a leader writes.
pub(crate) async fn keep_journal(
    journal: impl Journal,
    loaded: oneshot::Sender<Journals>,
    mut newest: watch::Receiver<KeptPeers>,
    mut lead: watch::Receiver<Lead>,
    stop: Stop,
) {
    let mut keeper = Keeper {
        journal,
        saved: BTreeMap::new(),
        failing: false,
    };
    let journals = tokio::select! {
        () = stop.draining() => return,
        journals = keeper.load() => journals,
    };
    let _ = loaded.send(journals);
    loop {
        tokio::select! {
            () = stop.draining() => break,
            changed = newest.changed() => if changed.is_err() { break },
            // Without an election it never changes.
            Ok(()) = lead.changed() => {}
        }
        let pause = if keeper.failing { RETRY } else { DEBOUNCE };
        tokio::select! {
            () = stop.draining() => break,
            () = sleep(pause) => {}
        }
        let now = newest.borrow_and_update().clone();
        if lead.borrow_and_update().may_write(Instant::now()) {
            keeper.write(now).await;
        } else {
            // Who led meanwhile has written.
            keeper.saved.values_mut().for_each(|saved| *saved = None);
        }
        if keeper.failing {
            newest.mark_changed();
        }
    }
    let last = newest.borrow().clone();
    if lead.borrow().may_write(Instant::now()) {
        let _ = tokio::time::timeout(LAST, keeper.write(last)).await;
    }
}

struct Keeper<J> {
    journal: J,
    /// Whose journals are there, and with what, as far as that is known.
    saved: BTreeMap<ClusterId, Option<Kept>>,
    failing: bool,
}

impl<J: Journal> Keeper<J> {
    async fn load(&mut self) -> Journals {
        loop {
            match self.journal.load().await {
                Ok(entries) => {
                    self.failing = false;
                    self.saved = entries.iter().map(|of| (of.peer.clone(), None)).collect();
                    let journals = entries.into_iter().map(|of| (of.peer, of.content));
                    return journals.collect();
                }
                Err(error) => {
                    if !std::mem::replace(&mut self.failing, true) {
                        tracing::warn!(
                            error = chain(&error),
                            "what peers told before the restart cannot be read yet"
                        );
                    }
                    sleep(RETRY).await;
                }
            }
        }
    }

    async fn write(&mut self, newest: KeptPeers) {
        let Some(newest) = newest else {
            return;
        };
        let mut failed = false;
        let gone = self.saved.keys().filter(|peer| !newest.contains_key(*peer));
        for peer in gone.cloned().collect::<Vec<_>>() {
            let forgotten = self.journal.forget(&peer).await;
            if self.succeeded(&peer, forgotten) {
                self.saved.remove(&peer);
            } else {
                failed = true;
            }
        }
        for (peer, (link, kept)) in newest.iter() {
            if self
                .saved
                .get(peer)
                .is_some_and(|saved| is_fresh(saved.as_ref(), kept))
            {
                continue;
            }
            let (link, kept) = (Arc::clone(link), kept.clone());
            let packed = kept.clone();
            // Megabytes may have to be packed: not on the threads that serve streams.
            let packing = tokio::task::spawn_blocking(move || encode(&packed, &link));
            let Ok(bytes) = packing.await else {
                continue;
            };
            let saved = self.journal.save(peer, &bytes).await;
            if self.succeeded(peer, saved) {
                self.saved.insert(peer.clone(), Some(kept));
            } else {
                failed = true;
            }
        }
        if std::mem::replace(&mut self.failing, failed) && !failed {
            tracing::info!("what peers tell is being kept again");
        }
    }

    /// The first failure is logged, not each try.
    fn succeeded<E: std::error::Error + 'static>(
        &self,
        peer: &ClusterId,
        result: Result<(), E>,
    ) -> bool {
        if let Err(error) = &result
            && !self.failing
        {
            tracing::error!(
                %peer, error = chain(error),
                "what the peer tells cannot be kept; serving goes on, but after a restart its \
                 services are unknown until it is heard"
            );
        }
        result.is_ok()
    }
}

/// Whether what is saved is good enough.
fn is_fresh(saved: Option<&Kept>, kept: &Kept) -> bool {
    saved.is_some_and(|saved| {
        let age = kept.confirmed.duration_since(saved.confirmed);
        saved.same_records(kept) && age.unwrap_or_default() < REFRESH
    })
}

//! Keeps the journal what peers told last: loads it once, then writes what changes.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use linkspan_core::{
    ClusterId, Link,
    backend::Journal,
    journal::{Keep, Kept, encode},
    peers::Journals,
};
use linkspan_kube::Lead;
use linkspan_runtime::{process::chain, stop::Stop, telemetry::JournalHandles};
use tokio::{
    sync::{oneshot, watch},
    time::sleep,
};

/// What is to be kept of the peers.
#[derive(Debug)]
pub(crate) struct KeptPeers {
    /// Of each that is linked, with its link as it is declared.
    pub(crate) peers: BTreeMap<ClusterId, (Arc<Link>, Keep)>,
    /// Whether a link that is not among them may be declared all the same: then nothing is
    /// forgotten.
    pub(crate) links_in_doubt: bool,
}

/// The newest of it; `None` before links are declared.
pub(crate) type Newest = Option<Arc<KeptPeers>>;

/// Changes within this time are one write: a rollout at a peer changes records for minutes.
const DEBOUNCE: Duration = Duration::from_secs(5);
/// Bytes written in a second, on the average, whatever peers do: an API server keeps each write
/// for minutes, in a store that holds little and stops the cluster when it is full.
const BYTES_PER_SECOND: usize = 64 * 1024;
/// Pause after a journal that could not be read or written.
const RETRY: Duration = Duration::from_secs(5);
/// How old the time of the last confirmation may become in the journal of a peer that is heard:
/// little beside the day after which records are not used any more.
const REFRESH: Duration = Duration::from_secs(600);
/// A write at the end takes no longer; what is lost then is the last few seconds' changes.
const LAST: Duration = Duration::from_secs(3);

/// Loads the journal, tells what is in it, and keeps it until `stop` drains. Only a leader writes.
pub(crate) async fn keep_journal(
    (journal, writes): (impl Journal, JournalHandles),
    loaded: oneshot::Sender<Journals>,
    mut newest: watch::Receiver<Newest>,
    mut lead: watch::Receiver<Lead>,
    stop: Stop,
) {
    let mut keeper = Keeper {
        journal,
        writes,
        saved: BTreeMap::new(),
        failing: false,
    };
    let journals = tokio::select! {
        () = stop.draining() => return,
        journals = keeper.load() => journals,
    };
    let _ = loaded.send(journals);
    let mut pause = DEBOUNCE;
    loop {
        tokio::select! {
            () = stop.draining() => break,
            changed = newest.changed() => if changed.is_err() { break },
            // Without an election it never changes.
            Ok(()) = lead.changed() => {}
        }
        tokio::select! {
            () = stop.draining() => break,
            () = sleep(pause) => {}
        }
        let now = newest.borrow_and_update().clone();
        if lead.borrow_and_update().may_write(Instant::now()) {
            pause = pause_after(keeper.write(now).await, keeper.failing);
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

/// So long that the writes of peers that never come to rest stay within what a store bears.
fn pause_after(bytes: usize, failing: bool) -> Duration {
    let least = if failing { RETRY } else { DEBOUNCE };
    least.max(Duration::from_secs((bytes / BYTES_PER_SECOND) as u64))
}

struct Keeper<J> {
    journal: J,
    writes: JournalHandles,
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

    /// Writes what is new; the bytes that it took.
    async fn write(&mut self, newest: Newest) -> usize {
        let Some(newest) = newest else {
            return 0;
        };
        let mut failed = !self.forget_gone(&newest).await;
        let mut written = 0;
        for (peer, (link, keep)) in &newest.peers {
            let Keep::This(kept) = keep else {
                continue;
            };
            let saved = self.saved.get(peer).and_then(Option::as_ref);
            if is_fresh(saved, kept) {
                continue;
            }
            let (link, packed) = (Arc::clone(link), kept.clone());
            // Megabytes may have to be packed: not on the threads that serve streams.
            let packing = tokio::task::spawn_blocking(move || encode(&packed, &link));
            let Ok(bytes) = packing.await else {
                continue;
            };
            // Also where it failed: parts of it may be there.
            written += bytes.len();
            let saved = self.journal.save(peer, &bytes).await;
            if self.succeeded(peer, saved) {
                self.saved.insert(peer.clone(), Some(kept.clone()));
            } else {
                failed = true;
            }
        }
        if std::mem::replace(&mut self.failing, failed) && !failed {
            tracing::info!("what peers tell is being kept again");
        }
        written
    }

    /// False where that failed.
    async fn forget_gone(&mut self, newest: &KeptPeers) -> bool {
        let is_gone = |peer: &&ClusterId| match newest.peers.get(*peer) {
            Some((_, keep)) => *keep == Keep::Nothing,
            None => !newest.links_in_doubt,
        };
        let gone: Vec<_> = self.saved.keys().filter(is_gone).cloned().collect();
        let mut all = true;
        for peer in gone {
            let forgotten = self.journal.forget(&peer).await;
            if self.succeeded(&peer, forgotten) {
                self.saved.remove(&peer);
            } else {
                all = false;
            }
        }
        all
    }

    /// The first failure is logged, not each try.
    fn succeeded<E: std::error::Error + 'static>(
        &self,
        peer: &ClusterId,
        result: Result<(), E>,
    ) -> bool {
        let counter = match &result {
            Ok(()) => &self.writes.ok,
            Err(_) => &self.writes.failed,
        };
        counter.inc();
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

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use linkspan_core::{record::PeerRecords, testing::link};

    use super::*;
    use crate::home::DirectoryJournal;

    fn id(name: &str) -> ClusterId {
        name.parse().unwrap()
    }

    fn newest(peers: &[(&str, Keep)], links_in_doubt: bool) -> Newest {
        let peers = peers
            .iter()
            .map(|(name, keep)| (id(name), (Arc::new(link(name)), keep.clone())));
        Some(Arc::new(KeptPeers {
            peers: peers.collect(),
            links_in_doubt,
        }))
    }

    fn this(name: &str) -> Keep {
        Keep::This(Kept {
            trust_domain: link(name).trust_domain,
            epoch: 1,
            confirmed: SystemTime::UNIX_EPOCH,
            records: Arc::new(PeerRecords::default()),
        })
    }

    async fn kept(keeper: &mut Keeper<DirectoryJournal>) -> Vec<String> {
        let mut entries = keeper.journal.load().await.unwrap();
        entries.sort_by(|one, other| one.peer.cmp(&other.peer));
        entries.iter().map(|of| of.peer.to_string()).collect()
    }

    fn writes() -> JournalHandles {
        let registry = linkspan_runtime::telemetry::Registry::new();
        let metrics = linkspan_runtime::telemetry::FederationMetrics::register(&registry);
        metrics.unwrap().journal
    }

    #[tokio::test]
    async fn only_what_is_known_to_be_gone_is_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let mut keeper = Keeper {
            journal: DirectoryJournal::new(directory.path().into()),
            writes: writes(),
            saved: BTreeMap::new(),
            failing: false,
        };
        let all = newest(&[("north", this("north")), ("west", this("west"))], false);
        assert!(keeper.write(all).await > 0);
        let quiet = newest(&[("north", Keep::AsItIs)], true);
        assert_eq!(keeper.write(quiet).await, 0);
        assert_eq!(
            kept(&mut keeper).await,
            ["north", "west"],
            "not heard, and perhaps still declared"
        );
        keeper
            .write(newest(&[("north", Keep::AsItIs)], false))
            .await;
        assert_eq!(kept(&mut keeper).await, ["north"]);
        keeper
            .write(newest(&[("north", Keep::Nothing)], true))
            .await;
        assert_eq!(kept(&mut keeper).await, [] as [&str; 0]);
    }

    #[test]
    fn peers_that_never_rest_are_written_at_a_bounded_rate() {
        let mebibytes = 24 * 1024 * 1024;
        let each = pause_after(mebibytes, false);
        let writes = Duration::from_secs(300).div_duration_f64(each);
        assert!(writes * mebibytes as f64 <= 300.0 * BYTES_PER_SECOND as f64);
        assert_eq!(pause_after(100, false), DEBOUNCE);
        assert_eq!(pause_after(0, true), RETRY);
    }
}

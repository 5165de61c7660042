//! What must outlive a restart, on disk: the registered workloads, so that they do not vanish, and
//! the roots that peers announced.

use std::{sync::Arc, time::Duration};

use linkspan_runtime::{process::chain, stop::Stop};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{sync::watch, time::sleep};

use super::{StateError, store::Slot};

/// Changes within this time are one write; at most so much is lost in a crash.
const DEBOUNCE: Duration = Duration::from_millis(500);
/// Pause after a write that failed (disk full): serving goes on meanwhile.
const RETRY: Duration = Duration::from_secs(5);

/// What was kept before the restart; nothing at the first start.
pub(crate) fn load<T: DeserializeOwned>(slot: &Slot) -> Result<Vec<T>, StateError> {
    let Some(bytes) = slot.read()? else {
        return Ok(Vec::new());
    };
    serde_json::from_slice(&bytes).map_err(|error| slot.damaged(error.to_string()))
}

/// Keeps what `newest` says, until `stop` drains.
pub(crate) async fn keep<T: Serialize + Send + Sync + 'static>(
    slot: Slot,
    newest: watch::Receiver<Arc<Vec<T>>>,
    stop: Stop,
) {
    keep_telling(slot, newest, |_| {}, stop).await;
}

/// As [`keep`]; tells what has been written, each time.
pub(crate) async fn keep_telling<T: Serialize + Send + Sync + 'static>(
    slot: Slot,
    mut newest: watch::Receiver<Arc<Vec<T>>>,
    written: impl Fn(Arc<Vec<T>>),
    stop: Stop,
) {
    let mut failing = false;
    loop {
        tokio::select! {
            () = stop.draining() => break,
            changed = newest.changed() => if changed.is_err() { break },
        }
        tokio::select! {
            () = stop.draining() => break,
            () = sleep(if failing { RETRY } else { DEBOUNCE }) => {}
        }
        let now = Arc::clone(&newest.borrow_and_update());
        failing = !write(&slot, &now, failing).await;
        if failing {
            newest.mark_changed();
        } else {
            written(now);
        }
    }
    // The state at the end, or those that came last would be missing after the restart.
    let last = newest.borrow().clone();
    write(&slot, &last, failing).await;
}

/// Whether it was written. The first failure and the recovery are logged, not each try.
async fn write<T: Serialize + Send + Sync + 'static>(
    slot: &Slot,
    newest: &Arc<Vec<T>>,
    failing: bool,
) -> bool {
    let (to, newest) = (slot.clone(), Arc::clone(newest));
    let written = tokio::task::spawn_blocking(move || {
        let bytes = serde_json::to_vec(&*newest);
        to.write(&bytes.map_err(|error| to.damaged(error.to_string()))?)
    });
    let path = slot.place();
    match written.await {
        Ok(Ok(())) => {
            if failing {
                tracing::info!(path = %path.display(), "it is being kept again");
            }
            true
        }
        Ok(Err(error)) => {
            if !failing {
                tracing::error!(
                    path = %path.display(), error = chain(&error),
                    "it cannot be kept; serving goes on, but see to it before the next restart, \
                     or what it should hold is unknown until workloads and peers reconnect"
                );
            }
            false
        }
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use linkspan_core::workloads::Registration;

    use super::*;

    fn registration(uid: &str) -> Registration {
        linkspan_core::testing::registration(uid, "shop", "checkout")
    }

    #[tokio::test]
    async fn what_was_registered_is_there_after_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = Slot::from(&directory.path().join("registrations.json"));
        assert!(load::<Registration>(&path).unwrap().is_empty());
        let (sender, receiver) = watch::channel(Arc::default());
        let stop = Stop::new();
        let keeping = tokio::spawn(keep(path.clone(), receiver, stop.clone()));
        sender.send_replace(Arc::new(vec![registration("one"), registration("two")]));
        stop.drain();
        keeping.await.unwrap();
        let loaded: Vec<Registration> = load(&path).unwrap();
        assert_eq!(loaded, [registration("one"), registration("two")]);
    }

    #[tokio::test]
    async fn a_write_that_fails_is_tried_again() {
        let directory = tempfile::tempdir().unwrap();
        let folder = directory.path().join("missing");
        let path = Slot::from(&folder.join("registrations.json"));
        let newest = Arc::new(vec![registration("one")]);
        assert!(!write(&path, &newest, false).await);
        fs::create_dir(folder).unwrap();
        assert!(write(&path, &newest, true).await);
        assert_eq!(load::<Registration>(&path).unwrap(), *newest);
    }

    #[test]
    fn a_damaged_file_says_what_to_do() {
        let directory = tempfile::tempdir().unwrap();
        let path = Slot::from(&directory.path().join("registrations.json"));
        path.write(b"[{").unwrap();
        let error = load::<Registration>(&path).unwrap_err().to_string();
        assert!(error.contains("remove it to start anew"), "{error}");
    }
}

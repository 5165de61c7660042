//! What must outlive a restart, on disk: the registered workloads, so that they do not vanish, and
//! the roots that peers announced.

use std::{path::PathBuf, sync::Arc, time::Duration};

use linkspan_runtime::stop::Stop;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{sync::watch, time::sleep};

use super::{StateError, files};

/// Changes within this time are one write; at most so much is lost in a crash.
const DEBOUNCE: Duration = Duration::from_millis(500);
/// Pause after a write that failed (disk full): serving goes on meanwhile.
const RETRY: Duration = Duration::from_secs(5);

/// What was kept before the restart; nothing at the first start.
pub(crate) fn load<T: DeserializeOwned>(path: &std::path::Path) -> Result<Vec<T>, StateError> {
    let Some(bytes) = files::read_private(path)? else {
        return Ok(Vec::new());
    };
    serde_json::from_slice(&bytes).map_err(|error| StateError::Damaged {
        path: path.into(),
        reason: error.to_string(),
    })
}

/// Keeps the file what `newest` says, until `stop` drains.
pub(crate) async fn keep<T: Serialize + Send + Sync + 'static>(
    path: PathBuf,
    mut newest: watch::Receiver<Arc<Vec<T>>>,
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
        failing = !write(&path, &now, failing).await;
        if failing {
            newest.mark_changed();
        }
    }
    // The state at the end, or those that came last would be missing after the restart.
    let last = newest.borrow().clone();
    write(&path, &last, failing).await;
}

/// Whether it was written. The first failure and the recovery are logged, not each try.
async fn write<T: Serialize + Send + Sync + 'static>(
    path: &std::path::Path,
    newest: &Arc<Vec<T>>,
    failing: bool,
) -> bool {
    let (to, newest) = (path.to_owned(), Arc::clone(newest));
    let written = tokio::task::spawn_blocking(move || {
        let bytes = serde_json::to_vec(&*newest)?;
        files::write_atomic(&to, &bytes, files::PRIVATE_FILE)
    });
    match written.await {
        Ok(Ok(())) => {
            if failing {
                tracing::info!(path = %path.display(), "the file is being kept again");
            }
            true
        }
        Ok(Err(error)) => {
            if !failing {
                tracing::error!(
                    path = %path.display(), %error,
                    "the file cannot be kept; serving goes on, but free space before the next \
                     restart, or what it should hold is unknown until workloads and peers \
                     reconnect"
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
        let path = directory.path().join("registrations.json");
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
        let path = directory.path().join("missing/registrations.json");
        let newest = Arc::new(vec![registration("one")]);
        assert!(!write(&path, &newest, false).await);
        fs::create_dir(path.parent().unwrap()).unwrap();
        assert!(write(&path, &newest, true).await);
        assert_eq!(load::<Registration>(&path).unwrap(), *newest);
    }

    #[test]
    fn a_damaged_file_says_what_to_do() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("registrations.json");
        files::write_atomic(&path, b"[{", files::PRIVATE_FILE).unwrap();
        let error = load::<Registration>(&path).unwrap_err().to_string();
        assert!(error.contains("remove it to start anew"), "{error}");
    }
}

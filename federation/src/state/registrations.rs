//! The registered workloads on disk, so that a restart does not make them vanish.

use std::{path::PathBuf, sync::Arc, time::Duration};

use linkspan_core::workloads::Registration;
use linkspan_runtime::stop::Stop;
use tokio::{sync::watch, time::sleep};

use super::{StateError, files};

/// Changes within this time are one write; at most so much is lost in a crash.
const DEBOUNCE: Duration = Duration::from_millis(500);
/// Pause after a write that failed (disk full): serving goes on meanwhile.
const RETRY: Duration = Duration::from_secs(5);

/// What was registered before the restart; nothing at the first start.
pub(crate) fn load(path: &std::path::Path) -> Result<Vec<Registration>, StateError> {
    let Some(bytes) = files::read_private(path)? else {
        return Ok(Vec::new());
    };
    serde_json::from_slice(&bytes).map_err(|error| StateError::Damaged {
        path: path.into(),
        reason: error.to_string(),
    })
}

/// Keeps the file what `registrations` says, until `stop` drains.
pub(crate) async fn keep(
    path: PathBuf,
    mut registrations: watch::Receiver<Arc<Vec<Registration>>>,
    stop: Stop,
) {
    let mut failing = false;
    loop {
        tokio::select! {
            () = stop.draining() => break,
            changed = registrations.changed() => if changed.is_err() { break },
        }
        tokio::select! {
            () = stop.draining() => break,
            () = sleep(if failing { RETRY } else { DEBOUNCE }) => {}
        }
        let newest = Arc::clone(&registrations.borrow_and_update());
        failing = !write(&path, &newest, failing).await;
        if failing {
            registrations.mark_changed();
        }
    }
    // The state at the end, or those that came last would be missing after the restart.
    let last = registrations.borrow().clone();
    write(&path, &last, failing).await;
}

/// Whether it was written. The first failure and the recovery are logged, not each try.
async fn write(
    path: &std::path::Path,
    registrations: &Arc<Vec<Registration>>,
    failing: bool,
) -> bool {
    let (to, registrations) = (path.to_owned(), Arc::clone(registrations));
    let written = tokio::task::spawn_blocking(move || {
        let bytes = serde_json::to_vec(&*registrations)?;
        files::write_atomic(&to, &bytes, files::PRIVATE_FILE)
    });
    match written.await {
        Ok(Ok(())) => {
            if failing {
                tracing::info!(path = %path.display(), "registrations are being kept again");
            }
            true
        }
        Ok(Err(error)) => {
            if !failing {
                tracing::error!(
                    path = %path.display(), %error,
                    "registrations cannot be kept; serving goes on, but free space before the \
                     next restart, or workloads will be unknown until they reconnect"
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

    use super::*;

    fn registration(uid: &str) -> Registration {
        linkspan_core::testing::registration(uid, "shop", "checkout")
    }

    #[tokio::test]
    async fn what_was_registered_is_there_after_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("registrations.json");
        assert!(load(&path).unwrap().is_empty());
        let (sender, receiver) = watch::channel(Arc::default());
        let stop = Stop::new();
        let keeping = tokio::spawn(keep(path.clone(), receiver, stop.clone()));
        sender.send_replace(Arc::new(vec![registration("one"), registration("two")]));
        stop.drain();
        keeping.await.unwrap();
        let loaded = load(&path).unwrap();
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
        assert_eq!(load(&path).unwrap(), *newest);
    }

    #[test]
    fn a_damaged_file_says_what_to_do() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("registrations.json");
        files::write_atomic(&path, b"[{", files::PRIVATE_FILE).unwrap();
        let error = load(&path).unwrap_err().to_string();
        assert!(error.contains("remove it to start anew"), "{error}");
    }
}

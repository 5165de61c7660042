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

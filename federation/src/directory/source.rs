//! The watched directory as a [`Source`]: a signal of change leads to a scan of everything.

use std::{path::Path, sync::Arc, time::Duration};

use linkspan_core::{
    OwnCluster,
    backend::{Source, SourceError},
    declared::{Declared, Vips},
};
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
    time::{sleep, timeout},
};

use super::scan::Scanner;

/// An editor writes a file in several steps; what follows within this time is one change.
const DEBOUNCE: Duration = Duration::from_millis(50);
/// A directory that never comes to rest is read nevertheless.
const MAX_DEBOUNCE: Duration = Duration::from_millis(500);

/// A directory of YAML files.
pub(crate) struct DirectorySource {
    snapshots: watch::Receiver<Option<Arc<Declared>>>,
    changed: Arc<Notify>,
    task: JoinHandle<()>,
}

impl DirectorySource {
    /// Watches `directory`, and reads it every `rescan` even without a sign of change. No file says
    /// which addresses stand for imports; `vips` does.
    pub(crate) fn watch(
        own: OwnCluster,
        directory: &Path,
        rescan: Duration,
        vips: Vips,
    ) -> Result<Self, notify::Error> {
        let changed = Arc::new(Notify::new());
        let watcher = watcher(directory, Arc::clone(&changed))?;
        let (sender, snapshots) = watch::channel(None);
        let scanner = Scanner::new(own, directory.into(), vips);
        let task = tokio::spawn(scan_all(
            scanner,
            watcher,
            Arc::clone(&changed),
            rescan,
            sender,
        ));
        Ok(Self {
            snapshots,
            changed,
            task,
        })
    }

    /// Makes the source look at once, after a write of our own.
    pub(crate) fn nudge(&self) -> Arc<Notify> {
        Arc::clone(&self.changed)
    }
}

impl Drop for DirectorySource {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Source for DirectorySource {
    async fn next(&mut self) -> Result<Arc<Declared>, SourceError> {
        // Cancel-safe: a snapshot is marked as seen in the same step that returns it.
        loop {
            self.snapshots
                .changed()
                .await
                .map_err(|_| SourceError::Ended)?;
            if let Some(declared) = self.snapshots.borrow_and_update().clone() {
                return Ok(declared);
            }
        }
    }
}

fn watcher(directory: &Path, changed: Arc<Notify>) -> Result<RecommendedWatcher, notify::Error> {
    // Any event, and any error, is only a reason to look.
    let mut watcher = notify::recommended_watcher(move |_| changed.notify_one())?;
    watcher.watch(directory, RecursiveMode::NonRecursive)?;
    Ok(watcher)
}

async fn scan_all(
    mut scanner: Scanner,
    _watcher: RecommendedWatcher,
    changed: Arc<Notify>,
    rescan: Duration,
    snapshots: watch::Sender<Option<Arc<Declared>>>,
) {
    loop {
        // The disk may be slow: not on the threads that serve streams.
        let scanned = tokio::task::spawn_blocking(move || {
            let declared = scanner.scan();
            (scanner, declared)
        });
        let Ok((back, declared)) = scanned.await else {
            return;
        };
        scanner = back;
        snapshots.send_if_modified(|last| {
            let news = last.as_deref() != Some(&declared);
            if news {
                *last = Some(Arc::new(declared));
            }
            news
        });
        // Without a signal the time decides; either way everything is read again.
        let _ = timeout(rescan, changed.notified()).await;
        settle(&changed).await;
    }
}

/// Waits until the directory has been at rest for a moment.
async fn settle(changed: &Notify) {
    let at_rest = async { while timeout(DEBOUNCE, changed.notified()).await.is_ok() {} };
    tokio::select! {
        () = at_rest => {}
        () = sleep(MAX_DEBOUNCE) => {}
    }
}

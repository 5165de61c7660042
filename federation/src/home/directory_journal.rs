//! Peers' last records as files: one per peer in the state directory.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use linkspan_core::{
    ClusterId,
    backend::{Journal, JournalEntry, JournalError, MAX_JOURNAL},
};

use crate::state::files::{PRIVATE_DIR, PRIVATE_FILE, sweep, write_atomic};

const SUFFIX: &str = ".journal";

/// Files of one directory as a [`Journal`].
pub(crate) struct DirectoryJournal {
    directory: PathBuf,
}

impl DirectoryJournal {
    /// The directory is made when it is needed.
    pub(crate) fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// Does something with the directory on a thread that may wait for the disk.
    async fn with<T: Send + 'static>(
        &self,
        act: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
    ) -> Result<T, JournalError> {
        let directory = self.directory.clone();
        let done = tokio::task::spawn_blocking(move || {
            let mut builder = fs::DirBuilder::new();
            builder
                .recursive(true)
                .mode(PRIVATE_DIR)
                .create(&directory)?;
            act(&directory)
        });
        let result = done.await.map_err(io::Error::other).and_then(|done| done);
        result.map_err(|error| JournalError::Unavailable {
            what: self.directory.display().to_string(),
            source: error.into(),
        })
    }
}

/// Cluster ids have letters, digits, dashes and dots only, and at most 127 characters.
fn file_name(peer: &ClusterId) -> String {
    format!("{peer}{SUFFIX}")
}

fn read(directory: &Path) -> io::Result<Vec<JournalEntry>> {
    sweep(directory)?;
    let mut entries = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let id = name.to_str().and_then(|name| name.strip_suffix(SUFFIX));
        let Some(peer) = id.and_then(|id| id.parse().ok()) else {
            continue;
        };
        let content = content(&entry.path()).map_err(|error| error.to_string());
        entries.push(JournalEntry { peer, content });
    }
    Ok(entries)
}

fn content(path: &Path) -> io::Result<Vec<u8>> {
    if fs::symlink_metadata(path)?.len() > MAX_JOURNAL as u64 {
        return Err(io::Error::other("it is larger than any journal"));
    }
    fs::read(path)
}

impl Journal for DirectoryJournal {
    async fn load(&mut self) -> Result<Vec<JournalEntry>, JournalError> {
        self.with(read).await
    }

    async fn save(&mut self, peer: &ClusterId, content: &[u8]) -> Result<(), JournalError> {
        if content.len() > MAX_JOURNAL {
            let (peer, bytes) = (peer.clone(), content.len());
            return Err(JournalError::TooLarge { peer, bytes });
        }
        let (name, content) = (file_name(peer), content.to_vec());
        self.with(move |directory| write_atomic(&directory.join(name), &content, PRIVATE_FILE))
            .await
    }

    async fn forget(&mut self, peer: &ClusterId) -> Result<(), JournalError> {
        let name = file_name(peer);
        self.with(
            move |directory| match fs::remove_file(directory.join(name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            },
        )
        .await
    }
}

#[cfg(test)]
mod tests {
    use linkspan_core::testing::{JournalBench, journal_contract};
    use tempfile::TempDir;

    use super::*;

    struct Bench(TempDir);

    impl JournalBench for Bench {
        type Journal = DirectoryJournal;

        async fn journal(&mut self) -> DirectoryJournal {
            DirectoryJournal::new(self.0.path().join("journal"))
        }

        async fn damage(&mut self, peer: &str) {
            let path = self
                .0
                .path()
                .join("journal")
                .join(format!("{peer}{SUFFIX}"));
            let content = fs::read(&path).unwrap();
            fs::write(&path, &content[..content.len() / 2]).unwrap();
        }
    }

    #[tokio::test]
    async fn files_are_a_journal() {
        journal_contract(&mut Bench(tempfile::tempdir().unwrap())).await;
    }
}

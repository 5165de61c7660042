//! Where that which must outlive the process is kept: files of the state directory, or entries of a
//! Secret. Whoever keeps something has a [`Slot`], and does not know which.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{StateError, Troubles, files};

// Room for each thing in a Secret, so that none takes that of another; all of one are less than it
// holds. A mebibyte is what an API server takes.
/// Some 10,000 of 50 bytes, packed: as many workloads as one cluster is meant to have.
pub(crate) const REGISTRATIONS_ROOM: usize = 528 * 1024;
/// Some 4,500 of 28 bytes, packed: uids whose workloads have ended in the last day.
pub(crate) const OWNERS_ROOM: usize = 128 * 1024;
const CAPACITY_ROOM: usize = 32 * 1024;
/// Some 1,300 join tokens of 250 bytes.
const TOKENS_ROOM: usize = 320 * 1024;
const PORTS_ROOM: usize = 64 * 1024;
const LINKS_ROOM: usize = 160 * 1024;
const ROOTS_ROOM: usize = 128 * 1024;
/// The epoch, who writes, and the names of all.
const OTHERS_ROOM: usize = 1024;
const _: () = {
    let state = TOKENS_ROOM + PORTS_ROOM + LINKS_ROOM + ROOTS_ROOM + OTHERS_ROOM;
    let workloads = REGISTRATIONS_ROOM + OWNERS_ROOM + CAPACITY_ROOM;
    assert!(state <= linkspan_kube::MAX_SECRET);
    assert!(workloads + OTHERS_ROOM <= linkspan_kube::MAX_SECRET);
};

/// Things under keys, each read whole and replaced whole. Calls block.
pub(crate) trait Store: Send + Sync {
    /// What was put there last; `None` where nothing ever was.
    fn read(&self, key: &str) -> Result<Option<Vec<u8>>, StateError>;
    /// Replaces what is under these keys; all or none, also if the process is killed.
    fn write(&self, entries: &[(&str, &[u8])]) -> Result<(), StateError>;
    /// As `write`, in its own time: where each write costs a lot, together with what else there is.
    fn write_soon(&self, key: &str, bytes: Vec<u8>) -> Result<(), StateError>;
    /// Has what waits written at once, and from now on nothing wait: the end is near.
    fn hurry(&self);
    /// For people: where that is.
    fn place(&self, key: &str) -> PathBuf;
}

/// Where one thing is kept.
#[derive(Clone)]
pub(crate) struct Slot {
    store: Arc<dyn Store>,
    key: String,
    room: Option<usize>,
}

impl Slot {
    pub(crate) fn new(store: Arc<dyn Store>, key: &str) -> Self {
        Self {
            store,
            key: key.to_owned(),
            room: None,
        }
    }

    /// The same with room for so many bytes.
    pub(crate) fn with_room(self, bytes: usize) -> Self {
        let room = Some(bytes);
        Self { room, ..self }
    }

    /// Most bytes that can be kept here; `None` where that is no matter.
    pub(crate) fn room(&self) -> Option<usize> {
        self.room
    }

    pub(crate) fn read(&self) -> Result<Option<Vec<u8>>, StateError> {
        self.store.read(&self.key)
    }

    pub(crate) fn write(&self, bytes: &[u8]) -> Result<(), StateError> {
        self.check_room(bytes.len())?;
        self.store.write(&[(&self.key, bytes)])
    }

    /// As [`Self::write`], perhaps some seconds later; it is there when this returns.
    pub(crate) fn write_soon(&self, bytes: Vec<u8>) -> Result<(), StateError> {
        self.check_room(bytes.len())?;
        self.store.write_soon(&self.key, bytes)
    }

    /// Has nothing that is written to this store wait any more.
    pub(crate) fn hurry(&self) {
        self.store.hurry();
    }

    fn check_room(&self, bytes: usize) -> Result<(), StateError> {
        match self.room {
            Some(room) if bytes > room => Err(StateError::NoRoom {
                path: self.place(),
                bytes,
                room,
            }),
            _ => Ok(()),
        }
    }

    /// Several slots of one store at once, which hold nothing yet.
    pub(crate) fn write_all(slots: &[(&Self, &[u8])]) -> Result<(), StateError> {
        let entries: Vec<_> = slots
            .iter()
            .map(|(slot, bytes)| (slot.key.as_str(), *bytes))
            .collect();
        match slots.first() {
            Some((slot, _)) => slot.store.write(&entries),
            None => Ok(()),
        }
    }

    pub(crate) fn place(&self) -> PathBuf {
        self.store.place(&self.key)
    }

    pub(crate) fn damaged(&self, reason: impl Into<String>) -> StateError {
        StateError::Damaged {
            path: self.place(),
            reason: reason.into(),
        }
    }
}

/// A file by itself.
impl From<&Path> for Slot {
    fn from(path: &Path) -> Self {
        let folder = path.parent().unwrap_or_else(|| Path::new("."));
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        Self::new(Arc::new(Files(folder.into())), &name)
    }
}

impl From<&PathBuf> for Slot {
    fn from(path: &PathBuf) -> Self {
        path.as_path().into()
    }
}

/// A directory; keys are paths in it.
pub(crate) struct Files(pub(crate) PathBuf);

impl Files {
    /// Makes a whole folder beside the one that the keys name, which is empty, and puts it there in
    /// one step: a set cut short by a crash is never taken for one of which something was lost.
    fn write_folder(&self, entries: &[(&str, &[u8])]) -> Result<(), StateError> {
        let folder = |key: &str| self.0.join(key).parent().map(Path::to_owned);
        let Some(folder) = entries.first().and_then(|(key, _)| folder(key)) else {
            return Ok(());
        };
        let staging = folder.with_extension("new");
        match fs::remove_dir_all(&staging) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed(&staging)(error));
            }
            _ => files::private_directory(&staging)?,
        }
        for (key, bytes) in entries {
            let name = Path::new(key).file_name().unwrap_or_default();
            write_file(&staging.join(name), bytes)?;
        }
        fs::rename(&staging, &folder).map_err(failed(&folder))
    }
}

impl Store for Files {
    fn read(&self, key: &str) -> Result<Option<Vec<u8>>, StateError> {
        files::read_private(&self.0.join(key))
    }

    fn write(&self, entries: &[(&str, &[u8])]) -> Result<(), StateError> {
        match entries {
            [(key, bytes)] => write_file(&self.0.join(key), bytes),
            entries => self.write_folder(entries),
        }
    }

    fn write_soon(&self, key: &str, bytes: Vec<u8>) -> Result<(), StateError> {
        write_file(&self.0.join(key), &bytes)
    }

    fn hurry(&self) {}

    fn place(&self, key: &str) -> PathBuf {
        self.0.join(key)
    }
}

fn write_file(path: &Path, bytes: &[u8]) -> Result<(), StateError> {
    files::write_atomic(path, bytes, files::PRIVATE_FILE).map_err(failed(path))
}

fn failed(path: &Path) -> impl Fn(io::Error) -> StateError {
    move |source| StateError::Write {
        path: path.into(),
        source,
    }
}

/// A place for each thing that is kept.
pub(crate) struct Slots {
    /// Certificate and key of the root, and both of the intermediate.
    pub(crate) authority: Authority,
    pub(crate) epoch: Slot,
    /// Further places of the epoch: what is lost of it in one is seen in another.
    pub(crate) marks: Vec<Slot>,
    pub(crate) tokens: Slot,
    pub(crate) links: Slot,
    pub(crate) roots: Slot,
    pub(crate) registrations: Slot,
    pub(crate) uids: Slot,
    pub(crate) capacity: Slot,
    pub(crate) import_ports: Slot,
    /// What of it cannot be kept now.
    pub(crate) troubles: Troubles,
}

/// Where the authority is kept.
#[derive(Clone)]
pub(crate) struct Authority {
    pub(crate) root_cert: Slot,
    pub(crate) root_key: Slot,
    /// Certificate, then key.
    pub(crate) intermediate: Slot,
}

impl Slots {
    /// All places of the epoch.
    pub(crate) fn epochs(&self) -> impl Iterator<Item = &Slot> {
        std::iter::once(&self.epoch).chain(&self.marks)
    }

    /// Files of a state directory.
    pub(crate) fn files(root: &Path) -> Self {
        let store: Arc<dyn Store> = Arc::new(Files(root.into()));
        let slot = |key: &str| Slot::new(Arc::clone(&store), key);
        Self {
            authority: Authority {
                root_cert: slot("ca/root.pem"),
                root_key: slot("ca/root.key"),
                intermediate: slot("ca/intermediate.pem"),
            },
            epoch: slot("epoch"),
            marks: Vec::new(),
            tokens: slot("tokens.json"),
            links: slot("links.json"),
            roots: slot("roots.json"),
            registrations: slot("registrations.json"),
            uids: slot("uids.json"),
            capacity: slot("capacity.json"),
            import_ports: slot("import-ports.json"),
            troubles: Troubles::default(),
        }
    }

    /// Entries of three stores without folders: the authority, which is written least and to be seen
    /// least; what else must not be lost; and what grows with the cluster and is learned again in time.
    pub(crate) fn entries(
        authority: &Arc<dyn Store>,
        state: &Arc<dyn Store>,
        workloads: &Arc<dyn Store>,
        troubles: Troubles,
    ) -> Self {
        let issuing = |key: &str| Slot::new(Arc::clone(authority), key);
        let kept = |key: &str| Slot::new(Arc::clone(state), key);
        let learned = |key: &str| Slot::new(Arc::clone(workloads), key);
        Self {
            authority: Authority {
                root_cert: issuing("ca.root.pem"),
                root_key: issuing("ca.root.key"),
                intermediate: issuing("ca.intermediate.pem"),
            },
            epoch: kept("epoch"),
            marks: vec![learned("epoch")],
            tokens: kept("tokens.json").with_room(TOKENS_ROOM),
            links: kept("links.json").with_room(LINKS_ROOM),
            roots: kept("roots.json").with_room(ROOTS_ROOM),
            registrations: learned("registrations.json").with_room(REGISTRATIONS_ROOM),
            uids: learned("uids.json").with_room(OWNERS_ROOM),
            capacity: learned("capacity.json").with_room(CAPACITY_ROOM),
            // Clients have written them down.
            import_ports: kept("import-ports.json").with_room(PORTS_ROOM),
            troubles,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_files_are_there_together_or_not_at_all() {
        let directory = tempfile::tempdir().unwrap();
        let slots = Slots::files(directory.path()).authority;
        let all =
            |a: &[u8], b: &[u8]| Slot::write_all(&[(&slots.root_cert, a), (&slots.root_key, b)]);
        all(b"cert", b"key").unwrap();
        assert_eq!(slots.root_key.read().unwrap().unwrap(), b"key");
        // The folder is not empty any more.
        assert!(matches!(all(b"1", b"2"), Err(StateError::Write { .. })));
        assert_eq!(slots.root_cert.read().unwrap().unwrap(), b"cert");
        assert!(slots.intermediate.read().unwrap().is_none());
    }
}

//! The state directory: what federation must still know after a restart.
//!
//! ```text
//! <stateDir>/            0700, locked by the one federation that uses it
//!   lock
//! * ca/                  root.pem root.key intermediate.pem (certificate and key)
//!   ca.new/              the same, while it is being made
//! * epoch                the epoch of the last start
//! * tokens.json          hashes of join tokens, with identity and expiry
//! * links.json           invitations (public halves), links that came of them, tombstones
//! * registrations.json   the workloads last registered
//! * uids.json            whose the uids of ended workloads are
//! * roots.json           the roots that peers announced
//! * capacity.json        how many endpoints each service had lately
//!   journal/             what each peer told last (directory home)
//! * import-ports.json    which port stands for which import, for unmeshed clients
//!   status/              what is wrong with resources, per object
//!   operator.sock        the operator API
//! ```
//! Where the home is the Kubernetes API, what is marked * is in Secrets instead.
//! Files are 0600 and replaced atomically. A key that others can read is refused, not repaired:
//! it may have been copied already. What a kill left half-written is swept at the next start.

mod epoch;
pub(crate) mod files;
pub(crate) mod kept;
mod packed;
pub(crate) mod remembered;
pub(crate) mod roots;
pub(crate) mod store;
mod troubles;

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

pub(crate) use epoch::{Epoch, next_epoch};
pub(crate) use remembered::Remembered;
use store::Slots;
pub(crate) use troubles::Troubles;

/// Why the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// A file or directory could not be read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// What was read.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file or directory could not be written.
    #[error("cannot write `{}`; check free space and ownership of the state directory", path.display())]
    Write {
        /// What was written.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Other users can read what must be private.
    #[error(
        "`{}` has mode {mode:o}, so others can read it; if nobody has copied it, \
         run `chmod {wanted:o} {}`", path.display(), path.display()
    )]
    Exposed {
        /// The file or directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// The permission bits it should have.
        wanted: u32,
    },
    /// Another federation uses the directory.
    #[error("another federation is using `{}`; stop it, or give this one a stateDir of its own", path.display())]
    InUse {
        /// The state directory.
        path: PathBuf,
    },
    /// What is kept in the Kubernetes API cannot be read or written there.
    #[error(transparent)]
    Secret(#[from] Arc<linkspan_kube::SecretError>),
    /// More is to be kept than there is room for.
    #[error("`{}` would take {bytes} bytes, and there is room for {room}; remove what is not needed", path.display())]
    NoRoom {
        /// Where.
        path: PathBuf,
        /// What it would take.
        bytes: usize,
        /// What it may take.
        room: usize,
    },
    /// The runtime of what is kept in the Kubernetes API.
    #[error("a runtime cannot be started")]
    Runtime(#[source] io::Error),
    /// The root certificate is gone, though it was there once.
    #[error(
        "`{}` is missing, though {evidence}; with another root no peer and no workload would \
         trust this cluster: restore it from a backup, or, to start anew with new roots, \
         remove the whole state directory (in Kubernetes: scale federation to 0, delete the \
         Secrets {} and the ConfigMap {}, and apply the output of `linkspan install` again)",
        path.display(), linkspan_kube::SECRETS.join(", "), linkspan_kube::ROOTS_CONFIG_MAP
    )]
    RootLost {
        /// The file that is missing.
        path: PathBuf,
        /// What shows that it was there.
        evidence: String,
    },
    /// What else must not be lost is gone, and the authority is there.
    #[error(
        "`{}` is missing, though {evidence}; links, invitations and join tokens were with it: \
         restore it from a backup, or, to keep the authority and go on without them, delete the \
         Secret {} and the ConfigMap {}, and apply the output of `linkspan install` again",
        path.display(), linkspan_kube::SECRETS[2], linkspan_kube::ROOTS_CONFIG_MAP
    )]
    StateLost {
        /// What is missing.
        path: PathBuf,
        /// What shows that it was there.
        evidence: String,
    },
    /// A file does not hold what federation wrote.
    #[error("`{}` is damaged ({reason}); restore it from a backup, or remove it to start anew", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// An open state directory; holds its lock.
#[derive(Debug)]
pub(crate) struct StateDir {
    root: PathBuf,
    _lock: File,
}

impl StateDir {
    /// Makes the directory if there is none, and locks it.
    pub(crate) fn open(root: &Path) -> Result<Self, StateError> {
        if files::is_empty(root) {
            // Made by somebody else, and nothing secret was ever in it. One that holds anything
            // may be everybody's (`/tmp`): it is left alone, and refused unless it is private.
            files::make_private(root)?;
        }
        files::private_directory(root)?;
        let lock = lock(&root.join("lock"), root)?;
        let state = Self {
            root: root.into(),
            _lock: lock,
        };
        files::private_directory(&state.ca())?;
        files::private_directory(&state.status())?;
        state.sweep();
        Ok(state)
    }

    /// Half-written files of a life that was killed; one that cannot be removed harms nobody.
    fn sweep(&self) {
        for directory in [self.root.clone(), self.ca(), self.status()] {
            let path = directory.display();
            match files::sweep(&directory) {
                Ok(0) => {}
                Ok(swept) => tracing::info!(%path, swept, "removed half-written files"),
                Err(error) => tracing::warn!(%path, %error, "half-written files cannot be removed"),
            }
        }
    }

    /// Files here for all that is kept.
    pub(crate) fn slots(&self) -> Slots {
        Slots::files(&self.root)
    }

    fn ca(&self) -> PathBuf {
        self.root.join("ca")
    }

    pub(crate) fn journal(&self) -> PathBuf {
        self.root.join("journal")
    }

    pub(crate) fn status(&self) -> PathBuf {
        self.root.join("status")
    }

    pub(crate) fn operator_socket(&self) -> PathBuf {
        self.root.join("operator.sock")
    }
}

/// The kernel drops the lock with the process, however it ends.
fn lock(path: &Path, root: &Path) -> Result<File, StateError> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(files::PRIVATE_FILE)
        .open(path)
        .map_err(|source| StateError::Write {
            path: path.into(),
            source,
        })?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(StateError::InUse { path: root.into() }),
        Err(errno) => Err(StateError::Write {
            path: path.into(),
            source: errno.into(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_directory_is_made_private_an_old_one_must_be() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().unwrap();
        let open = |mode| {
            let permissions = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(directory.path(), permissions).unwrap();
            StateDir::open(directory.path())
        };
        drop(open(0o755).unwrap());
        let mode = directory.path().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        assert!(matches!(open(0o755), Err(StateError::Exposed { .. })));
    }

    #[test]
    fn what_a_kill_left_half_written_is_gone_after_the_next_start() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("east");
        let state = StateDir::open(&root).unwrap();
        let left = [root.clone(), state.ca(), state.status()]
            .map(|of| of.join(".registrations.json.00c0ffee.tmp"));
        for path in &left {
            std::fs::write(path, "{").unwrap();
        }
        drop(state);
        let _state = StateDir::open(&root).unwrap();
        assert!(left.iter().all(|path| !path.exists()));
    }

    #[test]
    fn a_directory_of_somebody_elses_is_left_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("theirs"), "x").unwrap();
        let shared = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(directory.path(), shared).unwrap();
        let opened = StateDir::open(directory.path());
        assert!(matches!(opened, Err(StateError::Exposed { .. })));
        let mode = directory.path().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755);
    }

    #[test]
    fn one_federation_per_directory() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("east");
        let first = StateDir::open(&root).unwrap();
        assert!(matches!(
            StateDir::open(&root),
            Err(StateError::InUse { .. })
        ));
        drop(first);
        StateDir::open(&root).unwrap();
    }
}

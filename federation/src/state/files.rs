//! Files that must never be seen half-written, and files that nobody else may read.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{
        DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
    },
    path::{Path, PathBuf},
};

use super::StateError;

/// Mode of every file in the state directory: its owner only.
pub(crate) const PRIVATE_FILE: u32 = 0o600;
/// Mode of every directory in the state directory.
pub(crate) const PRIVATE_DIR: u32 = 0o700;
/// Mode of files that other users may read, such as exported declarations.
pub(crate) const SHARED_FILE: u32 = 0o644;
/// No state file is larger, not even the registrations of as many workloads as are kept, each
/// as large as it may be; a greater one is not read into memory.
const MAX_FILE: u64 = 128 * 1024 * 1024;

/// Writes `bytes` so that a reader sees the old file or the new one, also after a power cut:
/// a temporary file in the same directory, synced, renamed over the old, the directory synced.
pub(crate) fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let directory = path.parent().unwrap_or_else(|| Path::new("."));
    let temporary = temporary_name(path);
    let written = write_new(&temporary, bytes, mode).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // What was half-written would only fill the disk further.
        let _ = fs::remove_file(&temporary);
    }
    written?;
    File::open(directory)?.sync_all()
}

/// Leading dot: readers of a resources directory skip it.
fn temporary_name(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{:08x}.tmp", rand::random::<u32>()))
}

/// Whether [`temporary_name`] made this name.
fn is_temporary(name: &str) -> bool {
    let of_ours = name
        .strip_prefix('.')
        .and_then(|name| name.strip_suffix(".tmp"))
        .and_then(|name| name.rsplit_once('.'));
    of_ours.is_some_and(|(of, random)| {
        let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        !of.is_empty() && random.len() == 8 && random.bytes().all(is_hex)
    })
}

/// Removes what a kill in the middle of [`write_atomic`] left in `directory`; how many files. Only
/// for directories in which nobody else writes: the state directory's, under its lock.
pub(crate) fn sweep(directory: &Path) -> io::Result<usize> {
    let mut swept = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let ours = entry.file_name().to_str().is_some_and(is_temporary);
        // Of the entry itself: a link is not followed, and none is made by us.
        if ours && entry.file_type()?.is_file() {
            fs::remove_file(entry.path())?;
            swept += 1;
        }
    }
    Ok(swept)
}

fn write_new(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)?;
    // The mode given to `open` is cut by the umask; what others are meant to read must not be.
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Reads a file that must be readable by its owner only; `None` if there is none.
pub(crate) fn read_private(path: &Path) -> Result<Option<Vec<u8>>, StateError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            return Err(StateError::Read {
                path: path.into(),
                source,
            });
        }
    };
    let read = |source| StateError::Read {
        path: path.into(),
        source,
    };
    let mode = file.metadata().map_err(read)?.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(StateError::Exposed {
            path: path.into(),
            mode,
            wanted: PRIVATE_FILE,
        });
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1)
        .read_to_end(&mut bytes)
        .map_err(read)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(StateError::Damaged {
            path: path.into(),
            reason: format!("larger than {MAX_FILE} bytes"),
        });
    }
    Ok(Some(bytes))
}

/// Whether this is a directory with nothing in it.
pub(crate) fn is_empty(path: &Path) -> bool {
    fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none())
}

/// Takes an existing directory from all but its owner.
pub(crate) fn make_private(path: &Path) -> Result<(), StateError> {
    match fs::set_permissions(path, fs::Permissions::from_mode(PRIVATE_DIR)) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(StateError::Write {
            path: path.into(),
            source,
        }),
        _ => Ok(()),
    }
}

/// Makes a directory for its owner only, or checks that an existing one is.
pub(crate) fn private_directory(path: &Path) -> Result<(), StateError> {
    let failed = |source| StateError::Write {
        path: path.into(),
        source,
    };
    match fs::metadata(path) {
        Ok(found) if !found.is_dir() => Err(failed(io::Error::new(
            io::ErrorKind::NotADirectory,
            "not a directory",
        ))),
        Ok(found) if found.mode() & 0o077 != 0 => Err(StateError::Exposed {
            path: path.into(),
            mode: found.mode() & 0o777,
            wanted: PRIVATE_DIR,
        }),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => fs::DirBuilder::new()
            .recursive(true)
            .mode(PRIVATE_DIR)
            .create(path)
            .map_err(failed),
        Err(source) => Err(StateError::Read {
            path: path.into(),
            source,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_a_file_whole_and_leaves_nothing_else_behind() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.json");
        write_atomic(&path, b"one", PRIVATE_FILE).unwrap();
        write_atomic(&path, b"two", PRIVATE_FILE).unwrap();
        assert_eq!(read_private(&path).unwrap().unwrap(), b"two");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_write_keeps_the_old_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("taken");
        fs::create_dir_all(path.join("inside")).unwrap();
        assert!(write_atomic(&path, b"x", PRIVATE_FILE).is_err());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn refuses_what_others_can_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("root.key");
        write_atomic(&path, b"secret", 0o640).unwrap();
        let error = read_private(&path).unwrap_err();
        assert!(
            matches!(error, StateError::Exposed { mode: 0o640, .. }),
            "{error}"
        );
        assert!(error.to_string().contains("chmod 600"), "{error}");
    }

    #[test]
    fn a_missing_file_is_no_error() {
        let directory = tempfile::tempdir().unwrap();
        assert!(
            read_private(&directory.path().join("none"))
                .unwrap()
                .is_none()
        );
    }

    #[test]
    fn a_file_too_large_is_refused_not_cut() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("registrations.json");
        write_atomic(&path, b"[]", PRIVATE_FILE).unwrap();
        // Sparse: it takes no room on the disk.
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(MAX_FILE + 1).unwrap();
        let error = read_private(&path).unwrap_err();
        assert!(matches!(error, StateError::Damaged { .. }), "{error}");
    }

    #[test]
    fn only_what_a_kill_left_is_swept() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let left = temporary_name(&at("tokens.json"));
        let others = [
            ".tokens.json.tmp",
            ".tokens.json.0123ABCD.tmp",
            ".tokens.json.012345678.tmp",
            "tokens.json.01234567.tmp",
            ".01234567.tmp",
            "tokens.json",
        ];
        for path in others.iter().map(|name| at(name)).chain([left.clone()]) {
            fs::write(path, "x").unwrap();
        }
        fs::create_dir(at(".made.01234567.tmp")).unwrap();
        std::os::unix::fs::symlink(at("tokens.json"), at(".link.01234567.tmp")).unwrap();
        assert_eq!(sweep(directory.path()).unwrap(), 1);
        assert!(!left.exists());
        let stays = fs::read_dir(directory.path()).unwrap().count();
        assert_eq!(stays, others.len() + 2);
    }

    #[test]
    fn directories_are_private() {
        let directory = tempfile::tempdir().unwrap();
        let made = directory.path().join("a/b");
        private_directory(&made).unwrap();
        assert_eq!(fs::metadata(&made).unwrap().mode() & 0o777, PRIVATE_DIR);
        fs::set_permissions(&made, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(matches!(
            private_directory(&made),
            Err(StateError::Exposed { .. })
        ));
    }
}

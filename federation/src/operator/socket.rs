//! The unix socket of the operator API: who can open it is the permission.

use std::{
    fs, io,
    os::unix::{
        fs::{FileTypeExt as _, PermissionsExt as _},
        net::UnixListener as StdUnixListener,
    },
    path::Path,
};

use tokio::net::UnixListener;

use crate::state::files::PRIVATE_FILE;

/// Longest path that fits into a socket address on Linux, with its closing zero.
const MAX_PATH: usize = 107;

/// Binds the socket, replacing one that a former life left behind. The caller holds the
/// state directory's lock, so no living federation can be listening on it; the directory
/// is 0700, so nobody else can connect before the mode is set.
pub(crate) fn bind(path: &Path) -> io::Result<UnixListener> {
    if path.as_os_str().len() > MAX_PATH {
        return Err(io::Error::new(
            io::ErrorKind::InvalidFilename,
            format!(
                "the path of a unix socket has at most {MAX_PATH} bytes; use a shorter stateDir"
            ),
        ));
    }
    remove_stale(path)?;
    let listener = StdUnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(PRIVATE_FILE))?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

/// Only ever removes a socket: anything else at that path is somebody's file.
fn remove_stale(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => fs::remove_file(path),
        Ok(_) => Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "exists and is no socket",
        )),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_owner_may_connect() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("operator.sock");
        let _listener = bind(&path).unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_a_file_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("operator.sock");
        drop(bind(&path).unwrap());
        assert!(path.exists());
        bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "mine").unwrap();
        assert!(bind(&path).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
    }

    #[tokio::test]
    async fn a_path_too_long_says_what_to_do() {
        let directory = tempfile::tempdir().unwrap();
        let error = bind(&directory.path().join("x".repeat(120))).unwrap_err();
        assert!(error.to_string().contains("shorter stateDir"), "{error}");
    }
}

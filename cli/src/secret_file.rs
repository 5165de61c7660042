//! Files with secrets: only their owner can read them, and none is overwritten.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, anyhow};

/// A new file of mode 0600. It is made before the secret is asked for: a secret that nobody can
/// keep would be good for somebody else all the same. Gone again if nothing is written to it.
#[derive(Debug)]
pub(crate) struct SecretFile {
    path: PathBuf,
    /// Until it is written.
    file: Option<File>,
}

impl SecretFile {
    /// Makes the file.
    ///
    /// # Errors
    /// If it is there already, because it may hold another secret that is still needed; or if it
    /// cannot be made.
    pub(crate) fn new(path: &Path) -> anyhow::Result<Self> {
        let mut options = OpenOptions::new();
        let made = options.write(true).create_new(true).mode(0o600).open(path);
        let shown = path.display();
        match made {
            Ok(file) => Ok(Self {
                path: path.to_owned(),
                file: Some(file),
            }),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(anyhow!(
                "{shown} is there already and is not overwritten; remove it, or name another file"
            )),
            Err(error) => Err(error).with_context(|| format!("cannot write {shown}")),
        }
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the secret.
    ///
    /// # Errors
    /// If that fails, for example because the disk is full: then the file is gone.
    pub(crate) fn write(mut self, secret: &str) -> anyhow::Result<()> {
        let written = match self.file.as_mut() {
            Some(file) => file.write_all(secret.as_bytes()),
            None => Ok(()),
        };
        written.with_context(|| format!("cannot write {}", self.path.display()))?;
        self.file = None;
        Ok(())
    }
}

impl Drop for SecretFile {
    fn drop(&mut self) {
        if self.file.is_some() {
            std::fs::remove_file(&self.path).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn only_the_owner_can_read_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("token");
        SecretFile::new(&path)
            .and_then(|file| file.write("secret"))
            .expect("written");
        let metadata = std::fs::metadata(&path).expect("there");
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_to_string(&path).expect("read"), "secret");
    }

    #[test]
    fn what_is_there_stays_and_what_was_not_written_goes() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("token");
        drop(SecretFile::new(&path).expect("made"));
        assert!(!path.exists());
        std::fs::write(&path, "of somebody else").expect("written");
        let error = SecretFile::new(&path).expect_err("refused").to_string();
        assert!(error.contains("not overwritten"), "{error}");
        let kept = std::fs::read_to_string(&path).expect("read");
        assert_eq!(kept, "of somebody else");
        let nowhere = SecretFile::new(&dir.path().join("no/such/dir"));
        assert!(
            nowhere
                .expect_err("refused")
                .to_string()
                .contains("cannot write")
        );
    }
}

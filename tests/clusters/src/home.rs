//! The folder of one set of clusters. Everything that the set has outside of that folder (a bridge,
//! cgroups, processes) carries a name or a mark that follows from the folder's path alone, so that
//! all of it can be found and removed even after a crash, and without any record.

use std::{
    fs,
    net::Ipv4Addr,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

/// The folder of one set of clusters; see the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    path: PathBuf,
}

impl Home {
    /// The set of clusters whose folder is at `path`, which need not exist.
    ///
    /// # Errors
    /// If `path` is relative and the current folder cannot be told.
    pub fn at(path: &Path) -> Result<Self> {
        let absolute = std::path::absolute(path)
            .with_context(|| format!("the folder {} has no absolute path", path.display()))?;
        // As the kernel will show it, so that one folder has one mark.
        let path = fs::canonicalize(&absolute).unwrap_or(absolute);
        Ok(Self { path })
    }

    /// Makes the folder, for this user alone: it will hold keys.
    ///
    /// # Errors
    /// If it cannot be made, or belongs to somebody else.
    pub fn create(&self) -> Result<()> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.path)
            .with_context(|| format!("making the folder {}", self.path.display()))?;
        let owner = fs::metadata(&self.path)?.uid();
        let me = rustix::process::geteuid().as_raw();
        ensure!(
            owner == me,
            "the folder {} belongs to user {owner}, not to you; choose another one with --dir",
            self.path.display()
        );
        Ok(())
    }

    /// The folder itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder of one cluster.
    #[must_use]
    pub fn cluster(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The kubeconfig of one cluster's administrator.
    #[must_use]
    pub fn kubeconfig(&self, name: &str) -> PathBuf {
        self.cluster(name).join("kubeconfig")
    }

    /// Six hexadecimal digits that tell this set's bridge and cgroups from others'.
    #[must_use]
    pub fn tag(&self) -> String {
        format!("{:06x}", self.hash() & 0xff_ffff)
    }

    /// A loopback address that no other folder has, short of a collision of hashes: fixed ports
    /// can be used on it without asking who else uses them.
    #[must_use]
    pub fn loopback(&self) -> Ipv4Addr {
        let [.., a, b, c] = self.hash().to_be_bytes();
        // 127.0.0.x is everybody's; .0 and .255 look like networks to some programs.
        Ipv4Addr::new(127, a.max(1), b, c.clamp(1, 254))
    }

    fn hash(&self) -> u64 {
        fnv([self.path.as_os_str().as_encoded_bytes()])
    }
}

/// FNV-1a: the same in every build of the tool, which the standard hasher does not promise.
pub(crate) fn fnv<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> u64 {
    let bytes = parts.into_iter().flatten();
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_folders_share_no_names() {
        let a = Home::at(Path::new("/var/tmp/a")).unwrap();
        let b = Home::at(Path::new("/var/tmp/b")).unwrap();
        assert_ne!(a.tag(), b.tag());
        assert_ne!(a.loopback(), b.loopback());
        assert_eq!(a, Home::at(Path::new("/var/tmp/a")).unwrap());
    }

    #[test]
    fn loopback_addresses_are_usable_hosts() {
        for n in 0..1000 {
            let home = Home::at(Path::new(&format!("/var/tmp/{n}"))).unwrap();
            let [net, a, _, c] = home.loopback().octets();
            assert_eq!(net, 127);
            assert!(a != 0 && c != 0 && c != 255);
        }
    }

    #[test]
    fn the_folder_is_private() {
        let parent = tempfile::tempdir().unwrap();
        let home = Home::at(&parent.path().join("home")).unwrap();
        home.create().unwrap();
        home.create().unwrap();
        assert_eq!(fs::metadata(home.path()).unwrap().mode() & 0o777, 0o700);
    }
}

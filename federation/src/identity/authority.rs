//! The cluster's certificate authority and where it is kept.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use linkspan_runtime::process::chain;
use linkspan_trust::{Bundle, CaError, CaPart, CaPem, CertificateAuthority, TrustDomain};
use zeroize::Zeroizing;

use crate::state::{StateError, files};

const ROOT_CERT: &str = "root.pem";
const ROOT_KEY: &str = "root.key";
/// Certificate, then key.
const INTERMEDIATE: &str = "intermediate.pem";

/// Where the key begins in a file that holds both.
const PRIVATE_KEY: &str = "-----BEGIN PRIVATE KEY-----";
/// How often it is looked whether the intermediate is due.
const CHECK: Duration = Duration::from_secs(3600);

/// The authority in use, which is also the one on disk.
pub(crate) struct Authority {
    directory: PathBuf,
    current: ArcSwap<CertificateAuthority>,
}

impl Authority {
    /// Reads the authority, or makes one at the very first start. An intermediate that ran
    /// out while nobody was there is replaced.
    pub(crate) fn load_or_create(
        directory: &Path,
        domain: &TrustDomain,
        now: SystemTime,
    ) -> Result<Self, StateError> {
        let authority = match read(directory)? {
            None => create(directory, domain, now)?,
            Some(pem) => match CertificateAuthority::from_pem(domain, &pem, now) {
                Ok(authority) => authority,
                Err(CaError::NotValid {
                    part: CaPart::Intermediate,
                    ..
                }) => renewed(directory, domain, &pem, now)?,
                Err(error) => return Err(damaged(directory, &error)),
            },
        };
        Ok(Self {
            directory: directory.into(),
            current: ArcSwap::from_pointee(authority),
        })
    }

    /// The authority to issue with now.
    pub(crate) fn current(&self) -> Arc<CertificateAuthority> {
        self.current.load_full()
    }

    /// The roots of the own trust domain.
    pub(crate) fn bundle(&self) -> Bundle {
        self.current.load().bundle()
    }

    /// Replaces the intermediate when half of its life is over. It is on disk before it issues.
    fn rotate_if_due(&self, now: SystemTime) -> Result<(), StateError> {
        let current = self.current();
        if !current.intermediate_due(now) {
            return Ok(());
        }
        let domain = current.trust_domain();
        let next = renewed(&self.directory, domain, &current.to_pem(), now)?;
        self.current.store(Arc::new(next));
        tracing::info!("made a new intermediate");
        Ok(())
    }
}

/// Rotates the intermediate in time; never ends.
pub(crate) async fn keep_authority(authority: Arc<Authority>) {
    loop {
        let checked = Arc::clone(&authority);
        let rotated = tokio::task::spawn_blocking(move || checked.rotate_if_due(SystemTime::now()));
        if let Ok(Err(error)) = rotated.await {
            tracing::error!(error = chain(&error), "the intermediate cannot be replaced");
        }
        tokio::time::sleep(CHECK).await;
    }
}

fn create(
    directory: &Path,
    domain: &TrustDomain,
    now: SystemTime,
) -> Result<CertificateAuthority, StateError> {
    let authority =
        CertificateAuthority::create(domain, now).map_err(|error| damaged(directory, &error))?;
    let pem = authority.to_pem();
    // The root's certificate last: a set cut short by a crash has none, and is made anew
    // before anybody can have seen it.
    write(&directory.join(ROOT_KEY), &pem.root_key)?;
    write_intermediate(directory, &pem)?;
    write(&directory.join(ROOT_CERT), &pem.root_cert)?;
    tracing::info!(trust_domain = %domain, "made a certificate authority");
    Ok(authority)
}

/// The same root with a new intermediate, on disk.
fn renewed(
    directory: &Path,
    domain: &TrustDomain,
    pem: &CaPem,
    now: SystemTime,
) -> Result<CertificateAuthority, StateError> {
    let authority = CertificateAuthority::from_root_pem(domain, pem, now)
        .map_err(|error| damaged(directory, &error))?;
    write_intermediate(directory, &authority.to_pem())?;
    Ok(authority)
}

/// Certificate and key in one file: two could come from different ones after a crash.
fn write_intermediate(directory: &Path, pem: &CaPem) -> Result<(), StateError> {
    let both = Zeroizing::new(format!(
        "{}{}",
        pem.intermediate_cert, &*pem.intermediate_key
    ));
    write(&directory.join(INTERMEDIATE), &both)
}

fn write(path: &Path, pem: &str) -> Result<(), StateError> {
    files::write_atomic(path, pem.as_bytes(), files::PRIVATE_FILE).map_err(|source| {
        StateError::Write {
            path: path.into(),
            source,
        }
    })
}

/// `None` when there is no complete set yet.
fn read(directory: &Path) -> Result<Option<CaPem>, StateError> {
    let Some(root_cert) = text(&directory.join(ROOT_CERT))? else {
        return Ok(None);
    };
    let required = |name: &str| {
        let path = directory.join(name);
        text(&path)?.ok_or_else(|| StateError::Damaged {
            path,
            reason: format!("missing, though `{ROOT_CERT}` is there"),
        })
    };
    let intermediate = required(INTERMEDIATE)?;
    let split = intermediate
        .find(PRIVATE_KEY)
        .ok_or_else(|| StateError::Damaged {
            path: directory.join(INTERMEDIATE),
            reason: "no private key in it".into(),
        })?;
    let (certificate, key) = intermediate.split_at(split);
    Ok(Some(CaPem {
        root_cert: root_cert.to_string(),
        root_key: required(ROOT_KEY)?,
        intermediate_cert: certificate.into(),
        intermediate_key: Zeroizing::new(key.into()),
    }))
}

fn text(path: &Path) -> Result<Option<Zeroizing<String>>, StateError> {
    let Some(bytes) = files::read_private(path)? else {
        return Ok(None);
    };
    let text = String::from_utf8(bytes).map_err(|_| StateError::Damaged {
        path: path.into(),
        reason: "not text".into(),
    })?;
    Ok(Some(Zeroizing::new(text)))
}

fn damaged(directory: &Path, error: &dyn std::fmt::Display) -> StateError {
    StateError::Damaged {
        path: directory.into(),
        reason: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    fn domain() -> TrustDomain {
        "east.test".parse().unwrap()
    }

    #[test]
    fn the_same_authority_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        let first = Authority::load_or_create(directory.path(), &domain(), now).unwrap();
        let second = Authority::load_or_create(directory.path(), &domain(), now).unwrap();
        assert_eq!(first.bundle().roots, second.bundle().roots);
        for file in fs::read_dir(directory.path()).unwrap() {
            let mode = file.unwrap().metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
    }

    #[test]
    fn a_readable_key_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        Authority::load_or_create(directory.path(), &domain(), SystemTime::now()).unwrap();
        let key = directory.path().join(ROOT_KEY);
        fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
        let result = Authority::load_or_create(directory.path(), &domain(), SystemTime::now());
        assert!(matches!(result, Err(StateError::Exposed { .. })));
    }

    #[test]
    fn an_authority_of_another_trust_domain_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        Authority::load_or_create(directory.path(), &domain(), SystemTime::now()).unwrap();
        let other = "other.test".parse().unwrap();
        let result = Authority::load_or_create(directory.path(), &other, SystemTime::now());
        assert!(matches!(result, Err(StateError::Damaged { .. })));
    }

    #[test]
    fn a_lost_key_is_an_error_not_a_new_authority() {
        let directory = tempfile::tempdir().unwrap();
        Authority::load_or_create(directory.path(), &domain(), SystemTime::now()).unwrap();
        fs::remove_file(directory.path().join(INTERMEDIATE)).unwrap();
        let result = Authority::load_or_create(directory.path(), &domain(), SystemTime::now());
        assert!(matches!(result, Err(StateError::Damaged { .. })));
    }
}

//! The cluster's certificate authority and where it is kept.

use std::{
    fs, io,
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
    /// Reads the authority, or makes one at the very first start, before there is `epoch`. An
    /// intermediate that ran out while nobody was there is replaced.
    pub(crate) fn load_or_create(
        directory: &Path,
        epoch: &Path,
        domain: &TrustDomain,
        now: SystemTime,
    ) -> Result<Self, StateError> {
        let authority = match read(directory)? {
            None => {
                check_first_start(directory, epoch)?;
                create(directory, domain, now)?
            }
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

/// Without a root a new one is made only if there never was one.
fn check_first_start(directory: &Path, epoch: &Path) -> Result<(), StateError> {
    let mut traces = [ROOT_KEY, INTERMEDIATE]
        .map(|name| directory.join(name))
        .to_vec();
    traces.push(epoch.into());
    match traces.iter().find(|trace| trace.exists()) {
        None => Ok(()),
        Some(trace) => Err(StateError::RootLost {
            path: directory.join(ROOT_CERT),
            directory: directory.into(),
            evidence: format!("`{}` is there", trace.display()),
        }),
    }
}

/// Makes a whole set beside `directory`, which is empty, and puts it there in one step: a set
/// cut short by a crash is never taken for one that lost its root.
fn create(
    directory: &Path,
    domain: &TrustDomain,
    now: SystemTime,
) -> Result<CertificateAuthority, StateError> {
    let authority =
        CertificateAuthority::create(domain, now).map_err(|error| damaged(directory, &error))?;
    let pem = authority.to_pem();
    let staging = directory.with_extension("new");
    let failed = |path: &Path, source| StateError::Write {
        path: path.into(),
        source,
    };
    match fs::remove_dir_all(&staging) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed(&staging, error));
        }
        _ => files::private_directory(&staging)?,
    }
    write(&staging.join(ROOT_KEY), &pem.root_key)?;
    write_intermediate(&staging, &pem)?;
    write(&staging.join(ROOT_CERT), &pem.root_cert)?;
    fs::rename(&staging, directory).map_err(|error| failed(directory, error))?;
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
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn domain() -> TrustDomain {
        "east.test".parse().unwrap()
    }

    fn beside(ca: &Path) -> PathBuf {
        ca.with_file_name("epoch")
    }

    fn open(ca: &Path) -> Result<Authority, StateError> {
        files::private_directory(ca)?;
        Authority::load_or_create(ca, &beside(ca), &domain(), SystemTime::now())
    }

    fn root_lost(ca: &Path) -> String {
        match open(ca) {
            Err(error @ StateError::RootLost { .. }) => error.to_string(),
            Err(error) => panic!("{error}"),
            Ok(_) => panic!("a new root"),
        }
    }

    #[test]
    fn a_lost_root_is_an_error_not_a_new_one() {
        let directory = tempfile::tempdir().unwrap();
        let ca = directory.path().join("ca");
        open(&ca).unwrap();
        fs::remove_file(ca.join(ROOT_CERT)).unwrap();
        let text = root_lost(&ca);
        assert!(text.contains("root.pem` is missing"), "{text}");
        fs::remove_file(ca.join(ROOT_KEY)).unwrap();
        assert!(root_lost(&ca).contains("intermediate.pem` is there"));
    }

    #[test]
    fn a_lost_directory_is_an_error_once_there_was_an_epoch() {
        let directory = tempfile::tempdir().unwrap();
        let ca = directory.path().join("ca");
        fs::write(beside(&ca), "1\n").unwrap();
        let text = root_lost(&ca);
        assert!(text.contains("epoch` is there"), "{text}");
    }

    #[test]
    fn a_first_start_cut_short_is_begun_again() {
        let directory = tempfile::tempdir().unwrap();
        let ca = directory.path().join("ca");
        let staging = ca.with_extension("new");
        files::private_directory(&staging).unwrap();
        fs::write(staging.join(ROOT_KEY), "half").unwrap();
        open(&ca).unwrap();
        assert!(!staging.exists());
    }

    #[test]
    fn the_same_authority_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let ca = directory.path().join("ca");
        let first = open(&ca).unwrap();
        let second = open(&ca).unwrap();
        assert_eq!(first.bundle().roots, second.bundle().roots);
        for file in fs::read_dir(&ca).unwrap() {
            let mode = file.unwrap().metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
    }

    #[test]
    fn a_readable_key_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let ca = directory.path().join("ca");
        open(&ca).unwrap();
        let key = ca.join(ROOT_KEY);
        fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
        let result = open(&ca);
        assert!(matches!(result, Err(StateError::Exposed { .. })));
    }

    #[test]
    fn an_authority_of_another_trust_domain_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let ca = directory.path().join("ca");
        open(&ca).unwrap();
        let other = "other.test".parse().unwrap();
        let result = Authority::load_or_create(&ca, &beside(&ca), &other, SystemTime::now());
        assert!(matches!(result, Err(StateError::Damaged { .. })));
    }

    #[test]
    fn a_lost_key_is_an_error_not_a_new_authority() {
        let directory = tempfile::tempdir().unwrap();
        let ca = directory.path().join("ca");
        open(&ca).unwrap();
        fs::remove_file(ca.join(INTERMEDIATE)).unwrap();
        let result = open(&ca);
        assert!(matches!(result, Err(StateError::Damaged { .. })));
    }
}

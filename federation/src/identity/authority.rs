//! The cluster's certificate authority and where it is kept.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use linkspan_runtime::process::chain;
use linkspan_trust::{Bundle, CaError, CaPart, CaPem, CertificateAuthority, TrustDomain};
use zeroize::Zeroizing;

use crate::state::{
    StateError,
    store::{Authority as Slots, Slot},
};

/// Where the key begins in a file that holds both.
const PRIVATE_KEY: &str = "-----BEGIN PRIVATE KEY-----";
/// How often it is looked whether the intermediate is due.
const CHECK: Duration = Duration::from_secs(3600);

/// What an earlier life leaves behind, beside the authority itself.
pub(crate) struct Traces<'a> {
    /// Where its epoch is: beside what else must not be lost, and in further places.
    pub(crate) epochs: Vec<&'a Slot>,
    /// Where others read its roots, if they do.
    pub(crate) published: Option<String>,
}

/// The authority in use, which is also the one that is kept.
pub(crate) struct Authority {
    slots: Slots,
    current: ArcSwap<CertificateAuthority>,
}

impl Authority {
    /// Reads the authority, or makes one at the very first start, of which there are no `traces`. An
    /// intermediate that ran out while nobody was there is replaced.
    pub(crate) fn load_or_create(
        slots: &Slots,
        traces: &Traces<'_>,
        domain: &TrustDomain,
        now: SystemTime,
    ) -> Result<Self, StateError> {
        let authority = match read(slots)? {
            None => {
                check_first_start(slots, traces)?;
                create(slots, domain, now)?
            }
            Some(pem) => {
                check_state(traces)?;
                match CertificateAuthority::from_pem(domain, &pem, now) {
                    Ok(authority) => authority,
                    Err(CaError::NotValid {
                        part: CaPart::Intermediate,
                        ..
                    }) => renewed(slots, domain, &pem, now)?,
                    Err(error) => return Err(damaged(slots, &error)),
                }
            }
        };
        Ok(Self {
            slots: slots.clone(),
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

    /// Replaces the intermediate when half of its life is over. It is kept before it issues.
    fn rotate_if_due(&self, now: SystemTime) -> Result<(), StateError> {
        let current = self.current();
        if !current.intermediate_due(now) {
            return Ok(());
        }
        let domain = current.trust_domain();
        let next = renewed(&self.slots, domain, &current.to_pem(), now)?;
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
fn check_first_start(slots: &Slots, traces: &Traces<'_>) -> Result<(), StateError> {
    let lost = |evidence| StateError::RootLost {
        path: slots.root_cert.place(),
        evidence,
    };
    for trace in [&slots.root_key, &slots.intermediate]
        .iter()
        .chain(&traces.epochs)
    {
        if trace.read()?.is_some() {
            return Err(lost(format!("`{}` is there", trace.place().display())));
        }
    }
    match &traces.published {
        Some(place) => Err(lost(format!("{place} holds the roots of an earlier life"))),
        None => Ok(()),
    }
}

/// With the authority, what is beside the epoch is there, too, unless the very first start was cut
/// short: then no other place knows an epoch, and nobody was told the roots.
fn check_state(traces: &Traces<'_>) -> Result<(), StateError> {
    let Some((first, marks)) = traces.epochs.split_first() else {
        return Ok(());
    };
    if first.read()?.is_some() {
        return Ok(());
    }
    let lost = |evidence| StateError::StateLost {
        path: first.place(),
        evidence,
    };
    for mark in marks {
        if mark.read()?.is_some() {
            return Err(lost(format!("`{}` is there", mark.place().display())));
        }
    }
    match &traces.published {
        Some(place) => Err(lost(format!("{place} holds the roots of an earlier life"))),
        None => Ok(()),
    }
}

/// Makes a whole set, which is kept in one step: one cut short by a crash is never taken for one
/// that lost its root.
fn create(
    slots: &Slots,
    domain: &TrustDomain,
    now: SystemTime,
) -> Result<CertificateAuthority, StateError> {
    let authority =
        CertificateAuthority::create(domain, now).map_err(|error| damaged(slots, &error))?;
    let pem = authority.to_pem();
    let intermediate = both(&pem);
    Slot::write_all(&[
        (&slots.root_key, pem.root_key.as_bytes()),
        (&slots.intermediate, intermediate.as_bytes()),
        (&slots.root_cert, pem.root_cert.as_bytes()),
    ])?;
    tracing::info!(trust_domain = %domain, "made a certificate authority");
    Ok(authority)
}

/// The same root with a new intermediate, which is kept.
fn renewed(
    slots: &Slots,
    domain: &TrustDomain,
    pem: &CaPem,
    now: SystemTime,
) -> Result<CertificateAuthority, StateError> {
    let authority = CertificateAuthority::from_root_pem(domain, pem, now)
        .map_err(|error| damaged(slots, &error))?;
    slots
        .intermediate
        .write(both(&authority.to_pem()).as_bytes())?;
    Ok(authority)
}

/// Certificate and key in one: two could come from different ones after a crash.
fn both(pem: &CaPem) -> Zeroizing<String> {
    Zeroizing::new(format!(
        "{}{}",
        pem.intermediate_cert, &*pem.intermediate_key
    ))
}

/// `None` when there is no complete set yet.
fn read(slots: &Slots) -> Result<Option<CaPem>, StateError> {
    let Some(root_cert) = text(&slots.root_cert)? else {
        return Ok(None);
    };
    let required = |slot: &Slot| {
        let missing = || slot.damaged("missing, though the root certificate is there");
        text(slot)?.ok_or_else(missing)
    };
    let intermediate = required(&slots.intermediate)?;
    let split = intermediate
        .find(PRIVATE_KEY)
        .ok_or_else(|| slots.intermediate.damaged("no private key in it"))?;
    let (certificate, key) = intermediate.split_at(split);
    Ok(Some(CaPem {
        root_cert: root_cert.to_string(),
        root_key: required(&slots.root_key)?,
        intermediate_cert: certificate.into(),
        intermediate_key: Zeroizing::new(key.into()),
    }))
}

fn text(slot: &Slot) -> Result<Option<Zeroizing<String>>, StateError> {
    let Some(bytes) = slot.read()? else {
        return Ok(None);
    };
    let text = String::from_utf8(bytes).map_err(|_| slot.damaged("not text"))?;
    Ok(Some(Zeroizing::new(text)))
}

fn damaged(slots: &Slots, error: &dyn std::fmt::Display) -> StateError {
    slots.root_cert.damaged(error.to_string())
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::PermissionsExt as _,
        path::{Path, PathBuf},
    };

    use super::*;
    use crate::state::{files, store};

    const ROOT_CERT: &str = "root.pem";
    const ROOT_KEY: &str = "root.key";
    const INTERMEDIATE: &str = "intermediate.pem";

    fn domain() -> TrustDomain {
        "east.test".parse().unwrap()
    }

    fn beside(ca: &Path) -> PathBuf {
        ca.with_file_name("epoch")
    }

    fn open(ca: &Path) -> Result<Authority, StateError> {
        files::private_directory(ca)?;
        open_as(ca, &domain())
    }

    fn open_as(ca: &Path, domain: &TrustDomain) -> Result<Authority, StateError> {
        let slots = store::Slots::files(ca.parent().unwrap());
        let traces = Traces {
            epochs: slots.epochs().collect(),
            published: None,
        };
        Authority::load_or_create(&slots.authority, &traces, domain, SystemTime::now())
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
        Slot::from(&beside(&ca)).write(b"1\n").unwrap();
        let text = root_lost(&ca);
        assert!(text.contains("epoch` is there"), "{text}");
    }

    #[test]
    fn entries_that_are_lost_are_an_error_once_another_place_knows_an_epoch_or_the_roots() {
        let directory = tempfile::tempdir().unwrap();
        let store = |name: &str| -> std::sync::Arc<dyn store::Store> {
            let folder = directory.path().join(name);
            files::private_directory(&folder).unwrap();
            std::sync::Arc::new(store::Files(folder))
        };
        let [authority, state, workloads] = ["authority", "state", "workloads"].map(store);
        let troubles = crate::state::Troubles::default();
        let slots = store::Slots::entries(&authority, &state, &workloads, troubles);
        let open = |published: Option<&str>| {
            let traces = Traces {
                epochs: slots.epochs().collect(),
                published: published.map(str::to_owned),
            };
            let now = SystemTime::now();
            let opened = Authority::load_or_create(&slots.authority, &traces, &domain(), now);
            opened.map(drop).map_err(|error| error.to_string())
        };
        let refused = open(Some("ConfigMap `roots`")).unwrap_err();
        assert!(
            refused.contains("ConfigMap `roots` holds the roots"),
            "{refused}"
        );
        slots.marks[0].write(b"1").unwrap();
        let refused = open(None).unwrap_err();
        assert!(refused.contains("epoch` is there"), "{refused}");
        fs::remove_file(directory.path().join("workloads/epoch")).unwrap();
        // Nothing anywhere: the first start indeed.
        assert!(slots.authority.root_cert.read().unwrap().is_none());
        let create_at_once = create(&slots.authority, &domain(), SystemTime::now());
        let all = |folder: &str| fs::read_dir(directory.path().join(folder)).unwrap().count();
        assert!(create_at_once.is_ok());
        assert_eq!(
            (all("authority"), all("state"), all("workloads")),
            (3, 0, 0)
        );
        // It was cut short after that, and goes on.
        open(None).unwrap();
        // What is beside the authority may be lost alone.
        let refused = open(Some("ConfigMap `roots`")).unwrap_err();
        assert!(refused.contains("state/epoch` is missing"), "{refused}");
        slots.marks[0].write(b"1").unwrap();
        let refused = open(None).unwrap_err();
        assert!(refused.contains("workloads/epoch` is there"), "{refused}");
        slots.epoch.write(b"1").unwrap();
        open(None).unwrap();
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
        let result = open_as(&ca, &other);
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

//! For which token each certificate was issued, so that a token that is revoked takes what lives
//! by it along, and that what it binds holds for renewed certificates, too.
//!
//! A file of lines, one per certificate, appended to before the certificate is handed out; its
//! half-written last line, after a power cut, is skipped. Where it is kept in no file, it is written
//! as a whole, a second after a certificate was: what the very last ones are bound to is forgotten
//! when federation is killed.

use std::{
    collections::HashMap,
    fs::{File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use linkspan_runtime::{process::chain, stop::Stop};
use tokio::{sync::Notify, time::sleep};

use super::tokens::TokenId;
use crate::state::{StateError, files, store::Slot};

/// Lines above twice the certificates that lived when the file was last written anew, before it
/// is again.
const SLACK: usize = 1_000;
/// What is written in this time is one write, where there is no file to append to.
const DEBOUNCE: Duration = Duration::from_secs(1);
/// Most certificates that are written there, some 70 bytes each: those that live longest.
const MOST: usize = 5_000;

/// SHA-256 of a leaf certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Leaf([u8; 32]);

impl Leaf {
    pub(crate) fn of(der: &[u8]) -> Self {
        let mut leaf = [0; 32];
        leaf.copy_from_slice(digest(&SHA256, der).as_ref());
        Self(leaf)
    }
}

/// All certificates that live, and their tokens.
pub(crate) struct Issued {
    slot: Slot,
    inner: Mutex<Inner>,
    /// Something is to be written, and nothing can be appended to.
    changed: Notify,
}

#[derive(Default)]
struct Inner {
    /// Token, and when the certificate ends.
    by_leaf: HashMap<Leaf, (TokenId, u64)>,
    lines: usize,
    /// With so many lines the file is written anew.
    most_lines: usize,
    file: Option<File>,
}

impl Issued {
    /// Reads what is there.
    pub(crate) fn open(slot: impl Into<Slot>) -> Result<Self, StateError> {
        let slot = slot.into();
        let bytes = slot.read()?.unwrap_or_default();
        let mut inner = Inner::default();
        for line in String::from_utf8_lossy(&bytes).lines() {
            if let Some((leaf, token, ends)) = parse(line) {
                inner.by_leaf.insert(leaf, (token, ends));
            }
        }
        // Written anew with the first certificate, as its line must not continue a half-written one.
        Ok(Self {
            slot,
            inner: Mutex::new(inner),
            changed: Notify::new(),
        })
    }

    /// Notes a certificate; it is in the file, if there is one, when this returns. Blocks on the disk.
    pub(crate) fn note(
        &self,
        leaf: Leaf,
        token: &TokenId,
        ends: SystemTime,
        now: SystemTime,
    ) -> io::Result<()> {
        let ends = unix(ends);
        let mut inner = self.lock();
        inner.by_leaf.insert(leaf, (token.clone(), ends));
        let Some(path) = self.slot.file() else {
            self.changed.notify_one();
            return Ok(());
        };
        let full = inner.lines >= inner.most_lines;
        match &mut inner.file {
            Some(file) if !full => {
                file.write_all(line(&leaf, token, ends).as_bytes())?;
                inner.lines += 1;
                Ok(())
            }
            _ => compact(&path, &mut inner, unix(now)),
        }
    }

    /// The token for which a certificate was issued; `None` where that is not known.
    pub(crate) fn token(&self, leaf: &Leaf) -> Option<TokenId> {
        let inner = self.lock();
        inner.by_leaf.get(leaf).map(|(token, _)| token.clone())
    }

    /// Writes what was noted, where nothing can be appended to, until `stop` drains.
    pub(crate) async fn keep(self: Arc<Self>, stop: Stop) {
        let mut failing = false;
        loop {
            tokio::select! {
                () = stop.draining() => break,
                () = self.changed.notified() => {}
            }
            tokio::select! {
                () = stop.draining() => break,
                () = sleep(DEBOUNCE) => {}
            }
            let this = Arc::clone(&self);
            let written = tokio::task::spawn_blocking(move || this.write(SystemTime::now())).await;
            let failed = matches!(written, Ok(Err(_)));
            if let Ok(Err(error)) = written
                && !failing
            {
                let error = chain(&error);
                tracing::error!(error, "whose certificates are is not kept over a restart");
            }
            failing = failed;
            if failing {
                self.changed.notify_one();
            }
        }
        let this = Arc::clone(&self);
        // The end of the process: nobody is left to tell.
        let _ = tokio::task::spawn_blocking(move || this.write(SystemTime::now())).await;
    }

    fn write(&self, now: SystemTime) -> Result<(), StateError> {
        if self.slot.file().is_some() {
            return Ok(());
        }
        let now = unix(now);
        let mut inner = self.lock();
        inner.by_leaf.retain(|_, (_, ends)| *ends > now);
        let mut all: Vec<_> = inner.by_leaf.iter().collect();
        all.sort_by_key(|(_, (_, ends))| std::cmp::Reverse(*ends));
        let lines = all.into_iter().take(MOST);
        let text: String = lines
            .map(|(leaf, (token, ends))| line(leaf, token, *ends))
            .collect();
        drop(inner);
        self.slot.write(text.as_bytes())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes the file anew, without the certificates that have ended.
fn compact(path: &Path, inner: &mut Inner, now: u64) -> io::Result<()> {
    inner.by_leaf.retain(|_, (_, ends)| *ends > now);
    let text: String = inner
        .by_leaf
        .iter()
        .map(|(leaf, (token, ends))| line(leaf, token, *ends))
        .collect();
    inner.file = None;
    files::write_atomic(path, text.as_bytes(), files::PRIVATE_FILE)?;
    let file = OpenOptions::new()
        .append(true)
        .mode(files::PRIVATE_FILE)
        .open(path)?;
    inner.file = Some(file);
    inner.lines = inner.by_leaf.len();
    inner.most_lines = 2 * inner.lines + SLACK;
    Ok(())
}

fn line(leaf: &Leaf, token: &TokenId, ends: u64) -> String {
    format!("{} {token} {ends}\n", URL_SAFE_NO_PAD.encode(leaf.0))
}

fn parse(line: &str) -> Option<(Leaf, TokenId, u64)> {
    let mut words = line.split(' ');
    let leaf = URL_SAFE_NO_PAD.decode(words.next()?).ok()?;
    let token = words.next()?.to_owned();
    let ends = words.next()?.parse().ok()?;
    Some((Leaf(leaf.try_into().ok()?), token, ends))
}

fn unix(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn what_was_issued_is_known_after_a_restart_without_a_half_written_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("issued");
        let now = SystemTime::now();
        let issued = Issued::open(&path).unwrap();
        let leaves: Vec<_> = (0..3_u8).map(|of| Leaf::of(&[of])).collect();
        for leaf in &leaves[..2] {
            issued
                .note(*leaf, &"a1".to_owned(), now + HOUR, now)
                .unwrap();
        }
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"AAAA a1").unwrap();
        let again = Issued::open(&path).unwrap();
        again
            .note(leaves[2], &"b2".to_owned(), now + HOUR, now)
            .unwrap();
        let last = Issued::open(&path).unwrap();
        let tokens: Vec<_> = leaves
            .iter()
            .map(|leaf| last.token(leaf).unwrap())
            .collect();
        assert_eq!(tokens, ["a1", "a1", "b2"]);
        assert_eq!(last.token(&Leaf::of(b"other")), None);
    }

    #[test]
    fn certificates_that_have_ended_leave_memory_and_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("issued");
        let now = SystemTime::now();
        let issued = Issued::open(&path).unwrap();
        for round in 0..10_u32 {
            let now = now + round * 2 * HOUR;
            for of in 0..1_500_u32 {
                let leaf = Leaf::of(&(round * 1_500 + of).to_be_bytes());
                issued
                    .note(leaf, &"a1".to_owned(), now + HOUR, now)
                    .unwrap();
            }
        }
        assert!(issued.lock().by_leaf.len() < 6_000);
        assert!(std::fs::metadata(&path).unwrap().len() < 6_000 * 70);
    }
}

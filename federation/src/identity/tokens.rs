//! Join tokens: what a workload or part on a plain machine proves itself with.
//!
//! Only SHA-256 of a token is kept, with the identity it stands for and its expiry.
//! A token may be used until it expires: processes restart with no key on disk.

use std::{
    path::{Path, PathBuf},
    sync::Mutex,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::{constant_time::verify_slices_are_equal, digest};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use linkspan_trust::SpiffeId;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::state::{StateError, files};

/// Prefix by which people and secret scanners know a join token.
const PREFIX: &str = "lsj1.";
/// More than a cluster's workloads in one token lifetime; a bound for the file and the look-up.
const MAX_TOKENS: usize = 10_000;
/// Lifetime where the caller names none.
pub(crate) const DEFAULT_TTL: Duration = Duration::from_secs(3600);
/// Longest lifetime.
pub(crate) const MAX_TTL: Duration = Duration::from_secs(30 * 24 * 3600);

/// Why no token was made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TokenError {
    #[error("{MAX_TOKENS} join tokens are valid already; wait until some expire")]
    TooMany,
    #[error("a join token lives from 1 second to 30 days, not {}", humantime::format_duration(*.0))]
    Lifetime(Duration),
    #[error(transparent)]
    State(#[from] StateError),
}

/// A token as its creator sees it, once.
pub(crate) struct NewToken {
    pub(crate) secret: Zeroizing<String>,
    pub(crate) expires: SystemTime,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Entry {
    /// SHA-256 of the random bytes, base64url.
    hash: String,
    spiffe_id: SpiffeId,
    expires_unix: u64,
}

impl Entry {
    fn is_live(&self, now: SystemTime) -> bool {
        // A time that the clock cannot show is never trusted.
        self.expires().is_some_and(|expires| expires > now)
    }

    fn expires(&self) -> Option<SystemTime> {
        UNIX_EPOCH.checked_add(Duration::from_secs(self.expires_unix))
    }

    /// What is wrong with an entry that was read.
    fn problem(&self) -> Option<&'static str> {
        let is_hash = URL_SAFE_NO_PAD
            .decode(&self.hash)
            .is_ok_and(|bytes| bytes.len() == digest::SHA256_OUTPUT_LEN);
        match self.expires() {
            _ if !is_hash => Some("an entry's `hash` is not a SHA-256 in base64url"),
            None => Some("an entry's `expiresUnix` is no time"),
            Some(_) => None,
        }
    }
}

/// All join tokens of this cluster, in memory and in one file.
pub(crate) struct JoinTokens {
    path: PathBuf,
    entries: Mutex<Vec<Entry>>,
}

impl JoinTokens {
    /// Reads the file; without one there are no tokens.
    pub(crate) fn open(path: &Path) -> Result<Self, StateError> {
        let damaged = |reason: String| StateError::Damaged {
            path: path.into(),
            reason,
        };
        let entries: Vec<Entry> = match files::read_private(path)? {
            None => Vec::new(),
            Some(bytes) => {
                serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?
            }
        };
        if let Some(problem) = entries.iter().find_map(Entry::problem) {
            return Err(damaged(problem.into()));
        }
        Ok(Self {
            path: path.into(),
            entries: Mutex::new(entries),
        })
    }

    /// Makes a token for `id`; it is on disk when this returns. Blocks on the disk.
    pub(crate) fn create(
        &self,
        id: SpiffeId,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<NewToken, TokenError> {
        if ttl < Duration::from_secs(1) || ttl > MAX_TTL {
            return Err(TokenError::Lifetime(ttl));
        }
        let bytes: Zeroizing<[u8; 32]> = Zeroizing::new(rand::random());
        let expires = now + ttl;
        let entry = Entry {
            hash: hash(&bytes[..]),
            spiffe_id: id,
            expires_unix: unix(expires),
        };
        self.add(entry, now)?;
        let secret = Zeroizing::new(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(&bytes[..])));
        Ok(NewToken { secret, expires })
    }

    /// Under one lock, so that two creators cannot write the file in the wrong order.
    fn add(&self, entry: Entry, now: SystemTime) -> Result<(), TokenError> {
        let mut entries = self
            .entries
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut next: Vec<Entry> = entries.iter().filter(|e| e.is_live(now)).cloned().collect();
        if next.len() >= MAX_TOKENS {
            return Err(TokenError::TooMany);
        }
        next.push(entry);
        let bytes = serde_json::to_vec_pretty(&next).expect("plain strings and numbers serialize");
        files::write_atomic(&self.path, &bytes, files::PRIVATE_FILE).map_err(|source| {
            StateError::Write {
                path: self.path.clone(),
                source,
            }
        })?;
        *entries = next;
        Ok(())
    }

    /// Whose token this is; `None` for one that is unknown, malformed or expired.
    pub(crate) fn identity(&self, token: &str, now: SystemTime) -> Option<SpiffeId> {
        let encoded = token.trim().strip_prefix(PREFIX)?;
        // 32 bytes are 43 characters; nothing longer is decoded.
        if encoded.len() != 43 {
            return None;
        }
        let bytes = Zeroizing::new(URL_SAFE_NO_PAD.decode(encoded).ok()?);
        let presented = hash(&bytes);
        let entries = self
            .entries
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        entries
            .iter()
            .filter(|entry| equal(&entry.hash, &presented))
            .find(|entry| entry.is_live(now))
            .map(|entry| entry.spiffe_id.clone())
    }
}

fn hash(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, bytes))
}

fn equal(left: &str, right: &str) -> bool {
    verify_slices_are_equal(left.as_bytes(), right.as_bytes()).is_ok()
}

fn unix(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> SpiffeId {
        format!("spiffe://east.test/ns/shop/sa/{name}")
            .parse()
            .unwrap()
    }

    #[test]
    fn a_token_names_its_identity_until_it_expires_also_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tokens.json");
        let now = SystemTime::now();
        let tokens = JoinTokens::open(&path).unwrap();
        let made = tokens
            .create(id("checkout"), Duration::from_secs(60), now)
            .unwrap();
        let again = JoinTokens::open(&path).unwrap();
        for store in [&tokens, &again] {
            assert_eq!(store.identity(&made.secret, now), Some(id("checkout")));
            assert_eq!(store.identity(&made.secret, now), Some(id("checkout")));
            assert_eq!(
                store.identity(&made.secret, now + Duration::from_secs(61)),
                None
            );
        }
    }

    #[test]
    fn a_malformed_entry_is_damage_and_no_panic() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tokens.json");
        let good = hash(b"token");
        for (hash, expires) in [(good.as_str(), u64::MAX), ("short", 4_000_000_000)] {
            let json = format!(
                r#"[{{"hash":"{hash}","spiffeId":"{}","expiresUnix":{expires}}}]"#,
                id("a")
            );
            files::write_atomic(&path, json.as_bytes(), files::PRIVATE_FILE).unwrap();
            let opened = JoinTokens::open(&path);
            assert!(matches!(opened, Err(StateError::Damaged { .. })), "{json}");
        }
    }

    #[test]
    fn the_file_does_not_hold_the_token() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tokens.json");
        let tokens = JoinTokens::open(&path).unwrap();
        let made = tokens
            .create(id("a"), DEFAULT_TTL, SystemTime::now())
            .unwrap();
        let secret = made.secret.strip_prefix(PREFIX).unwrap();
        let text = String::from_utf8(files::read_private(&path).unwrap().unwrap()).unwrap();
        assert!(!text.contains(secret));
    }

    #[test]
    fn unknown_and_malformed_tokens_are_nobody() {
        let directory = tempfile::tempdir().unwrap();
        let tokens = JoinTokens::open(&directory.path().join("tokens.json")).unwrap();
        let now = SystemTime::now();
        tokens.create(id("a"), DEFAULT_TTL, now).unwrap();
        let unknown = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode([7_u8; 32]));
        for token in ["", "lsj1.", "lsj1.!!!", "other", &unknown] {
            assert_eq!(tokens.identity(token, now), None, "{token}");
        }
    }

    #[test]
    fn expired_tokens_leave_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tokens.json");
        let tokens = JoinTokens::open(&path).unwrap();
        let now = SystemTime::now();
        tokens.create(id("a"), Duration::from_secs(1), now).unwrap();
        tokens
            .create(id("b"), DEFAULT_TTL, now + Duration::from_secs(5))
            .unwrap();
        let text = String::from_utf8(files::read_private(&path).unwrap().unwrap()).unwrap();
        assert!(!text.contains("sa/a") && text.contains("sa/b"), "{text}");
    }

    #[test]
    fn lifetimes_are_bounded() {
        let directory = tempfile::tempdir().unwrap();
        let tokens = JoinTokens::open(&directory.path().join("tokens.json")).unwrap();
        for ttl in [Duration::ZERO, MAX_TTL + Duration::from_secs(1)] {
            assert!(matches!(
                tokens.create(id("a"), ttl, SystemTime::now()),
                Err(TokenError::Lifetime(_))
            ));
        }
    }
}

//! Join tokens: what a workload or part on a plain machine proves itself with.
//!
//! Only SHA-256 of a token is kept, with the identity it stands for, its expiry, and what it binds.
//! A token may be used until it expires: processes restart with no key on disk. What was issued
//! for it may be renewed without it, for as long as it says and until it is revoked.

mod entry;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::{constant_time::verify_slices_are_equal, digest};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use linkspan_runtime::{process::chain, stop::Stop};
use linkspan_trust::SpiffeId;
use tokio::{
    sync::{Notify, watch},
    time::sleep,
};
use zeroize::Zeroizing;

use self::entry::Entry;
use crate::state::{StateError, store::Slot};

/// Prefix by which people and secret scanners know a join token.
const PREFIX: &str = "lsj1.";
/// More than a cluster's workloads in one token lifetime; a bound for the file and the look-up.
const MAX_TOKENS: usize = 10_000;
/// Lifetime where the caller names none.
pub(crate) const DEFAULT_TTL: Duration = Duration::from_secs(3600);
/// Longest lifetime.
pub(crate) const MAX_TTL: Duration = Duration::from_secs(30 * DAY);
/// How long certificates may be renewed where the caller does not say.
pub(crate) const DEFAULT_RENEW_FOR: Duration = Duration::from_secs(90 * DAY);
/// Longest time of renewals.
pub(crate) const MAX_RENEW_FOR: Duration = Duration::from_secs(366 * DAY);
/// Uses are written down this often at most: the file need not follow each.
const USES: Duration = Duration::from_secs(60);
const DAY: u64 = 24 * 3600;

/// Why no token was made or revoked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TokenError {
    #[error(
        "{MAX_TOKENS} join tokens are valid already; wait until some expire, or revoke some (`linkspan token list`)"
    )]
    TooMany,
    #[error("a join token lives from 1 second to 30 days, not {}", humantime::format_duration(*.0))]
    Lifetime(Duration),
    #[error("certificates may be renewed for 1 second to 366 days, not {}", humantime::format_duration(*.0))]
    RenewFor(Duration),
    #[error("there is no join token `{0}`; `linkspan token list` shows those that there are")]
    Unknown(String),
    #[error(transparent)]
    State(#[from] StateError),
}

/// A token as its creator sees it, once.
pub(crate) struct NewToken {
    pub(crate) id: TokenId,
    pub(crate) secret: Zeroizing<String>,
    pub(crate) expires: SystemTime,
}

/// Names a token without giving it away: the first bytes of its hash, in hexadecimal.
pub(crate) type TokenId = String;

/// What a token demands of the workloads that join with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Binding {
    /// Where there are any, exactly these must be registered.
    pub(crate) labels: BTreeMap<String, String>,
    /// Whether another address may be registered than the one that the workload calls from.
    pub(crate) any_address: bool,
    /// Where there is one, exactly this must be registered.
    pub(crate) uid: Option<String>,
}

/// What a token is made for.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) id: SpiffeId,
    pub(crate) ttl: Duration,
    pub(crate) renew_for: Duration,
    pub(crate) binding: Binding,
}

/// A token as it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) id: TokenId,
    pub(crate) spiffe_id: SpiffeId,
    pub(crate) binding: Binding,
    pub(crate) expires_unix: u64,
    pub(crate) renews_until_unix: u64,
    pub(crate) last_used_unix: Option<u64>,
}

type Entries = BTreeMap<TokenId, Entry>;

/// Whether it looks like a join token, good or not.
pub(crate) fn is_join_token(token: &str) -> bool {
    token.trim().starts_with(PREFIX)
}

/// All join tokens of this cluster, in memory and where they are kept.
pub(crate) struct JoinTokens {
    slot: Slot,
    /// Held while something is written, which may take long: it orders those who write.
    writing: Mutex<()>,
    /// Held for a look only, also by those who serve proxies.
    entries: Mutex<Entries>,
    /// Uses are to be written down.
    used: Notify,
    /// Counts revocations, for those who live by a token.
    revoked: watch::Sender<u64>,
}

impl JoinTokens {
    /// Reads what is kept; without that there are no tokens.
    pub(crate) fn open(slot: impl Into<Slot>) -> Result<Self, StateError> {
        let slot = slot.into();
        let entries: Vec<Entry> = match slot.read()? {
            None => Vec::new(),
            Some(bytes) => {
                serde_json::from_slice(&bytes).map_err(|error| slot.damaged(error.to_string()))?
            }
        };
        if let Some(problem) = entries.iter().find_map(Entry::problem) {
            return Err(slot.damaged(problem));
        }
        let entries = entries.into_iter().map(|of| (of.id(), of)).collect();
        Ok(Self {
            slot,
            writing: Mutex::default(),
            entries: Mutex::new(entries),
            used: Notify::new(),
            revoked: watch::Sender::new(0),
        })
    }

    /// Makes a token; it is on disk when this returns. Blocks on the disk.
    pub(crate) fn create(&self, wanted: Wanted, now: SystemTime) -> Result<NewToken, TokenError> {
        let second = Duration::from_secs(1);
        if wanted.ttl < second || wanted.ttl > MAX_TTL {
            return Err(TokenError::Lifetime(wanted.ttl));
        }
        if wanted.renew_for < second || wanted.renew_for > MAX_RENEW_FOR {
            return Err(TokenError::RenewFor(wanted.renew_for));
        }
        let bytes: Zeroizing<[u8; 32]> = Zeroizing::new(rand::random());
        let expires = now + wanted.ttl;
        let entry = Entry {
            hash: hash(&bytes[..]),
            spiffe_id: wanted.id,
            expires_unix: unix(expires),
            renews_until_unix: Some(unix(now + wanted.renew_for)),
            labels: wanted.binding.labels,
            any_address: wanted.binding.any_address,
            last_used_unix: None,
            certified_until_unix: 0,
        };
        let id = entry.id();
        let _turn = self.turn();
        let mut next = self.kept(now);
        if next.len() >= MAX_TOKENS {
            return Err(TokenError::TooMany);
        }
        next.insert(id.clone(), entry.clone());
        self.slot.write(&bytes_of(&next))?;
        self.lock().insert(id.clone(), entry);
        let secret = Zeroizing::new(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(&bytes[..])));
        Ok(NewToken {
            id,
            secret,
            expires,
        })
    }

    /// Takes a token back, with all that lives by it. Blocks on the disk.
    pub(crate) fn revoke(&self, id: &str, now: SystemTime) -> Result<SpiffeId, TokenError> {
        let _turn = self.turn();
        let mut next = self.kept(now);
        let Some(Entry { spiffe_id: of, .. }) = next.remove(id) else {
            return Err(TokenError::Unknown(id.chars().take(80).collect()));
        };
        self.slot.write(&bytes_of(&next))?;
        self.lock().remove(id);
        self.revoked.send_modify(|count| *count += 1);
        Ok(of)
    }

    /// Follows revocations.
    pub(crate) fn revocations(&self) -> watch::Receiver<u64> {
        self.revoked.subscribe()
    }

    /// Those by which anybody may still join, renew or be here.
    pub(crate) fn list(&self, now: SystemTime) -> Vec<Listed> {
        self.kept(now).values().map(Entry::listed).collect()
    }

    /// Whose token this is; `None` for one that is unknown, malformed or expired.
    pub(crate) fn identity(&self, token: &str, now: SystemTime) -> Option<(TokenId, SpiffeId)> {
        let encoded = token.trim().strip_prefix(PREFIX)?;
        // 32 bytes are 43 characters; nothing longer is decoded.
        if encoded.len() != 43 {
            return None;
        }
        let bytes = Zeroizing::new(URL_SAFE_NO_PAD.decode(encoded).ok()?);
        let presented = hash(&bytes);
        let entries = self.lock();
        let (id, entry) = entries.get_key_value(&entry::id(&presented))?;
        let good = equal(&entry.hash, &presented) && entry.is_live(now);
        good.then(|| (id.clone(), entry.spiffe_id.clone()))
    }

    /// Whether what was issued for a token may be renewed without it.
    pub(crate) fn renews(&self, id: &str, now: SystemTime) -> bool {
        let entries = self.lock();
        let entry = entries.get(id);
        entry.is_some_and(|entry| entry.renews(now))
    }

    /// What a token binds; `None` where it is revoked or long gone.
    pub(crate) fn binding(&self, id: &str) -> Option<Binding> {
        self.lock().get(id).map(Entry::binding)
    }

    /// A certificate that ends at `until` was issued for a token. It is written down later.
    pub(crate) fn used(&self, id: &str, until: SystemTime, now: SystemTime) {
        if let Some(entry) = self.lock().get_mut(id) {
            entry.last_used_unix = Some(unix(now));
            entry.certified_until_unix = entry.certified_until_unix.max(unix(until));
            self.used.notify_one();
        }
    }

    /// Writes down which tokens were used, until `stop` drains.
    pub(crate) async fn keep(self: Arc<Self>, stop: Stop) {
        let mut ending = false;
        let mut failing = false;
        while !ending {
            tokio::select! {
                // First, so that what is waiting at the end is not taken for a use to wait with.
                biased;
                () = stop.draining() => ending = true,
                () = self.used.notified() => tokio::select! {
                    () = stop.draining() => ending = true,
                    () = sleep(USES) => {}
                },
            }
            let this = Arc::clone(&self);
            let written =
                tokio::task::spawn_blocking(move || this.write_uses(SystemTime::now())).await;
            let failed = matches!(written, Ok(Err(_)));
            if let Ok(Err(error)) = written
                && !failing
            {
                let error = chain(&error);
                tracing::warn!(error, "uses of join tokens cannot be written down");
            }
            failing = failed;
            if failing {
                self.used.notify_one();
            }
        }
    }

    /// Writes down what is known now. Blocks on the disk.
    fn write_uses(&self, now: SystemTime) -> Result<(), StateError> {
        let _turn = self.turn();
        let next = self.kept(now);
        self.slot.write(&bytes_of(&next))?;
        // What is good for nothing any more goes from memory, too.
        self.lock().retain(|_, entry| entry.is_kept(now));
        Ok(())
    }

    /// Those that are good for anything still.
    fn kept(&self, now: SystemTime) -> Entries {
        let entries = self.lock();
        let kept = entries.iter().filter(|(_, entry)| entry.is_kept(now));
        kept.map(|(id, entry)| (id.clone(), entry.clone()))
            .collect()
    }

    fn turn(&self) -> MutexGuard<'_, ()> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn bytes_of(entries: &Entries) -> Vec<u8> {
    let listed: Vec<&Entry> = entries.values().collect();
    serde_json::to_vec_pretty(&listed).expect("plain strings and numbers serialize")
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

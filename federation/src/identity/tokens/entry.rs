//! One join token, as it is kept.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::digest;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use linkspan_trust::SpiffeId;
use serde::{Deserialize, Serialize};

use super::{Binding, DEFAULT_RENEW_FOR, Listed, TokenId};

/// Bytes of the hash that name a token: among 10,000 tokens two are alike once in 10^7 clusters.
const ID_BYTES: usize = 6;

#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Entry {
    /// SHA-256 of the random bytes, base64url.
    pub(super) hash: String,
    pub(super) spiffe_id: SpiffeId,
    pub(super) expires_unix: u64,
    /// Until when what was issued for it may be renewed without it.
    #[serde(default)]
    pub(super) renews_until_unix: Option<u64>,
    #[serde(default)]
    pub(super) labels: BTreeMap<String, String>,
    #[serde(default)]
    pub(super) any_address: bool,
    #[serde(default)]
    pub(super) last_used_unix: Option<u64>,
    /// When the last certificate that was issued for it ends.
    #[serde(default)]
    pub(super) certified_until_unix: u64,
}

impl Entry {
    pub(super) fn id(&self) -> TokenId {
        id(&self.hash)
    }

    /// Whether it still gets certificates.
    pub(super) fn is_live(&self, now: SystemTime) -> bool {
        // A time that the clock cannot show is never trusted.
        time(self.expires_unix).is_some_and(|expires| expires > now)
    }

    /// Whether what was issued for it may be renewed without it.
    pub(super) fn renews(&self, now: SystemTime) -> bool {
        time(self.renews_until()).is_some_and(|until| until > now)
    }

    /// Whether anything can still come of it: a certificate, or a renewal of one that lives.
    pub(super) fn is_kept(&self, now: SystemTime) -> bool {
        self.is_live(now) || time(self.certified_until_unix).is_some_and(|until| until > now)
    }

    fn renews_until(&self) -> u64 {
        let default = self
            .expires_unix
            .saturating_add(DEFAULT_RENEW_FOR.as_secs());
        self.renews_until_unix.unwrap_or(default)
    }

    pub(super) fn binding(&self) -> Binding {
        Binding {
            labels: self.labels.clone(),
            any_address: self.any_address,
            ..Binding::default()
        }
    }

    pub(super) fn listed(&self) -> Listed {
        Listed {
            id: self.id(),
            spiffe_id: self.spiffe_id.clone(),
            binding: self.binding(),
            expires_unix: self.expires_unix,
            renews_until_unix: self.renews_until(),
            last_used_unix: self.last_used_unix,
        }
    }

    /// What is wrong with an entry that was read.
    pub(super) fn problem(&self) -> Option<&'static str> {
        let is_hash = URL_SAFE_NO_PAD
            .decode(&self.hash)
            .is_ok_and(|bytes| bytes.len() == digest::SHA256_OUTPUT_LEN);
        match time(self.expires_unix) {
            _ if !is_hash => Some("an entry's `hash` is not a SHA-256 in base64url"),
            None => Some("an entry's `expiresUnix` is no time"),
            Some(_) => None,
        }
    }
}

/// The id of the token with that hash, which was checked when it was read.
pub(super) fn id(hash: &str) -> TokenId {
    let bytes = URL_SAFE_NO_PAD.decode(hash).unwrap_or_default();
    let mut id = TokenId::new();
    for byte in bytes.iter().take(ID_BYTES) {
        let _ = write!(id, "{byte:02x}");
    }
    id
}

fn time(unix: u64) -> Option<SystemTime> {
    UNIX_EPOCH.checked_add(Duration::from_secs(unix))
}

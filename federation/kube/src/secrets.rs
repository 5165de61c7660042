//! A Secret as the place of what must outlive a process, with one writer at a time.
//!
//! Every write is on condition that the Secret is as this process saw it last. Who starts first writes
//! an [`OWNER`] of its own, and then reads; from then on whoever wrote before is refused for good,
//! however late it learns of it. What others change beside it (labels, keys of theirs) is taken over.
//! A Secret that was emptied, or deleted and made anew, gets back what its owner holds.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::Client;
use kube::api::{Api, PostParams};
use tokio::time::{sleep, timeout};
use zeroize::Zeroize as _;

use crate::kinds::FIELD_MANAGER;

/// The key that names who writes.
pub const OWNER: &str = "owner";
/// All that is kept in one Secret: an API server takes a mebibyte, base64 makes a third more of it,
/// and names are beside.
pub const MAX_SECRET: usize = 700 * 1024;
/// No call takes longer.
const CALL: Duration = Duration::from_secs(10);
/// Tries of one write, and the pause between them: a connection that was closed while idle, or an
/// API server that is being replaced, must not cost a certificate.
const TRIES: u32 = 4;
const PAUSE: Duration = Duration::from_millis(250);

/// Why a Secret could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// It is not there.
    #[error(
        "Secret `{0}` is not there; apply the output of `linkspan install` again, and restore its \
         content first if there was any"
    )]
    Missing(String),
    /// It was there, and this process, which runs, still holds all of it.
    #[error(
        "Secret `{0}` was deleted; do not restart federation, which still holds what was in it, but \
         apply the output of `linkspan install` again: then it is written back"
    )]
    Deleted(String),
    /// Somebody else writes now.
    #[error("another federation has taken over Secret `{0}`; this one must end")]
    TakenOver(String),
    /// It would be larger than an API server takes.
    #[error("Secret `{name}` would hold {bytes} bytes; it can hold {MAX_SECRET}")]
    TooLarge {
        /// Namespace and name.
        name: String,
        /// What it would hold.
        bytes: usize,
    },
    /// The API server refused or did not answer.
    #[error("Secret `{name}` cannot be read or written")]
    Unavailable {
        /// Namespace and name.
        name: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// One Secret, as it was read or written last. Its `Debug` shows no content, and what it no longer
/// holds is overwritten in memory.
pub struct KubernetesSecret {
    api: Api<Secret>,
    name: String,
    /// Namespace and name, for people.
    place: String,
    held: Secret,
    /// What this process wrote as [`OWNER`].
    owner: Vec<u8>,
    /// Something of what is held is not there.
    emptied: bool,
}

impl Drop for KubernetesSecret {
    fn drop(&mut self) {
        wipe(&mut self.held);
    }
}

impl std::fmt::Debug for KubernetesSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("KubernetesSecret")
            .field(&self.place)
            .finish()
    }
}

impl KubernetesSecret {
    /// Takes over a Secret, which must be there, and reads it: nobody who had it before writes it from
    /// then on. `owner` is to be nobody else's, and no other life's of this process.
    ///
    /// # Errors
    /// See [`SecretError`].
    pub async fn open(
        client: Client,
        namespace: &str,
        name: &str,
        owner: &str,
    ) -> Result<Self, SecretError> {
        let api = Api::namespaced(client, namespace);
        let place = format!("{namespace}/{name}");
        let held = read(&api, name, &place).await?;
        let mut this = Self {
            api,
            name: name.to_owned(),
            place,
            held,
            owner: owner.into(),
            emptied: false,
        };
        let owner = this.owner.clone();
        this.put(&[(OWNER, &owner)]).await?;
        Ok(this)
    }

    /// Namespace and name.
    #[must_use]
    pub fn place(&self) -> &str {
        &self.place
    }

    /// What it holds under a key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&[u8]> {
        entry(&self.held, key)
    }

    /// Looks whether it is there and ours still, and writes it back where it was emptied.
    ///
    /// # Errors
    /// See [`SecretError`].
    pub async fn look(&mut self) -> Result<(), SecretError> {
        self.refresh().await?;
        match self.emptied {
            true => self.put(&[]).await,
            false => Ok(()),
        }
    }

    /// Replaces what it holds under these keys, all or none.
    ///
    /// # Errors
    /// See [`SecretError`]; it then holds what it held, or, where the API server did not answer,
    /// perhaps what it should.
    pub async fn put(&mut self, entries: &[(&str, &[u8])]) -> Result<(), SecretError> {
        let mut last = None;
        for attempt in 0..TRIES {
            if attempt > 0 {
                sleep(PAUSE * 2_u32.pow(attempt - 1)).await;
            }
            let mut next = self.with(entries)?;
            let replaced = self.replace(&next).await;
            wipe(&mut next);
            match replaced {
                Ok(held) => {
                    if std::mem::take(&mut self.emptied) {
                        let secret = &self.place;
                        tracing::warn!(secret, "it had been emptied; what it held is there again");
                    }
                    self.hold(held);
                    return Ok(());
                }
                Err(Refused::Conflict) if self.is_ours() => self.refresh().await?,
                // It is only being taken over: from whomever.
                Err(Refused::Conflict) => self.reread().await?,
                Err(Refused::Gone) => return Err(SecretError::Deleted(self.place.clone())),
                Err(Refused::Other(error)) => last = Some(error),
            }
        }
        Err(self.unavailable(last.unwrap_or_else(|| "it is changed by others all the time".into())))
    }

    fn with(&self, entries: &[(&str, &[u8])]) -> Result<Secret, SecretError> {
        let mut next = self.held.clone();
        let data: &mut BTreeMap<_, _> = next.data.get_or_insert_default();
        for (key, bytes) in entries {
            let former = data.insert((*key).to_owned(), ByteString(bytes.to_vec()));
            former
                .into_iter()
                .for_each(|ByteString(mut of)| of.zeroize());
        }
        let bytes = data
            .iter()
            .map(|(key, ByteString(value))| key.len() + value.len());
        let bytes = bytes.sum();
        if bytes > MAX_SECRET {
            wipe(&mut next);
            return Err(SecretError::TooLarge {
                name: self.place.clone(),
                bytes,
            });
        }
        Ok(next)
    }

    async fn replace(&self, next: &Secret) -> Result<Secret, Refused> {
        let params = PostParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PostParams::default()
        };
        match timeout(CALL, self.api.replace(&self.name, &params, next)).await {
            Err(late) => Err(Refused::Other(late.into())),
            Ok(Ok(held)) => Ok(held),
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => Err(Refused::Conflict),
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => Err(Refused::Gone),
            Ok(Err(error)) => Err(Refused::Other(error.into())),
        }
    }

    fn is_ours(&self) -> bool {
        self.get(OWNER) == Some(&self.owner)
    }

    /// Reads it anew, whatever is there.
    async fn reread(&mut self) -> Result<(), SecretError> {
        let fresh = read(&self.api, &self.name, &self.place).await?;
        self.hold(fresh);
        Ok(())
    }

    fn hold(&mut self, fresh: Secret) {
        wipe(&mut self.held);
        self.held = fresh;
    }

    /// Reads it anew: allowed as long as this process owns it, or nobody does and nothing in it is
    /// another's. Then what is held is to be written back.
    async fn refresh(&mut self) -> Result<(), SecretError> {
        let fresh = match read(&self.api, &self.name, &self.place).await {
            Err(SecretError::Missing(place)) => return Err(SecretError::Deleted(place)),
            other => other?,
        };
        let says = entry(&fresh, OWNER);
        if says.is_some_and(|says| says != self.owner) || !self.agrees(&fresh) && says.is_none() {
            return Err(SecretError::TakenOver(self.place.clone()));
        }
        if says.is_some() {
            self.hold(fresh);
            return Ok(());
        }
        let mut data = fresh.data.unwrap_or_default();
        data.extend(self.held.data.take().unwrap_or_default());
        let data = Some(data);
        self.held = Secret { data, ..fresh };
        self.emptied = true;
        Ok(())
    }

    /// Whether nothing there says another thing than what is held.
    fn agrees(&self, fresh: &Secret) -> bool {
        let mut keys = fresh.data.iter().flatten();
        keys.all(|(key, ByteString(bytes))| self.get(key).is_none_or(|held| held == bytes))
    }

    fn unavailable(&self, source: Box<dyn std::error::Error + Send + Sync>) -> SecretError {
        SecretError::Unavailable {
            name: self.place.clone(),
            source,
        }
    }
}

/// Leaves nothing of it in memory.
fn wipe(secret: &mut Secret) {
    let values = secret.data.iter_mut().flat_map(BTreeMap::values_mut);
    values.for_each(|ByteString(bytes)| bytes.zeroize());
}

fn entry<'a>(secret: &'a Secret, key: &str) -> Option<&'a [u8]> {
    let ByteString(bytes) = secret.data.as_ref()?.get(key)?;
    Some(bytes)
}

enum Refused {
    Conflict,
    Gone,
    Other(Box<dyn std::error::Error + Send + Sync>),
}

async fn read(api: &Api<Secret>, name: &str, place: &str) -> Result<Secret, SecretError> {
    let unavailable = |source| SecretError::Unavailable {
        name: place.to_owned(),
        source,
    };
    match timeout(CALL, api.get_opt(name)).await {
        Err(late) => Err(unavailable(late.into())),
        Ok(Err(error)) => Err(unavailable(error.into())),
        Ok(Ok(None)) => Err(SecretError::Missing(place.to_owned())),
        Ok(Ok(Some(secret))) => Ok(secret),
    }
}

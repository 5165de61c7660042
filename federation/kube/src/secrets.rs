//! A Secret as the place of what must outlive a process, with one writer at a time.
//!
//! Every write is on condition that the Secret is as this process saw it last. Who starts writes an
//! [`OWNER`] of its own; from then on whoever else wrote before is refused for good, however late it
//! learns of it. What others change beside it (labels, keys of theirs) is taken over.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::Client;
use kube::api::{Api, PostParams};
use tokio::time::{sleep, timeout};

use crate::kinds::FIELD_MANAGER;

/// The key that names who writes.
pub const OWNER: &str = "epoch";
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

/// One Secret, as it was read or written last. Its `Debug` shows no content.
pub struct KubernetesSecret {
    api: Api<Secret>,
    /// Namespace and name, for people.
    place: String,
    held: Secret,
    /// What this process wrote as [`OWNER`].
    owner: Option<Vec<u8>>,
}

impl std::fmt::Debug for KubernetesSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("KubernetesSecret")
            .field(&self.place)
            .finish()
    }
}

impl KubernetesSecret {
    /// Reads a Secret, which must be there.
    ///
    /// # Errors
    /// See [`SecretError`].
    pub async fn open(client: Client, namespace: &str, name: &str) -> Result<Self, SecretError> {
        let api = Api::namespaced(client, namespace);
        let place = format!("{namespace}/{name}");
        let held = read(&api, name, &place).await?;
        Ok(Self {
            api,
            place,
            held,
            owner: None,
        })
    }

    /// Namespace and name.
    #[must_use]
    pub fn place(&self) -> &str {
        &self.place
    }

    /// What it holds under a key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&[u8]> {
        let ByteString(bytes) = self.held.data.as_ref()?.get(key)?;
        Some(bytes)
    }

    /// Replaces what it holds under these keys, all or none. With [`OWNER`] among them, this process
    /// is the one that writes from then on.
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
            let next = self.with(entries)?;
            match self.replace(&next).await {
                Ok(held) => {
                    self.held = held;
                    let owner = entries.iter().find(|(key, _)| *key == OWNER);
                    if let Some((_, owner)) = owner {
                        self.owner = Some(owner.to_vec());
                    }
                    return Ok(());
                }
                Err(Refused::Conflict) => self.refresh().await?,
                Err(Refused::Gone) => return Err(SecretError::Missing(self.place.clone())),
                Err(Refused::Other(error)) => last = Some(error),
            }
        }
        Err(self.unavailable(last.unwrap_or_else(|| "it is changed by others all the time".into())))
    }

    fn with(&self, entries: &[(&str, &[u8])]) -> Result<Secret, SecretError> {
        let mut next = self.held.clone();
        let data: &mut BTreeMap<_, _> = next.data.get_or_insert_default();
        for (key, bytes) in entries {
            data.insert((*key).to_owned(), ByteString(bytes.to_vec()));
        }
        let bytes = data
            .iter()
            .map(|(key, ByteString(value))| key.len() + value.len());
        match bytes.sum() {
            bytes if bytes > MAX_SECRET => Err(SecretError::TooLarge {
                name: self.place.clone(),
                bytes,
            }),
            _ => Ok(next),
        }
    }

    async fn replace(&self, next: &Secret) -> Result<Secret, Refused> {
        let params = PostParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PostParams::default()
        };
        let name = next.metadata.name.as_deref().unwrap_or_default();
        match timeout(CALL, self.api.replace(name, &params, next)).await {
            Err(late) => Err(Refused::Other(late.into())),
            Ok(Ok(held)) => Ok(held),
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => Err(Refused::Conflict),
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => Err(Refused::Gone),
            Ok(Err(error)) => Err(Refused::Other(error.into())),
        }
    }

    /// Reads it anew after somebody changed it: allowed as long as it says that this process owns it.
    async fn refresh(&mut self) -> Result<(), SecretError> {
        let name = self.held.metadata.name.clone().unwrap_or_default();
        let fresh = read(&self.api, &name, &self.place).await?;
        let says = fresh.data.as_ref().and_then(|data| data.get(OWNER));
        // Before there is an owner, whoever came first may have begun already.
        let ours =
            self.owner.is_some() && says.map(|ByteString(owner)| owner) == self.owner.as_ref();
        if !ours {
            return Err(SecretError::TakenOver(self.place.clone()));
        }
        self.held = fresh;
        Ok(())
    }

    fn unavailable(&self, source: Box<dyn std::error::Error + Send + Sync>) -> SecretError {
        SecretError::Unavailable {
            name: self.place.clone(),
            source,
        }
    }
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

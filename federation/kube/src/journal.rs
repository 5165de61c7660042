//! Peers' last records in ConfigMaps.
//!
//! One head per peer names a generation and how many parts it has; the parts hold the bytes. A new
//! generation is written beside the old one, the head is turned over, then the old parts go: a
//! crash at any moment leaves the old journal or the new one.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, DeleteParams, ListParams, ObjectMeta, PostParams};
use kube::{Client, ResourceExt as _};
use linkspan_core::ClusterId;
use linkspan_core::backend::{Journal, JournalEntry, JournalError, MAX_JOURNAL};
use tokio::sync::watch;

use crate::kinds::{FIELD_MANAGER, MANAGED_BY, MANAGED_BY_LABEL};
use crate::leader::{Lead, may_write};

/// Bytes in one part: with a third more as base64, and names, still well under the mebibyte that
/// an API server takes.
const PART: usize = 640 * 1024;
/// Marks our objects: `head` or `part`.
const LABEL: &str = "linkspan.io/journal";
/// Whose it is: a label, for a cluster id may be longer than a label's value.
const PEER_LABEL: &str = "linkspan.io/peer";
/// The cluster id itself, on the head.
const PEER: &str = "linkspan.io/peer-id";
const GENERATION: &str = "generation";
const PARTS: &str = "parts";
const BYTES: &str = "bytes";
/// The key of a part's bytes.
const CONTENT: &str = "journal";

/// ConfigMaps of one namespace as a [`Journal`].
pub struct KubernetesJournal {
    api: Api<ConfigMap>,
    namespace: String,
    lead: watch::Receiver<Lead>,
}

impl KubernetesJournal {
    /// In this namespace, which should be closed to all but federation. Writes while `lead` says
    /// so.
    #[must_use]
    pub fn new(client: Client, namespace: &str, lead: watch::Receiver<Lead>) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            namespace: namespace.to_owned(),
            lead,
        }
    }

    fn failed(&self, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> JournalError {
        JournalError::Unavailable {
            what: format!("the journal in namespace `{}`", self.namespace),
            source: error.into(),
        }
    }

    /// Asked before each write.
    fn may_write(&self) -> Result<(), JournalError> {
        may_write(&self.lead).map_err(|lost| self.failed(lost))
    }

    async fn list(&self, selector: &str) -> Result<Vec<ConfigMap>, JournalError> {
        let params = ListParams::default().labels(selector);
        let list = self.api.list(&params).await;
        Ok(list.map_err(|error| self.failed(error))?.items)
    }

    async fn read(&self, head: &ConfigMap) -> Option<JournalEntry> {
        let id = head.annotations().get(PEER)?;
        let peer: ClusterId = id.parse().ok()?;
        // A head that was put under another's name would otherwise speak for it.
        if head.name_any() != head_name(&peer) {
            return None;
        }
        let content = self.content(head, &peer).await;
        Some(JournalEntry { peer, content })
    }

    async fn content(&self, head: &ConfigMap, peer: &ClusterId) -> Result<Vec<u8>, String> {
        let head = Head::of(head).ok_or("its head cannot be read")?;
        let mut content = Vec::new();
        for number in 0..head.parts {
            let name = part_name(peer, head.generation, number);
            let part = self
                .api
                .get_opt(&name)
                .await
                .map_err(|error| error.to_string())?;
            let data = part.and_then(|mut part| part.binary_data.as_mut()?.remove(CONTENT));
            let ByteString(bytes) =
                data.ok_or_else(|| format!("part {} of {} is missing", number + 1, head.parts))?;
            content.extend_from_slice(&bytes);
        }
        match content.len() == head.bytes {
            true => Ok(content),
            false => Err(format!(
                "it has {} bytes instead of {}",
                content.len(),
                head.bytes
            )),
        }
    }

    /// Makes or replaces an object.
    async fn put(&self, object: &ConfigMap) -> Result<(), JournalError> {
        let params = PostParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PostParams::default()
        };
        self.may_write()?;
        let replaced = self.api.replace(&object.name_any(), &params, object).await;
        let result = match replaced {
            Err(kube::Error::Api(status)) if status.code == 404 => {
                self.api.create(&params, object).await
            }
            other => other,
        };
        result.map(drop).map_err(|error| self.failed(error))
    }

    async fn delete(&self, name: &str) -> Result<(), JournalError> {
        self.may_write()?;
        match self.api.delete(name, &DeleteParams::default()).await {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            other => other.map(drop).map_err(|error| self.failed(error)),
        }
    }

    /// Removes the parts of a peer, but for those of `keep`.
    async fn sweep(&self, peer: &ClusterId, keep: Option<u64>) -> Result<(), JournalError> {
        let selector = format!("{LABEL}=part,{PEER_LABEL}={}", peer.label());
        let kept = keep.map(|generation| format!("{}-{generation}-", head_name(peer)));
        // Their contents are not wanted, only their names.
        let params = ListParams::default().labels(&selector);
        let parts = self.api.list_metadata(&params).await;
        for part in parts.map_err(|error| self.failed(error))?.items {
            let name = part.name_any();
            if kept.as_ref().is_none_or(|prefix| !name.starts_with(prefix)) {
                self.delete(&name).await?;
            }
        }
        Ok(())
    }
}

impl Journal for KubernetesJournal {
    async fn load(&mut self) -> Result<Vec<JournalEntry>, JournalError> {
        let mut entries = Vec::new();
        for head in self.list(&format!("{LABEL}=head")).await? {
            entries.extend(self.read(&head).await);
        }
        Ok(entries)
    }

    async fn save(&mut self, peer: &ClusterId, content: &[u8]) -> Result<(), JournalError> {
        if content.len() > MAX_JOURNAL {
            let (peer, bytes) = (peer.clone(), content.len());
            return Err(JournalError::TooLarge { peer, bytes });
        }
        let name = head_name(peer);
        let former = self
            .api
            .get_opt(&name)
            .await
            .map_err(|error| self.failed(error))?;
        let former = former.as_ref().and_then(Head::of);
        let generation = former.map_or(0, |head| head.generation.wrapping_add(1));
        let parts = content.chunks(PART);
        let head = Head {
            generation,
            parts: parts.len(),
            bytes: content.len(),
        };
        for (number, bytes) in parts.enumerate() {
            self.put(&part(peer, generation, number, bytes)).await?;
        }
        self.put(&head.object(peer)).await?;
        self.sweep(peer, Some(generation)).await
    }

    async fn forget(&mut self, peer: &ClusterId) -> Result<(), JournalError> {
        // The head first: without it nothing is there.
        self.delete(&head_name(peer)).await?;
        self.sweep(peer, None).await
    }
}

#[derive(Clone, Copy)]
struct Head {
    generation: u64,
    parts: usize,
    bytes: usize,
}

impl Head {
    fn of(object: &ConfigMap) -> Option<Self> {
        let data = object.data.as_ref()?;
        let head = Self {
            generation: data.get(GENERATION)?.parse().ok()?,
            parts: data.get(PARTS)?.parse().ok()?,
            bytes: data.get(BYTES)?.parse().ok()?,
        };
        // What claims more than is ever written is not read.
        (head.bytes <= MAX_JOURNAL && head.parts <= MAX_JOURNAL.div_ceil(PART)).then_some(head)
    }

    fn object(self, peer: &ClusterId) -> ConfigMap {
        let data = [
            (GENERATION, self.generation.to_string()),
            (PARTS, self.parts.to_string()),
            (BYTES, self.bytes.to_string()),
        ];
        let mut object = object(peer, head_name(peer), "head");
        object.metadata.annotations = Some([(PEER.to_owned(), peer.to_string())].into());
        object.data = Some(data.map(|(key, value)| (key.to_owned(), value)).into());
        object
    }
}

fn part(peer: &ClusterId, generation: u64, number: usize, bytes: &[u8]) -> ConfigMap {
    let mut object = object(peer, part_name(peer, generation, number), "part");
    let content = ByteString(bytes.to_vec());
    object.binary_data = Some([(CONTENT.to_owned(), content)].into());
    object
}

fn object(peer: &ClusterId, name: String, role: &str) -> ConfigMap {
    let labels = [
        (MANAGED_BY_LABEL, MANAGED_BY.to_owned()),
        (LABEL, role.to_owned()),
        (PEER_LABEL, peer.label().to_string()),
    ];
    let labels: BTreeMap<_, _> = labels.map(|(key, value)| (key.to_owned(), value)).into();
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(name),
            labels: Some(labels),
            ..ObjectMeta::default()
        },
        ..ConfigMap::default()
    }
}

fn head_name(peer: &ClusterId) -> String {
    format!("linkspan-journal-{}", peer.label())
}

fn part_name(peer: &ClusterId, generation: u64, number: usize) -> String {
    format!("{}-{generation}-{number}", head_name(peer))
}

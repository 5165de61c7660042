//! Peers' last records in ConfigMaps.
//!
//! One head per peer names a generation and how many parts it has; the parts hold the bytes. A new
//! generation is written beside the old one, the head is turned over, then the old parts go: a
//! crash at any moment leaves the old journal or the new one. Generations are random, and a head
//! is turned over on condition that it is as it was read: one who led until just now, whose
//! requests arrive late, writes into nobody's journal and removes nobody's parts.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, DeleteParams, ListParams, ObjectMeta, PostParams};
use kube::{Client, ResourceExt};
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
/// A random number.
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

    async fn read(&self, head: ConfigMap) -> Result<Option<JournalEntry>, JournalError> {
        let id = head.annotations().get(PEER);
        let Some(peer) = id.and_then(|id| id.parse::<ClusterId>().ok()) else {
            return Ok(None);
        };
        // A head that was put under another's name would otherwise speak for it.
        if head.name_any() != head_name(&peer) {
            return Ok(None);
        }
        let mut content = self.content(&head, &peer).await?;
        if content.is_err() {
            // It may have been turned over since it was read.
            let Some(newer) = self.head(&peer).await? else {
                return Ok(None);
            };
            content = self.content(&newer, &peer).await?;
        }
        Ok(Some(JournalEntry { peer, content }))
    }

    /// What is kept of a peer, or how it is damaged. Only what the API server says is not there
    /// is missing: one that does not answer now has lost nothing.
    async fn content(
        &self,
        head: &ConfigMap,
        peer: &ClusterId,
    ) -> Result<Result<Vec<u8>, String>, JournalError> {
        let Some(head) = Head::of(head) else {
            return Ok(Err("its head cannot be read".into()));
        };
        let mut content = Vec::new();
        for number in 0..head.parts {
            let name = part_name(peer, head.generation, number);
            let part = self.api.get_opt(&name).await;
            let part = part.map_err(|error| self.failed(error))?;
            let Some(ByteString(bytes)) =
                part.and_then(|mut part| part.binary_data.as_mut()?.remove(CONTENT))
            else {
                let missing = format!("part {} of {} is missing", number + 1, head.parts);
                return Ok(Err(missing));
            };
            content.extend_from_slice(&bytes);
        }
        Ok(match content.len() == head.bytes {
            true => Ok(content),
            false => Err(format!(
                "it has {} bytes instead of {}",
                content.len(),
                head.bytes
            )),
        })
    }

    async fn head(&self, peer: &ClusterId) -> Result<Option<ConfigMap>, JournalError> {
        let head = self.api.get_opt(&head_name(peer)).await;
        head.map_err(|error| self.failed(error))
    }

    async fn create(&self, object: &ConfigMap) -> Result<(), JournalError> {
        self.may_write()?;
        let created = self.api.create(&by_us(), object).await;
        created.map(drop).map_err(|error| self.failed(error))
    }

    /// Turns the head over, unless it is another one than `former` by now.
    async fn turn(
        &self,
        former: Option<ConfigMap>,
        mut head: ConfigMap,
    ) -> Result<(), JournalError> {
        let Some(former) = former else {
            return self.create(&head).await;
        };
        head.metadata.uid = former.metadata.uid;
        head.metadata.resource_version = former.metadata.resource_version;
        self.may_write()?;
        let replaced = self.api.replace(&head.name_any(), &by_us(), &head).await;
        replaced.map(drop).map_err(|error| self.failed(error))
    }

    async fn delete(&self, name: &str) -> Result<(), JournalError> {
        self.may_write()?;
        match self.api.delete(name, &DeleteParams::default()).await {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            other => other.map(drop).map_err(|error| self.failed(error)),
        }
    }

    /// The names of a peer's parts.
    async fn parts(&self, peer: &ClusterId) -> Result<Vec<String>, JournalError> {
        let selector = format!("{LABEL}=part,{PEER_LABEL}={}", peer.label());
        // Their contents are not wanted.
        let params = ListParams::default().labels(&selector);
        let parts = self.api.list_metadata(&params).await;
        let parts = parts.map_err(|error| self.failed(error))?;
        Ok(parts.items.iter().map(ResourceExt::name_any).collect())
    }

    /// Those of this head, and those of writes that came to nothing.
    async fn former_parts(
        &self,
        peer: &ClusterId,
        head: Option<&ConfigMap>,
    ) -> Result<(Vec<String>, Vec<String>), JournalError> {
        let generation = head.and_then(Head::of).map(|head| head.generation);
        let prefix = generation.map(|generation| parts_name(peer, generation));
        let is_of = |name: &String| {
            prefix
                .as_ref()
                .is_some_and(|prefix| name.starts_with(prefix))
        };
        Ok(self.parts(peer).await?.into_iter().partition(is_of))
    }

    async fn delete_all(&self, parts: &[String]) -> Result<(), JournalError> {
        for name in parts {
            self.delete(name).await?;
        }
        Ok(())
    }
}

impl Journal for KubernetesJournal {
    async fn load(&mut self) -> Result<Vec<JournalEntry>, JournalError> {
        let mut entries = Vec::new();
        for head in self.list(&format!("{LABEL}=head")).await? {
            entries.extend(self.read(head).await?);
        }
        Ok(entries)
    }

    async fn save(&mut self, peer: &ClusterId, content: &[u8]) -> Result<(), JournalError> {
        if content.len() > MAX_JOURNAL {
            let (peer, bytes) = (peer.clone(), content.len());
            return Err(JournalError::TooLarge { peer, bytes });
        }
        let former = self.head(peer).await?;
        // Listed before anything is written, so that no later writer's are among them.
        let (outdated, abandoned) = self.former_parts(peer, former.as_ref()).await?;
        // Before there are more of them: what is interrupted again and again must not pile up.
        self.delete_all(&abandoned).await?;
        let generation = rand::random();
        let parts = content.chunks(PART);
        let head = Head {
            generation,
            parts: parts.len(),
            bytes: content.len(),
        };
        for (number, bytes) in parts.enumerate() {
            self.create(&part(peer, generation, number, bytes)).await?;
        }
        self.turn(former, head.object(peer)).await?;
        self.delete_all(&outdated).await
    }

    async fn forget(&mut self, peer: &ClusterId) -> Result<(), JournalError> {
        // The head first: without it nothing is there.
        let parts = self.parts(peer).await?;
        self.delete(&head_name(peer)).await?;
        self.delete_all(&parts).await
    }
}

fn by_us() -> PostParams {
    PostParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PostParams::default()
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

/// Dots keep them apart: a label has none, so no head has the name of another peer's part.
fn head_name(peer: &ClusterId) -> String {
    format!("linkspan-journal.head.{}", peer.label())
}

fn parts_name(peer: &ClusterId, generation: u64) -> String {
    format!("linkspan-journal.part.{}.{generation:016x}.", peer.label())
}

fn part_name(peer: &ClusterId, generation: u64, number: usize) -> String {
    format!("{}{number}", parts_name(peer, generation))
}

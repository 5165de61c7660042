//! One kind as the API server has it, kept up to date by a watch.
//!
//! Readers see complete lists only: [`Follower`] hands over no other.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;

use kube::api::ObjectMeta;
use kube::{Resource, ResourceExt as _};
use tokio::sync::watch;

use crate::follow::{Follower, Heard};
use crate::kinds::FIELD_MANAGER;
use crate::reads::Reads;

#[cfg(test)]
mod tests;

/// Namespace (empty where the kind has none) and name.
pub(crate) type Key = (String, String);

/// What is known of a kind.
#[derive(Debug)]
pub(crate) struct Mirrored<K> {
    /// By namespace and name; as of the last complete list and what was heard since.
    pub(crate) objects: BTreeMap<Key, Arc<K>>,
    /// Whether there was a complete list.
    pub(crate) complete: bool,
    /// Why the kind cannot be watched now.
    pub(crate) trouble: Option<Trouble>,
}

/// Why a kind cannot be watched.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind} cannot be watched: {why}; {fix}")]
pub(crate) struct Trouble {
    kind: String,
    why: String,
    fix: &'static str,
}

impl<K> Default for Mirrored<K> {
    fn default() -> Self {
        Self {
            objects: BTreeMap::new(),
            complete: false,
            trouble: None,
        }
    }
}

/// One kind; clones share it.
#[derive(Debug)]
pub(crate) struct Mirror<K>(Arc<watch::Sender<Mirrored<K>>>);

impl<K> Clone for Mirror<K> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K> Default for Mirror<K> {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::default()))
    }
}

impl<K> Mirror<K>
where
    K: Resource + Clone + PartialEq + Debug + Send + Sync + 'static,
{
    /// What is known now. Do not hold it over an await.
    pub(crate) fn read(&self) -> watch::Ref<'_, Mirrored<K>> {
        self.0.borrow()
    }

    /// Wakes on every change.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Mirrored<K>> {
        self.0.subscribe()
    }

    /// Takes in what came of a write of ours, before the watch tells it.
    pub(crate) fn note(&self, object: K) {
        self.0.send_if_modified(|mirrored| mirrored.put(object));
    }

    /// Takes out what a deletion of ours removed.
    pub(crate) fn forget(&self, key: &Key) {
        self.0
            .send_if_modified(|mirrored| mirrored.objects.remove(key).is_some());
    }

    /// Watches for ever. `slim` takes out of each object what nobody here reads.
    pub(crate) async fn follow(
        self,
        reads: impl Reads<Object = K>,
        kind: &'static str,
        slim: fn(&mut K),
    ) {
        let follower = Follower::new(reads, move |object: &mut K| {
            slim_metadata(object.meta_mut());
            slim(object);
        });
        let tell = |heard| {
            self.0
                .send_if_modified(|mirrored| mirrored.take(heard, kind));
        };
        follower.run(tell).await;
    }
}

impl<K: Resource + Clone + PartialEq> Mirrored<K> {
    /// Takes in what the watch says. True where readers see a difference.
    fn take(&mut self, heard: Heard<K>, kind: &str) -> bool {
        match heard {
            Heard::List(objects) => {
                let keyed = objects
                    .into_iter()
                    .map(|object| (key_of(&object), Arc::new(object)));
                self.objects = keyed.collect();
                self.complete = true;
                self.recover(kind);
                true
            }
            Heard::Watching => self.recover(kind),
            Heard::Put(object) => self.put(object),
            Heard::Deleted(object) => self.objects.remove(&key_of(&object)).is_some(),
            Heard::Failed(error) => self.fail(kind, &error),
        }
    }

    /// An object that is older than what is known changes nothing; one that differs only in what
    /// nobody here reads (a heartbeat, a container's state) is no news.
    fn put(&mut self, object: K) -> bool {
        let key = key_of(&object);
        let known = self.objects.get(&key);
        if let Some(known) = known
            && version_of(known.as_ref()) >= version_of(&object)
            && known.meta().uid == object.meta().uid
        {
            return false;
        }
        let news = known.is_none_or(|known| {
            let mut known = K::clone(known);
            let version = &object.meta().resource_version;
            known.meta_mut().resource_version.clone_from(version);
            known != object
        });
        self.objects.insert(key, Arc::new(object));
        news
    }

    fn fail(&mut self, kind: &str, error: &kube::Error) -> bool {
        let trouble = Trouble::of(kind, error);
        if self.trouble.as_ref() == Some(&trouble) {
            return false;
        }
        tracing::warn!(problem = %trouble, "watching goes on by itself once it can");
        self.trouble = Some(trouble);
        true
    }

    fn recover(&mut self, kind: &str) -> bool {
        let recovered = self.trouble.take().is_some();
        if recovered {
            tracing::info!(kind, "is watched again");
        }
        recovered
    }
}

impl Trouble {
    fn of(kind: &str, error: &kube::Error) -> Self {
        let (why, code) = match error {
            kube::Error::Api(status) => (status.message.clone(), status.code),
            other => (innermost(other), 0),
        };
        let fix = match code {
            401 => "renew the credentials with which federation calls the API server",
            403 => "grant federation's service account `list` and `watch` on it",
            404 => "apply the CustomResourceDefinitions in deploy/crds",
            _ => "it is tried again; what was read last stays in force",
        };
        Self {
            kind: kind.to_owned(),
            why,
            fix,
        }
    }
}

/// The cause at the end of the chain: what the system said.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

/// Of the field managers only ourselves matter, and not which fields.
fn slim_metadata(metadata: &mut ObjectMeta) {
    if let Some(managers) = &mut metadata.managed_fields {
        managers.retain(|entry| entry.manager.as_deref() == Some(FIELD_MANAGER));
        for entry in managers {
            entry.fields_v1 = None;
        }
    }
}

fn key_of<K: Resource>(object: &K) -> Key {
    (object.namespace().unwrap_or_default(), object.name_any())
}

/// Resource versions of one kind can be compared as numbers (etcd revisions); one that is none
/// is taken for new.
fn version_of<K: Resource>(object: &K) -> u64 {
    let version = object.meta().resource_version.as_deref();
    version
        .and_then(|version| version.parse().ok())
        .unwrap_or(u64::MAX)
}

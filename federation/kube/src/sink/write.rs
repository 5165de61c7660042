//! Single writes, and what their failures mean.

use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams};
use kube::{Client, ResourceExt as _};
use linkspan_core::backend::SinkError;
use serde_json::Value;
use tokio::sync::watch;

use crate::declare::as_seen;
use crate::kinds::FIELD_MANAGER;
use crate::leader::{Lead, NotLeading, may_write};
use crate::mirror::{Key, Mirror};

/// Tries of one write while others write the same object.
const TRIES: u32 = 4;

/// What came of a write.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The API server has something new.
    Written,
    /// It had it already, or what it was about is gone.
    Same,
    /// What it was about, and why the server does not take it.
    Refused(String, String),
}

/// Sends writes.
pub(super) struct Writer {
    client: Client,
    lead: watch::Receiver<Lead>,
}

/// Where an apply goes.
pub(super) struct Apply<'a> {
    pub(super) resource: &'a ApiResource,
    pub(super) key: &'a Key,
    pub(super) status: bool,
    pub(super) force: bool,
}

impl Writer {
    pub(super) fn new(client: Client, lead: watch::Receiver<Lead>) -> Self {
        Self { client, lead }
    }

    fn api(&self, resource: &ApiResource, namespace: &str) -> Api<DynamicObject> {
        match namespace {
            "" => Api::all_with(self.client.clone(), resource),
            namespace => Api::namespaced_with(self.client.clone(), namespace, resource),
        }
    }

    /// Applies a document and notes the result in the mirror.
    pub(super) async fn apply(
        &self,
        mirror: &Mirror<DynamicObject>,
        to: Apply<'_>,
        body: Value,
    ) -> Result<Outcome, SinkError> {
        let (namespace, name) = to.key;
        let api = self.api(to.resource, namespace);
        let mut params = PatchParams::apply(FIELD_MANAGER);
        params.force = to.force;
        let before = mirror
            .read()
            .objects
            .get(to.key)
            .and_then(|object| object.resource_version());
        let patch = Patch::Apply(&body);
        for _ in 1..=TRIES {
            may_write(&self.lead).map_err(|lost| unled(to.resource, to.key, lost))?;
            let result = match to.status {
                true => api.patch_status(name, &params, &patch).await,
                false => api.patch(name, &params, &patch).await,
            };
            match result {
                Ok(object) => {
                    let written = object.resource_version() != before;
                    mirror.note(object);
                    return Ok(if written {
                        Outcome::Written
                    } else {
                        Outcome::Same
                    });
                }
                Err(kube::Error::Api(status)) if to.status && status.code == 404 => {
                    return Ok(Outcome::Same);
                }
                // Somebody wrote in between; with force that is the only conflict there is.
                Err(kube::Error::Api(status)) if status.code == 409 && to.force => {}
                Err(kube::Error::Api(status)) if is_verdict(status.code) => {
                    return Ok(Outcome::Refused(
                        what(to.resource, to.key),
                        status.message.clone(),
                    ));
                }
                Err(error) => return Err(failed(what(to.resource, to.key), error)),
            }
        }
        // Whoever is so busy with it will be heard of, and then it is tried again.
        Ok(Outcome::Same)
    }

    /// Deletes an object of ours as it was seen; one that has changed since is left for the next look.
    pub(super) async fn delete(
        &self,
        resource: &ApiResource,
        mirror: &Mirror<DynamicObject>,
        object: DynamicObject,
    ) -> Result<Outcome, SinkError> {
        let key = (object.namespace().unwrap_or_default(), object.name_any());
        let params = as_seen(&object);
        may_write(&self.lead).map_err(|lost| unled(resource, &key, lost))?;
        match self.api(resource, &key.0).delete(&key.1, &params).await {
            Ok(_) => {
                mirror.forget(&key);
                Ok(Outcome::Written)
            }
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(Outcome::Same),
            Err(kube::Error::Api(status)) if is_verdict(status.code) => Ok(Outcome::Refused(
                what(resource, &key),
                status.message.clone(),
            )),
            Err(error) => Err(failed(what(resource, &key), error)),
        }
    }

    /// Takes fields out of an object of ours that somebody else has put there.
    pub(super) async fn mend(
        &self,
        resource: &ApiResource,
        mirror: &Mirror<DynamicObject>,
        key: &Key,
        patch: Value,
    ) -> Result<Outcome, SinkError> {
        may_write(&self.lead).map_err(|lost| unled(resource, key, lost))?;
        let params = PatchParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        let api = self.api(resource, &key.0);
        match api.patch(&key.1, &params, &Patch::Merge(&patch)).await {
            Ok(object) => {
                mirror.note(object);
                Ok(Outcome::Written)
            }
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(Outcome::Same),
            Err(kube::Error::Api(status)) if is_verdict(status.code) => Ok(Outcome::Refused(
                what(resource, key),
                status.message.clone(),
            )),
            Err(error) => Err(failed(what(resource, key), error)),
        }
    }
}

/// Whether the answer is about this object alone: others may fare better. A webhook that does not
/// answer is one, too: it is asked about some kinds and namespaces.
fn is_verdict(code: u16) -> bool {
    !matches!(code, 401 | 429 | 503 | 504)
}

fn what(resource: &ApiResource, (namespace, name): &Key) -> String {
    match namespace.as_str() {
        "" => format!("{} {name}", resource.kind),
        namespace => format!("{} {namespace}/{name}", resource.kind),
    }
}

fn failed(what: String, error: kube::Error) -> SinkError {
    SinkError {
        what,
        source: error.into(),
    }
}

fn unled(resource: &ApiResource, key: &Key, lost: NotLeading) -> SinkError {
    SinkError {
        what: what(resource, key),
        source: lost.into(),
    }
}

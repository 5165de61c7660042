//! Single objects that an operator has federation declare. None is written over what somebody
//! else has written, before or meanwhile.

use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, PostParams, Preconditions};
use kube::{Client, ResourceExt as _};
use linkspan_core::ServiceKey;
use linkspan_core::backend::{Declarations, DeclareError, Written};
use linkspan_resources::{Metadata, Object};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::kinds::{self, FIELD_MANAGER, MANAGED_BY, MANAGED_BY_LABEL, is_ours};
use crate::leader::{Lead, NotLeading, may_write};

/// Tries of one write while others write the same object.
pub(crate) const TRIES: u32 = 4;
/// Where declarations belong, for people.
const PLACE: &str = "the Kubernetes API";

/// The API server as the place of an operator's declarations.
#[derive(Clone)]
pub struct KubernetesDeclarations {
    client: Client,
    lead: watch::Receiver<Lead>,
}

impl KubernetesDeclarations {
    /// Writes with this client while `lead` says so.
    #[must_use]
    pub fn new(client: Client, lead: watch::Receiver<Lead>) -> Self {
        Self { client, lead }
    }

    fn api(&self, resource: &ApiResource, namespace: &str) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), namespace, resource)
    }
}

impl Declarations for KubernetesDeclarations {
    /// An export that is there already is left as it is, whoever wrote it: it says the same.
    async fn declare(&self, object: Object) -> Result<Written, DeclareError> {
        let kind = object.kind();
        let resource = resource_of(kind)?;
        let metadata = object.metadata();
        let (namespace, name) = (metadata.namespace(), metadata.name.as_str());
        let (spec, exclusive) = match &object {
            Object::FailoverPolicy(policy) => (json!(policy.spec), true),
            // Somebody else's tool may own the export; what is said there of its users is theirs to say.
            Object::ServiceExport(export) if !export.metadata.annotations.is_empty() => {
                return Err(DeclareError::failed(PLACE, to_annotate(&export.metadata)));
            }
            _ => (Value::Null, false),
        };
        let wanted = document(&resource, namespace, name, spec).map_err(failed)?;
        let check = |found: &DynamicObject| match is_ours(found.metadata.labels.as_ref()) {
            _ if !exclusive => Ok(false),
            true => Ok(true),
            false => Err(elsewhere(kind, found)),
        };
        let changed = put(&self.api(&resource, namespace), &self.lead, &wanted, check).await?;
        Ok(Written {
            changed,
            place: place(kind, namespace, name),
        })
    }

    /// An export goes whoever wrote it; a policy only if it was declared here.
    async fn withdraw(
        &self,
        kind: &'static str,
        key: &ServiceKey,
    ) -> Result<Written, DeclareError> {
        let (namespace, name) = (key.namespace.as_str(), key.name.as_str());
        let resource = resource_of(kind)?;
        let api = self.api(&resource, namespace);
        let written = |changed| Written {
            changed,
            place: place(kind, namespace, name),
        };
        let mut left = TRIES;
        loop {
            left -= 1;
            let Some(found) = api.get_opt(name).await.map_err(failed)? else {
                return Ok(written(false));
            };
            if resource == kinds::failover_policy() && !is_ours(found.metadata.labels.as_ref()) {
                return Err(elsewhere(kind, &found));
            }
            may_write(&self.lead).map_err(|lost| DeclareError::failed(PLACE, lost))?;
            match api.delete(name, &as_seen(&found)).await {
                Err(kube::Error::Api(status)) if status.code == 404 => return Ok(written(false)),
                // Federation itself writes statuses, soon after a change above all.
                Err(kube::Error::Api(status)) if status.code == 409 && left > 0 => {}
                other => return other.map(|_| written(true)).map_err(failed),
            }
        }
    }
}

/// Deletes only what was read: what has changed since is something else.
pub(crate) fn as_seen(found: &DynamicObject) -> DeleteParams {
    DeleteParams::default().preconditions(Preconditions {
        uid: found.uid(),
        resource_version: found.resource_version(),
    })
}

/// Makes an object, or gives the one that is there its spec and annotations. `check` says whether that may be
/// done to the one that is there; false where it is to be left as it is. True if something was
/// written.
pub(crate) async fn put<E: From<Unwritten>>(
    api: &Api<DynamicObject>,
    lead: &watch::Receiver<Lead>,
    wanted: &DynamicObject,
    check: impl Fn(&DynamicObject) -> Result<bool, E>,
) -> Result<bool, E> {
    let name = wanted.name_any();
    let params = PostParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PostParams::default()
    };
    let mut left = TRIES;
    loop {
        left -= 1;
        let written = match api.get_opt(&name).await.map_err(Unwritten::Api)? {
            None => {
                may_write(lead).map_err(Unwritten::NotLeading)?;
                api.create(&params, wanted).await
            }
            Some(mut found) => {
                let spec = &wanted.data["spec"];
                let notes = wanted.annotations();
                let noted = notes
                    .iter()
                    .all(|(key, word)| found.annotations().get(key) == Some(word));
                if !check(&found)? || found.data["spec"] == *spec && noted {
                    return Ok(false);
                }
                found.data["spec"].clone_from(spec);
                found.annotations_mut().extend(notes.clone());
                may_write(lead).map_err(Unwritten::NotLeading)?;
                // With the version that was read: a change of somebody else's is never lost.
                api.replace(&name, &params, &found).await
            }
        };
        match written {
            // Made, changed or removed in between.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) && left > 0 => {}
            other => {
                return other
                    .map(|_| true)
                    .map_err(|error| Unwritten::Api(error).into());
            }
        }
    }
}

/// Why nothing was written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unwritten {
    /// What the API server said instead.
    #[error(transparent)]
    Api(#[from] kube::Error),
    /// It was not asked.
    #[error(transparent)]
    NotLeading(#[from] NotLeading),
}

impl From<Unwritten> for DeclareError {
    fn from(unwritten: Unwritten) -> Self {
        Self::failed(PLACE, unwritten)
    }
}

/// An object without a status, marked as ours where it has a namespace.
pub(crate) fn document(
    resource: &ApiResource,
    namespace: &str,
    name: &str,
    spec: Value,
) -> Result<DynamicObject, kube::Error> {
    let mut document = json!({
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        "metadata": { "name": name },
    });
    if !namespace.is_empty() {
        document["metadata"]["namespace"] = namespace.into();
        document["metadata"]["labels"] = json!({ MANAGED_BY_LABEL: MANAGED_BY });
    }
    if !spec.is_null() {
        document["spec"] = spec;
    }
    serde_json::from_value(document).map_err(kube::Error::SerdeError)
}

fn to_annotate(metadata: &Metadata) -> String {
    let annotations = metadata.annotations.iter();
    let words: Vec<_> = annotations
        .map(|(key, word)| format!("{key}={word}"))
        .collect();
    format!(
        "annotations of a ServiceExport are not written through federation; run `kubectl annotate \
         --overwrite serviceexport -n {} {} {}`",
        metadata.namespace(),
        metadata.name,
        words.join(" ")
    )
}

fn resource_of(kind: &'static str) -> Result<ApiResource, DeclareError> {
    match kind {
        "ServiceExport" => Ok(kinds::service_export()),
        "FailoverPolicy" => Ok(kinds::failover_policy()),
        other => Err(DeclareError::failed(
            PLACE,
            format!("a {other} is not declared through federation; apply it with kubectl"),
        )),
    }
}

fn elsewhere(kind: &'static str, found: &DynamicObject) -> DeclareError {
    let by: Vec<_> = found
        .metadata
        .managed_fields
        .iter()
        .flatten()
        .filter(|entry| entry.subresource.is_none())
        .filter_map(|entry| entry.manager.as_deref())
        .collect();
    let namespace = found.namespace().unwrap_or_default();
    let place = format!("{PLACE} by `{}`", by.join("`, `"));
    DeclareError::elsewhere(kind, &namespace, &found.name_any(), place)
}

fn place(kind: &str, namespace: &str, name: &str) -> String {
    format!("{PLACE}: {kind} {namespace}/{name}")
}

fn failed(error: kube::Error) -> DeclareError {
    DeclareError::failed(PLACE, error)
}

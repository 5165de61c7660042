//! Imports and conditions, written to the API server by server-side apply.
//!
//! What should be is compared with what the mirrors show, and only what differs is written. Of an
//! object that others own, only our fields are touched; an object that is not ours is never
//! changed as a whole, nor deleted.

mod render;
mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use futures_util::StreamExt as _;
use kube::Client;
use kube::api::{ApiResource, DynamicObject};
use linkspan_core::backend::{Applied, Removals, Sink, SinkError};
use linkspan_core::plan::Desired;
use linkspan_core::{Condition, ServiceKey};
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::kinds::{self, has_our_status, is_ours};
use crate::leader::Lead;
use crate::mirror::{Key, Mirror, Mirrored};
use crate::mirrors::Mirrors;
use write::{Outcome, Writer};

/// Writes under way at a time: enough to hide the round trip, few enough to leave the API server
/// to others.
const PARALLEL: usize = 8;
/// Rest after somebody else has changed what we write: with whom we disagree, we do not fight
/// faster than this.
const PATIENCE: Duration = Duration::from_secs(1);

/// The API server as a [`Sink`].
pub struct KubernetesSink {
    writer: Writer,
    mirrors: Mirrors,
    changes: Changes,
    /// When to look, after somebody else's change.
    due: Option<Instant>,
}

struct Changes {
    exports: watch::Receiver<Mirrored<DynamicObject>>,
    imports: watch::Receiver<Mirrored<DynamicObject>>,
    links: watch::Receiver<Mirrored<DynamicObject>>,
    policies: watch::Receiver<Mirrored<DynamicObject>>,
    namespaces: watch::Receiver<Mirrored<k8s_openapi::api::core::v1::Namespace>>,
}

/// One thing to do.
enum Task {
    /// Server-side apply of an object or its status.
    Apply {
        resource: ApiResource,
        mirror: Mirror<DynamicObject>,
        key: Key,
        status: bool,
        /// Whether fields may be taken from other managers.
        force: bool,
        body: Value,
    },
    Delete {
        object: Box<DynamicObject>,
    },
    /// Nothing can be done.
    Refuse(String, String),
}

impl KubernetesSink {
    /// Writes with this client what differs from what the mirrors show, while `lead` says so.
    #[must_use]
    pub fn new(client: Client, mirrors: Mirrors, lead: watch::Receiver<Lead>) -> Self {
        let changes = Changes {
            exports: mirrors.exports.subscribe(),
            imports: mirrors.imports.subscribe(),
            links: mirrors.links.subscribe(),
            policies: mirrors.policies.subscribe(),
            namespaces: mirrors.namespaces.subscribe(),
        };
        Self {
            writer: Writer::new(client, lead),
            mirrors,
            changes,
            due: None,
        }
    }

    fn tasks(&self, desired: &Desired, removals: Removals, now: SystemTime) -> Vec<Task> {
        let mut tasks = Vec::new();
        self.imports(desired, removals, now, &mut tasks);
        let exports = desired.export_conditions.iter();
        let exports = exports.map(|(key, of)| (key_of(key), of)).collect();
        let policies = desired.policy_conditions.iter();
        let policies = policies.map(|(key, of)| (key_of(key), of)).collect();
        let links = desired.link_conditions.iter();
        let links = links
            .map(|(id, of)| ((String::new(), id.to_string()), of))
            .collect();
        let kinds = [
            (kinds::service_export(), &self.mirrors.exports, exports),
            (kinds::failover_policy(), &self.mirrors.policies, policies),
            (kinds::cluster_link(), &self.mirrors.links, links),
        ];
        for (resource, mirror, wanted) in kinds {
            conditions(&resource, mirror, &wanted, now, &mut tasks);
        }
        tasks
    }

    fn imports(
        &self,
        desired: &Desired,
        removals: Removals,
        now: SystemTime,
        tasks: &mut Vec<Task>,
    ) {
        let mirrored = self.mirrors.imports.read();
        for (service, import) in &desired.imports {
            let key = key_of(service);
            // Which namespaces exist is the cluster's own business.
            if !self.can_hold_objects(&key.0) {
                continue;
            }
            let current = mirrored.objects.get(&key);
            if current.is_some_and(|of| !is_ours(of.metadata.labels.as_ref())) {
                let why =
                    "it is not managed by Linkspan; delete it, or the controller that wrote it";
                tasks.push(Task::Refuse(format!("ServiceImport {service}"), why.into()));
                continue;
            }
            let empty = Vec::new();
            let conditions = desired.import_conditions.get(service).unwrap_or(&empty);
            if let Some(body) = render::import(import, current.map(AsRef::as_ref)) {
                tasks.push(self.import_task(&key, false, current.is_some(), body));
            }
            if let Some(body) =
                render::import_status(import, conditions, current.map(AsRef::as_ref), now)
            {
                tasks.push(self.import_task(&key, true, true, body));
            }
        }
        if removals == Removals::Held {
            return;
        }
        let wanted: BTreeSet<_> = desired.imports.keys().map(key_of).collect();
        for (key, object) in &mirrored.objects {
            if !wanted.contains(key) && is_ours(object.metadata.labels.as_ref()) {
                tasks.push(Task::Delete {
                    object: Box::new(DynamicObject::clone(object)),
                });
            }
        }
    }

    fn import_task(&self, key: &Key, status: bool, force: bool, body: Value) -> Task {
        Task::Apply {
            resource: kinds::service_import(),
            mirror: self.mirrors.imports.clone(),
            key: key.clone(),
            status,
            force,
            body,
        }
    }

    fn can_hold_objects(&self, namespace: &str) -> bool {
        let mirrored = self.mirrors.namespaces.read();
        let found = mirrored.objects.get(&(String::new(), namespace.to_owned()));
        found.is_some_and(|namespace| namespace.metadata.deletion_timestamp.is_none())
    }

    async fn run(&self, tasks: Vec<Task>) -> Result<Applied, SinkError> {
        let mut applied = Applied::default();
        // An object's status can only be written after the object.
        let (objects, statuses): (Vec<_>, Vec<_>) = tasks
            .into_iter()
            .partition(|task| !matches!(task, Task::Apply { status: true, .. }));
        for part in [objects, statuses] {
            let mut outcomes = futures_util::stream::iter(part)
                .map(|task| self.one(task))
                .buffer_unordered(PARALLEL);
            while let Some(outcome) = outcomes.next().await {
                match outcome? {
                    Outcome::Written => applied.written += 1,
                    Outcome::Same => {}
                    Outcome::Refused(what, why) => applied.refused.push((what, why)),
                }
            }
        }
        Ok(applied)
    }

    async fn one(&self, task: Task) -> Result<Outcome, SinkError> {
        match task {
            Task::Refuse(what, why) => Ok(Outcome::Refused(what, why)),
            Task::Delete { object } => self.writer.delete(&self.mirrors.imports, *object).await,
            Task::Apply {
                resource,
                mirror,
                key,
                status,
                force,
                body,
            } => {
                let apply = write::Apply {
                    resource: &resource,
                    key: &key,
                    status,
                    force,
                };
                self.writer.apply(&mirror, apply, body).await
            }
        }
    }
}

/// Conditions of objects that others declare.
fn conditions(
    resource: &ApiResource,
    mirror: &Mirror<DynamicObject>,
    wanted: &BTreeMap<Key, &Vec<Condition>>,
    now: SystemTime,
    tasks: &mut Vec<Task>,
) {
    let mirrored = mirror.read();
    for (key, object) in &mirrored.objects {
        let conditions = wanted.get(key).map_or(&[][..], |of| of.as_slice());
        if conditions.is_empty() && !has_our_status(object) {
            continue;
        }
        if let Some(body) = render::conditions_status(resource, conditions, object, now) {
            tasks.push(Task::Apply {
                resource: resource.clone(),
                mirror: mirror.clone(),
                key: key.clone(),
                status: true,
                force: true,
                body,
            });
        }
    }
}

fn key_of(service: &ServiceKey) -> Key {
    (service.namespace.to_string(), service.name.to_string())
}

impl Sink for KubernetesSink {
    async fn apply(&mut self, desired: &Desired, removals: Removals) -> Result<Applied, SinkError> {
        if !self.mirrors.complete() {
            return Err(SinkError {
                what: "the Kubernetes API".to_owned(),
                source: "what is there could not be read yet".into(),
            });
        }
        let tasks = self.tasks(desired, removals, SystemTime::now());
        self.run(tasks).await
    }

    async fn disturbed(&mut self) {
        // Cancel-safe: what was heard is kept in `due` until it is told.
        if self.due.is_none() {
            let changes = &mut self.changes;
            tokio::select! {
                _ = changes.exports.changed() => {}
                _ = changes.imports.changed() => {}
                _ = changes.links.changed() => {}
                _ = changes.policies.changed() => {}
                _ = changes.namespaces.changed() => {}
            }
            self.due = Some(Instant::now() + PATIENCE);
        }
        if let Some(due) = self.due {
            sleep_until(due).await;
        }
        self.due = None;
    }
}

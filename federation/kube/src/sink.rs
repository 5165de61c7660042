//! Imports, what is derived from them, and conditions, written to the API server by server-side
//! apply.
//!
//! What should be is compared with what the mirrors show, and only what differs is written. Of an
//! object that others own, only our fields are touched; an object that is not ours is never
//! changed as a whole, nor deleted.

mod derived;
mod render;
mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use futures_util::StreamExt as _;
use futures_util::future::select_all;
use kube::Client;
use kube::api::{ApiResource, DynamicObject};
use linkspan_core::backend::{Applied, Removals, Sink, SinkError};
use linkspan_core::derived::derived_name;
use linkspan_core::plan::Desired;
use linkspan_core::{Condition, ServiceKey};
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::kinds::{self, has_our_status, is_ours};
use crate::leader::Lead;
use crate::mirror::{Key, Mirror};
use crate::mirrors::{Mirrors, Waker};
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
    /// What others may change of what we write.
    changes: Vec<Box<dyn Waker>>,
    /// When to look, after somebody else's change.
    due: Option<Instant>,
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
    /// What somebody else has put into an object of ours is taken out.
    Mend {
        resource: ApiResource,
        mirror: Mirror<DynamicObject>,
        key: Key,
        patch: Value,
    },
    Delete {
        resource: ApiResource,
        mirror: Mirror<DynamicObject>,
        object: Box<DynamicObject>,
    },
    /// Nothing can be done.
    Refuse(String, String),
}

impl KubernetesSink {
    /// Writes with this client what differs from what the mirrors show, while `lead` says so.
    #[must_use]
    pub fn new(client: Client, mirrors: Mirrors, lead: watch::Receiver<Lead>) -> Self {
        let changes = mirrors.wakers_of_written();
        Self {
            writer: Writer::new(client, lead),
            mirrors,
            changes,
            due: None,
        }
    }

    /// ServiceImports without their statuses.
    fn imports(&self, desired: &Desired) -> Vec<Task> {
        let mirrored = self.mirrors.imports.read();
        let mut tasks = Vec::new();
        for (service, import) in &desired.imports {
            let key = key_of(service);
            // Which namespaces exist is the cluster's own business.
            if !self.can_hold_objects(&key.0) {
                continue;
            }
            let current = mirrored.objects.get(&key).map(AsRef::as_ref);
            if is_foreign(current) {
                let why =
                    "it is not managed by Linkspan; delete it, or the controller that wrote it";
                tasks.push(Task::Refuse(format!("ServiceImport {service}"), why.into()));
                continue;
            }
            let derived = desired.derived.get(service);
            if let Some(body) = render::import(import, derived, current) {
                tasks.push(self.import_task(&key, false, current.is_some(), body));
            }
        }
        tasks
    }

    /// Services and EndpointSlices of imports that are there. With `hold`, nothing is taken from them.
    fn derived(&self, desired: &Desired, hold: bool) -> Vec<Task> {
        let imports = self.mirrors.imports.read();
        let (services, slices) = (
            self.mirrors.derived.read(),
            self.mirrors.derived_slices.read(),
        );
        let mut tasks = Vec::new();
        for (service, of) in &desired.derived {
            let (key, import) = (key_of(service), desired.imports.get(service));
            let owner = imports.objects.get(&key).map(AsRef::as_ref);
            let lives = |of: &&DynamicObject| of.metadata.deletion_timestamp.is_none();
            let owner = owner.filter(|of| !is_foreign(Some(of))).filter(lives);
            let (Some(import), Some(owner)) = (import, owner) else {
                continue;
            };
            let name = (key.0.clone(), derived_name(service));
            let current = services.objects.get(&name).map(AsRef::as_ref);
            let (resource, mirror) = (kinds::service(), self.mirrors.derived.clone());
            match derived::service(import, of, owner, current) {
                None => {}
                Some(derived::Write::Apply(body)) => tasks.push(Task::Apply {
                    resource,
                    mirror,
                    key: name,
                    status: false,
                    force: current.is_some(),
                    body,
                }),
                Some(derived::Write::Merge(patch)) => tasks.push(Task::Mend {
                    resource,
                    mirror,
                    key: name,
                    patch,
                }),
            }
            for slice in &of.slices {
                let name = (key.0.clone(), derived::slice_name(service, slice.0));
                let current = slices.objects.get(&name).map(AsRef::as_ref);
                if let Some(body) = derived::slice(service, slice, owner, current, hold) {
                    tasks.push(Task::Apply {
                        resource: kinds::endpoint_slice(),
                        mirror: self.mirrors.derived_slices.clone(),
                        key: name,
                        status: false,
                        force: current.is_some(),
                        body,
                    });
                }
            }
        }
        tasks
    }

    /// Statuses, for which the objects must be there.
    fn statuses(&self, desired: &Desired, now: SystemTime) -> Vec<Task> {
        let mut tasks = Vec::new();
        let mirrored = self.mirrors.imports.read();
        for (service, import) in &desired.imports {
            let key = key_of(service);
            let current = mirrored.objects.get(&key).map(AsRef::as_ref);
            if current.is_none() || is_foreign(current) {
                continue;
            }
            let derived = desired.derived.get(service);
            let conditions = desired.import_conditions.get(service);
            let conditions = conditions.map_or(&[][..], Vec::as_slice);
            if let Some(body) = render::import_status(import, derived, conditions, current, now) {
                tasks.push(self.import_task(&key, true, true, body));
            }
        }
        drop(mirrored);
        let exports = desired.export_conditions.iter();
        let exports = exports.map(|(key, of)| (key_of(key), of)).collect();
        let policies = desired.policy_conditions.iter();
        let policies = policies.map(|(key, of)| (key_of(key), of)).collect();
        let links = desired.link_conditions.iter();
        let links = links
            .map(|(id, of)| ((String::new(), id.to_string()), of))
            .collect();
        let kinds = [
            ("ServiceExport", kinds::service_export(), exports),
            ("FailoverPolicy", kinds::failover_policy(), policies),
            ("ClusterLink", kinds::cluster_link(), links),
        ];
        let mirrors = [
            &self.mirrors.exports,
            &self.mirrors.policies,
            &self.mirrors.links,
        ];
        for ((kind, resource, wanted), mirror) in kinds.into_iter().zip(mirrors) {
            let generation = |(namespace, name): &Key| {
                let name = (kind, namespace.clone(), name.clone());
                desired.generations.get(&name).copied()
            };
            conditions(&resource, mirror, &wanted, generation, now, &mut tasks);
        }
        tasks
    }

    /// What is ours and not desired: first what leads somewhere, last the imports that own it all.
    fn removals(&self, desired: &Desired) -> Vec<Task> {
        let derived = desired.derived.iter();
        let slices: BTreeSet<_> = derived
            .flat_map(|(service, of)| derived::slice_keys(service, of))
            .collect();
        let derived = desired.derived.keys();
        let services: BTreeSet<_> = derived
            .map(|service| (service.namespace.to_string(), derived_name(service)))
            .collect();
        let imports: BTreeSet<_> = desired.imports.keys().map(key_of).collect();
        let ours = |object: &DynamicObject| is_ours(object.metadata.labels.as_ref());
        let mut tasks = Vec::new();
        let mut remove = |resource: ApiResource,
                          mirror: &Mirror<DynamicObject>,
                          wanted: &BTreeSet<Key>,
                          is_ours: fn(&DynamicObject) -> bool| {
            for (key, object) in &mirror.read().objects {
                if !wanted.contains(key) && is_ours(object) {
                    tasks.push(Task::Delete {
                        resource: resource.clone(),
                        mirror: mirror.clone(),
                        object: Box::new(DynamicObject::clone(object)),
                    });
                }
            }
        };
        let mirrors = &self.mirrors;
        let is_derived = derived::is_derived;
        remove(
            kinds::endpoint_slice(),
            &mirrors.derived_slices,
            &slices,
            is_derived,
        );
        remove(kinds::service(), &mirrors.derived, &services, is_derived);
        remove(kinds::service_import(), &mirrors.imports, &imports, ours);
        tasks
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

    async fn run(&self, tasks: Vec<Task>, applied: &mut Applied) -> Result<(), SinkError> {
        let mut outcomes = futures_util::stream::iter(tasks)
            .map(|task| self.one(task))
            .buffer_unordered(PARALLEL);
        while let Some(outcome) = outcomes.next().await {
            match outcome? {
                Outcome::Written => applied.written += 1,
                Outcome::Same => {}
                Outcome::Refused(what, why) => applied.refused.push((what, why)),
            }
        }
        Ok(())
    }

    async fn one(&self, task: Task) -> Result<Outcome, SinkError> {
        match task {
            Task::Refuse(what, why) => Ok(Outcome::Refused(what, why)),
            Task::Delete {
                resource,
                mirror,
                object,
            } => self.writer.delete(&resource, &mirror, *object).await,
            Task::Mend {
                resource,
                mirror,
                key,
                patch,
            } => self.writer.mend(&resource, &mirror, &key, patch).await,
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
    generation: impl Fn(&Key) -> Option<i64>,
    now: SystemTime,
    tasks: &mut Vec<Task>,
) {
    let mirrored = mirror.read();
    for (key, object) in &mirrored.objects {
        let conditions = wanted.get(key).map_or(&[][..], |of| of.as_slice());
        if conditions.is_empty() && !has_our_status(object) {
            continue;
        }
        // That of which the plan was made: the object may have changed since.
        let of = generation(key);
        let body = render::conditions_status(resource, conditions, object, of, now);
        if let Some(body) = body {
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

/// Whether somebody else's import has the name.
fn is_foreign(current: Option<&DynamicObject>) -> bool {
    current.is_some_and(|of| !is_ours(of.metadata.labels.as_ref()))
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
        let hold = removals == Removals::Held;
        let mut applied = Applied::default();
        // Each needs what the one before has written.
        self.run(self.imports(desired), &mut applied).await?;
        self.run(self.derived(desired, hold), &mut applied).await?;
        let statuses = self.statuses(desired, SystemTime::now());
        self.run(statuses, &mut applied).await?;
        if !hold {
            self.run(self.removals(desired), &mut applied).await?;
        }
        Ok(applied)
    }

    async fn disturbed(&mut self) {
        // Cancel-safe: what was heard is kept in `due` until it is told.
        if self.due.is_none() {
            select_all(self.changes.iter_mut().map(|waker| waker.changed())).await;
            self.due = Some(Instant::now() + PATIENCE);
        }
        if let Some(due) = self.due {
            sleep_until(due).await;
        }
        self.due = None;
    }
}

//! Watched kinds as a [`Source`]: complete snapshots of what is declared in the cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::future::select_all;
use kube::ResourceExt as _;
use kube::api::DynamicObject;
use linkspan_core::backend::{Source, SourceError};
use linkspan_core::declared::{Declared, Links, ObjectName, Sourced, assemble};
use linkspan_core::servers::leave_out_unserved;
use linkspan_core::{Locality, OwnCluster};
use linkspan_resources::{Object, read_object};
use tokio::time::{Instant, sleep_until};

use crate::mirror::{Mirror, Trouble};
use crate::mirrors::{Mirrors, Waker};
use crate::servers;
use crate::service::{self, named_ports};

/// What changes within this time is one change: a rollout touches many objects at once.
const SETTLE: Duration = Duration::from_millis(50);
/// Where objects come from, in messages.
const ORIGIN: &str = "the API server";
const CLUSTER_LINK: &str = "ClusterLink";

/// The API server as a [`Source`].
pub struct KubernetesSource {
    own: OwnCluster,
    /// Where endpoints are of which nobody knows more.
    locality: Locality,
    mirrors: Mirrors,
    wakers: Vec<Box<dyn Waker>>,
    /// When to look, after a change.
    due: Option<Instant>,
    last: Option<Arc<Declared>>,
    /// What was given as the reason why there is no snapshot yet.
    told: Vec<Trouble>,
    /// Objects as they were when they were last good.
    good: Good,
}

/// What was read of all kinds.
#[derive(Default)]
struct Read {
    objects: Vec<Sourced>,
    problems: Vec<String>,
    refused: BTreeMap<ObjectName, String>,
    generations: BTreeMap<ObjectName, i64>,
    good: Good,
}

type Good = std::collections::BTreeMap<(&'static str, crate::mirror::Key), Object>;

impl KubernetesSource {
    /// Reads what the mirrors show. Endpoints of which nobody knows more are at `locality`.
    #[must_use]
    pub fn new(own: OwnCluster, locality: Locality, mirrors: Mirrors) -> Self {
        Self {
            own,
            locality,
            wakers: mirrors.wakers(),
            mirrors,
            due: Some(Instant::now()),
            last: None,
            told: Vec::new(),
            good: Good::new(),
        }
    }

    /// What is new since the last call, if anything is.
    fn look(&mut self) -> Option<Result<Arc<Declared>, SourceError>> {
        let troubles = self.mirrors.troubles();
        if !self.mirrors.complete() {
            let news = !troubles.is_empty() && troubles != self.told;
            self.told.clone_from(&troubles);
            return news.then(|| Err(unavailable(troubles)));
        }
        let mut declared = self.read();
        declared
            .problems
            .extend(troubles.iter().map(ToString::to_string));
        if self.last.as_deref() == Some(&declared) {
            return None;
        }
        let declared = Arc::new(declared);
        self.last = Some(Arc::clone(&declared));
        Some(Ok(declared))
    }

    fn read(&mut self) -> Declared {
        let mut read = Read::default();
        read.objects = self.read_services(&mut read.problems);
        let exports = ("ServiceExport", self.mirrors.exports.clone());
        let links = (CLUSTER_LINK, self.mirrors.links.clone());
        let policies = ("FailoverPolicy", self.mirrors.policies.clone());
        let mut links_in_doubt = false;
        for (kind, mirror) in [exports, links, policies] {
            let all = self.read_custom(kind, &mirror, &mut read);
            links_in_doubt |= kind == CLUSTER_LINK && !all;
        }
        self.good = read.good;
        let none = Links::new();
        let in_force = self.last.as_ref().map_or(&none, |last| &last.links);
        let mut declared = assemble(&self.own, in_force, read.objects);
        declared.problems.extend(read.problems);
        declared.refused.extend(read.refused);
        declared.generations = read.generations;
        declared.links_in_doubt |= links_in_doubt;
        let around = servers::surroundings(&self.mirrors, &self.locality, self.last.as_deref());
        let slices = self.mirrors.slices.read();
        let slices = slices.objects.values().map(AsRef::as_ref);
        let pods = self.mirrors.pods.read();
        servers::read(slices, &pods.objects, &around, &mut declared);
        drop(pods);
        leave_out_unserved(&mut declared);
        let derived = self.mirrors.derived.read();
        let derived = derived.objects.values().map(AsRef::as_ref);
        declared.clusterset_ips = derived.filter_map(service::clusterset_ips).collect();
        declared
    }

    fn read_services(&self, problems: &mut Vec<String>) -> Vec<Sourced> {
        let slices = self.mirrors.slices.read();
        let named = named_ports(slices.objects.values().map(AsRef::as_ref));
        drop(slices);
        let exported: BTreeSet<_> = self
            .mirrors
            .exports
            .read()
            .objects
            .keys()
            .cloned()
            .collect();
        let services = self.mirrors.services.read();
        let mut read_all = Vec::new();
        for (key, service) in &services.objects {
            let Some(read) = service::read(service, &named) else {
                continue;
            };
            // Whoever exports it must know; to the others it makes no difference.
            if exported.contains(key) {
                let (namespace, name) = key;
                let told = read.left_out.iter();
                problems.extend(told.map(|what| format!("Service {namespace}/{name}: {what}")));
            }
            read_all.push(sourced(
                Object::Service(read.service),
                SystemTime::UNIX_EPOCH,
            ));
        }
        read_all
    }

    /// An object that cannot be read is as it last was, with a problem. False where there is one.
    fn read_custom(
        &self,
        kind: &'static str,
        mirror: &Mirror<DynamicObject>,
        all: &mut Read,
    ) -> bool {
        let before = all.problems.len();
        let mirrored = mirror.read();
        for (key, object) in &mirrored.objects {
            let known = (kind, key.clone());
            let full_name = (kind, key.0.clone(), key.1.clone());
            if let Some(generation) = object.metadata.generation {
                all.generations.insert(full_name.clone(), generation);
            }
            let read = as_json(object).and_then(|json| {
                let (namespace, name) = key;
                let origin = match namespace.as_str() {
                    "" => format!("{kind} {name}"),
                    _ => format!("{kind} {namespace}/{name}"),
                };
                read_object(&origin, &json)
                    .map_err(|found| found.iter().map(ToString::to_string).collect())
            });
            let read = match read {
                Ok(read) => Some(read),
                Err(found) => {
                    all.refused.insert(full_name, found.join("; "));
                    all.problems.extend(found);
                    self.good.get(&known).cloned()
                }
            };
            if let Some(read) = read {
                all.good.insert(known, read.clone());
                all.objects.push(sourced(read, SystemTime::UNIX_EPOCH));
            }
        }
        all.problems.len() == before
    }
}

impl Source for KubernetesSource {
    async fn next(&mut self) -> Result<Arc<Declared>, SourceError> {
        // Cancel-safe: what was heard is kept in `due`, and cleared only together with the look.
        loop {
            if let Some(due) = self.due {
                sleep_until(due).await;
                self.due = None;
                if let Some(news) = self.look() {
                    return news;
                }
            }
            select_all(self.wakers.iter_mut().map(|waker| waker.changed())).await;
            self.due = Some(Instant::now() + SETTLE);
        }
    }
}

fn sourced(object: Object, created: SystemTime) -> Sourced {
    Sourced {
        object,
        origin: ORIGIN.to_owned(),
        created,
    }
}

fn as_json(object: &DynamicObject) -> Result<serde_json::Value, Vec<String>> {
    serde_json::to_value(object).map_err(|error| vec![format!("{}: {error}", object.name_any())])
}

fn unavailable(troubles: Vec<Trouble>) -> SourceError {
    let told: Vec<_> = troubles.iter().map(ToString::to_string).collect();
    SourceError::Unavailable {
        what: "the Kubernetes API".to_owned(),
        source: told.join("; ").into(),
    }
}

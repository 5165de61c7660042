//! All kinds that are read, each watched by a task of its own.

use std::sync::Arc;

use futures_util::future::{BoxFuture, FutureExt as _};
use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, DynamicObject};
use kube::{Client, Resource};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::kinds;
use crate::mirror::{Mirror, Mirrored, Trouble};
use crate::reads::{Reads, Whole};
use crate::seen::{SeenNode, SeenPod};

/// Everything but what we derive from imports.
const NOT_OURS: &str = "app.kubernetes.io/managed-by!=linkspan-federation";
/// What we derive from imports.
const OURS: &str = "app.kubernetes.io/managed-by=linkspan-federation";
/// The same of EndpointSlices, whose writers have a label of their own.
const SLICES_NOT_OURS: &str = "endpointslice.kubernetes.io/managed-by!=linkspan-federation";
const SLICES_OURS: &str = "endpointslice.kubernetes.io/managed-by=linkspan-federation";
/// Pods that may serve: those of jobs that are done have no address any more.
const NOT_DONE: &str = "status.phase!=Succeeded,status.phase!=Failed";

/// What the API server has, of all kinds that are read. The watches end with the last clone.
#[derive(Clone)]
pub struct Mirrors {
    pub(crate) services: Mirror<Service>,
    pub(crate) slices: Mirror<EndpointSlice>,
    pub(crate) exports: Mirror<DynamicObject>,
    pub(crate) imports: Mirror<DynamicObject>,
    pub(crate) links: Mirror<DynamicObject>,
    pub(crate) policies: Mirror<DynamicObject>,
    pub(crate) namespaces: Mirror<Namespace>,
    pub(crate) nodes: Mirror<SeenNode>,
    pub(crate) pods: Mirror<SeenPod>,
    /// Services and EndpointSlices that are derived from imports.
    pub(crate) derived: Mirror<DynamicObject>,
    pub(crate) derived_slices: Mirror<DynamicObject>,
    /// Aborts its tasks when dropped.
    _tasks: Arc<JoinSet<()>>,
}

/// A mirror of whatever kind.
trait Watched {
    fn complete(&self) -> bool;
    fn trouble(&self) -> Option<Trouble>;
    fn waker(&self) -> Box<dyn Waker>;
}

/// Something whose changes wake.
pub(crate) trait Waker: Send + Sync {
    /// Cancel-safe. Never ends where there will be no change any more.
    fn changed(&mut self) -> BoxFuture<'_, ()>;
}

impl<K: Send + Sync> Waker for watch::Receiver<Mirrored<K>> {
    fn changed(&mut self) -> BoxFuture<'_, ()> {
        async move {
            if Self::changed(self).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
        .boxed()
    }
}

impl<K> Watched for Mirror<K>
where
    K: Resource + Clone + PartialEq + std::fmt::Debug + Send + Sync + 'static,
{
    fn complete(&self) -> bool {
        self.read().complete
    }

    fn trouble(&self) -> Option<Trouble> {
        self.read().trouble.clone()
    }

    fn waker(&self) -> Box<dyn Waker> {
        Box::new(self.subscribe())
    }
}

impl Mirrors {
    /// Begins to watch. Needs a tokio runtime.
    #[must_use]
    pub fn watch(client: &Client) -> Self {
        let mut tasks = JoinSet::new();
        let tasks = &mut tasks;
        let custom = |resource| Api::<DynamicObject>::all_with(client.clone(), &resource);
        let whole = |resource| Whole::all(custom(resource));
        let pods = Api::all_with(client.clone(), &SeenPod::resource());
        let pods = Whole::with_fields(pods, NOT_DONE);
        let nodes = Whole::all(Api::all_with(client.clone(), &SeenNode::resource()));
        let services = Whole::labelled(all(client), NOT_OURS);
        let slices = Whole::labelled(all(client), SLICES_NOT_OURS);
        let derived = Whole::labelled(custom(kinds::service()), OURS);
        let derived_slices = Whole::labelled(custom(kinds::endpoint_slice()), SLICES_OURS);
        Self {
            services: mirror(tasks, services, "services", slim_service),
            slices: mirror(tasks, slices, "endpointslices", slim_slice),
            exports: mirror(
                tasks,
                whole(kinds::service_export()),
                "serviceexports",
                nothing,
            ),
            imports: mirror(
                tasks,
                whole(kinds::service_import()),
                "serviceimports",
                nothing,
            ),
            links: mirror(tasks, whole(kinds::cluster_link()), "clusterlinks", nothing),
            policies: mirror(
                tasks,
                whole(kinds::failover_policy()),
                "failoverpolicies",
                nothing,
            ),
            namespaces: mirror(tasks, Whole::all(all(client)), "namespaces", nothing),
            nodes: mirror(tasks, nodes, "nodes", slim_node),
            pods: mirror(tasks, pods, "pods", slim_pod),
            derived: mirror(tasks, derived, "services", nothing),
            derived_slices: mirror(tasks, derived_slices, "endpointslices", nothing),
            _tasks: Arc::new(std::mem::take(tasks)),
        }
    }

    fn all(&self) -> [&dyn Watched; 11] {
        [
            &self.services,
            &self.slices,
            &self.exports,
            &self.imports,
            &self.links,
            &self.policies,
            &self.namespaces,
            &self.nodes,
            &self.pods,
            &self.derived,
            &self.derived_slices,
        ]
    }

    /// Whether every kind was read completely at least once.
    pub(crate) fn complete(&self) -> bool {
        self.all().iter().all(|mirror| mirror.complete())
    }

    /// Why some kinds cannot be watched now; each reason once.
    pub(crate) fn troubles(&self) -> Vec<Trouble> {
        let mut troubles: Vec<Trouble> = Vec::new();
        for trouble in self.all().iter().filter_map(|mirror| mirror.trouble()) {
            if !troubles.contains(&trouble) {
                troubles.push(trouble);
            }
        }
        troubles
    }

    /// What wakes on a change of any kind.
    pub(crate) fn wakers(&self) -> Vec<Box<dyn Waker>> {
        self.all().iter().map(|mirror| mirror.waker()).collect()
    }

    /// What wakes on a change of a kind that we write to.
    pub(crate) fn wakers_of_written(&self) -> Vec<Box<dyn Waker>> {
        vec![
            self.exports.waker(),
            self.imports.waker(),
            self.links.waker(),
            self.policies.waker(),
            self.namespaces.waker(),
            self.derived.waker(),
            self.derived_slices.waker(),
        ]
    }
}

/// A mirror that a task of its own keeps up to date.
fn mirror<R>(
    tasks: &mut JoinSet<()>,
    reads: R,
    kind: &'static str,
    slim: fn(&mut R::Object),
) -> Mirror<R::Object>
where
    R: Reads,
{
    let mirror = Mirror::default();
    tasks.spawn(mirror.clone().follow(reads, kind, slim));
    mirror
}

fn all<K>(client: &Client) -> Api<K>
where
    K: Resource<DynamicType = ()>,
{
    Api::all(client.clone())
}

fn nothing<K>(_: &mut K) {}

fn slim_service(service: &mut Service) {
    service.status = None;
    service.metadata.annotations = None;
}

/// Of each endpoint, where it is and what it is worth.
fn slim_slice(slice: &mut EndpointSlice) {
    slice.metadata.annotations = None;
    for endpoint in &mut slice.endpoints {
        endpoint.addresses.truncate(1);
        endpoint.deprecated_topology = None;
        endpoint.hints = None;
    }
}

/// Two of its labels say where it is.
fn slim_node(node: &mut SeenNode) {
    node.metadata.annotations = None;
    if let Some(labels) = &mut node.metadata.labels {
        labels.retain(|name, _| [kinds::REGION, kinds::ZONE].contains(&name.as_str()));
    }
}

/// Which pod it is, and its labels.
fn slim_pod(pod: &mut SeenPod) {
    pod.metadata.annotations = None;
    pod.metadata.owner_references = None;
    pod.metadata.finalizers = None;
    pod.metadata.managed_fields = None;
}

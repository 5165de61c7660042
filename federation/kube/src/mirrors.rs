//! All kinds that are read, each watched by a task of its own.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, DynamicObject};
use kube::{Client, Resource};
use tokio::task::JoinSet;

use crate::kinds;
use crate::mirror::{Mirror, Trouble};

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
    /// Aborts its tasks when dropped.
    _tasks: Arc<JoinSet<()>>,
}

impl Mirrors {
    /// Begins to watch. Needs a tokio runtime.
    #[must_use]
    pub fn watch(client: &Client) -> Self {
        let mut tasks = JoinSet::new();
        let custom = |resource| Api::<DynamicObject>::all_with(client.clone(), &resource);
        let services = Mirror::default();
        tasks.spawn(
            services
                .clone()
                .follow(all(client), "services", slim_service),
        );
        let slices = Mirror::default();
        tasks.spawn(
            slices
                .clone()
                .follow(all(client), "endpointslices", slim_slice),
        );
        let namespaces = Mirror::default();
        tasks.spawn(
            namespaces
                .clone()
                .follow(all(client), "namespaces", nothing),
        );
        let mut dynamic = |resource, kind| {
            let mirror = Mirror::default();
            tasks.spawn(mirror.clone().follow(custom(resource), kind, nothing));
            mirror
        };
        Self {
            exports: dynamic(kinds::service_export(), "serviceexports"),
            imports: dynamic(kinds::service_import(), "serviceimports"),
            links: dynamic(kinds::cluster_link(), "clusterlinks"),
            policies: dynamic(kinds::failover_policy(), "failoverpolicies"),
            services,
            slices,
            namespaces,
            _tasks: Arc::new(tasks),
        }
    }

    /// Whether every kind was read completely at least once.
    pub(crate) fn complete(&self) -> bool {
        self.services.read().complete
            && self.slices.read().complete
            && self.exports.read().complete
            && self.imports.read().complete
            && self.links.read().complete
            && self.policies.read().complete
            && self.namespaces.read().complete
    }

    /// Why some kinds cannot be watched now.
    pub(crate) fn troubles(&self) -> Vec<Trouble> {
        let all = [
            self.services.read().trouble.clone(),
            self.slices.read().trouble.clone(),
            self.exports.read().trouble.clone(),
            self.imports.read().trouble.clone(),
            self.links.read().trouble.clone(),
            self.policies.read().trouble.clone(),
            self.namespaces.read().trouble.clone(),
        ];
        all.into_iter().flatten().collect()
    }
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

/// Only which number a named port has is read.
fn slim_slice(slice: &mut EndpointSlice) {
    slice.endpoints.clear();
    slice.metadata.annotations = None;
}

//! What this cluster itself has: which workloads serve which of its Services.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Known, by_locality};
use crate::capacity::Listed;
use crate::declared::{Declared, DeclaredService};
use crate::model::{Endpoint, EndpointId, Export, Locality, ServiceKey};
use crate::peer::Now;
use crate::servers::DeclaredServer;
use crate::workloads::{Registration, Workloads};

/// Which workloads each declared service selects.
pub(super) struct Selection<'a> {
    declared: &'a Declared,
    by_service: BTreeMap<&'a ServiceKey, Vec<&'a Registration>>,
    /// The endpoint ids of all workloads, also of those that are silent.
    meshed: BTreeSet<EndpointId>,
}

impl<'a> Selection<'a> {
    /// Looks at each service only beside the workloads of its namespace.
    pub(super) fn new(declared: &'a Declared, workloads: &'a Workloads) -> Self {
        let mut by_namespace: BTreeMap<&str, Vec<&Registration>> = BTreeMap::new();
        for workload in workloads.counting() {
            by_namespace
                .entry(&workload.namespace)
                .or_default()
                .push(workload);
        }
        let select = |service: &DeclaredService| {
            let candidates = by_namespace
                .get(service.key.namespace.as_str())
                .into_iter()
                .flatten();
            candidates
                .filter(|w| service.selects(&w.namespace, &w.labels))
                .copied()
                .collect()
        };
        let services = declared.services.iter();
        // Only beside servers does it matter.
        let known = workloads.iter().filter(|_| !declared.servers.is_empty());
        Self {
            declared,
            by_service: services
                .map(|(key, service)| (key, select(service)))
                .collect(),
            meshed: known.map(|of| of.registration.endpoint_id()).collect(),
        }
    }

    /// The servers of a service that have no sidecar. Whoever has registered has one, however it is
    /// declared, and is not called in plain text while that is silent.
    pub(super) fn servers(
        &self,
        service: &ServiceKey,
    ) -> impl Iterator<Item = &'a DeclaredServer> + use<'a, '_> {
        let servers = self.declared.servers_of(service).iter();
        servers.filter(|server| !self.meshed.contains(&server.id))
    }

    /// The workloads of a service.
    pub(super) fn of(&self, service: &ServiceKey) -> &[&'a Registration] {
        self.by_service.get(service).map_or(&[], Vec::as_slice)
    }

    /// Every service with its workloads.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&'a ServiceKey, &[&'a Registration])> {
        self.by_service
            .iter()
            .map(|(key, workloads)| (*key, workloads.as_slice()))
    }

    /// What each locality lists.
    pub(super) fn listed(&self) -> Listed {
        self.iter()
            .map(|(key, workloads)| {
                let listed = count_localities(workloads, self.servers(key));
                (key.clone(), listed)
            })
            .collect()
    }
}

fn count_localities<'a>(
    workloads: &[&'a Registration],
    servers: impl Iterator<Item = &'a DeclaredServer>,
) -> BTreeMap<Locality, u32> {
    // One that is replaced must not be missed as long as what was there at most is remembered.
    let staying = servers.filter(|server| !server.terminating);
    let of_servers = staying.map(|server| &server.locality);
    by_locality(
        workloads
            .iter()
            .map(|workload| &workload.locality)
            .chain(of_servers),
    )
}

/// What this cluster itself has of a declared service.
pub(super) struct Local<'a> {
    pub(super) service: &'a DeclaredService,
    /// With the host name of each.
    pub(super) endpoints: Vec<(Arc<Endpoint>, &'a str)>,
    pub(super) capacity: Vec<(Locality, u32)>,
    /// Set where the service may be exported and is.
    pub(super) export: Option<Arc<Export>>,
}

impl<'a> Local<'a> {
    /// Of a service that these workloads serve, and its servers without a sidecar.
    pub(super) fn new(
        known: &Known<'a>,
        service: &'a DeclaredService,
        selection: &Selection<'a>,
        now: Now,
    ) -> Self {
        let workloads = selection.of(&service.key);
        let servers = || selection.servers(&service.key);
        let listed = count_localities(workloads, servers());
        let capacity = known
            .high_water
            .expected(&service.key, &listed, now.instant);
        let declared = known.declared.exports.get(&service.key);
        let export = declared
            .zip(service.import_type)
            .map(|(declared, import_type)| {
                Arc::new(Export {
                    service: service.key.clone(),
                    ports: service.service_ports(),
                    import_type,
                    session_affinity: service.session_affinity,
                    created: declared.created,
                    capacity: capacity.clone(),
                    unmeshed_clients: declared.unmeshed_clients,
                })
            });
        let endpoints = workloads.iter().map(|workload| {
            (
                Arc::new(endpoint(known, workload)),
                workload.hostname.as_str(),
            )
        });
        let servers = servers().map(|server| {
            let endpoint = Arc::new(server.endpoint(known.own));
            (endpoint, server.hostname.as_str())
        });
        Self {
            service,
            endpoints: endpoints.chain(servers).collect(),
            capacity,
            export,
        }
    }
}

fn endpoint(known: &Known<'_>, workload: &Registration) -> Endpoint {
    Endpoint {
        id: workload.endpoint_id(),
        cluster: known.own.cluster.clone(),
        locality: workload.locality.clone(),
        identity: workload.identity.clone(),
        ready: workload.ready,
        weight: workload.weight,
        incarnation: workload.incarnation,
        address: Some(workload.address),
        labels: workload.labels.clone(),
    }
}

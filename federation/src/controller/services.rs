//! What is offered by whom, for the operator: exports, imports, and endpoints by cluster and zone.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::{SystemTime, UNIX_EPOCH},
};

use linkspan_api::v1;
use linkspan_core::{
    ClusterId, Condition, Import, Locality, Service, ServiceKey, affinity_text, declared::Declared,
    imports::ImportPort, peer::Now, peers::PeersView,
};

use super::state::State;
use crate::convert::{wire_condition, wire_key, wire_locality, wire_port};

impl State {
    /// By the last plan, with the age of what each peer said as of now.
    pub(super) fn service_list(&self, now: Now) -> v1::ServicesResponse {
        let empty = Declared::default();
        let declared = self.declared.as_deref().unwrap_or(&empty);
        let desired = &self.last.desired;
        let peers = self.peers.view(now);
        let keys: BTreeSet<_> = desired
            .services
            .keys()
            .chain(desired.imports.keys())
            .chain(desired.export_conditions.keys())
            .collect();
        let one = |key: &ServiceKey| {
            let listing = Listing {
                key,
                own: &self.own.cluster,
                declared,
                import: desired.imports.get(key),
                service: desired.services.get(key).map(|service| &**service),
                peers: &peers,
            };
            v1::ServiceInfo {
                key: Some(wire_key(key)),
                declared: declared.services.contains_key(key),
                export: declared.exports.get(key).map(|export| v1::ExportInfo {
                    created_unix: unix(export.created),
                    conditions: conditions(desired.export_conditions.get(key)),
                }),
                import: listing.import.map(|import| v1::ImportInfo {
                    r#type: import.import_type.to_string(),
                    ports: import.ports.iter().map(wire_port).collect(),
                    session_affinity: affinity_text(import.session_affinity).into(),
                    conditions: conditions(desired.import_conditions.get(key)),
                    listeners: self.import_listeners(key),
                    unmeshed_clusters: import
                        .unmeshed_clients
                        .iter()
                        .map(ToString::to_string)
                        .collect(),
                }),
                clusters: listing.clusters(),
            }
        };
        v1::ServicesResponse {
            cluster: self.own.cluster.to_string(),
            services: keys.into_iter().map(one).collect(),
        }
    }

    /// Where clients without a sidecar reach an import.
    fn import_listeners(&self, key: &ServiceKey) -> Vec<v1::ImportPortInfo> {
        let serving: Vec<_> = self
            .gateways
            .counting()
            .filter_map(|gateway| gateway.registration.imports.as_ref())
            .collect();
        let ports = self.last.desired.import_ports.iter();
        let one = |(of, listen): (&ImportPort, &u16)| v1::ImportPortInfo {
            port: of.port.into(),
            listen: u32::from(*listen),
            open: serving
                .iter()
                .filter(|at| at.open.contains(listen))
                .map(|at| SocketAddr::new(at.address, *listen).to_string())
                .collect(),
            gateways: u32::try_from(serving.len()).unwrap_or(u32::MAX),
        };
        ports
            .filter(|(of, _)| of.service == *key)
            .map(one)
            .collect()
    }

    /// Where workloads of a cluster are, as far as is known here.
    pub(super) fn localities(&self, cluster: &ClusterId) -> BTreeSet<Locality> {
        let services = self.last.desired.services.values();
        let endpoints = services.flat_map(|service| &service.endpoints);
        let theirs = endpoints
            .filter(|endpoint| endpoint.cluster == *cluster)
            .map(|endpoint| endpoint.locality.clone());
        let ours = self
            .workloads
            .iter()
            .filter(|_| *cluster == self.own.cluster);
        let ours = ours.map(|workload| workload.registration.locality.clone());
        theirs.chain(ours).collect()
    }
}

/// One service, and where to look for what is known of it.
struct Listing<'a> {
    key: &'a ServiceKey,
    own: &'a ClusterId,
    declared: &'a Declared,
    import: Option<&'a Import>,
    service: Option<&'a Service>,
    peers: &'a PeersView,
}

impl Listing<'_> {
    fn clusters(&self) -> Vec<v1::ClusterService> {
        let exporters = self.import.iter().flat_map(|import| import.clusters.keys());
        let callable = self
            .service
            .iter()
            .flat_map(|service| service.clusters.keys());
        let clusters: BTreeSet<_> = exporters.chain(callable).collect();
        clusters
            .into_iter()
            .map(|cluster| self.cluster(cluster))
            .collect()
    }

    fn cluster(&self, cluster: &ClusterId) -> v1::ClusterService {
        let own = cluster == self.own;
        let peer = self.peers.get(cluster);
        let created = match peer {
            Some(peer) => peer.records.export(self.key).map(|export| export.created),
            None => self
                .declared
                .exports
                .get(self.key)
                .map(|export| export.created),
        };
        let exports = self
            .import
            .is_some_and(|import| import.clusters.contains_key(cluster));
        let offered = (self
            .service
            .and_then(|service| service.clusters.get(cluster)))
        .or_else(|| self.import.and_then(|import| import.clusters.get(cluster)));
        v1::ClusterService {
            cluster: cluster.to_string(),
            exports,
            created_unix: created.filter(|_| exports).map_or(0, unix),
            ports: offered
                .map(|of| of.ports.iter().map(|port| u32::from(*port)).collect())
                .unwrap_or_default(),
            usable: own || peer.is_some_and(|peer| peer.usable),
            stale: peer.is_some_and(|peer| peer.stale),
            age_millis: peer
                .and_then(|peer| peer.record_age)
                .map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
            localities: self.localities(cluster),
            unmeshed: u32::try_from(self.unmeshed(cluster)).unwrap_or(u32::MAX),
        }
    }

    fn unmeshed(&self, cluster: &ClusterId) -> usize {
        let endpoints = self.service.iter().flat_map(|service| &service.endpoints);
        endpoints
            .filter(|endpoint| endpoint.cluster == *cluster && !endpoint.is_meshed())
            .count()
    }

    fn localities(&self, cluster: &ClusterId) -> Vec<v1::LocalityService> {
        let mut counts: BTreeMap<Locality, v1::LocalityService> = BTreeMap::new();
        let mut of = |locality: &Locality, count: &dyn Fn(&mut v1::LocalityService)| {
            let entry = counts.entry(locality.clone()).or_default();
            entry.locality = Some(wire_locality(locality));
            count(entry);
        };
        let offered = self
            .service
            .and_then(|service| service.clusters.get(cluster));
        for (locality, expected) in offered.iter().flat_map(|of| &of.localities) {
            of(locality, &|entry| entry.expected = *expected);
        }
        let endpoints = self.service.iter().flat_map(|service| &service.endpoints);
        for endpoint in endpoints.filter(|endpoint| endpoint.cluster == *cluster) {
            of(&endpoint.locality, &|entry| {
                entry.total += 1;
                entry.ready += u32::from(endpoint.ready);
            });
        }
        counts.into_values().collect()
    }
}

fn conditions(of: Option<&Vec<Condition>>) -> Vec<v1::Condition> {
    of.into_iter().flatten().map(wire_condition).collect()
}

fn unix(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

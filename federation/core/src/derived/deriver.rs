//! From what should be to what stands for it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use linkspan_routing::{Place, UsablePeers};

use super::shares::{Parts, Shares};
use super::{Derived, Slice, SliceKey, port_names};
use crate::declared::Declared;
use crate::direct::{DirectEndpoint, Entry};
use crate::gateways::{GatewayRegistration, Gateways};
use crate::imports::ImportPort;
use crate::model::{
    ClusterId, Condition, ConditionStatus, Endpoint, EndpointId, Import, ImportType, Locality,
    OwnCluster, Service, ServiceKey, ServicePort, SpiffeId,
};
use crate::plan::Desired;

/// Most entries of one slice, as Kubernetes has it.
const MAX_ENTRIES: usize = 1_000;

/// Makes what stands for the imports of a cluster.
pub struct Deriver {
    own: OwnCluster,
    locality: Locality,
    shares: Shares,
}

/// Who is ready for a port, beside what each entry itself says.
struct Lead {
    home: bool,
    /// Gateways, in all slices that list them.
    away: bool,
}

/// What one import is derived from.
struct Of<'a> {
    import: &'a Import,
    service: &'a Service,
    declared: &'a Declared,
    desired: &'a Desired,
    gateways: &'a [&'a GatewayRegistration],
}

impl Deriver {
    /// For the callers of this cluster, which is mostly at `locality`.
    #[must_use]
    pub fn new(own: &OwnCluster, locality: Locality) -> Self {
        let place = Place {
            cluster: own.cluster.clone(),
            locality: locality.clone(),
        };
        Self {
            own: own.clone(),
            locality,
            shares: Shares::new(place),
        }
    }

    /// Puts into `desired` what stands for each import that has an address, and says in its condition
    /// what a caller without a sidecar cannot do. Asks for the ports of imports to be assigned.
    pub fn derive(
        &mut self,
        desired: &mut Desired,
        declared: &Declared,
        gateways: &Gateways,
        now: Instant,
    ) {
        let links = desired.links.iter();
        let peers: UsablePeers = links.map(|(peer, of)| (peer.clone(), of.usable)).collect();
        let gateways: Vec<_> = gateways
            .counting()
            .map(|gateway| gateway.registration)
            .filter(|registration| registration.imports.is_some())
            .collect();
        let mut derived = BTreeMap::new();
        let mut ports = BTreeSet::new();
        for (key, import) in &desired.imports {
            if import.import_type != ImportType::ClusterSetIP {
                continue;
            }
            let ips = declared.clusterset_ips.get(key).cloned();
            let mut of = Derived {
                ips: ips.unwrap_or_default(),
                // What we do not export does not change what others do.
                ports: import.ports.clone(),
                ..Derived::default()
            };
            if let Some(service) = led_by(import, desired, &self.own.cluster) {
                let of_import = Of {
                    import,
                    service,
                    declared,
                    desired,
                    gateways: &gateways,
                };
                let seen = self.seen_by_callers(&of_import);
                of.ports.clone_from(&service.ports);
                for port in &service.ports {
                    let of_port = ImportPort {
                        service: key.clone(),
                        port: port.port,
                    };
                    let parts = self.shares.of(&of_port, &seen, &peers, now);
                    self.slices(&of_import, port, &parts, &mut of.slices);
                    ports.insert(of_port);
                }
            }
            derived.insert(key.clone(), of);
        }
        self.shares.keep(|port| ports.contains(port));
        self.tell(desired, &derived);
        desired.derived = derived;
    }

    /// The service as callers without a sidecar have it: at home whatever the cluster's own proxies
    /// would lead to, elsewhere what admits them.
    fn seen_by_callers(&self, of: &Of<'_>) -> Service {
        let own = &self.own.cluster;
        let admits =
            |cluster: &ClusterId| cluster == own || of.import.unmeshed_clients.contains(cluster);
        let mut service = of.service.clone();
        service.clusters.retain(|cluster, _| admits(cluster));
        service
            .endpoints
            .retain(|endpoint| admits(&endpoint.cluster));
        let known: BTreeSet<_> = service
            .endpoints
            .iter()
            .filter(|endpoint| endpoint.cluster == *own)
            .map(|endpoint| endpoint.id.clone())
            .collect();
        let direct = of.direct().iter().map(|direct| self.endpoint(direct));
        let others: BTreeMap<_, _> = direct
            .filter(|endpoint| !known.contains(&endpoint.id))
            .map(|endpoint| (endpoint.id.clone(), endpoint))
            .collect();
        if let Some(capacity) = service.clusters.get_mut(own)
            && !others.is_empty()
        {
            let more = u32::try_from(others.len()).unwrap_or(u32::MAX);
            let mut localities = capacity.localities.iter_mut();
            match localities.find(|(locality, _)| *locality == self.locality) {
                Some((_, count)) => *count = count.saturating_add(more),
                None => capacity.localities.push((self.locality.clone(), more)),
            }
        }
        let others = others.into_values().map(std::sync::Arc::new);
        service.endpoints.extend(others);
        service
    }

    /// An endpoint of which only the cluster itself knows.
    fn endpoint(&self, direct: &DirectEndpoint) -> Endpoint {
        let pod = direct.entry.pod.as_ref();
        let uid = pod.map_or_else(|| format!("\0{}", direct.entry.ip), |pod| pod.uid.clone());
        Endpoint {
            id: EndpointId::from_uid(&uid),
            cluster: self.own.cluster.clone(),
            locality: self.locality.clone(),
            identity: SpiffeId::unmeshed_server(&self.own.trust_domain),
            ready: direct.entry.ready,
            weight: 1,
            incarnation: 0,
            address: None,
            labels: BTreeMap::new(),
        }
    }

    /// The slices of one port.
    fn slices(
        &self,
        of: &Of<'_>,
        port: &ServicePort,
        parts: &Parts,
        slices: &mut BTreeMap<SliceKey, Slice>,
    ) {
        let names = port_names(&of.service.ports);
        let remote = of.gateway_entries(port.port);
        let lead = self.lead(of, parts, remote.iter().any(|(_, entry)| entry.ready));
        let mut put = |key: SliceKey, remote: bool, entries: Vec<Entry>| {
            for (part, entries) in entries.chunks(MAX_ENTRIES).enumerate() {
                let part = u16::try_from(part).unwrap_or(u16::MAX);
                let slice = Slice {
                    port_name: names[&port.port].clone(),
                    app_protocol: port.app_protocol,
                    remote,
                    entries: entries.to_vec(),
                };
                slices.insert(
                    SliceKey {
                        part,
                        ..key.clone()
                    },
                    slice,
                );
            }
        };
        let exposing = |(_, capacity): &(&ClusterId, &crate::model::ClusterCapacity)| {
            capacity.ports.contains(&port.port)
        };
        for (cluster, _) in of.service.clusters.iter().filter(exposing) {
            let own = *cluster == self.own.cluster;
            let mut found: BTreeMap<(u16, bool), Vec<Entry>> = BTreeMap::new();
            let entries = match own {
                true => of.own_entries(port.port),
                false if of.import.unmeshed_clients.contains(cluster) => remote.clone(),
                false => Vec::new(),
            };
            let led = match own {
                true => lead.home,
                false => lead.away,
            };
            for (target, mut entry) in entries {
                entry.ready &= led;
                let family = (target, entry.ip.is_ipv6());
                found.entry(family).or_default().push(entry);
            }
            for ((target, ipv6), mut entries) in found {
                entries.sort();
                let key = SliceKey {
                    cluster: cluster.clone(),
                    port: port.port,
                    target,
                    ipv6,
                    part: 0,
                };
                put(key, !own, entries);
            }
        }
    }

    /// See the table in [`super`]. Without a gateway that is ready, everybody stays at home.
    fn lead(&self, of: &Of<'_>, parts: &Parts, gateways: bool) -> Lead {
        let own = &self.own.cluster;
        let home = parts.contains_key(own);
        let away = parts.keys().any(|of| of != own);
        if !away || !gateways {
            return Lead {
                home: true,
                away: false,
            };
        }
        let lead_home = of.import.unmeshed_clients.contains(own);
        Lead {
            home: home && !lead_home,
            away: true,
        }
    }

    /// What a caller without a sidecar cannot do, for people.
    fn tell(&self, desired: &mut Desired, derived: &BTreeMap<ServiceKey, Derived>) {
        for (key, of) in derived {
            let Some(conditions) = desired.import_conditions.get_mut(key) else {
                continue;
            };
            let import = &desired.imports[key];
            let denying: Vec<_> = import
                .clusters
                .keys()
                .filter(|of| **of != self.own.cluster && !import.unmeshed_clients.contains(*of))
                .map(ClusterId::as_str)
                .collect();
            let ready =
                |of: &&mut Condition| of.kind == "Ready" && of.status == ConditionStatus::True;
            for condition in conditions.iter_mut().filter(ready) {
                if !denying.is_empty() {
                    condition.message.push_str(&format!(
                        "; callers without a sidecar reach nothing of {}: there they are denied \
                         (annotation `{}` of the ServiceExport)",
                        denying.join(", "),
                        crate::declared::UNMESHED_CLIENTS
                    ));
                }
                if of.ips.is_empty() {
                    condition.status = ConditionStatus::False;
                    condition.reason = "Pending".to_owned();
                    condition.message.push_str(&format!(
                        "; it has no address yet: one comes with the Service that is derived from \
                         it, for which namespace `{}` must exist here",
                        key.namespace
                    ));
                }
            }
        }
    }
}

/// The service that callers here are led to; `None` where a Service of that name that is not exported
/// stands before it.
fn led_by<'a>(import: &Import, desired: &'a Desired, own: &ClusterId) -> Option<&'a Service> {
    let service = desired.services.get(&import.service)?;
    let shadowed = service.clusters.contains_key(own) && !import.clusters.contains_key(own);
    (!shadowed).then_some(&**service)
}

impl Of<'_> {
    fn direct(&self) -> &[DirectEndpoint] {
        let direct = self.declared.direct.get(&self.import.service);
        direct.map_or(&[], Vec::as_slice)
    }

    /// Our own endpoints for a Service port, with the port at which each listens.
    fn own_entries(&self, port: u16) -> Vec<(u16, Entry)> {
        let service = self.declared.services.get(&self.import.service);
        let ports = service.map_or(&[][..], |service| &service.ports);
        let Some(port) = ports.iter().find(|of| of.service_port.port == port) else {
            return Vec::new();
        };
        let name = port.service_port.name.as_deref().unwrap_or_default();
        let direct = self.direct().iter();
        direct
            .filter_map(|of| Some((*of.ports.get(name)?, of.entry.clone())))
            .collect()
    }

    /// Our gateways for a Service port, with the port at which they listen for it.
    fn gateway_entries(&self, port: u16) -> Vec<(u16, Entry)> {
        let of = ImportPort {
            service: self.import.service.clone(),
            port,
        };
        let Some(listen) = self.desired.import_ports.get(&of) else {
            return Vec::new();
        };
        let gateways = self.gateways.iter();
        gateways
            .filter_map(|gateway| {
                let imports = gateway.imports.as_ref()?;
                let open = imports.open.contains(listen);
                let entry = Entry {
                    ip: imports.address,
                    ready: open && gateway.ready && !gateway.draining,
                    serving: open && (gateway.ready || gateway.draining),
                    terminating: gateway.draining,
                    hostname: None,
                    node: None,
                    zone: None,
                    pod: None,
                };
                Some((*listen, entry))
            })
            .collect()
    }
}

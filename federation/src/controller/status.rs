//! How things are, for the operator.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use linkspan_api::v1;
use linkspan_core::{
    ClusterId, Condition, Service, ServiceKey, TrustDomain,
    declared::Declared,
    gateways::Gateway,
    join::{InvitationId, Invited, Joined, LinkBook, Tombstone},
    peer::{Now, PeerState, PeerView},
    workloads::Workload,
};

use linkspan_resources::ImportPattern;

use super::state::State;
use crate::{
    convert::{wire_address, wire_key},
    join::unix,
    version::VERSION,
};

impl State {
    /// Made from what is owned here, at this moment.
    pub(super) fn status(&self, now: Now) -> v1::StatusResponse {
        let empty = Declared::default();
        let declared = self.declared.as_deref().unwrap_or(&empty);
        let peers = self.peers.view(now);
        let book = Arc::clone(&self.book.borrow());
        let uptime = now.instant.saturating_duration_since(self.started.instant);
        v1::StatusResponse {
            cluster: self.own.cluster.to_string(),
            clusterset: self.own.clusterset.clone(),
            trust_domain: self.own.trust_domain.to_string(),
            version: VERSION.into(),
            uptime_seconds: uptime.as_secs(),
            links: peers
                .iter()
                .map(|(cluster, peer)| self.link(cluster, peer))
                .collect(),
            services: self.services(declared),
            gateways: self
                .gateways
                .iter()
                .filter(|g| g.presence.counts())
                .map(gateway)
                .collect(),
            workloads: self.workloads.iter().map(workload).collect(),
            problems: problems(declared, &book)
                .into_iter()
                .chain(self.troubles.list())
                .collect(),
            tombstones: book.tombstones().map(tombstone).collect(),
            invitations: book
                .invitations()
                .filter(|(_, invited)| invited.is_open() && invited.expires() > now.wall)
                .map(invitation)
                .collect(),
        }
    }

    fn link(&self, cluster: &ClusterId, peer: &PeerView) -> v1::LinkStatus {
        let tunnel = self.gateways.summary(cluster);
        let mut problems = peer.problems.clone();
        if let Some(trouble) = self.links.trouble(cluster)
            && peer.state != PeerState::Live
            && problems.is_empty()
        {
            problems.push(trouble.to_owned());
        }
        if tunnel.gateways_up == 0
            && self.gateways.removals(cluster).next().is_some()
            && !self.last.removed.contains_key(cluster)
        {
            problems.push(of_another(cluster));
        }
        let book = Arc::clone(&self.book.borrow());
        let joined = book.joined(cluster, &peer.link.trust_domain);
        let until = joined.and_then(Joined::pending_until);
        let planned = self.last.desired.links.get(cluster);
        v1::LinkStatus {
            cluster: cluster.to_string(),
            trust_domain: peer.link.trust_domain.to_string(),
            state: peer.state.to_string(),
            usable: peer.usable && !peer.link.pending,
            gateways_up: tunnel.gateways_up,
            connections: tunnel.connections,
            rtt_micros: u64::try_from(tunnel.rtt.as_micros()).unwrap_or(u64::MAX),
            epoch: peer.epoch,
            records: u32::try_from(peer.records.len()).unwrap_or(u32::MAX),
            record_age_millis: peer
                .record_age
                .map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
            problems,
            pending: peer.link.pending,
            pending_until_unix: until.map_or(0, unix),
            since_unix: joined.map_or(0, |joined| unix(joined.since())),
            addresses: planned
                .map_or(&peer.link.addresses, |planned| &planned.addresses)
                .iter()
                .map(wire_address)
                .collect(),
            imports: imports(peer),
        }
    }

    /// By the last plan, which follows the last input at once or within some 50 ms.
    fn services(&self, declared: &Declared) -> Vec<v1::ServiceStatus> {
        let desired = &self.last.desired;
        let keys: BTreeSet<_> = desired
            .services
            .keys()
            .chain(desired.export_conditions.keys())
            .collect();
        let one = |key: &ServiceKey| v1::ServiceStatus {
            key: Some(wire_key(key)),
            declared: declared.services.contains_key(key),
            exported: declared.exports.contains_key(key),
            conditions: conditions("ServiceExport", &desired.export_conditions, key)
                .chain(conditions("ServiceImport", &desired.import_conditions, key))
                .collect(),
            clusters: desired
                .services
                .get(key)
                .map(|of| clusters(of))
                .unwrap_or_default(),
        };
        keys.into_iter().map(one).collect()
    }
}

/// What is wrong with what is declared, and links that were made and are declared nowhere.
fn problems(declared: &Declared, book: &LinkBook) -> Vec<String> {
    let lost = book.links().filter(|(cluster, joined)| {
        !joined.is_removing() && !declared.links.contains_key(*cluster)
    });
    let lost = lost.map(|(cluster, _)| {
        format!(
            "the link to `{cluster}` was made by invitation and is not declared; accept the \
             invitation again, or forget the link (`linkspan link remove {cluster}`)"
        )
    });
    declared.problems.iter().cloned().chain(lost).collect()
}

/// What the peer says cannot be told to be about this link; so nothing is done about it.
fn of_another(cluster: &ClusterId) -> String {
    format!(
        "`{cluster}` says that it has removed a link to this cluster, but not of which one this is: \
         it names another invitation, or this one is new. If nothing connects, remove this side, \
         too (`linkspan link remove {cluster}`)"
    )
}

fn imports(peer: &PeerView) -> Vec<String> {
    let default = [ImportPattern::default()];
    let patterns = peer.link.imports.patterns.as_deref().unwrap_or(&default);
    let text = |of: &ImportPattern| format!("{}/{}", of.namespace, of.name);
    patterns.iter().map(text).collect()
}

fn tombstone((domain, of): (&TrustDomain, &Tombstone)) -> v1::TombstoneStatus {
    v1::TombstoneStatus {
        cluster: of.cluster.to_string(),
        trust_domain: domain.to_string(),
        until_unix: unix(of.until()),
    }
}

fn invitation((id, of): (&InvitationId, &Invited)) -> v1::InvitationStatus {
    let peer = of.offer().peer.as_ref();
    v1::InvitationStatus {
        id: id.to_string(),
        peer: peer.map(ToString::to_string).unwrap_or_default(),
        expires_unix: unix(of.expires()),
    }
}

/// Each with the kind of object that it is of: exports and imports have types in common.
fn conditions<'a>(
    kind: &'a str,
    of: &'a BTreeMap<ServiceKey, Vec<Condition>>,
    key: &ServiceKey,
) -> impl Iterator<Item = String> + 'a {
    let conditions = of.get(key).into_iter().flatten();
    conditions.map(move |condition| format!("{kind} {condition}"))
}

fn clusters(service: &Service) -> Vec<v1::ClusterEndpoints> {
    let count = |cluster: &ClusterId| {
        let of = || {
            service
                .endpoints
                .iter()
                .filter(|endpoint| endpoint.cluster == *cluster)
        };
        v1::ClusterEndpoints {
            cluster: cluster.to_string(),
            ready: u32::try_from(of().filter(|endpoint| endpoint.ready).count())
                .unwrap_or(u32::MAX),
            total: u32::try_from(of().count()).unwrap_or(u32::MAX),
        }
    };
    service.clusters.keys().map(count).collect()
}

fn gateway(gateway: Gateway<'_>) -> v1::GatewayStatus {
    let said = gateway.registration;
    v1::GatewayStatus {
        replica: said.replica.clone(),
        egress_address: said.egress_address.to_string(),
        tunnel_addresses: said.tunnel_addresses.iter().map(wire_address).collect(),
        ready: said.ready,
        draining: said.draining,
        up: gateway
            .health
            .iter()
            .filter(|(_, h)| h.up)
            .map(|(id, _)| id.to_string())
            .collect(),
    }
}

fn workload(workload: Workload<'_>) -> v1::WorkloadStatus {
    let said = workload.registration;
    v1::WorkloadStatus {
        uid: said.uid.clone(),
        spiffe_id: said.identity.to_string(),
        address: said.address.to_string(),
        ready: said.ready && workload.presence.counts(),
        presence: workload.presence.text().into(),
    }
}

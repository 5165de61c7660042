//! Where the next request of a caller goes, and why: the balancer that sidecars run, shown the
//! records that discovery would send it.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use linkspan_api::v1;
use linkspan_core::{ClusterId, Locality, Service, ServiceKey};
use linkspan_dataplane::discover::Snapshot;
use linkspan_routing::{Moment, Place, Rehearsal, Share, UsablePeers, Why, rehearse};
use tonic::Status;

use crate::{
    controller::{Shown, World},
    convert::{wire_key, wire_locality},
    discovery::records::followed,
};

/// Stands for any sidecar; they differ only where a pool has more endpoints than one uses.
const SEED: u64 = 0;
/// Names listed in one message.
const NAMED: usize = 20;

/// A question, checked.
pub(super) struct Question {
    key: ServiceKey,
    port: u16,
    place: Place,
    without: BTreeSet<ClusterId>,
    notes: Vec<String>,
}

/// The cluster that a question is asked about: ours where it names none.
pub(super) fn cluster(asked: &v1::ExplainRequest, own: &ClusterId) -> Result<ClusterId, Status> {
    match asked.cluster.as_str() {
        "" => Ok(own.clone()),
        name => cluster_id(name),
    }
}

pub(super) fn cluster_id(name: &str) -> Result<ClusterId, Status> {
    name.parse()
        .map_err(|error| Status::invalid_argument(format!("cluster {name:?}: {error}")))
}

impl Question {
    /// Checks what is asked against what there is.
    pub(super) fn new(
        asked: &v1::ExplainRequest,
        key: ServiceKey,
        own: &ClusterId,
        world: &World,
        shown: &Shown,
    ) -> Result<Self, Status> {
        let cluster = cluster(asked, own)?;
        known_cluster(world, own, &cluster)?;
        let Some(service) = world.desired.services.get(&key) else {
            return Err(no_service(world, &key));
        };
        let mut notes = Vec::new();
        if cluster != *own {
            if !service.clusters.contains_key(&cluster) && !world.desired.imports.contains_key(&key)
            {
                return Err(Status::failed_precondition(format!(
                    "`{key}` is exported by nobody, so callers in `{cluster}` do not know it; \
                     export it first"
                )));
            }
            notes.push(format!(
                "as `{own}` sees it: `{cluster}` has failover policies and links of its own; \
                 ask its federation for what holds there"
            ));
        }
        let without = asked.without.iter().map(|name| {
            let id = cluster_id(name)?;
            known_cluster(world, own, &id).map(|()| id)
        });
        Ok(Self {
            port: port(asked, service, &mut notes)?,
            without: without.collect::<Result<_, _>>()?,
            place: Place {
                locality: locality(asked, &cluster, shown, &mut notes)?,
                cluster,
            },
            notes,
            key,
        })
    }

    /// Answers it, as of `now`.
    pub(super) fn answer(
        mut self,
        own: &ClusterId,
        world: &World,
        shown: Shown,
        now: Instant,
    ) -> v1::ExplainResponse {
        let exported = world.desired.imports.get(&self.key);
        let seen = |mut moment: Moment| {
            let (service, skipped) = as_discovered(&moment.service)?;
            for error in skipped {
                self.notes
                    .push(format!("a proxy would skip a record: {error}"));
            }
            moment.service = Arc::new(service);
            if self.place.cluster != *own {
                moment = from_elsewhere(moment, own, &self.place.cluster, |cluster| {
                    exported.is_some_and(|import| import.clusters.contains_key(cluster))
                });
            }
            Some(moment)
        };
        let moments = shown.past.moments().cloned();
        let moments: Vec<_> = moments.filter_map(seen).collect();
        let policy = moments.last().and_then(|last| last.service.policy.clone());
        let rehearsal = rehearse(
            self.place.clone(),
            self.port,
            SEED,
            &moments,
            &self.without,
            now,
        );
        self.note_limits(&rehearsal, shown.past.too_short_since(now));
        v1::ExplainResponse {
            key: Some(wire_key(&self.key)),
            port: self.port.into(),
            cluster: self.place.cluster.to_string(),
            locality: Some(wire_locality(&self.place.locality)),
            without: self.without.iter().map(ToString::to_string).collect(),
            policy: policy
                .map(|policy| policy.name.to_string())
                .unwrap_or_default(),
            shares: rehearsal.shares.iter().map(wire_share).collect(),
            refused: rehearsal.refused,
            refused_reason: rehearsal
                .refusal
                .map(|why| why.to_string())
                .unwrap_or_default(),
            notes: self.notes,
        }
    }

    fn note_limits(&mut self, rehearsal: &Rehearsal, too_short_since: Option<Duration>) {
        if let Some(since) = too_short_since {
            self.notes.push(format!(
                "changes more than {} s ago are forgotten; traffic that is held back because of \
                 them is not shown here, but at `/debug` of each sidecar",
                since.as_secs()
            ));
        }
        if rehearsal
            .shares
            .iter()
            .any(|share| share.why == Why::OutsideSubset)
        {
            let note =
                "each caller uses its own subset of many endpoints; another's may be elsewhere";
            self.notes.push(note.to_owned());
        }
    }
}

/// A service as a proxy here types the records that it is sent, and what it would skip.
fn as_discovered(
    service: &Service,
) -> Option<(Service, Vec<linkspan_dataplane::discover::RecordError>)> {
    let (snapshot, skipped) = Snapshot::of_records(followed(service));
    let typed = snapshot.services.get(&service.key)?;
    Some((Service::clone(typed), skipped))
}

/// What callers of another cluster see of it: exporters only; us as far as the link to us is
/// up; themselves always.
fn from_elsewhere(
    moment: Moment,
    own: &ClusterId,
    there: &ClusterId,
    exports: impl Fn(&ClusterId) -> bool,
) -> Moment {
    let mut service = Service::clone(&moment.service);
    service.clusters.retain(|cluster, _| exports(cluster));
    service
        .endpoints
        .retain(|endpoint| exports(&endpoint.cluster));
    let mut peers: UsablePeers = moment.peers.clone();
    let linked = peers.get(there).copied().unwrap_or(false);
    peers.insert(own.clone(), linked);
    Moment {
        service: Arc::new(service),
        peers,
        ..moment
    }
}

/// Whether a cluster is ours or linked.
pub(super) fn known_cluster(
    world: &World,
    own: &ClusterId,
    cluster: &ClusterId,
) -> Result<(), Status> {
    if cluster == own || world.desired.links.contains_key(cluster) {
        return Ok(());
    }
    let linked = world.desired.links.keys().map(ToString::to_string);
    let linked: Vec<_> = linked.take(NAMED).collect();
    Err(Status::invalid_argument(format!(
        "cluster `{cluster}` is not linked; there are `{own}` (this one) and {}",
        if linked.is_empty() {
            "no linked ones".to_owned()
        } else {
            linked.join(", ")
        }
    )))
}

/// That nobody knows a service, and which ones are known.
pub(super) fn no_service(world: &World, key: &ServiceKey) -> Status {
    let known = world.desired.services.keys().map(ToString::to_string);
    let known: Vec<_> = known.take(NAMED).collect();
    let known = if known.is_empty() {
        "none".to_owned()
    } else {
        known.join(", ")
    };
    Status::not_found(format!(
        "no service `{key}` is declared or imported here (there is: {known})"
    ))
}

fn port(
    asked: &v1::ExplainRequest,
    service: &Service,
    notes: &mut Vec<String>,
) -> Result<u16, Status> {
    let ports: Vec<_> = service.ports.iter().map(|port| port.port).collect();
    let all = || {
        ports
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(", ")
    };
    match asked.port {
        0 => {
            let first = ports.first().copied();
            if ports.len() > 1 {
                notes.push(format!(
                    "of the ports {} the first; choose with --port",
                    all()
                ));
            }
            first.ok_or_else(|| {
                Status::failed_precondition(format!("`{}` has no ports", service.key))
            })
        }
        wanted => ports
            .iter()
            .copied()
            .find(|port| u32::from(*port) == wanted)
            .ok_or_else(|| {
                Status::invalid_argument(format!(
                    "`{}` has no port {wanted}; it has {}",
                    service.key,
                    all()
                ))
            }),
    }
}

/// Where the caller is: as said in full; the region by the zone; or the only place there is.
fn locality(
    asked: &v1::ExplainRequest,
    cluster: &ClusterId,
    shown: &Shown,
    notes: &mut Vec<String>,
) -> Result<Locality, Status> {
    let known = || {
        let known = shown.localities.iter().map(ToString::to_string);
        known.take(NAMED).collect::<Vec<_>>().join(", ")
    };
    if asked.zone.is_empty() && asked.region.is_empty() {
        let mut localities = shown.localities.iter();
        return Ok(match (localities.next(), localities.next()) {
            (Some(only), None) => only.clone(),
            (Some(_), Some(_)) => {
                let note = format!(
                    "for a caller whose zone is not known; there are {}",
                    known()
                );
                notes.push(note);
                Locality::unknown()
            }
            (None, _) => Locality::unknown(),
        });
    }
    if !asked.region.is_empty() {
        return Ok(Locality::new(&asked.region, &asked.zone));
    }
    let there = |of: &&Locality| *of.zone == *asked.zone;
    let mut found = shown.localities.iter().filter(there);
    match (found.next(), found.next()) {
        (Some(only), None) => Ok(only.clone()),
        (Some(_), Some(_)) => Err(Status::invalid_argument(format!(
            "zone `{}` is in several regions of `{cluster}`: {}; write --from CLUSTER/REGION/ZONE",
            asked.zone,
            known()
        ))),
        (None, _) => Err(Status::invalid_argument(format!(
            "no workload of `{cluster}` is in zone `{}` (known: {}); write \
             --from CLUSTER/REGION/ZONE for another place",
            asked.zone,
            known()
        ))),
    }
}

fn wire_share(share: &Share) -> v1::ExplainedShare {
    let why = serde_json::to_value(share.why).unwrap_or_default();
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    v1::ExplainedShare {
        priority: number(share.priority),
        listed: share.listed.map_or(0, number),
        nearness: share.rank.to_string(),
        cluster: share.cluster.to_string(),
        locality: Some(wire_locality(&share.locality)),
        share: share.share,
        available: share.endpoints_available,
        expected: share.endpoints_expected,
        not_ready: share.endpoints_not_ready,
        ejected: share.endpoints_ejected,
        why: why["reason"].as_str().unwrap_or_default().to_owned(),
        reason: share.reason(),
    }
}

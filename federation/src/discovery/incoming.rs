//! What proxies say, checked and typed.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use linkspan_api::v1;
use linkspan_core::{
    Address, ClusterId, Locality, SYSTEM_NAMESPACE, ServiceKey, SpiffeId,
    gateways::{GatewayRegistration, ImportListeners, PeerHealth, Removed},
    workloads::Registration,
};
use tonic::Status;

/// Services that one proxy may follow: more than any application calls.
const MAX_SUBSCRIPTION: usize = 2_000;
/// Peers that one gateway may report.
const MAX_PEERS: usize = 1_000;
/// Addresses that one gateway may advertise.
const MAX_ADDRESSES: usize = 16;

/// A workload's registration. Namespace and service account must be those of `identity`.
pub(crate) fn workload(
    said: v1::WorkloadRegistration,
    identity: &SpiffeId,
) -> Result<Registration, Status> {
    own_name(&said, identity)?;
    let address = said.address.parse().map_err(|_| {
        Status::invalid_argument(format!(
            "workload address is {:?}; give an IP address and a port",
            clip(&said.address)
        ))
    })?;
    Ok(Registration {
        uid: said.uid,
        identity: identity.clone(),
        namespace: said.namespace,
        labels: said.labels.into_iter().collect(),
        locality: locality(said.locality),
        address,
        ready: said.ready,
        weight: said.weight.max(1),
        incarnation: said.incarnation,
        hostname: said.hostname,
    })
}

fn own_name(said: &v1::WorkloadRegistration, identity: &SpiffeId) -> Result<(), Status> {
    let own = identity
        .workload_id()
        .filter(|id| id.namespace() != SYSTEM_NAMESPACE);
    let own = own.ok_or_else(|| {
        Status::permission_denied(format!("`{identity}` is not the identity of a workload"))
    })?;
    if own.namespace() == said.namespace && own.service_account() == said.service_account {
        return Ok(());
    }
    Err(Status::permission_denied(format!(
        "the certificate is that of `{identity}`, but the workload says namespace {:?} and \
         service account {:?}; use a join token of that identity, or correct the configuration",
        clip(&said.namespace),
        clip(&said.service_account)
    )))
}

fn locality(said: Option<v1::Locality>) -> Locality {
    said.map_or_else(Locality::unknown, |said| {
        Locality::new(&said.region, &said.zone)
    })
}

/// A gateway's registration; that the caller is a gateway was checked before.
pub(crate) fn gateway(said: v1::GatewayRegistration) -> Result<GatewayRegistration, Status> {
    let egress_address = said.egress_address.parse().map_err(|_| {
        Status::invalid_argument(format!(
            "gateway egress address is {:?}; give an IP address and a port",
            clip(&said.egress_address)
        ))
    })?;
    if said.tunnel_addresses.len() > MAX_ADDRESSES {
        return Err(Status::invalid_argument(format!(
            "a gateway advertises at most {MAX_ADDRESSES} tunnel addresses"
        )));
    }
    let tunnel_addresses = said.tunnel_addresses.into_iter().map(address);
    Ok(GatewayRegistration {
        replica: said.replica,
        egress_address,
        tunnel_addresses: tunnel_addresses.collect::<Result<_, _>>()?,
        ready: said.ready,
        draining: said.draining,
        imports: said.imports.map(imports).transpose()?,
    })
}

fn imports(said: v1::ImportListeners) -> Result<ImportListeners, Status> {
    let address = said.address.parse().map_err(|_| {
        Status::invalid_argument(format!(
            "gateway imports address is {:?}; give an IP address",
            clip(&said.address)
        ))
    })?;
    // Numbers that are no port are none of ours.
    let ports = |said: Vec<u32>| said.into_iter().filter_map(|port| u16::try_from(port).ok());
    Ok(ImportListeners {
        address,
        open: ports(said.open).collect(),
        failed: ports(said.failed).collect(),
    })
}

fn address(said: v1::GatewayAddress) -> Result<Address, Status> {
    match (said.host.len(), u16::try_from(said.port)) {
        (1..=253, Ok(port)) if port > 0 => Ok(Address {
            host: said.host,
            port,
        }),
        _ => Err(Status::invalid_argument(format!(
            "tunnel address {:?} port {} cannot be dialled",
            clip(&said.host),
            said.port
        ))),
    }
}

/// The complete set of peers as a gateway sees them; ids that are none are left out.
pub(crate) fn health(said: v1::LinkHealth) -> BTreeMap<ClusterId, PeerHealth> {
    let one = |peer: v1::PeerHealth| {
        let health = PeerHealth {
            up: peer.up,
            connections: peer.connections,
            rtt: Duration::from_micros(peer.rtt_micros),
            removed: removed(&peer),
        };
        peer.cluster.parse().ok().map(|cluster| (cluster, health))
    };
    said.peers
        .into_iter()
        .take(MAX_PEERS)
        .filter_map(one)
        .collect()
}

/// A word that names nothing that can be meant is none.
fn removed(peer: &v1::PeerHealth) -> Option<Removed> {
    let invitation = match peer.removed_invitation.as_str() {
        "" => None,
        id => Some(id.parse().ok()?),
    };
    peer.removed.then_some(Removed { invitation })
}

/// The services that a proxy follows.
pub(crate) fn subscription(said: v1::Subscription) -> Result<BTreeSet<ServiceKey>, Status> {
    if said.services.len() > MAX_SUBSCRIPTION {
        return Err(Status::invalid_argument(format!(
            "a proxy follows at most {MAX_SUBSCRIPTION} services, not {}",
            said.services.len()
        )));
    }
    let key = |key: v1::ServiceKey| {
        ServiceKey::new(&key.namespace, &key.name)
            .map_err(|error| Status::invalid_argument(format!("subscription: {error}")))
    };
    said.services.into_iter().map(key).collect()
}

/// Enough of somebody's text to recognize it.
pub(super) fn clip(text: &str) -> String {
    text.chars().take(80).collect()
}

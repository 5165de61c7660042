//! May this peer have this stream, and where does it end? The checks of the ingress, pure.
//!
//! The peer learns only the code; the rule that refused is for our own operator.

use std::cell::OnceCell;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use linkspan_api::v1::StreamCode;
use linkspan_dataplane::discover::Snapshot;
use linkspan_dataplane::target::{Target, TargetName};
use linkspan_routing::{ClusterId, ClusterLabel, Endpoint, EndpointId};

use crate::own::OwnParts;
use crate::tunnel::addresses::{is_local_only, is_no_host};
use crate::tunnel::open::Opening;
use crate::tunnel::plan::Purpose;

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Caller<'a> {
    /// The peer, as its certificate proved.
    pub cluster: &'a ClusterId,
    /// What its connection is for.
    pub purpose: Purpose,
}

/// Which addresses may be dialled for peers.
#[derive(Clone, Debug)]
pub struct Reach {
    /// Endpoints on loopback and link-local addresses may be dialled: everything on one machine.
    pub allow_loopback: bool,
    /// Never dialled, whatever is registered: our own parts.
    pub own: OwnParts,
}

/// Where an admitted stream ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admitted {
    /// At one of these endpoints; exactly one where the peer named it.
    Endpoints(Vec<SocketAddr>),
    /// Here, where calls for this server without a sidecar are taken.
    Server(EndpointId),
    /// At our own federation.
    Federation,
}

/// A refusal: the code is for the peer, the rule for our operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{rule}")]
pub struct Refusal {
    /// What the peer is told.
    pub code: StreamCode,
    /// Which rule refused.
    pub rule: &'static str,
}

const fn refuse(code: StreamCode, rule: &'static str) -> Refusal {
    Refusal { code, rule }
}

/// Judges a stream opening by the newest snapshot. `server_name` is that of the inner ClientHello.
///
/// # Errors
/// The refusal.
pub fn admit(
    opening: &Opening,
    server_name: Option<&str>,
    caller: Caller<'_>,
    own: &ClusterLabel,
    snapshot: &Snapshot,
    reach: &Reach,
) -> Result<Admitted, Refusal> {
    let inner = server_name.and_then(|name| name.parse::<TargetName>().ok());
    if inner.as_ref() != Some(&opening.target) {
        let rule = "the inner server name is not the target of the stream opening";
        return Err(refuse(StreamCode::BadRequest, rule));
    }
    match &opening.target {
        TargetName::Federation(cluster) => {
            is_here(cluster, own, opening)?;
            for_federation(caller)
        }
        TargetName::Service(target) => {
            is_here(&target.cluster, own, opening)?;
            for_service(target, caller, snapshot, reach)
        }
    }
}

/// Streams for other clusters would have to be relayed, which gateways do not do.
fn is_here(cluster: &ClusterLabel, own: &ClusterLabel, opening: &Opening) -> Result<(), Refusal> {
    if cluster == own {
        return Ok(());
    }
    Err(match opening.hop_limit {
        0 => refuse(
            StreamCode::BadRequest,
            "the target is in another cluster, and no relay is allowed",
        ),
        _ => refuse(
            StreamCode::NoTunnel,
            "the target is in another cluster; gateways do not relay",
        ),
    })
}

fn for_federation(caller: Caller<'_>) -> Result<Admitted, Refusal> {
    match caller.purpose {
        Purpose::Sync => Ok(Admitted::Federation),
        Purpose::Data => {
            let rule = "federation can be reached on the sync connection only";
            Err(refuse(StreamCode::Denied, rule))
        }
    }
}

fn for_service(
    target: &Target,
    caller: Caller<'_>,
    snapshot: &Snapshot,
    reach: &Reach,
) -> Result<Admitted, Refusal> {
    if caller.purpose == Purpose::Sync {
        let rule = "services cannot be reached on the sync connection";
        return Err(refuse(StreamCode::Denied, rule));
    }
    let exported = snapshot
        .exported
        .iter()
        .find(|exported| exported.key == target.service);
    let exported = exported.filter(|exported| exported.peers.contains(caller.cluster));
    let Some(exported) = exported else {
        let rule = "the service is not exported to this peer";
        return Err(refuse(StreamCode::NotExported, rule));
    };
    if !exported.ports.contains(&target.port) {
        return Err(refuse(
            StreamCode::NoSuchPort,
            "the service has no such port",
        ));
    }
    match server(target, snapshot, reach) {
        Some(server) => Ok(Admitted::Server(server?)),
        None => choose(target, &exported.endpoints, allowed(snapshot, reach)),
    }
}

/// Judges a call of somebody in this cluster to an endpoint of it. Who it is and whether he may, the
/// inner TLS tells; here it only matters that it is one for which gateways take calls.
///
/// # Errors
/// The refusal.
pub fn admit_local(
    target: &Target,
    snapshot: &Snapshot,
    reach: &Reach,
) -> Result<EndpointId, Refusal> {
    let rule = "the target is in our own cluster, and no server without a sidecar";
    let code = match target.endpoint {
        // The caller is to choose another one.
        Some(_) => StreamCode::EndpointGone,
        None => StreamCode::BadRequest,
    };
    server(target, snapshot, reach).unwrap_or(Err(refuse(code, rule)))
}

/// If a target names a server without a sidecar: whether it can have the call.
fn server(
    target: &Target,
    snapshot: &Snapshot,
    reach: &Reach,
) -> Option<Result<EndpointId, Refusal>> {
    let id = target.endpoint.as_ref()?;
    let mut servers = snapshot.servers.iter();
    let server = servers.find(|server| server.id == *id && server.service == target.service)?;
    let refused = |code, rule| Some(Err(refuse(code, rule)));
    if !server.ready {
        return refused(StreamCode::EndpointGone, "the server is not ready");
    }
    match server.addresses.get(&target.port) {
        None => refused(StreamCode::NoSuchPort, "the server has no such port"),
        Some(address) if !allowed(snapshot, reach)(*address) => {
            refused(StreamCode::Denied, NEVER_DIALLED)
        }
        Some(_) => Some(Ok(id.clone())),
    }
}

const NEVER_DIALLED: &str = "the endpoint's address is loopback, link-local or one of Linkspan's own \
                             parts; `allowLoopbackEndpoints: true` allows the first two";

/// Which addresses may be dialled.
pub(crate) fn allowed(snapshot: &Snapshot, reach: &Reach) -> impl Fn(SocketAddr) -> bool {
    let gateways = snapshot.gateways.iter();
    let siblings: Vec<_> = gateways.map(|gateway| gateway.egress).collect();
    // Made when it is first asked for: few addresses are where imports are.
    let imports: OnceCell<BTreeSet<u16>> = OnceCell::new();
    let listens = |snapshot: &Snapshot| snapshot.imports.iter().map(|of| of.listen).collect();
    move |address| {
        let is_import = |port| imports.get_or_init(|| listens(snapshot)).contains(&port);
        reach.allows(address, &siblings) && !reach.own.is_import(address, is_import, &siblings)
    }
}

fn choose<'a>(
    target: &Target,
    endpoints: impl IntoIterator<Item = &'a std::sync::Arc<Endpoint>>,
    allowed: impl Fn(SocketAddr) -> bool,
) -> Result<Admitted, Refusal> {
    let named = |endpoint: &&std::sync::Arc<Endpoint>| {
        target.endpoint.as_ref().is_none_or(|id| endpoint.id == *id)
    };
    let ready = endpoints
        .into_iter()
        .filter(named)
        .filter(|endpoint| endpoint.ready);
    let listed: Vec<SocketAddr> = ready.filter_map(|endpoint| endpoint.address).collect();
    if listed.is_empty() {
        let rule = "no such endpoint is listed and ready";
        return Err(refuse(StreamCode::EndpointGone, rule));
    }
    let (mut may, never): (Vec<_>, Vec<_>) =
        listed.into_iter().partition(|address| allowed(*address));
    if may.is_empty() {
        debug_assert!(!never.is_empty(), "a listed endpoint is in one of the two");
        return Err(refuse(StreamCode::Denied, NEVER_DIALLED));
    }
    may.dedup();
    Ok(Admitted::Endpoints(may))
}

impl Reach {
    /// Whether an endpoint's address may be dialled for a peer; `siblings` are the egress
    /// addresses of our cluster's gateways.
    #[must_use]
    pub fn allows(&self, address: SocketAddr, siblings: &[SocketAddr]) -> bool {
        let address = SocketAddr::new(address.ip().to_canonical(), address.port());
        let refused: fn(IpAddr) -> bool = if self.allow_loopback {
            is_no_host
        } else {
            is_local_only
        };
        let is_siblings = |egress: &SocketAddr| self.own.of_sibling(*egress, address);
        address.port() != 0
            && !refused(address.ip())
            && !self.own.contains(address)
            && !siblings.iter().any(is_siblings)
    }
}

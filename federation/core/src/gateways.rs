//! The registry of this cluster's own gateway replicas, and what they see of the peers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use crate::join::InvitationId;
use crate::model::{Address, ClusterId};
use crate::presence::{Heard, Presence, Registry, Session, Terms};

#[cfg(test)]
mod tests;

/// How long a replica counts that is silent on an open stream. A process that is gone has
/// no stream; one that is only slow must not take the peers with it.
pub const LEASE: Duration = Duration::from_secs(10);
/// How long a replica counts whose stream has ended: time to reconnect, and no more, since
/// a replica that is gone must not keep a peer usable.
pub const PARTED: Duration = Duration::from_secs(3);
/// How long a lapsed replica is still shown.
const KEEP_LAPSED: Duration = Duration::from_secs(60);
/// Most replicas kept.
const MAX_GATEWAYS: usize = 256;

/// What a replica says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayRegistration {
    /// Stable name of the replica.
    pub replica: String,
    /// Where sidecars connect.
    pub egress_address: SocketAddr,
    /// Where peers can dial it; may be empty.
    pub tunnel_addresses: Vec<Address>,
    /// Whether it takes streams.
    pub ready: bool,
    /// Whether it finishes what it has and takes nothing new.
    pub draining: bool,
    /// What it has open for clients without a sidecar; `None` where it serves none.
    pub imports: Option<ImportListeners>,
}

/// The per-import listeners of a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportListeners {
    /// Where clients reach it.
    pub address: IpAddr,
    /// Ports that accept connections.
    pub open: BTreeSet<u16>,
    /// Ports that it cannot open.
    pub failed: BTreeSet<u16>,
}

/// What a replica sees of one peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerHealth {
    /// At least one of its connections to the peer is not suspect.
    pub up: bool,
    /// Connections held, suspect ones included.
    pub connections: u32,
    /// Smoothed round-trip time of the best connection; zero if unknown.
    pub rtt: Duration,
    /// The peer's gateway said that it has removed a link.
    pub removed: Option<Removed>,
}

/// A peer's word that it has removed a link: which one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Removed {
    /// The invitation of which that link came; `None` where it was declared.
    pub invitation: Option<InvitationId>,
}

/// Why a replica's word is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GatewayError {
    /// The name is empty or too long.
    #[error("gateway replica is named {found:?}; use 1 to 63 characters")]
    Name {
        /// What it calls itself.
        found: String,
    },
    /// It has a newer stream.
    #[error(
        "gateway replica {replica:?} has connected again; where that was another process, \
         give each a `replica` of its own"
    )]
    Superseded {
        /// Its name.
        replica: String,
    },
    /// Too many replicas.
    #[error("this cluster has {MAX_GATEWAYS} gateway replicas already")]
    Full,
}

#[derive(Clone, Debug, PartialEq)]
struct State {
    registration: GatewayRegistration,
    health: BTreeMap<ClusterId, PeerHealth>,
}

/// A replica as it is known.
#[derive(Clone, Copy, Debug)]
pub struct Gateway<'a> {
    /// What it said of itself.
    pub registration: &'a GatewayRegistration,
    /// What it sees of the peers; empty until it has reported.
    pub health: &'a BTreeMap<ClusterId, PeerHealth>,
    /// Whether it counts.
    pub presence: Presence,
}

/// What all replicas together see of one peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkSummary {
    /// Replicas that have the peer up.
    pub gateways_up: u32,
    /// Connections of all replicas, suspect ones included.
    pub connections: u32,
    /// Best round-trip time; zero if unknown.
    pub rtt: Duration,
}

/// The registry.
#[derive(Clone, Debug)]
pub struct Gateways {
    registry: Registry<State>,
    /// What stands before all replicas.
    reach: Vec<Address>,
}

impl Default for Gateways {
    fn default() -> Self {
        Self::new()
    }
}

impl Gateways {
    /// An empty registry.
    pub fn new() -> Self {
        let terms = Terms {
            lease: LEASE,
            parted: PARTED,
            keep_lapsed: KEEP_LAPSED,
        };
        Self {
            registry: Registry::new(terms),
            reach: Vec::new(),
        }
    }

    /// A registration or heartbeat. True where it changes what should be planned.
    ///
    /// # Errors
    /// See [`GatewayError`]; the registry is as it was.
    pub fn register(
        &mut self,
        registration: GatewayRegistration,
        session: Session,
        now: Instant,
    ) -> Result<bool, GatewayError> {
        let replica = registration.replica.clone();
        if replica.is_empty() || replica.len() > 63 {
            return Err(GatewayError::Name {
                found: replica.chars().take(80).collect(),
            });
        }
        let held = self.registry.get(&replica);
        if held.is_none() && self.registry.len() >= MAX_GATEWAYS {
            return Err(GatewayError::Full);
        }
        // A new stream of a replica that had lapsed knows nothing of its former health.
        let health = held
            .filter(|held| held.presence.counts())
            .map(|held| held.said.health.clone());
        let state = State {
            registration,
            health: health.unwrap_or_default(),
        };
        match self.registry.hear(&replica, state, session, now) {
            Heard::Changed => Ok(true),
            Heard::Same => Ok(false),
            Heard::Superseded => Err(GatewayError::Superseded { replica }),
        }
    }

    /// The complete set of peers as a replica sees them. True where it changed anything.
    pub fn report(
        &mut self,
        replica: &str,
        session: Session,
        health: BTreeMap<ClusterId, PeerHealth>,
    ) -> bool {
        let newest = matches!(
            self.registry.get(replica).map(|member| member.presence),
            Some(Presence::Connected { session: newest, .. }) if newest == session
        );
        match self.registry.get_mut(replica) {
            Some(state) if newest && state.health != health => {
                state.health = health;
                true
            }
            _ => false,
        }
    }

    /// The stream ended; the replica keeps its (short) lease.
    pub fn disconnect(&mut self, replica: &str, session: Session, now: Instant) {
        self.registry.disconnect(replica, session, now);
    }

    /// Lets leases lapse. True where that changes what should be planned.
    pub fn tick(&mut self, now: Instant) -> bool {
        self.registry.tick(now)
    }

    /// When [`Gateways::tick`] next has something to do, unless a replica is heard before.
    pub fn next_lapse(&self) -> Option<Instant> {
        self.registry.next_lapse()
    }

    /// All replicas, lapsed ones included, by name.
    pub fn iter(&self) -> impl Iterator<Item = Gateway<'_>> {
        self.registry.iter().map(|(_, member)| Gateway {
            registration: &member.said.registration,
            health: &member.said.health,
            presence: member.presence,
        })
    }

    /// Those that count.
    pub fn counting(&self) -> impl Iterator<Item = Gateway<'_>> {
        self.iter().filter(|gateway| gateway.presence.counts())
    }

    /// What all replicas that count see of `peer`.
    pub fn summary(&self, peer: &ClusterId) -> LinkSummary {
        let mut summary = LinkSummary::default();
        for health in self
            .counting()
            .filter_map(|gateway| gateway.health.get(peer))
        {
            summary.gateways_up += u32::from(health.up);
            summary.connections = summary.connections.saturating_add(health.connections);
            if !health.rtt.is_zero() && (summary.rtt.is_zero() || health.rtt < summary.rtt) {
                summary.rtt = health.rtt;
            }
        }
        summary
    }

    /// What replicas that count were told of links that `peer` has removed.
    pub fn removals(&self, peer: &ClusterId) -> impl Iterator<Item = Removed> {
        self.counting()
            .filter_map(|gateway| gateway.health.get(peer)?.removed)
    }

    /// Sets where peers reach replicas that advertise no address of their own: a load balancer, or
    /// ports of nodes. True where that is news.
    pub fn reached_at(&mut self, addresses: Vec<Address>) -> bool {
        let news = self.reach != addresses;
        self.reach = addresses;
        news
    }

    /// The addresses at which peers can dial this cluster's live replicas, without doubles.
    pub fn tunnel_addresses(&self) -> Vec<Address> {
        let ready =
            |gateway: &Gateway<'_>| gateway.registration.ready && !gateway.registration.draining;
        let addresses: BTreeSet<_> = self
            .counting()
            .filter(ready)
            .flat_map(|gateway| match &*gateway.registration.tunnel_addresses {
                [] => self.reach.iter().cloned(),
                own => own.iter().cloned(),
            })
            .collect();
        addresses.into_iter().collect()
    }
}

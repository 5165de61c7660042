//! What the controller is told by streams.

use std::collections::{BTreeMap, BTreeSet};

use linkspan_api::v1;
use linkspan_core::{
    Address, ClusterId, Locality, ServiceKey, Session,
    gateways::{GatewayRegistration, PeerHealth},
    history::Past,
    peer::SubscriptionStart,
    workloads::Registration,
};
use tokio::sync::oneshot;
use tonic::Status;

use crate::sync::Heard;

/// Inputs that wait for the controller: a burst of every proxy of a large cluster reconnecting
/// passes through in pieces; who finds it full waits.
pub(crate) const INPUTS: usize = 1_024;

/// The answer to a registration; an error ends the stream.
pub(crate) type Verdict = oneshot::Sender<Result<(), Status>>;

/// A client of discovery, by name.
#[derive(Clone, Debug)]
pub(crate) enum Member {
    Workload(String),
    Gateway(String),
}

/// What callers have been shown.
#[derive(Debug, Default)]
pub(crate) struct Shown {
    /// Of a service.
    pub(crate) past: Past,
    /// Where workloads of a cluster are, as far as is known here.
    pub(crate) localities: BTreeSet<Locality>,
}

/// One thing that happened.
pub(crate) enum Input {
    /// A workload registers, or repeats itself as its heartbeat.
    Workload(Registration, Session, Verdict),
    /// A gateway does.
    Gateway(GatewayRegistration, Session, Verdict),
    /// What a gateway sees of the peers.
    Health(String, Session, BTreeMap<ClusterId, PeerHealth>),
    /// Where peers reach the gateways that do not say it themselves.
    Reach(Vec<Address>),
    /// A discovery stream ended.
    Disconnected(Member, Session),
    /// A link's task asks what to subscribe with.
    Subscription(ClusterId, oneshot::Sender<SubscriptionStart>),
    /// A peer's federation said something.
    Heard(Heard),
    /// A sync stream of that number ended, or could not be opened, and why.
    SyncLost(ClusterId, u64, String),
    /// The operator asks how things are.
    Status(oneshot::Sender<v1::StatusResponse>),
    /// The operator asks about services.
    Services(oneshot::Sender<v1::ServicesResponse>),
    /// The operator asks what callers have been shown of a service, and where callers of a
    /// cluster may be.
    Shown(ServiceKey, ClusterId, oneshot::Sender<Shown>),
}

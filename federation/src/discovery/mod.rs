//! The Discovery service: what this cluster's own proxies are told, and what they tell.
//!
//! One session per stream. It types what the proxy says and hands it to the controller, which
//! owns all registries; it turns each newer [`World`](crate::controller::World) into the
//! records of its proxy and sends the difference.

mod applied;
mod failover;
mod incoming;
mod outbox;
pub(crate) mod records;
mod session;

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use linkspan_api::v1;
use linkspan_core::{ClusterId, Locality};
use linkspan_runtime::{stop::Stop, telemetry::FederationMetrics};
use linkspan_trust::TrustDomain;
use tokio::sync::{mpsc, watch};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};

pub(crate) use applied::{AppliedReader, AppliedWriter, Generation, applied, gate};
pub(crate) use outbox::Removals;

use self::session::Session;
use crate::{
    controller::{Input, World},
    identity::{Issuer, Standing},
    join::Dials,
    listener::Caller,
};

/// Responses between a session and its connection; the rest waits in the outbox, where newer
/// records replace older ones.
const RESPONSES: usize = 16;

/// What every session needs.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) cluster: ClusterId,
    pub(crate) domain: TrustDomain,
    pub(crate) issuer: Arc<Issuer>,
    pub(crate) inputs: mpsc::Sender<Input>,
    pub(crate) worlds: watch::Receiver<Arc<World>>,
    pub(crate) applied: AppliedWriter,
    /// Silence after which a stream is given up; also the time for its first messages.
    pub(crate) silence: Duration,
    pub(crate) metrics: FederationMetrics,
    /// What gateways are to dial for joins.
    pub(crate) dials: Arc<Dials>,
    /// Where workloads are that do not say it.
    pub(crate) locality: Locality,
    pub(crate) stop: Stop,
}

/// The gRPC face of discovery.
pub(crate) struct DiscoveryService {
    shared: Shared,
    sessions: AtomicU64,
    tasks: TaskTracker,
}

impl DiscoveryService {
    /// `tasks` owns the sessions, so that stopping can wait for them.
    pub(crate) fn new(shared: Shared, tasks: TaskTracker) -> Self {
        Self {
            shared,
            sessions: AtomicU64::new(0),
            tasks,
        }
    }
}

#[tonic::async_trait]
impl v1::discovery_server::Discovery for DiscoveryService {
    type DiscoverStream =
        Pin<Box<dyn Stream<Item = Result<v1::DiscoverResponse, Status>> + Send + 'static>>;

    async fn discover(
        &self,
        request: Request<Streaming<v1::DiscoverRequest>>,
    ) -> Result<Response<Self::DiscoverStream>, Status> {
        let caller = Caller::of(&request)?;
        let identity = caller.authenticated()?.clone();
        if *identity.trust_domain() != self.shared.domain {
            return Err(Status::permission_denied(
                "discovery serves proxies of the own cluster only",
            ));
        }
        let standing = Standing::of(Arc::clone(&self.shared.issuer), caller)?;
        let number = self.sessions.fetch_add(1, Ordering::Relaxed) + 1;
        let (sender, receiver) = mpsc::channel(RESPONSES);
        let session = Session::new(number, (identity, standing), self.shared.clone(), sender);
        self.tasks.spawn(session.run(request.into_inner()));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

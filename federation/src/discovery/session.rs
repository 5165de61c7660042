//! One discovery stream: hello, registration, then records one way and words the other.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use linkspan_api::v1::{self, discover_request::Message};
use linkspan_core::{ServiceKey, Session as Number, SpiffeId};
use prometheus::IntGauge;
use tokio::{
    sync::{
        broadcast::error::RecvError,
        mpsc::{self, error::SendError},
        oneshot, watch,
    },
    time::{Instant, sleep_until, timeout},
};
use tonic::{Status, Streaming};

use super::{Removals, Shared, applied::AppliedGuard, incoming, outbox::Outbox, records};
use crate::{
    controller::{Input, Member, World},
    identity::Standing,
    join::Order,
};

type Responses = mpsc::Sender<Result<v1::DiscoverResponse, Status>>;
type Requests = Streaming<v1::DiscoverRequest>;

/// One stream and what belongs to it.
pub(super) struct Session {
    number: Number,
    identity: SpiffeId,
    standing: Standing,
    shared: Shared,
    responses: Responses,
}

/// What the proxy at the other end is.
enum Role {
    /// A set that was closed before the subscription is known would lack all services, and
    /// a proxy that reconnected would go from its good set to that: `None` holds it open.
    Workload {
        uid: String,
        subscription: Option<BTreeSet<ServiceKey>>,
        /// Whether it takes calls by their destination.
        captures: bool,
    },
    Gateway {
        replica: String,
        /// Whether it serves clients without a sidecar.
        imports: bool,
        applied: AppliedGuard,
    },
}

impl Session {
    pub(super) fn new(
        number: u64,
        (identity, standing): (SpiffeId, Standing),
        shared: Shared,
        responses: Responses,
    ) -> Self {
        Self {
            number: Number(number),
            identity,
            standing,
            shared,
            responses,
        }
    }

    /// Serves the stream to its end, and tells the proxy why where that is our doing.
    pub(super) async fn run(self, mut requests: Requests) {
        if let Err(status) = self.serve(&mut requests).await {
            tracing::debug!(identity = %self.identity, %status, "discovery stream ended");
            // A proxy that reads nothing learns it when its connection is cut.
            let _ = self.responses.try_send(Err(status));
        }
    }

    async fn serve(&self, requests: &mut Requests) -> Result<(), Status> {
        let silence = self.shared.silence;
        let captures = match next(requests, silence).await? {
            Some(Message::Hello(hello)) => {
                self.is_ours(&hello)?;
                hello.captures
            }
            Some(_) => return Err(Status::failed_precondition("the hello comes first")),
            None => return Ok(()),
        };
        let role = match next(requests, silence).await? {
            Some(Message::Workload(said)) => self.workload(said, captures).await?,
            Some(Message::Gateway(said)) => self.gateway(said).await?,
            Some(_) => return Err(Status::failed_precondition("the registration comes second")),
            None => return Ok(()),
        };
        let _counted = Counted::new(match &role {
            Role::Workload { .. } => self.shared.metrics.sidecars(),
            Role::Gateway { .. } => self.shared.metrics.gateways(),
        });
        let mut open = Open {
            session: self,
            role,
            outbox: Outbox::new(),
        };
        let served = open.serve(requests).await;
        // The controller ends with the process only.
        let member = open.role.member();
        let _ = self
            .shared
            .inputs
            .send(Input::Disconnected(member, self.number))
            .await;
        served
    }

    /// A proxy that means another cluster would misjudge what is near and whom to trust.
    fn is_ours(&self, hello: &v1::DiscoverHello) -> Result<(), Status> {
        let own = &self.shared.cluster;
        if hello.cluster.is_empty() || hello.cluster == own.as_str() {
            return Ok(());
        }
        Err(Status::failed_precondition(format!(
            "this is the federation of cluster `{own}`, but your configuration says `cluster: {}`; \
             correct that, or `federation.address`",
            incoming::clip(&hello.cluster)
        )))
    }

    async fn workload(
        &self,
        said: v1::WorkloadRegistration,
        captures: bool,
    ) -> Result<Role, Status> {
        let uid = said.uid.clone();
        self.register_workload(said).await?;
        Ok(Role::Workload {
            uid,
            subscription: None,
            captures,
        })
    }

    async fn register_workload(&self, said: v1::WorkloadRegistration) -> Result<(), Status> {
        let mut registration = incoming::workload(said, &self.identity)?;
        if registration.locality.region.is_empty() {
            registration.locality = self.shared.locality.clone();
        }
        self.standing.allows(&registration)?;
        self.ask(|reply| Input::Workload(registration, self.number, reply))
            .await
    }

    async fn gateway(&self, said: v1::GatewayRegistration) -> Result<Role, Status> {
        if self.identity != SpiffeId::gateway(&self.shared.domain) {
            return Err(Status::permission_denied(format!(
                "`{}` is no gateway; only `{}` may register as one",
                self.identity,
                SpiffeId::gateway(&self.shared.domain)
            )));
        }
        let (replica, imports) = (said.replica.clone(), said.imports.is_some());
        self.register_gateway(said).await?;
        let applied = self.shared.applied.connected(self.number.0, &replica);
        Ok(Role::Gateway {
            replica,
            imports,
            applied,
        })
    }

    async fn register_gateway(&self, said: v1::GatewayRegistration) -> Result<(), Status> {
        let registration = incoming::gateway(said)?;
        self.ask(|reply| Input::Gateway(registration, self.number, reply))
            .await
    }

    /// Hands the controller an input and waits for its verdict.
    async fn ask(
        &self,
        input: impl FnOnce(oneshot::Sender<Result<(), Status>>) -> Input,
    ) -> Result<(), Status> {
        let (reply, verdict) = oneshot::channel();
        self.shared
            .inputs
            .send(input(reply))
            .await
            .map_err(|_| stopping())?;
        verdict.await.map_err(|_| stopping())?
    }
}

impl Role {
    /// True where that is new.
    fn follows_nothing(&mut self) -> bool {
        match self {
            Self::Workload {
                subscription: open @ None,
                ..
            } => {
                *open = Some(BTreeSet::new());
                true
            }
            _ => false,
        }
    }

    fn member(&self) -> Member {
        match self {
            Self::Workload { uid, .. } => Member::Workload(uid.clone()),
            Self::Gateway { replica, .. } => Member::Gateway(replica.clone()),
        }
    }
}

/// A stream whose proxy is registered.
struct Open<'a> {
    session: &'a Session,
    role: Role,
    outbox: Outbox,
}

impl Open<'_> {
    async fn serve(&mut self, requests: &mut Requests) -> Result<(), Status> {
        let shared = &self.session.shared;
        let (mut worlds, stop) = (shared.worlds.clone(), shared.stop.clone());
        let mut silent_at = Instant::now() + shared.silence;
        let mut revocations = self.session.standing.revocations();
        // One that came since the stream began counts, too.
        self.session.standing.check()?;
        let mut orders = shared.dials.orders();
        self.aim(&mut worlds);
        loop {
            tokio::select! {
                () = stop.draining() => return Err(stopping()),
                Ok(()) = revocations.changed() => {
                    self.session.standing.check()?;
                }
                () = sleep_until(silent_at) => {
                    return Err(Status::deadline_exceeded("no heartbeat within the lease"));
                }
                request = requests.message() => {
                    let Some(request) = request? else { return Ok(()) };
                    silent_at = Instant::now() + shared.silence;
                    if self.hear(request).await? {
                        self.aim(&mut worlds);
                    }
                }
                changed = worlds.changed() => {
                    changed.map_err(|_| stopping())?;
                    self.aim(&mut worlds);
                }
                order = orders.recv() => self.order(order),
                // Cancel-safe: a record leaves the outbox only with the permit in hand.
                permit = self.session.responses.reserve(), if self.outbox.is_waiting() => {
                    let permit = permit.map_err(|_: SendError<()>| stopping())?;
                    if let Some(response) = self.outbox.next() {
                        permit.send(Ok(response));
                    }
                }
            }
            self.note_applied();
        }
    }

    /// True where the proxy wants other records than before.
    async fn hear(&mut self, request: v1::DiscoverRequest) -> Result<bool, Status> {
        match (request.message, &mut self.role) {
            (Some(Message::Workload(said)), Role::Workload { uid, .. }) => {
                same_name(uid, &said.uid)?;
                self.session.register_workload(said).await?;
                // Its heartbeat: it had the time to subscribe, and follows nothing.
                return Ok(self.role.follows_nothing());
            }
            (Some(Message::Gateway(said)), Role::Gateway { replica, .. }) => {
                same_name(replica, &said.replica)?;
                self.session.register_gateway(said).await?;
            }
            (Some(Message::Subscription(said)), Role::Workload { subscription, .. }) => {
                let wanted = incoming::subscription(said)?;
                let news = subscription.as_ref() != Some(&wanted);
                *subscription = Some(wanted);
                return Ok(news);
            }
            (Some(Message::LinkHealth(said)), Role::Gateway { replica, .. }) => {
                let (replica, number) = (replica.clone(), self.session.number);
                let input = Input::Health(replica, number, incoming::health(said));
                self.session
                    .shared
                    .inputs
                    .send(input)
                    .await
                    .map_err(|_| stopping())?;
            }
            (Some(Message::Ack(ack)), _) => self.outbox.acknowledge(ack.revision),
            // What a newer proxy may say besides.
            (None, _) => {}
            (Some(_), _) => {
                return Err(Status::permission_denied(
                    "not for this kind of proxy to say",
                ));
            }
        }
        Ok(false)
    }

    fn aim(&mut self, worlds: &mut watch::Receiver<Arc<World>>) {
        let world = Arc::clone(&worlds.borrow_and_update());
        // A gateway is told nothing that only peers know, and peers are heard through it: to wait
        // for them would be to wait for itself.
        let (records, settled) = match &self.role {
            Role::Workload {
                uid,
                subscription: Some(services),
                captures,
            } => {
                let records = records::sidecar(&world, uid, services, *captures);
                (records, world.settled)
            }
            Role::Workload {
                subscription: None, ..
            } => return,
            Role::Gateway { imports, .. } => {
                (records::gateway(&world, *imports), world.own_settled)
            }
        };
        let removals = if settled {
            Removals::Apply
        } else {
            Removals::Hold
        };
        self.outbox.aim(records, world.generation, removals);
    }

    /// A session that was too slow misses orders; whoever gave them asks another gateway.
    fn order(&mut self, order: Result<Arc<Order>, RecvError>) {
        if let (Ok(order), Role::Gateway { replica, .. }) = (order, &self.role)
            && order.replica == *replica
        {
            self.outbox.join(order.dial.clone());
        }
    }

    fn note_applied(&self) {
        if let (Role::Gateway { applied, .. }, Some(generation)) =
            (&self.role, self.outbox.applied_generation())
        {
            applied.reached(generation);
        }
    }
}

/// The next message, which must come within `limit`.
async fn next(requests: &mut Requests, limit: Duration) -> Result<Option<Message>, Status> {
    let request = timeout(limit, requests.message())
        .await
        .map_err(|_| Status::deadline_exceeded("hello and registration did not come in time"))??;
    Ok(request.and_then(|request| request.message))
}

fn same_name(registered: &str, said: &str) -> Result<(), Status> {
    if registered == said {
        return Ok(());
    }
    Err(Status::failed_precondition(
        "a stream registers one workload or replica only",
    ))
}

fn stopping() -> Status {
    Status::unavailable("federation is stopping; connect again")
}

/// A gauge that counts this stream until it ends.
struct Counted(IntGauge);

impl Counted {
    fn new(gauge: IntGauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

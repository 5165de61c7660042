//! The serving side: what this cluster exports to one peer, for as long as it listens.

use std::{
    pin::Pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use linkspan_api::v1::{self, sync_request::Message};
use linkspan_core::{ClusterId, OwnCluster, SpiffeId};
use linkspan_runtime::{
    stop::Stop,
    telemetry::{FederationMetrics, LinkLabels},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, MissedTickBehavior, interval, sleep_until, timeout},
};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};

use super::{
    client::now_unix_millis,
    incoming::wall,
    outbox::Outbox,
    quota::{PATIENCE, Pace},
    records,
    subscribers::{Subscriber, Subscribers},
};
use crate::{
    controller::World, discovery::Removals, join::Linker, listener::Caller, version::VERSION,
};

/// Responses between a subscription and its connection; the rest waits in the outbox.
const RESPONSES: usize = 16;
/// The subscription's first message.
const START_TIMEOUT: Duration = Duration::from_secs(5);
/// Records that a subscriber may say it knows; the quota of one peer, with room.
const MAX_KNOWN: usize = 50_000;

/// What every subscription needs.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) own: OwnCluster,
    pub(crate) epoch: u64,
    /// What our gateways have applied already.
    pub(crate) worlds: watch::Receiver<Arc<World>>,
    pub(crate) heartbeat: Duration,
    /// Time without an acknowledgement after which a subscriber is given up.
    pub(crate) silence: Duration,
    pub(crate) clock_skew: Duration,
    pub(crate) metrics: FederationMetrics,
    pub(crate) linker: Arc<Linker>,
    pub(crate) stop: Stop,
}

/// The gRPC face of sync.
pub(crate) struct SyncService {
    shared: Shared,
    subscribers: Subscribers,
    tasks: TaskTracker,
}

impl SyncService {
    /// `tasks` owns the subscriptions, so that stopping can wait for them.
    pub(crate) fn new(shared: Shared, subscribers: Subscribers, tasks: TaskTracker) -> Self {
        Self {
            shared,
            subscribers,
            tasks,
        }
    }
}

#[tonic::async_trait]
impl v1::sync_server::Sync for SyncService {
    type SubscribeStream =
        Pin<Box<dyn Stream<Item = Result<v1::SyncResponse, Status>> + Send + 'static>>;

    async fn subscribe(
        &self,
        request: Request<Streaming<v1::SyncRequest>>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let identity = Caller::of(&request)?.authenticated()?.clone();
        let peer =
            linked(&self.shared.worlds.borrow(), &identity).ok_or_else(|| not_linked(&identity))?;
        // Before anything of it is held.
        let subscriber = self.subscribers.take(&identity, &peer)?;
        let mut requests = request.into_inner();
        let start = start(&mut requests).await?;
        // What it says too much is waited for before its next stream begins.
        let _ = subscriber.account.charge(0, 1);
        check(&start, &peer, &self.shared, SystemTime::now())?;
        let (responses, receiver) = mpsc::channel(RESPONSES);
        let subscription = Subscription {
            peer,
            identity,
            subscriber,
            outbox: Outbox::new(start.known),
            shared: self.shared.clone(),
            responses,
        };
        self.tasks.spawn(subscription.run(requests));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    /// The link is the caller's as much as ours: who it is, is all that counts.
    async fn unlink(
        &self,
        request: Request<v1::UnlinkRequest>,
    ) -> Result<Response<v1::UnlinkResponse>, Status> {
        let identity = Caller::of(&request)?.authenticated()?.clone();
        let peer =
            linked(&self.shared.worlds.borrow(), &identity).ok_or_else(|| not_linked(&identity))?;
        let linker = Arc::clone(&self.shared.linker);
        let made_by = request.get_ref().invitation.clone();
        tracing::info!(%peer, "the peer removes the link");
        let (told, answer) = oneshot::channel();
        let ended = Caller::of(&request)?.ended.clone();
        // A task of its own: what has begun is finished, also when the caller hangs up.
        self.tasks.spawn(async move {
            let unlinking = linker.follow(&peer, &made_by, told, ended.cancelled());
            if let Err(refusal) = unlinking.await {
                tracing::warn!(%peer, reason = refusal.message, "the link is not removed yet");
            }
        });
        let begun = answer
            .await
            .map_err(|_| Status::unavailable("federation is stopping"))?;
        begun.map_err(|refusal| match refusal.problem {
            linkspan_core::join::Problem::Used => Status::failed_precondition(refusal.message),
            _ => Status::internal(refusal.message),
        })?;
        Ok(Response::new(v1::UnlinkResponse {}))
    }
}

/// The link whose federation is exactly `identity`.
fn linked(world: &World, identity: &SpiffeId) -> Option<ClusterId> {
    world
        .federations()
        .find(|(id, _)| *id == identity)
        .map(|(_, cluster)| cluster.clone())
}

fn not_linked(identity: &SpiffeId) -> Status {
    Status::permission_denied(format!(
        "`{identity}` is not the federation of a linked cluster"
    ))
}

async fn start(requests: &mut Streaming<v1::SyncRequest>) -> Result<v1::SyncStart, Status> {
    let first = timeout(START_TIMEOUT, requests.message())
        .await
        .map_err(|_| {
            Status::deadline_exceeded("the subscription's start did not come in time")
        })??;
    match first.and_then(|request| request.message) {
        Some(Message::Start(start)) => Ok(start),
        _ => Err(Status::failed_precondition(
            "a subscription begins with its start",
        )),
    }
}

fn check(
    start: &v1::SyncStart,
    peer: &ClusterId,
    shared: &Shared,
    now: SystemTime,
) -> Result<(), Status> {
    if start.cluster != peer.as_str() {
        return Err(Status::failed_precondition(format!(
            "this link is to cluster `{peer}`, but the subscriber says it is another; \
             name the ClusterLink after the peer's cluster id"
        )));
    }
    if start.clusterset != shared.own.clusterset {
        return Err(Status::failed_precondition(format!(
            "cluster `{}` is of clusterset `{}`; only clusters of one clusterset can be linked",
            shared.own.cluster, shared.own.clusterset
        )));
    }
    if start.known.len() > MAX_KNOWN {
        return Err(Status::invalid_argument(
            "the subscriber says it knows too many records",
        ));
    }
    check_clock(wall(start.now_unix_millis), now, peer, shared)
}

fn check_clock(
    theirs: SystemTime,
    ours: SystemTime,
    peer: &ClusterId,
    shared: &Shared,
) -> Result<(), Status> {
    let off = theirs
        .duration_since(ours)
        .unwrap_or_else(|behind| behind.duration());
    if off <= shared.clock_skew {
        return Ok(());
    }
    Err(Status::failed_precondition(format!(
        "clocks differ by {}: cluster `{peer}` says {}, cluster `{}` says {}; \
         at most {} is tolerated, so set the clocks of both clusters (NTP)",
        humantime::format_duration(Duration::from_secs(off.as_secs())),
        humantime::format_rfc3339_seconds(theirs),
        shared.own.cluster,
        humantime::format_rfc3339_seconds(ours),
        humantime::format_duration(shared.clock_skew),
    )))
}

/// One peer that listens.
struct Subscription {
    peer: ClusterId,
    identity: SpiffeId,
    subscriber: Subscriber,
    outbox: Outbox,
    shared: Shared,
    responses: mpsc::Sender<Result<v1::SyncResponse, Status>>,
}

impl Subscription {
    async fn run(mut self, mut requests: Streaming<v1::SyncRequest>) {
        tracing::info!(peer = %self.peer, "peer subscribed");
        let end = self.serve(&mut requests).await;
        if let Err(status) = end {
            tracing::info!(peer = %self.peer, reason = status.message(), "subscription ended");
            // A subscriber that reads nothing learns it when its connection is cut.
            let _ = self.responses.try_send(Err(status));
        }
    }

    async fn serve(&mut self, requests: &mut Streaming<v1::SyncRequest>) -> Result<(), Status> {
        let begin = self.outbox.begin(self.begin());
        self.send(begin).await?;
        let (mut worlds, stop) = (self.shared.worlds.clone(), self.shared.stop.clone());
        let responses = self.responses.clone();
        let mut heartbeat = interval(self.shared.heartbeat);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut silent_at = self.deadline();
        let mut reads_at = Instant::now();
        self.aim(&mut worlds)?;
        loop {
            tokio::select! {
                () = stop.draining() => return Err(Status::unavailable("federation is stopping")),
                () = sleep_until(silent_at) => {
                    return Err(Status::deadline_exceeded("nothing was acknowledged for too long"));
                }
                () = sleep_until(reads_at), if reads_at > Instant::now() => {}
                request = requests.message(), if reads_at <= Instant::now() => {
                    let Some(request) = request? else { return Ok(()) };
                    reads_at = Instant::now() + self.charge()?;
                    if let Some(Message::Ack(ack)) = request.message {
                        self.outbox.acknowledge(ack.seq);
                        silent_at = self.deadline();
                    }
                }
                changed = worlds.changed() => {
                    changed.map_err(|_| Status::unavailable("federation is stopping"))?;
                    self.aim(&mut worlds)?;
                }
                _ = heartbeat.tick() => {
                    let beat = self.outbox.heartbeat(now_unix_millis());
                    self.send(beat).await?;
                }
                // Cancel-safe: a record leaves the outbox only with the permit in hand.
                permit = responses.reserve(), if self.outbox.is_waiting() => {
                    let permit = permit.map_err(|_| Status::cancelled("the subscriber left"))?;
                    if let Some(response) = self.outbox.next() {
                        permit.send(Ok(response));
                    }
                }
            }
        }
    }

    /// How long nothing more is to be read after one more message; its bytes were charged when
    /// its connection was read.
    fn charge(&self) -> Result<Duration, Status> {
        match self.subscriber.account.charge(0, 1) {
            Pace::Go => Ok(Duration::ZERO),
            Pace::Wait(pause) => Ok(pause),
            Pace::Close => {
                let peer = self.peer.as_str();
                self.shared.metrics.over_quota(&LinkLabels { peer }).inc();
                Err(Status::resource_exhausted(format!(
                    "the subscriber has said more than its quota allows for {PATIENCE:?}"
                )))
            }
        }
    }

    fn begin(&self) -> v1::SyncBegin {
        v1::SyncBegin {
            cluster: self.shared.own.cluster.to_string(),
            clusterset: self.shared.own.clusterset.clone(),
            version: VERSION.into(),
            epoch: self.shared.epoch,
            now_unix_millis: now_unix_millis(),
        }
    }

    /// Every message is acknowledged, heartbeats too.
    fn deadline(&self) -> Instant {
        Instant::now() + self.shared.silence
    }

    async fn send(&self, response: v1::SyncResponse) -> Result<(), Status> {
        timeout(self.shared.silence, self.responses.send(Ok(response)))
            .await
            .map_err(|_| Status::deadline_exceeded("the subscriber reads nothing"))?
            .map_err(|_| Status::cancelled("the subscriber left"))
    }

    /// The link is checked anew with each world: an unlinked peer hears nothing more.
    fn aim(&mut self, worlds: &mut watch::Receiver<Arc<World>>) -> Result<(), Status> {
        let world = Arc::clone(&worlds.borrow_and_update());
        if linked(&world, &self.identity).as_ref() != Some(&self.peer) {
            return Err(Status::permission_denied("the link was removed"));
        }
        let removals = if world.own_settled {
            Removals::Apply
        } else {
            Removals::Hold
        };
        self.outbox
            .aim(&records::exported_to(&world, &self.peer), removals);
        Ok(())
    }
}

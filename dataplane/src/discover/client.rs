//! The stream to federation: what it is told, what it tells, and how it is kept up.

use std::{
    collections::BTreeSet,
    future::pending,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::FutureExt;
use linkspan_api::v1::{
    self, DiscoverAck, DiscoverHello, DiscoverRequest, DiscoverResponse,
    discover_request::Message as Request, discover_response::Message as Response,
    discovery_client::DiscoveryClient,
};
use linkspan_routing::{ClusterId, ServiceKey};
use linkspan_runtime::{backoff::Backoff, process::chain, stop::Stop, telemetry::ControlMetrics};
use linkspan_trust::MaterialReader;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior, interval_at, sleep, sleep_until, timeout, timeout_at},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tracing::{debug, info, warn};

use super::{Registration, Snapshot, records::Records};
use crate::{
    connect::grpc,
    identity::{FederationClient, IdentityError},
};

/// Our registration is sent this often, so that federation knows that we live.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Requests waiting to be sent. The first ones are five; later ones are sent one by one, and a
/// full queue means that federation does not read.
const REQUESTS: usize = 8;
/// Longest time in which federation does not take a request, or open the stream.
const STALLED: Duration = Duration::from_secs(5);
/// Longest time to the first complete state.
const COMPLETE: Duration = Duration::from_secs(30);
/// Between tries: a restarted federation is to be found quickly.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// Responses applied before a snapshot is published, at most, when they arrive faster.
const BURST: usize = 4096;
/// Shortest life of a stream before it is renewed for a newer certificate.
const SHORTEST: Duration = Duration::from_secs(10);

/// Makes the client of federation's discovery: the task that keeps the stream, and what it learns
/// (`None` until it was told everything once).
#[must_use]
pub fn client(
    config: FederationClient,
    material: MaterialReader,
    registration: watch::Receiver<Registration>,
    subscription: watch::Receiver<BTreeSet<ServiceKey>>,
    health: watch::Receiver<v1::LinkHealth>,
) -> (DiscoveryTask, watch::Receiver<Option<Arc<Snapshot>>>) {
    let (snapshots, reader) = watch::channel(None);
    let told = Told {
        registration,
        subscription,
        health,
    };
    let hello = DiscoverHello {
        instance: format!("{:032x}", rand::random::<u128>()),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        cluster: String::new(),
        captures: false,
    };
    let metrics = ControlMetrics::detached();
    (
        DiscoveryTask {
            config,
            material,
            told,
            hello,
            snapshots,
            metrics,
            joins: None,
        },
        reader,
    )
}

/// Keeps the discovery stream; sole writer of the snapshot.
#[derive(Debug)]
pub struct DiscoveryTask {
    config: FederationClient,
    material: MaterialReader,
    told: Told,
    hello: DiscoverHello,
    snapshots: watch::Sender<Option<Arc<Snapshot>>>,
    metrics: ControlMetrics,
    joins: Option<mpsc::Sender<v1::JoinDial>>,
}

/// What federation is told, whenever it changes.
#[derive(Debug)]
struct Told {
    registration: watch::Receiver<Registration>,
    subscription: watch::Receiver<BTreeSet<ServiceKey>>,
    health: watch::Receiver<v1::LinkHealth>,
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum StreamError {
    #[error("discovery is not reachable")]
    Connect(#[from] IdentityError),
    // Not a source: all that it says is said here.
    #[error("discovery failed: {} ({:?})", .0.message(), .0.code())]
    Status(Box<tonic::Status>),
    #[error("federation ended the stream")]
    Ended,
    #[error("federation does not take requests")]
    Stalled,
    #[error("not everything was told within {COMPLETE:?}")]
    Incomplete,
    #[error("response {found} came where {expected} was due")]
    Gap { expected: u64, found: u64 },
}

impl From<tonic::Status> for StreamError {
    fn from(status: tonic::Status) -> Self {
        Self::Status(Box::new(status))
    }
}

impl DiscoveryTask {
    /// Tells federation which cluster our configuration names, so that a mistake is found at once.
    #[must_use]
    pub fn of_cluster(mut self, cluster: &ClusterId) -> Self {
        self.hello.cluster = cluster.to_string();
        self
    }

    /// Asks for all [`Snapshot::vips`].
    #[must_use]
    pub fn capturing(mut self, captures: bool) -> Self {
        self.hello.captures = captures;
        self
    }

    /// Counts into `metrics`.
    #[must_use]
    pub fn with_metrics(mut self, metrics: ControlMetrics) -> Self {
        self.metrics = metrics;
        self
    }

    /// Hands on what federation asks to be dialled for a join (gateways). What finds the channel
    /// full is dropped: federation asks another gateway when it hears nothing.
    #[must_use]
    pub fn with_joins(mut self, joins: mpsc::Sender<v1::JoinDial>) -> Self {
        self.joins = Some(joins);
        self
    }

    /// Keeps the stream up until the stop *aborts*, so that federation hears of a drain
    /// (told by the registration). Meant as a background task.
    pub async fn run(mut self, stop: Stop) {
        tokio::select! {
            () = stop.aborted() => {}
            () = self.keep() => {}
        }
    }

    async fn keep(&mut self) {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        let mut failing = false;
        loop {
            let mut complete = false;
            let ended = self.stream(&mut complete, &mut failing).await;
            self.metrics.discovery_connected.set(0);
            if complete {
                backoff.reset();
            }
            match ended {
                // A renewal: the certificate that opened the stream nears its end.
                Ok(()) => continue,
                Err(error) if failing => debug!(error = %chain(&error), "discovery still fails"),
                Err(error) => {
                    let kept = self.snapshots.borrow().is_some();
                    warn!(error = %chain(&error), kept, "discovery lost; trying on with what is known");
                }
            }
            failing = true;
            self.metrics.disconnects.inc();
            sleep(backoff.next(rand::random())).await;
        }
    }

    /// One stream, from its first word to its end; `Ok` when it is to be renewed.
    async fn stream(&mut self, complete: &mut bool, failing: &mut bool) -> Result<(), StreamError> {
        let renewal = Instant::now() + self.life();
        let (requests, mut responses) = self.open().await?;
        let mut session = Session {
            requests,
            records: Records::default(),
            revision: 0,
            complete: false,
            joins: self.joins.clone(),
        };
        let mut heartbeat = interval_at(Instant::now() + HEARTBEAT, HEARTBEAT);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let deadline = Instant::now() + COMPLETE;
        loop {
            // All arms are cancel-safe: `message` keeps partial frames in the stream.
            tokio::select! {
                response = responses.message() => {
                    let response = response?.ok_or(StreamError::Ended)?;
                    let end = session.burst(response, &mut responses, &self.metrics);
                    if session.complete {
                        if !*complete {
                            info!(revision = session.revision, again = *failing, "discovery is complete");
                        }
                        (*complete, *failing) = (true, false);
                        self.metrics.discovery_connected.set(1);
                        self.publish(&session);
                        session.acknowledge().await?;
                    }
                    end?;
                }
                _ = heartbeat.tick() => session.send(self.told.registration()).await?,
                request = self.told.changed() => session.send(request).await?,
                () = sleep_until(deadline), if !session.complete => return Err(StreamError::Incomplete),
                () = sleep_until(renewal) => return Ok(()),
            }
        }
    }

    /// Connects with the present material and says what is to be said first.
    async fn open(
        &mut self,
    ) -> Result<(mpsc::Sender<DiscoverRequest>, Streaming<DiscoverResponse>), StreamError> {
        let tls = self.config.mutual_tls(&self.material)?;
        let channel = grpc::channel(&self.config.address, tls).await;
        let channel = channel.map_err(|source| IdentityError::Unreachable {
            address: self.config.address.clone(),
            source,
        })?;
        let (requests, queue) = mpsc::channel(REQUESTS);
        for request in self.told.first(&self.hello) {
            let request = DiscoverRequest {
                message: Some(request),
            };
            requests
                .try_send(request)
                .map_err(|_| StreamError::Stalled)?;
        }
        let mut service = DiscoveryClient::new(channel);
        let opening = service.discover(ReceiverStream::new(queue));
        let responses = timeout(STALLED, opening)
            .await
            .map_err(|_| StreamError::Stalled)??;
        Ok((requests, responses.into_inner()))
    }

    /// How long a stream may last: until 80 % of the certificate's remaining life are over.
    fn life(&self) -> Duration {
        let left = self
            .material
            .current()
            .svid()
            .not_after()
            .duration_since(SystemTime::now());
        left.unwrap_or_default().mul_f64(0.8).max(SHORTEST)
    }

    fn publish(&self, session: &Session) {
        let last = self.snapshots.borrow().clone();
        let snapshot = session.records.snapshot(session.revision, last.as_deref());
        self.metrics.snapshots.inc();
        self.snapshots.send_replace(Some(Arc::new(snapshot)));
    }
}

impl Told {
    /// The first words of a stream, in order. What is said now counts as seen.
    fn first(&mut self, hello: &DiscoverHello) -> Vec<Request> {
        self.registration.mark_unchanged();
        self.subscription.mark_unchanged();
        self.health.mark_unchanged();
        // Each kind of proxy says only what is its to say; federation refuses the rest.
        let role = if self.is_gateway() {
            self.health()
        } else {
            self.subscription()
        };
        vec![Request::Hello(hello.clone()), self.registration(), role]
    }

    /// The next thing that changed. Cancel-safe.
    async fn changed(&mut self) -> Request {
        let gateway = self.is_gateway();
        tokio::select! {
            () = changed(&mut self.registration) => self.registration(),
            () = changed(&mut self.subscription), if !gateway => self.subscription(),
            () = changed(&mut self.health), if gateway => self.health(),
        }
    }

    fn is_gateway(&self) -> bool {
        matches!(*self.registration.borrow(), Registration::Gateway(_))
    }

    fn registration(&self) -> Request {
        match self.registration.borrow().clone() {
            Registration::Workload(workload) => Request::Workload(workload),
            Registration::Gateway(gateway) => Request::Gateway(gateway),
        }
    }

    fn subscription(&self) -> Request {
        let services = self.subscription.borrow().iter().map(wire_key).collect();
        Request::Subscription(v1::Subscription { services })
    }

    fn health(&self) -> Request {
        Request::LinkHealth(self.health.borrow().clone())
    }
}

fn wire_key(key: &ServiceKey) -> v1::ServiceKey {
    v1::ServiceKey {
        namespace: key.namespace.to_string(),
        name: key.name.to_string(),
    }
}

/// Waits for a change; for ever when the writer is gone, as what it said last stays true.
async fn changed<T>(watch: &mut watch::Receiver<T>) {
    if watch.changed().await.is_err() {
        pending::<()>().await;
    }
}

/// The state of one stream.
struct Session {
    requests: mpsc::Sender<DiscoverRequest>,
    records: Records,
    revision: u64,
    complete: bool,
    joins: Option<mpsc::Sender<v1::JoinDial>>,
}

impl Session {
    /// Applies a response and those that are already here behind it, so that a burst of changes
    /// makes one snapshot.
    fn burst(
        &mut self,
        first: DiscoverResponse,
        responses: &mut Streaming<DiscoverResponse>,
        metrics: &ControlMetrics,
    ) -> Result<(), StreamError> {
        self.apply(first, metrics)?;
        for _ in 1..BURST {
            match responses.message().now_or_never() {
                None => break,
                Some(response) => self.apply(response?.ok_or(StreamError::Ended)?, metrics)?,
            }
        }
        Ok(())
    }

    fn apply(
        &mut self,
        response: DiscoverResponse,
        metrics: &ControlMetrics,
    ) -> Result<(), StreamError> {
        let (expected, found) = (self.revision + 1, response.revision);
        if self.revision != 0 && found != expected {
            return Err(StreamError::Gap { expected, found });
        }
        self.revision = found;
        match response.message {
            Some(Response::Upsert(record)) => {
                let key = record.key.clone();
                if let Err(error) = self.records.upsert(record) {
                    metrics.rejected.inc();
                    warn!(key, %error, "record refused; its last good version stays");
                }
            }
            Some(Response::Remove(key)) => self.records.remove(&key),
            Some(Response::Complete(_)) => self.complete = true,
            Some(Response::Join(dial)) => {
                let id = dial.id;
                let taken = self.joins.as_ref().map(|joins| joins.try_send(dial));
                if !matches!(taken, Some(Ok(()))) {
                    warn!(id, "cannot dial for a join now");
                }
            }
            // A newer federation may say more than we understand.
            None => {}
        }
        Ok(())
    }

    async fn acknowledge(&self) -> Result<(), StreamError> {
        self.send(Request::Ack(DiscoverAck {
            revision: self.revision,
        }))
        .await
    }

    async fn send(&self, message: Request) -> Result<(), StreamError> {
        let sending = self.requests.send(DiscoverRequest {
            message: Some(message),
        });
        match timeout_at(Instant::now() + STALLED, sending).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(StreamError::Ended),
            Err(_) => Err(StreamError::Stalled),
        }
    }
}

//! The subscribing side: one task per link, which keeps a stream to the peer's federation
//! while the controller wants one, and hands what it hears to the controller.
//!
//! The controller owns the peer's state and decides; this task dials, reads, acknowledges
//! what was applied, and paces its tries.

use std::{
    io,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures_util::FutureExt as _;
use hyper_util::rt::TokioIo;
use linkspan_api::v1::{self, sync_client::SyncClient, sync_request};
use linkspan_core::{
    ClusterId, OwnCluster,
    peer::{Event, Hangup, SubscriptionStart},
};
use linkspan_runtime::{
    backoff::Backoff,
    telemetry::{FederationMetrics, LinkLabels},
};
use linkspan_trust::{Bundle, MaterialReader};
use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    time::{Instant, sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming, transport::Channel};
use tower::service_fn;

use super::{
    dial::{Destination, Dial, Io},
    incoming,
    metered::{Account, Metered},
    quota::{PATIENCE, Pace, Rates},
};
use crate::{controller::Input, version::VERSION};

/// First and longest pause between tries; each is cut short at random.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// How long a stream must have been live to count as a success: one that a peer ends again and
/// again right after its snapshot is not tried ever faster.
const LASTING: Duration = Duration::from_secs(10);
/// How long a peer may not be reached at first before that is worth a warning.
const PATIENT_START: Duration = Duration::from_secs(15);
/// Pause after a peer that said more than its quota allows for too long.
const QUOTA_PAUSE: Duration = Duration::from_secs(30);
/// Most characters of a reason that are shown; the peer wrote some of them.
const SHOWN_REASON: usize = 500;
/// Opening the subscription, once connected.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);
/// Messages applied in one step, so that a large snapshot does not plan per record.
const BATCH: usize = 256;
/// Requests under way; the start, then acknowledgements, of which the newest counts.
const REQUESTS: usize = 8;
/// Largest message of a peer; a record has a few kilobytes.
const MAX_MESSAGE: usize = 1024 * 1024;

/// What the controller wants of a link's task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Order {
    pub(crate) destination: Destination,
    /// Whether a stream should be open.
    pub(crate) wanted: bool,
    /// Streams of a lower number must end.
    pub(crate) stream: u64,
}

/// What a stream heard, to be applied in order.
pub(crate) struct Heard {
    pub(crate) peer: ClusterId,
    pub(crate) stream: u64,
    pub(crate) events: Vec<Event>,
    /// Answered when all are applied, or with why the stream must end.
    pub(crate) reply: oneshot::Sender<Result<(), Hangup>>,
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum StreamEnd {
    #[error("the peer could not be reached: {0}")]
    Dial(#[source] io::Error),
    #[error("the peer's federation refused or closed the stream: {}", .0.message())]
    Status(#[source] Box<Status>),
    #[error("the peer's federation did not answer in time")]
    Silent,
    #[error("{0}")]
    Hangup(#[source] Hangup),
    #[error("message {found} came after {last}")]
    Gap { last: u64, found: u64 },
    #[error("the peer's federation closed the stream")]
    Closed,
    #[error("the roots of the link are not in use yet")]
    Roots,
    #[error(
        "the peer has said more than its quota allows (bytes or messages a second) for {PATIENCE:?}; \
         see what changes there all the time"
    )]
    OverQuota,
    /// The certificate is about to expire: connect anew with the next one.
    #[error("renewing the connection")]
    Renewal,
    /// The controller has other plans, or is gone.
    #[error("no longer wanted")]
    Unwanted,
}

impl From<Status> for StreamEnd {
    fn from(status: Status) -> Self {
        Self::Status(Box::new(status))
    }
}

/// What all link tasks share.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) own: OwnCluster,
    pub(crate) dial: Arc<dyn Dial>,
    pub(crate) material: MaterialReader,
    pub(crate) inputs: mpsc::Sender<Input>,
    pub(crate) silence: Duration,
    pub(crate) metrics: FederationMetrics,
}

/// Keeps the link's stream; ends when the order's sender is dropped.
pub(crate) async fn keep_subscribed(
    context: Context,
    peer: ClusterId,
    orders: watch::Receiver<Order>,
) {
    Subscriber {
        context,
        peer,
        orders,
        backoff: Backoff::new(BACKOFF.0, BACKOFF.1),
        account: Account::new(Rates::PEER),
        live_since: None,
        failed: false,
        was_live: false,
        begun: Instant::now(),
        warned: false,
    }
    .run()
    .await;
}

struct Subscriber {
    context: Context,
    peer: ClusterId,
    orders: watch::Receiver<Order>,
    backoff: Backoff,
    /// What the peer has said, over all streams of the link.
    account: Account,
    /// When the stream's snapshot was complete.
    live_since: Option<Instant>,
    /// Whether the last try failed, so that only the first failure and the recovery are logged.
    failed: bool,
    /// Whether any try ever succeeded.
    was_live: bool,
    begun: Instant,
    /// Whether it was told that the peer has not been reached since then.
    warned: bool,
}

impl Subscriber {
    async fn run(mut self) {
        while let Ok(order) = self
            .orders
            .wait_for(|order| order.wanted)
            .await
            .map(|o| o.clone())
        {
            let end = match self.stream(&order).await {
                Err(end) => end,
                Ok(never) => match never {},
            };
            let live = self.live_since.take().map(|since| since.elapsed());
            if live.is_some_and(|live| live >= LASTING) {
                self.backoff.reset();
            }
            if matches!(end, StreamEnd::Renewal) {
                continue;
            }
            self.report(&order, &end).await;
            let mut pause = self.backoff.next(rand::random());
            if matches!(end, StreamEnd::OverQuota) {
                self.over_quota();
                pause = QUOTA_PAUSE;
            }
            tokio::select! {
                () = sleep(pause) => {}
                // The link's removal need not wait.
                closed = self.orders.wait_for(|_| false) => if closed.is_err() { return },
            }
        }
    }

    async fn report(&mut self, order: &Order, end: &StreamEnd) {
        let reason = shown(&end.to_string());
        if !matches!(end, StreamEnd::Unwanted) {
            if std::mem::replace(&mut self.failed, true) {
                if !self.was_live && self.begun.elapsed() >= PATIENT_START && !self.warned {
                    self.warned = true;
                    tracing::warn!(peer = %self.peer, reason, "the peer's federation is still not reached; trying on");
                } else {
                    tracing::debug!(peer = %self.peer, reason, "sync stream lost again");
                }
            } else if !self.was_live {
                // Of a link that is being made nobody expects more; a warning follows in time.
                tracing::info!(peer = %self.peer, reason, "the peer's federation is not reached yet; trying on");
            } else {
                tracing::warn!(peer = %self.peer, reason, "sync stream lost; trying again");
            }
        }
        let input = Input::SyncLost(self.peer.clone(), order.stream, reason);
        // The controller ends with the process only.
        let _ = self.context.inputs.send(input).await;
    }

    fn over_quota(&self) {
        let peer = self.peer.as_str();
        self.context.metrics.over_quota(&LinkLabels { peer }).inc();
    }

    async fn stream(&mut self, order: &Order) -> Result<std::convert::Infallible, StreamEnd> {
        let (start, roots) = self.start().await?;
        self.until_in_force(order, &roots).await?;
        let io = self
            .context
            .dial
            .dial(&order.destination)
            .await
            .map_err(StreamEnd::Dial)?;
        let exceeded = Arc::new(Notify::new());
        let io = Metered::new(io, self.account.clone(), Arc::clone(&exceeded));
        let (requests, receiver) = mpsc::channel(REQUESTS);
        // Room for it: the channel is new.
        let _ = requests.try_send(request(sync_request::Message::Start(start)));
        let mut client = SyncClient::new(channel(io).await.map_err(StreamEnd::Dial)?)
            .max_decoding_message_size(MAX_MESSAGE);
        let opened = timeout(
            OPEN_TIMEOUT,
            client.subscribe(ReceiverStream::new(receiver)),
        );
        // The reader's end shows as an error of the stream, too, which does not say why.
        let opened = tokio::select! {
            biased;
            () = exceeded.notified() => return Err(StreamEnd::OverQuota),
            opened = opened => opened,
        };
        let mut responses = opened.map_err(|_| StreamEnd::Silent)??.into_inner();
        let renewal = sleep(self.connection_life());
        tokio::pin!(renewal);
        let mut last = 0;
        loop {
            let (peer, silence) = (self.peer.clone(), self.context.silence);
            let batch = tokio::select! {
                biased;
                () = exceeded.notified() => return Err(StreamEnd::OverQuota),
                () = &mut renewal => return Err(StreamEnd::Renewal),
                ended = ended(&mut self.orders, order) => return Err(ended),
                batch = timeout(silence, batch(&mut responses, &peer, &mut last)) => {
                    batch.map_err(|_| StreamEnd::Silent)??
                }
            };
            let Batch {
                events,
                responses: count,
            } = batch;
            self.apply(order, events).await?;
            let ack = sync_request::Message::Ack(v1::SyncAck { seq: last });
            // Closed only together with the responses, which say why.
            let _ = requests.send(request(ack)).await;
            self.pace(order, count).await?;
        }
    }

    /// Waits where the peer has said more messages than it may; what comes meanwhile waits, too.
    async fn pace(&mut self, order: &Order, messages: usize) -> Result<(), StreamEnd> {
        match self.account.charge(0, messages) {
            Pace::Go => Ok(()),
            Pace::Close => Err(StreamEnd::OverQuota),
            Pace::Wait(pause) => tokio::select! {
                () = sleep(pause) => Ok(()),
                ended = ended(&mut self.orders, order) => Err(ended),
            },
        }
    }

    /// Waits until the peer would be authenticated by one of `roots`: after a change of the
    /// declared ones, a session under the former must not announce these again.
    async fn until_in_force(&self, order: &Order, roots: &[Bundle]) -> Result<(), StreamEnd> {
        let domain = order.destination.federation.trust_domain();
        let mut material = self.context.material.clone();
        let in_force = async {
            loop {
                let current = material.current();
                if current
                    .bundles()
                    .get(domain)
                    .is_some_and(|held| roots.contains(held))
                {
                    return Ok(());
                }
                material.changed().await.map_err(|_| StreamEnd::Unwanted)?;
            }
        };
        timeout(OPEN_TIMEOUT, in_force)
            .await
            .map_err(|_| StreamEnd::Roots)?
    }

    /// The start, and the roots by one of which the peer must be authenticated.
    async fn start(&self) -> Result<(v1::SyncStart, Vec<Bundle>), StreamEnd> {
        let (reply, answer) = oneshot::channel();
        let input = Input::Subscription(self.peer.clone(), reply);
        self.context
            .inputs
            .send(input)
            .await
            .map_err(|_| StreamEnd::Unwanted)?;
        let held: SubscriptionStart = answer.await.map_err(|_| StreamEnd::Unwanted)?;
        let known = held.known.into_iter().map(|(key, hash)| v1::KnownRecord {
            key,
            hash: bytes::Bytes::copy_from_slice(hash.as_bytes()),
        });
        let start = v1::SyncStart {
            cluster: self.context.own.cluster.to_string(),
            clusterset: self.context.own.clusterset.clone(),
            version: VERSION.into(),
            now_unix_millis: now_unix_millis(),
            known: known.collect(),
            epoch: held.epoch,
        };
        Ok((start, held.roots))
    }

    async fn apply(&mut self, order: &Order, events: Vec<Event>) -> Result<(), StreamEnd> {
        let completes = events.contains(&Event::Complete);
        let (reply, verdict) = oneshot::channel();
        let heard = Heard {
            peer: self.peer.clone(),
            stream: order.stream,
            events,
            reply,
        };
        let sent = self.context.inputs.send(Input::Heard(heard)).await;
        sent.map_err(|_| StreamEnd::Unwanted)?;
        verdict
            .await
            .map_err(|_| StreamEnd::Unwanted)?
            .map_err(StreamEnd::Hangup)?;
        if completes {
            self.live_since = Some(Instant::now());
            if std::mem::take(&mut self.failed) {
                tracing::info!(peer = %self.peer, again = self.was_live, "sync stream is live");
            }
            self.was_live = true;
        }
        Ok(())
    }

    /// Connections do not outlive what authenticated them: 80 % of the certificate's life.
    fn connection_life(&self) -> Duration {
        let expiry = self.context.material.current().svid().not_after();
        expiry
            .duration_since(SystemTime::now())
            .unwrap_or(Duration::ZERO)
            .mul_f64(0.8)
    }
}

/// A reason for logs and terminals: short, and without what could steer them.
fn shown(reason: &str) -> String {
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    reason.chars().map(plain).take(SHOWN_REASON).collect()
}

/// The next message and all others that are there already.
async fn batch(
    responses: &mut Streaming<v1::SyncResponse>,
    peer: &ClusterId,
    last: &mut u64,
) -> Result<Batch, StreamEnd> {
    let mut batch = Batch::default();
    let first = responses.message().await?.ok_or(StreamEnd::Closed)?;
    batch.push(first, peer, last)?;
    while batch.responses < BATCH {
        // An end is seen again by the next call; what preceded it is applied first.
        let Some(Ok(Some(next))) = responses.message().now_or_never() else {
            break;
        };
        batch.push(next, peer, last)?;
    }
    Ok(batch)
}

/// What is applied at once. A response may hold no event that we know; it counts all the same.
#[derive(Debug, Default)]
struct Batch {
    events: Vec<Event>,
    responses: usize,
}

impl Batch {
    fn push(
        &mut self,
        response: v1::SyncResponse,
        peer: &ClusterId,
        last: &mut u64,
    ) -> Result<(), StreamEnd> {
        if response.seq != last.saturating_add(1) {
            return Err(StreamEnd::Gap {
                last: *last,
                found: response.seq,
            });
        }
        *last = response.seq;
        self.responses += 1;
        let message = response.message;
        self.events
            .extend(message.and_then(|message| incoming::event(message, peer)));
        Ok(())
    }
}

/// Waits until the controller wants another stream than this, or none.
async fn ended(orders: &mut watch::Receiver<Order>, this: &Order) -> StreamEnd {
    let other =
        |order: &Order| order.stream != this.stream || order.destination != this.destination;
    let _ = orders.wait_for(other).await;
    StreamEnd::Unwanted
}

fn request(message: sync_request::Message) -> v1::SyncRequest {
    v1::SyncRequest {
        message: Some(message),
    }
}

pub(super) fn now_unix_millis() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// A gRPC channel over one connection, which is there already; it is never dialled again.
pub(crate) async fn channel(io: impl Io + 'static) -> io::Result<Channel> {
    let mut io = Some(TokioIo::new(io));
    let connector = service_fn(move |_| {
        let taken = io
            .take()
            .ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected));
        async move { taken }
    });
    tonic::transport::Endpoint::from_static("http://federation.linkspan.internal")
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(5))
        .connect_with_connector(connector)
        .await
        .map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_cannot_steer_the_terminal_on_which_its_reason_is_read() {
        let status = Status::failed_precondition(format!("\u{1b}[2Jgone\r\n{}", "x".repeat(9_000)));
        let text = shown(&StreamEnd::from(status).to_string());
        assert!(!text.chars().any(char::is_control), "{text}");
        assert!(text.contains("gone") && text.chars().count() == SHOWN_REASON);
    }
}

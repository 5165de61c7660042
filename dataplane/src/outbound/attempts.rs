//! The tries of one call: where it has been, where it should not go next, and when to give up.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    connect::pool::LeaseError,
    forward::http::{RetryBudget, SendError, retry::pause},
};
use linkspan_routing::{ClusterId, EndpointKey, Failure, NoEndpoint, Pick, Try};
use tokio::time::{sleep, timeout_at};

use super::{dial::DialError, services::Destination};

/// Tries in which the call may have been seen by an endpoint.
const MAX_SENT: u32 = 5;
/// Tries in all; most of them fail within a round trip, while connecting.
const MAX_TRIES: u32 = 12;
/// How long a call waits for an endpoint when there is none at all: enough for a probe, or for
/// discovery, to tell of a recovery.
const WAIT_FOR_ENDPOINT: Duration = Duration::from_secs(1);

/// Why a try failed before an answer began.
#[derive(Debug, thiserror::Error)]
pub(super) enum TryError {
    /// There was no connection to be had.
    #[error(transparent)]
    Connect(#[from] LeaseError<DialError>),
    /// There was none to be had, for opaque bytes.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The request failed on its connection.
    #[error(transparent)]
    Send(#[from] SendError),
    /// The endpoint's cluster became unusable meanwhile.
    #[error("the endpoint's cluster became unusable")]
    Abandoned,
    /// The body cannot be sent from its beginning again.
    #[error("the request's body is too long to be sent again, or was cancelled")]
    NoBody,
    /// No answer.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
}

impl TryError {
    /// How connecting failed, if that is it.
    fn dial(&self) -> Option<&DialError> {
        match self {
            Self::Connect(LeaseError::Dial(error)) => Some(error),
            Self::Dial(error) => Some(error),
            _ => None,
        }
    }

    /// Whether the call was provably not processed.
    pub(super) fn is_unprocessed(&self) -> bool {
        match self {
            Self::Connect(_) | Self::Dial(_) => true,
            Self::Send(error) => error.is_unprocessed(),
            Self::Abandoned | Self::NoBody | Self::Timeout(_) => false,
        }
    }

    /// Whether an endpoint may have seen the call.
    fn was_sent(&self) -> bool {
        !matches!(
            self,
            Self::Connect(_) | Self::Dial(_) | Self::Send(SendError::Unsent(_)) | Self::NoBody
        )
    }

    /// Whether a connection, an endpoint or a link was lost, rather than an answer given.
    fn is_loss(&self) -> bool {
        match self {
            Self::Connect(LeaseError::Dial(error)) => !error.is_overload(),
            Self::Dial(error) => !error.is_overload(),
            Self::Connect(LeaseError::Abandoned | LeaseError::Handshake(_)) => true,
            Self::Send(error) => {
                matches!(
                    error,
                    SendError::Unsent(_) | SendError::Closing(_) | SendError::Lost(_)
                )
            }
            Self::Abandoned => true,
            Self::NoBody | Self::Timeout(_) => false,
        }
    }

    /// What it says about the endpoint, which is `remote` if it lies behind gateways.
    fn failure(&self, remote: bool) -> Option<Failure> {
        match self {
            Self::Connect(LeaseError::Dial(error)) => error.failure(),
            Self::Dial(error) => error.failure(),
            Self::Connect(LeaseError::Handshake(_)) => Some(Failure::Connect),
            Self::Connect(LeaseError::Abandoned) | Self::Abandoned | Self::NoBody => None,
            Self::Send(SendError::Unsent(_) | SendError::Closing(_)) => None,
            // The receiving sidecar says so when its application does not take the connection.
            Self::Send(SendError::Refused(_)) => Some(Failure::Connect),
            Self::Send(SendError::Reset(_)) => Some(Failure::Reset),
            // Behind gateways it may as well be the gateway or the tunnel that is lost; connecting
            // anew tells which.
            Self::Send(SendError::Lost(_)) => (!remote).then_some(Failure::Reset),
            Self::Timeout(_) => Some(Failure::Timeout),
        }
    }

    /// Whether other endpoints of the same cluster had better be avoided: what was lost may be the
    /// way to all of them.
    fn suspects_cluster(&self) -> bool {
        match self {
            Self::Connect(LeaseError::Dial(_)) | Self::Dial(_) => {
                self.dial().is_some_and(|error| error.failure().is_none())
            }
            Self::Connect(LeaseError::Abandoned) | Self::Abandoned => true,
            Self::Send(SendError::Lost(_)) => true,
            _ => false,
        }
    }

    /// A word for metrics.
    fn reason(&self) -> &'static str {
        match self {
            Self::Connect(_) | Self::Dial(_) => "connect",
            Self::Send(SendError::Unsent(_) | SendError::Closing(_)) => "closing",
            Self::Send(SendError::Refused(_)) => "refused",
            Self::Send(SendError::Reset(_)) => "reset",
            Self::Send(SendError::Lost(_)) => "lost",
            Self::Abandoned => "unusable",
            Self::NoBody => "body",
            Self::Timeout(_) => "timeout",
        }
    }
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    /// There is nobody to ask.
    #[error(transparent)]
    NoEndpoint(#[from] NoEndpoint),
    /// The last try failed, and there may be no other.
    #[error("after {tries} tries")]
    Failed {
        /// How many.
        tries: u32,
        /// How the last one failed.
        #[source]
        last: TryError,
    },
}

/// The tries of one call so far.
#[derive(Debug)]
pub(super) struct Attempts {
    idempotent: bool,
    tried: Vec<EndpointKey>,
    avoided: Vec<ClusterId>,
    tries: u32,
    sent: u32,
    round: u32,
    wait_until: Option<tokio::time::Instant>,
}

impl Attempts {
    /// None yet, of a call that may be processed twice or may not.
    pub(super) fn new(idempotent: bool) -> Self {
        Self {
            idempotent,
            tried: Vec::new(),
            avoided: Vec::new(),
            tries: 0,
            sent: 0,
            round: 0,
            wait_until: None,
        }
    }

    /// Tries beyond the first.
    pub(super) fn retries(&self) -> u32 {
        self.tries.saturating_sub(1)
    }

    /// Whether the call may be repeated though it may have been processed.
    pub(super) fn is_idempotent(&self) -> bool {
        self.idempotent
    }

    /// An endpoint for the next try: best one that was not tried, in a cluster that is not
    /// suspected; then one that was not tried; then, after a pause, any. Waits a little for
    /// one to appear if there is none at all.
    pub(super) async fn pick(&mut self, destination: &Destination) -> Result<Pick, CallError> {
        if self.tries == 0 {
            destination.balancer.admit();
        }
        let pick = match self.pick_now(destination) {
            Ok(pick) => pick,
            Err(none) if is_final(&none) => return Err(none.into()),
            Err(_) => self.pick_later(destination).await?,
        };
        self.tries += 1;
        destination.path(pick.endpoint()).chosen(&pick.reason());
        Ok(pick)
    }

    /// Starts over with those that were tried, or waits for a change.
    async fn pick_later(&mut self, destination: &Destination) -> Result<Pick, CallError> {
        // Before looking once more, so that no change is missed.
        let mut changes = destination.changes();
        loop {
            let none = match self.pick_now(destination) {
                Ok(pick) => return Ok(pick),
                Err(none) if is_final(&none) => return Err(none.into()),
                Err(none) => none,
            };
            if none == NoEndpoint::AllExcluded && !self.tried.is_empty() {
                self.tried.clear();
                self.avoided.clear();
                sleep(pause(self.round, rand::random())).await;
                self.round += 1;
                continue;
            }
            let wait = || tokio::time::Instant::now() + WAIT_FOR_ENDPOINT;
            let until = *self.wait_until.get_or_insert_with(wait);
            if !matches!(timeout_at(until, changes.changed()).await, Ok(Ok(()))) {
                return Err(none.into());
            }
        }
    }

    fn pick_now(&self, destination: &Destination) -> Result<Pick, NoEndpoint> {
        let balancer = &destination.balancer;
        let (now, mut random) = (Instant::now(), rand::random::<u64>);
        if self.tries == 0 {
            return balancer.pick(now, &mut random, Try::First);
        }
        if !self.avoided.is_empty()
            && let Some(known) = destination.known()
        {
            let mut exclude = self.tried.clone();
            exclude.extend(known.endpoints_in(&self.avoided));
            if let Ok(pick) = balancer.pick(now, &mut random, Try::Again(&exclude)) {
                return Ok(pick);
            }
        }
        balancer.pick(now, &mut random, Try::Again(&self.tried))
    }

    /// A try has failed: notes what it says about the endpoint, and decides whether there may be
    /// another.
    ///
    /// # Errors
    /// If there may not.
    pub(super) fn failed(
        &mut self,
        error: TryError,
        pick: &Pick,
        destination: &Destination,
    ) -> Result<(), CallError> {
        let endpoint = pick.endpoint();
        if let Some(failure) = error.failure(endpoint.address.is_none()) {
            pick.failed(Instant::now(), failure);
        }
        if let Some(dial) = error.dial() {
            let path = destination.path(endpoint);
            path.route().connect_failed(dial.reason());
        }
        self.sent += u32::from(error.was_sent());
        self.exclude(&error, endpoint);
        if !self.may_repeat(&error, &destination.budget) {
            return Err(CallError::Failed {
                tries: self.tries,
                last: error,
            });
        }
        destination.path(endpoint).route().retried(error.reason());
        Ok(())
    }

    fn exclude(&mut self, error: &TryError, endpoint: &Arc<linkspan_routing::Endpoint>) {
        self.tried.push(endpoint.key());
        let elsewhere = endpoint.address.is_none();
        if elsewhere && error.suspects_cluster() && !self.avoided.contains(&endpoint.cluster) {
            self.avoided.push(endpoint.cluster.clone());
        }
    }

    fn may_repeat(&self, error: &TryError, budget: &RetryBudget) -> bool {
        if matches!(error, TryError::NoBody) || self.tries >= MAX_TRIES || self.sent >= MAX_SENT {
            return false;
        }
        if !error.is_unprocessed() && !self.idempotent {
            return false;
        }
        // See `forward::http::retry` for why losses are not in the budget.
        error.is_loss() || budget.take(Instant::now())
    }
}

/// Whether it is of no use to ask again: the cap has left this call out.
fn is_final(none: &NoEndpoint) -> bool {
    matches!(none, NoEndpoint::RemoteShareUsed { .. })
}

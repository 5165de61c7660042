//! HTTP calls: an endpoint for each request, and another one when the first is lost.

use std::{convert::Infallible, net::SocketAddr, time::Instant};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header, uri::Authority};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use linkspan_dataplane::{
    connect::pool::Lease,
    forward::http::{
        BodyError, Incoming, Moved, Observer, ReceivedBody, Replay, ReplayBody, SendError, Upload,
        Watched, headers, retry::is_idempotent, send, serve, serve::ServeLimits,
    },
    report::{Access, RequestReport},
};
use linkspan_routing::{Endpoint, Failure, Pick};
use linkspan_runtime::{BoxError, process::chain};
use tokio::io::{AsyncRead, AsyncWrite};
use tracing::debug;

use super::{
    Outbound, Resolved,
    attempts::{Attempts, CallError, TryError},
};
use crate::{dial::Remote, services::Destination};

type Body = UnsyncBoxBody<Bytes, BodyError>;
type CallBody = ReplayBody<Upload>;

impl Outbound {
    /// Serves the requests of one connection.
    pub(super) async fn http<IO>(&self, io: IO, caller: SocketAddr)
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let outbound = self.clone();
        let handler = move |request| {
            let outbound = outbound.clone();
            async move { Ok::<_, BoxError>(outbound.request(request, caller).await) }
        };
        let served = serve(io, ServeLimits::default(), self.inner.stop.clone(), handler).await;
        if let Err(error) = served {
            debug!(%caller, error = %chain(&*error), "HTTP connection ended badly");
        }
    }

    /// One request: where to, whom, send, answer.
    async fn request(&self, request: Request<Incoming>, caller: SocketAddr) -> Response<Body> {
        if request.method() == Method::CONNECT {
            return refusal(StatusCode::METHOD_NOT_ALLOWED, "CONNECT is not supported");
        }
        let resolved = match self.resolve().await {
            Ok(resolved) => resolved,
            Err(error) => return refusal(StatusCode::SERVICE_UNAVAILABLE, &error.to_string()),
        };
        let mut call = match self.call(request, resolved, caller) {
            Ok(call) => call,
            Err(error @ headers::BadAuthority) => {
                return refusal(StatusCode::BAD_REQUEST, &error.to_string());
            }
        };
        call.resolved.destination.budget.request();
        match Box::pin(call.answered()).await {
            Ok(answered) => call.pass_on(answered),
            Err(error) => call.fail(&error),
        }
    }

    fn call(
        &self,
        request: Request<Incoming>,
        resolved: Resolved,
        caller: SocketAddr,
    ) -> Result<Call, headers::BadAuthority> {
        let mut access = self.access(caller);
        access.source = Some(resolved.own.clone());
        let report = report(access, &request, &resolved.destination);
        let attempts = Attempts::new(is_idempotent(request.method(), request.headers()));
        let moved = Moved::default();
        let (mut head, body) = Upload::from_request(request, moved.clone()).into_parts();
        headers::for_http2(&mut head, &fallback_authority(&resolved.destination))?;
        let body = Replay::new(body);
        Ok(Call {
            resolved,
            head,
            body,
            attempts,
            report,
            moved,
            idle: self.inner.idle,
        })
    }
}

fn report(access: Access, request: &Request<Incoming>, to: &Destination) -> RequestReport {
    // Not logged, not copied.
    let (method, path) = if access.log {
        (
            request.method().to_string(),
            request.uri().path().to_owned(),
        )
    } else {
        (String::new(), String::new())
    };
    RequestReport::begin(access, to.metrics.unanswered.clone(), method, path)
}

/// The host of a request that names none.
fn fallback_authority(destination: &Destination) -> Authority {
    let name = format!(
        "{}.{}",
        destination.service.name, destination.service.namespace
    );
    Authority::try_from(name).unwrap_or_else(|_| Authority::from_static("localhost"))
}

/// An answer whose head is here, and what its body still occupies.
struct Answered {
    answer: Response<ReceivedBody>,
    lease: Lease,
    pick: Pick,
}

/// One request on its way.
struct Call {
    resolved: Resolved,
    head: http::request::Parts,
    body: Replay<Upload>,
    attempts: Attempts,
    report: RequestReport,
    moved: Moved,
    idle: std::time::Duration,
}

impl Call {
    /// Tries endpoints until one answers.
    async fn answered(&mut self) -> Result<Answered, CallError> {
        loop {
            let pick = self.attempts.pick(&self.resolved.destination).await?;
            match self.attempt(&pick).await {
                Ok((answer, lease)) => {
                    return Ok(Answered {
                        answer,
                        lease,
                        pick,
                    });
                }
                Err(error) => {
                    debug!(endpoint = %pick.endpoint().id, error = %chain(&error), "try failed");
                    self.attempts
                        .failed(error, &pick, &self.resolved.destination)?;
                }
            }
        }
    }

    /// Sends the request to one endpoint and waits for the head of its answer.
    async fn attempt(&self, pick: &Pick) -> Result<(Response<ReceivedBody>, Lease), TryError> {
        let body = self.body.body().ok_or(TryError::NoBody)?;
        let lease = self
            .resolved
            .destination
            .pool
            .lease(&Remote::from(&**pick.endpoint()))
            .await?;
        let began = Instant::now();
        let may_leave = self.attempts.is_idempotent() && self.body.can_repeat();
        // Each try has its time.
        self.moved.note();
        let answer = tokio::select! {
            answer = send(lease.requests(), self.try_of(body)) => answer,
            () = self.moved.idle(self.idle) => return Err(TryError::Timeout(self.idle)),
            // Its answer would come late or never; somebody else has one now.
            () = lease.abandoned(), if may_leave => return Err(TryError::Abandoned),
        };
        match answer {
            Ok(answer) => {
                self.body.commit();
                note_answer(pick, &answer, began);
                Ok((answer, lease))
            }
            Err(_) if self.body.is_broken() => Err(TryError::NoBody),
            Err(error) => {
                if !matches!(error, SendError::Refused(_) | SendError::Reset(_)) {
                    lease.broken();
                }
                Err(error.into())
            }
        }
    }

    fn try_of(&self, body: CallBody) -> Request<CallBody> {
        Request::from_parts(self.head.clone(), body)
    }

    /// Passes an answer on to the client.
    fn pass_on(mut self, answered: Answered) -> Response<Body> {
        let Answered {
            answer,
            lease,
            pick,
        } = answered;
        let endpoint = pick.endpoint();
        if let Some(handles) = self.resolved.known.requests(&endpoint.cluster) {
            self.report.measure(handles);
        }
        self.report.status(answer.status().as_u16());
        self.describe(endpoint.clone(), &pick);
        let Self {
            report,
            moved,
            idle,
            ..
        } = self;
        let passing = Passing {
            pick,
            report,
            _lease: lease,
        };
        let mut answer = answer.map(|body| Watched::new(body, passing, moved, idle).boxed_unsync());
        *answer.version_mut() = http::Version::default();
        headers::strip_hop_by_hop(answer.headers_mut());
        answer
    }

    /// Fills the access-log line.
    fn describe(&mut self, endpoint: std::sync::Arc<Endpoint>, pick: &Pick) {
        self.report.retries = self.attempts.retries();
        let access = &mut self.report.access;
        if !access.log {
            return;
        }
        access.cluster = Some(endpoint.cluster.clone());
        access.locality = Some(endpoint.locality.clone());
        access.endpoint = Some(endpoint.id.clone());
        access.destination = Some(endpoint.identity.clone());
        let why = pick.reason();
        access.why = Some(format!(
            "priority {} ({:?}, {:?})",
            why.priority, why.rank, why.choice
        ));
    }

    fn fail(mut self, error: &CallError) -> Response<Body> {
        self.report.retries = self.attempts.retries();
        self.report.fail(error);
        let status = match error {
            CallError::NoEndpoint(_) => StatusCode::SERVICE_UNAVAILABLE,
            CallError::Failed {
                last: TryError::Timeout(_),
                ..
            } => StatusCode::GATEWAY_TIMEOUT,
            CallError::Failed { last, .. } if last.is_unprocessed() => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            CallError::Failed { .. } => StatusCode::BAD_GATEWAY,
        };
        self.report.status(status.as_u16());
        refusal(status, &chain(error))
    }
}

fn note_answer(pick: &Pick, answer: &Response<ReceivedBody>, began: Instant) {
    let now = Instant::now();
    if answer.status().is_server_error() {
        pick.failed(now, Failure::Status5xx);
    } else {
        pick.succeeded(now, now.saturating_duration_since(began));
    }
}

/// An answer of our own, for people to read.
fn refusal(status: StatusCode, why: &str) -> Response<Body> {
    let body = Full::new(Bytes::from(format!("linkspan: {why}\n")));
    let mut answer = Response::new(
        body.map_err(|error: Infallible| match error {})
            .boxed_unsync(),
    );
    *answer.status_mut() = status;
    let text = header::HeaderValue::from_static("text/plain; charset=utf-8");
    answer.headers_mut().insert(header::CONTENT_TYPE, text);
    answer
}

/// What lives as long as an answer's body: the endpoint's load and the report.
struct Passing {
    pick: Pick,
    report: RequestReport,
    _lease: Lease,
}

impl Observer for Passing {
    fn bytes(&mut self, _: usize) {}

    fn ended(mut self, end: Result<(), &BodyError>) {
        if let Err(error) = end {
            // Which of endpoint and path broke off is not known behind gateways.
            if self.pick.endpoint().address.is_some() {
                self.pick.failed(Instant::now(), Failure::Reset);
            }
            self.report.fail(error);
        }
    }
}

//! HTTP calls: an endpoint for each request, and another one when the first is lost.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    connect::pool::Lease,
    forward::http::{
        BodyError, Incoming, Moved, Observer, ReceivedBody, Replay, ReplayBody, SendError, Upload,
        Watched, grpc, headers, retry::is_idempotent, send, serve, trace,
    },
    report::RequestReport,
};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header, uri::Authority};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use linkspan_routing::{Endpoint, Failure, Pick};
use linkspan_runtime::{
    BoxError,
    process::chain,
    telemetry::RequestHandles,
    trace::{Kind, Span},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Semaphore,
};
use tracing::debug;

use super::{
    Outbound, Resolved,
    attempts::{Attempts, CallError, TryError},
    dial::Remote,
    services::Destination,
};

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
        let served = serve(io, self.inner.limits, self.inner.stop.clone(), handler).await;
        if let Err(error) = served {
            debug!(%caller, error = %chain(&*error), "HTTP connection ended badly");
        }
    }

    /// One request: where to, whom, send, answer.
    async fn request(&self, request: Request<Incoming>, caller: SocketAddr) -> Response<Body> {
        if request.method() == Method::CONNECT {
            let status = StatusCode::METHOD_NOT_ALLOWED;
            return self.refused(&request, caller, status, "CONNECT is not supported");
        }
        let places = self.inner.requests.as_deref();
        let Ok(_place) = places.map(Semaphore::try_acquire).transpose() else {
            let status = StatusCode::SERVICE_UNAVAILABLE;
            return self.refused(&request, caller, status, "too many requests wait already");
        };
        let resolved = match self.resolve().await {
            Ok(resolved) => resolved,
            Err(error) => {
                let status = StatusCode::SERVICE_UNAVAILABLE;
                return self.refused(&request, caller, status, &error.to_string());
            }
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

    /// Refuses a request before anything was done for it; that is told and counted, too.
    fn refused(
        &self,
        request: &Request<Incoming>,
        caller: SocketAddr,
        status: StatusCode,
        why: &str,
    ) -> Response<Body> {
        let handles = match self.nowhere() {
            Some(path) => Arc::clone(path.requests()),
            None => Arc::new(RequestHandles::detached()),
        };
        let access = self.access(caller);
        let mut report = RequestReport::begin(access, handles, request, Span::unrecorded());
        report.status(status.as_u16());
        report.refused(why);
        refusal(status, why)
    }

    fn call(
        &self,
        mut request: Request<Incoming>,
        resolved: Resolved,
        caller: SocketAddr,
    ) -> Result<Call, headers::BadAuthority> {
        let mut access = self.access(caller);
        access.source = Some(resolved.own.clone());
        let to = &*resolved.destination;
        let tracer = &to.pool.dial().tracer;
        let span = trace::begin(tracer, request.headers_mut(), Kind::Client);
        let handles = Arc::clone(to.metrics.nowhere.requests());
        let mut report = RequestReport::begin(access, handles, &request, span);
        let attempts = Attempts::new(is_idempotent(request.method(), request.headers()));
        let moved = Moved::default();
        let (mut head, body) = Upload::from_request(request, moved.clone()).into_parts();
        headers::for_http2(&mut head, &fallback_authority(&resolved.destination)).inspect_err(
            |error| {
                report.refused(&error.to_string());
                report.status(StatusCode::BAD_REQUEST.as_u16());
            },
        )?;
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
    verdict: Verdict,
}

/// One request on its way.
struct Call {
    resolved: Resolved,
    head: http::request::Parts,
    body: Replay<Upload>,
    attempts: Attempts,
    report: RequestReport,
    moved: Moved,
    idle: Duration,
}

impl Call {
    /// Tries endpoints until one answers.
    async fn answered(&mut self) -> Result<Answered, CallError> {
        loop {
            let pick = self.attempts.pick(&self.resolved.destination).await?;
            match self.attempt(&pick).await {
                Ok((answer, lease, verdict)) => {
                    return Ok(Answered {
                        answer,
                        lease,
                        pick,
                        verdict,
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
    async fn attempt(
        &self,
        pick: &Pick,
    ) -> Result<(Response<ReceivedBody>, Lease, Verdict), TryError> {
        let body = self.body.body().ok_or(TryError::NoBody)?;
        let lease = self
            .resolved
            .destination
            .pool
            .lease_for(&Remote::from(&**pick.endpoint()), self.report.span())
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
                let verdict = Verdict::of_head(&answer, began.elapsed());
                verdict.tell(pick);
                Ok((answer, lease, verdict))
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
            verdict,
        } = answered;
        let endpoint = pick.endpoint();
        let path = self.resolved.destination.path(endpoint);
        self.report.measure(Arc::clone(path.requests()));
        self.report.status(answer.status().as_u16());
        if verdict == Verdict::Bad && !answer.status().is_server_error() {
            self.report.grpc_failed();
        }
        if let Some(connection) = lease.span() {
            self.report.over(connection);
        }
        self.describe(endpoint.clone(), &pick);
        let Self {
            report,
            moved,
            idle,
            ..
        } = self;
        let passing = Passing {
            pick,
            verdict,
            report,
            _lease: lease,
        };
        let mut answer = answer.map(|body| Watched::new(body, passing, moved, idle).boxed_unsync());
        *answer.version_mut() = http::Version::default();
        headers::strip_hop_by_hop(answer.headers_mut());
        answer
    }

    /// Fills the access-log line.
    fn describe(&mut self, endpoint: Arc<Endpoint>, pick: &Pick) {
        self.report.retries = self.attempts.retries();
        if !self.report.is_told() {
            return;
        }
        let access = &mut self.report.access;
        access.cluster = Some(endpoint.cluster.clone());
        access.locality = Some(endpoint.locality.clone());
        access.endpoint = Some(endpoint.id.clone());
        access.destination = Some(endpoint.identity.clone());
        access.why = Some(pick.reason().to_string());
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

/// What an answer says of its endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// It serves; its answer's head took so long.
    Good(Duration),
    Bad,
    /// A gRPC answer tells later: by its first message, or by trailers instead of one.
    Open(Duration),
}

impl Verdict {
    fn of_head<B>(answer: &Response<B>, took: Duration) -> Self {
        let headers = answer.headers();
        if answer.status().is_server_error() {
            return Self::Bad;
        }
        if !grpc::is_grpc(headers) {
            return Self::Good(took);
        }
        match grpc::has_failed(headers) {
            Some(true) => Self::Bad,
            Some(false) => Self::Good(took),
            None => Self::Open(took),
        }
    }

    /// As of the first bytes of a body.
    fn of_message(self) -> Self {
        match self {
            Self::Open(took) => Self::Good(took),
            known => known,
        }
    }

    /// As of the trailers, or of an end without any.
    fn of_end(self, trailers: &HeaderMap) -> Self {
        match (self, grpc::has_failed(trailers)) {
            // An end without a status is a failure, too.
            (_, Some(true)) | (Self::Open(_), None) => Self::Bad,
            (known, _) => known.of_message(),
        }
    }

    fn tell(self, pick: &Pick) {
        match self {
            Self::Good(took) => pick.succeeded(Instant::now(), took),
            Self::Bad => pick.failed(Instant::now(), Failure::Status5xx),
            Self::Open(_) => {}
        }
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
    verdict: Verdict,
    report: RequestReport,
    _lease: Lease,
}

impl Passing {
    fn learn(&mut self, verdict: Verdict) {
        if verdict != self.verdict {
            self.verdict = verdict;
            verdict.tell(&self.pick);
            if verdict == Verdict::Bad {
                self.report.grpc_failed();
            }
        }
    }
}

impl Observer for Passing {
    fn bytes(&mut self, count: usize) {
        if count > 0 {
            self.learn(self.verdict.of_message());
        }
    }

    fn trailers(&mut self, trailers: &HeaderMap) {
        self.learn(self.verdict.of_end(trailers));
    }

    fn ended(mut self, end: Result<(), &BodyError>) {
        match end {
            Ok(()) => self.learn(self.verdict.of_end(&HeaderMap::new())),
            Err(error) => {
                // Which of endpoint and path broke off is not known behind gateways.
                if self.pick.endpoint().address.is_some() {
                    self.pick.failed(Instant::now(), Failure::Reset);
                }
                self.report.fail(error);
            }
        }
    }
}

//! HTTP calls to the workload.
//!
//! When the application does not take a request, the source is told so in a way that lets it send
//! the request elsewhere whatever it is: its stream is reset with `REFUSED_STREAM`. When the
//! application fails while it has the request, the stream is reset with `INTERNAL_ERROR`, and
//! the source repeats the request only if that is safe.

use std::{sync::Arc, time::Duration};

use crate::{
    connect::mtls::Alpn,
    forward::{
        bytes::Duplex,
        http::{
            BodyError, Incoming, Moved, Observer, Upload, Watched,
            grpc::{has_failed, is_grpc},
            headers, serve,
            serve::{lost, refused},
            trace,
        },
    },
    report::{Access, ConnectionReport, Outcome, RequestReport},
};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, request::Parts, uri::Authority};
use http_body_util::{BodyExt, Empty};
use linkspan_routing::AppProtocol;
use linkspan_runtime::{
    BoxError,
    process::chain,
    telemetry::{ConnectionHandles, RequestHandles},
    trace::{Kind, Span},
};
use linkspan_trust::SpiffeId;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Semaphore,
    time::timeout,
};
use tracing::debug;

use super::{
    Caller, Inbound,
    app::{AppError, Body},
    check::{self, Refusal},
};

/// Caller's requests over one connection.
struct Session {
    inbound: Inbound,
    caller: Caller,
    handles: Arc<RequestHandles>,
}

impl Inbound {
    /// Serves the requests of one caller's connection.
    pub(super) async fn http<IO>(&self, io: IO, caller: Caller)
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let traffic = &self.inner.traffic;
        let session = Arc::new(Session {
            inbound: self.clone(),
            handles: self.on_path(&caller, |path| traffic.requests(path)),
            caller,
        });
        let id = session.caller.id.clone();
        let handler = move |request| {
            let session = Arc::clone(&session);
            async move { Box::pin(session.request(request)).await }
        };
        let served = serve(io, self.inner.limits, self.inner.stop.clone(), handler).await;
        if let Err(error) = served {
            debug!(caller = %id, error = %chain(&*error), "connection ended badly");
        }
    }

    /// Tells a caller that may not pass: HTTP by an answer to each request, opaque bytes by a reset.
    /// `access` is what its lines say.
    pub(super) async fn refuse<IO>(&self, mut io: IO, alpn: Alpn, refusal: Refusal, access: Access)
    where
        IO: Duplex + 'static,
    {
        if alpn == Alpn::Tcp {
            io.reset();
            // What it asks for may be anything, and so is no label.
            let handles = Arc::new(ConnectionHandles::detached());
            let report = ConnectionReport::open(access, handles);
            return report.fail(Outcome::Failed, &refusal);
        }
        let (lines, handles) = (self.inner.access_log, Arc::new(RequestHandles::detached()));
        let handler = move |request: Request<Incoming>| {
            let mistake = refusal.is_mistake();
            let mut access = access.clone();
            access.log = lines.draw();
            let handles = Arc::clone(&handles);
            let mut report = RequestReport::begin(access, handles, &request, Span::unrecorded());
            report.refused(&refusal.to_string());
            if !mistake {
                report.status(StatusCode::FORBIDDEN.as_u16());
            }
            drop(report);
            async move {
                if mistake {
                    Err(refused())
                } else {
                    Ok(empty(StatusCode::FORBIDDEN))
                }
            }
        };
        let serving = serve(io, self.inner.limits, self.inner.stop.clone(), handler);
        // How a refused connection ends is nobody's concern.
        let _ = timeout(self.inner.idle, serving).await;
    }
}

impl Session {
    /// One request: may it still, ask the application, answer.
    async fn request(&self, mut request: Request<Incoming>) -> Result<Response<Body>, BoxError> {
        let mut report = self.report(&mut request);
        if request.method() == Method::CONNECT {
            report.status(StatusCode::METHOD_NOT_ALLOWED.as_u16());
            return Ok(empty(StatusCode::METHOD_NOT_ALLOWED));
        }
        self.still_admitted()
            .inspect_err(|_| report.refused("the caller is admitted no longer"))?;
        let places = self.inbound.inner.requests.as_deref();
        let place = places.map(Semaphore::try_acquire).transpose();
        let place = place.inspect_err(|_| report.refused("too many requests wait already"));
        let _place = place.map_err(|_| refused())?;
        let (idle, moved) = (self.inbound.inner.idle, Moved::default());
        let request = Upload::from_request(request, moved.clone());
        let answer = tokio::select! {
            answer = self.ask(request) => answer,
            () = moved.idle(idle) => return Ok(no_answer(report, idle)),
        };
        match answer {
            Ok(mut answer) => {
                report.status(answer.status().as_u16());
                if has_failed(answer.headers()) == Some(true) {
                    report.grpc_failed();
                }
                headers::strip_hop_by_hop(answer.headers_mut());
                *answer.version_mut() = http::Version::default();
                let watched = |body| Watched::new(body, Passing(report), moved, idle);
                Ok(answer.map(|body| watched(body).boxed_unsync()))
            }
            Err(AppError::BadAuthority(error)) => {
                report.fail(&error);
                report.status(StatusCode::BAD_REQUEST.as_u16());
                Ok(empty(StatusCode::BAD_REQUEST))
            }
            Err(error) => {
                report.fail(&error);
                debug!(app = %self.caller.app, error = %chain(&error), "no answer from the application");
                Err(reset_for(&error))
            }
        }
    }

    /// What was exported when the connection began may no longer be.
    fn still_admitted(&self) -> Result<(), BoxError> {
        let inner = &self.inbound.inner;
        let passage = &self.caller.passage;
        let target = crate::target::Target {
            endpoint: None,
            port: passage.port.port,
            service: passage.service.clone(),
            cluster: inner.own.cluster.clone(),
        };
        let rules = inner.rules.load();
        let passage = check::passage(&inner.own, &rules.services, &self.caller.id, &target.into());
        passage.map(drop).map_err(|_| refused())
    }

    /// Sends the request to the application, which is told who calls.
    async fn ask(&self, request: Request<Upload>) -> Result<Response<Body>, AppError> {
        let (mut head, body) = request.into_parts();
        let app = &self.inbound.inner.app;
        let http2 = match self.caller.passage.port.app_protocol {
            AppProtocol::Http2 => true,
            // Nothing is declared; gRPC speaks nothing else, and the rest speaks HTTP/1.1.
            AppProtocol::Detect => is_grpc(&head.headers),
            AppProtocol::Http | AppProtocol::Tcp => false,
        };
        for_app(&mut head, http2, &self.inbound.own_id(), &self.caller.id)?;
        let request = Request::from_parts(head, body);
        if http2 {
            app.http2(self.caller.app, request).await
        } else {
            app.http1(self.caller.app, request).await
        }
    }

    fn report(&self, request: &mut Request<Incoming>) -> RequestReport {
        let inner = &self.inbound.inner;
        let span = trace::begin(&inner.tracer, request.headers_mut(), Kind::Server);
        let mut access = self.inbound.access(&self.caller);
        if access.log || span.is_recorded() {
            access.destination = Some(self.inbound.own_id());
        }
        RequestReport::begin(access, Arc::clone(&self.handles), request, span)
    }
}

/// Makes a request's head what the application gets. Who calls is said last: the caller decides
/// which fields `connection` names, and those are removed.
fn for_app(
    head: &mut Parts,
    http2: bool,
    own: &SpiffeId,
    caller: &SpiffeId,
) -> Result<(), headers::BadAuthority> {
    let fallback = Authority::from_static("localhost");
    if http2 {
        headers::for_http2(head, &fallback)?;
    } else {
        headers::for_http1(head, &fallback)?;
    }
    headers::set_caller(&mut head.headers, own, caller);
    Ok(())
}

fn no_answer(mut report: RequestReport, waited: Duration) -> Response<Body> {
    report.fail(&BodyError::Idle(waited));
    report.status(StatusCode::GATEWAY_TIMEOUT.as_u16());
    empty(StatusCode::GATEWAY_TIMEOUT)
}

fn reset_for(error: &AppError) -> BoxError {
    match error {
        AppError::Connect(_) | AppError::Unprocessed(_) | AppError::Handshake => refused(),
        AppError::Lost(_) | AppError::BadAuthority(_) => lost(),
    }
}

fn empty(status: StatusCode) -> Response<Body> {
    let body = Empty::<Bytes>::new()
        .map_err(|error| match error {})
        .boxed_unsync();
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    answer
}

/// Reports a request when its answer has passed.
struct Passing(RequestReport);

impl Observer for Passing {
    fn bytes(&mut self, _: usize) {}

    fn trailers(&mut self, trailers: &HeaderMap) {
        if has_failed(trailers) == Some(true) {
            self.0.grpc_failed();
        }
    }

    fn ended(mut self, end: Result<(), &BodyError>) {
        if let Err(error) = end {
            self.0.fail(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::forward::http::headers::FORWARDED_CLIENT_CERT;

    use super::*;

    #[test]
    fn a_caller_cannot_have_its_name_removed() {
        let own = "spiffe://west.test/ns/shop/sa/checkout".parse().unwrap();
        let caller = "spiffe://east.test/ns/shop/sa/frontend".parse().unwrap();
        for http2 in [false, true] {
            let request = Request::get("/")
                .header("host", "checkout")
                .header("connection", "close, X-Forwarded-Client-Cert")
                .header("x-forwarded-client-cert", "URI=forged");
            let mut head = request.body(()).unwrap().into_parts().0;
            for_app(&mut head, http2, &own, &caller).unwrap();
            let said: Vec<_> = head.headers.get_all(FORWARDED_CLIENT_CERT).iter().collect();
            assert_eq!(said, [&*format!("By={own};URI={caller}")], "{http2}");
        }
    }
}

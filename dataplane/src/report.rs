//! One access-log line and one set of metrics per connection or request, written by the value that
//! owns it: also when it is dropped half-way.
//!
//! Lines are events of target [`TARGET`] at level `info`; they can be filtered like any other
//! (`info,linkspan::access=off`).

use std::{fmt, net::SocketAddr, sync::Arc, time::Instant};

use http::Request;
use linkspan_routing::{ClusterId, EndpointId, Locality, ServiceKey};
use linkspan_runtime::{
    telemetry::{ConnectionHandles, Direction, RequestHandles},
    trace::{Span, SpanContext},
};
use linkspan_trust::SpiffeId;
use tracing::info;

use crate::forward::bytes::Counters;

/// `tracing` target of access-log lines.
pub const TARGET: &str = "linkspan::access";

/// Who talks to whom, and why there: filled as it becomes known.
#[derive(Clone, Debug)]
pub struct Access {
    /// Which way through this part.
    pub direction: Direction,
    /// Address of the caller.
    pub caller: Option<SocketAddr>,
    /// Identity of the source workload.
    pub source: Option<SpiffeId>,
    /// What was asked for.
    pub service: Option<ServiceKey>,
    /// Its Service port.
    pub port: Option<u16>,
    /// Cluster of the endpoint.
    pub cluster: Option<ClusterId>,
    /// Locality of the endpoint.
    pub locality: Option<Locality>,
    /// The endpoint.
    pub endpoint: Option<EndpointId>,
    /// Identity of the destination workload.
    pub destination: Option<SpiffeId>,
    /// Why that endpoint.
    pub why: Option<String>,
    /// What went on: `retry`, `idle`, `no-endpoint` …; our own words only.
    pub flags: Vec<&'static str>,
    /// Whether a line is written; metrics are counted in any case.
    pub log: bool,
}

impl Access {
    /// Nothing known but the direction.
    #[must_use]
    pub fn new(direction: Direction) -> Self {
        Self {
            direction,
            caller: None,
            source: None,
            service: None,
            port: None,
            cluster: None,
            locality: None,
            endpoint: None,
            destination: None,
            why: None,
            flags: Vec::new(),
            log: true,
        }
    }
}

impl Access {
    /// Says in a span what the line says.
    fn tell(&self, span: &mut Span) {
        let mut say = |key, value: Option<&dyn fmt::Display>| {
            if let Some(value) = value {
                span.text(key, value);
            }
        };
        fn shown<T: fmt::Display>(value: &Option<T>) -> Option<&dyn fmt::Display> {
            value.as_ref().map(|value| value as &dyn fmt::Display)
        }
        say("linkspan.direction", Some(&self.direction.as_str()));
        say("client.address", shown(&self.caller));
        say("linkspan.source", shown(&self.source));
        say("linkspan.service", shown(&self.service));
        say("server.port", shown(&self.port));
        say("linkspan.cluster", shown(&self.cluster));
        say("linkspan.locality", shown(&self.locality));
        say("linkspan.endpoint", shown(&self.endpoint));
        say("linkspan.destination", shown(&self.destination));
        say("linkspan.why", shown(&self.why));
        if !self.flags.is_empty() {
            say("linkspan.flags", Some(&Flags(&self.flags)));
        }
    }
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Both directions ended cleanly.
    Ok,
    /// It was refused, or no endpoint was reached.
    Failed,
    /// It was cut.
    Reset,
}

impl Outcome {
    /// The word in logs and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Failed => "failed",
            Self::Reset => "reset",
        }
    }
}

/// Owns the report of one connection. Dropped without [`end`](Self::end), it reports a reset.
#[derive(Debug)]
pub struct ConnectionReport {
    /// What the line will say.
    pub access: Access,
    started: Instant,
    counters: Arc<Counters>,
    handles: Arc<ConnectionHandles>,
    outcome: Outcome,
    error: Option<String>,
    span: Span,
}

impl ConnectionReport {
    /// Begins; `handles` are of the labels known by now.
    #[must_use]
    pub fn open(access: Access, handles: Arc<ConnectionHandles>) -> Self {
        handles.open.inc();
        let counters = counters_into(&handles);
        Self {
            access,
            started: Instant::now(),
            counters,
            handles,
            outcome: Outcome::Reset,
            error: None,
            span: Span::unrecorded(),
        }
    }

    /// Has it told in a span, too, which ends with it.
    #[must_use]
    pub fn traced(mut self, span: Span) -> Self {
        self.span = span;
        self
    }

    /// Its span.
    #[must_use]
    pub fn span(&self) -> Option<SpanContext> {
        self.span.context()
    }

    /// Says in the span what the line says.
    fn tell_span(&mut self) {
        if !self.span.is_recorded() {
            return;
        }
        self.access.tell(&mut self.span);
        self.span.number("linkspan.sent", self.counters.sent());
        self.span
            .number("linkspan.received", self.counters.received());
        if self.outcome != Outcome::Ok {
            let why = self.error.clone();
            self.span
                .fail(why.unwrap_or_else(|| self.outcome.as_str().to_owned()));
        }
    }

    /// Counts under these labels from now on, because more is known. To be called before bytes flow.
    pub fn measure(&mut self, handles: Arc<ConnectionHandles>) {
        self.handles.open.dec();
        handles.open.inc();
        self.counters = counters_into(&handles);
        self.handles = handles;
    }

    /// Where the relay counts its bytes.
    #[must_use]
    pub fn counters(&self) -> Arc<Counters> {
        self.counters.clone()
    }

    /// It ended well.
    pub fn end(mut self, outcome: Outcome) {
        self.outcome = outcome;
    }

    /// It ended badly; the error's causes are in the line.
    pub fn fail(mut self, outcome: Outcome, error: &dyn std::error::Error) {
        self.outcome = outcome;
        self.error = Some(linkspan_runtime::process::chain(error));
    }
}

fn counters_into(handles: &ConnectionHandles) -> Arc<Counters> {
    Arc::new(Counters::with_metrics(
        handles.sent.clone(),
        handles.received.clone(),
    ))
}

impl Drop for ConnectionReport {
    fn drop(&mut self) {
        self.handles.open.dec();
        match self.outcome {
            Outcome::Ok => self.handles.ok.inc(),
            Outcome::Failed => self.handles.failed.inc(),
            Outcome::Reset => self.handles.reset.inc(),
        }
        self.tell_span();
        let access = &self.access;
        if !access.log {
            return;
        }
        info!(
            target: TARGET,
            direction = access.direction.as_str(),
            outcome = self.outcome.as_str(),
            caller = %Or(&access.caller),
            source = %Or(&access.source),
            service = %Or(&access.service),
            port = %Or(&access.port),
            cluster = %Or(&access.cluster),
            locality = %Place(&access.locality),
            endpoint = %Or(&access.endpoint),
            destination = %Or(&access.destination),
            why = %Or(&access.why),
            flags = %Flags(&access.flags),
            sent = self.counters.sent(),
            received = self.counters.received(),
            millis = millis(self.started),
            error = self.error.as_deref().unwrap_or_default(),
            "connection"
        );
    }
}

/// Owns the report of one request. Dropped without a status, it reports a failure.
#[derive(Debug)]
pub struct RequestReport {
    /// What the line will say.
    pub access: Access,
    /// Method of the request.
    pub method: String,
    /// Path of the request, without its query, which may hold secrets.
    pub path: String,
    /// Tries beyond the first.
    pub retries: u32,
    started: Instant,
    handles: Arc<RequestHandles>,
    status: Option<u16>,
    grpc_failed: bool,
    error: Option<String>,
    /// Told the same as the line.
    span: Span,
}

impl RequestReport {
    /// Begins the report of a request with this head; `handles` are of the labels known by now.
    #[must_use]
    pub fn begin<B>(
        access: Access,
        handles: Arc<RequestHandles>,
        request: &Request<B>,
        span: Span,
    ) -> Self {
        let started = Instant::now();
        // Not told, not copied.
        let told = access.log || span.is_recorded();
        let copied = |text: &str| if told { text.to_owned() } else { String::new() };
        Self {
            access,
            method: copied(request.method().as_str()),
            path: copied(request.uri().path()),
            span,
            retries: 0,
            started,
            handles,
            status: None,
            grpc_failed: false,
            error: None,
        }
    }

    /// Whether anybody is told more than numbers.
    #[must_use]
    pub fn is_told(&self) -> bool {
        self.access.log || self.span.is_recorded()
    }

    /// Its span.
    #[must_use]
    pub fn span(&self) -> Option<SpanContext> {
        self.span.context()
    }

    /// It went over a connection with that span.
    pub fn over(&mut self, connection: SpanContext) {
        self.span.link(connection);
    }

    /// Says in the span what the line says.
    fn tell_span(&mut self) {
        let span = &mut self.span;
        if !span.is_recorded() {
            return;
        }
        let access = &self.access;
        match &access.service {
            Some(service) => span.name(format!("{} {service}", self.method)),
            None => span.name(&*self.method),
        }
        span.text("http.request.method", &self.method);
        span.text("url.path", &self.path);
        if let Some(status) = self.status {
            span.number("http.response.status_code", status.into());
        }
        access.tell(span);
        span.number("linkspan.retries", self.retries.into());
        let grpc = self
            .grpc_failed
            .then(|| "the gRPC status says so".to_owned());
        let status = self.status.filter(|status| *status >= 500);
        let status = status.map(|status| format!("status {status}"));
        let none = self.status.is_none().then(|| "cut".to_owned());
        if let Some(why) = self.error.clone().or(grpc).or(status).or(none) {
            span.fail(why);
        }
    }

    /// Counts under these labels, because more is known.
    pub fn measure(&mut self, handles: Arc<RequestHandles>) {
        self.handles = handles;
    }

    /// The answer's status. The answer's end is when this value is dropped.
    pub fn status(&mut self, status: u16) {
        self.status = Some(status);
    }

    /// The answer's gRPC status says that the server has failed, whatever its HTTP status says.
    pub fn grpc_failed(&mut self) {
        if !std::mem::replace(&mut self.grpc_failed, true) {
            self.access.flags.push("grpc-failed");
        }
    }

    /// It was refused by us: the request counts as failed.
    pub fn refused(&mut self, why: &str) {
        self.access.flags.push("refused");
        self.error = Some(why.to_owned());
    }

    /// There was no answer, or it was cut: the request counts as failed.
    pub fn fail(&mut self, error: &dyn std::error::Error) {
        self.error = Some(linkspan_runtime::process::chain(error));
    }
}

impl Drop for RequestReport {
    fn drop(&mut self) {
        let counter = match (self.status, &self.error) {
            (Some(_), None) if self.grpc_failed => &self.handles.grpc_failed,
            (Some(status), None) => self.handles.status(status),
            _ => &self.handles.failed,
        };
        counter.inc();
        self.handles
            .duration
            .observe(self.started.elapsed().as_secs_f64());
        self.tell_span();
        let access = &self.access;
        if !access.log {
            return;
        }
        info!(
            target: TARGET,
            direction = access.direction.as_str(),
            status = self.status.unwrap_or_default(),
            method = self.method,
            path = self.path,
            caller = %Or(&access.caller),
            source = %Or(&access.source),
            service = %Or(&access.service),
            port = %Or(&access.port),
            cluster = %Or(&access.cluster),
            locality = %Place(&access.locality),
            endpoint = %Or(&access.endpoint),
            destination = %Or(&access.destination),
            why = %Or(&access.why),
            flags = %Flags(&access.flags),
            retries = self.retries,
            millis = millis(self.started),
            error = self.error.as_deref().unwrap_or_default(),
            "request"
        );
    }
}

fn millis(started: Instant) -> f64 {
    // Three decimals are enough for a line that people read.
    (started.elapsed().as_secs_f64() * 1e6).round() / 1e3
}

/// A value, or `-`.
struct Or<'a, T>(&'a Option<T>);

impl<T: fmt::Display> fmt::Display for Or<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(value) => value.fmt(f),
            None => f.write_str("-"),
        }
    }
}

struct Place<'a>(&'a Option<Locality>);

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(Locality { region, zone }) => write!(f, "{region}/{zone}"),
            None => f.write_str("-"),
        }
    }
}

struct Flags<'a>(&'a [&'static str]);

impl fmt::Display for Flags<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            f.write_str("-")
        } else {
            f.write_str(&self.0.join(","))
        }
    }
}

#[cfg(test)]
mod tests {
    use linkspan_runtime::telemetry::{End, Path, Registry, TrafficMetrics};

    use super::*;

    fn path(cluster: &str) -> Path<'_> {
        Path {
            direction: Direction::Outbound,
            source: End::default(),
            destination: End {
                cluster,
                ..End::default()
            },
            namespace: "shop",
            service: "checkout",
        }
    }

    #[test]
    fn a_dropped_connection_counts_as_reset_under_the_latest_labels() {
        let metrics = TrafficMetrics::register(&Registry::new()).unwrap();
        let access = Access::new(Direction::Outbound);
        let mut report = ConnectionReport::open(access, metrics.connections(&path("")));
        report.measure(metrics.connections(&path("west")));
        report.counters().add_sent(5);
        let west = metrics.connections(&path("west"));
        assert_eq!(
            (metrics.connections(&path("")).open.get(), west.open.get()),
            (0, 1)
        );
        drop(report);
        assert_eq!(
            (
                west.open.get(),
                west.reset.get(),
                west.ok.get(),
                west.sent.get()
            ),
            (0, 1, 0, 5)
        );
    }

    #[test]
    fn a_request_counts_once() {
        let metrics = TrafficMetrics::register(&Registry::new()).unwrap();
        let begin = || {
            let access = Access::new(Direction::Inbound);
            let handles = metrics.requests(&path("west"));
            RequestReport::begin(access, handles, &Request::new(()), Span::unrecorded())
        };
        let mut answered = begin();
        answered.status(204);
        drop(answered);
        drop(begin());
        let mut cut = begin();
        cut.status(200);
        cut.fail(&std::io::Error::other("cut"));
        drop(cut);
        let mut failed = begin();
        failed.status(200);
        failed.grpc_failed();
        drop(failed);
        let handles = metrics.requests(&path("west"));
        assert_eq!(handles.grpc_failed.get(), 1);
        assert_eq!((handles.status(200).get(), handles.failed.get()), (1, 2));
    }
}

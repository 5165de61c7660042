//! Spans of streams, in the traces of what they carry.

use linkspan_runtime::trace::{Kind, Parent, Span, Tracer};

/// Begins the span of a stream, if `trace` (a W3C `traceparent`; peers say it, too) names a trace that
/// is recorded; and what is to be told to whoever carries the stream on.
pub(crate) fn begin(
    tracer: &Tracer,
    name: &'static str,
    trace: Option<String>,
) -> (Span, Option<String>) {
    let parent = trace.as_deref().and_then(|trace| trace.parse().ok());
    let Some(parent) = parent.filter(|_| tracer.is_on()) else {
        return (Span::unrecorded(), trace);
    };
    let (span, told) = tracer.begin(Parent::Remote(parent), Kind::Internal, name);
    (span, told.map(|told| told.to_string()).or(trace))
}

/// Says how a stream ended, and the bytes that it carried from its source and back.
pub(crate) fn ended(span: &mut Span, code: &'static str, (sent, received): (u64, u64)) {
    span.text("linkspan.code", &code);
    span.number("linkspan.sent", sent);
    span.number("linkspan.received", received);
    if code != "ok" {
        span.fail(code);
    }
}

//! The trace that a request belongs to: read from its head, and written into it (W3C Trace Context).

use http::{HeaderMap, HeaderName, HeaderValue};
use linkspan_runtime::trace::{Kind, Parent, Span, SpanContext, Tracer};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Begins the span of a request with this head, which names it as the parent of what follows. A
/// trace that is not recorded goes on as it came; a head with no trace, or with one that cannot be
/// read, begins one.
#[must_use]
pub fn begin(tracer: &Tracer, headers: &mut HeaderMap, kind: Kind) -> Span {
    if !tracer.is_on() {
        return Span::unrecorded();
    }
    let parent = parent(headers);
    if parent == Parent::None {
        // It is of a trace that nobody can name.
        headers.remove(TRACESTATE);
    }
    let (span, told) = tracer.begin(parent, kind, "request");
    if let Some(told) = told {
        headers.insert(TRACEPARENT, value(told));
    }
    span
}

fn parent(headers: &HeaderMap) -> Parent {
    let mut all = headers.get_all(TRACEPARENT).iter();
    let (Some(one), None) = (all.next(), all.next()) else {
        return Parent::None;
    };
    let context = one.to_str().ok().and_then(|text| text.parse().ok());
    context.map_or(Parent::None, Parent::Remote)
}

fn value(context: SpanContext) -> HeaderValue {
    let text = context.to_string();
    HeaderValue::from_str(&text).expect("hexadecimal digits and hyphens are good in a header")
}

#[cfg(test)]
mod tests {
    use linkspan_runtime::{
        telemetry::{Registry, SpanMetrics},
        trace::{Otlp, Sender},
    };

    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn tracer(sampling: f64) -> Tracer {
        let otlp = Otlp::new("http://collector:4317", sampling).unwrap();
        let metrics = SpanMetrics::register(&Registry::new()).unwrap();
        let sender = Sender {
            service: "any".into(),
            namespace: String::new(),
            instance: String::new(),
            cluster: String::new(),
        };
        Tracer::new(&otlp, &sender, metrics).0
    }

    fn head(fields: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
        headers.get(name).map(|value| value.to_str().unwrap())
    }

    #[tokio::test]
    async fn a_recorded_trace_goes_on_with_this_span() {
        let mut headers = head(&[("traceparent", PARENT), ("tracestate", "a=1,b=2")]);
        let span = begin(&tracer(0.5), &mut headers, Kind::Client);
        let context = span.context().unwrap();
        assert_eq!(text(&headers, "traceparent"), Some(&*context.to_string()));
        assert!(context.to_string().starts_with(&PARENT[..36]));
        assert_ne!(context.to_string(), PARENT);
        assert_eq!(text(&headers, "tracestate"), Some("a=1,b=2"));
    }

    #[tokio::test]
    async fn one_that_is_not_recorded_goes_on_as_it_came() {
        let parent = PARENT.replace("-01", "-00");
        let fields = [("traceparent", &*parent), ("tracestate", "a=1")];
        let mut headers = head(&fields);
        assert!(!begin(&tracer(1.0), &mut headers, Kind::Server).is_recorded());
        assert_eq!(headers, head(&fields));
        let mut headers = head(&[("traceparent", PARENT)]);
        assert!(!begin(&Tracer::off(), &mut headers, Kind::Server).is_recorded());
        assert_eq!(headers, head(&[("traceparent", PARENT)]));
    }

    #[tokio::test]
    async fn what_names_no_trace_begins_one() {
        for fields in [
            &[][..],
            &[("traceparent", "nonsense"), ("tracestate", "a=1")],
            &[("traceparent", PARENT), ("traceparent", PARENT)],
        ] {
            for sampling in [0.0, 1.0] {
                let mut headers = head(fields);
                let span = begin(&tracer(sampling), &mut headers, Kind::Client);
                assert_eq!(span.is_recorded(), sampling == 1.0);
                let told: SpanContext = text(&headers, "traceparent").unwrap().parse().unwrap();
                assert_eq!(told.sampled, sampling == 1.0);
                assert_ne!(told.to_string()[..35], PARENT[..35]);
                assert_eq!(headers.get_all("traceparent").iter().count(), 1);
                assert_eq!(text(&headers, "tracestate"), None);
            }
        }
    }
}

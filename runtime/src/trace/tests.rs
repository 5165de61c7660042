//! Spans at a real collector, and at none.

use std::{net::SocketAddr, time::Duration};

use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::any_value::Value,
    trace::v1::{ResourceSpans, span::SpanKind, status::StatusCode},
};
use prometheus::Registry;
use tokio::{net::TcpListener, task::JoinHandle, time::timeout};
use tonic::{Request, Response, Status, transport::Server};

use super::*;
use crate::{config::Problems, stop::Stop};

/// A collector that passes on what it gets, and refuses so many spans of each message.
struct Collector {
    got: mpsc::UnboundedSender<ResourceSpans>,
    refuses: i64,
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for spans in request.into_inner().resource_spans {
            let _ = self.got.send(spans);
        }
        let partial = ExportTracePartialSuccess {
            rejected_spans: self.refuses,
            error_message: String::new(),
        };
        Ok(Response::new(ExportTraceServiceResponse {
            partial_success: (self.refuses > 0).then_some(partial),
        }))
    }
}

async fn collector(refuses: i64) -> (SocketAddr, mpsc::UnboundedReceiver<ResourceSpans>) {
    let (got, spans) = mpsc::unbounded_channel();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let incoming = futures_util::stream::unfold(listener, |listener| async {
        let accepted = listener.accept().await.map(|(socket, _)| socket);
        Some((accepted, listener))
    });
    let service = TraceServiceServer::new(Collector { got, refuses });
    tokio::spawn(
        Server::builder()
            .add_service(service)
            .serve_with_incoming(incoming),
    );
    (address, spans)
}

struct Sending {
    tracer: Tracer,
    metrics: SpanMetrics,
    stop: Stop,
    task: JoinHandle<()>,
}

fn sending(to: SocketAddr, sampling: f64) -> Sending {
    let otlp = Otlp::new(&format!("http://{to}"), sampling).unwrap();
    let metrics = SpanMetrics::register(&Registry::new()).unwrap();
    let sender = Sender {
        service: "frontend".into(),
        namespace: "shop".into(),
        instance: String::new(),
        cluster: "east".into(),
    };
    let (tracer, exporter) = Tracer::new(&otlp, &sender, metrics.clone());
    let stop = Stop::new();
    let task = tokio::spawn(exporter.run(stop.clone()));
    Sending {
        tracer,
        metrics,
        stop,
        task,
    }
}

impl Sending {
    /// Ends it, with all that was recorded.
    async fn end(self) -> SpanMetrics {
        self.stop.abort();
        soon(self.task).await.unwrap();
        self.metrics
    }
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    let within = Duration::from_secs(30);
    timeout(within, future).await.expect("it takes too long")
}

#[tokio::test]
async fn a_span_arrives_as_it_was() {
    let (address, mut got) = collector(0).await;
    let sending = sending(address, 1.0);
    let (mut span, told) = sending.tracer.begin(Parent::None, Kind::Client, "call");
    let context = span.context().unwrap();
    assert_eq!(told, Some(context));
    let cause = SpanContext { span: 7, ..context };
    span.link(cause);
    span.name("GET shop/checkout");
    span.text("url.path", &"é".repeat(1000));
    span.number("http.response.status_code", 503);
    span.fail("no endpoint");
    drop(span);
    let spans = soon(got.recv()).await.unwrap();
    let resource = spans.resource.unwrap().attributes;
    let keys: Vec<_> = resource.iter().map(|attribute| &*attribute.key).collect();
    let expected = [
        "service.name",
        "service.namespace",
        "service.version",
        "k8s.cluster.name",
    ];
    assert_eq!(keys, expected);
    let [span] = &*spans.scope_spans[0].spans else {
        panic!("one span was recorded");
    };
    assert_eq!(span.trace_id, context.trace.to_be_bytes());
    assert_eq!(span.span_id, context.span.to_be_bytes());
    assert!(span.parent_span_id.is_empty());
    assert_eq!(span.links[0].span_id, 7u64.to_be_bytes());
    assert_eq!(
        (span.name.as_str(), span.kind),
        ("GET shop/checkout", SpanKind::Client.into())
    );
    assert!(span.end_time_unix_nano >= span.start_time_unix_nano);
    let status = span.status.as_ref().unwrap();
    assert_eq!(status.code, i32::from(StatusCode::Error));
    let values: Vec<_> = span
        .attributes
        .iter()
        .map(|of| of.value.clone().unwrap().value.unwrap())
        .collect();
    assert!(matches!(&values[0], Value::StringValue(path) if path.len() == 512));
    assert_eq!(values[1], Value::IntValue(503));
    let metrics = sending.end().await;
    assert_eq!((metrics.exported.get(), metrics.failed.get()), (1, 0));
}

#[tokio::test]
async fn what_was_recorded_is_sent_at_the_end() {
    let (address, mut got) = collector(0).await;
    let sending = sending(address, 1.0);
    // More than one message takes.
    for _ in 0..1_300 {
        drop(sending.tracer.begin(Parent::None, Kind::Server, "call"));
    }
    let metrics = sending.end().await;
    assert_eq!(metrics.exported.get(), 1_300);
    let mut count = 0;
    while let Ok(spans) = got.try_recv() {
        count += spans.scope_spans[0].spans.len();
    }
    assert_eq!(count, 1_300);
}

#[tokio::test]
async fn what_the_collector_refuses_is_counted() {
    let (address, mut got) = collector(1).await;
    let sending = sending(address, 1.0);
    drop(sending.tracer.begin(Parent::None, Kind::Server, "call"));
    soon(got.recv()).await.unwrap();
    let metrics = sending.end().await;
    assert_eq!((metrics.exported.get(), metrics.failed.get()), (0, 1));
}

#[tokio::test]
async fn a_dead_collector_holds_nobody_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    // It takes connections and says nothing.
    let sending = sending(listener.local_addr().unwrap(), 1.0);
    let most = QUEUE * 2 + 512;
    for _ in 0..most {
        drop(sending.tracer.begin(Parent::None, Kind::Server, "call"));
    }
    let dropped = sending.metrics.dropped.get();
    assert!(dropped >= (most - QUEUE - 2 * 512) as u64, "{dropped}");
    sending.stop.abort();
    let ended = timeout(crate::process::CUT_AFTER, sending.task).await;
    ended.expect("it ends before it is cut").unwrap();
    let metrics = sending.metrics;
    assert_eq!(metrics.exported.get(), 0);
    let lost = metrics.dropped.get() + metrics.failed.get();
    assert_eq!(lost, most as u64, "what is lost is counted");
}

fn queued(sampling: f64) -> (Tracer, mpsc::Receiver<span::Finished>) {
    let (queue, finished) = mpsc::channel(8);
    let metrics = SpanMetrics::register(&Registry::new()).unwrap();
    let inner = Inner::new(sampling, queue, metrics);
    (Tracer(Some(Arc::new(inner))), finished)
}

const ASKING: SpanContext = SpanContext {
    trace: 5,
    span: 6,
    sampled: true,
};

#[test]
fn what_a_parent_says_holds() {
    // Of roots next to none.
    let (tracer, mut finished) = queued(1e-12);
    for parent in [Parent::Remote, Parent::Own] {
        let unasked = SpanContext {
            sampled: false,
            ..ASKING
        };
        let (span, told) = tracer.begin(parent(unasked), Kind::Client, "call");
        assert!(
            !span.is_recorded() && told.is_none(),
            "as it came, it goes on"
        );
        let (span, told) = tracer.begin(parent(ASKING), Kind::Client, "call");
        let context = span.context().unwrap();
        assert!(context.trace == 5 && context.span != 6 && context.sampled);
        assert_eq!(told, Some(context));
        drop(span);
        let recorded = finished.try_recv().unwrap();
        assert_eq!(recorded.parent_span_id, 6u64.to_be_bytes());
        let (span, told) = Tracer::off().begin(parent(ASKING), Kind::Client, "call");
        assert!(!span.is_recorded() && told.is_none());
    }
    let (span, told) = tracer.begin(Parent::None, Kind::Client, "call");
    assert!(!span.is_recorded());
    assert!(
        told.is_some_and(|told| !told.sampled),
        "others are told not to begin one"
    );
}

#[test]
fn where_none_are_wanted_nobody_can_ask() {
    let (tracer, _finished) = queued(0.0);
    let (span, told) = tracer.begin(Parent::Remote(ASKING), Kind::Server, "call");
    assert!(!span.is_recorded() && told.is_none());
}

#[test]
fn others_have_so_many_recorded_and_no_more() {
    let now = Instant::now();
    let recorded = |tracer: &Tracer, now| {
        let inner = tracer.0.as_ref().unwrap();
        (0..1_000).filter(|_| inner.records_asked(now)).count()
    };
    let (tracer, _finished) = queued(0.5);
    assert_eq!(recorded(&tracer, now), 200);
    assert_eq!(recorded(&tracer, now + Duration::from_millis(500)), 100);
    assert_eq!(recorded(&tracer, now + Duration::from_secs(60)), 200);
    let dropped = tracer.0.as_ref().unwrap().metrics.dropped.get();
    assert_eq!(dropped, 2_500, "they are counted");
    let (all, _finished) = queued(1.0);
    assert_eq!(recorded(&all, now), 1_000, "all are recorded anyway");
    // And what is asked for from outside is what is bounded.
    let (span, _) = tracer.begin(Parent::Remote(ASKING), Kind::Server, "call");
    assert!(!span.is_recorded(), "the bucket is empty");
    let (span, _) = tracer.begin(Parent::Own(ASKING), Kind::Internal, "connect");
    assert!(span.is_recorded());
}

#[test]
fn chance_samples_the_part_that_is_asked_for() {
    let sampled = |part| (0..10_000).filter(|_| root(part).sampled).count();
    assert_eq!((sampled(0.0), sampled(1.0)), (0, 10_000));
    // Ten standard deviations.
    let tenth = sampled(0.1);
    assert!((700..1_300).contains(&tenth), "{tenth}");
}

#[test]
fn the_collector_has_a_plain_address() {
    for bad in [
        "",
        "collector:4317",
        "https://collector:4317",
        "http://",
        "http://a b",
        "http://user:secret@collector:4317",
        "http://secret@collector:4317",
        "http://collector:4317/secret",
        "http://collector:4317?token=secret",
        "http://collector:4317/#secret",
    ] {
        assert!(Otlp::new(bad, 1.0).is_err(), "{bad}");
        let raw = serde_json::json!({"otlp": {"endpoint": bad}});
        let raw: RawTelemetry = serde_json::from_value(raw).unwrap();
        let mut problems = Problems::new("linkspan.yaml");
        assert!(raw.typed(&mut problems).is_none());
        assert!(!format!("{problems:?}").contains("secret"), "{problems:?}");
    }
    assert!(Otlp::new("http://collector:4317/", 1.0).is_ok());
    assert!(Otlp::new("http://collector.observability:4317", 1.0).is_ok());
}

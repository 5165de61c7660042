//! Sending spans: in batches, to one collector, for as long as it takes them.

use std::time::Duration;

use opentelemetry_proto::tonic::{
    collector::trace::v1::{ExportTraceServiceRequest, trace_service_client::TraceServiceClient},
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value},
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans},
};
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};
use tonic::transport::{Channel, Endpoint};
use tracing::{info, warn};

use super::{Sender, span::Finished};
use crate::{backoff::Backoff, process::chain, stop::Stop, telemetry::SpanMetrics};

/// Spans of one message: some hundreds of kilobytes, where a collector takes 4 MiB.
const BATCH: usize = 512;
/// How long spans wait for others.
const LINGER: Duration = Duration::from_secs(1);
/// How long a collector may take to be reached.
const CONNECT: Duration = Duration::from_secs(5);
/// How long it may take to take a message.
const EXPORT: Duration = Duration::from_secs(10);
/// How long all that is there may take at the end of the process: less than
/// [`CUT_AFTER`](crate::process::CUT_AFTER).
const LAST: Duration = Duration::from_secs(2);

/// Sends what a [`Tracer`](super::Tracer) records.
#[derive(Debug)]
pub struct Exporter {
    endpoint: Endpoint,
    resource: Resource,
    finished: mpsc::Receiver<Finished>,
    metrics: SpanMetrics,
}

impl Exporter {
    pub(super) fn new(
        endpoint: Endpoint,
        sender: &Sender,
        finished: mpsc::Receiver<Finished>,
        metrics: SpanMetrics,
    ) -> Self {
        let attributes = [
            ("service.name", &*sender.service),
            ("service.namespace", &sender.namespace),
            ("service.instance.id", &sender.instance),
            ("service.version", env!("CARGO_PKG_VERSION")),
            ("k8s.cluster.name", &sender.cluster),
        ];
        let attributes = attributes.into_iter().filter(|(_, text)| !text.is_empty());
        let resource = Resource {
            attributes: attributes.map(|(key, text)| text_of(key, text)).collect(),
            ..Resource::default()
        };
        Self {
            endpoint: endpoint.connect_timeout(CONNECT).timeout(EXPORT),
            resource,
            finished,
            metrics,
        }
    }

    /// Sends until `stop` aborts, and then what is there already, as far as it goes within
    /// two seconds. What is lost is counted.
    pub async fn run(mut self, stop: Stop) {
        let over = async {
            stop.aborted().await;
            sleep(LAST).await;
        };
        tokio::select! {
            () = self.send_all(&stop) => {}
            () = over => {}
        }
        self.finished.close();
        while self.finished.try_recv().is_ok() {
            self.metrics.failed.inc();
        }
    }

    /// Cancel-safe between messages; one that is cut counts as failed.
    async fn send_all(&mut self, stop: &Stop) {
        // Connects with the first message, and again whenever it has to.
        let mut client = TraceServiceClient::new(self.endpoint.connect_lazy());
        let mut backoff = Backoff::new(LINGER, Duration::from_secs(30));
        let (mut failing, mut batch) = (false, Vec::new());
        loop {
            tokio::select! {
                () = self.fill(&mut batch) => {}
                () = stop.aborted() => break,
            }
            if batch.is_empty() {
                // Nobody records any more.
                return;
            }
            match self.send(&mut client, std::mem::take(&mut batch)).await {
                Ok(()) => {
                    if std::mem::take(&mut failing) {
                        info!("the trace collector takes spans again");
                    }
                    backoff.reset();
                }
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        warn!(
                            collector = %self.endpoint.uri(), error = chain(&error),
                            "spans cannot be sent; those that do not fit into the queue are dropped"
                        );
                    }
                    tokio::select! {
                        () = sleep(backoff.next(rand::random())) => {}
                        () = stop.aborted() => break,
                    }
                }
            }
        }
        loop {
            while batch.len() < BATCH
                && let Ok(span) = self.finished.try_recv()
            {
                batch.push(span);
            }
            if batch.is_empty() {
                return;
            }
            // Whether it was taken is counted; there is no time for more.
            let _ = self.send(&mut client, std::mem::take(&mut batch)).await;
        }
    }

    /// Adds the next spans to `batch`; none once nobody records any more. Cancel-safe.
    async fn fill(&mut self, batch: &mut Vec<Finished>) {
        if self.finished.recv_many(batch, BATCH).await == 0 {
            return;
        }
        let more = async {
            while batch.len() < BATCH {
                let room = BATCH - batch.len();
                if self.finished.recv_many(batch, room).await == 0 {
                    return;
                }
            }
        };
        // What came meanwhile is in the batch.
        let _ = timeout(LINGER, more).await;
    }

    async fn send(
        &self,
        client: &mut TraceServiceClient<Channel>,
        spans: Vec<Finished>,
    ) -> Result<(), tonic::Status> {
        let count = spans.len() as u64;
        let scope = InstrumentationScope {
            name: "linkspan".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..InstrumentationScope::default()
        };
        let request = ExportTraceServiceRequest {
            resource_spans: vec![ResourceSpans {
                resource: Some(self.resource.clone()),
                scope_spans: vec![ScopeSpans {
                    scope: Some(scope),
                    spans,
                    ..ScopeSpans::default()
                }],
                ..ResourceSpans::default()
            }],
        };
        let mut lost = Lost {
            spans: count,
            metrics: &self.metrics,
        };
        let answer = client.export(request).await?;
        let partial = answer.get_ref().partial_success.as_ref();
        let refused = partial.map_or(0, |partial| partial.rejected_spans);
        lost.spans = u64::try_from(refused).unwrap_or(0).min(count);
        self.metrics.exported.inc_by(count - lost.spans);
        Ok(())
    }
}

/// Counts spans of a message as failed, also when its sending is cut.
struct Lost<'a> {
    spans: u64,
    metrics: &'a SpanMetrics,
}

impl Drop for Lost<'_> {
    fn drop(&mut self) {
        self.metrics.failed.inc_by(self.spans);
    }
}

fn text_of(key: &str, text: &str) -> KeyValue {
    let value = AnyValue {
        value: Some(Value::StringValue(text.to_owned())),
    };
    KeyValue {
        key: key.to_owned(),
        value: Some(value),
        ..KeyValue::default()
    }
}

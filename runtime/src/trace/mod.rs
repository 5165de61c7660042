//! Traces: spans of requests, connections and streams, sent to the user's own collector by OTLP.
//!
//! ```text
//! traceparent ─► Tracer::begin ─► Span, kept by what it is about ─► dropped: queue ─► Exporter ─► collector
//! ```
//! Off unless configured, and then it costs nothing. What is not sampled costs a look at one number.
//! Whoever records waits for nobody: where the queue is full, the span is dropped and counted. (The
//! OpenTelemetry SDK would do; its queue does not tell what it drops, and its spans are made for any
//! use. Only OTLP's messages are taken from there.)

mod config;
mod context;
mod export;
mod span;

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::mpsc;

use crate::{
    rate::{Limiter, Rate},
    telemetry::SpanMetrics,
};

pub use config::{Otlp, RawTelemetry};
pub use context::{NoContext, SpanContext};
pub use export::Exporter;
pub use span::{Kind, Span};

/// Spans that wait for being sent: some seconds of a busy proxy, 2 MiB or so.
const QUEUE: usize = 2_048;

/// Spans that other processes may have recorded here: 200 a second, whoever asks for more. What is
/// sampled by our own part, which nobody can choose, is not in it.
const ASKED: Rate = Rate {
    burst: 200,
    every: Duration::from_millis(5),
    sources: 1,
};
/// All who ask have one bucket.
const ANYBODY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// Makes spans. Clones are one and the same.
#[derive(Clone, Debug, Default)]
pub struct Tracer(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    sampling: f64,
    asked: Limiter,
    queue: mpsc::Sender<span::Finished>,
    metrics: SpanMetrics,
}

impl Inner {
    fn new(sampling: f64, queue: mpsc::Sender<span::Finished>, metrics: SpanMetrics) -> Self {
        Self {
            sampling,
            asked: Limiter::new(ASKED),
            queue,
            metrics,
        }
    }

    /// Whether a span is recorded because another process says so. Anybody can say it, so it counts
    /// for so many; where all are recorded anyway it adds nothing, and where none are it changes
    /// nothing.
    fn records_asked(&self, now: Instant) -> bool {
        if self.sampling <= 0.0 || self.sampling >= 1.0 {
            return self.sampling >= 1.0;
        }
        let admitted = self.asked.admit(ANYBODY, now).is_ok();
        if !admitted {
            self.metrics.dropped.inc();
        }
        admitted
    }
}

/// Who sends spans, for the collector's reader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sender {
    /// `service.name`: what the spans stand under.
    pub service: String,
    /// `service.namespace`.
    pub namespace: String,
    /// `service.instance.id`.
    pub instance: String,
    /// The cluster.
    pub cluster: String,
}

/// Where a new span stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parent {
    /// It begins a trace, if chance says so.
    None,
    /// It is caused by that one of this process, and recorded if that one is.
    Own(SpanContext),
    /// It is caused by that one of another process, and recorded if that one is said to be, within
    /// bounds.
    Remote(SpanContext),
}

impl Tracer {
    /// One that records nothing.
    #[must_use]
    pub fn off() -> Self {
        Self::default()
    }

    /// One that sends to a collector, and what does the sending.
    #[must_use]
    pub fn new(otlp: &Otlp, sender: &Sender, metrics: SpanMetrics) -> (Self, Exporter) {
        let (queue, finished) = mpsc::channel(QUEUE);
        let inner = Inner::new(otlp.sampling, queue, metrics.clone());
        let exporter = Exporter::new(otlp.endpoint.clone(), sender, finished, metrics);
        (Self(Some(Arc::new(inner))), exporter)
    }

    /// Whether anything may be recorded.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// A span that begins now, and what is to be told to those whom it causes; nothing where they
    /// are to be told what its parent said.
    #[must_use]
    pub fn begin(
        &self,
        parent: Parent,
        kind: Kind,
        name: &'static str,
    ) -> (Span, Option<SpanContext>) {
        let Some(inner) = &self.0 else {
            return (Span::unrecorded(), None);
        };
        let (context, parent) = match parent {
            Parent::Own(parent) if parent.sampled => (child(parent), Some(parent.span)),
            Parent::Remote(parent) if parent.sampled && inner.records_asked(Instant::now()) => {
                (child(parent), Some(parent.span))
            }
            Parent::Own(_) | Parent::Remote(_) => return (Span::unrecorded(), None),
            Parent::None => (root(inner.sampling), None),
        };
        let span = match context.sampled {
            true => Span::recorded(Arc::clone(inner), context, parent, kind, name),
            false => Span::unrecorded(),
        };
        (span, Some(context))
    }
}

fn child(of: SpanContext) -> SpanContext {
    SpanContext {
        span: not_zero(rand::random),
        ..of
    }
}

/// Chance is in the trace's id, so that whoever sees it may decide alike.
fn root(sampling: f64) -> SpanContext {
    let trace: u128 = not_zero(rand::random);
    // 53 bits are what a fraction holds exactly.
    let chance = (trace as u64 >> 11) as f64 / (1u64 << 53) as f64;
    SpanContext {
        trace,
        span: not_zero(rand::random),
        sampled: chance < sampling,
    }
}

fn not_zero<T: Default + PartialEq>(random: fn() -> T) -> T {
    loop {
        let value = random();
        if value != T::default() {
            return value;
        }
    }
}

#[cfg(test)]
mod tests;

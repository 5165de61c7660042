//! One span, from its beginning until it is dropped.

use std::{
    sync::Arc,
    time::{Instant, SystemTime},
};

use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, KeyValue, any_value::Value},
    trace::v1::{Span as Message, Status, span::Link, span::SpanKind, status::StatusCode},
};

use super::{Inner, SpanContext};

/// Attributes of one span; further ones are left out.
const MAX_ATTRIBUTES: usize = 32;
/// Longest text in one, bytes: paths come from callers.
const MAX_TEXT: usize = 512;
/// `flags` of a span: its trace's flags, sampled.
const SAMPLED: u32 = 1;

/// A span as it is sent.
pub(super) type Finished = Message;

/// On which side of a call it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Of who calls.
    Client,
    /// Of who is called.
    Server,
    /// Of neither.
    Internal,
}

/// A span that ends when it is dropped. One that is not recorded is nothing.
#[derive(Debug, Default)]
pub struct Span(Option<Box<Open>>);

#[derive(Debug)]
struct Open {
    tracer: Arc<Inner>,
    context: SpanContext,
    began: Instant,
    message: Message,
}

impl Span {
    /// One that is not recorded.
    #[must_use]
    pub fn unrecorded() -> Self {
        Self(None)
    }

    pub(super) fn recorded(
        tracer: Arc<Inner>,
        context: SpanContext,
        parent: Option<u64>,
        kind: Kind,
        name: &'static str,
    ) -> Self {
        let kind = match kind {
            Kind::Client => SpanKind::Client,
            Kind::Server => SpanKind::Server,
            Kind::Internal => SpanKind::Internal,
        };
        let message = Message {
            trace_id: context.trace.to_be_bytes().to_vec(),
            span_id: context.span.to_be_bytes().to_vec(),
            parent_span_id: parent
                .map(|span| span.to_be_bytes().to_vec())
                .unwrap_or_default(),
            flags: SAMPLED,
            name: name.to_owned(),
            kind: kind.into(),
            start_time_unix_nano: nanos(SystemTime::now()),
            ..Message::default()
        };
        Self(Some(Box::new(Open {
            tracer,
            context,
            began: Instant::now(),
            message,
        })))
    }

    /// Whether what is said of it goes anywhere.
    #[must_use]
    pub fn is_recorded(&self) -> bool {
        self.0.is_some()
    }

    /// Which one it is.
    #[must_use]
    pub fn context(&self) -> Option<SpanContext> {
        self.0.as_ref().map(|open| open.context)
    }

    /// Names it anew: by words of ours and names of services, of which there are not too many.
    pub fn name(&mut self, name: impl Into<String>) {
        if let Some(open) = &mut self.0 {
            open.message.name = cut(name.into());
        }
    }

    /// Says something of it. Nothing is said of one that is not recorded, nor made into text.
    pub fn text(&mut self, key: &'static str, value: &dyn std::fmt::Display) {
        if self.is_recorded() {
            let text = cut(value.to_string());
            self.attribute(key, Value::StringValue(text));
        }
    }

    /// Says a number of it.
    pub fn number(&mut self, key: &'static str, value: u64) {
        let value = i64::try_from(value).unwrap_or(i64::MAX);
        self.attribute(key, Value::IntValue(value));
    }

    fn attribute(&mut self, key: &'static str, value: Value) {
        let Some(open) = &mut self.0 else { return };
        let attributes = &mut open.message.attributes;
        if attributes.len() < MAX_ATTRIBUTES {
            let value = Some(AnyValue { value: Some(value) });
            attributes.push(KeyValue {
                key: key.to_owned(),
                value,
                ..KeyValue::default()
            });
        } else {
            open.message.dropped_attributes_count += 1;
        }
    }

    /// It has to do with that one.
    pub fn link(&mut self, other: SpanContext) {
        let Some(open) = &mut self.0 else { return };
        open.message.links.push(Link {
            trace_id: other.trace.to_be_bytes().to_vec(),
            span_id: other.span.to_be_bytes().to_vec(),
            flags: u32::from(other.sampled) * SAMPLED,
            ..Link::default()
        });
    }

    /// What it is about went wrong.
    pub fn fail(&mut self, why: impl Into<String>) {
        let Some(open) = &mut self.0 else { return };
        open.message.status = Some(Status {
            message: cut(why.into()),
            code: StatusCode::Error.into(),
        });
    }
}

fn cut(mut text: String) -> String {
    let mut end = text.len().min(MAX_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}

fn nanos(at: SystemTime) -> u64 {
    let since = at
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

impl Drop for Span {
    fn drop(&mut self) {
        let Some(open) = self.0.take() else { return };
        let Open {
            tracer,
            began,
            mut message,
            ..
        } = *open;
        let took = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        message.end_time_unix_nano = message.start_time_unix_nano.saturating_add(took);
        if tracer.queue.try_send(message).is_err() {
            tracer.metrics.dropped.inc();
        }
    }
}

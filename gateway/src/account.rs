//! What one stream adds to the metrics, from its beginning to its end, however it ends.

use linkspan_dataplane::forward::bytes::Counters;
use linkspan_runtime::telemetry::{Direction, IntGauge, LinkLabels, LinkMetrics, StreamHandles};

/// The metrics of one peer's streams in one direction; looked up once per connection.
#[derive(Clone, Debug)]
pub(crate) struct StreamMetrics {
    handles: StreamHandles,
}

impl StreamMetrics {
    pub(crate) fn new(metrics: &LinkMetrics, peer: &str, direction: Direction) -> Self {
        Self {
            handles: metrics.streams(&LinkLabels { peer }, direction),
        }
    }

    /// Counts a stream that ended with that code.
    pub(crate) fn ended(&self, code: &'static str) {
        self.handles.ended(code);
    }

    /// Counts the bytes of a relay.
    pub(crate) fn counters(&self) -> Counters {
        Counters::with_metrics(self.handles.sent.clone(), self.handles.received.clone())
    }

    /// Counts as an open stream until dropped.
    pub(crate) fn open(&self) -> Open {
        self.handles.open.inc();
        Open(self.handles.open.clone())
    }
}

/// An open stream.
#[derive(Debug)]
pub(crate) struct Open(IntGauge);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

//! What every proxy knows about its control plane.

use prometheus::{IntCounter, IntGauge, Registry};

use super::{TelemetryError, catalogue};

/// Discovery and identity of a proxy.
#[derive(Clone, Debug)]
pub struct ControlMetrics {
    /// 1 while the discovery stream is up.
    pub discovery_connected: IntGauge,
    /// Snapshots published.
    pub snapshots: IntCounter,
    /// Malformed records skipped.
    pub rejected: IntCounter,
    /// Streams that ended.
    pub disconnects: IntCounter,
    /// Expiry of the own certificate, Unix seconds.
    pub certificate_expiry: IntGauge,
    /// Renewals that succeeded.
    pub renewals_ok: IntCounter,
    /// Renewals that failed.
    pub renewals_failed: IntCounter,
}

impl ControlMetrics {
    /// Adds them to a registry.
    ///
    /// # Errors
    /// If they are registered already.
    pub fn register(registry: &Registry) -> Result<Self, TelemetryError> {
        let renewals = catalogue::CERTIFICATE_RENEWALS.counters(registry)?;
        Ok(Self {
            discovery_connected: catalogue::DISCOVERY_CONNECTED.gauges(registry)?.one(),
            snapshots: catalogue::DISCOVERY_SNAPSHOTS.counters(registry)?.one(),
            rejected: catalogue::DISCOVERY_REJECTED.counters(registry)?.one(),
            disconnects: catalogue::DISCOVERY_DISCONNECTS.counters(registry)?.one(),
            certificate_expiry: catalogue::CERTIFICATE_EXPIRY.gauges(registry)?.one(),
            renewals_ok: renewals.of(&["ok"]),
            renewals_failed: renewals.of(&["failed"]),
        })
    }

    /// Handles that no registry shows: for tests and tools.
    #[must_use]
    pub fn detached() -> Self {
        Self::register(&Registry::new()).expect("a new registry holds nothing that could clash")
    }
}

/// What becomes of spans.
#[derive(Clone, Debug)]
pub struct SpanMetrics {
    /// Taken by the collector.
    pub exported: IntCounter,
    /// The queue was full, or others asked for too many.
    pub dropped: IntCounter,
    /// Not taken by the collector.
    pub failed: IntCounter,
}

impl SpanMetrics {
    /// Adds them to a registry.
    ///
    /// # Errors
    /// If they are registered already.
    pub fn register(registry: &Registry) -> Result<Self, TelemetryError> {
        let spans = catalogue::SPANS.counters(registry)?;
        Ok(Self {
            exported: spans.of(&["exported"]),
            dropped: spans.of(&["dropped"]),
            failed: spans.of(&["failed"]),
        })
    }
}

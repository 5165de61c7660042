//! Everything that a federation counts.

use prometheus::{Gauge, IntCounter, IntGauge, Registry};

use super::{
    DnsMetrics, LinkLabels, TelemetryError, catalogue,
    family::{Counters, FloatGauges, Gauges},
};

/// Everything that a federation counts.
#[derive(Clone, Debug)]
pub struct FederationMetrics {
    proxies: Gauges,
    issued: Counters,
    live: Gauges,
    records: Gauges,
    refused: Counters,
    over_quota: Counters,
    age: FloatGauges,
    usable: Gauges,
    /// Declared resources that are refused now.
    pub resource_problems: IntGauge,
    /// Plans made.
    pub plans: IntCounter,
    /// Times declared resources could not be read.
    pub source_errors: IntCounter,
    /// Times imports and conditions were written.
    pub applied: IntCounter,
    /// Times they were not.
    pub not_applied: IntCounter,
    /// Objects that are refused now.
    pub apply_refused: IntGauge,
    /// Writes of the journal.
    pub journal: JournalHandles,
    /// Places where what must be kept cannot be.
    pub state_troubles: IntGauge,
    /// Expiry of the own certificate, Unix seconds.
    pub certificate_expiry: IntGauge,
    /// Questions to the DNS server.
    pub dns: DnsMetrics,
}

/// Writes of the journal.
#[derive(Clone, Debug)]
pub struct JournalHandles {
    /// Those that were made.
    pub ok: IntCounter,
    /// Those that could not be.
    pub failed: IntCounter,
}

impl FederationMetrics {
    /// Adds them to a registry.
    ///
    /// # Errors
    /// If they are registered already.
    pub fn register(registry: &Registry) -> Result<Self, TelemetryError> {
        let applies = catalogue::APPLIES.counters(registry)?;
        let journal = catalogue::JOURNAL_WRITES.counters(registry)?;
        Ok(Self {
            proxies: catalogue::PROXY_STREAMS.gauges(registry)?,
            issued: catalogue::ISSUED.counters(registry)?,
            live: catalogue::SYNC_LIVE.gauges(registry)?,
            records: catalogue::SYNC_RECORDS.gauges(registry)?,
            refused: catalogue::SYNC_REFUSED.counters(registry)?,
            over_quota: catalogue::SYNC_OVER_QUOTA.counters(registry)?,
            age: catalogue::SYNC_AGE.float_gauges(registry)?,
            usable: catalogue::PEER_USABLE.gauges(registry)?,
            resource_problems: catalogue::RESOURCE_PROBLEMS.gauges(registry)?.one(),
            plans: catalogue::PLANS.counters(registry)?.one(),
            source_errors: catalogue::SOURCE_ERRORS.counters(registry)?.one(),
            applied: applies.of(&["ok"]),
            not_applied: applies.of(&["failed"]),
            apply_refused: catalogue::APPLY_REFUSED.gauges(registry)?.one(),
            journal: JournalHandles {
                ok: journal.of(&["ok"]),
                failed: journal.of(&["failed"]),
            },
            state_troubles: catalogue::STATE_TROUBLES.gauges(registry)?.one(),
            certificate_expiry: catalogue::CERTIFICATE_EXPIRY.gauges(registry)?.one(),
            dns: DnsMetrics::register(registry)?,
        })
    }

    /// Discovery streams of sidecars.
    #[must_use]
    pub fn sidecars(&self) -> IntGauge {
        self.proxies.of(&["sidecar"])
    }

    /// Discovery streams of gateways.
    #[must_use]
    pub fn gateways(&self) -> IntGauge {
        self.proxies.of(&["gateway"])
    }

    /// Certificates issued.
    #[must_use]
    pub fn issued(&self) -> IntCounter {
        self.issued.of(&["ok"])
    }

    /// Certificates refused.
    #[must_use]
    pub fn not_issued(&self) -> IntCounter {
        self.issued.of(&["refused"])
    }

    /// Streams of a peer that were closed because it said too much.
    #[must_use]
    pub fn over_quota(&self, labels: &LinkLabels<'_>) -> IntCounter {
        self.over_quota.of(&[labels.peer])
    }

    /// What the owner of a peer's state keeps.
    #[must_use]
    pub fn peer(&self, labels: &LinkLabels<'_>) -> PeerHandles {
        let peer = &[labels.peer];
        PeerHandles {
            live: self.live.of(peer),
            records: self.records.of(peer),
            refused: self.refused.of(peer),
            age_seconds: self.age.of(peer),
            usable: self.usable.of(peer),
        }
    }

    /// Forgets a peer that is no longer linked.
    pub fn forget(&self, labels: &LinkLabels<'_>) {
        let peer = &[("peer", labels.peer)];
        for gauges in [&self.live, &self.records, &self.usable] {
            gauges.forget(peer);
        }
        self.age.forget(peer);
        self.refused.forget(peer);
        self.over_quota.forget(peer);
    }
}

/// Handles of one peer, at federation.
#[derive(Clone, Debug)]
pub struct PeerHandles {
    /// 1 while the peer's records are in force.
    pub live: IntGauge,
    /// Records held.
    pub records: IntGauge,
    /// Records refused.
    pub refused: IntCounter,
    /// Since the peer's federation was heard.
    pub age_seconds: Gauge,
    /// 1 while its endpoints may be used.
    pub usable: IntGauge,
}

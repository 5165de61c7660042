//! The one catalogue of metric names and labels.
//!
//! Label values come from our own configuration (services, clusters, codes), never from a peer's
//! bytes. Label sets are structs; looking one up gives a handle (plain counters), which the value
//! that owns the connection, request or link keeps, so that the hot path does no look-up.

use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Opts, core::Collector};

mod dns;

pub use dns::{DnsHandles, DnsMetrics};
pub use prometheus::{Error as TelemetryError, Histogram, IntCounter, IntGauge, Registry};

/// Metric names.
pub mod names {
    /// Requests proxied, by outcome.
    pub const REQUESTS: &str = "linkspan_requests_total";
    /// Time from a request's head to the end of its answer, seconds.
    pub const REQUEST_DURATION: &str = "linkspan_request_duration_seconds";
    /// Tries beyond the first.
    pub const RETRIES: &str = "linkspan_retries_total";
    /// Connections that ended, by outcome.
    pub const CONNECTIONS: &str = "linkspan_connections_total";
    /// Connections open now.
    pub const CONNECTIONS_OPEN: &str = "linkspan_connections_open";
    /// Application bytes relayed.
    pub const BYTES: &str = "linkspan_bytes_total";
    /// Connections to an endpoint that could not be made.
    pub const CONNECT_FAILURES: &str = "linkspan_connect_failures_total";
    /// Whether the discovery stream is up.
    pub const DISCOVERY_CONNECTED: &str = "linkspan_discovery_connected";
    /// Snapshots applied.
    pub const DISCOVERY_SNAPSHOTS: &str = "linkspan_discovery_snapshots_total";
    /// Records refused because they are malformed.
    pub const DISCOVERY_REJECTED: &str = "linkspan_discovery_records_rejected_total";
    /// Discovery streams that ended.
    pub const DISCOVERY_DISCONNECTS: &str = "linkspan_discovery_disconnects_total";
    /// When the own certificate expires, Unix seconds.
    pub const CERTIFICATE_EXPIRY: &str = "linkspan_certificate_expiry_seconds";
    /// Certificate renewals, by outcome.
    pub const CERTIFICATE_RENEWALS: &str = "linkspan_certificate_renewals_total";
    /// Whether a peer has a connection that is not suspect.
    pub const LINK_UP: &str = "linkspan_link_up";
    /// Connections to a peer.
    pub const LINK_CONNECTIONS: &str = "linkspan_link_connections";
    /// Smoothed round-trip time of the best connection, microseconds.
    pub const LINK_RTT: &str = "linkspan_link_rtt_microseconds";
    /// Times a connection to a peer became suspect.
    pub const LINK_SUSPICIONS: &str = "linkspan_link_suspicions_total";
    /// Dials of a peer, by outcome.
    pub const LINK_DIALS: &str = "linkspan_link_dials_total";
    /// Streams that ended, by direction and code.
    pub const STREAMS: &str = "linkspan_streams_total";
    /// Streams open now.
    pub const STREAMS_OPEN: &str = "linkspan_streams_open";
    /// Bytes relayed over a link (ciphertext of the inner TLS).
    pub const LINK_BYTES: &str = "linkspan_link_bytes_total";
    /// Discovery streams served.
    pub const PROXIES: &str = "linkspan_proxies_connected";
    /// Certificates asked for, by outcome.
    pub const ISSUED: &str = "linkspan_certificates_issued_total";
    /// Whether a peer's records are in force (1) or stale (0).
    pub const SYNC_LIVE: &str = "linkspan_sync_live";
    /// Records held of a peer.
    pub const SYNC_RECORDS: &str = "linkspan_sync_records";
    /// Records of a peer that were refused.
    pub const SYNC_REFUSED: &str = "linkspan_sync_records_refused_total";
    /// Streams of a peer that were closed because it said more than its quota allows.
    pub const SYNC_OVER_QUOTA: &str = "linkspan_sync_over_quota_total";
    /// Milliseconds since a peer's federation was heard.
    pub const SYNC_AGE: &str = "linkspan_sync_record_age_milliseconds";
    /// Whether a peer's endpoints may be used.
    pub const PEER_USABLE: &str = "linkspan_peer_usable";
    /// Declared resources that are refused now.
    pub const RESOURCE_PROBLEMS: &str = "linkspan_resource_problems";
    /// Questions to the DNS server, by outcome.
    pub const DNS: &str = "linkspan_dns_questions_total";
    /// Plans made from declared resources and peers.
    pub const PLANS: &str = "linkspan_plans_total";
}

/// Which way through this part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the app into the mesh (sidecar), or towards a peer (gateway: egress).
    Outbound,
    /// From the mesh to the app (sidecar), or from a peer (gateway: ingress).
    Inbound,
}

impl Direction {
    /// The label's value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
        }
    }
}

/// Labels of traffic: from our own configuration only.
#[derive(Clone, Copy, Debug)]
pub struct TrafficLabels<'a> {
    /// Which way.
    pub direction: Direction,
    /// `namespace/name` of the service; empty where it is not known.
    pub service: &'a str,
    /// Cluster at the other side (outbound: of the endpoint; inbound: of the caller); empty if unknown.
    pub cluster: &'a str,
}

/// Labels of a link.
#[derive(Clone, Copy, Debug)]
pub struct LinkLabels<'a> {
    /// Cluster id of the peer.
    pub peer: &'a str,
}

/// Requests, connections and bytes of a proxy.
#[derive(Clone, Debug)]
pub struct TrafficMetrics {
    requests: IntCounterVec,
    request_duration: HistogramVec,
    retries: IntCounterVec,
    connections: IntCounterVec,
    connections_open: IntGaugeVec,
    bytes: IntCounterVec,
    connect_failures: IntCounterVec,
}

const TRAFFIC: [&str; 3] = ["direction", "service", "cluster"];

impl TrafficMetrics {
    /// Adds them to a registry.
    ///
    /// # Errors
    /// If they are registered already.
    pub fn register(registry: &Registry) -> Result<Self, TelemetryError> {
        Ok(Self {
            requests: counters(
                registry,
                names::REQUESTS,
                "Requests, by class of status or flag.",
                &with("code"),
            )?,
            request_duration: add(registry, HistogramVec::new(duration_options(), &TRAFFIC)?)?,
            retries: counters(
                registry,
                names::RETRIES,
                "Tries beyond the first.",
                &["service", "reason"],
            )?,
            connections: counters(
                registry,
                names::CONNECTIONS,
                "Connections that ended.",
                &with("outcome"),
            )?,
            connections_open: gauges(
                registry,
                names::CONNECTIONS_OPEN,
                "Connections open now.",
                &TRAFFIC,
            )?,
            bytes: counters(
                registry,
                names::BYTES,
                "Application bytes relayed.",
                &with("flow"),
            )?,
            connect_failures: counters(
                registry,
                names::CONNECT_FAILURES,
                "Connections to endpoints that failed.",
                &["service", "cluster", "reason"],
            )?,
        })
    }

    /// What a connection's owner keeps.
    #[must_use]
    pub fn connection(&self, labels: &TrafficLabels<'_>) -> ConnectionHandles {
        let [direction, service, cluster] = labels.values();
        let ended = |outcome| {
            self.connections
                .with_label_values(&[direction, service, cluster, outcome])
        };
        let bytes = |flow| {
            self.bytes
                .with_label_values(&[direction, service, cluster, flow])
        };
        ConnectionHandles {
            open: self
                .connections_open
                .with_label_values(&[direction, service, cluster]),
            ok: ended("ok"),
            failed: ended("failed"),
            reset: ended("reset"),
            sent: bytes("sent"),
            received: bytes("received"),
        }
    }

    /// What requests of the same labels share.
    #[must_use]
    pub fn request(&self, labels: &TrafficLabels<'_>) -> RequestHandles {
        let [direction, service, cluster] = labels.values();
        let code = |code| {
            self.requests
                .with_label_values(&[direction, service, cluster, code])
        };
        RequestHandles {
            by_class: [
                code("1xx"),
                code("2xx"),
                code("3xx"),
                code("4xx"),
                code("5xx"),
            ],
            failed: code("failed"),
            duration: self
                .request_duration
                .with_label_values(&[direction, service, cluster]),
        }
    }

    /// Counter of retries for a service; `reason` is one of our own constants.
    #[must_use]
    pub fn retries(&self, service: &str, reason: &'static str) -> IntCounter {
        self.retries.with_label_values(&[service, reason])
    }

    /// Counter of failed connects; `reason` is one of our own constants.
    #[must_use]
    pub fn connect_failures(
        &self,
        service: &str,
        cluster: &str,
        reason: &'static str,
    ) -> IntCounter {
        self.connect_failures
            .with_label_values(&[service, cluster, reason])
    }
}

impl<'a> TrafficLabels<'a> {
    fn values(&self) -> [&'a str; 3] {
        [self.direction.as_str(), self.service, self.cluster]
    }
}

/// Handles of one connection's labels.
#[derive(Clone, Debug)]
pub struct ConnectionHandles {
    /// Open now.
    pub open: IntGauge,
    /// Ended cleanly in both directions.
    pub ok: IntCounter,
    /// Never carried bytes: refused, or no endpoint could be reached.
    pub failed: IntCounter,
    /// Was cut.
    pub reset: IntCounter,
    /// Bytes from the accepted side to the other.
    pub sent: IntCounter,
    /// Bytes back.
    pub received: IntCounter,
}

/// Handles of requests of the same labels.
#[derive(Clone, Debug)]
pub struct RequestHandles {
    by_class: [IntCounter; 5],
    /// No answer was had: cut, timed out, refused by us before any answer.
    pub failed: IntCounter,
    /// Seconds from head to end of answer.
    pub duration: Histogram,
}

impl RequestHandles {
    /// The counter of a status code's class; codes outside 100–599 count as failed.
    #[must_use]
    pub fn status(&self, code: u16) -> &IntCounter {
        let class = usize::from(code / 100)
            .checked_sub(1)
            .and_then(|class| self.by_class.get(class));
        class.unwrap_or(&self.failed)
    }
}

/// What every proxy knows about its control plane.
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
        let renewals = counters(
            registry,
            names::CERTIFICATE_RENEWALS,
            "Renewals.",
            &["outcome"],
        )?;
        Ok(Self {
            discovery_connected: gauge(
                registry,
                names::DISCOVERY_CONNECTED,
                "Whether the stream is up.",
            )?,
            snapshots: counter(registry, names::DISCOVERY_SNAPSHOTS, "Snapshots applied.")?,
            rejected: counter(
                registry,
                names::DISCOVERY_REJECTED,
                "Malformed records skipped.",
            )?,
            disconnects: counter(
                registry,
                names::DISCOVERY_DISCONNECTS,
                "Streams that ended.",
            )?,
            certificate_expiry: gauge(
                registry,
                names::CERTIFICATE_EXPIRY,
                "Expiry, Unix seconds.",
            )?,
            renewals_ok: renewals.with_label_values(&["ok"]),
            renewals_failed: renewals.with_label_values(&["failed"]),
        })
    }

    /// Handles that no registry shows: for tests and tools.
    #[must_use]
    pub fn detached() -> Self {
        Self::register(&Registry::new()).expect("a new registry holds nothing that could clash")
    }
}

/// Everything a sidecar counts.
#[derive(Clone, Debug)]
pub struct SidecarMetrics {
    /// Requests, connections, bytes.
    pub traffic: TrafficMetrics,
    /// Discovery and identity.
    pub control: ControlMetrics,
}

impl SidecarMetrics {
    /// Adds them to a registry.
    ///
    /// # Errors
    /// If they are registered already.
    pub fn register(registry: &Registry) -> Result<Self, TelemetryError> {
        Ok(Self {
            traffic: TrafficMetrics::register(registry)?,
            control: ControlMetrics::register(registry)?,
        })
    }
}

/// Everything a gateway counts.
#[derive(Clone, Debug)]
pub struct GatewayMetrics {
    /// Discovery and identity.
    pub control: ControlMetrics,
    /// Links and their streams.
    pub links: LinkMetrics,
    /// Requests and connections of clients without a sidecar.
    pub traffic: TrafficMetrics,
}

impl GatewayMetrics {
    /// Adds them to a registry.
    ///
    /// # Errors
    /// If they are registered already.
    pub fn register(registry: &Registry) -> Result<Self, TelemetryError> {
        Ok(Self {
            control: ControlMetrics::register(registry)?,
            links: LinkMetrics::register(registry)?,
            traffic: TrafficMetrics::register(registry)?,
        })
    }
}

/// Links and their streams, at a gateway.
#[derive(Clone, Debug)]
pub struct LinkMetrics {
    up: IntGaugeVec,
    connections: IntGaugeVec,
    rtt: IntGaugeVec,
    suspicions: IntCounterVec,
    dials: IntCounterVec,
    streams: IntCounterVec,
    streams_open: IntGaugeVec,
    bytes: IntCounterVec,
}

impl LinkMetrics {
    /// Adds them to a registry.
    ///
    /// # Errors
    /// If they are registered already.
    pub fn register(registry: &Registry) -> Result<Self, TelemetryError> {
        Ok(Self {
            up: gauges(
                registry,
                names::LINK_UP,
                "Whether a connection is not suspect.",
                &["peer"],
            )?,
            connections: gauges(registry, names::LINK_CONNECTIONS, "Connections.", &["peer"])?,
            rtt: gauges(
                registry,
                names::LINK_RTT,
                "Smoothed round-trip time.",
                &["peer"],
            )?,
            suspicions: counters(registry, names::LINK_SUSPICIONS, "Suspicions.", &["peer"])?,
            dials: counters(
                registry,
                names::LINK_DIALS,
                "Dials, by outcome.",
                &["peer", "outcome"],
            )?,
            streams: counters(
                registry,
                names::STREAMS,
                "Streams that ended, by result.",
                &["peer", "direction", "code"],
            )?,
            streams_open: gauges(
                registry,
                names::STREAMS_OPEN,
                "Streams open now.",
                &["peer", "direction"],
            )?,
            bytes: counters(
                registry,
                names::LINK_BYTES,
                "Bytes relayed.",
                &["peer", "direction", "flow"],
            )?,
        })
    }

    /// What the owner of a link keeps.
    #[must_use]
    pub fn link(&self, labels: &LinkLabels<'_>) -> LinkHandles {
        let peer = &[labels.peer];
        LinkHandles {
            up: self.up.with_label_values(peer),
            connections: self.connections.with_label_values(peer),
            rtt_micros: self.rtt.with_label_values(peer),
            suspicions: self.suspicions.with_label_values(peer),
            dials_ok: self.dials.with_label_values(&[labels.peer, "ok"]),
            dials_failed: self.dials.with_label_values(&[labels.peer, "failed"]),
        }
    }

    /// What the streams of a link in one direction share.
    #[must_use]
    pub fn streams(&self, labels: &LinkLabels<'_>, direction: Direction) -> StreamHandles {
        let (peer, direction) = (labels.peer, direction.as_str());
        StreamHandles {
            open: self.streams_open.with_label_values(&[peer, direction]),
            sent: self.bytes.with_label_values(&[peer, direction, "sent"]),
            received: self.bytes.with_label_values(&[peer, direction, "received"]),
        }
    }

    /// Counter of streams that ended with `code`, the name of a `StreamCode` (or `reset`).
    #[must_use]
    pub fn stream_ended(
        &self,
        labels: &LinkLabels<'_>,
        direction: Direction,
        code: &'static str,
    ) -> IntCounter {
        self.streams
            .with_label_values(&[labels.peer, direction.as_str(), code])
    }

    /// Forgets a peer that is no longer linked.
    pub fn forget(&self, labels: &LinkLabels<'_>) {
        for gauges in [&self.up, &self.connections, &self.rtt] {
            // Absent already is as good as removed.
            let _ = gauges.remove_label_values(&[labels.peer]);
        }
    }
}

/// Handles of one link.
#[derive(Clone, Debug)]
pub struct LinkHandles {
    /// 1 while a connection is not suspect.
    pub up: IntGauge,
    /// Connections held, suspect ones included.
    pub connections: IntGauge,
    /// Smoothed round-trip time, microseconds.
    pub rtt_micros: IntGauge,
    /// Times a connection became suspect.
    pub suspicions: IntCounter,
    /// Dials that led to a connection.
    pub dials_ok: IntCounter,
    /// Dials that did not.
    pub dials_failed: IntCounter,
}

/// Handles of a link's streams in one direction.
#[derive(Clone, Debug)]
pub struct StreamHandles {
    /// Open now.
    pub open: IntGauge,
    /// Bytes from the accepted side to the other.
    pub sent: IntCounter,
    /// Bytes back.
    pub received: IntCounter,
}

/// Everything a federation counts.
#[derive(Clone, Debug)]
pub struct FederationMetrics {
    proxies: IntGaugeVec,
    issued: IntCounterVec,
    live: IntGaugeVec,
    records: IntGaugeVec,
    refused: IntCounterVec,
    over_quota: IntCounterVec,
    age: IntGaugeVec,
    usable: IntGaugeVec,
    /// Declared resources that are refused now.
    pub resource_problems: IntGauge,
    /// Plans made.
    pub plans: IntCounter,
    /// Questions to the DNS server.
    pub dns: DnsMetrics,
}

impl FederationMetrics {
    /// Adds them to a registry.
    ///
    /// # Errors
    /// If they are registered already.
    pub fn register(registry: &Registry) -> Result<Self, TelemetryError> {
        Ok(Self {
            proxies: gauges(
                registry,
                names::PROXIES,
                "Discovery streams served.",
                &["kind"],
            )?,
            issued: counters(
                registry,
                names::ISSUED,
                "Certificates asked for.",
                &["outcome"],
            )?,
            live: gauges(
                registry,
                names::SYNC_LIVE,
                "Whether records are in force.",
                &["peer"],
            )?,
            records: gauges(registry, names::SYNC_RECORDS, "Records held.", &["peer"])?,
            refused: counters(registry, names::SYNC_REFUSED, "Records refused.", &["peer"])?,
            over_quota: counters(
                registry,
                names::SYNC_OVER_QUOTA,
                "Streams closed for saying too much.",
                &["peer"],
            )?,
            age: gauges(
                registry,
                names::SYNC_AGE,
                "Silence of the peer's federation.",
                &["peer"],
            )?,
            usable: gauges(
                registry,
                names::PEER_USABLE,
                "Whether endpoints may be used.",
                &["peer"],
            )?,
            resource_problems: gauge(registry, names::RESOURCE_PROBLEMS, "Resources refused.")?,
            plans: counter(registry, names::PLANS, "Plans made.")?,
            dns: DnsMetrics::register(registry)?,
        })
    }

    /// Discovery streams of sidecars.
    #[must_use]
    pub fn sidecars(&self) -> IntGauge {
        self.proxies.with_label_values(&["sidecar"])
    }

    /// Discovery streams of gateways.
    #[must_use]
    pub fn gateways(&self) -> IntGauge {
        self.proxies.with_label_values(&["gateway"])
    }

    /// Certificates issued.
    #[must_use]
    pub fn issued(&self) -> IntCounter {
        self.issued.with_label_values(&["ok"])
    }

    /// Certificates refused.
    #[must_use]
    pub fn not_issued(&self) -> IntCounter {
        self.issued.with_label_values(&["refused"])
    }

    /// Streams of a peer that were closed because it said too much.
    #[must_use]
    pub fn over_quota(&self, labels: &LinkLabels<'_>) -> IntCounter {
        self.over_quota.with_label_values(&[labels.peer])
    }

    /// What the owner of a peer's state keeps.
    #[must_use]
    pub fn peer(&self, labels: &LinkLabels<'_>) -> PeerHandles {
        let peer = &[labels.peer];
        PeerHandles {
            live: self.live.with_label_values(peer),
            records: self.records.with_label_values(peer),
            refused: self.refused.with_label_values(peer),
            age_millis: self.age.with_label_values(peer),
            usable: self.usable.with_label_values(peer),
        }
    }

    /// Forgets a peer that is no longer linked.
    pub fn forget(&self, labels: &LinkLabels<'_>) {
        for gauges in [&self.live, &self.records, &self.age, &self.usable] {
            // Absent already is as good as removed.
            let _ = gauges.remove_label_values(&[labels.peer]);
        }
        let _ = self.refused.remove_label_values(&[labels.peer]);
        let _ = self.over_quota.remove_label_values(&[labels.peer]);
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
    /// Milliseconds since the peer's federation was heard.
    pub age_millis: IntGauge,
    /// 1 while its endpoints may be used.
    pub usable: IntGauge,
}

fn with(label: &'static str) -> [&'static str; 4] {
    [TRAFFIC[0], TRAFFIC[1], TRAFFIC[2], label]
}

/// From a fast local answer to a request time-out, seconds; steps of about two.
fn duration_options() -> HistogramOpts {
    let buckets = vec![
        0.000_5, 0.001, 0.002, 0.004, 0.008, 0.015, 0.03, 0.06, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0,
        8.0, 15.0, 30.0,
    ];
    HistogramOpts::new(names::REQUEST_DURATION, "From head to end of answer.").buckets(buckets)
}

fn add<C: Collector + Clone + 'static>(
    registry: &Registry,
    metric: C,
) -> Result<C, TelemetryError> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

fn counter(registry: &Registry, name: &str, help: &str) -> Result<IntCounter, TelemetryError> {
    add(registry, IntCounter::new(name, help)?)
}

fn gauge(registry: &Registry, name: &str, help: &str) -> Result<IntGauge, TelemetryError> {
    add(registry, IntGauge::new(name, help)?)
}

fn counters(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> Result<IntCounterVec, TelemetryError> {
    add(registry, IntCounterVec::new(Opts::new(name, help), labels)?)
}

fn gauges(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> Result<IntGaugeVec, TelemetryError> {
    add(registry, IntGaugeVec::new(Opts::new(name, help), labels)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_registers_once() {
        let registry = Registry::new();
        assert!(SidecarMetrics::register(&registry).is_ok());
        assert!(SidecarMetrics::register(&registry).is_err());
        assert!(GatewayMetrics::register(&Registry::new()).is_ok());
        assert!(FederationMetrics::register(&Registry::new()).is_ok());
    }

    #[test]
    fn handles_count_under_their_labels() {
        let registry = Registry::new();
        let traffic = TrafficMetrics::register(&registry).unwrap();
        let labels = TrafficLabels {
            direction: Direction::Outbound,
            service: "shop/checkout",
            cluster: "west",
        };
        let request = traffic.request(&labels);
        request.status(503).inc();
        request.status(999).inc();
        traffic.connection(&labels).sent.inc_by(7);
        let text = prometheus::TextEncoder::new()
            .encode_to_string(&registry.gather())
            .unwrap();
        for code in ["5xx", "failed"] {
            let line = format!(
                "linkspan_requests_total{{cluster=\"west\",code=\"{code}\",direction=\"outbound\",service=\"shop/checkout\"}} 1"
            );
            assert!(text.contains(&line), "{text}");
        }
        assert!(
            text.contains("flow=\"sent\",service=\"shop/checkout\"} 7"),
            "{text}"
        );
    }
}

//! Every metric that there is: its name, its labels, and what it says. What is not here cannot be
//! counted; `docs/reference/metrics.md` is this list for people.

use std::fmt::Write;

use prometheus::{Error, Registry};

use super::family::{Counters, Family, FloatGauges, Gauges, Histograms};

/// Which kind of number a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// How often which size.
    Histogram,
}

/// Which parts have a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The sidecar.
    Sidecar,
    /// The gateway.
    Gateway,
    /// Federation.
    Federation,
}

/// One metric.
#[derive(Debug, PartialEq, Eq)]
pub struct Metric {
    /// Its name, with its unit.
    pub name: &'static str,
    /// Of which kind.
    pub kind: Kind,
    /// Its labels, in order.
    pub labels: &'static [&'static str],
    /// What it says, in a sentence.
    pub help: &'static str,
    /// Who has it.
    pub parts: &'static [Part],
}

use Kind::{Counter, Gauge, Histogram};
use Part::{Federation, Gateway, Sidecar};

const PROXIES: &[Part] = &[Sidecar, Gateway];
const GATEWAY: &[Part] = &[Gateway];
const FEDERATION: &[Part] = &[Federation];
const ALL_PARTS: &[Part] = &[Sidecar, Gateway, Federation];

/// The labels of a path, and one more.
macro_rules! path_labels {
    ($($more:literal)?) => {
        &[
            "direction",
            "source_cluster",
            "source_namespace",
            "source_workload",
            "source_locality",
            "destination_cluster",
            "destination_namespace",
            "destination_service",
            "destination_workload",
            "destination_locality",
            $($more)?
        ]
    };
}

/// Declares metrics, and [`ALL`] of them.
macro_rules! metrics {
    ($($id:ident: $kind:ident $name:literal $labels:expr, $parts:expr, $help:literal;)*) => {
        $(pub(super) const $id: Metric = Metric {
            name: $name,
            kind: $kind,
            labels: $labels,
            help: $help,
            parts: $parts,
        };)*

        /// All metrics, in the order of the reference page.
        pub const ALL: &[&Metric] = &[$(&$id),*];
    };
}

metrics! {
    REQUESTS: Counter "linkspan_requests_total" path_labels!("code"), PROXIES,
        "HTTP and gRPC requests that ended: by class of status (`2xx` …), `grpc_failed` (answered, with a gRPC status by which the server failed), or `failed` (no answer, or one that was cut).";
    REQUEST_DURATION: Histogram "linkspan_request_duration_seconds" path_labels!(), PROXIES,
        "From the head of a request to the end of its answer.";
    CONNECTIONS: Counter "linkspan_connections_total" path_labels!("outcome"), PROXIES,
        "Opaque TCP connections that ended: `ok`, `failed` (refused, or no endpoint reached) or `reset`.";
    CONNECTIONS_OPEN: Gauge "linkspan_connections_open" path_labels!(), PROXIES,
        "Opaque TCP connections that are open.";
    BYTES: Counter "linkspan_bytes_total" path_labels!("flow"), PROXIES,
        "Bytes of opaque TCP connections: `sent` from the source, `received` by it.";
    CHOICES: Counter "linkspan_endpoint_choices_total"
        &["destination_cluster", "destination_namespace", "destination_service", "reason"], PROXIES,
        "Endpoints chosen, each try counting. Reason: `share` (its share of the first priority), `spill` (the first one cannot take it), `next` (all others of its priority have been tried), `trial` (an ejected one proves itself), `panic` (nothing healthy is left).";
    RETRIES: Counter "linkspan_retries_total"
        &["destination_cluster", "destination_namespace", "destination_service", "reason"], PROXIES,
        "Tries that failed and were followed by another one, by the cluster that failed. `connect` (unless somebody was too busy), `closing`, `lost` and `unusable` are losses, outside of the budget; `refused`, `reset` and `timeout` are inside.";
    CONNECT_FAILURES: Counter "linkspan_connect_failures_total"
        &["destination_cluster", "destination_namespace", "destination_service", "reason"], PROXIES,
        "Connections to endpoints that could not be made.";

    SPANS: Counter "linkspan_trace_spans_total" &["outcome"], PROXIES,
        "Spans of traces: `exported`, `dropped` (the queue was full, or others asked for too many), or `failed` (the collector did not take them).";

    LINK_UP: Gauge "linkspan_link_up" &["peer"], GATEWAY,
        "Whether a connection to the peer may carry streams.";
    LINK_CONNECTIONS: Gauge "linkspan_link_connections" &["peer", "transport", "state"], GATEWAY,
        "Connections to the peer: `clear`, `suspect` or `draining`.";
    LINK_RTT: Gauge "linkspan_link_rtt_seconds" &["peer"], GATEWAY,
        "Smoothed round-trip time of the best connection.";
    LINK_MTU: Gauge "linkspan_link_path_mtu_bytes" &["peer"], GATEWAY,
        "Largest UDP payload that the narrowest path carries, as far as it was found out.";
    LINK_PACKETS: Counter "linkspan_link_packets_total" &["peer", "outcome"], GATEWAY,
        "QUIC packets to the peer: all that were `sent`, and those of them that were `lost`.";
    LINK_BLACK_HOLES: Counter "linkspan_link_black_holes_total" &["peer"], GATEWAY,
        "Times a path stopped carrying packets of the size that it had carried.";
    LINK_WIRE_BYTES: Counter "linkspan_link_wire_bytes_total" &["peer", "flow"], GATEWAY,
        "Bytes of UDP payload `sent` to the peer and `received` from it.";
    LINK_SUSPICIONS: Counter "linkspan_link_suspicions_total" &["peer"], GATEWAY,
        "Times a connection to the peer became suspect.";
    LINK_DIALS: Counter "linkspan_link_dials_total" &["peer", "outcome"], GATEWAY,
        "Dials of the peer: `ok` or `failed`.";
    STREAMS: Counter "linkspan_streams_total" &["peer", "direction", "code"], GATEWAY,
        "Streams that ended, by result. Those that reached no peer have none.";
    STREAMS_OPEN: Gauge "linkspan_streams_open" &["peer", "direction"], GATEWAY,
        "Streams that are open.";
    LINK_BYTES: Counter "linkspan_link_bytes_total" &["peer", "direction", "flow"], GATEWAY,
        "Bytes in streams (ciphertext of the inner TLS): `sent` from the source, `received` by it.";

    DISCOVERY_CONNECTED: Gauge "linkspan_discovery_connected" &[], PROXIES,
        "Whether the discovery stream is up.";
    DISCOVERY_SNAPSHOTS: Counter "linkspan_discovery_snapshots_total" &[], PROXIES,
        "Snapshots of discovery applied.";
    DISCOVERY_REJECTED: Counter "linkspan_discovery_records_rejected_total" &[], PROXIES,
        "Records of discovery that were malformed and left out.";
    DISCOVERY_DISCONNECTS: Counter "linkspan_discovery_disconnects_total" &[], PROXIES,
        "Discovery streams that ended.";
    CERTIFICATE_EXPIRY: Gauge "linkspan_certificate_expiry_timestamp_seconds" &[], ALL_PARTS,
        "When the part's own certificate expires, Unix time.";
    CERTIFICATE_RENEWALS: Counter "linkspan_certificate_renewals_total" &["outcome"], PROXIES,
        "Renewals of the own certificate: `ok` or `failed`.";

    PROXY_STREAMS: Gauge "linkspan_proxies_connected" &["kind"], FEDERATION,
        "Discovery streams served, of `sidecar`s and `gateway`s.";
    ISSUED: Counter "linkspan_certificates_issued_total" &["outcome"], FEDERATION,
        "Certificates asked for: `ok` or `refused`.";
    SYNC_LIVE: Gauge "linkspan_sync_live" &["peer"], FEDERATION,
        "Whether the peer's federation is in sync with us.";
    SYNC_RECORDS: Gauge "linkspan_sync_records" &["peer"], FEDERATION,
        "Records held of the peer.";
    SYNC_REFUSED: Counter "linkspan_sync_records_refused_total" &["peer"], FEDERATION,
        "Records of the peer that were refused.";
    SYNC_OVER_QUOTA: Counter "linkspan_sync_over_quota_total" &["peer"], FEDERATION,
        "Streams of the peer that were closed since it said more than its quota allows.";
    SYNC_AGE: Gauge "linkspan_sync_record_age_seconds" &["peer"], FEDERATION,
        "How old the records of the peer are: time since its federation was heard.";
    PEER_USABLE: Gauge "linkspan_peer_usable" &["peer"], FEDERATION,
        "Whether the peer's endpoints may be used.";
    RESOURCE_PROBLEMS: Gauge "linkspan_resource_problems" &[], FEDERATION,
        "What is wrong with declared resources now; `linkspan status` lists it.";
    PLANS: Counter "linkspan_plans_total" &[], FEDERATION,
        "Plans made.";
    SOURCE_ERRORS: Counter "linkspan_source_errors_total" &[], FEDERATION,
        "Times declared resources could not be read.";
    APPLIES: Counter "linkspan_applies_total" &["outcome"], FEDERATION,
        "Times imports and conditions were written: `ok`, or `failed` as a whole.";
    APPLY_REFUSED: Gauge "linkspan_apply_refused" &[], FEDERATION,
        "Objects that the home refuses to take now.";
    JOURNAL_WRITES: Counter "linkspan_journal_writes_total" &["outcome"], FEDERATION,
        "Writes of what peers told last: `ok` or `failed`.";
    STATE_TROUBLES: Gauge "linkspan_state_troubles" &[], FEDERATION,
        "Places in which what must outlive the process cannot be kept now; `linkspan status` lists them.";
    DNS: Counter "linkspan_dns_questions_total" &["transport", "outcome"], FEDERATION,
        "Questions to DNS by the code of the answer (`noerror`, `nxdomain` …), or `limited` (the source had its share), `ignored` (no questions), `unsent`.";
}

impl Metric {
    /// The place of a label.
    pub(super) fn place(&self, label: &str) -> usize {
        let place = self.labels.iter().position(|of| *of == label);
        place.unwrap_or_else(|| panic!("{} has no label {label}", self.name))
    }

    pub(super) fn counters(&'static self, registry: &Registry) -> Result<Counters, Error> {
        Family::register(registry, self, &[])
    }

    pub(super) fn gauges(&'static self, registry: &Registry) -> Result<Gauges, Error> {
        Family::register(registry, self, &[])
    }

    pub(super) fn float_gauges(&'static self, registry: &Registry) -> Result<FloatGauges, Error> {
        Family::register(registry, self, &[])
    }

    pub(super) fn histograms(
        &'static self,
        registry: &Registry,
        buckets: &'static [f64],
    ) -> Result<Histograms, Error> {
        Family::register(registry, self, buckets)
    }
}

/// Labels that each series has anyway are not repeated for each of these.
const PATH: &[&str] = path_labels!();

/// The table of `docs/reference/metrics.md`.
#[must_use]
pub fn table() -> String {
    let mut table =
        String::from("| metric | kind | labels | parts | what it says |\n|---|---|---|---|---|\n");
    for metric in ALL {
        let parts = metric.parts.iter().map(|part| match part {
            Part::Sidecar => "sidecar",
            Part::Gateway => "gateway",
            Part::Federation => "federation",
        });
        let kind = match metric.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let (path, own) = match metric.labels.strip_prefix(PATH) {
            Some(rest) => (Some("[path](#labels-of-a-path)".to_owned()), rest),
            None => (None, metric.labels),
        };
        let own = own.iter().map(|label| format!("`{label}`"));
        let labels: Vec<_> = path.into_iter().chain(own).collect();
        let (labels, parts) = (labels.join(", "), parts.collect::<Vec<_>>().join(", "));
        // Writing to a string cannot fail.
        let _ = writeln!(
            table,
            "| `{}` | {kind} | {labels} | {parts} | {} |",
            metric.name, metric.help
        );
    }
    table
}

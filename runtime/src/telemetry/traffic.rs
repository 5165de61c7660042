//! What is counted of requests and connections, at whoever carries them.
//!
//! A *path* leads from a source to a destination workload. Its ends come from configuration and from
//! what certificates and discovery say, so peers have a say in the names: there are at most
//! [`MAX_PATHS`] of each kind in a process, all further ones count together as [`OTHER`]. Handles are
//! looked up once per path or connection and kept; ten minutes after nobody holds them any more, the
//! series go.

use std::{sync::Arc, time::Instant};

use prometheus::{Histogram, IntCounter, IntGauge, Registry};

use super::{
    Direction, TelemetryError, catalogue,
    family::{Counters, Gauges, Histograms},
    series::Series,
};

/// Paths of requests, and as many of connections, in one process: each is 26 series of the first kind.
pub const MAX_PATHS: usize = 1_000;
/// Services by cluster in one process.
const MAX_ROUTES: usize = 2_000;
/// Stands for names that there is no room for.
pub const OTHER: &str = "other";
/// Longest label value, bytes; localities of peers have no other bound.
const MAX_VALUE: usize = 128;

/// From a fast local answer to a request time-out, seconds; steps of about two.
const DURATIONS: [f64; 17] = [
    0.000_5, 0.001, 0.002, 0.004, 0.008, 0.015, 0.03, 0.06, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0,
    15.0, 30.0,
];

/// One end of a path; what is not known is empty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct End<'a> {
    /// The cluster that it is in.
    pub cluster: &'a str,
    /// The namespace of its service account.
    pub namespace: &'a str,
    /// Its service account.
    pub workload: &'a str,
    /// `region/zone`.
    pub locality: &'a str,
}

/// Labels of a path.
#[derive(Clone, Copy, Debug)]
pub struct Path<'a> {
    /// Which way through this part.
    pub direction: Direction,
    /// Who calls.
    pub source: End<'a>,
    /// Who is called.
    pub destination: End<'a>,
    /// Namespace of the service that is called.
    pub namespace: &'a str,
    /// Name of the service that is called.
    pub service: &'a str,
}

/// Values of the labels of a path, in the order of the catalogue.
type PathValues = [String; 10];
/// Cluster, namespace and name of a service.
type RouteValues = [String; 3];

impl Path<'_> {
    fn values(&self) -> PathValues {
        let Self {
            source,
            destination,
            ..
        } = self;
        [
            self.direction.as_str(),
            source.cluster,
            source.namespace,
            source.workload,
            source.locality,
            destination.cluster,
            self.namespace,
            self.service,
            destination.workload,
            destination.locality,
        ]
        .map(bounded)
    }

    fn other(&self) -> PathValues {
        let mut values = [OTHER; 10];
        values[0] = self.direction.as_str();
        values.map(str::to_owned)
    }
}

fn bounded(value: &str) -> String {
    let mut end = value.len().min(MAX_VALUE);
    while !value.is_char_boundary(end) {
        end -= 1;
    }
    value[..end].to_owned()
}

/// Requests, connections and bytes of a proxy. Clones are one and the same.
#[derive(Clone, Debug)]
pub struct TrafficMetrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    requests: Counters,
    request_duration: Histograms,
    connections: Counters,
    connections_open: Gauges,
    bytes: Counters,
    choices: Counters,
    retries: Counters,
    connect_failures: Counters,
    request_paths: Series<PathValues, RequestHandles>,
    connection_paths: Series<PathValues, ConnectionHandles>,
    routes: Series<RouteValues, RouteHandles>,
}

impl TrafficMetrics {
    /// Adds them to a registry.
    ///
    /// # Errors
    /// If they are registered already.
    pub fn register(registry: &Registry) -> Result<Self, TelemetryError> {
        Ok(Self(Arc::new(Inner {
            requests: catalogue::REQUESTS.counters(registry)?,
            request_duration: catalogue::REQUEST_DURATION.histograms(registry, &DURATIONS)?,
            connections: catalogue::CONNECTIONS.counters(registry)?,
            connections_open: catalogue::CONNECTIONS_OPEN.gauges(registry)?,
            bytes: catalogue::BYTES.counters(registry)?,
            choices: catalogue::CHOICES.counters(registry)?,
            retries: catalogue::RETRIES.counters(registry)?,
            connect_failures: catalogue::CONNECT_FAILURES.counters(registry)?,
            request_paths: Series::new(MAX_PATHS),
            connection_paths: Series::new(MAX_PATHS),
            routes: Series::new(MAX_ROUTES),
        })))
    }

    /// What opaque connections of the same path share.
    #[must_use]
    pub fn connections(&self, path: &Path<'_>) -> Arc<ConnectionHandles> {
        let inner = &*self.0;
        let paths = &inner.connection_paths;
        paths.get(
            path.values(),
            || path.other(),
            |values| inner.connection_handles(values),
        )
    }

    /// What requests of the same path share.
    #[must_use]
    pub fn requests(&self, path: &Path<'_>) -> Arc<RequestHandles> {
        let inner = &*self.0;
        let paths = &inner.request_paths;
        paths.get(
            path.values(),
            || path.other(),
            |values| inner.request_handles(values),
        )
    }

    /// What calls to one service in one cluster share.
    #[must_use]
    pub fn route(&self, cluster: &str, (namespace, service): (&str, &str)) -> Arc<RouteHandles> {
        let inner = &*self.0;
        let values = [cluster, namespace, service].map(bounded);
        let other = || [OTHER; 3].map(str::to_owned);
        inner
            .routes
            .get(values, other, |values| inner.route_handles(values))
    }

    /// Lets series go that nobody has needed for long. To be called every now and then.
    pub fn sweep(&self, now: Instant) {
        let inner = &*self.0;
        inner.request_paths.sweep(now, |values| {
            let path = labelled(&catalogue::REQUEST_DURATION, values);
            inner.requests.forget(&path);
            inner.request_duration.forget(&path);
        });
        inner.connection_paths.sweep(now, |values| {
            let path = labelled(&catalogue::CONNECTIONS_OPEN, values);
            inner.connections.forget(&path);
            inner.connections_open.forget(&path);
            inner.bytes.forget(&path);
        });
        inner.routes.sweep(now, |values| {
            let route = labelled(&catalogue::RETRIES, values);
            inner.choices.forget(&route);
            inner.retries.forget(&route);
            inner.connect_failures.forget(&route);
        });
    }
}

/// The first labels of a metric with their values.
fn labelled<'a>(
    metric: &'static catalogue::Metric,
    values: &'a [String],
) -> Vec<(&'a str, &'a str)> {
    let labels = metric.labels.iter().copied();
    labels.zip(values.iter().map(String::as_str)).collect()
}

impl Inner {
    fn connection_handles(&self, values: &PathValues) -> ConnectionHandles {
        let ended = |outcome| self.connections.of(&with(values, outcome));
        let bytes = |flow| self.bytes.of(&with(values, flow));
        ConnectionHandles {
            open: self.connections_open.of(values),
            ok: ended("ok"),
            failed: ended("failed"),
            reset: ended("reset"),
            sent: bytes("sent"),
            received: bytes("received"),
        }
    }

    fn request_handles(&self, values: &PathValues) -> RequestHandles {
        let code = |code| self.requests.of(&with(values, code));
        RequestHandles {
            by_class: ["1xx", "2xx", "3xx", "4xx", "5xx"].map(code),
            grpc_failed: code("grpc_failed"),
            failed: code("failed"),
            duration: self.request_duration.of(values),
        }
    }

    fn route_handles(&self, values: &RouteValues) -> RouteHandles {
        RouteHandles {
            chosen: Why::ALL.map(|why| self.choices.of(&with(values, why.as_str()))),
            retries: self.retries.clone(),
            connect_failures: self.connect_failures.clone(),
            values: values.clone(),
        }
    }
}

fn with<'a>(values: &'a [String], one_more: &'a str) -> Vec<&'a str> {
    let values = values.iter().map(String::as_str);
    values.chain([one_more]).collect()
}

/// Handles of connections of one path.
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

/// Handles of requests of one path.
#[derive(Clone, Debug)]
pub struct RequestHandles {
    by_class: [IntCounter; 5],
    /// Answered, and its gRPC status says that the server has failed.
    pub grpc_failed: IntCounter,
    /// No answer was had: cut, timed out, refused by us before any answer.
    pub failed: IntCounter,
    /// Seconds from head to end of answer.
    pub duration: Histogram,
}

impl ConnectionHandles {
    /// Handles that no registry shows: of what has no path.
    #[must_use]
    pub fn detached() -> Self {
        let counter = || IntCounter::new("detached", "not shown").expect("the name is good");
        Self {
            open: IntGauge::new("detached", "not shown").expect("the name is good"),
            ok: counter(),
            failed: counter(),
            reset: counter(),
            sent: counter(),
            received: counter(),
        }
    }
}

impl RequestHandles {
    /// Handles that no registry shows: of what has no path.
    #[must_use]
    pub fn detached() -> Self {
        let counter = || IntCounter::new("detached", "not shown").expect("the name is good");
        let options = prometheus::HistogramOpts::new("detached", "not shown").buckets(vec![1.0]);
        Self {
            by_class: std::array::from_fn(|_| counter()),
            grpc_failed: counter(),
            failed: counter(),
            duration: Histogram::with_opts(options).expect("the name is good"),
        }
    }

    /// The counter of a status code's class; codes outside 100–599 count as failed.
    #[must_use]
    pub fn status(&self, code: u16) -> &IntCounter {
        let class = usize::from(code / 100)
            .checked_sub(1)
            .and_then(|class| self.by_class.get(class));
        class.unwrap_or(&self.failed)
    }
}

/// Why an endpoint was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// By its share of the first priority.
    Share,
    /// By its share of another one: the first cannot take all.
    Spill,
    /// All others of its priority have been tried.
    Next,
    /// It was ejected, and may prove itself.
    Trial,
    /// Nothing healthy is left.
    Panic,
}

impl Why {
    const ALL: [Self; 5] = [
        Self::Share,
        Self::Spill,
        Self::Next,
        Self::Trial,
        Self::Panic,
    ];

    /// The word in metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Share => "share",
            Self::Spill => "spill",
            Self::Next => "next",
            Self::Trial => "trial",
            Self::Panic => "panic",
        }
    }
}

/// Handles of calls to one service in one cluster.
#[derive(Debug)]
pub struct RouteHandles {
    chosen: [IntCounter; 5],
    retries: Counters,
    connect_failures: Counters,
    values: RouteValues,
}

impl RouteHandles {
    /// The counter of endpoints chosen for that reason.
    #[must_use]
    pub fn chosen(&self, why: Why) -> &IntCounter {
        &self.chosen[why as usize]
    }

    /// Counts a try that failed and is followed by another; `reason` is a word of ours.
    pub fn retried(&self, reason: &'static str) {
        self.retries.of(&with(&self.values, reason)).inc();
    }

    /// Counts a connection that could not be made; `reason` is a word of ours.
    pub fn connect_failed(&self, reason: &'static str) {
        self.connect_failures.of(&with(&self.values, reason)).inc();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use prometheus::TextEncoder;

    use super::*;
    use crate::telemetry::series::LINGER;

    fn text(registry: &Registry) -> String {
        TextEncoder::new()
            .encode_to_string(&registry.gather())
            .unwrap()
    }

    fn path(workload: &str) -> Path<'_> {
        Path {
            direction: Direction::Outbound,
            source: End {
                cluster: "east",
                namespace: "shop",
                workload: "frontend",
                locality: "eu/a",
            },
            destination: End {
                cluster: "west",
                namespace: "shop",
                workload,
                locality: "eu/b",
            },
            namespace: "shop",
            service: "checkout",
        }
    }

    #[test]
    fn handles_count_under_their_labels() {
        let registry = Registry::new();
        let traffic = TrafficMetrics::register(&registry).unwrap();
        let requests = traffic.requests(&path("checkout"));
        requests.status(503).inc();
        requests.status(999).inc();
        traffic.connections(&path("checkout")).sent.inc_by(7);
        let route = traffic.route("west", ("shop", "checkout"));
        route.chosen(Why::Spill).inc();
        route.retried("lost");
        let text = text(&registry);
        let ends = "destination_cluster=\"west\",destination_locality=\"eu/b\",destination_namespace=\"shop\",destination_service=\"checkout\",destination_workload=\"checkout\",direction=\"outbound\"";
        let source = "source_cluster=\"east\",source_locality=\"eu/a\",source_namespace=\"shop\",source_workload=\"frontend\"";
        for line in [
            format!("linkspan_requests_total{{code=\"5xx\",{ends},{source}}} 1"),
            format!("linkspan_requests_total{{code=\"failed\",{ends},{source}}} 1"),
            format!("linkspan_bytes_total{{{ends},flow=\"sent\",{source}}} 7"),
            "destination_service=\"checkout\",reason=\"spill\"} 1".to_owned(),
            "reason=\"lost\"} 1".to_owned(),
        ] {
            assert!(text.contains(&line), "{line}: {text}");
        }
    }

    #[test]
    fn what_went_is_shown_no_more_and_what_is_held_stays() {
        let registry = Registry::new();
        let traffic = TrafficMetrics::register(&registry).unwrap();
        let held = traffic.requests(&path("kept"));
        drop(traffic.requests(&path("gone")));
        drop(traffic.connections(&path("gone")));
        drop(traffic.route("gone", ("shop", "checkout")));
        let route = traffic.route("west", ("shop", "kept"));
        route.connect_failed("timeout");
        let start = Instant::now();
        traffic.sweep(start);
        assert!(text(&registry).contains("\"gone\""));
        traffic.sweep(start + LINGER);
        let after = text(&registry);
        assert!(!after.contains("\"gone\""), "{after}");
        assert!(
            after.contains("\"kept\"") && after.contains("\"timeout\""),
            "{after}"
        );
        drop((held, route));
        traffic.sweep(start + LINGER + Duration::from_secs(60));
        traffic.sweep(start + LINGER * 3);
        assert_eq!(text(&registry), "");
    }

    #[test]
    fn label_sets_that_read_alike_are_different_series() {
        let registry = Registry::new();
        let traffic = TrafficMetrics::register(&registry).unwrap();
        let [one, other] = [("west", "1shop"), ("west1", "shop")].map(|(cluster, namespace)| {
            let mut path = path("checkout");
            (path.source.cluster, path.source.namespace) = (cluster, namespace);
            traffic.requests(&path)
        });
        one.status(200).inc();
        other.status(200).inc_by(2);
        let shown = |ends: &str| {
            let text = text(&registry);
            let mut lines = text.lines().filter(|line| line.contains("code=\"2xx\""));
            lines
                .find(|line| line.contains(ends))
                .and_then(|line| line.rsplit(' ').next().map(str::to_owned))
        };
        let west = "source_cluster=\"west\",source_locality=\"eu/a\",source_namespace=\"1shop\"";
        let west1 = "source_cluster=\"west1\",source_locality=\"eu/a\",source_namespace=\"shop\"";
        assert_eq!(shown(west).as_deref(), Some("1"));
        assert_eq!(shown(west1).as_deref(), Some("2"));
        // One that goes takes nothing of the other along.
        drop(one);
        let start = Instant::now();
        traffic.sweep(start);
        traffic.sweep(start + LINGER);
        assert_eq!(shown(west), None);
        assert_eq!(shown(west1).as_deref(), Some("2"));
    }

    #[test]
    fn names_of_peers_cannot_fill_the_memory() {
        let registry = Registry::new();
        let traffic = TrafficMetrics::register(&registry).unwrap();
        let long = "é".repeat(1000);
        for n in 0..MAX_PATHS + 100 {
            let workload = format!("w{n}-{long}");
            traffic.connections(&path(&workload)).ok.inc();
        }
        let text = text(&registry);
        let ok = |line: &&str| {
            line.starts_with("linkspan_connections_total{") && line.contains("\"ok\"")
        };
        let lines: Vec<_> = text.lines().filter(ok).collect();
        assert_eq!(lines.len(), MAX_PATHS + 1);
        let other = lines
            .iter()
            .find(|line| line.contains("destination_service=\"other\""));
        assert!(
            other.is_some_and(|line| line.ends_with(" 100")),
            "{other:?}"
        );
        assert!(lines.iter().all(|line| line.len() < 1000));
    }
}

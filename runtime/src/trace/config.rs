//! `telemetry` in the configuration of a proxy.

use serde::Deserialize;
use tonic::transport::Endpoint;

use crate::config::Problems;

/// Part of requests without a trace that are recorded, where nothing is said.
const SAMPLING: f64 = 0.01;

/// As it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RawTelemetry {
    otlp: Option<RawOtlp>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawOtlp {
    endpoint: String,
    sampling_ratio: Option<f64>,
}

/// Where traces go, and how many of them.
#[derive(Clone, Debug)]
pub struct Otlp {
    pub(super) endpoint: Endpoint,
    /// 0 to 1.
    pub(super) sampling: f64,
}

impl Otlp {
    /// Sends to `http://HOST:PORT`, by gRPC; of requests that come without a trace it records that
    /// part (0 to 1).
    ///
    /// # Errors
    /// What is wrong, and what to do.
    pub fn new(endpoint: &str, sampling: f64) -> Result<Self, &'static str> {
        let fix = "use the address of an OTLP/gRPC collector such as `http://otel-collector:4317`; \
                   TLS to a collector is not supported: use one in the same cluster or machine";
        let Some(authority) = endpoint.strip_prefix("http://") else {
            return Err(fix);
        };
        if has_more(authority) {
            return Err(
                "write `http://HOST:PORT` alone: logs and dumps show it, so that it takes \
                        no credentials, and a collector has no path, query or fragment",
            );
        }
        let endpoint = Endpoint::from_shared(endpoint.to_owned()).map_err(|_| fix)?;
        if endpoint.uri().host().is_none_or(str::is_empty) {
            return Err(fix);
        }
        Ok(Self { endpoint, sampling })
    }

    /// For the dump of the configuration.
    #[must_use]
    pub fn dump(&self) -> serde_json::Value {
        serde_json::json!({
            "endpoint": self.endpoint.uri().to_string(),
            "samplingRatio": self.sampling,
        })
    }
}

/// Whether there is something before or after `HOST:PORT`, which may be a secret.
fn has_more(authority: &str) -> bool {
    let authority = authority.strip_suffix('/').unwrap_or(authority);
    authority.contains(['@', '/', '?', '#'])
}

/// An address as a problem may show it.
fn shown(endpoint: &str) -> String {
    let (_, authority) = endpoint.split_once("://").unwrap_or(("", endpoint));
    match has_more(authority) {
        true => "an address with more than host and port".to_owned(),
        false => format!("`{}`", endpoint.escape_debug()),
    }
}

impl RawTelemetry {
    /// Where traces go; `None` where they are not wanted, or after a problem was added.
    pub fn typed(self, problems: &mut Problems) -> Option<Otlp> {
        let raw = self.otlp?;
        let sampling = raw.sampling_ratio.unwrap_or(SAMPLING);
        if !(0.0..=1.0).contains(&sampling) {
            let fix = "use a part of all, 0 to 1";
            problems.add("telemetry.otlp.samplingRatio", sampling, fix);
        }
        match Otlp::new(&raw.endpoint, sampling) {
            Ok(otlp) => Some(otlp),
            Err(fix) => {
                problems.add("telemetry.otlp.endpoint", shown(&raw.endpoint), fix);
                None
            }
        }
    }
}

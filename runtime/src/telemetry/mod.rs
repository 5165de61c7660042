//! What the parts count, and where it is shown.
//!
//! ```text
//! catalogue (names, labels, words) ─► families of series ─► handles, kept by what owns a path,
//!                                                           a connection, a link or a peer
//! ```
//! Names and labels are in the [`catalogue`] alone. Looking up a series locks its family, so that the
//! value that owns what is counted looks once and keeps the handle, which is a plain counter. Label
//! values are words of ours and names: of our own configuration, of linked clusters, and, within
//! bounds ([`MAX_PATHS`]), of what peers' workloads and services are called. Series go with what they name.

pub mod catalogue;
mod control;
mod dns;
mod family;
mod federation;
mod links;
mod series;
mod traffic;

pub use control::{ControlMetrics, SpanMetrics};
pub use dns::{DnsHandles, DnsMetrics};
pub use federation::{FederationMetrics, JournalHandles, PeerHandles};
pub use links::{LinkHandles, LinkMetrics, StreamHandles};
pub use prometheus::{Error as TelemetryError, Histogram, IntCounter, IntGauge, Registry};
pub use traffic::{
    ConnectionHandles, End, MAX_PATHS, OTHER, Path, RequestHandles, RouteHandles, TrafficMetrics,
    Why,
};

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

/// Labels of a link.
#[derive(Clone, Copy, Debug)]
pub struct LinkLabels<'a> {
    /// Cluster id of the peer.
    pub peer: &'a str,
}

/// Everything a sidecar counts.
#[derive(Clone, Debug)]
pub struct SidecarMetrics {
    /// Requests, connections, bytes.
    pub traffic: TrafficMetrics,
    /// Discovery and identity.
    pub control: ControlMetrics,
    /// Traces.
    pub spans: SpanMetrics,
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
            spans: SpanMetrics::register(registry)?,
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
    /// Requests and connections from and to workloads without a sidecar.
    pub traffic: TrafficMetrics,
    /// Traces.
    pub spans: SpanMetrics,
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
            spans: SpanMetrics::register(registry)?,
        })
    }
}

#[cfg(test)]
mod tests;

//! The sidecar: next to one workload, it takes the workload's calls into the mesh and the mesh's
//! calls to the workload.
//!
//! ```text
//! app ─► outbound ─► balance per request ─► pool ─► inner mTLS ─► (gateways) ─► inbound ─► app
//! ```
//!
//! A process calls [`Config::load`], [`bind`] and [`Bound::run`], in this order.

mod bound;
pub mod capture;
mod config;
mod dump;
mod mesh;
mod original_dst;
#[cfg(test)]
mod tests;
mod workload;

pub use bound::{BindError, Bound, bind};
pub use config::{
    Config, DRAIN_GRACE, IDLE_TIMEOUT, Outbound, Own, PROBE_INTERVAL, PROBE_TIMEOUT, Probe,
    Readiness, Workload,
};

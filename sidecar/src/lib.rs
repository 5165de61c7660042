//! The sidecar: next to one workload, it takes the workload's calls into the mesh and the mesh's
//! calls to the workload.
//!
//! ```text
//! app ─► outbound ─► balance per request ─► pool ─► inner mTLS ─► (gateways) ─► inbound ─► app
//! ```
//!
//! A process calls [`Config::load`], [`bind`] and [`Bound::run`], in this order.

mod bound;
mod config;

pub use bound::{BindError, Bound, bind};
pub use config::Config;

//! What a federation decides, without doing any of it: no sockets, no clock, no wire.
//!
//! ```text
//! Source ─► Declared ───┐
//! sidecars ► Workloads ─┼─► plan ─► Desired ─► Sink (imports, conditions)
//! gateways ► Gateways ──┤              ├─────► discovery (services, inbound, links, peers)
//! peers ───► Peers ─────┘              └─────► sync (what each peer is told)
//! ```
//!
//! Time is an argument everywhere: [`std::time::Instant`] for what must not jump
//! (leases, ages), [`std::time::SystemTime`] for what others wrote down.

pub mod announced;
pub mod backend;
pub mod capacity;
pub mod declared;
pub mod delta;
pub mod derived;
pub mod direct;
pub mod dns;
pub mod failover;
pub mod gateways;
pub mod history;
pub mod hold;
pub mod imports;
pub mod inject;
pub mod join;
pub mod journal;
pub mod merge;
pub mod model;
pub mod peer;
pub mod peers;
pub mod plan;
mod presence;
pub mod record;
pub mod servers;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod workloads;

pub use model::*;
pub use presence::{Presence, Session};

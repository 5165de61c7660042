//! The gateway: egress, tunnel, ingress.
//!
//! ```text
//! sidecar, federation ─TCP─► egress ─► peers (which connection?) ─► tunnel ═QUIC═► peer's gateway
//!
//! peer's gateway ═QUIC═► tunnel ─► ingress (admit) ─TCP─► endpoint's sidecar, federation
//!
//! client without a sidecar ─TCP─► unmeshed ─► endpoints of the own cluster, egress
//! ```
//!
//! A gateway holds no state: links, exports and endpoints come from discovery, its certificate
//! from federation. What it relays is mTLS between workloads, which it cannot read; all that it
//! sees is the target name in the ClientHello. Only for clients without a sidecar does it speak
//! itself, under an identity of its own.

mod account;
pub mod admit;
mod bind;
mod carry;
pub mod config;
mod debug;
mod egress;
mod ingress;
mod join;
pub mod limits;
pub mod own;
pub mod peers;
mod plane;
mod registration;
mod spans;
pub mod stall;
mod stream;
pub mod tunnel;
mod unmeshed;

pub use bind::{Addresses, BindError, Bound, Sources, bind};
pub use config::{Config, ImportsConfig, Own, ServersConfig};

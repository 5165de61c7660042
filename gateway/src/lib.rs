//! The gateway: egress, tunnel, ingress.
//!
//! ```text
//! sidecar, federation ─TCP─► egress ─► peers (which connection?) ─► tunnel ═QUIC═► peer's gateway
//!
//! peer's gateway ═QUIC═► tunnel ─► ingress (admit) ─TCP─► endpoint's sidecar, federation
//! ```
//!
//! A gateway holds no state: links, exports and endpoints come from discovery, its certificate
//! from federation. What it relays is mTLS between workloads, which it cannot read; all that it
//! sees is the target name in the ClientHello.

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
pub mod stall;
mod stream;
pub mod tunnel;

pub use bind::{Addresses, BindError, Bound, Sources, bind};
pub use config::{Config, Own};

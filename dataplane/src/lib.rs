//! The path of a connection, in the order in which it meets these modules:
//!
//! ```text
//! accept ─► detect ─► target ─► (routing picks an endpoint) ─► connect ─► forward ─► report
//! listener  what is   where to?                                TCP, mTLS,  bytes or   one log line,
//! bounds    it?       SNI                                      gateway     requests   one count
//! ```
//!
//! [`outbound`] puts these steps in order for the callers' side, [`inbound`] those of the side that is
//! called. Beside the path: [`discover`] keeps
//! this proxy's snapshot of the control plane, [`identity`] its certificate. [`frame`] and [`proxy_header`] are the small formats spoken on the way.

pub mod accept;
pub mod connect;
pub mod detect;
pub mod discover;
pub mod forward;
pub mod frame;
pub mod identity;
pub mod inbound;
pub mod outbound;
pub mod proxy_header;
pub mod report;
pub mod target;

#[cfg(test)]
mod fake_federation;

//! For those who have no sidecar.
//!
//! ```text
//! plain client ─TCP─► port of an import ─► the same steps as in a sidecar ─► inner mTLS, as
//!                     (listeners)          (dataplane::outbound)            …/sa/linkspan-unmeshed-client
//!
//! a stream, or a caller of ─► inner mTLS, as                  ─► the same checks as ─TCP─► plain server
//! this cluster at egress      …/sa/linkspan-unmeshed-server      in a sidecar (dataplane::inbound)
//! ```
//!
//! The gateway sees what it carries for them, and vouches for them under an identity of its own,
//! never under that of the tunnel: who is called, or calls, can tell.

mod imports;
mod listeners;
pub(crate) mod pipe;
mod servers;
mod view;

pub(crate) use imports::Imports;
pub(crate) use servers::{Servers, Table};

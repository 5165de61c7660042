//! For those who have no sidecar.
//!
//! ```text
//! plain client ─TCP─► port of an import ─► the same steps as in a sidecar ─► inner mTLS, as
//!                     (listeners)          (dataplane::outbound)            …/sa/linkspan-unmeshed-client
//! ```
//!
//! The gateway sees what it carries for them, and vouches for them under an identity of its own,
//! never under that of the tunnel: who is called can tell, and admits it or not.

mod imports;
mod listeners;
mod view;

pub(crate) use imports::Imports;

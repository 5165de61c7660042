//! What DNS says of the clusterset: which names `clusterset.local` holds, and what each stands for.
//!
//! | name | what it has |
//! |---|---|
//! | `SVC.NS.svc.clusterset.local` | addresses: the clusterset IPs, or those of ready headless endpoints |
//! | `HOST.CLUSTER.SVC.NS.svc.clusterset.local` | the addresses of one headless endpoint |
//! | `_PORT._tcp.SVC.NS.svc.clusterset.local` | SRV for a named port |
//! | `dns-version.clusterset.local` | TXT, the version of this scheme |
//!
//! `CLUSTER.SVC.NS.svc.clusterset.local` is never served, as the MCS API (KEP-1645) wants it. Pure: a
//! [`Zone`] is a value, made with each plan; sockets and the wire format are elsewhere.

mod name;
mod zone;

pub use name::{Asked, ORIGIN};
pub(crate) use zone::host_name;
pub use zone::{Answer, Data, Entry, Host, Port, Want, Zone};

//! Federation: the control plane of one cluster.
//!
//! It reads declared resources from its home (a directory, or the Kubernetes API), issues certificates, tells this cluster's
//! proxies what they need, and syncs with the federations of linked clusters. It is never in
//! the path of a request: proxies go on with their last good snapshot while it is away.
//!
//! | face | where |
//! |---|---|
//! | Identity, Discovery, Sync (gRPC over TLS) | one port, [`Config::listen`] |
//! | Operator (gRPC) | a unix socket in the state directory |
//! | `/healthz /readyz /metrics` | [`Config::admin_listen`] |
//! | DNS for `clusterset.local` | [`Config::dns_listen`], UDP and TCP; off unless set |
//! | webhook that puts sidecars into pods (HTTPS) | [`Config::webhook`]; off unless set |
//! | `/config /snapshot` | [`Config::debug_listen`], loopback |
//!
//! [`bind`] reports every error that a start can have, and knows all addresses; [`Bound::run`]
//! serves until it is told to stop.

mod bound;
mod config;
mod controller;
mod convert;
mod directory;
mod discovery;
mod dns;
mod dumps;
mod home;
mod identity;
mod join;
mod listener;
mod operator;
mod state;
mod sync;
mod version;
pub mod webhook;
mod wiring;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use bound::{Addresses, BindError, Bound, bind};
pub use config::{Config, Home, IMPORT_PORTS, Timers, WebhookConfig};
pub use linkspan_kube::{ROOTS_CONFIG_MAP, SECRETS, TUNNEL_SERVICE};
pub use linkspan_runtime::config::ConfigError;
pub use state::StateError;

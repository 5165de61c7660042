//! Sync between federations: each side subscribes at the other.
//!
//! `server` sends what is exported to a peer, `client` keeps a subscription at each peer and
//! hands what it hears to the controller. The way between them leads through our own gateways
//! (`dial`, `preface`) and the tunnel. What a peer says on either is charged to its quota
//! (`quota`, `metered`, `subscribers`).

mod client;
mod dial;
mod incoming;
mod metered;
mod outbox;
mod preface;
mod quota;
mod records;
mod server;
mod subscribers;

pub(crate) use client::{Context, Heard, Order, channel, keep_subscribed};
pub(crate) use dial::{Destination, Dial, GatewayPath, GatewayPaths, ViaGateways};
#[cfg(test)]
pub(crate) use dial::{Io, peer_config, server_name};
pub(crate) use metered::Metering;
pub(crate) use server::{Shared, SyncService};
pub(crate) use subscribers::Subscribers;

//! Whole federations in one process, over loopback, with real TLS.

mod directory;
mod discovery;
mod dns;
mod failover;
mod identity;
mod imports;
mod join;
mod mistakes;
mod operator;
mod path;
mod places;
mod proxy;
mod servers;
mod sync;
mod unlink;

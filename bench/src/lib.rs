//! Measurements of Linkspan as a user would run it: real processes on this machine.
//!
//! - [`chain`], [`spread`], [`failover`]: one question each, with its report.
//! - [`load`], [`origin`]: the two ends, each a process of its own.
//! - [`place`], [`world`]: where the processes run, and the clusters between the two ends.
//! - [`watch`]: the demo's open loop, whose answers are judged one by one.
//! - [`pin`], [`own`]: processor cores; this program as a child of itself.

pub mod chain;
pub mod failover;
pub mod load;
pub mod origin;
pub mod output;
pub mod own;
pub mod pin;
pub mod place;
pub mod spread;
pub mod watch;
pub mod world;

//! Being a good process: what every part of Linkspan needs and none should invent.
//!
//! * [`stop`], [`process`], [`phase`]: starting, draining, stopping, and telling others about it
//! * [`readiness`], [`admin`]: whether traffic is welcome, and the two HTTP faces that say so
//! * [`config`], [`logging`], [`telemetry`]: configuration files, logs, the one metrics catalogue
//! * [`files`]: how many may be open
//! * [`backoff`]: how long to wait before trying again
//! * [`places`], [`rate`]: how many may be here at a time and how many of them may be one's; how often
//!   each may come
//!
//! Nothing here knows about clusters, certificates or connections.

pub mod access_log;
pub mod admin;
pub mod backoff;
pub mod config;
pub mod files;
pub mod logging;
pub mod phase;
pub mod places;
pub mod process;
pub mod rate;
pub mod readiness;
pub mod stop;
pub mod telemetry;
pub mod trace;

/// An error of a task whose kind does not matter to its supervisor.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

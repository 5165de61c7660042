//! What the system tests stand on: a whole world in one process, a lab of network namespaces.

pub mod client;
pub mod clusters;
pub mod lab;

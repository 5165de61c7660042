//! Carrying bytes and requests between two connections.

pub mod bytes;
pub mod http;

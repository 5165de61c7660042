//! Reaching the other side: plain TCP, and mutual TLS directly or through a gateway.

pub mod tcp;

//! The Kubernetes home against a real API server.
//!
//! They need the Kubernetes programs (built once into a cache), so they run when asked for:
//! `cargo test -p linkspan-kube --test api -- --ignored`

mod attest;
mod crds;
mod declare;
mod derived;
mod inject;
mod journal;
mod leader;
mod outage;
mod secrets;
mod server;
mod servers;
mod sink;
mod source;

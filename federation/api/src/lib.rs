//! The wire: messages and services between the parts of Linkspan.
//!
//! The `.proto` files beside this crate are the source; the generated code is
//! checked in, so that building needs no protobuf compiler, and a test keeps it fresh.

/// Version 1 of every message and service.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::use_self, clippy::semicolon_if_nothing_returned)]
#[rustfmt::skip]
pub mod v1 {
    include!("generated/linkspan.v1.rs");
}

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

/// Messages that hold an invitation's secret show none of it.
macro_rules! hidden {
    ($($message:ident),+) => {$(
        impl std::fmt::Debug for v1::$message {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(concat!(stringify!($message), "(hidden)"))
            }
        }
    )+};
}
hidden!(Invitation, InviteResponse, AcceptRequest);

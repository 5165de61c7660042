//! Linking by invitation, and unlinking: what the two federations say to each other before there
//! is a link, and what is written down of it.
//!
//! ```text
//! operator ─► Linker ─┬─ invite ──► store
//!                     ├─ accept ──► dials (own gateway) ═ session ═ inviter's port ─► answer
//!                     └─ remove ──► peer's Unlink, else a tombstone
//! keeper: Pending ─► Active or over; REMOVED heard ─► clean up
//! ```

mod accept;
mod answer;
mod dials;
mod in_hand;
pub(crate) mod invitation;
mod keeper;
mod linker;
pub(crate) mod messages;
mod remove;
pub(crate) mod session;
mod store;

pub(crate) use answer::{Doors, doors, serve};
pub(crate) use dials::{Dials, Order};
pub(crate) use in_hand::InHand;
pub(crate) use invitation::unix;
pub(crate) use keeper::keep;
pub(crate) use linker::{Linker, MAX_TTL};
pub(crate) use remove::Removed;
pub(crate) use store::LinkStore;

/// The application protocol of the federations' own session.
pub(crate) const ALPN: &[u8] = b"linkspan-join/1";
/// That with which a gateway of ours comes back after it has dialled.
pub(crate) const BACK_ALPN: &[u8] = b"linkspan-join-back/1";

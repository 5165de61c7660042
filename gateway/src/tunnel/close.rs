//! The codes with which connections are closed and streams are reset. Part of the wire: numbers
//! are never reused. A code tells the peer what happened, not why we think so.

use quinn::VarInt;

/// Why a connection was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum CloseCode {
    /// The process ends without a drain.
    Gone = 0,
    /// Bytes that are no message, or a message at the wrong place.
    Protocol = 1,
    /// The handshake brought no client certificate.
    NoCertificate = 2,
    /// The identity is not that of a linked peer's gateway.
    NotLinked = 3,
    /// The hello names another cluster than the one whose identity was proven.
    WrongCluster = 4,
    /// The link has been removed.
    Removed = 5,
    /// No hello in time.
    HelloTimeout = 6,
    /// Another connection does its work; it was idle.
    Surplus = 7,
    /// Drained: everything that it carried has ended, or the grace is over.
    Drained = 8,
    /// More connections than one link may have.
    Limit = 9,
    /// The link was removed on purpose while the peer was away; it is to clean up, too. The reason
    /// names the invitation of which that link came, and is empty where it was declared.
    Unlinked = 10,
}

impl CloseCode {
    /// Every code, for documents and look-ups.
    pub const ALL: [Self; 11] = [
        Self::Gone,
        Self::Protocol,
        Self::NoCertificate,
        Self::NotLinked,
        Self::WrongCluster,
        Self::Removed,
        Self::HelloTimeout,
        Self::Surplus,
        Self::Drained,
        Self::Limit,
        Self::Unlinked,
    ];

    /// The code on the wire.
    #[must_use]
    pub fn wire(self) -> VarInt {
        VarInt::from_u32(self as u32)
    }

    /// A word for logs and metrics.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Gone => "gone",
            Self::Protocol => "protocol",
            Self::NoCertificate => "no_certificate",
            Self::NotLinked => "not_linked",
            Self::WrongCluster => "wrong_cluster",
            Self::Removed => "removed",
            Self::HelloTimeout => "hello_timeout",
            Self::Surplus => "surplus",
            Self::Drained => "drained",
            Self::Limit => "limit",
            Self::Unlinked => "unlinked",
        }
    }

    /// The code of a number from the wire, if it is one of ours.
    #[must_use]
    pub fn from_wire(code: VarInt) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.wire() == code)
    }
}

/// The code with which the other side closed, if it did.
pub(crate) fn code_of(error: &quinn::ConnectionError) -> Option<CloseCode> {
    match error {
        quinn::ConnectionError::ApplicationClosed(close) => CloseCode::from_wire(close.error_code),
        _ => None,
    }
}

/// Hexadecimal digits of an invitation's id.
const INVITATION: usize = 32;

/// Tells a peer that its link is removed, and which one.
pub(crate) fn unlinked(connection: &quinn::Connection, invitation: &str) {
    connection.close(CloseCode::Unlinked.wire(), invitation.as_bytes());
}

/// The invitation of the link of which the other side said that it is removed; empty for a link
/// that was declared.
pub(crate) fn unlinked_of(error: &quinn::ConnectionError) -> Option<String> {
    match error {
        quinn::ConnectionError::ApplicationClosed(close)
            if close.error_code == CloseCode::Unlinked.wire() =>
        {
            invitation(&close.reason)
        }
        _ => None,
    }
}

/// A reason that names nothing that can be meant says nothing.
fn invitation(reason: &[u8]) -> Option<String> {
    let named = reason.len() == INVITATION && reason.iter().all(u8::is_ascii_hexdigit);
    let text = (named || reason.is_empty()).then_some(reason)?;
    String::from_utf8(text.to_vec()).ok()
}

/// Closes a connection with a code.
pub(crate) fn close(connection: &quinn::Connection, code: CloseCode) {
    connection.close(code.wire(), code.label().as_bytes());
}

/// Why a stream was reset, in both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum ResetCode {
    /// The other end of the relay was reset or failed.
    Reset = 0,
    /// Its connection became suspect, and what it carries can be tried again elsewhere.
    Suspect = 1,
    /// Its reader had stopped and held up others.
    SlowReader = 2,
    /// It carried nothing for too long.
    Idle = 3,
    /// Its first bytes were no stream opening, or came too late.
    BadOpen = 4,
    /// The link has been removed, or the gateway's grace is over.
    Withdrawn = 5,
}

impl ResetCode {
    /// Every code, for documents and look-ups.
    pub const ALL: [Self; 6] = [
        Self::Reset,
        Self::Suspect,
        Self::SlowReader,
        Self::Idle,
        Self::BadOpen,
        Self::Withdrawn,
    ];

    /// The code on the wire.
    #[must_use]
    pub fn wire(self) -> VarInt {
        VarInt::from_u32(self as u32)
    }

    /// A word for logs and metrics.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Reset => "reset",
            Self::Suspect => "suspect",
            Self::SlowReader => "slow_reader",
            Self::Idle => "idle",
            Self::BadOpen => "bad_open",
            Self::Withdrawn => "withdrawn",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn close_codes_are_distinct_and_found_again() {
        let labels: BTreeSet<_> = CloseCode::ALL.iter().map(|code| code.label()).collect();
        assert_eq!(labels.len(), CloseCode::ALL.len());
        for code in CloseCode::ALL {
            assert_eq!(CloseCode::from_wire(code.wire()), Some(code));
        }
        assert_eq!(CloseCode::from_wire(VarInt::from_u32(999)), None);
    }

    #[test]
    fn a_removed_link_is_named_or_nothing_is_said() {
        let id = "00112233445566778899aabbccddeeff";
        assert_eq!(invitation(id.as_bytes()).as_deref(), Some(id));
        assert_eq!(invitation(b"").as_deref(), Some(""));
        for wrong in [
            b"unlinked".as_slice(),
            &[b'x'; 32],
            &[0xff; 32],
            &[b'a'; 33],
        ] {
            assert_eq!(invitation(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn reset_codes_are_distinct() {
        let wire: BTreeSet<_> = ResetCode::ALL.iter().map(|code| code.wire()).collect();
        assert_eq!(wire.len(), ResetCode::ALL.len());
    }

    /// The reference lists every code with its number and word.
    #[test]
    fn the_reference_lists_every_code() {
        let text = include_str!("../../../docs/reference/gateway.md");
        let closes = CloseCode::ALL
            .iter()
            .map(|code| (code.wire(), code.label()));
        let resets = ResetCode::ALL
            .iter()
            .map(|code| (code.wire(), code.label()));
        for (number, word) in closes.chain(resets) {
            assert!(
                text.contains(&format!("| {number} | `{word}` |")),
                "{number} {word}"
            );
        }
    }
}

//! What the DNS server counts.

use prometheus::{IntCounter, Registry};

use super::{TelemetryError, catalogue};

/// Questions to the DNS server, over UDP and over TCP.
#[derive(Clone, Debug)]
pub struct DnsMetrics {
    /// Over UDP.
    pub udp: DnsHandles,
    /// Over TCP.
    pub tcp: DnsHandles,
}

/// Questions that came one way.
#[derive(Clone, Debug)]
pub struct DnsHandles {
    by_code: [IntCounter; 7],
    /// Told to ask by TCP, or refused a connection: that source had its share.
    pub limited: IntCounter,
    /// No questions, and so not answered.
    pub ignored: IntCounter,
    /// Answers that could not be sent.
    pub unsent: IntCounter,
}

/// By their numbers in RFC 1035 section 4.1.1; last what has none of these.
const CODES: [&str; 7] = [
    "noerror", "formerr", "servfail", "nxdomain", "notimp", "refused", "other",
];

impl DnsMetrics {
    /// Adds them to a registry.
    ///
    /// # Errors
    /// If they are registered already.
    pub fn register(registry: &Registry) -> Result<Self, TelemetryError> {
        let questions = catalogue::DNS.counters(registry)?;
        let handles = |transport| {
            let of = |outcome| questions.of(&[transport, outcome]);
            DnsHandles {
                by_code: CODES.map(of),
                limited: of("limited"),
                ignored: of("ignored"),
                unsent: of("unsent"),
            }
        };
        Ok(Self {
            udp: handles("udp"),
            tcp: handles("tcp"),
        })
    }
}

impl DnsHandles {
    /// The counter of answers with that code (its lower four bits).
    #[must_use]
    pub fn answered(&self, code: u8) -> &IntCounter {
        let at = usize::from(code).min(CODES.len() - 1);
        &self.by_code[at]
    }
}

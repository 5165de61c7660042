//! Connections do not outlive what authenticated them: when most of the life that their
//! certificates had left is spent, another connection takes their place, made first.

use std::time::{Duration, Instant, SystemTime};

use linkspan_trust::{Svid, expiry_of};
use rustls::pki_types::CertificateDer;

/// The part of the remaining life after which a connection is replaced.
const SPENT: f64 = 0.8;
/// Where a certificate's end cannot be read, which no verified one's can; and never later.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// When a connection that has just been authenticated by our certificate and the peer's retires.
pub(super) fn at(quic: &quinn::Connection, own: &Svid) -> Instant {
    let now = SystemTime::now();
    let ends = [Some(own.not_after()), peers_end(quic)]
        .into_iter()
        .flatten()
        .min();
    Instant::now() + after(now, ends)
}

fn after(now: SystemTime, end: Option<SystemTime>) -> Duration {
    let left = end.map_or(LONGEST, |end| end.duration_since(now).unwrap_or_default());
    left.mul_f64(SPENT).min(LONGEST)
}

fn peers_end(quic: &quinn::Connection) -> Option<SystemTime> {
    let chain = quic
        .peer_identity()?
        .downcast::<Vec<CertificateDer<'static>>>()
        .ok()?;
    expiry_of(&chain).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_retires_when_four_fifths_are_spent() {
        let now = SystemTime::now();
        let hours = |count: u64| Duration::from_secs(count * 3600);
        assert_eq!(after(now, Some(now + hours(10))), hours(8));
        assert_eq!(after(now, Some(now - hours(1))), Duration::ZERO);
        assert_eq!(after(now, Some(now + hours(1_000))), LONGEST);
    }
}

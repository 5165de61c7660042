//! Bytes both ways between a tunnel stream and a TCP connection, until both have ended, one was
//! reset, or the stream is cut.

use std::time::Duration;

use linkspan_dataplane::forward::bytes::{Counters, Duplex, RelayError, RelayLimits, relay};
use tracing::debug;

use crate::stream::Cause;
use crate::tunnel::close::ResetCode;
use crate::tunnel::streams::Ticket;

/// Relays; gives the word for how it ended. Whatever is not a clean end resets both sides.
pub(crate) async fn carry(
    mut first: impl Duplex,
    mut second: impl Duplex,
    ticket: &Ticket,
    cause: &Cause,
    idle: Duration,
    counters: &Counters,
) -> &'static str {
    let cut = async {
        let code = ticket.cut().await;
        // Before the relay is dropped, whose guard sends the resets.
        cause.set(code);
        code
    };
    let ended = tokio::select! {
        ended = relay(&mut first, &mut second, RelayLimits { idle }, counters) => ended,
        code = cut => {
            debug!(code = code.label(), "stream cut");
            return code.label();
        }
    };
    match ended {
        Ok(_) => "ok",
        Err(RelayError::Idle(_)) => ResetCode::Idle.label(),
        Err(error) => {
            debug!(%error, "stream reset");
            ResetCode::Reset.label()
        }
    }
}

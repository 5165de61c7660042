//! What flows beside the streams of a connection: the control stream after the hellos, and
//! heartbeats.
//!
//! Heartbeats travel in QUIC datagrams, not on the control stream: a datagram waits for no
//! retransmission and for no flow-control credit, so that neither a lost packet nor readers that
//! have stopped can make a healthy peer look dead. Each datagram begins with a flow id; flow 0
//! carries heartbeats. All else is on the control stream, where it arrives for certain.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use linkspan_api::v1;
use linkspan_dataplane::frame::{self, FrameError};
use prost::Message;
use quinn::{RecvStream, SendStream};
use tokio::sync::watch;

use super::close::CloseCode;

/// Encoded, a control message may be this long.
pub const MAX_CONTROL: usize = 4096;
/// The flow id of heartbeats.
const HEARTBEATS: u8 = 0;

/// A heartbeat as a datagram.
#[must_use]
pub fn heartbeat(seq: u64, silence: Duration) -> Bytes {
    let silent_millis = u64::try_from(silence.as_millis()).unwrap_or(u64::MAX);
    let message = v1::TunnelHeartbeat { seq, silent_millis };
    let mut datagram = BytesMut::with_capacity(1 + message.encoded_len());
    datagram.put_u8(HEARTBEATS);
    datagram.extend_from_slice(&message.encode_to_vec());
    datagram.freeze()
}

/// What the peer says in a heartbeat: how long it has not heard us. `None` if the datagram
/// belongs to a flow that we do not know; those are dropped, as any datagram may be.
///
/// # Errors
/// If it is a heartbeat that cannot be decoded.
pub fn unheard(datagram: &Bytes) -> Result<Option<Duration>, prost::DecodeError> {
    match datagram.split_first() {
        Some((&HEARTBEATS, message)) => {
            let heartbeat = v1::TunnelHeartbeat::decode(message)?;
            Ok(Some(Duration::from_millis(heartbeat.silent_millis)))
        }
        _ => Ok(None),
    }
}

/// What the control stream brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Control {
    Goaway,
    Ready(u32),
    /// A message of a later version.
    Unknown,
}

/// Reads the next message of the control stream. Not cancel-safe.
pub(super) async fn read(recv: &mut RecvStream) -> Result<Control, FrameError> {
    let message: v1::TunnelControl = frame::read_message(recv, MAX_CONTROL).await?;
    Ok(match message.message {
        Some(v1::tunnel_control::Message::Goaway(_)) => Control::Goaway,
        Some(v1::tunnel_control::Message::ReadyReplicas(ready)) => Control::Ready(ready),
        Some(v1::tunnel_control::Message::Heartbeat(_)) | None => Control::Unknown,
    })
}

/// Writes what is to be said on the control stream: a changed number of ready replicas, and, at
/// most once, Goaway. Ends when the stream can carry no more.
pub(super) async fn write(
    mut send: SendStream,
    mut ready: watch::Receiver<u32>,
    mut goaway: watch::Receiver<Option<CloseCode>>,
) -> FrameError {
    let mut said = false;
    // The hello carried a number that may have changed since.
    ready.mark_changed();
    loop {
        let message = tokio::select! {
            Some(told) = next_ready(&mut ready) => v1::tunnel_control::Message::ReadyReplicas(told),
            Some(code) = asked(&mut goaway), if !said => {
                said = true;
                let reason = code.label().to_owned();
                v1::tunnel_control::Message::Goaway(v1::TunnelGoaway { reason })
            }
            else => return std::future::pending().await,
        };
        let message = v1::TunnelControl {
            message: Some(message),
        };
        if let Err(error) = frame::write_message(&mut send, &message).await {
            return error;
        }
    }
}

async fn next_ready(ready: &mut watch::Receiver<u32>) -> Option<u32> {
    ready.changed().await.ok()?;
    Some(*ready.borrow_and_update())
}

async fn asked(goaway: &mut watch::Receiver<Option<CloseCode>>) -> Option<CloseCode> {
    goaway
        .wait_for(Option::is_some)
        .await
        .ok()
        .and_then(|code| *code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn heartbeats_come_back(seq in any::<u64>(), millis in any::<u64>()) {
            let silence = Duration::from_millis(millis);
            prop_assert_eq!(unheard(&heartbeat(seq, silence)), Ok(Some(silence)));
        }

        #[test]
        fn any_datagram_is_survived(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = unheard(&Bytes::from(bytes));
        }
    }

    #[test]
    fn other_flows_and_empty_datagrams_are_dropped() {
        assert_eq!(unheard(&Bytes::from_static(&[7, 1, 2])), Ok(None));
        assert_eq!(unheard(&Bytes::new()), Ok(None));
    }
}

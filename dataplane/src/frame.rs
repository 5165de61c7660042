//! Framed messages: two bytes of length, big endian, then protobuf. Used before and beside raw
//! bytes on tunnel streams and on the leg between sidecar and gateway.

use std::io;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Longest `StreamOpen`, bytes.
pub const MAX_STREAM_OPEN: usize = 4096;
/// Longest `StreamResult`, bytes.
pub const MAX_STREAM_RESULT: usize = 1024;
/// Longest hello or control message, bytes.
pub const MAX_CONTROL: usize = 4096;

/// Bytes of the length.
const HEAD: usize = 2;

/// Why a framed message could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// Longer than allowed (or than two bytes can say).
    #[error("framed message of {found} bytes where at most {max} are allowed")]
    TooLong {
        /// Its length.
        found: usize,
        /// What is allowed.
        max: usize,
    },
    /// The stream ended inside a message (or before one).
    #[error("stream ended where a framed message was expected")]
    Truncated,
    /// Not the expected protobuf message.
    #[error("framed message cannot be decoded")]
    Malformed(#[source] prost::DecodeError),
    /// The stream failed.
    #[error("stream failed while a framed message was transferred")]
    Io(#[source] io::Error),
}

impl From<io::Error> for FrameError {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            Self::Truncated
        } else {
            Self::Io(error)
        }
    }
}

/// Reads one message of at most `max` bytes. Not cancel-safe; the caller bounds the time.
///
/// # Errors
/// See [`FrameError`]; the stream is of no use afterwards.
pub async fn read_message<M, R>(reader: &mut R, max: usize) -> Result<M, FrameError>
where
    M: Message + Default,
    R: AsyncRead + Unpin + ?Sized,
{
    let found = usize::from(reader.read_u16().await?);
    if found > max {
        return Err(FrameError::TooLong { found, max });
    }
    let mut body = BytesMut::zeroed(found);
    reader.read_exact(&mut body).await?;
    M::decode(body.freeze()).map_err(FrameError::Malformed)
}

/// Writes one message and flushes.
///
/// # Errors
/// If the message is too long for its length, or the stream fails.
pub async fn write_message<M, W>(writer: &mut W, message: &M) -> Result<(), FrameError>
where
    M: Message,
    W: AsyncWrite + Unpin + ?Sized,
{
    let found = message.encoded_len();
    let max = usize::from(u16::MAX);
    if found > max {
        return Err(FrameError::TooLong { found, max });
    }
    writer.write_all(&encode(message)).await?;
    writer.flush().await?;
    Ok(())
}

/// A message with its length in front. A message of over 65535 bytes, which none of ours can be,
/// gets the length 65535 and will be refused by any reader.
#[must_use]
pub fn encode<M: Message>(message: &M) -> Bytes {
    let length = message.encoded_len();
    let mut frame = BytesMut::with_capacity(HEAD + length);
    frame.put_u16(u16::try_from(length).unwrap_or(u16::MAX));
    message.encode_raw(&mut frame);
    frame.freeze()
}

/// Takes one message from the front of `bytes` if it is complete; returns it and how many bytes it took.
///
/// # Errors
/// If it is too long or malformed.
pub fn decode<M: Message + Default>(
    bytes: &[u8],
    max: usize,
) -> Result<Option<(M, usize)>, FrameError> {
    let Some((head, rest)) = bytes.split_first_chunk::<HEAD>() else {
        return Ok(None);
    };
    let found = usize::from(u16::from_be_bytes(*head));
    if found > max {
        return Err(FrameError::TooLong { found, max });
    }
    let Some(body) = rest.get(..found) else {
        return Ok(None);
    };
    let message = M::decode(body).map_err(FrameError::Malformed)?;
    Ok(Some((message, HEAD + found)))
}

#[cfg(test)]
mod tests {
    use linkspan_api::v1::{StreamCode, StreamOpen, StreamResult};
    use proptest::prelude::*;

    use super::*;

    #[tokio::test]
    async fn messages_cross_a_stream() {
        let (mut a, mut b) = tokio::io::duplex(7);
        let sent = StreamOpen {
            target: "t".repeat(300),
            hop_limit: 1,
            ..Default::default()
        };
        let copy = sent.clone();
        let writer = tokio::spawn(async move { write_message(&mut a, &copy).await });
        let got: StreamOpen = read_message(&mut b, MAX_STREAM_OPEN).await.unwrap();
        assert_eq!(got, sent);
        writer.await.unwrap().unwrap();
        let end = read_message::<StreamOpen, _>(&mut b, 10).await;
        assert!(matches!(end, Err(FrameError::Truncated)), "{end:?}");
    }

    #[tokio::test]
    async fn an_overlong_message_is_refused_before_its_body() {
        let mut bytes: &[u8] = &[0x04, 0x01, 0];
        let end = read_message::<StreamResult, _>(&mut bytes, MAX_STREAM_RESULT).await;
        assert!(
            matches!(
                end,
                Err(FrameError::TooLong {
                    found: 1025,
                    max: 1024
                })
            ),
            "{end:?}"
        );
    }

    proptest! {
        #[test]
        fn decoding_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = decode::<StreamOpen>(&bytes, 64);
        }

        #[test]
        fn every_prefix_is_incomplete(message in "[a-z]{0,20}") {
            let frame = encode(&StreamResult { code: StreamCode::Ok.into(), message });
            for end in 0..frame.len() {
                prop_assert!(decode::<StreamResult>(&frame[..end], 64).unwrap().is_none());
            }
            prop_assert_eq!(decode::<StreamResult>(&frame, 64).unwrap().unwrap().1, frame.len());
        }
    }
}

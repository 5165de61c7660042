//! What a gateway's egress speaks before the inner TLS: a PROXY v2 header from us, one
//! framed `StreamResult` from it.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use linkspan_api::v1;
use prost::Message as _;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};

/// PROXY protocol v2, command LOCAL, no addresses, no TLVs: federation speaks for itself.
const LOCAL_HEADER: [u8; 16] = *b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00";
/// Longest `StreamResult`.
const MAX_RESULT: usize = 1024;

/// Sends the header; the answer is read by the stream that is returned, because the gateway
/// answers only after it has seen the inner ClientHello.
pub(crate) async fn open<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
) -> io::Result<Opened<S>> {
    stream.write_all(&LOCAL_HEADER).await?;
    Ok(Opened {
        stream,
        answer: Answer::Awaited {
            bytes: [0; 2 + MAX_RESULT],
            filled: 0,
        },
    })
}

/// A stream whose first bytes are the gateway's answer.
pub(crate) struct Opened<S> {
    stream: S,
    answer: Answer,
}

// The buffer lives only until the answer is there; boxing it would save nothing that counts.
#[allow(clippy::large_enum_variant)]
enum Answer {
    Awaited {
        bytes: [u8; 2 + MAX_RESULT],
        filled: usize,
    },
    Accepted,
}

impl<S: AsyncRead + Unpin> Opened<S> {
    fn poll_answer(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Answer::Awaited { bytes, filled } = &mut self.answer {
            let wanted = wanted(&bytes[..*filled])?;
            if *filled == wanted {
                accepted(&bytes[2..wanted])?;
                self.answer = Answer::Accepted;
                break;
            }
            // Never beyond the answer: what follows belongs to the inner TLS.
            let mut buffer = ReadBuf::new(&mut bytes[*filled..wanted]);
            ready!(Pin::new(&mut self.stream).poll_read(context, &mut buffer))?;
            match buffer.filled().len() {
                0 => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                read => *filled += read,
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// How many bytes the answer has as far as is known: its length first, then all of it.
fn wanted(bytes: &[u8]) -> io::Result<usize> {
    let Some(&[high, low]) = bytes.get(..2) else {
        return Ok(2);
    };
    let length = usize::from(u16::from_be_bytes([high, low]));
    if length > MAX_RESULT {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the gateway's answer is too long",
        ));
    }
    // An empty message has a length of zero and still is one: code unspecified, refused below.
    Ok(2 + length)
}

fn accepted(message: &[u8]) -> io::Result<()> {
    let result = v1::StreamResult::decode(message)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    if result.code() == v1::StreamCode::Ok {
        return Ok(());
    }
    let code = result.code().as_str_name();
    let answer = match result.message.as_str() {
        "" => format!("the gateway answered {code}"),
        message => format!("the gateway answered {code}: {message}"),
    };
    Err(io::Error::new(io::ErrorKind::ConnectionRefused, answer))
}

impl<S: AsyncRead + Unpin> AsyncRead for Opened<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_answer(context))?;
        Pin::new(&mut this.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Opened<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, duplex};

    use super::*;

    fn framed(code: v1::StreamCode, message: &str) -> Vec<u8> {
        let result = v1::StreamResult {
            code: code.into(),
            message: message.into(),
        };
        let body = result.encode_to_vec();
        let mut framed = u16::try_from(body.len()).unwrap().to_be_bytes().to_vec();
        framed.extend(body);
        framed
    }

    #[tokio::test]
    async fn strips_the_answer_and_nothing_more() {
        let (near, mut far) = duplex(256);
        let mut opened = open(near).await.unwrap();
        let mut header = [0; 16];
        far.read_exact(&mut header).await.unwrap();
        assert_eq!(header, LOCAL_HEADER);
        // Byte by byte: the answer may arrive in any pieces.
        let mut bytes = framed(v1::StreamCode::Ok, "");
        bytes.extend(b"inner");
        let writer = tokio::spawn(async move {
            for byte in bytes {
                far.write_u8(byte).await.unwrap();
            }
        });
        let mut inner = String::new();
        opened.read_to_string(&mut inner).await.unwrap();
        writer.await.unwrap();
        assert_eq!(inner, "inner");
    }

    #[tokio::test]
    async fn a_refusal_names_code_and_message() {
        let (near, mut far) = duplex(256);
        let mut opened = open(near).await.unwrap();
        far.write_all(&framed(v1::StreamCode::NoTunnel, "west is not connected"))
            .await
            .unwrap();
        let error = opened.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert!(
            error
                .to_string()
                .contains("NO_TUNNEL: west is not connected"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_malformed_answer_is_an_error() {
        for bytes in [&[0xff, 0xff][..], &[0, 0], &[0, 2, 0xff, 0xff], &[0, 9, 8]] {
            let (near, mut far) = duplex(256);
            let mut opened = open(near).await.unwrap();
            far.write_all(bytes).await.unwrap();
            drop(far);
            opened.read_u8().await.unwrap_err();
        }
    }
}

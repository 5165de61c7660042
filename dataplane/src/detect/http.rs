//! HTTP/1, HTTP/2 or neither, from the first bytes of a plaintext connection whose port declares nothing.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::BytesMut;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    time::timeout,
};

use super::{DetectError, Prefixed};
use crate::forward::bytes::Duplex;

/// How much is read before giving up on a request line, bytes.
pub const MAX_REQUEST_LINE: usize = 8 * 1024;
/// How long to wait for the first bytes. A protocol in which the server speaks first costs this
/// much once per connection, unless its port is declared as TCP.
pub const DETECT_TIMEOUT: Duration = Duration::from_millis(500);

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// HTTP/1.0 or HTTP/1.1.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// Anything else.
    Opaque,
}

/// Looks at the first bytes until they decide, at most [`MAX_REQUEST_LINE`] bytes and `limit` long;
/// what is undecided then is opaque. Not cancel-safe.
///
/// # Errors
/// Only if the connection fails. One that ends early is opaque.
pub async fn detect_http<IO: AsyncRead + Unpin>(
    mut io: IO,
    limit: Duration,
) -> Result<(Protocol, Prefixed<IO>), DetectError> {
    let mut seen = BytesMut::with_capacity(1024);
    let reading = async {
        loop {
            if let Some(protocol) = classify(&seen) {
                return Ok(protocol);
            }
            let left = MAX_REQUEST_LINE.saturating_sub(seen.len());
            if left == 0 || (&mut io).take(left as u64).read_buf(&mut seen).await? == 0 {
                return Ok(Protocol::Opaque);
            }
        }
    };
    let protocol = match timeout(limit, reading).await {
        Ok(protocol) => protocol.map_err(DetectError::Io)?,
        Err(_) => Protocol::Opaque,
    };
    Ok((protocol, Prefixed::new(seen, io)))
}

/// What the bytes decide; `None` if more are needed.
#[must_use]
pub fn classify(bytes: &[u8]) -> Option<Protocol> {
    if bytes.starts_with(PREFACE) {
        return Some(Protocol::Http2);
    }
    if PREFACE.starts_with(bytes) {
        return None;
    }
    let token = bytes.iter().take_while(|byte| is_token(**byte)).count();
    match bytes.get(token) {
        None if token <= 32 => return None,
        Some(b' ') if token > 0 => {}
        _ => return Some(Protocol::Opaque),
    }
    let rest = &bytes[token + 1..];
    let end = rest.iter().position(|byte| byte.is_ascii_control())?;
    Some(request_line_end(&rest[..end], rest[end]))
}

fn request_line_end(line: &[u8], end: u8) -> Protocol {
    let versioned = line.ends_with(b" HTTP/1.1") || line.ends_with(b" HTTP/1.0");
    if versioned && matches!(end, b'\r' | b'\n') {
        Protocol::Http1
    } else {
        Protocol::Opaque
    }
}

/// Characters of a method, RFC 9110 §5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// A connection that was taken for opaque and is cut if its caller speaks HTTP after all: late, or in
/// a spelling that [`classify`] does not take but an application might. Such a caller would
/// otherwise get to say to the application who it is.
///
/// Speaking HTTP means to name its version in the first line, as all versions with fields do.
#[derive(Debug)]
pub struct NoHttp<IO> {
    io: IO,
    first_line: Option<FirstLine>,
}

/// What has been seen of the first line that is not empty.
#[derive(Debug, Default)]
struct FirstLine {
    begun: bool,
    /// How much of [`VERSION`] the last bytes are.
    matched: usize,
}

const VERSION: &[u8] = b"HTTP/";

/// What the bytes so far say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Undecided,
    Http,
    Opaque,
}

impl FirstLine {
    fn look(&mut self, bytes: &[u8]) -> Verdict {
        for byte in bytes {
            if self.matched == VERSION.len() {
                return Verdict::Http;
            }
            match byte {
                // RFC 9112 §2.2: servers skip empty lines before a request.
                b'\r' | b'\n' if !self.begun => continue,
                b'\n' => return Verdict::Opaque,
                _ => self.begun = true,
            }
            // No part of the word but its first letter begins it anew.
            self.matched = if *byte == VERSION[self.matched] {
                self.matched + 1
            } else {
                usize::from(*byte == VERSION[0])
            };
        }
        if self.matched == VERSION.len() {
            return Verdict::Http;
        }
        Verdict::Undecided
    }
}

impl<IO> NoHttp<IO> {
    /// `io`, of which nothing has been read (or all is read again).
    pub fn new(io: IO) -> Self {
        let first_line = Some(FirstLine::default());
        Self { io, first_line }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for NoHttp<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        let Some(first_line) = &mut self.first_line else {
            return Poll::Ready(Ok(()));
        };
        match first_line.look(&buf.filled()[before..]) {
            Verdict::Undecided => {}
            Verdict::Opaque => self.first_line = None,
            Verdict::Http => {
                buf.set_filled(before);
                let what = "HTTP on a connection that was opened for opaque bytes";
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, what)));
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for NoHttp<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

impl<IO: Duplex> Duplex for NoHttp<IO> {
    fn reset(&mut self) {
        self.io.reset();
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[test]
    fn decides_by_the_request_line() {
        use Protocol::{Http1, Http2, Opaque};
        for (bytes, protocol) in [
            (&b"GET / HTTP/1.1\r\n"[..], Some(Http1)),
            (b"PURGE /a HTTP/1.0\n", Some(Http1)),
            (b"GET /", None),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Some(Http2)),
            (b"PRI * HTTP/2.0\r\n", None),
            (b"PRI * HTTP/2.0\r\n\r\nXX", Some(Opaque)),
            (b"POST", None),
            (b"", None),
            (b"EHLO mail.example\r\n", Some(Opaque)),
            (b"*1\r\n$4\r\nPING\r\n", Some(Opaque)),
            (&[0x16, 3, 1], Some(Opaque)),
            (b" GET / HTTP/1.1\r\n", Some(Opaque)),
        ] {
            assert_eq!(
                classify(bytes),
                protocol,
                "{}",
                String::from_utf8_lossy(bytes)
            );
        }
    }

    #[tokio::test]
    async fn keeps_what_it_read() {
        let (mut client, server) = tokio::io::duplex(3);
        let writer = tokio::spawn(async move { client.write_all(b"GET / HTTP/1.1\r\n\r\n").await });
        let (protocol, mut io) = detect_http(server, DETECT_TIMEOUT).await.unwrap();
        assert_eq!(protocol, Protocol::Http1);
        let mut again = [0; 18];
        io.read_exact(&mut again).await.unwrap();
        assert_eq!(&again, b"GET / HTTP/1.1\r\n\r\n");
        writer.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn http_does_not_pass_as_opaque_however_it_is_cut() {
        for (bytes, passes) in [
            (&b"\r\n\r\nGET / HTTP/1.1\r\n"[..], false),
            (b"GET / HTTP/1.9\r\n", false),
            (b"GET / HHTTP/1.1 \r\n", false),
            (b"PRI * HTTP/2.0\r\n", false),
            (b"EHLO mail.example\r\nGET / HTTP/1.1\r\n", true),
            (b"\x16\x03\x01\0\x05\0h2\x08http/1.1", true),
        ] {
            for step in 1..=bytes.len() {
                let (mut client, server) = tokio::io::duplex(64);
                let pieces = bytes.to_vec();
                let writer = tokio::spawn(async move {
                    for piece in pieces.chunks(step) {
                        // Fails once the reader has cut the connection.
                        if client.write_all(piece).await.is_err() {
                            return;
                        }
                        tokio::task::yield_now().await;
                    }
                });
                let mut read = Vec::new();
                let end = NoHttp::new(server).read_to_end(&mut read).await;
                assert_eq!(end.is_ok(), passes, "{step}");
                assert_eq!(read == bytes, passes, "{step}");
                writer.await.unwrap();
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_opaque() {
        let (_client, server) = tokio::io::duplex(64);
        let (protocol, io) = detect_http(server, DETECT_TIMEOUT).await.unwrap();
        assert_eq!((protocol, io.prefix().len()), (Protocol::Opaque, 0));
    }

    proptest::proptest! {
        #[test]
        fn noise_never_panics(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..100)) {
            let _ = classify(&bytes);
        }
    }
}

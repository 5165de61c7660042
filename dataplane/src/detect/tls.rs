//! The ClientHello of a TLS connection, without taking part in it: where it wants to go (SNI) and
//! what it offers to speak (ALPN). RFC 8446 §4.1.2 and §5.1, RFC 6066 §3, RFC 7301 §3.1.

use std::time::Duration;

use bytes::BytesMut;
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    time::timeout,
};

use super::{DetectError, Prefixed};

/// Longest ClientHello that is accepted, bytes on the wire. Ours take under 2 KiB, even with
/// post-quantum key shares.
pub const MAX_CLIENT_HELLO: usize = 16 * 1024;

const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const RECORD_HEAD: usize = 5;
const MESSAGE_HEAD: usize = 4;
const SERVER_NAME: u16 = 0;
const ALPN: u16 = 16;

/// What matters of a ClientHello.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientHello {
    /// The host name of the `server_name` extension.
    pub server_name: Option<String>,
    /// The protocols offered, in the client's order.
    pub alpn: Vec<Vec<u8>>,
}

impl ClientHello {
    /// Whether HTTP is offered: such a stream may be cut on suspicion, because its source can
    /// send the request another way.
    #[must_use]
    pub fn offers_http(&self) -> bool {
        self.alpn
            .iter()
            .any(|name| name == b"h2" || name == b"http/1.1")
    }
}

/// Reads a complete ClientHello, however it is cut into records and packets, and gives the
/// connection back with all bytes still to be read. Not cancel-safe.
///
/// # Errors
/// If it is not one, longer than `max` bytes ([`MAX_CLIENT_HELLO`] is a good bound), or not
/// complete within `limit`.
pub async fn peek_client_hello<IO: AsyncRead + Unpin>(
    mut io: IO,
    max: usize,
    limit: Duration,
) -> Result<(ClientHello, Prefixed<IO>), DetectError> {
    let mut seen = BytesMut::with_capacity(2048.min(max));
    let reading = async {
        let mut assembly = Assembly::default();
        loop {
            if let Some(hello) = assembly.advance(&seen)? {
                return Ok(hello);
            }
            if seen.len() >= max {
                return Err(DetectError::TooLong(max));
            }
            let left = max - seen.len();
            if (&mut io).take(left as u64).read_buf(&mut seen).await? == 0 {
                return Err(DetectError::Ended);
            }
        }
    };
    let hello = timeout(limit, reading)
        .await
        .map_err(|_| DetectError::Timeout(limit))??;
    Ok((hello, Prefixed::new(seen, io)))
}

/// Parses the bytes of a connection's beginning; `None` means that more are needed.
///
/// # Errors
/// If they cannot be the beginning of a TLS connection.
pub fn parse_client_hello(bytes: &[u8]) -> Result<Option<ClientHello>, DetectError> {
    Assembly::default().advance(bytes)
}

/// Puts a handshake message together from records, each looked at once.
#[derive(Default)]
struct Assembly {
    /// Bytes of records taken so far.
    taken: usize,
    message: Vec<u8>,
}

impl Assembly {
    fn advance(&mut self, seen: &[u8]) -> Result<Option<ClientHello>, DetectError> {
        while let Some(payload) = next_record(&seen[self.taken..])? {
            self.taken += RECORD_HEAD + payload.len();
            self.message.extend_from_slice(payload);
            if let Some(hello) = message(&self.message)? {
                return Ok(Some(hello));
            }
        }
        Ok(None)
    }
}

/// The payload of the first record, if it is complete; what is there of it must be plausible.
fn next_record(bytes: &[u8]) -> Result<Option<&[u8]>, DetectError> {
    if bytes.first().is_some_and(|kind| *kind != HANDSHAKE) {
        return Err(DetectError::Malformed("not a handshake record"));
    }
    if bytes.get(1).is_some_and(|major| *major != 3) {
        return Err(DetectError::Malformed("not a TLS version"));
    }
    let Some(([_, _, _, high, low], rest)) = bytes.split_first_chunk::<RECORD_HEAD>() else {
        return Ok(None);
    };
    let length = usize::from(u16::from_be_bytes([*high, *low]));
    if length == 0 || length > 1 << 14 {
        return Err(DetectError::Malformed("record length"));
    }
    Ok(rest.get(..length))
}

fn message(bytes: &[u8]) -> Result<Option<ClientHello>, DetectError> {
    if bytes.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
        return Err(DetectError::Malformed("not a ClientHello"));
    }
    let Some(([_, high, middle, low], rest)) = bytes.split_first_chunk::<MESSAGE_HEAD>() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes([0, *high, *middle, *low]) as usize;
    let Some(body) = rest.get(..length) else {
        return Ok(None);
    };
    if rest.len() > length {
        return Err(DetectError::Malformed("bytes after the ClientHello"));
    }
    hello(body)
        .map(Some)
        .ok_or(DetectError::Malformed("fields"))
}

/// `None` if any length disagrees with another, or an extension comes twice.
fn hello(body: &[u8]) -> Option<ClientHello> {
    let mut body = Reader(body);
    body.take(2 + 32)?;
    body.vector8()?;
    body.vector16()?;
    body.vector8()?;
    let mut hello = ClientHello::default();
    if body.0.is_empty() {
        return Some(hello);
    }
    let mut extensions = body.vector16()?;
    body.end()?;
    let mut alpn_seen = false;
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let value = extensions.vector16()?;
        match kind {
            SERVER_NAME if hello.server_name.is_some() => return None,
            SERVER_NAME => hello.server_name = Some(server_name(value)?),
            ALPN if alpn_seen => return None,
            ALPN => {
                alpn_seen = true;
                hello.alpn = protocols(value)?;
            }
            _ => {}
        }
    }
    Some(hello)
}

/// Exactly one host name, as RFC 6066 allows and everybody sends.
fn server_name(mut value: Reader<'_>) -> Option<String> {
    let mut list = value.vector16()?;
    value.end()?;
    let kind = list.take(1)?;
    let name = list.vector16()?;
    list.end()?;
    let plausible = kind == [0] && !name.0.is_empty() && name.0.iter().all(u8::is_ascii_graphic);
    if plausible {
        String::from_utf8(name.0.to_vec()).ok()
    } else {
        None
    }
}

fn protocols(mut value: Reader<'_>) -> Option<Vec<Vec<u8>>> {
    let mut list = value.vector16()?;
    value.end()?;
    let mut names = Vec::new();
    while !list.0.is_empty() {
        let name = list.vector8()?;
        if name.0.is_empty() {
            return None;
        }
        names.push(name.0.to_vec());
    }
    Some(names)
}

/// Takes fields from the front; `None` when there are not enough bytes.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn u16(&mut self) -> Option<u16> {
        let bytes = self.take(2)?;
        Some(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn vector8(&mut self) -> Option<Self> {
        let length = usize::from(self.take(1)?[0]);
        self.take(length).map(Self)
    }

    fn vector16(&mut self) -> Option<Self> {
        let length = usize::from(self.u16()?);
        self.take(length).map(Self)
    }

    fn end(&self) -> Option<()> {
        self.0.is_empty().then_some(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use rustls::pki_types::ServerName;
    use tokio::io::AsyncWriteExt;

    use super::*;

    /// What rustls really sends.
    fn real_hello(name: &str, alpn: &[&[u8]]) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut connection = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
        let mut bytes = Vec::new();
        connection.write_tls(&mut bytes).unwrap();
        bytes
    }

    /// The same message cut into records of `size` bytes.
    fn in_records(bytes: &[u8], size: usize) -> Vec<u8> {
        let mut records = Vec::new();
        for payload in bytes[RECORD_HEAD..].chunks(size) {
            records.extend_from_slice(&[HANDSHAKE, 3, 1]);
            records.extend_from_slice(&u16::try_from(payload.len()).unwrap().to_be_bytes());
            records.extend_from_slice(payload);
        }
        records
    }

    const LIMIT: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn reads_what_rustls_sends_and_keeps_the_bytes() {
        let name = "80.checkout.shop.svc.west.linkspan.internal";
        let bytes = real_hello(name, &[b"h2", b"http/1.1"]);
        for size in [1, 7, 100, 16_000] {
            let sent = in_records(&bytes, size);
            let (mut client, server) = tokio::io::duplex(13);
            let copy = sent.clone();
            let writer = tokio::spawn(async move { client.write_all(&copy).await });
            let (hello, mut io) = peek_client_hello(server, MAX_CLIENT_HELLO, LIMIT)
                .await
                .unwrap();
            assert_eq!(hello.server_name.as_deref(), Some(name));
            assert!(hello.offers_http());
            let mut again = vec![0; sent.len()];
            io.read_exact(&mut again).await.unwrap();
            assert_eq!(again, sent);
            writer.await.unwrap().unwrap();
        }
    }

    #[test]
    fn tcp_is_not_http() {
        let bytes = real_hello("x.linkspan.internal", &[b"linkspan-tcp/1"]);
        assert!(!parse_client_hello(&bytes).unwrap().unwrap().offers_http());
    }

    #[tokio::test(start_paused = true)]
    async fn waits_no_longer_than_the_limit() {
        let (mut client, server) = tokio::io::duplex(64);
        client.write_all(&[HANDSHAKE, 3, 1]).await.unwrap();
        let end = peek_client_hello(server, MAX_CLIENT_HELLO, LIMIT).await;
        assert!(matches!(end, Err(DetectError::Timeout(LIMIT))));
    }

    #[tokio::test]
    async fn reads_no_more_than_the_bound() {
        let mut bytes = vec![HANDSHAKE, 3, 1, 0x40, 0, CLIENT_HELLO, 1, 0, 0];
        bytes.resize(40_000, 0);
        let end = peek_client_hello(bytes.as_slice(), MAX_CLIENT_HELLO, LIMIT).await;
        assert!(matches!(
            end,
            Err(DetectError::TooLong(MAX_CLIENT_HELLO) | DetectError::Malformed(_))
        ));
        let end = peek_client_hello(&bytes[..100], MAX_CLIENT_HELLO, LIMIT).await;
        assert!(matches!(end, Err(DetectError::Ended)));
    }

    #[test]
    fn other_protocols_are_recognised_at_their_first_bytes() {
        for bytes in [
            &b"GET / HTTP/1.1"[..],
            b"SSH-2.0",
            &[0x16, 0x02],
            &[0x16, 3, 1, 0, 0],
        ] {
            assert!(parse_client_hello(bytes).is_err(), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn mutations_never_panic(at in 0_usize..400, to: u8, cut in 0_usize..400, size in 1_usize..300) {
            let bytes = real_hello("80.checkout.shop.svc.west.linkspan.internal", &[b"h2"]);
            let mut bytes = in_records(&bytes, size);
            let at = at % bytes.len();
            bytes[at] = to;
            bytes.truncate(bytes.len().saturating_sub(cut));
            let _ = parse_client_hello(&bytes);
        }

        #[test]
        fn noise_never_panics(mut bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_client_hello(&bytes);
            let _ = hello(&bytes);
            if bytes.len() > 9 {
                bytes[..6].copy_from_slice(&[HANDSHAKE, 3, 3, 0, 150, CLIENT_HELLO]);
                let _ = parse_client_hello(&bytes);
            }
        }

        #[test]
        fn every_prefix_needs_more(cut in 1_usize..200) {
            let bytes = real_hello("a.linkspan.internal", &[b"h2"]);
            prop_assert_eq!(parse_client_hello(&bytes[..bytes.len() - cut]).unwrap(), None);
        }
    }
}

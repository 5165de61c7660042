//! The PROXY protocol header (version 2) that opens each connection from a sidecar to a gateway.
//!
//! Always the `LOCAL` command without addresses: what matters is in the TLVs. The format is that of
//! HAProxy's `proxy-protocol.txt`, section 2.2; types `0xE0`–`0xEF` are reserved there for private use.

use std::io;

use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

/// Longest header after its fixed part, bytes: far more than our TLVs take.
pub const MAX_TLVS: usize = 512;
/// Longest trace context, bytes; a W3C `traceparent` takes 55.
pub const MAX_TRACE: usize = 128;

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
const FIXED: usize = 16;
const LOCAL: u8 = 0x20;
const PROXY: u8 = 0x21;
const UNSPEC: u8 = 0x00;
const TRACE: u8 = 0xE0;
const TOKEN: u8 = 0xE1;
const CONNECTION: u8 = 0xE2;

/// What a source tells the gateway about a connection.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ProxyHeader {
    /// W3C `traceparent` of the connection's span.
    pub trace: Option<String>,
    /// The gateway's token (reserved).
    pub token: Option<[u8; 16]>,
    /// The source's number for this connection (reserved).
    pub connection: Option<u64>,
}

impl std::fmt::Debug for ProxyHeader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProxyHeader")
            .field("trace", &self.trace)
            .field("token", &self.token.map(|_| "(hidden)"))
            .field("connection", &self.connection)
            .finish()
    }
}

/// Why a header was refused.
#[derive(Debug, thiserror::Error)]
pub enum ProxyHeaderError {
    /// Not a PROXY header of version 2; was something else connected to this port?
    #[error("connection does not begin with a PROXY header of version 2")]
    Signature,
    /// A command other than `LOCAL` and `PROXY`.
    #[error("PROXY header has the unknown command {0:#04x}")]
    Command(u8),
    /// Longer than [`MAX_TLVS`].
    #[error("PROXY header of {0} bytes where at most {MAX_TLVS} are allowed")]
    TooLong(usize),
    /// TLVs overlap the end, or one of ours is malformed or repeated.
    #[error("PROXY header has a malformed TLV")]
    Malformed,
    /// The connection failed or ended inside the header.
    #[error("connection ended inside the PROXY header")]
    Io(#[from] io::Error),
}

impl ProxyHeader {
    /// The header's bytes. A trace of over [`MAX_TRACE`] bytes is left out.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut tlvs = BytesMut::new();
        if let Some(trace) = self.trace.as_ref().filter(|trace| trace.len() <= MAX_TRACE) {
            put(&mut tlvs, TRACE, trace.as_bytes());
        }
        if let Some(token) = &self.token {
            put(&mut tlvs, TOKEN, token);
        }
        if let Some(connection) = self.connection {
            put(&mut tlvs, CONNECTION, &connection.to_be_bytes());
        }
        let mut header = BytesMut::with_capacity(FIXED + tlvs.len());
        header.put_slice(&SIGNATURE);
        header.put_slice(&[LOCAL, UNSPEC]);
        // Three short TLVs cannot exceed two bytes of length.
        header.put_u16(u16::try_from(tlvs.len()).unwrap_or(u16::MAX));
        header.put_slice(&tlvs);
        header.freeze()
    }

    /// Reads a header. Not cancel-safe; the caller bounds the time.
    ///
    /// # Errors
    /// See [`ProxyHeaderError`]; the connection is of no use afterwards.
    pub async fn read<R: AsyncRead + Unpin + ?Sized>(
        reader: &mut R,
    ) -> Result<Self, ProxyHeaderError> {
        let mut fixed = [0; FIXED];
        reader.read_exact(&mut fixed).await?;
        let (skip, length) = fixed_part(&fixed)?;
        let mut rest = vec![0; length];
        reader.read_exact(&mut rest).await?;
        tlvs(rest.get(skip..).ok_or(ProxyHeaderError::Malformed)?)
    }

    /// Takes a header from the front of `bytes` if it is complete; returns it and its length.
    ///
    /// # Errors
    /// See [`ProxyHeaderError`].
    pub fn decode(bytes: &[u8]) -> Result<Option<(Self, usize)>, ProxyHeaderError> {
        let Some((fixed, rest)) = bytes.split_first_chunk::<FIXED>() else {
            return Ok(None);
        };
        let (skip, length) = fixed_part(fixed)?;
        let Some(rest) = rest.get(..length) else {
            return Ok(None);
        };
        let header = tlvs(rest.get(skip..).ok_or(ProxyHeaderError::Malformed)?)?;
        Ok(Some((header, FIXED + length)))
    }
}

/// How many bytes of addresses to skip, and how many bytes follow in all.
fn fixed_part(fixed: &[u8; FIXED]) -> Result<(usize, usize), ProxyHeaderError> {
    let [signature @ .., command, family, high, low] = fixed;
    if *signature != SIGNATURE {
        return Err(ProxyHeaderError::Signature);
    }
    if !matches!(*command, LOCAL | PROXY) {
        return Err(ProxyHeaderError::Command(*command));
    }
    let length = usize::from(u16::from_be_bytes([*high, *low]));
    if length > MAX_TLVS {
        return Err(ProxyHeaderError::TooLong(length));
    }
    let addresses = match family >> 4 {
        0 => 0,
        1 => 12,
        2 => 36,
        3 => 216,
        _ => return Err(ProxyHeaderError::Malformed),
    };
    Ok((addresses, length))
}

fn tlvs(mut bytes: &[u8]) -> Result<ProxyHeader, ProxyHeaderError> {
    let mut header = ProxyHeader::default();
    while let Some(([kind, high, low], rest)) = bytes.split_first_chunk() {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let (value, rest) = rest
            .split_at_checked(length)
            .ok_or(ProxyHeaderError::Malformed)?;
        let once = match *kind {
            TRACE => header.trace.replace(trace(value)?).is_none(),
            TOKEN => header.token.replace(exact(value)?).is_none(),
            CONNECTION => header
                .connection
                .replace(u64::from_be_bytes(exact(value)?))
                .is_none(),
            _ => true,
        };
        if !once {
            return Err(ProxyHeaderError::Malformed);
        }
        bytes = rest;
    }
    if bytes.is_empty() {
        Ok(header)
    } else {
        Err(ProxyHeaderError::Malformed)
    }
}

fn trace(value: &[u8]) -> Result<String, ProxyHeaderError> {
    let fits = value.len() <= MAX_TRACE && value.iter().all(u8::is_ascii_graphic);
    let text = if fits {
        String::from_utf8(value.to_vec()).ok()
    } else {
        None
    };
    text.ok_or(ProxyHeaderError::Malformed)
}

fn exact<const N: usize>(value: &[u8]) -> Result<[u8; N], ProxyHeaderError> {
    value.try_into().map_err(|_| ProxyHeaderError::Malformed)
}

fn put(tlvs: &mut BytesMut, kind: u8, value: &[u8]) {
    tlvs.put_u8(kind);
    tlvs.put_u16(u16::try_from(value.len()).unwrap_or(u16::MAX));
    tlvs.put_slice(value);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[tokio::test]
    async fn reads_what_it_writes_and_leaves_the_rest() {
        let header = ProxyHeader {
            trace: Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".to_owned()),
            token: Some([7; 16]),
            connection: Some(42),
        };
        let mut bytes = header.encode().to_vec();
        bytes.extend_from_slice(b"inner");
        let mut reader = bytes.as_slice();
        assert_eq!(ProxyHeader::read(&mut reader).await.unwrap(), header);
        assert_eq!(reader, b"inner");
        assert!(format!("{header:?}").contains("token: Some(\"(hidden)\")"));
    }

    #[test]
    fn addresses_and_unknown_tlvs_are_skipped() {
        let mut bytes = SIGNATURE.to_vec();
        bytes.extend_from_slice(&[PROXY, 0x11, 0, 12 + 4 + 3]);
        bytes.extend_from_slice(&[127, 0, 0, 1, 127, 0, 0, 1, 0, 1, 0, 2]);
        bytes.extend_from_slice(&[0x04, 0, 1, 9, 0x05, 0, 0]);
        let (header, length) = ProxyHeader::decode(&bytes).unwrap().unwrap();
        assert_eq!((header, length), (ProxyHeader::default(), bytes.len()));
    }

    #[test]
    fn refuses_what_is_not_a_header() {
        let decode = |bytes: &[u8]| ProxyHeader::decode(bytes);
        assert!(matches!(
            decode(b"GET / HTTP/1.1\r\n\r\n"),
            Err(ProxyHeaderError::Signature)
        ));
        let mut bytes = ProxyHeader::default().encode().to_vec();
        bytes[14] = 3;
        assert!(matches!(
            decode(&bytes),
            Err(ProxyHeaderError::TooLong(768))
        ));
        bytes[14] = 0;
        bytes[15] = 2;
        bytes.extend_from_slice(&[TRACE, 0]);
        assert!(matches!(decode(&bytes), Err(ProxyHeaderError::Malformed)));
        bytes[12] = 0x22;
        assert!(matches!(
            decode(&bytes),
            Err(ProxyHeaderError::Command(0x22))
        ));
    }

    proptest! {
        #[test]
        fn mutations_never_panic(at in 0_usize..100, to: u8, cut in 0_usize..100) {
            let header = ProxyHeader { trace: Some("t".repeat(40)), token: Some([1; 16]), connection: Some(1) };
            let mut bytes = header.encode().to_vec();
            let at = at % bytes.len();
            bytes[at] = to;
            bytes.truncate(cut);
            let _ = ProxyHeader::decode(&bytes);
        }
    }
}

//! Carrying the two federations' own session when clusters are being linked: before there is a
//! link, so without any trust between the gateways. What passes here is TLS from federation to
//! federation; nothing of it is read.
//!
//! ```text
//! our federation ─JoinDial─► dial ═QUIC linkspan-join/1═► accept ─TCP─► their federation
//!        ▲                    │
//!        └──── TLS, id ───────┘
//! ```
//! Whoever accepts says that it carries the join by opening a stream of its own, before anything
//! else; whoever dials waits for that, so that a refusal is a try that failed like any other.

pub(crate) mod accept;
pub(crate) mod dial;

use std::io;
use std::time::Duration;

use quinn::SendStream;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, copy};

/// The application protocol of a connection that carries one join.
pub(crate) const ALPN: &[u8] = b"linkspan-join/1";
/// What one join may carry in each direction: a few certificates and names.
const MOST_BYTES: u64 = 64 << 10;
/// How long one may take from its handshake on: three messages over the worst of paths.
const LIFE: Duration = Duration::from_secs(10);
/// For the peer to take the last bytes.
const FAREWELL: Duration = Duration::from_secs(1);

/// Copies between the stream that `send` and `from` are of and `federation`'s connection, until
/// federation has said everything, or all that it may: it has heard what it wanted to by then, and
/// the other side cannot keep what is over.
async fn relay<R, S>(mut send: SendStream, from: R, federation: S) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (read, mut write) = tokio::io::split(federation);
    let inward = async {
        copy(&mut from.take(MOST_BYTES), &mut write).await?;
        write.shutdown().await
    };
    tokio::pin!(inward);
    let mut heard = false;
    {
        let outward = async {
            copy(&mut read.take(MOST_BYTES), &mut send).await?;
            send.finish().map_err(io::Error::from)
        };
        tokio::pin!(outward);
        loop {
            // Each goes on where it was.
            tokio::select! {
                said = &mut outward => break said?,
                done = &mut inward, if !heard => {
                    done?;
                    heard = true;
                }
            }
        }
    }
    // Closing the connection would throw away what is still on its way.
    let farewell = async {
        let _ = send.stopped().await;
        if !heard {
            let _ = inward.await;
        }
    };
    let _ = tokio::time::timeout(FAREWELL, farewell).await;
    Ok(())
}

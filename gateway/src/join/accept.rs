//! Somebody dials to join: one bounded stream to our federation, which judges.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use linkspan_dataplane::connect::tcp;
use linkspan_runtime::places::{Place, Places, source};
use linkspan_runtime::rate::{Limiter, Rate};
use quinn::{RecvStream, SendStream};
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tracing::debug;

use super::{LIFE, relay};
use crate::tunnel::close::{self, CloseCode};

/// Joins carried at a time: each costs a stream, a connection to federation and a handshake there.
const MOST: usize = 32;
/// Of one source address: one that is under way, and another try of somebody who lost patience.
const EACH: usize = 2;
/// For the stream and its first bytes to come: by then the other side has everything in hand but
/// one message of its federation's.
const FIRST: Duration = Duration::from_secs(2);
/// How often one source may come to join.
const JOINS: Rate = Rate {
    // Retries of somebody who links several clusters from behind one address.
    burst: 20,
    // Guessing gains nothing, so this only bounds the work.
    every: Duration::from_secs(1),
    sources: 4_096,
};
/// First bytes that are waited for in one piece: a ClientHello.
const FIRST_BYTES: usize = 4 << 10;

/// The accepting side.
#[derive(Debug)]
pub(crate) struct Accept {
    federation: String,
    connect: Duration,
    limiter: Limiter,
    places: Places<IpAddr>,
}

impl Accept {
    /// Carries to `federation` (`host:port`), connecting within `connect`.
    pub(crate) fn new(federation: String, connect: Duration) -> Arc<Self> {
        Arc::new(Self {
            federation,
            connect,
            limiter: Limiter::new(JOINS),
            places: Places::new(MOST, EACH),
        })
    }

    /// Serves one connection to its end.
    pub(crate) async fn serve(&self, quic: quinn::Connection) {
        let remote = quic.remote_address();
        let Some(_place) = self.admit(remote.ip()) else {
            debug!(%remote, "too many joins, in all or of this address");
            return close::close(&quic, CloseCode::Limit);
        };
        let Ok(begun) = timeout(FIRST, begin(&quic)).await else {
            debug!(%remote, "a join did not begin");
            return close::close(&quic, CloseCode::HelloTimeout);
        };
        match timeout(LIFE, self.carry(begun)).await {
            Ok(Ok(())) => debug!(%remote, "carried a join"),
            // As a string, so that the caller's words in it are escaped.
            Ok(Err(error)) => debug!(%remote, error = error.to_string(), "a join broke off"),
            Err(_) => debug!(%remote, "a join took too long"),
        }
        close::close(&quic, CloseCode::Drained);
    }

    fn admit(&self, address: IpAddr) -> Option<Place<IpAddr>> {
        let address = source(address);
        let place = self.places.take(&address).ok()?;
        self.limiter.admit(address, Instant::now()).ok()?;
        Some(place)
    }

    async fn carry(&self, begun: io::Result<Begun>) -> io::Result<()> {
        let (send, recv, first) = begun?;
        let from = first.as_slice().chain(recv);
        relay(send, from, self.federation().await?).await
    }

    async fn federation(&self) -> io::Result<TcpStream> {
        let found = timeout(self.connect, lookup_host(&self.federation)).await??;
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for address in found {
            match tcp::connect(address, self.connect).await {
                Ok(tcp) => return Ok(tcp),
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

/// A stream, and what it begins with.
type Begun = (SendStream, RecvStream, Vec<u8>);

/// Says that the join is taken, and waits for the one stream that ever is.
async fn begin(quic: &quinn::Connection) -> io::Result<Begun> {
    // Empty: that it is there says all.
    quic.open_uni().await?.finish()?;
    let (send, mut recv) = quic.accept_bi().await?;
    let mut first = vec![0; FIRST_BYTES];
    let length = recv.read(&mut first).await?;
    first.truncate(length.ok_or(io::ErrorKind::UnexpectedEof)?);
    Ok((send, recv, first))
}

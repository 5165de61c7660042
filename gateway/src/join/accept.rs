//! Somebody dials to join: one bounded stream to our federation, which judges.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use linkspan_dataplane::connect::tcp;
use linkspan_dataplane::detect::Prefixed;
use linkspan_dataplane::detect::tls::{MAX_CLIENT_HELLO, peek_client_hello};
use linkspan_runtime::places::{Place, Places, network, source};
use linkspan_runtime::rate::{Limiter, Rate};
use quinn::{RecvStream, SendStream};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tracing::debug;

use super::{ALPN, LIFE, relay};
use crate::tunnel::close::{self, CloseCode};

/// Joins carried at a time: each costs a stream, a connection to federation and a handshake there.
const MOST: usize = 32;
/// Of one source address: one that is under way, and another try of somebody who lost patience.
const EACH: usize = 2;
/// Of one network: whoever has all of its addresses still leaves most places to the others.
const EACH_NETWORK: usize = 8;
/// For the stream and its ClientHello to come: by then the other side has everything in hand but
/// that one message of its federation's.
const FIRST: Duration = Duration::from_secs(2);
/// How often one source may come to join.
const JOINS: Rate = Rate {
    // Retries of somebody who links several clusters from behind one address.
    burst: 20,
    // Guessing gains nothing, so this only bounds the work.
    every: Duration::from_secs(1),
    sources: 4_096,
};

/// The accepting side.
#[derive(Debug)]
pub(crate) struct Accept {
    federation: String,
    connect: Duration,
    limiter: Limiter,
    places: Places<IpAddr>,
    /// Shares of the places.
    by_network: Places<IpAddr>,
}

/// One join counts as one of its source, and as one of its network.
type Admitted = (Place<IpAddr>, Place<IpAddr>);

impl Accept {
    /// Carries to `federation` (`host:port`), connecting within `connect`.
    pub(crate) fn new(federation: String, connect: Duration) -> Arc<Self> {
        Arc::new(Self {
            federation,
            connect,
            limiter: Limiter::new(JOINS),
            places: Places::new(MOST, EACH),
            by_network: Places::new(usize::MAX, EACH_NETWORK),
        })
    }

    /// Serves one connection to its end.
    pub(crate) async fn serve(&self, quic: quinn::Connection) {
        let remote = quic.remote_address();
        let Some(_admitted) = self.admit(remote.ip()) else {
            debug!(%remote, "too many joins, in all or of this address or network");
            return close::close(&quic, CloseCode::Limit);
        };
        let begun = match timeout(FIRST, begin(&quic)).await {
            Ok(Ok(begun)) => begun,
            Ok(Err(error)) => {
                // As a string, so that the caller's words in it are escaped.
                debug!(%remote, error = error.to_string(), "a join did not begin");
                return close::close(&quic, CloseCode::Protocol);
            }
            Err(_) => {
                debug!(%remote, "a join did not begin in time");
                return close::close(&quic, CloseCode::HelloTimeout);
            }
        };
        match timeout(LIFE, self.carry(begun)).await {
            Ok(Ok(())) => debug!(%remote, "carried a join"),
            Ok(Err(error)) => debug!(%remote, error = error.to_string(), "a join broke off"),
            Err(_) => debug!(%remote, "a join took too long"),
        }
        close::close(&quic, CloseCode::Drained);
    }

    fn admit(&self, address: IpAddr) -> Option<Admitted> {
        let network = self.by_network.take(&network(address)).ok()?;
        let place = self.places.take(&source(address)).ok()?;
        self.limiter.admit(address, Instant::now()).ok()?;
        Some((place, network))
    }

    async fn carry(&self, (send, from): Begun) -> io::Result<()> {
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

/// A stream that begins as federation's does.
type Begun = (SendStream, Prefixed<RecvStream>);

/// Says that the join is taken, and waits for the one stream that ever is, up to the end of its
/// ClientHello: whoever has less to say does not get to federation.
async fn begin(quic: &quinn::Connection) -> io::Result<Begun> {
    // Empty: that it is there says all.
    quic.open_uni().await?.finish()?;
    let (send, recv) = quic.accept_bi().await?;
    // In less than that: the caller looks at the clock.
    let peeked = peek_client_hello(recv, MAX_CLIENT_HELLO, LIFE).await;
    let (hello, from) = peeked.map_err(io::Error::other)?;
    match hello.alpn.first().is_some_and(|first| first == ALPN) {
        true => Ok((send, from)),
        false => Err(io::Error::other("what it carries is no join")),
    }
}

//! Somebody dials to join: one bounded stream to our federation, which judges.

use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use linkspan_dataplane::connect::tcp;
use tokio::net::{TcpStream, lookup_host};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::debug;

use super::limiter::Limiter;
use super::{LIFE, relay};
use crate::tunnel::close::{self, CloseCode};

/// Joins carried at a time: each costs a stream, a connection to federation and a handshake there.
const MOST: usize = 16;

/// The accepting side.
#[derive(Debug)]
pub(crate) struct Accept {
    federation: String,
    connect: Duration,
    limiter: Mutex<Limiter>,
    permits: Semaphore,
}

impl Accept {
    /// Carries to `federation` (`host:port`), connecting within `connect`.
    pub(crate) fn new(federation: String, connect: Duration) -> Arc<Self> {
        Arc::new(Self {
            federation,
            connect,
            limiter: Mutex::default(),
            permits: Semaphore::new(MOST),
        })
    }

    /// Serves one connection to its end.
    pub(crate) async fn serve(&self, quic: quinn::Connection) {
        let remote = quic.remote_address();
        let admitted = self.admit(remote.ip());
        let Some(_permit) = self.permits.try_acquire().ok().filter(|_| admitted) else {
            debug!(%remote, "too many joins");
            return close::close(&quic, CloseCode::Limit);
        };
        match timeout(LIFE, self.carry(&quic)).await {
            Ok(Ok(())) => debug!(%remote, "carried a join"),
            // As a string, so that the caller's words in it are escaped.
            Ok(Err(error)) => debug!(%remote, error = error.to_string(), "a join broke off"),
            Err(_) => debug!(%remote, "a join took too long"),
        }
        close::close(&quic, CloseCode::Drained);
    }

    fn admit(&self, address: IpAddr) -> bool {
        let mut limiter = self.limiter.lock().unwrap_or_else(PoisonError::into_inner);
        limiter.admit(address, Instant::now())
    }

    async fn carry(&self, quic: &quinn::Connection) -> io::Result<()> {
        // Only this one is ever taken.
        let stream = quic.accept_bi().await?;
        relay(stream, self.federation().await?).await
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

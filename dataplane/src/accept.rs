//! The listener loop: bounded, and aware of draining.

use std::{future::Future, io, net::SocketAddr, sync::Arc, time::Duration};

use linkspan_runtime::stop::Stop;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::sleep,
};
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use crate::connect::tcp;

/// Wait after a failed `accept` (out of descriptors), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Bounds of one listener.
#[derive(Clone, Copy, Debug)]
pub struct AcceptLimits {
    /// Connections at a time; more wait in the kernel's backlog. Default 10,000: at about 100 KiB
    /// each a gigabyte, which is what a busy proxy may cost at worst.
    pub connections: usize,
}

impl Default for AcceptLimits {
    fn default() -> Self {
        Self {
            connections: 10_000,
        }
    }
}

/// Accepts connections and owns a task for each.
#[derive(Clone, Copy, Debug, Default)]
pub struct Accept {
    /// Its bounds.
    pub limits: AcceptLimits,
}

impl Accept {
    /// With these bounds.
    #[must_use]
    pub fn new(limits: AcceptLimits) -> Self {
        Self { limits }
    }

    /// Hands each connection to `handler` in a task of its own, until the stop drains. Then the
    /// listener closes, the connections may finish, and at abort what is left is dropped (which
    /// resets relays, see `forward::bytes`). Returns when no connection is left.
    pub async fn run<H, F>(self, listener: TcpListener, stop: Stop, handler: H)
    where
        H: Fn(TcpStream, SocketAddr) -> F,
        F: Future<Output = ()> + Send + 'static,
    {
        self.run_telling(listener, stop, handler, || {}).await;
    }

    /// As [`run`](Self::run); calls `closed` as soon as the listener is closed, while connections may
    /// still be open.
    pub async fn run_telling<H, F>(
        self,
        listener: TcpListener,
        stop: Stop,
        handler: H,
        closed: impl FnOnce(),
    ) where
        H: Fn(TcpStream, SocketAddr) -> F,
        F: Future<Output = ()> + Send + 'static,
    {
        let permits = Arc::new(Semaphore::new(self.limits.connections));
        let connections = TaskTracker::new();
        let mut failing = false;
        loop {
            let accepted = tokio::select! {
                () = stop.draining() => break,
                accepted = next(&listener, &permits) => accepted,
            };
            match accepted {
                Ok((socket, peer, permit)) => {
                    if std::mem::take(&mut failing) {
                        info!("accepting connections again");
                    }
                    let handling = handler(socket, peer);
                    let stop = stop.clone();
                    connections.spawn(async move {
                        tokio::select! {
                            () = stop.aborted() => {}
                            () = handling => {}
                        }
                        drop(permit);
                    });
                }
                Err(error) => {
                    if std::mem::replace(&mut failing, true) {
                        debug!(%error, "still cannot accept connections");
                    } else {
                        warn!(%error, "cannot accept connections; trying on");
                    }
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(listener);
        closed();
        connections.close();
        connections.wait().await;
    }
}

/// The next connection. Cancel-safe: the permit comes before the connection.
async fn next(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> io::Result<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let permit = permits
        .clone()
        .acquire_owned()
        .await
        .map_err(io::Error::other)?;
    let (socket, peer) = listener.accept().await?;
    // Keep-alive frees the place of a caller that vanished without a word.
    tcp::prepare(&socket);
    Ok((socket, peer, permit))
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        sync::mpsc,
    };

    use super::*;

    async fn echo(mut socket: TcpStream) {
        let mut byte = [0];
        while socket.read_exact(&mut byte).await.is_ok() && socket.write_all(&byte).await.is_ok() {}
    }

    #[tokio::test]
    async fn drains_then_aborts() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = Stop::new();
        let running =
            tokio::spawn(Accept::default().run(listener, stop.clone(), |socket, _| echo(socket)));
        let mut client = TcpStream::connect(address).await.unwrap();
        let mut byte = [7];
        client.write_all(&byte).await.unwrap();
        client.read_exact(&mut byte).await.unwrap();
        stop.drain();
        // Held connections go on; new ones are refused as soon as the loop has seen the drain.
        while TcpStream::connect(address).await.is_ok() {
            tokio::task::yield_now().await;
        }
        client.write_all(&byte).await.unwrap();
        client.read_exact(&mut byte).await.unwrap();
        stop.abort();
        running.await.unwrap();
        assert_eq!(client.read(&mut byte).await.unwrap_or(0), 0);
    }

    #[tokio::test]
    async fn callers_that_vanish_are_noticed() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap());
        let permits = Arc::new(Semaphore::new(1));
        let (_client, accepted) = tokio::join!(client, next(&listener, &permits));
        let (socket, ..) = accepted.unwrap();
        assert!(socket2::SockRef::from(&socket).keepalive().unwrap());
    }

    #[tokio::test]
    async fn no_more_than_the_limit_at_a_time() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = Stop::new();
        let (begun, mut begins) = mpsc::unbounded_channel();
        let accept = Accept::new(AcceptLimits { connections: 1 });
        tokio::spawn(accept.run(listener, stop.clone(), move |socket, _| {
            begun.send(()).unwrap();
            echo(socket)
        }));
        let first = TcpStream::connect(address).await.unwrap();
        let _second = TcpStream::connect(address).await.unwrap();
        begins.recv().await.unwrap();
        assert!(begins.try_recv().is_err());
        drop(first);
        begins.recv().await.unwrap();
        stop.abort();
    }
}

//! Accepting: bounded in number and in time, so that silent callers cannot shut others out.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use linkspan_runtime::stop::Stop;
use linkspan_trust::{SpiffeId, TrustDomain, note_of, spiffe_id_of};
use rustls::server::{Acceptor, ClientHello};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    time::{sleep, timeout},
};
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Caller, Connection, Permits, PortConfigs, shares::Shares};
use crate::{
    join::{self, Doors},
    sync::Subscribers,
};

/// Connections of one federation: every proxy of a large cluster has one, with room for renewals.
const MAX_CONNECTIONS: usize = 16_384;
/// Handshakes in progress: each costs CPU and a buffer, and nobody has proved anything yet.
const MAX_HANDSHAKES: usize = 256;
/// Connections without a certificate: they ask for their first, and leave.
const MAX_ANONYMOUS: usize = 256;
/// How long such a connection may stay; asking takes one round trip.
const ANONYMOUS_LIFE: Duration = Duration::from_secs(30);
/// A handshake is two round trips; five seconds also suit a lossy path.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Accepted connections waiting for the gRPC server to take them: it takes them at once.
const ACCEPTED: usize = 64;
/// Pause after an error of `accept` itself (no descriptors left), so that it does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The stream of connections that the gRPC server serves.
pub(crate) type Incoming = ReceiverStream<io::Result<Connection>>;
/// The TLS configuration for the next handshake.
pub(crate) type Configs = watch::Receiver<Option<Arc<PortConfigs>>>;

/// Accepts until `stop` drains, for the federation of `own`. The future owns all handshakes and ends after them.
///
/// Connections that are no gRPC go to `joins`.
pub(crate) fn accept(
    listener: TcpListener,
    own: TrustDomain,
    configs: Configs,
    subscribers: Subscribers,
    joins: Doors,
    stop: Stop,
) -> (impl Future<Output = ()> + Send, Incoming) {
    let (sender, receiver) = mpsc::channel(ACCEPTED);
    let accepting = Accepting {
        configs,
        sender,
        joins,
        connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
        handshakes: Arc::new(Semaphore::new(MAX_HANDSHAKES)),
        anonymous: Arc::new(Semaphore::new(MAX_ANONYMOUS)),
        shares: Shares::new(own),
        subscribers,
        tasks: TaskTracker::new(),
    };
    (accepting.run(listener, stop), ReceiverStream::new(receiver))
}

struct Accepting {
    configs: Configs,
    sender: mpsc::Sender<io::Result<Connection>>,
    joins: Doors,
    connections: Arc<Semaphore>,
    handshakes: Arc<Semaphore>,
    anonymous: Arc<Semaphore>,
    shares: Shares,
    subscribers: Subscribers,
    tasks: TaskTracker,
}

impl Accepting {
    async fn run(mut self, listener: TcpListener, stop: Stop) {
        // Nothing is accepted that could not be answered; callers wait in the backlog.
        let _ = self.configs.wait_for(Option::is_some).await;
        tokio::select! {
            () = stop.draining() => {}
            () = self.accept_all(&listener) => {}
        }
        drop(listener);
        self.tasks.close();
        self.tasks.wait().await;
    }

    async fn accept_all(&self, listener: &TcpListener) {
        // The first failure is logged and not each: there may be twenty a second.
        let mut failing = false;
        loop {
            let (connection, handshake) = self.permits().await;
            match listener.accept().await {
                Ok((stream, remote)) => {
                    failing = false;
                    self.spawn(stream, remote, connection, handshake);
                }
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(%error, "cannot accept connections; trying again");
                    }
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn permits(&self) -> (OwnedSemaphorePermit, OwnedSemaphorePermit) {
        let open = "the semaphores are never closed";
        let connection = Arc::clone(&self.connections)
            .acquire_owned()
            .await
            .expect(open);
        let handshake = Arc::clone(&self.handshakes)
            .acquire_owned()
            .await
            .expect(open);
        (connection, handshake)
    }

    fn spawn(
        &self,
        stream: TcpStream,
        remote: SocketAddr,
        permit: OwnedSemaphorePermit,
        handshake: OwnedSemaphorePermit,
    ) {
        let Some(config) = self.configs.borrow().clone() else {
            return;
        };
        let (sender, anonymous) = (self.sender.clone(), Arc::clone(&self.anonymous));
        let (shares, subscribers) = (self.shares.clone(), self.subscribers.clone());
        let joins = self.joins.clone();
        self.tasks.spawn(async move {
            let result = shake_hands(stream, &config).await;
            drop(handshake);
            let connection = match result {
                Ok((Purpose::Grpc, stream)) => identity_of(&stream).and_then(|(identity, note)| {
                    let caller = Caller {
                        identity,
                        note,
                        remote,
                        ended: CancellationToken::new(),
                    };
                    admitted(stream, caller, permit, anonymous, &shares, &subscribers)
                }),
                Ok((Purpose::Join, stream)) => return joins.stranger(stream, remote),
                Ok((Purpose::Back, stream)) => return joins.gateway(stream),
                Err(error) => Err(error),
            };
            match connection {
                // Without a receiver the server has stopped; the connection just closes.
                Ok(connection) => drop(sender.send(Ok(connection)).await),
                Err(error) => tracing::debug!(%remote, %error, "connection refused"),
            }
        });
    }
}

/// Those that proved nothing are few and short, and nobody has all, whatever there is room for.
fn admitted(
    stream: TlsStream<TcpStream>,
    caller: Caller,
    connection: OwnedSemaphorePermit,
    anonymous: Arc<Semaphore>,
    shares: &Shares,
    subscribers: &Subscribers,
) -> io::Result<Connection> {
    let (end, anonymous, share) = match &caller.identity {
        Some(id) => {
            let full = || io::Error::other(format!("`{id}` has too many connections"));
            (None, None, Some(shares.take(id).ok_or_else(full)?))
        }
        None => {
            let full = |_| io::Error::other("too many connections without a certificate");
            let permit = anonymous.try_acquire_owned().map_err(full)?;
            (Some(Box::pin(sleep(ANONYMOUS_LIFE))), Some(permit), None)
        }
    };
    let permits = Permits {
        _connection: connection,
        _anonymous: anonymous,
        _share: share,
    };
    let peer = caller.identity.as_ref().filter(|id| !shares.is_own(id));
    Ok(Connection {
        stream,
        metering: peer.map(|id| subscribers.metering(id)),
        _ended: caller.ended.clone().drop_guard(),
        caller,
        end,
        _permits: permits,
    })
}

/// What a caller came for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    Grpc,
    Join,
    Back,
}

impl Purpose {
    /// By the first protocol that the caller offers.
    fn of(hello: &ClientHello<'_>) -> Self {
        match hello.alpn().and_then(|mut offered| offered.next()) {
            Some(join::ALPN) => Self::Join,
            Some(join::BACK_ALPN) => Self::Back,
            _ => Self::Grpc,
        }
    }
}

async fn shake_hands(
    stream: TcpStream,
    configs: &PortConfigs,
) -> io::Result<(Purpose, TlsStream<TcpStream>)> {
    stream.set_nodelay(true)?;
    let shaking = async {
        let hello = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
        let purpose = Purpose::of(&hello.client_hello());
        let config = match purpose {
            Purpose::Grpc => &configs.grpc,
            Purpose::Join => &configs.join,
            Purpose::Back => &configs.back,
        };
        Ok((purpose, hello.into_stream(Arc::clone(config)).await?))
    };
    timeout(HANDSHAKE_TIMEOUT, shaking)
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

fn identity_of(stream: &TlsStream<TcpStream>) -> io::Result<(Option<SpiffeId>, Option<String>)> {
    let chain = stream.get_ref().1.peer_certificates();
    let identity = chain
        .map(spiffe_id_of)
        .transpose()
        .map_err(io::Error::other)?;
    Ok((identity, chain.and_then(note_of)))
}

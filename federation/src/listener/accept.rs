//! Accepting: bounded in number and in time, so that silent callers cannot shut others out.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use linkspan_runtime::{
    places::{Place, Places, source},
    stop::Stop,
};
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
/// Of either, of one source: the workloads of one machine that start together, and an eighth of
/// what there is room for.
const EACH: usize = 32;
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
/// What a handshake counts against: all of them, and those of its source.
type Handshake = (OwnedSemaphorePermit, Place<IpAddr>);
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
        by_source: Places::new(usize::MAX, EACH),
        anonymous: Places::new(MAX_ANONYMOUS, EACH),
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
    /// Shares of the handshakes.
    by_source: Places<IpAddr>,
    anonymous: Places<IpAddr>,
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
                    match self.by_source.take(&source(remote.ip())) {
                        Ok(share) => self.spawn(stream, remote, connection, (handshake, share)),
                        Err(full) => tracing::debug!(%remote, %full, "too many handshakes"),
                    }
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
        handshake: Handshake,
    ) {
        let Some(config) = self.configs.borrow().clone() else {
            return;
        };
        let (sender, anonymous) = (self.sender.clone(), self.anonymous.clone());
        let (shares, subscribers) = (self.shares.clone(), self.subscribers.clone());
        let joins = self.joins.clone();
        self.tasks.spawn(async move {
            let shaking = shake_hands(stream, remote, &config, handshake, &joins);
            let connection = match timeout(HANDSHAKE_TIMEOUT, shaking).await {
                Ok(Ok(Shaken::Grpc(stream))) => {
                    identity_of(&stream).and_then(|(identity, note)| {
                        let caller = Caller {
                            identity,
                            note,
                            remote,
                            ended: CancellationToken::new(),
                        };
                        admitted(stream, caller, permit, &anonymous, &shares, &subscribers)
                    })
                }
                Ok(Ok(Shaken::Join(stream, place))) => {
                    return joins.stranger(stream, remote, place);
                }
                Ok(Ok(Shaken::Back(stream))) => return joins.gateway(stream),
                Ok(Err(error)) => Err(error),
                Err(_) => Err(io::ErrorKind::TimedOut.into()),
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
    anonymous: &Places<IpAddr>,
    shares: &Shares,
    subscribers: &Subscribers,
) -> io::Result<Connection> {
    let (end, anonymous, share) = match &caller.identity {
        Some(id) => {
            let full = || io::Error::other(format!("`{id}` has too many connections"));
            (None, None, Some(shares.take(id).ok_or_else(full)?))
        }
        None => {
            let place = anonymous.take(&source(caller.remote.ip()));
            let place = place.map_err(|full| {
                io::Error::other(format!(
                    "too many connections without a certificate: {full}"
                ))
            })?;
            (Some(Box::pin(sleep(ANONYMOUS_LIFE))), Some(place), None)
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

/// A connection whose handshake is done, by what it is for.
enum Shaken {
    Grpc(TlsStream<TcpStream>),
    Join(TlsStream<TcpStream>, Place<IpAddr>),
    Back(TlsStream<TcpStream>),
}

async fn shake_hands(
    stream: TcpStream,
    remote: SocketAddr,
    configs: &PortConfigs,
    handshake: Handshake,
    joins: &Doors,
) -> io::Result<Shaken> {
    stream.set_nodelay(true)?;
    let hello = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
    match Purpose::of(&hello.client_hello()) {
        Purpose::Grpc => {
            let config = Arc::clone(&configs.grpc);
            Ok(Shaken::Grpc(hello.into_stream(config).await?))
        }
        Purpose::Join => {
            // Strangers come by the gateways: they stall in the places of joins, and leave those
            // for handshakes to the gateway that carries them.
            let place = joins.admit(remote.ip()).map_err(io::Error::other)?;
            drop(handshake);
            let config = Arc::clone(&configs.join);
            Ok(Shaken::Join(hello.into_stream(config).await?, place))
        }
        Purpose::Back => {
            let config = Arc::clone(&configs.back);
            Ok(Shaken::Back(hello.into_stream(config).await?))
        }
    }
}

fn identity_of(stream: &TlsStream<TcpStream>) -> io::Result<(Option<SpiffeId>, Option<String>)> {
    let chain = stream.get_ref().1.peer_certificates();
    let identity = chain
        .map(spiffe_id_of)
        .transpose()
        .map_err(io::Error::other)?;
    Ok((identity, chain.and_then(note_of)))
}

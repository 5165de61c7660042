//! The open ports: one for each port of an import, as the newest snapshot wants them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use linkspan_dataplane::accept::Accept;
use linkspan_dataplane::discover::ImportPort;
use linkspan_dataplane::forward::bytes::Duplex;
use linkspan_dataplane::forward::http::serve::ServeLimits;
use linkspan_dataplane::outbound::{Listener, Outbound, SourceCell};
use linkspan_runtime::access_log::AccessLog;
use linkspan_runtime::logging::Sparing;
use linkspan_runtime::stop::Stop;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::sleep;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use linkspan_runtime::places::{self, Full, Place, Places};

/// Between two warnings of clients that found no place.
const REFUSALS: Duration = Duration::from_secs(10);

/// Requests at a time over one HTTP/2 connection: the client may be anybody who reaches the port.
const STREAMS: u32 = 100;
/// Largest head of a request, bytes.
const HEAD: u32 = 16 * 1024;
/// Requests of all clients that wait for their answers. With a head and 64 KiB of a body, kept to
/// send it again, some 640 MiB at worst, in the process that carries every link.
const MAX_REQUESTS: usize = 8_192;

/// What all listeners have in common.
pub(super) struct Means {
    /// Where they listen.
    pub(super) listen: IpAddr,
    /// Who calls.
    pub(super) source: SourceCell,
    /// Longest time in which nothing of a request moves.
    pub(super) idle: Duration,
    /// Whether each request and opaque connection gets a line.
    pub(super) access_log: AccessLog,
    /// How long connections may go on when their port is closed.
    pub(super) grace: Duration,
    /// Connections of clients at a time.
    pub(super) connections: usize,
    /// Ends all.
    pub(super) stop: Stop,
}

/// Sole owner of the listeners.
pub(super) struct Listeners {
    means: Means,
    door: Arc<Door>,
    open: BTreeMap<u16, Open>,
    /// Told to close; some may not have yet.
    closing: BTreeSet<u16>,
    failed: BTreeSet<u16>,
    /// Requests that wait for their answers.
    requests: Arc<Semaphore>,
    /// Those whose listeners are closed.
    closed: watch::Sender<Vec<u16>>,
    tasks: TaskTracker,
}

struct Open {
    of: ImportPort,
    stop: Stop,
}

/// Ports as federation is told of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ports {
    /// Those that accept connections, or did a moment ago.
    pub(super) open: BTreeSet<u16>,
    /// Those that cannot be opened.
    pub(super) failed: BTreeSet<u16>,
}

/// Who may come in: no client, and no import, takes more than half of all places.
struct Door {
    by_client: Places<IpAddr>,
    by_port: Places<u16>,
    refusals: Sparing,
}

impl Door {
    fn new(connections: usize) -> Self {
        Self {
            by_client: Places::halves(connections),
            by_port: Places::halves(connections),
            refusals: Sparing::new(REFUSALS),
        }
    }

    /// The places of one connection.
    fn admit(&self, client: SocketAddr, port: u16) -> Result<(Place<IpAddr>, Place<u16>), Full> {
        let by_client = self.by_client.take(&places::source(client.ip()))?;
        let by_port = self.by_port.take(&port)?;
        Ok((by_client, by_port))
    }

    fn tell_full(&self, client: SocketAddr, port: u16, full: Full) {
        match self.refusals.due(Instant::now()) {
            Some(unsaid) => warn!(%client, port, %full, unsaid, "unmeshed client refused"),
            None => debug!(%client, port, %full, "unmeshed client refused"),
        }
    }
}

impl Listeners {
    pub(super) fn new(means: Means) -> Self {
        Self {
            door: Arc::new(Door::new(means.connections)),
            means,
            open: BTreeMap::new(),
            closing: BTreeSet::new(),
            failed: BTreeSet::new(),
            requests: Arc::new(Semaphore::new(MAX_REQUESTS)),
            closed: watch::Sender::default(),
            tasks: TaskTracker::new(),
        }
    }

    /// Opens what is wanted and closes what is not. A port that is to stand for another import is
    /// opened for that once it is closed: to be called again then, and for those that failed.
    pub(super) async fn follow(&mut self, wanted: &[ImportPort]) {
        self.note_closed();
        let numbers: BTreeMap<u16, &ImportPort> = wanted.iter().map(|of| (of.listen, of)).collect();
        let stays =
            |number: &u16, open: &Open| numbers.get(number).is_some_and(|of| **of == open.of);
        for (number, gone) in self
            .open
            .extract_if(.., |number, open| !stays(number, open))
        {
            info!(port = number, service = %gone.of.service, "import port closes");
            gone.stop.drain();
            self.closing.insert(number);
        }
        self.failed.retain(|number| numbers.contains_key(number));
        for of in wanted {
            let number = of.listen;
            if !self.open.contains_key(&number) && !self.closing.contains(&number) {
                self.open(of).await;
            }
        }
    }

    async fn open(&mut self, of: &ImportPort) {
        let number = of.listen;
        let address = SocketAddr::new(self.means.listen, number);
        match TcpListener::bind(address).await {
            Ok(listener) => {
                if self.failed.remove(&number) {
                    info!(%address, "import port can be opened now");
                }
                debug!(%address, service = %of.service, port = of.port, "import port opens");
                self.serve(of.clone(), listener);
            }
            Err(error) => self.tell_failed(of, address, &error),
        }
    }

    fn tell_failed(&mut self, of: &ImportPort, address: SocketAddr, error: &io::Error) {
        if self.failed.insert(of.listen) {
            let service = &of.service;
            warn!(
                %address, %service, %error,
                "an import port cannot be opened; free it, or choose others with `importPorts` of \
                 federation; trying on"
            );
        }
    }

    fn serve(&mut self, of: ImportPort, listener: TcpListener) {
        let (number, stop) = (of.listen, self.means.stop.child());
        let outbound = Outbound::new(Listener {
            service: of.service.clone(),
            port: of.port,
            source: self.means.source.clone(),
            idle: self.means.idle,
            access_log: self.means.access_log,
            limits: ServeLimits {
                streams: STREAMS,
                head: HEAD,
                ..ServeLimits::default()
            },
            requests: Some(Arc::clone(&self.requests)),
            stop: stop.clone(),
        });
        let door = Arc::clone(&self.door);
        let handler = move |mut socket: TcpStream, client| {
            let (outbound, door) = (outbound.clone(), Arc::clone(&door));
            async move {
                match door.admit(client, number) {
                    Ok(_places) => Box::pin(outbound.connection(socket, client)).await,
                    Err(full) => {
                        door.tell_full(client, number, full);
                        socket.reset();
                    }
                }
            }
        };
        let closed = self.closed.clone();
        let tell = move || closed.send_modify(|closed| closed.push(number));
        let serving = Accept::default().run_telling(listener, stop.clone(), handler, tell);
        let (ending, grace) = (stop.clone(), self.means.grace);
        let bounded = async move {
            ending.draining().await;
            sleep(grace).await;
            ending.abort();
        };
        self.tasks.spawn(async move {
            let mut serving = std::pin::pin!(serving);
            tokio::select! {
                () = &mut serving => {}
                () = bounded => serving.await,
            }
        });
        self.open.insert(number, Open { of, stop });
    }

    /// Waits until a port that was to close has closed. Cancel-safe.
    pub(super) async fn closed(&self) {
        let mut closed = self.closed.subscribe();
        // The sender is our own.
        let _ = closed.wait_for(|closed| !closed.is_empty()).await;
    }

    fn note_closed(&mut self) {
        for number in self.closed.send_replace(Vec::new()) {
            self.closing.remove(&number);
            // Closed with everything else.
            self.open.remove(&number);
        }
    }

    /// Whether something that is wanted is neither open nor failed nor waiting for its port to
    /// close: what closed a moment ago can be opened now.
    pub(super) fn misses(&self, wanted: &[ImportPort]) -> bool {
        wanted.iter().any(|of| {
            let number = of.listen;
            !self.open.contains_key(&number)
                && !self.closing.contains(&number)
                && !self.failed.contains(&number)
        })
    }

    /// How it stands with the ports.
    pub(super) fn ports(&mut self) -> Ports {
        self.note_closed();
        Ports {
            open: self.open.keys().chain(&self.closing).copied().collect(),
            failed: self.failed.clone(),
        }
    }

    /// Waits until no connection is left, once all is stopped.
    pub(super) async fn ended(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    fn listeners(stop: &Stop, connections: usize) -> Listeners {
        Listeners::new(Means {
            listen: [127, 0, 0, 1].into(),
            source: SourceCell::default(),
            idle: Duration::from_secs(60),
            access_log: AccessLog::OFF,
            grace: Duration::from_millis(1),
            connections,
            stop: stop.child(),
        })
    }

    fn import(service: &str, listen: u16) -> ImportPort {
        ImportPort {
            service: service.parse().unwrap(),
            port: 80,
            listen,
        }
    }

    /// A port that was free a moment ago.
    async fn free() -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap().port()
    }

    async fn connect(port: u16) -> io::Result<TcpStream> {
        TcpStream::connect(("127.0.0.1", port)).await
    }

    #[tokio::test]
    async fn ports_open_and_close_and_pass_on_only_once_they_are_closed() {
        let (stop, port) = (Stop::new(), free().await);
        let mut listeners = listeners(&stop, 8);
        listeners.follow(&[import("shop/a", port)]).await;
        assert_eq!(listeners.ports().open, [port].into());
        let mut client = connect(port).await.unwrap();
        listeners.follow(&[import("shop/b", port)]).await;
        assert!(listeners.open.is_empty(), "it is still that of another");
        listeners.closed().await;
        listeners.follow(&[import("shop/b", port)]).await;
        assert_eq!(listeners.open[&port].of.service.to_string(), "shop/b");
        // Who was there is not handed over.
        assert!(!matches!(client.read(&mut [0]).await, Ok(1..)));
        listeners.follow(&[]).await;
        listeners.closed().await;
        assert_eq!(listeners.ports(), Ports::default());
        assert!(connect(port).await.is_err());
        listeners.ended().await;
    }

    #[tokio::test]
    async fn a_port_that_is_taken_is_told_and_tried_again() {
        let stop = Stop::new();
        let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = other.local_addr().unwrap().port();
        let mut listeners = listeners(&stop, 8);
        let wanted = [import("shop/a", port)];
        listeners.follow(&wanted).await;
        let failed = Ports {
            open: BTreeSet::new(),
            failed: [port].into(),
        };
        assert_eq!(listeners.ports(), failed);
        drop(other);
        listeners.follow(&wanted).await;
        assert_eq!(listeners.ports().open, [port].into());
        stop.abort();
        listeners.ended().await;
    }

    #[tokio::test]
    async fn one_client_takes_no_more_than_half_of_the_places() {
        let (stop, port) = (Stop::new(), free().await);
        let mut listeners = listeners(&stop, 4);
        listeners.follow(&[import("shop/a", port)]).await;
        let mut clients = Vec::new();
        for _ in 0..2 {
            clients.push(connect(port).await.unwrap());
        }
        let mut third = connect(port).await.unwrap();
        assert!(!matches!(third.read(&mut [0]).await, Ok(1..)));
        assert!(clients[0].try_read(&mut [0]).is_err(), "still open");
        let others = listeners.door.admit(([192, 0, 2, 1], 1).into(), port + 1);
        assert!(others.is_ok());
        stop.abort();
        listeners.ended().await;
    }
}

//! The UDP wire between the gateways of the demo.
//!
//! Each gateway advertises only an address of the wire, so that all datagrams between the
//! clusters pass through here and an ordinary user can make them vanish: a black hole
//! swallows both directions, closes nothing, and counts what it swallowed, because a fault
//! that swallowed nothing was none.
//!
//! Per gateway there is one *way*: a socket that others send to. For each sender on a way
//! there is one more socket, from which its datagrams go on to the gateway and on which the
//! gateway's answers come back. So both sides see stable addresses, and the gateway can tell
//! its peers apart.

use std::{
    collections::HashMap,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
};

use anyhow::Context as _;
use tokio::{
    net::UdpSocket,
    sync::oneshot,
    task::JoinSet,
    time::{Duration, Instant},
};

/// Senders per way; when there are more, the one unheard the longest goes.
const MAX_FLOWS: usize = 64;
/// A flow that has been silent for so long is closed.
const IDLE: Duration = Duration::from_secs(120);
/// Largest UDP datagram.
const MAX_DATAGRAM: usize = 65_535;

/// One gateway's way.
#[derive(Clone, Debug)]
pub struct Way {
    /// Name of the gateway.
    pub gateway: String,
    /// What it advertises.
    pub wire: SocketAddr,
    /// Where it really listens.
    pub tunnel: SocketAddr,
}

/// Datagrams and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Datagrams.
    pub datagrams: u64,
    /// Their payload.
    pub bytes: u64,
}

#[derive(Debug, Default)]
struct Counter {
    datagrams: AtomicU64,
    bytes: AtomicU64,
}

impl Counter {
    fn add(&self, bytes: usize) {
        self.datagrams.fetch_add(1, Relaxed);
        self.bytes
            .fetch_add(u64::try_from(bytes).unwrap_or_default(), Relaxed);
    }

    fn read(&self) -> Count {
        Count {
            datagrams: self.datagrams.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
        }
    }
}

#[derive(Debug)]
struct Shared {
    black_hole: AtomicBool,
    swallowed: Counter,
    /// By gateway: datagrams that it sent, whoever dialled.
    sent: HashMap<String, Counter>,
    /// The gateway behind a tunnel address.
    names: HashMap<SocketAddr, String>,
}

impl Shared {
    /// Counts one datagram of a gateway; false if it is to vanish.
    fn pass(&self, sender: Option<&str>, bytes: usize) -> bool {
        if self.black_hole.load(Relaxed) {
            self.swallowed.add(bytes);
            return false;
        }
        if let Some(counter) = sender.and_then(|name| self.sent.get(name)) {
            counter.add(bytes);
        }
        true
    }
}

/// A running wire; it ends when this is dropped.
#[derive(Debug)]
pub struct Wire {
    shared: Arc<Shared>,
    _stop: oneshot::Sender<()>,
}

impl Wire {
    /// Starts carrying, on a thread of its own: the supervisor's work must not delay datagrams.
    ///
    /// # Errors
    /// If an address of the wire cannot be bound.
    pub fn start(ways: &[Way]) -> anyhow::Result<Self> {
        let shared = Arc::new(Shared {
            black_hole: AtomicBool::new(false),
            swallowed: Counter::default(),
            sent: ways
                .iter()
                .map(|way| (way.gateway.clone(), Counter::default()))
                .collect(),
            names: ways
                .iter()
                .map(|way| (way.tunnel, way.gateway.clone()))
                .collect(),
        });
        let mut sockets = Vec::new();
        for way in ways {
            let socket = std::net::UdpSocket::bind(way.wire)
                .with_context(|| format!("the wire cannot listen on {}", way.wire))?;
            socket.set_nonblocking(true)?;
            sockets.push((socket, way.clone()));
        }
        let (stop, stopped) = oneshot::channel();
        let carrier = Arc::clone(&shared);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start the wire's runtime")?;
        thread::Builder::new()
            .name("wire".to_owned())
            .spawn(move || runtime.block_on(carry_all(sockets, carrier, stopped)))
            .context("cannot start the wire's thread")?;
        Ok(Self {
            shared,
            _stop: stop,
        })
    }

    /// Turns the black hole on or off.
    pub fn swallow(&self, on: bool) {
        self.shared.black_hole.store(on, Relaxed);
    }

    /// All that black holes have swallowed so far.
    #[must_use]
    pub fn swallowed(&self) -> Count {
        self.shared.swallowed.read()
    }

    /// All that a gateway has sent so far.
    #[must_use]
    pub fn sent(&self, gateway: &str) -> Count {
        let counter = self.shared.sent.get(gateway);
        counter.map(Counter::read).unwrap_or_default()
    }
}

async fn carry_all(
    sockets: Vec<(std::net::UdpSocket, Way)>,
    shared: Arc<Shared>,
    stopped: oneshot::Receiver<()>,
) {
    let mut ways = JoinSet::new();
    for (socket, way) in sockets {
        ways.spawn(carry(socket, way, Arc::clone(&shared)));
    }
    // The sender never sends; it is dropped.
    stopped.await.ok();
}

/// One sender's socket towards the gateway.
struct Flow {
    socket: Arc<UdpSocket>,
    used: Instant,
    task: tokio::task::AbortHandle,
}

/// Carries the datagrams of one way, in both directions.
async fn carry(socket: std::net::UdpSocket, way: Way, shared: Arc<Shared>) {
    let Ok(socket) = UdpSocket::from_std(socket).map(Arc::new) else {
        return;
    };
    let mut flows: HashMap<SocketAddr, Flow> = HashMap::new();
    let mut tasks = JoinSet::new();
    let mut buffer = vec![0; MAX_DATAGRAM];
    loop {
        // An error is an ICMP message about an earlier datagram of ours.
        let Ok((length, from)) = socket.recv_from(&mut buffer).await else {
            continue;
        };
        while tasks.try_join_next().is_some() {}
        let sender = shared.names.get(&from).map(String::as_str);
        if !shared.pass(sender, length) {
            continue;
        }
        if !flows.contains_key(&from) {
            make_room(&mut flows);
            let Ok(onward) = dial(way.tunnel).await else {
                continue;
            };
            let back = bring_back(
                Arc::clone(&onward),
                Arc::clone(&socket),
                from,
                way.gateway.clone(),
                Arc::clone(&shared),
            );
            let flow = Flow {
                socket: onward,
                used: Instant::now(),
                task: tasks.spawn(back),
            };
            flows.insert(from, flow);
        }
        if let Some(flow) = flows.get_mut(&from) {
            flow.used = Instant::now();
            // A dead gateway loses datagrams, as on any wire. (Loopback never makes us wait.)
            flow.socket.send(&buffer[..length]).await.ok();
        }
    }
}

async fn dial(tunnel: SocketAddr) -> std::io::Result<Arc<UdpSocket>> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    socket.connect(tunnel).await?;
    Ok(Arc::new(socket))
}

/// Closes flows that are silent, and one more if there are still too many.
fn make_room(flows: &mut HashMap<SocketAddr, Flow>) {
    let now = Instant::now();
    flows.retain(|_, flow| {
        let keep = now.duration_since(flow.used) < IDLE;
        if !keep {
            flow.task.abort();
        }
        keep
    });
    if flows.len() >= MAX_FLOWS
        && let Some(oldest) = flows
            .iter()
            .min_by_key(|(_, flow)| flow.used)
            .map(|(from, _)| *from)
        && let Some(flow) = flows.remove(&oldest)
    {
        flow.task.abort();
    }
}

/// Carries the gateway's answers back to one sender.
async fn bring_back(
    onward: Arc<UdpSocket>,
    socket: Arc<UdpSocket>,
    to: SocketAddr,
    gateway: String,
    shared: Arc<Shared>,
) {
    let mut buffer = vec![0; MAX_DATAGRAM];
    loop {
        match onward.recv(&mut buffer).await {
            Ok(length) if shared.pass(Some(&gateway), length) => {
                socket.send_to(&buffer[..length], to).await.ok();
            }
            // Swallowed; or an ICMP message: the gateway is down for now.
            Ok(_) | Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket as Std;

    use super::*;

    struct World {
        wire: Wire,
        east: UdpSocket,
        west: UdpSocket,
        address: SocketAddr,
    }

    async fn world() -> World {
        let free = || {
            let socket = Std::bind("127.0.0.1:0").expect("a port");
            socket.local_addr().expect("an address")
        };
        let east = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
        let west = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
        let way = |gateway: &str, socket: &UdpSocket| Way {
            gateway: gateway.into(),
            wire: free(),
            tunnel: socket.local_addr().expect("an address"),
        };
        let ways = [way("east-1", &east), way("west-1", &west)];
        World {
            wire: Wire::start(&ways).expect("started"),
            address: ways[1].wire,
            east,
            west,
        }
    }

    async fn receive(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
        let mut buffer = [0; 100];
        let received = tokio::time::timeout(Duration::from_secs(20), socket.recv_from(&mut buffer));
        let (length, from) = received.await.expect("in time").expect("received");
        (buffer[..length].to_vec(), from)
    }

    #[tokio::test]
    async fn datagrams_pass_both_ways_and_count_for_their_senders() {
        let world = world().await;
        world
            .east
            .send_to(b"ping", world.address)
            .await
            .expect("sent");
        let (bytes, from) = receive(&world.west).await;
        assert_eq!(bytes, b"ping");
        world.west.send_to(b"pong!", from).await.expect("sent");
        let (bytes, from) = receive(&world.east).await;
        assert_eq!(
            (bytes.as_slice(), from),
            (b"pong!".as_slice(), world.address)
        );
        let one = |bytes| Count {
            datagrams: 1,
            bytes,
        };
        assert_eq!(world.wire.sent("east-1"), one(4));
        assert_eq!(world.wire.sent("west-1"), one(5));
        assert_eq!(world.wire.swallowed(), Count::default());
    }

    #[tokio::test]
    async fn a_black_hole_swallows_both_directions_and_counts() {
        let world = world().await;
        world
            .east
            .send_to(b"ping", world.address)
            .await
            .expect("sent");
        let (_, from) = receive(&world.west).await;
        world.wire.swallow(true);
        world
            .east
            .send_to(b"lost", world.address)
            .await
            .expect("sent");
        world.west.send_to(b"lost too", from).await.expect("sent");
        while world.wire.swallowed().datagrams < 2 {
            tokio::task::yield_now().await;
        }
        assert_eq!(world.wire.swallowed().bytes, 12);
        world.wire.swallow(false);
        world
            .east
            .send_to(b"again", world.address)
            .await
            .expect("sent");
        assert_eq!(receive(&world.west).await.0, b"again");
        assert_eq!(world.wire.sent("east-1").datagrams, 2);
    }

    #[tokio::test]
    async fn senders_are_told_apart() {
        let world = world().await;
        let other = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
        world.east.send_to(b"a", world.address).await.expect("sent");
        let (_, first) = receive(&world.west).await;
        other.send_to(b"b", world.address).await.expect("sent");
        let (_, second) = receive(&world.west).await;
        assert_ne!(first, second);
        world.west.send_to(b"to other", second).await.expect("sent");
        assert_eq!(receive(&other).await.0, b"to other");
    }
}

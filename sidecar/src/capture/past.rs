//! What is no business of the mesh: on to where it was meant to go, byte for byte.

use std::{
    collections::HashSet,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use linkspan_dataplane::{
    connect::tcp,
    forward::bytes::{Duplex as _, RelayLimits, relay},
    report::{Access, ConnectionReport, Outcome},
};
use linkspan_runtime::access_log::AccessLog;
use linkspan_runtime::telemetry::{ConnectionHandles, Direction, End, Path, TrafficMetrics};
use tokio::{
    net::{TcpSocket, TcpStream},
    time::timeout,
};

/// What stands for the service in metrics; no service has no namespace.
const LABEL: &str = "passthrough";
/// How long a connection may take to come about: the caller, who has one to us already, cannot tell
/// by itself that it does not. Enough for four lost SYNs.
const CONNECT: Duration = Duration::from_secs(30);
/// Connections to databases may be silent for long; kernels' connection tracking gives up on them
/// after days, load balancers mostly after less than one. The dead ones are found by keep-alive.
const IDLE: Duration = Duration::from_secs(24 * 3600);

/// Carries connections past the mesh.
#[derive(Clone, Debug)]
pub(crate) struct Past {
    handles: Arc<ConnectionHandles>,
    access_log: AccessLog,
    /// Local ports of our own connections; one that comes to us from such a port is ours.
    own: Arc<Mutex<HashSet<u16>>>,
}

/// A port in [`Past::own`] as long as it lives.
#[derive(Debug)]
struct OwnPort {
    own: Arc<Mutex<HashSet<u16>>>,
    port: u16,
}

impl Drop for OwnPort {
    fn drop(&mut self) {
        lock(&self.own).remove(&self.port);
    }
}

fn lock(own: &Mutex<HashSet<u16>>) -> MutexGuard<'_, HashSet<u16>> {
    // Each change leaves it whole.
    own.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Past {
    pub(crate) fn new(traffic: &TrafficMetrics, access_log: AccessLog) -> Self {
        let path = Path {
            direction: Direction::Outbound,
            source: End::default(),
            destination: End::default(),
            namespace: "",
            service: LABEL,
        };
        Self {
            handles: traffic.connections(&path),
            access_log,
            own: Arc::default(),
        }
    }

    /// Whether this caller is ourselves, which only rules that do not know our user can bring about.
    pub(crate) fn is_own(&self, caller: SocketAddr) -> bool {
        lock(&self.own).contains(&caller.port())
    }

    /// Serves one connection. Whatever goes wrong resets it.
    pub(crate) async fn carry(&self, io: &mut TcpStream, caller: SocketAddr, meant: SocketAddr) {
        let mut access = Access::new(Direction::Outbound);
        access.caller = Some(caller);
        access.port = Some(meant.port());
        access.why = Some(format!("{} is no address of the mesh", meant.ip()));
        access.flags = vec![LABEL];
        access.log = self.access_log.draw();
        let report = ConnectionReport::open(access, Arc::clone(&self.handles));
        let (mut there, _port) = match self.connect(meant).await {
            Ok(connected) => connected,
            Err(error) => {
                io.reset();
                return report.fail(Outcome::Failed, &error);
            }
        };
        let limits = RelayLimits { idle: IDLE };
        match relay(io, &mut there, limits, &report.counters()).await {
            Ok(_) => report.end(Outcome::Ok),
            Err(error) => report.fail(Outcome::Reset, &error),
        }
    }

    /// The port is ours before anything leaves from it.
    async fn connect(&self, meant: SocketAddr) -> io::Result<(TcpStream, OwnPort)> {
        let (socket, any) = match meant {
            SocketAddr::V4(_) => (TcpSocket::new_v4()?, (Ipv4Addr::UNSPECIFIED, 0).into()),
            SocketAddr::V6(_) => (TcpSocket::new_v6()?, (Ipv6Addr::UNSPECIFIED, 0).into()),
        };
        socket.bind(any)?;
        let port = socket.local_addr()?.port();
        lock(&self.own).insert(port);
        let own = OwnPort {
            own: Arc::clone(&self.own),
            port,
        };
        let late = || {
            io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no answer from {meant} within {CONNECT:?}"),
            )
        };
        let connected = timeout(CONNECT, socket.connect(meant)).await;
        let stream = connected.map_err(|_| late())??;
        tcp::prepare(&stream);
        Ok((stream, own))
    }
}

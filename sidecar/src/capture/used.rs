//! The services that captured calls use: followed as long as somebody calls them, and a while longer.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use linkspan_dataplane::{
    forward::http::serve::ServeLimits,
    outbound::{Listener, Outbound, Services, SourceCell},
};
use linkspan_routing::ServiceKey;
use linkspan_runtime::access_log::AccessLog;
use linkspan_runtime::stop::Stop;
use tokio::{
    net::TcpStream,
    sync::watch,
    time::{Instant, sleep},
};

/// Ports of services used at a time: half of what federation tells to one proxy, and more than any
/// application calls.
pub(crate) const MAX_USED: usize = 1_000;
/// Without a connection for so long, a service is forgotten. The next call waits for it anew, some
/// milliseconds, so it is long enough for what is called every few minutes.
pub(crate) const UNUSED: Duration = Duration::from_secs(600);
/// How often such are looked for.
const SWEEP: Duration = Duration::from_secs(60);

type Port = (ServiceKey, u16);

/// All that a workload calls; sole caller of [`Services::follow`] and sole writer of what
/// federation is asked for.
#[derive(Clone, Debug)]
pub(crate) struct Used {
    inner: Arc<Inner>,
}

/// What it is made with.
#[derive(Debug)]
pub(crate) struct Means {
    /// Ports of explicit listeners, which stay.
    pub(crate) explicit: BTreeSet<Port>,
    pub(crate) services: Arc<Services>,
    pub(crate) subscription: watch::Sender<BTreeSet<ServiceKey>>,
    pub(crate) source: SourceCell,
    pub(crate) idle: Duration,
    pub(crate) access_log: AccessLog,
    pub(crate) stop: Stop,
}

#[derive(Debug)]
struct Inner {
    means: Means,
    ports: Mutex<BTreeMap<Port, Use>>,
}

/// One port of a service.
#[derive(Debug)]
struct Use {
    outbound: Outbound,
    open: usize,
    /// When its last connection began or ended.
    last: Instant,
}

/// One connection of the workload to a service.
#[derive(Debug)]
pub(crate) struct Call {
    used: Used,
    port: Port,
    outbound: Outbound,
}

impl Call {
    /// Serves it to its end.
    pub(crate) async fn serve(self, socket: TcpStream, caller: SocketAddr) {
        self.outbound.clone().connection(socket, caller).await;
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if let Some(used) = self.used.ports().get_mut(&self.port) {
            used.open -= 1;
            used.last = Instant::now();
        }
    }
}

/// Forgets what is not used any more.
#[derive(Debug)]
pub(crate) struct Sweeper(Used);

impl Sweeper {
    /// Until the stop aborts.
    pub(crate) async fn run(self, stop: Stop) {
        loop {
            tokio::select! {
                () = stop.aborted() => return,
                () = sleep(SWEEP) => self.0.sweep(Instant::now()),
            }
        }
    }
}

impl Used {
    pub(crate) fn new(means: Means) -> (Self, Sweeper) {
        let inner = Inner {
            means,
            ports: Mutex::default(),
        };
        let used = Self {
            inner: Arc::new(inner),
        };
        (used.clone(), Sweeper(used))
    }

    /// A call to a port of a service, which is followed from now on; none where too many are used.
    pub(crate) fn call(&self, service: ServiceKey, port: u16, now: Instant) -> Option<Call> {
        let port = (service, port);
        let mut ports = self.ports();
        if !ports.contains_key(&port) {
            if ports.len() >= MAX_USED {
                let longest_unused = unused(&ports).min_by_key(|(_, used)| used.last);
                let longest_unused = longest_unused.map(|(port, _)| port.clone())?;
                ports.remove(&longest_unused);
            }
            let outbound = self.outbound(&port);
            let used = Use {
                outbound,
                open: 0,
                last: now,
            };
            ports.insert(port.clone(), used);
            self.follow(&ports);
        }
        let used = ports.get_mut(&port)?;
        used.open += 1;
        used.last = now;
        Some(Call {
            used: self.clone(),
            outbound: used.outbound.clone(),
            port,
        })
    }

    /// Forgets what nobody has used for long.
    pub(crate) fn sweep(&self, now: Instant) {
        let mut ports = self.ports();
        let before = ports.len();
        ports.retain(|_, used| used.open > 0 || now.saturating_duration_since(used.last) < UNUSED);
        if ports.len() < before {
            self.follow(&ports);
        }
    }

    fn ports(&self) -> MutexGuard<'_, BTreeMap<Port, Use>> {
        // Each change leaves it whole.
        let ports = &self.inner.ports;
        ports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One call at a time: the caller holds the lock.
    fn follow(&self, ports: &BTreeMap<Port, Use>) {
        let means = &self.inner.means;
        let all: BTreeSet<Port> = means.explicit.iter().chain(ports.keys()).cloned().collect();
        let services: BTreeSet<_> = all.iter().map(|(service, _)| service.clone()).collect();
        means.services.follow(all);
        means.subscription.send_if_modified(|before| {
            let news = *before != services;
            *before = services;
            news
        });
    }

    fn outbound(&self, (service, port): &Port) -> Outbound {
        let means = &self.inner.means;
        Outbound::new(Listener {
            service: service.clone(),
            port: *port,
            source: means.source.clone(),
            idle: means.idle,
            access_log: means.access_log,
            limits: ServeLimits::default(),
            requests: None,
            stop: means.stop.clone(),
        })
    }
}

fn unused(ports: &BTreeMap<Port, Use>) -> impl Iterator<Item = (&Port, &Use)> {
    ports.iter().filter(|(_, used)| used.open == 0)
}

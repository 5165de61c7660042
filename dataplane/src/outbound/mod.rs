//! From a caller into the mesh: listeners, each bound to one port of one service.
//!
//! ```text
//! connection ─► what is it? ─► destination ─► pick an endpoint ─► dial ─► inner mTLS
//!                              (services)     (attempts)          directly, or by a gateway
//! ```
//!
//! A sidecar has such listeners for its workload, a gateway for callers without a sidecar.
//! A connection is judged once (HTTP or opaque bytes); endpoints are then chosen for each request
//! (`http`), or once for the connection (`tcp`).

mod attempts;
mod dial;
mod gateways;
mod http;
pub(crate) mod meter;
mod restarts;
mod services;
mod source;
mod tcp;
mod told;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::{
    accept::Accept,
    detect::{
        Prefixed,
        http::{DETECT_TIMEOUT, Protocol, detect_http},
    },
    forward::http::serve::ServeLimits,
    report::Access,
};
use linkspan_routing::{AppProtocol, ServiceKey};
use linkspan_runtime::access_log::AccessLog;
use linkspan_runtime::{process::chain, stop::Stop, telemetry::Direction};
use linkspan_trust::SpiffeId;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{Instant, timeout_at},
};
use tracing::debug;

pub use services::{Destination, Driver, Means, Services};
pub use source::{Source, SourceCell};

use services::Known;

/// How long a call is held for a service of which nothing is known yet.
pub const HOLD: Duration = Duration::from_secs(5);
/// After a call was held in vain no other one is held for so long: a connection that has waited
/// for its service does not wait once more for its first request.
const IN_VAIN: Duration = Duration::from_secs(1);
/// Calls held at a time; each may hold up to 64 KiB of its body. More are refused at once.
const MAX_HELD: usize = 1024;

/// Serves the calls to one port of one service.
#[derive(Clone, Debug)]
pub struct Outbound {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    service: ServiceKey,
    port: u16,
    source: SourceCell,
    held: Semaphore,
    /// When a call was held in vain last.
    in_vain: Mutex<Option<Instant>>,
    idle: Duration,
    access_log: AccessLog,
    limits: ServeLimits,
    requests: Option<Arc<Semaphore>>,
    stop: Stop,
}

/// What a listener is made with.
#[derive(Debug)]
pub struct Listener {
    /// The service that is called through it.
    pub service: ServiceKey,
    /// Its Service port.
    pub port: u16,
    /// Who calls.
    pub source: SourceCell,
    /// Longest time in which nothing of a request moves.
    pub idle: Duration,
    /// Whether each request and opaque connection gets a line.
    pub access_log: AccessLog,
    /// Of each HTTP connection.
    pub limits: ServeLimits,
    /// Requests that may wait for their answers at a time, shared with others; more are refused at
    /// once (503). `None`: as many as the caller's connections carry.
    pub requests: Option<Arc<Semaphore>>,
    /// Ends it.
    pub stop: Stop,
}

/// Why a call cannot be served now.
#[derive(Debug, thiserror::Error)]
enum Unavailable {
    #[error("no certificate yet; is federation reachable?")]
    NoCertificate,
    #[error("service `{0}` is not known; export it in a linked cluster or check its name")]
    Unknown(ServiceKey),
    #[error("service `{0}` has no port {1}")]
    NoPort(ServiceKey, u16),
    #[error("too many calls wait for service `{0}`")]
    TooMany(ServiceKey),
}

/// A destination and what is known of it, at the time of one decision.
struct Resolved {
    own: SpiffeId,
    destination: Arc<Destination>,
    protocol: AppProtocol,
}

impl Outbound {
    /// One that is not bound yet.
    #[must_use]
    pub fn new(listener: Listener) -> Self {
        let Listener {
            service,
            port,
            source,
            idle,
            access_log,
            limits,
            requests,
            stop,
        } = listener;
        let held = Semaphore::new(MAX_HELD);
        Self {
            inner: Arc::new(Inner {
                service,
                port,
                source,
                held,
                in_vain: Mutex::default(),
                idle,
                access_log,
                limits,
                requests,
                stop,
            }),
        }
    }

    /// Accepts connections until drained, and serves them to their ends.
    pub async fn run(self, listener: TcpListener) {
        let stop = self.inner.stop.clone();
        let handler = |socket, caller| {
            let outbound = self.clone();
            async move { Box::pin(outbound.connection(socket, caller)).await }
        };
        Accept::default().run(listener, stop, handler).await;
    }

    /// One connection: what is it, and on with it.
    pub async fn connection(self, socket: TcpStream, caller: SocketAddr) {
        let protocol = match self.resolve().await {
            Ok(resolved) => resolved.protocol,
            // What speaks HTTP is told why by its requests.
            Err(error) => {
                debug!(service = %self.inner.service, error = %chain(&error), "call held in vain");
                AppProtocol::Detect
            }
        };
        match protocol {
            AppProtocol::Http | AppProtocol::Http2 => self.http(socket, caller).await,
            AppProtocol::Tcp => self.tcp(Prefixed::new("", socket), caller).await,
            AppProtocol::Detect => self.detect(socket, caller).await,
        }
    }

    async fn detect(self, socket: TcpStream, caller: SocketAddr) {
        match detect_http(socket, DETECT_TIMEOUT).await {
            Ok((Protocol::Http1 | Protocol::Http2, io)) => self.http(io, caller).await,
            Ok((Protocol::Opaque, io)) => self.tcp(io, caller).await,
            Err(error) => debug!(error = %chain(&error), "connection ended before its first bytes"),
        }
    }

    /// The destination, once something is known of it; held until then, within bounds.
    async fn resolve(&self) -> Result<Resolved, Unavailable> {
        let inner = &*self.inner;
        if let Some(resolved) = inner.known()? {
            return Ok(resolved);
        }
        let _held = inner
            .held
            .try_acquire()
            .map_err(|_| Unavailable::TooMany(inner.service.clone()))?;
        let waited = inner.wait(inner.patience()).await;
        if waited.is_err() {
            *inner.last_in_vain() = Some(Instant::now());
        }
        waited
    }

    /// Where calls count that reach no endpoint; nowhere before there is a certificate.
    fn nowhere(&self) -> Option<Arc<meter::PathMeter>> {
        let inner = &*self.inner;
        let destination = inner
            .source
            .get()?
            .destination(&inner.service, inner.port)?;
        Some(Arc::clone(&destination.metrics.nowhere))
    }

    fn access(&self, caller: SocketAddr) -> Access {
        let mut access = Access::new(Direction::Outbound);
        access.caller = Some(caller);
        access.service = Some(self.inner.service.clone());
        access.port = Some(self.inner.port);
        access.log = self.inner.access_log.draw();
        access
    }
}

impl Inner {
    fn known(&self) -> Result<Option<Resolved>, Unavailable> {
        let Some(source) = self.source.get() else {
            return Ok(None);
        };
        let destination = source.destination(&self.service, self.port);
        let known = destination
            .as_ref()
            .and_then(|destination| destination.known());
        destination
            .zip(known)
            .map(|(destination, known)| self.resolved(source.own(), destination, &known))
            .transpose()
    }

    /// Until when a call that comes now is held.
    fn patience(&self) -> Instant {
        let now = Instant::now();
        match *self.last_in_vain() {
            Some(last) if now.saturating_duration_since(last) < IN_VAIN => now,
            _ => now + HOLD,
        }
    }

    fn last_in_vain(&self) -> MutexGuard<'_, Option<Instant>> {
        self.in_vain.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn wait(&self, deadline: Instant) -> Result<Resolved, Unavailable> {
        let unknown = || Unavailable::Unknown(self.service.clone());
        let source = timeout_at(deadline, self.source.wait()).await;
        let source = source.map_err(|_| Unavailable::NoCertificate)?;
        let destination = source
            .destination(&self.service, self.port)
            .ok_or_else(unknown)?;
        let known = destination.known_by(deadline).await.ok_or_else(unknown)?;
        self.resolved(source.own(), destination, &known)
    }

    fn resolved(
        &self,
        own: SpiffeId,
        destination: Arc<Destination>,
        known: &Known,
    ) -> Result<Resolved, Unavailable> {
        let no_port = || Unavailable::NoPort(self.service.clone(), self.port);
        let protocol = known.protocol.ok_or_else(no_port)?;
        Ok(Resolved {
            own,
            destination,
            protocol,
        })
    }
}

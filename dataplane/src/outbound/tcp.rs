//! Opaque calls: one endpoint for the connection.

use std::{net::SocketAddr, sync::Arc, time::Instant};

use crate::{
    connect::mtls::{Connected, InnerAlpn},
    forward::bytes::{Duplex, RelayError, RelayLimits, relay},
    report::{ConnectionReport, Outcome},
};
use linkspan_routing::Pick;
use linkspan_runtime::{
    telemetry::ConnectionHandles,
    trace::{Kind, Parent, SpanContext},
};

use super::{
    Outbound, Resolved, Unavailable,
    attempts::{Attempts, CallError},
    dial::Remote,
};

/// Why an opaque call failed.
#[derive(Debug, thiserror::Error)]
enum TcpError {
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    #[error(transparent)]
    Call(#[from] CallError),
    #[error(transparent)]
    Relay(#[from] RelayError),
}

impl Outbound {
    /// Serves one opaque connection: whom, connect, relay. Whatever goes wrong resets it.
    pub(super) async fn tcp<IO: Duplex>(&self, mut io: IO, caller: SocketAddr) {
        let resolved = match self.resolve().await {
            Ok(resolved) => resolved,
            Err(error) => {
                io.reset();
                let handles = match self.nowhere() {
                    Some(path) => Arc::clone(path.connections()),
                    None => Arc::new(ConnectionHandles::detached()),
                };
                let report = ConnectionReport::open(self.access(caller), handles);
                return report.fail(Outcome::Failed, &error);
            }
        };
        let mut access = self.access(caller);
        access.source = Some(resolved.own.clone());
        let handles = Arc::clone(resolved.destination.metrics.nowhere.connections());
        let tracer = &resolved.destination.pool.dial().tracer;
        let (span, _) = tracer.begin(Parent::None, Kind::Client, "connection");
        let mut report = ConnectionReport::open(access, handles).traced(span);
        match carry(&mut io, &resolved, &mut report).await {
            Ok(()) => report.end(Outcome::Ok),
            Err(TcpError::Relay(error)) => report.fail(Outcome::Reset, &error),
            Err(error) => {
                io.reset();
                report.fail(Outcome::Failed, &error);
            }
        }
    }
}

async fn carry<IO: Duplex>(
    io: &mut IO,
    resolved: &Resolved,
    report: &mut ConnectionReport,
) -> Result<(), TcpError> {
    let (mut upstream, pick) = connect(resolved, report.span()).await?;
    let endpoint = pick.endpoint();
    let path = resolved.destination.path(endpoint);
    report.measure(Arc::clone(path.connections()));
    report.access.cluster = Some(endpoint.cluster.clone());
    report.access.locality = Some(endpoint.locality.clone());
    report.access.endpoint = Some(endpoint.id.clone());
    report.access.destination = Some(upstream.peer().clone());
    report.access.why = Some(pick.reason().to_string());
    let counters = report.counters();
    // The pick counts the connection as load until its end.
    relay(io, &mut upstream, RelayLimits::default(), &counters).await?;
    Ok(())
}

/// Tries endpoints until one takes the connection; nothing has been sent to any before.
async fn connect(
    resolved: &Resolved,
    span: Option<SpanContext>,
) -> Result<(Connected, Pick), CallError> {
    let destination = &resolved.destination;
    let mut attempts = Attempts::new(true);
    loop {
        let pick = attempts.pick(destination).await?;
        let began = Instant::now();
        let remote = Remote::from(&**pick.endpoint());
        match destination
            .pool
            .dial()
            .connect(&remote, InnerAlpn::Tcp, span)
            .await
        {
            Ok(connected) => {
                pick.succeeded(Instant::now(), began.elapsed());
                return Ok((connected, pick));
            }
            Err(error) => attempts.failed(error.into(), &pick, destination)?,
        }
    }
}

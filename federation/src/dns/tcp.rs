//! Questions and answers on connections (RFC 7766), for what is too large for a packet.

use std::{io, net::IpAddr, time::Duration};

use linkspan_runtime::{
    places::{Place, Places},
    stop::Stop,
    telemetry::DnsHandles,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};
use tokio_util::task::TaskTracker;

use super::{
    Zones,
    message::{Transport, answer},
};

/// Connections in all, and of one source: resolvers hold one or two.
const MAX_CONNECTIONS: usize = 256;
const MAX_PER_SOURCE: usize = 32;
/// How long a connection may wait for its next question, take to ask it, or to take the answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Questions of one connection; then it is closed, and another one may be made.
const MAX_QUESTIONS: usize = 10_000;
/// Largest question: as for UDP.
const MAX_QUESTION: usize = 4_096;
/// Pause after an error of `accept` itself (no descriptors left), so that it does not spin.
const PAUSE: Duration = Duration::from_millis(50);

/// Answers until `stop` drains.
pub(super) async fn serve(listener: TcpListener, zones: Zones, metrics: DnsHandles, stop: Stop) {
    let places = Places::new(MAX_CONNECTIONS, MAX_PER_SOURCE);
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = stop.draining() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((socket, source)) => match places.take(&source.ip().to_canonical()) {
                Ok(place) => {
                    let (zones, metrics, stop) = (zones.clone(), metrics.clone(), stop.clone());
                    connections.spawn(async move {
                        tokio::select! {
                            () = stop.draining() => {}
                            _ = converse(socket, place, &zones, &metrics) => {}
                        }
                    });
                }
                Err(_) => metrics.limited.inc(),
            },
            Err(error) => {
                tracing::debug!(%error, "cannot accept connections to DNS; trying again");
                sleep(PAUSE).await;
            }
        }
    }
    connections.close();
    connections.wait().await;
}

/// One question after the other, until there are no more.
async fn converse(
    mut socket: TcpStream,
    _place: Place<IpAddr>,
    zones: &Zones,
    metrics: &DnsHandles,
) -> io::Result<()> {
    for _ in 0..MAX_QUESTIONS {
        let question = timeout(PATIENCE, question(&mut socket)).await??;
        let zone = zones.borrow().clone();
        // What is no question ends the connection.
        let Some(reply) = answer(&question, zone.as_deref(), Transport::Tcp) else {
            metrics.ignored.inc();
            return Ok(());
        };
        let mut framed = Vec::with_capacity(2 + reply.bytes.len());
        framed.extend(
            u16::try_from(reply.bytes.len())
                .unwrap_or(u16::MAX)
                .to_be_bytes(),
        );
        framed.extend(reply.bytes);
        timeout(PATIENCE, socket.write_all(&framed)).await??;
        metrics.answered(reply.code.low()).inc();
    }
    Ok(())
}

async fn question(socket: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = usize::from(socket.read_u16().await?);
    if length > MAX_QUESTION {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut question = vec![0; length];
    socket.read_exact(&mut question).await?;
    Ok(question)
}

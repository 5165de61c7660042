//! Questions and answers in packets.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use linkspan_runtime::{stop::Stop, telemetry::DnsHandles};
use tokio::{net::UdpSocket, time::sleep};

use super::{
    Zones,
    limit::Limit,
    message::{Transport, answer, ask_by_tcp},
};

/// Largest question: with its longest name and all options some 600 bytes; what is cut is malformed.
const MAX_QUESTION: usize = 4_096;
/// Pause after an error of the socket itself, so that it does not spin.
const PAUSE: Duration = Duration::from_millis(50);

/// Answers until `stop` drains.
pub(super) async fn serve(
    socket: UdpSocket,
    zones: Zones,
    metrics: DnsHandles,
    mut limit: Limit,
    stop: Stop,
) {
    let mut buffer = vec![0; MAX_QUESTION];
    let mut failing = false;
    loop {
        let received = tokio::select! {
            () = stop.draining() => return,
            received = socket.recv_from(&mut buffer) => received,
        };
        match received {
            Ok((length, source)) => {
                failing = false;
                reply(
                    &socket,
                    (&buffer[..length], source),
                    &zones,
                    &mut limit,
                    &metrics,
                );
            }
            // Linux tells here, too, that an earlier answer found nobody.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {}
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(%error, "questions to DNS cannot be received; trying again");
                }
                sleep(PAUSE).await;
            }
        }
    }
}

/// At once or not at all: who did not get an answer asks again.
fn reply(
    socket: &UdpSocket,
    (question, source): (&[u8], SocketAddr),
    zones: &Zones,
    limit: &mut Limit,
    metrics: &DnsHandles,
) {
    let reply = match limit.admit(source.ip(), Instant::now()) {
        true => {
            let zone = zones.borrow().clone();
            answer(question, zone.as_deref(), Transport::Udp)
        }
        false => {
            metrics.limited.inc();
            ask_by_tcp(question)
        }
    };
    let Some(reply) = reply else {
        return metrics.ignored.inc();
    };
    match socket.try_send_to(&reply.bytes, source) {
        Ok(_) => metrics.answered(reply.code.low()).inc(),
        Err(_) => metrics.unsent.inc(),
    }
}

//! DNS for `clusterset.local`, to which the cluster's DNS forwards where it does not know that zone
//! itself. It answers for this zone alone and asks nobody: what else is asked for is refused.
//!
//! ```text
//! UDP, TCP ─► message (wire format, one function) ─► Zone of the newest plan ─► answer
//! ```
//! Anybody who reaches the port may ask, so all is bounded: answers over UDP to what fits into one
//! packet, and how many each source gets ([`limit`]), so that nobody is flooded in another's name;
//! connections in number and in time.

mod limit;
mod message;
mod tcp;
#[cfg(test)]
mod tests;
mod udp;

use std::{io, net::SocketAddr, sync::Arc};

use limit::Limit;
use linkspan_core::dns::Zone;
use linkspan_runtime::{stop::Stop, telemetry::DnsMetrics};
use tokio::{
    net::{TcpListener, UdpSocket},
    sync::watch,
};

/// The newest zone; `None` until the first plan.
pub(crate) type Newest = Option<Arc<Zone>>;
type Zones = watch::Receiver<Newest>;

/// Tries to find a port that is free for both where any will do.
const TRIES: usize = 16;

/// The sockets of one address, for UDP and TCP.
pub(crate) struct Sockets {
    pub(crate) address: SocketAddr,
    udp: UdpSocket,
    tcp: TcpListener,
}

impl Sockets {
    /// Binds both to one port.
    pub(crate) async fn bind(address: SocketAddr) -> io::Result<Self> {
        let mut tries = if address.port() == 0 { TRIES } else { 1 };
        loop {
            let tcp = TcpListener::bind(address).await?;
            let address = tcp.local_addr()?;
            tries -= 1;
            match UdpSocket::bind(address).await {
                Ok(udp) => return Ok(Self { address, udp, tcp }),
                Err(error) if tries == 0 => return Err(error),
                // That port is somebody's for UDP.
                Err(_) => {}
            }
        }
    }

    /// Answers until `stop` drains.
    pub(crate) async fn serve(self, zones: Zones, metrics: DnsMetrics, stop: Stop) {
        tokio::join!(
            udp::serve(
                self.udp,
                zones.clone(),
                metrics.udp,
                Limit::default(),
                stop.clone()
            ),
            tcp::serve(self.tcp, zones, metrics.tcp, stop),
        );
    }
}

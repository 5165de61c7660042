//! Connections to the application, also when many are wanted at once.
//!
//! An application has a queue of connections that it has not yet accepted, of 128 places in many.
//! When all traffic of a lost endpoint arrives here within a moment, that queue overflows: the
//! kernel drops our SYN, and would send the next one only after a second. So we ask again ourselves.

use std::{io, net::SocketAddr, time::Duration};

use crate::connect::tcp;
use tokio::{net::TcpStream, time::Instant};

/// How long the application may take to accept a connection; it is on the same machine.
const CONNECT: Duration = Duration::from_secs(1);
/// After about this long the SYN was dropped: on the same machine, the answer takes microseconds,
/// and is the kernel's own, however busy the application is.
const ASK_AGAIN: Duration = Duration::from_millis(50);

/// Longest time for an application elsewhere in the cluster: for two lost SYNs.
const CONNECT_AFAR: Duration = Duration::from_secs(4);

/// How far away the application is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Distance {
    /// On this machine.
    Machine,
    /// Somewhere in this cluster, where nothing tells a dropped SYN from a long way.
    Cluster,
}

impl Distance {
    /// Connects to the application.
    pub(super) async fn connect(self, app: SocketAddr) -> io::Result<TcpStream> {
        match self {
            Self::Machine => connect(app).await,
            Self::Cluster => tcp::connect(app, CONNECT_AFAR).await,
        }
    }
}

async fn connect(app: SocketAddr) -> io::Result<TcpStream> {
    let deadline = Instant::now() + CONNECT;
    loop {
        // Spread, so that those who were turned away do not come back together.
        let patience = ASK_AGAIN.mul_f64(0.5 + rand::random::<f64>());
        let asked = tcp::connect(app, patience).await;
        let dropped = matches!(&asked, Err(error) if error.kind() == io::ErrorKind::TimedOut);
        if !dropped || Instant::now() >= deadline {
            return asked;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpSocket;

    use super::*;

    /// A listener whose queue is full, and the connections that fill it.
    async fn full() -> (tokio::net::TcpListener, SocketAddr, Vec<TcpStream>) {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind(([127, 0, 0, 1], 0).into()).expect("a port");
        let app = socket.listen(1).expect("listening");
        let address = app.local_addr().expect("an address");
        let mut queued = Vec::new();
        while let Ok(one) = tcp::connect(address, ASK_AGAIN).await {
            queued.push(one);
        }
        (app, address, queued)
    }

    #[tokio::test]
    async fn gets_in_as_soon_as_there_is_room() {
        let (app, address, _queued) = full().await;
        // Turned away at least once; the kernel alone would come back after a whole second.
        let mut connecting = Box::pin(connect(address));
        assert!(
            tokio::time::timeout(ASK_AGAIN * 3, connecting.as_mut())
                .await
                .is_err()
        );
        let accepting = async {
            loop {
                drop(app.accept().await);
            }
        };
        let connected = tokio::select! {
            connected = connecting => connected,
            () = accepting => unreachable!("accepts for ever"),
        };
        connected.expect("connected within a second");
    }

    #[tokio::test]
    async fn an_application_that_accepts_nothing_is_given_up() {
        let (_app, address, _queued) = full().await;
        let error = connect(address).await.expect_err("no room");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_refusal_is_final() {
        let (app, address, _queued) = full().await;
        drop(app);
        let error = connect(address).await.expect_err("nobody there");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }
}

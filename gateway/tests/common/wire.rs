//! A UDP wire in front of a gateway, whose bytes can be swallowed.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::net::UdpSocket;
use tokio::task::JoinSet;

/// Forwards datagrams to one address, each caller from a socket of its own.
pub(crate) struct Wire {
    pub(crate) address: SocketAddr,
    cut: Arc<AtomicBool>,
    _task: JoinSet<()>,
}

impl Wire {
    pub(crate) async fn to(target: SocketAddr) -> Self {
        let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let address = socket.local_addr().unwrap();
        let cut = Arc::new(AtomicBool::new(false));
        let mut task = JoinSet::new();
        task.spawn(forward(socket, target, cut.clone()));
        Self {
            address,
            cut,
            _task: task,
        }
    }

    /// Swallows everything in both directions, or no longer.
    pub(crate) fn cut(&self, cut: bool) {
        self.cut.store(cut, Ordering::SeqCst);
    }
}

async fn forward(socket: Arc<UdpSocket>, target: SocketAddr, cut: Arc<AtomicBool>) {
    let mut callers: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
    let mut backs = JoinSet::new();
    let mut buffer = vec![0; 65_536];
    loop {
        let Ok((count, from)) = socket.recv_from(&mut buffer).await else {
            continue;
        };
        let own = match callers.entry(from) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => {
                let own = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
                own.connect(target).await.unwrap();
                backs.spawn(back(own.clone(), socket.clone(), from, cut.clone()));
                new.insert(own)
            }
        };
        if !cut.load(Ordering::SeqCst) {
            let _ = own.send(&buffer[..count]).await;
        }
    }
}

async fn back(own: Arc<UdpSocket>, socket: Arc<UdpSocket>, to: SocketAddr, cut: Arc<AtomicBool>) {
    let mut buffer = vec![0; 65_536];
    loop {
        // Errors tell of ports that were closed for a moment; the wire does not care.
        let Ok(count) = own.recv(&mut buffer).await else {
            continue;
        };
        if !cut.load(Ordering::SeqCst) {
            let _ = socket.send_to(&buffer[..count], to).await;
        }
    }
}

//! Having a gateway of ours dial a peer that is not linked yet, and come back with the stream.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use linkspan_api::v1;
use linkspan_core::Address;
use tokio::{
    net::TcpStream,
    sync::{broadcast, oneshot},
    time::timeout,
};
use tokio_rustls::server::TlsStream;

use crate::convert::wire_address;

/// Orders that a gateway's session has not looked at yet.
const ORDERS: usize = 16;
/// For a gateway to dial all addresses, one after the other, and come back.
const PATIENCE: Duration = Duration::from_secs(8);

/// The connection on which a gateway came back; after what it says the peer's bytes follow.
pub(crate) type Back = TlsStream<TcpStream>;

/// One gateway is to dial.
#[derive(Clone, Debug)]
pub(crate) struct Order {
    pub(crate) replica: String,
    pub(crate) dial: v1::JoinDial,
}

/// Orders out, connections back.
pub(crate) struct Dials {
    orders: broadcast::Sender<Arc<Order>>,
    waiting: Mutex<HashMap<u64, oneshot::Sender<(v1::JoinDialled, Back)>>>,
}

impl Default for Dials {
    fn default() -> Self {
        Self {
            orders: broadcast::Sender::new(ORDERS),
            waiting: Mutex::default(),
        }
    }
}

impl Dials {
    /// What gateways are to dial, for their sessions.
    pub(crate) fn orders(&self) -> broadcast::Receiver<Arc<Order>> {
        self.orders.subscribe()
    }

    /// Has `replica` dial; `None` if it does not come back in time.
    pub(crate) async fn dial(
        &self,
        replica: &str,
        addresses: &[Address],
        allow_loopback: bool,
    ) -> Option<(v1::JoinDialled, Back)> {
        let id = rand::random();
        let (sender, receiver) = oneshot::channel();
        self.lock().insert(id, sender);
        let _forgotten = Forget { dials: self, id };
        let order = Order {
            replica: replica.to_owned(),
            dial: v1::JoinDial {
                id,
                addresses: addresses.iter().map(wire_address).collect(),
                allow_loopback,
            },
        };
        self.orders.send(Arc::new(order)).ok()?;
        timeout(PATIENCE, receiver).await.ok()?.ok()
    }

    /// A gateway has come back.
    pub(crate) fn deliver(&self, dialled: v1::JoinDialled, back: Back) {
        if let Some(waiting) = self.lock().remove(&dialled.id) {
            let _ = waiting.send((dialled, back));
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<(v1::JoinDialled, Back)>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes back an order, also when whoever waited for it has gone.
struct Forget<'a> {
    dials: &'a Dials,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.dials.lock().remove(&self.id);
    }
}

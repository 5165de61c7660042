//! Our federation wants to join: dial, connect back to it, and carry.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use linkspan_api::v1;
use linkspan_dataplane::connect::tcp;
use linkspan_dataplane::discover::TunnelAddress;
use linkspan_dataplane::frame;
use linkspan_dataplane::identity::FederationClient;
use linkspan_runtime::BoxError;
use linkspan_runtime::process::chain;
use linkspan_runtime::stop::Stop;
use linkspan_trust::{MaterialReader, TrustPolicy, carrier_config};
use quinn::crypto::rustls::QuicClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::{TcpStream, lookup_host};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tracing::{debug, warn};

use super::{ALPN, LIFE, relay};
use crate::limits::Timers;
use crate::tunnel::addresses::{MOST as MOST_ADDRESSES, Resolver};
use crate::tunnel::close::{self, CloseCode};
use crate::tunnel::endpoint;

/// The application protocol with which we come back to our federation.
const BACK_ALPN: &[u8] = b"linkspan-join-back/1";
const FEDERATION_NAME: &str = "federation.linkspan.internal";
/// Joins under way at a time; an operator does them one by one.
const MOST: usize = 4;
/// Each further address is tried so much later than the one before.
const STAGGER: Duration = Duration::from_millis(250);

/// The dialling side.
#[derive(Clone, Debug)]
pub(crate) struct Dial {
    pub(crate) federation: FederationClient,
    pub(crate) material: MaterialReader,
    pub(crate) timers: Timers,
}

impl Dial {
    /// Does what federation asks for until the stop drains; joins under way end with it.
    pub(crate) async fn run(self, mut asked: mpsc::Receiver<v1::JoinDial>, stop: Stop) {
        let permits = Arc::new(Semaphore::new(MOST));
        let mut joins = JoinSet::new();
        loop {
            // Cancel-safe: a channel and a set of tasks.
            tokio::select! {
                () = stop.draining() => return,
                Some(_) = joins.join_next() => {}
                dial = asked.recv() => {
                    let Some(dial) = dial else { return stop.draining().await };
                    let Ok(permit) = permits.clone().try_acquire_owned() else {
                        warn!(id = dial.id, "too many joins under way");
                        continue;
                    };
                    let this = self.clone();
                    joins.spawn(async move {
                        this.join(dial).await;
                        drop(permit);
                    });
                }
            }
        }
    }

    async fn join(&self, dial: v1::JoinDial) {
        let id = dial.id;
        match timeout(LIFE, self.carry(dial)).await {
            Ok(Ok(())) => debug!(id, "carried a join"),
            Ok(Err(error)) => debug!(id, error = chain(error.as_ref()), "a join broke off"),
            Err(_) => debug!(id, "a join took too long"),
        }
    }

    async fn carry(&self, dial: v1::JoinDial) -> Result<(), BoxError> {
        // First, since whoever carries the join soon wants to hear something.
        let mut back = self.back().await?;
        let (reached, tries) = self.reach(&dial).await;
        let dialled = v1::JoinDialled {
            id: dial.id,
            connected: reached.is_some(),
            tries,
        };
        frame::write_message(&mut back, &dialled).await?;
        if let Some((quic, _endpoint)) = reached {
            let (send, recv) = quic.open_bi().await?;
            let carried = relay(send, recv, back).await;
            close::close(&quic, CloseCode::Drained);
            carried?;
        }
        Ok(())
    }

    /// The first address that answers, and what is wrong with the others.
    async fn reach(
        &self,
        dial: &v1::JoinDial,
    ) -> (
        Option<(quinn::Connection, quinn::Endpoint)>,
        Vec<v1::JoinTry>,
    ) {
        let mut tries = Vec::new();
        let mut dialling = JoinSet::new();
        for (turn, address) in self.resolve(dial, &mut tries).await.into_iter().enumerate() {
            let (limit, pause) = (self.timers.handshake, STAGGER * turn as u32);
            dialling.spawn(async move {
                sleep(pause).await;
                (address, connect(address, limit).await)
            });
        }
        while let Some(ended) = dialling.join_next().await {
            match ended {
                Ok((_, Ok(reached))) => return (Some(reached), tries),
                Ok((address, Err(error))) => tries.push(v1::JoinTry {
                    busy: error.is::<Busy>(),
                    ..failed(address, chain(error.as_ref()))
                }),
                Err(_) => {}
            }
        }
        (None, tries)
    }

    async fn resolve(&self, dial: &v1::JoinDial, tries: &mut Vec<v1::JoinTry>) -> Vec<SocketAddr> {
        let declared = dial.addresses.iter().take(MOST_ADDRESSES);
        let declared: Vec<_> = declared
            .filter_map(|of| {
                Some(TunnelAddress {
                    host: of.host.clone(),
                    port: u16::try_from(of.port).ok()?,
                })
            })
            .collect();
        let mut resolver = Resolver::default();
        let resolved = resolver.resolve(&declared, dial.allow_loopback).await;
        for address in &resolved.refused {
            let why = "refused: it leads back to this machine; allow it with --allow-loopback";
            tries.push(failed(address, why));
        }
        if resolved.addresses.is_empty() && resolved.refused.is_empty() {
            for of in &declared {
                let name = format!("{}:{}", of.host, of.port);
                tries.push(failed(name, "the name cannot be resolved"));
            }
        }
        resolved.addresses
    }

    async fn back(&self) -> Result<TlsStream<TcpStream>, BoxError> {
        let limit = self.timers.connect;
        let address = &self.federation.address;
        let mut found = timeout(limit, lookup_host(address)).await??;
        let none = || io::Error::from(io::ErrorKind::NotFound);
        let address = found.next().ok_or_else(none)?;
        let tcp = tcp::connect(address, limit).await?;
        let federation = TrustPolicy::only(self.federation.identity());
        let config = self
            .material
            .current()
            .client_config(federation, &[BACK_ALPN])?;
        let name = ServerName::try_from(FEDERATION_NAME)?;
        let shaken = TlsConnector::from(Arc::new(config)).connect(name, tcp);
        Ok(timeout(self.timers.handshake, shaken).await??)
    }
}

/// Without any certificate of ours, and whoever answers: federation checks inside.
async fn connect(
    address: SocketAddr,
    limit: Duration,
) -> Result<(quinn::Connection, quinn::Endpoint), BoxError> {
    let endpoint = endpoint::dialling(address)?;
    let tls = QuicClientConfig::try_from(carrier_config(&[ALPN])?)?;
    let mut config = quinn::ClientConfig::new(Arc::new(tls));
    config.transport_config(endpoint::joining());
    let connecting = endpoint.connect_with(config, address, endpoint::SERVER_NAME)?;
    let quic = timeout(limit, connecting)
        .await
        .map_err(|_| format!("no answer within {limit:?}"))??;
    match timeout(limit, quic.accept_uni()).await {
        Ok(Ok(_)) => Ok((quic, endpoint)),
        Ok(Err(error)) if close::code_of(&error) == Some(CloseCode::Limit) => Err(Busy.into()),
        Ok(Err(error)) => Err(error.into()),
        Err(_) => Err(format!("it answers, but did not take the join within {limit:?}").into()),
    }
}

/// It was reached, and has no room now.
#[derive(Debug, thiserror::Error)]
#[error("it answers, but carries as many joins as it may, in all or from this address")]
struct Busy;

fn failed(address: impl ToString, error: impl ToString) -> v1::JoinTry {
    v1::JoinTry {
        address: address.to_string(),
        error: error.to_string(),
        busy: false,
    }
}

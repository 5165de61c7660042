//! The inbound side of inner mutual TLS: who calls, what it wants, and what is spoken.

use std::{
    io,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use linkspan_trust::{
    CertificateError, ClientPolicy, MaterialError, MaterialReader, SpiffeId, spiffe_id_of,
};
use rustls::ServerConfig;
use tokio::{sync::Semaphore, time::timeout};
use tokio_rustls::{LazyConfigAcceptor, StartHandshake, server};

use super::{alpn, mtls::Alpn};
use crate::{
    forward::bytes::Duplex,
    target::{TargetError, TargetName},
};

/// Bounds of accepting.
#[derive(Clone, Copy, Debug)]
pub struct AcceptorLimits {
    /// Handshakes at a time that have their turn; each costs up to a millisecond of a core.
    /// Default 256.
    pub handshakes: usize,
    /// How long a handshake keeps its turn. Default 100 ms: what we compute, and a round trip within
    /// a cluster, several times over. Who takes longer gives the turn to the next.
    pub turn: Duration,
    /// Handshakes at a time that have had their turn, and wait for what the caller has still to
    /// send; more are refused. Each costs its buffers. Default 4,096.
    pub slow: usize,
    /// Connections at a time that have not said anything yet, or only part of a ClientHello; each
    /// costs its buffers. Default 4,096.
    pub silent: usize,
    /// How long a ClientHello may take to arrive, in which no handshake has begun. Default 3 s: it
    /// follows the connection at once, or after one lost packet.
    pub first_bytes: Duration,
    /// Longest handshake, waiting for its turn and for the ClientHello included. Default 5 s.
    pub timeout: Duration,
}

impl Default for AcceptorLimits {
    fn default() -> Self {
        Self {
            handshakes: 256,
            turn: Duration::from_millis(100),
            slow: 4096,
            silent: 4096,
            first_bytes: Duration::from_secs(3),
            timeout: Duration::from_secs(5),
        }
    }
}

/// Why an inbound connection was refused.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// Our own certificate or bundles do not make a TLS configuration.
    #[error("own TLS material cannot be used")]
    Material(#[from] MaterialError),
    /// Too slow, or too many at once.
    #[error("no handshake within {0:?}")]
    Timeout(Duration),
    /// Nothing came, or not a whole ClientHello.
    #[error("no ClientHello within {0:?}")]
    Silent(Duration),
    /// TLS failed: unknown identity, no common protocol, cut connection.
    #[error("TLS handshake failed")]
    Handshake(#[source] io::Error),
    /// The caller proved no identity.
    #[error("caller's certificate")]
    Identity(#[from] CertificateError),
    /// The caller did not say where it wants to go.
    #[error("caller named no target")]
    NoTarget,
    /// What it named is no target.
    #[error("caller's target")]
    Target(#[from] TargetError),
    /// No protocol was agreed on.
    #[error("caller offered no protocol that is spoken here")]
    Alpn,
}

/// Accepts inner connections.
#[derive(Debug)]
pub struct Acceptor {
    material: MaterialReader,
    alpn: Vec<&'static [u8]>,
    limits: AcceptorLimits,
    permits: Semaphore,
    slow: Semaphore,
    silent: Semaphore,
    admission: Mutex<Admission>,
}

/// Whom to admit, and the configuration made of it.
#[derive(Debug)]
struct Admission {
    policy: ClientPolicy,
    config: Option<(u64, Arc<ServerConfig>)>,
}

/// An inner connection from a caller whose identity was proved.
#[derive(Debug)]
pub struct Accepted<IO> {
    /// The connection.
    pub io: server::TlsStream<IO>,
    /// The caller.
    pub peer: SpiffeId,
    /// Where it wants to go.
    pub target: TargetName,
    /// What is spoken.
    pub alpn: Alpn,
}

impl Acceptor {
    /// Speaks what sidecars speak: `h2`, `http/1.1`, `linkspan-tcp/1`, preferred in this order.
    /// `policy` should require a certificate, as callers without one are refused in any case.
    #[must_use]
    pub fn new(material: MaterialReader, policy: ClientPolicy, limits: AcceptorLimits) -> Self {
        Self::with_alpn(
            material,
            policy,
            &[alpn::H2, alpn::HTTP_1_1, alpn::TCP],
            limits,
        )
    }

    /// Speaks these protocols only, preferred first; those that are no [`Alpn`] are never agreed on.
    #[must_use]
    pub fn with_alpn(
        material: MaterialReader,
        policy: ClientPolicy,
        alpn: &[&'static [u8]],
        limits: AcceptorLimits,
    ) -> Self {
        let permits = Semaphore::new(limits.handshakes);
        let slow = Semaphore::new(limits.slow);
        let silent = Semaphore::new(limits.silent);
        let admission = Mutex::new(Admission {
            policy,
            config: None,
        });
        Self {
            material,
            alpn: alpn.to_vec(),
            limits,
            permits,
            slow,
            silent,
            admission,
        }
    }

    /// Changes whom later handshakes admit.
    pub fn set_policy(&self, policy: ClientPolicy) {
        let mut admission = self
            .admission
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *admission = Admission {
            policy,
            config: None,
        };
    }

    /// Takes part in the handshake of one connection.
    ///
    /// # Errors
    /// See [`AcceptError`]; the connection is of no use afterwards.
    pub async fn accept<IO: Duplex>(&self, io: IO) -> Result<Accepted<IO>, AcceptError> {
        let limit = self.limits.timeout;
        let handshake = async {
            // Whoever says nothing takes nobody's turn.
            let begun = self.first_bytes(io).await?;
            self.shake(begun).await
        };
        let io = timeout(limit, handshake)
            .await
            .map_err(|_| AcceptError::Timeout(limit))??;
        let session = io.get_ref().1;
        let peer = spiffe_id_of(session.peer_certificates().unwrap_or_default())?;
        let target = session
            .server_name()
            .ok_or(AcceptError::NoTarget)?
            .parse()?;
        let alpn = session
            .alpn_protocol()
            .and_then(Alpn::from_name)
            .ok_or(AcceptError::Alpn)?;
        Ok(Accepted {
            io,
            peer,
            target,
            alpn,
        })
    }

    /// Waits for the ClientHello, which costs no cryptography.
    async fn first_bytes<IO: Duplex>(&self, io: IO) -> Result<StartHandshake<IO>, AcceptError> {
        let limit = self.limits.first_bytes;
        let _place = self.silent.acquire().await;
        let hello = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), io);
        let begun = timeout(limit, hello).await;
        begun
            .map_err(|_| AcceptError::Silent(limit))?
            .map_err(AcceptError::Handshake)
    }

    /// Does the rest, for as long as it is the caller's turn, and then beside the others: whoever
    /// begins a handshake and says no more keeps nobody out.
    async fn shake<IO: Duplex>(
        &self,
        begun: StartHandshake<IO>,
    ) -> Result<server::TlsStream<IO>, AcceptError> {
        let turn = self.permits.acquire().await;
        let mut shaking = pin!(begun.into_stream(self.config()?));
        let limit = self.limits.turn;
        let done = match timeout(limit, shaking.as_mut()).await {
            Ok(done) => done,
            Err(_) => {
                let _place = (self.slow.try_acquire()).map_err(|_| AcceptError::Timeout(limit))?;
                drop(turn);
                shaking.await
            }
        };
        done.map_err(AcceptError::Handshake)
    }

    fn config(&self) -> Result<Arc<ServerConfig>, MaterialError> {
        let material = self.material.current();
        let mut admission = self
            .admission
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match &admission.config {
            Some((generation, config)) if *generation == material.generation() => {
                Ok(config.clone())
            }
            _ => {
                let config = material.server_config(admission.policy.clone(), &self.alpn)?;
                let config = Arc::new(config);
                admission.config = Some((material.generation(), config.clone()));
                Ok(config)
            }
        }
    }
}

//! The outer TLS with which our own federation proves itself before it may use reserved targets.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use linkspan_trust::{
    ClientPolicy, MaterialError, MaterialReader, SpiffeId, TlsMaterial, TrustPolicy,
};
use rustls::ServerConfig;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// The application protocol of the outer TLS.
pub(super) const ALPN: &[u8] = b"linkspan-control/1";
/// Handshakes in progress: each costs CPU, and anybody who reaches the port can begin one. Our
/// federation needs one for each linked cluster, now and then.
const MAX_HANDSHAKES: usize = 64;

/// Why there is no outer TLS.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlError {
    #[error("our own TLS material is unusable")]
    Material(#[from] MaterialError),
    #[error("the TLS handshake with our federation failed")]
    Handshake(#[from] std::io::Error),
    #[error("the TLS handshake took longer than {0:?}")]
    Late(Duration),
    #[error("{MAX_HANDSHAKES} TLS handshakes were in progress for longer than {0:?}")]
    Busy(Duration),
    #[error("the caller speaks TLS but not the protocol of federation")]
    Protocol,
}

/// Accepts TLS from our own federation and from nobody else.
pub(super) struct Control {
    federation: SpiffeId,
    material: MaterialReader,
    /// Made once for each generation of the material.
    config: Mutex<Option<(u64, Arc<ServerConfig>)>>,
    handshakes: Semaphore,
}

impl Control {
    pub(super) fn new(federation: SpiffeId, material: MaterialReader) -> Self {
        Self {
            federation,
            material,
            config: Mutex::new(None),
            handshakes: Semaphore::new(MAX_HANDSHAKES),
        }
    }

    /// One handshake; waiting for its turn and shaking hands may take `limit` each.
    pub(super) async fn accept(
        &self,
        tcp: TcpStream,
        limit: Duration,
    ) -> Result<TlsStream<TcpStream>, ControlError> {
        let turn = timeout(limit, self.handshakes.acquire()).await;
        let _turn = turn.map_err(|_| ControlError::Busy(limit))?;
        let acceptor = TlsAcceptor::from(self.config()?);
        let tls = timeout(limit, acceptor.accept(tcp))
            .await
            .map_err(|_| ControlError::Late(limit))??;
        match tls.get_ref().1.alpn_protocol() {
            Some(ALPN) => Ok(tls),
            _ => Err(ControlError::Protocol),
        }
    }

    fn config(&self) -> Result<Arc<ServerConfig>, MaterialError> {
        let material = self.material.current();
        let mut kept = self.config.lock().unwrap_or_else(PoisonError::into_inner);
        match &*kept {
            Some((generation, config)) if *generation == material.generation() => {
                Ok(config.clone())
            }
            _ => {
                let config = Arc::new(self.make(&material)?);
                *kept = Some((material.generation(), config.clone()));
                Ok(config)
            }
        }
    }

    fn make(&self, material: &TlsMaterial) -> Result<ServerConfig, MaterialError> {
        let policy = TrustPolicy::Exactly([self.federation.clone()].into());
        material.server_config(ClientPolicy::Required(policy), &[ALPN])
    }
}

#[cfg(test)]
mod tests {
    use linkspan_trust::BundleSet;
    use linkspan_trust::testing::{Pki, trust_domain};
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(3);

    #[test]
    fn a_configuration_is_made_once_for_each_generation() {
        let pki = Pki::new(&["east.test"]);
        let own = SpiffeId::gateway(&trust_domain("east.test"));
        let (mut writer, material) = pki.material(&own);
        let control = Control::new(own, material.clone());
        let first = control.config().unwrap();
        assert!(Arc::ptr_eq(&first, &control.config().unwrap()));
        writer.set_bundles(BundleSet::new());
        assert!(!Arc::ptr_eq(&first, &control.config().unwrap()));
    }

    #[tokio::test]
    async fn those_who_say_nothing_hold_so_many_places_and_not_for_long() {
        tokio::time::pause();
        let pki = Pki::new(&["east.test"]);
        let own = SpiffeId::gateway(&trust_domain("east.test"));
        let (_writer, material) = pki.material(&own);
        let control = Arc::new(Control::new(own, material));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut silent = Vec::new();
        let mut accepting = tokio::task::JoinSet::new();
        for _ in 0..=MAX_HANDSHAKES {
            let (caller, called) = tokio::join!(TcpStream::connect(address), listener.accept());
            silent.push(caller.unwrap());
            let control = control.clone();
            let tcp = called.unwrap().0;
            accepting.spawn(async move { control.accept(tcp, LIMIT).await.err() });
        }
        // All have begun but the last, which waits for one of the others to end.
        tokio::task::yield_now().await;
        assert_eq!(control.handshakes.available_permits(), 0);
        let ends = accepting.join_all().await;
        let late = |end: &Option<ControlError>| matches!(end, Some(ControlError::Late(_)));
        assert!(ends.iter().filter(|end| late(end)).count() >= MAX_HANDSHAKES);
        assert_eq!(control.handshakes.available_permits(), MAX_HANDSHAKES);
        let mut byte = [0];
        assert_eq!(silent[0].read(&mut byte).await.unwrap(), 0);
    }
}

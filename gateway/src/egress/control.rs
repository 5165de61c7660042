//! The outer TLS with which our own federation proves itself before it may use reserved targets.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use linkspan_runtime::places::{self, Full, Places};
use linkspan_trust::{
    ClientPolicy, MaterialError, MaterialReader, SpiffeId, TlsMaterial, TrustPolicy,
};
use rustls::ServerConfig;
use rustls::server::Acceptor;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

/// The application protocol of the outer TLS.
pub(super) const ALPN: &[u8] = b"linkspan-control/1";
/// Handshakes in progress: each costs CPU, and anybody who reaches the port can begin one. Our
/// federation needs one for each linked cluster, now and then.
const MAX_HANDSHAKES: usize = 512;

/// Why there is no outer TLS.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlError {
    #[error("our own TLS material is unusable")]
    Material(#[from] MaterialError),
    #[error("the TLS handshake with our federation failed")]
    Handshake(#[from] std::io::Error),
    #[error("the TLS handshake took longer than {0:?}")]
    Late(Duration),
    #[error("too many TLS handshakes are in progress: {0}")]
    Busy(#[from] Full),
    #[error("the caller speaks TLS but not the protocol of federation")]
    Protocol,
}

/// Accepts TLS from our own federation and from nobody else.
pub(super) struct Control {
    federation: SpiffeId,
    material: MaterialReader,
    /// Made once for each generation of the material.
    config: Mutex<Option<(u64, Arc<ServerConfig>)>>,
    handshakes: Places<IpAddr>,
}

impl Control {
    pub(super) fn new(federation: SpiffeId, material: MaterialReader) -> Self {
        Self {
            federation,
            material,
            config: Mutex::new(None),
            handshakes: Places::halves(MAX_HANDSHAKES),
        }
    }

    /// One handshake; the caller's first words and all that follows may take `limit` each.
    ///
    /// Who says nothing, or speaks another protocol, takes no place among the handshakes.
    pub(super) async fn accept(
        &self,
        tcp: TcpStream,
        limit: Duration,
    ) -> Result<TlsStream<TcpStream>, ControlError> {
        let source = places::source(tcp.peer_addr()?.ip());
        let hello = LazyConfigAcceptor::new(Acceptor::default(), tcp);
        let start = timeout(limit, hello).await;
        let start = start.map_err(|_| ControlError::Late(limit))??;
        let offered = start.client_hello().alpn();
        if !offered.is_some_and(|mut offered| offered.any(|protocol| protocol == ALPN)) {
            return Err(ControlError::Protocol);
        }
        let _place = self.handshakes.take(&source)?;
        let tls = timeout(limit, start.into_stream(self.config()?)).await;
        let tls = tls.map_err(|_| ControlError::Late(limit))??;
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

    /// A caller and its connection as we accept it.
    async fn caller(listener: &TcpListener) -> (TcpStream, TcpStream) {
        let address = listener.local_addr().unwrap();
        let (caller, called) = tokio::join!(TcpStream::connect(address), listener.accept());
        (caller.unwrap(), called.unwrap().0)
    }

    #[tokio::test]
    async fn those_who_say_nothing_take_no_place_and_do_not_stay() {
        let pki = Pki::new(&["east.test"]);
        let own = SpiffeId::federation(&trust_domain("east.test"));
        let (_writer, material) = pki.material(&own);
        let control = Control {
            handshakes: Places::halves(2),
            ..Control::new(own.clone(), material.clone())
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let short = Duration::from_millis(20);
        let mut late = tokio::task::JoinSet::new();
        let control = Arc::new(control);
        for _ in 0..8 {
            let (mut silent, called) = caller(&listener).await;
            let control = control.clone();
            late.spawn(async move {
                let end = control.accept(called, short).await.err();
                assert!(matches!(end, Some(ControlError::Late(_))), "{end:?}");
                assert_eq!(silent.read(&mut [0]).await.unwrap(), 0);
            });
        }
        // Meanwhile there is room for who has something to say.
        let (federation, called) = caller(&listener).await;
        let servers = TrustPolicy::Exactly([own].into());
        let config = material.current().client_config(servers, &[ALPN]).unwrap();
        let name = "gateway.linkspan.internal".try_into().unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let accepting = control.accept(called, LIMIT);
        let (connected, accepted) = tokio::join!(connector.connect(name, federation), accepting);
        connected.unwrap();
        accepted.unwrap();
        late.join_all().await;
    }
}

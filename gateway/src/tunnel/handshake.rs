//! From a QUIC handshake to a connection that belongs to a link: whose certificate is it, and do
//! the hellos agree?

use std::sync::Arc;
use std::time::Duration;

use linkspan_api::v1;
use linkspan_dataplane::frame::{self, FrameError};
use linkspan_routing::ClusterId;
use linkspan_trust::{SpiffeId, spiffe_id_of};
use quinn::{RecvStream, SendStream};
use rustls::pki_types::CertificateDer;
use tokio::sync::watch;
use tokio::time::timeout;

use super::close::CloseCode;
use super::hello::{BadHello, Hello, MAX_HELLO};
use super::plan::Purpose;

/// What every hello of ours says.
#[derive(Clone, Debug)]
pub(crate) struct Own {
    pub(crate) cluster: ClusterId,
    pub(crate) replica: Arc<str>,
    /// Ready replicas of our own gateway.
    pub(crate) ready: watch::Receiver<u32>,
}

impl Own {
    fn hello(&self, purpose: Purpose) -> v1::TunnelHello {
        let (cluster, replica) = (self.cluster.clone(), self.replica.clone());
        Hello {
            cluster,
            replica,
            ready: *self.ready.borrow(),
            purpose,
        }
        .message()
    }
}

/// Why a connection did not become one of a link. The connection is to be closed with
/// [`Refused::code`].
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    #[error("the caller showed no certificate")]
    NoCertificate,
    #[error("the certificate carries no SPIFFE ID")]
    BadCertificate(#[source] linkspan_trust::CertificateError),
    #[error("no hello within {0:?}")]
    Late(Duration),
    #[error("the control stream could not be opened")]
    Lost(#[from] quinn::ConnectionError),
    #[error("the control stream broke during the hellos")]
    Broken(#[from] FrameError),
    #[error("the hello is malformed")]
    BadHello(#[from] BadHello),
    #[error("the peer says that it is cluster `{said}`, but its identity is that of `{linked}`")]
    WrongCluster { said: ClusterId, linked: ClusterId },
    #[error("the peer answered for another purpose than was asked")]
    WrongPurpose,
}

impl Refused {
    /// What the peer is told.
    pub(crate) fn code(&self) -> CloseCode {
        match self {
            Self::NoCertificate => CloseCode::NoCertificate,
            Self::BadCertificate(_) => CloseCode::NotLinked,
            Self::Late(_) => CloseCode::HelloTimeout,
            Self::WrongCluster { .. } => CloseCode::WrongCluster,
            Self::Lost(_) => CloseCode::Gone,
            Self::Broken(_) | Self::BadHello(_) | Self::WrongPurpose => CloseCode::Protocol,
        }
    }
}

/// The control stream of a connection.
pub(crate) type ControlStream = (SendStream, RecvStream);

/// Whose certificate did the handshake prove?
pub(crate) fn identity(quic: &quinn::Connection) -> Result<SpiffeId, Refused> {
    let chain = quic.peer_identity().ok_or(Refused::NoCertificate)?;
    let chain = chain
        .downcast::<Vec<CertificateDer<'static>>>()
        .map_err(|_| Refused::NoCertificate)?;
    spiffe_id_of(&chain).map_err(Refused::BadCertificate)
}

/// The application protocol on which both sides agreed.
pub(crate) fn protocol(quic: &quinn::Connection) -> Option<Vec<u8>> {
    let data = quic.handshake_data()?;
    let data = data.downcast::<quinn::crypto::rustls::HandshakeData>();
    data.ok()?.protocol
}

/// The dialler's side: opens the control stream, speaks first, and hears who answers.
pub(crate) async fn dial(
    quic: &quinn::Connection,
    own: &Own,
    linked: &ClusterId,
    purpose: Purpose,
    limit: Duration,
) -> Result<(Hello, ControlStream), Refused> {
    let exchange = async {
        let (mut send, mut recv) = quic.open_bi().await?;
        frame::write_message(&mut send, &own.hello(purpose)).await?;
        let hello = read(&mut recv, linked).await?;
        if hello.purpose != purpose {
            return Err(Refused::WrongPurpose);
        }
        Ok((hello, (send, recv)))
    };
    timeout(limit, exchange)
        .await
        .map_err(|_| Refused::Late(limit))?
}

/// The accepting side: the first stream is the control stream.
pub(crate) async fn accept(
    quic: &quinn::Connection,
    own: &Own,
    linked: &ClusterId,
    limit: Duration,
) -> Result<(Hello, ControlStream), Refused> {
    let exchange = async {
        let (mut send, mut recv) = quic.accept_bi().await?;
        let hello = read(&mut recv, linked).await?;
        frame::write_message(&mut send, &own.hello(hello.purpose)).await?;
        Ok((hello, (send, recv)))
    };
    timeout(limit, exchange)
        .await
        .map_err(|_| Refused::Late(limit))?
}

async fn read(recv: &mut RecvStream, linked: &ClusterId) -> Result<Hello, Refused> {
    let message: v1::TunnelHello = frame::read_message(recv, MAX_HELLO).await?;
    let hello = Hello::parse(&message)?;
    if hello.cluster != *linked {
        return Err(Refused::WrongCluster {
            said: hello.cluster,
            linked: linked.clone(),
        });
    }
    Ok(hello)
}

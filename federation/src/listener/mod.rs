//! The one port of federation: who may open a connection, and who a caller is.
//!
//! A connection without a certificate is welcome, for first contact; one with a certificate
//! must prove an identity of the own trust domain or be exactly the federation of a linked
//! peer. What a caller may *do* is each service's own check, against [`Caller`].

mod accept;
mod shares;
mod tls;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    task::{Context, Poll, ready},
};

use linkspan_runtime::places::Place;
use linkspan_trust::SpiffeId;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::OwnedSemaphorePermit,
    time::Sleep,
};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Request, Status, transport::server::Connected};

use self::shares::Share;

pub(crate) use accept::accept;
pub(crate) use tls::{PortConfigs, follow_links};

use crate::sync::Metering;

/// Who is at the other end of a connection, as its handshake proved.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    /// `None` for a connection without a certificate.
    pub(crate) identity: Option<SpiffeId>,
    /// What the issuer of the certificate noted in it.
    pub(crate) note: Option<String>,
    pub(crate) remote: SocketAddr,
    /// Cancelled when the connection has ended.
    pub(crate) ended: CancellationToken,
}

impl Caller {
    /// The caller of a request; refused if it came without a connection of ours.
    pub(crate) fn of<T>(request: &Request<T>) -> Result<&Self, Status> {
        request
            .extensions()
            .get::<Self>()
            .ok_or_else(|| Status::internal("the connection has no caller"))
    }

    /// The identity that the certificate proved.
    pub(crate) fn authenticated(&self) -> Result<&SpiffeId, Status> {
        self.identity
            .as_ref()
            .ok_or_else(|| Status::unauthenticated("this service needs a client certificate"))
    }
}

/// An accepted, authenticated connection; counts against the limit until it is dropped.
pub(crate) struct Connection {
    stream: TlsStream<TcpStream>,
    /// A peer is read no faster than its quota.
    metering: Option<Metering>,
    caller: Caller,
    /// When the connection ends whatever it is doing; for those that proved nothing.
    end: Option<Pin<Box<Sleep>>>,
    _ended: DropGuard,
    _permits: Permits,
}

/// What a connection counts against.
struct Permits {
    _connection: OwnedSemaphorePermit,
    _anonymous: Option<Place<IpAddr>>,
    _share: Option<Share>,
}

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Some(end) = &mut this.end
            && end.as_mut().poll(context).is_ready()
        {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let Some(metering) = &mut this.metering else {
            return Pin::new(&mut this.stream).poll_read(context, buffer);
        };
        ready!(metering.poll_ready(context))?;
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(context, buffer))?;
        if metering.charge(buffer.filled().len() - before) {
            let identity = this.caller.identity.as_ref().map(SpiffeId::as_str);
            tracing::warn!(
                identity,
                "a peer has said more than its quota allows for too long; its connection ends"
            );
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

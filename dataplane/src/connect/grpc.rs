//! A gRPC channel to federation over our own TLS: the server is verified by its SPIFFE ID.

use std::{io, sync::Arc, time::Duration};

use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    net::{TcpStream, lookup_host},
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

use super::tcp;

/// Addresses of one host name that are tried, one after the other.
const MAX_ADDRESSES: usize = 8;
/// Time to look a name up, to connect to one address, and for the handshake, each.
const STEP: Duration = Duration::from_secs(2);
/// Everything together.
const CONNECT: Duration = Duration::from_secs(6);
/// A silent connection is probed this often and given up after as long again, so that a federation
/// that vanished without a word is noticed within a proxy's lease.
const KEEP_ALIVE: Duration = Duration::from_secs(3);
/// The name in the ClientHello and `:authority`; who answers is verified by identity, not by name.
const NAME: &str = "federation.linkspan.internal";

/// Connects to `address` (`host:port`) with this TLS configuration, which must offer `h2`.
/// The channel does not reconnect with newer material: make a new one instead.
///
/// # Errors
/// If nothing answers there, or something other than federation.
pub async fn channel(address: &str, tls: ClientConfig) -> Result<Channel, tonic::transport::Error> {
    let (address, tls) = (address.to_owned(), Arc::new(tls));
    let connector = service_fn(move |_: Uri| {
        let (address, tls) = (address.clone(), tls.clone());
        async move { dial(&address, tls).await.map(TokioIo::new) }
    });
    Endpoint::from_shared(format!("http://{NAME}"))?
        .connect_timeout(CONNECT)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true)
        .connect_with_connector(connector)
        .await
}

async fn dial(address: &str, tls: Arc<ClientConfig>) -> io::Result<TlsStream<TcpStream>> {
    let found = timeout(STEP, lookup_host(address))
        .await
        .map_err(|_| too_slow("name look-up"))??;
    let mut last = io::Error::new(
        io::ErrorKind::NotFound,
        format!("`{address}` has no address"),
    );
    for address in found.take(MAX_ADDRESSES) {
        match tcp::connect(address, STEP).await {
            Ok(tcp) => return handshake(tcp, tls).await,
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn handshake(tcp: TcpStream, tls: Arc<ClientConfig>) -> io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from(NAME).map_err(io::Error::other)?;
    let connecting = TlsConnector::from(tls).connect(name, tcp);
    let stream = timeout(STEP, connecting)
        .await
        .map_err(|_| too_slow("TLS handshake"))??;
    match stream.get_ref().1.alpn_protocol() {
        Some(super::alpn::H2) => Ok(stream),
        _ => Err(io::Error::other(
            "the server does not speak h2; is the address federation's?",
        )),
    }
}

fn too_slow(step: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::TimedOut,
        format!("{step} took longer than {STEP:?}"),
    )
}

//! A plain HTTP client, as somebody without a sidecar is.

use std::{net::SocketAddr, time::Duration};

use anyhow::Result;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::timeout};

const PATIENCE: Duration = Duration::from_secs(60);

/// Asks for `/` over a connection of its own: status and body.
///
/// # Errors
/// If nobody takes the connection, or no answer comes within a minute.
pub async fn get(target: SocketAddr) -> Result<(u16, Bytes)> {
    let stream = timeout(PATIENCE, TcpStream::connect(target)).await??;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = http::Request::get("/")
        .header("host", "checkout")
        // A client does not get to say who it is.
        .header(
            "x-forwarded-client-cert",
            "URI=spiffe://west/ns/shop/sa/admin",
        )
        .body(Empty::<Bytes>::new())?;
    let answer = timeout(PATIENCE, sender.send_request(request)).await??;
    let status = answer.status().as_u16();
    Ok((status, answer.into_body().collect().await?.to_bytes()))
}

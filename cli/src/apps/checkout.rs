//! `checkout`: an HTTP server that says who it is and what it was asked.

use std::{convert::Infallible, net::SocketAddr, time::Duration};

use anyhow::Context as _;
use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

/// Header that carries the request's own nonce.
pub const NONCE: &str = "x-demo-nonce";
/// Largest request body read.
const MAX_BODY: usize = 1 << 20;
/// How long a client may take over its request headers.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// Answers HTTP/1.1 and HTTP/2 requests.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Where to listen
    #[arg(long)]
    listen: SocketAddr,
    /// Cluster that it says it is in
    #[arg(long)]
    cluster: String,
    /// Its name
    #[arg(long)]
    name: String,
    /// Nonce of this process
    #[arg(long)]
    instance: String,
}

/// An answer; `frontend` checks every field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Cluster of the process that answers.
    pub cluster: String,
    /// Its name.
    pub name: String,
    /// Its nonce.
    pub instance: String,
    /// The request's nonce.
    pub nonce: String,
    /// Bytes of the request's body.
    pub bytes: usize,
    /// Sum of the request's body, see [`checksum`].
    pub checksum: u64,
    /// What the sidecar says of the caller (`x-forwarded-client-cert`).
    pub caller: String,
}

/// FNV-1a; enough to tell one body from another.
#[must_use]
pub fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    let listener = TcpListener::bind(args.listen)
        .await
        .with_context(|| format!("cannot listen on {}", args.listen))?;
    serve(listener, args).await
}

/// Serves until the listener fails; connections are this process's own and end with it.
async fn serve(listener: TcpListener, args: Args) -> anyhow::Result<()> {
    loop {
        let (stream, _) = listener.accept().await.context("cannot accept")?;
        stream.set_nodelay(true).ok();
        let args = args.clone();
        tokio::spawn(async move {
            let service = tower::service_fn(move |request| answer(args.clone(), request));
            let mut server = auto::Builder::new(TokioExecutor::new());
            server
                .http1()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT);
            // A client that breaks off is its own affair.
            let _ = server
                .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service))
                .await;
        });
    }
}

async fn answer(
    args: Args,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let header = |name: &str| {
        let value = request.headers().get(name).and_then(|v| v.to_str().ok());
        value.unwrap_or_default().to_owned()
    };
    let (nonce, caller) = (header(NONCE), header("x-forwarded-client-cert"));
    let body = Limited::new(request.into_body(), MAX_BODY).collect().await;
    let Ok(body) = body.map(http_body_util::Collected::to_bytes) else {
        return Ok(plain(
            StatusCode::BAD_REQUEST,
            "the body did not arrive whole\n",
        ));
    };
    let answer = Answer {
        cluster: args.cluster,
        name: args.name,
        instance: args.instance,
        nonce,
        bytes: body.len(),
        checksum: checksum(&body),
        caller,
    };
    let mut json = serde_json::to_vec(&answer).unwrap_or_default();
    json.push(b'\n');
    let mut response = Response::new(Full::from(json));
    let json_type = header::HeaderValue::from_static("application/json");
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, json_type);
    Ok(response)
}

fn plain(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A `checkout` on a port of its own.
    pub(crate) async fn start(instance: &str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let args = Args {
            listen: address,
            cluster: "east".into(),
            name: "checkout-1".into(),
            instance: instance.into(),
        };
        tokio::spawn(serve(listener, args));
        address
    }

    #[test]
    fn the_checksum_tells_bodies_apart() {
        assert_eq!(checksum(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(checksum(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_ne!(checksum(b"ab"), checksum(b"ba"));
    }
}

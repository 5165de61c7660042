//! The origin behind the path that is measured: answers at once, or after a timer.

use std::{convert::Infallible, net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::{HeaderValue, Response};
use http_body_util::Full;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::net::TcpListener;

use crate::load::SERVED_BY;

/// An HTTP/1.1 and HTTP/2 server that names itself in each answer.
#[derive(Debug, Clone, clap::Args)]
pub struct Origin {
    /// Where to listen
    #[arg(long)]
    listen: SocketAddr,
    /// What it calls itself
    #[arg(long)]
    name: String,
    /// Milliseconds to wait before each answer
    #[arg(long, default_value_t = 0)]
    delay_ms: u64,
}

impl Origin {
    /// Serves until killed.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub async fn run(self) -> Result<()> {
        let name =
            HeaderValue::from_str(&self.name).context("the name does not fit into a header")?;
        let delay = Duration::from_millis(self.delay_ms);
        let listener = TcpListener::bind(self.listen)
            .await
            .with_context(|| format!("listening on {}", self.listen))?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            tokio::spawn(serve(TokioIo::new(stream), name.clone(), delay));
        }
    }
}

async fn serve(stream: TokioIo<tokio::net::TcpStream>, name: HeaderValue, delay: Duration) {
    let answer = service_fn(move |_: http::Request<Incoming>| {
        let name = name.clone();
        async move {
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
            let mut response = Response::new(Full::new(Bytes::from_static(b"hello\n")));
            response.headers_mut().insert(SERVED_BY, name);
            Ok::<_, Infallible>(response)
        }
    });
    // A client that goes away is no news.
    let _ = auto::Builder::new(TokioExecutor::new())
        .serve_connection(stream, answer)
        .await;
}

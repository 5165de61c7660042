//! `grpc-echo`: one unary gRPC method, served and called by tonic.
//!
//! The two messages are small enough to be written down here instead of generated.

use std::{
    convert::Infallible,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use anyhow::Context as _;
use http::uri::PathAndQuery;
use tonic::{
    Request, Response, Status,
    body::Body,
    server::{Grpc, NamedService, UnaryService},
    transport::{Channel, Endpoint, Server},
};
use tonic_prost::ProstCodec;

/// Path of the method.
const METHOD: &str = "/linkspan.demo.Echo/Echo";
/// How long one call may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Answers gRPC calls with what they carried.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where to listen
    #[arg(long)]
    listen: SocketAddr,
    /// Nonce of this process
    #[arg(long)]
    instance: String,
}

/// A message to echo.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct EchoRequest {
    /// Anything.
    #[prost(string, tag = "1")]
    pub message: String,
}

/// The echo and who made it.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct EchoResponse {
    /// What the request carried.
    #[prost(string, tag = "1")]
    pub message: String,
    /// Nonce of the process that answered.
    #[prost(string, tag = "2")]
    pub instance: String,
}

#[derive(Clone, Debug)]
struct Echo {
    instance: String,
}

type Answer<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl UnaryService<EchoRequest> for Echo {
    type Response = EchoResponse;
    type Future = Answer<Result<Response<EchoResponse>, Status>>;

    fn call(&mut self, request: Request<EchoRequest>) -> Self::Future {
        let response = EchoResponse {
            message: request.into_inner().message,
            instance: self.instance.clone(),
        };
        Box::pin(async move { Ok(Response::new(response)) })
    }
}

impl tower::Service<http::Request<Body>> for Echo {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answer<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let echo = self.clone();
        Box::pin(async move {
            if request.uri().path() != METHOD {
                return Ok(Status::unimplemented("no such method").into_http());
            }
            let mut grpc = Grpc::new(ProstCodec::default());
            Ok(grpc.unary(echo, request).await)
        })
    }
}

impl NamedService for Echo {
    const NAME: &'static str = "linkspan.demo.Echo";
}

pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    let echo = Echo {
        instance: args.instance,
    };
    Server::builder()
        .add_service(echo)
        .serve(args.listen)
        .await
        .with_context(|| format!("cannot serve on {}", args.listen))
}

/// Calls a `grpc-echo` on a connection of its own; tells the nonce of the process that answered.
///
/// # Errors
/// If the call fails, or another message comes back.
pub async fn call(address: SocketAddr, message: &str) -> anyhow::Result<String> {
    let channel = Endpoint::from_shared(format!("http://{address}"))?
        .timeout(PATIENCE)
        .connect_timeout(PATIENCE)
        .connect()
        .await
        .context("connecting")?;
    let response = unary(channel, message).await?;
    anyhow::ensure!(response.message == message, "another message came back");
    Ok(response.instance)
}

async fn unary(channel: Channel, message: &str) -> anyhow::Result<EchoResponse> {
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.context("connecting")?;
    let request = Request::new(EchoRequest {
        message: message.to_owned(),
    });
    let codec: ProstCodec<EchoRequest, EchoResponse> = ProstCodec::default();
    let answer = grpc
        .unary(request, PathAndQuery::from_static(METHOD), codec)
        .await?;
    Ok(answer.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_call_is_answered_with_the_instance() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port");
        let address = listener.local_addr().expect("an address");
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        let echo = Echo {
            instance: "n0nce".into(),
        };
        tokio::spawn(
            Server::builder()
                .add_service(echo)
                .serve_with_incoming(incoming),
        );
        assert_eq!(call(address, "hello").await.expect("answered"), "n0nce");
    }
}

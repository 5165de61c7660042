//! What gRPC answers teach: their HTTP status is 200 whatever comes of the call.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use futures_util::{Stream, StreamExt, stream};
use linkspan_api::v1::{
    SyncRequest, SyncResponse, UnlinkRequest, UnlinkResponse,
    sync_client::SyncClient,
    sync_server::{Sync, SyncServer},
};
use linkspan_routing::{AppProtocol, CONSECUTIVE_ERRORS};
use tonic::{
    Code, Request, Response, Status, Streaming,
    transport::{Channel, Endpoint, Server, server::TcpIncoming},
};

use super::world::{Source, World, listener, snapshot};

/// A real gRPC server, of whatever service there is at hand: answers every call with this status.
struct Answers {
    code: Code,
    asked: Arc<AtomicUsize>,
}

impl Answers {
    async fn serve(code: Code) -> (SocketAddr, Arc<AtomicUsize>) {
        let (listener, address) = listener().await;
        let asked = Arc::new(AtomicUsize::new(0));
        let service = SyncServer::new(Self {
            code,
            asked: Arc::clone(&asked),
        });
        let serving = Server::builder()
            .add_service(service)
            .serve_with_incoming(TcpIncoming::from(listener));
        tokio::spawn(serving);
        (address, asked)
    }

    fn status(&self) -> Result<(), Status> {
        self.asked.fetch_add(1, SeqCst);
        match self.code {
            Code::Ok => Ok(()),
            code => Err(Status::new(code, "as the test wants it")),
        }
    }
}

#[tonic::async_trait]
impl Sync for Answers {
    type SubscribeStream = Pin<Box<dyn Stream<Item = Result<SyncResponse, Status>> + Send>>;

    /// Its status comes in trailers, without a message before them.
    async fn subscribe(
        &self,
        _: Request<Streaming<SyncRequest>>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let status = self.status().map(|()| SyncResponse::default());
        Ok(Response::new(stream::iter([status]).boxed()))
    }

    /// Its status, unless all is well, comes in the answer's only head.
    async fn unlink(&self, _: Request<UnlinkRequest>) -> Result<Response<UnlinkResponse>, Status> {
        self.status()
            .map(|()| Response::new(UnlinkResponse::default()))
    }
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Unary,
    Stream,
}

async fn call(client: &mut SyncClient<Channel>, kind: Kind) -> Code {
    let end = match kind {
        Kind::Unary => client.unlink(UnlinkRequest::default()).await.map(drop),
        Kind::Stream => {
            let nothing = stream::empty::<SyncRequest>();
            match client.subscribe(nothing).await {
                Ok(answer) => answer.into_inner().message().await.map(drop),
                Err(status) => Err(status),
            }
        }
    };
    end.map_or_else(|status| status.code(), |()| Code::Ok)
}

async fn client(source: &Source) -> SyncClient<Channel> {
    let address = format!("http://{}", source.address);
    let channel = Endpoint::from_shared(address).unwrap().connect().await;
    SyncClient::new(channel.unwrap())
}

fn ejected(source: &Source) -> u32 {
    let shares = source.destination().shares();
    shares.iter().map(|share| share.endpoints_ejected).sum()
}

#[tokio::test]
async fn an_endpoint_whose_grpc_answers_are_failures_is_ejected() {
    for kind in [Kind::Unary, Kind::Stream] {
        let mut world = World::new();
        let (bad, asked) = Answers::serve(Code::Unavailable).await;
        let (good, _) = Answers::serve(Code::Ok).await;
        let bad = world.server("east", "bad", bad, AppProtocol::Http2).await;
        let good = world.server("east", "good", good, AppProtocol::Http2).await;
        let known = snapshot([&bad.endpoint, &good.endpoint], AppProtocol::Http2);
        let source = world.source(Some(known)).await;
        let mut client = client(&source).await;
        let mut failed = 0;
        for _ in 0..1000 {
            failed += u32::from(call(&mut client, kind).await == Code::Unavailable);
            if ejected(&source) > 0 {
                break;
            }
        }
        assert_eq!(failed, CONSECUTIVE_ERRORS, "{kind:?}");
        assert_eq!(
            asked.load(SeqCst),
            failed as usize,
            "{kind:?}: none is repeated"
        );
    }
}

#[tokio::test]
async fn what_is_wrong_with_a_call_is_no_fault_of_the_endpoint() {
    let mut world = World::new();
    let (app, _) = Answers::serve(Code::NotFound).await;
    let server = world.server("east", "e", app, AppProtocol::Http2).await;
    let known = snapshot([&server.endpoint], AppProtocol::Http2);
    let source = world.source(Some(known)).await;
    let mut client = client(&source).await;
    for kind in [Kind::Unary, Kind::Stream] {
        for _ in 0..2 * CONSECUTIVE_ERRORS {
            assert_eq!(call(&mut client, kind).await, Code::NotFound);
        }
    }
    assert_eq!(ejected(&source), 0);
}

//! For tests: a federation whose discovery streams the test plays by hand, over real TLS and gRPC.

use std::{
    net::SocketAddr,
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use linkspan_api::v1::{
    DiscoverRequest, DiscoverResponse, IssueRequest, IssueResponse, TrustBundle,
    discover_request::Message as Said,
    discovery_server::{Discovery, DiscoveryServer},
    identity_server::{Identity, IdentityServer},
};
use linkspan_trust::{
    ClientPolicy, Csr, Grant, SpiffeId, TrustDomain, TrustPolicy, spiffe_id_of, testing::Pki,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinHandle,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming, transport::server::Connected};

use crate::identity::FederationClient;

/// The token that it accepts.
pub(crate) const TOKEN: &str = "join-me";
/// Its trust domain.
pub(crate) const DOMAIN: &str = "east.test";

pub(crate) struct FakeFederation {
    pub(crate) address: SocketAddr,
    streams: mpsc::Receiver<Played>,
    accepting: JoinHandle<()>,
}

/// One discovery stream: what the proxy says, and what the test answers.
pub(crate) struct Played {
    requests: Streaming<DiscoverRequest>,
    responses: mpsc::Sender<Result<DiscoverResponse, Status>>,
    revision: u64,
}

impl FakeFederation {
    /// Serves as `id`, which a proxy must check.
    pub(crate) async fn start(pki: &Arc<Pki>, id: &SpiffeId, address: Option<SocketAddr>) -> Self {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let listener = TcpListener::bind(address.unwrap_or(any)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (_writer, material) = pki.material(id);
        let domains = [DOMAIN.parse::<TrustDomain>().unwrap()].into();
        let policy = ClientPolicy::Optional(TrustPolicy::Domains(domains));
        let config = material.current().server_config(policy, &[b"h2"]).unwrap();
        let (connections, incoming) = mpsc::channel(4);
        let tls = TlsAcceptor::from(Arc::new(config));
        let accepting = tokio::spawn(accept(listener, tls, connections));
        let (played, streams) = mpsc::channel(4);
        let serving = tonic::transport::Server::builder()
            .add_service(DiscoveryServer::new(FakeDiscovery(played)))
            .add_service(IdentityServer::new(FakeIdentity(pki.clone())))
            .serve_with_incoming(ReceiverStream::new(incoming));
        tokio::spawn(serving);
        Self {
            address,
            streams,
            accepting,
        }
    }

    /// Closes the listener; returns when its address is free.
    pub(crate) async fn close(&mut self) {
        self.accepting.abort();
        let _ = (&mut self.accepting).await;
    }

    /// The next stream that a proxy opens.
    pub(crate) async fn stream(&mut self) -> Played {
        self.streams.recv().await.unwrap()
    }
}

impl Drop for FakeFederation {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Played {
    /// What the proxy says next.
    pub(crate) async fn said(&mut self) -> Said {
        self.requests
            .message()
            .await
            .unwrap()
            .unwrap()
            .message
            .unwrap()
    }

    /// What the proxy says next that is no heartbeat.
    pub(crate) async fn said_new(&mut self, heartbeat: &Said) -> Said {
        loop {
            let said = self.said().await;
            if said != *heartbeat {
                return said;
            }
        }
    }

    pub(crate) async fn answer(&mut self, message: linkspan_api::v1::discover_response::Message) {
        self.revision += 1;
        let response = DiscoverResponse {
            revision: self.revision,
            message: Some(message),
        };
        self.responses.send(Ok(response)).await.unwrap();
    }

    /// Leaves out one number.
    pub(crate) fn skip(&mut self) {
        self.revision += 1;
    }
}

/// How to reach it, with a token file in `directory`.
pub(crate) fn client_of(
    pki: &Pki,
    address: SocketAddr,
    directory: &tempfile::TempDir,
) -> FederationClient {
    let token: PathBuf = directory.path().join("token");
    std::fs::write(&token, format!("{TOKEN}\n")).unwrap();
    FederationClient {
        address: address.to_string(),
        trust_domain: DOMAIN.parse().unwrap(),
        roots: pki.authority(DOMAIN).bundle(),
        token,
    }
}

async fn accept(
    listener: TcpListener,
    tls: TlsAcceptor,
    connections: mpsc::Sender<std::io::Result<Io>>,
) {
    while let Ok((socket, _)) = listener.accept().await {
        if let Ok(stream) = tls.accept(socket).await
            && connections.send(Ok(Io(stream))).await.is_err()
        {
            return;
        }
    }
}

struct Io(TlsStream<TcpStream>);

/// Who called, if a certificate said so.
#[derive(Clone)]
struct Caller(Option<SpiffeId>);

impl Connected for Io {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        let chain = self.0.get_ref().1.peer_certificates();
        Caller(chain.and_then(|chain| spiffe_id_of(chain).ok()))
    }
}

impl AsyncRead for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

struct FakeDiscovery(mpsc::Sender<Played>);

#[tonic::async_trait]
impl Discovery for FakeDiscovery {
    type DiscoverStream = ReceiverStream<Result<DiscoverResponse, Status>>;

    async fn discover(
        &self,
        request: Request<Streaming<DiscoverRequest>>,
    ) -> Result<Response<Self::DiscoverStream>, Status> {
        assert!(
            request.extensions().get::<Caller>().unwrap().0.is_some(),
            "a certificate is needed"
        );
        let (responses, queue) = mpsc::channel(4);
        let played = Played {
            requests: request.into_inner(),
            responses,
            revision: 0,
        };
        self.0
            .send(played)
            .await
            .map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(ReceiverStream::new(queue)))
    }
}

struct FakeIdentity(Arc<Pki>);

#[tonic::async_trait]
impl Identity for FakeIdentity {
    async fn issue(
        &self,
        request: Request<IssueRequest>,
    ) -> Result<Response<IssueResponse>, Status> {
        let caller = request.extensions().get::<Caller>().unwrap().0.clone();
        let request = request.into_inner();
        let id = match (caller, request.join_token.as_str()) {
            (Some(caller), "") => caller,
            (None, TOKEN) => linkspan_trust::testing::workload(DOMAIN, "shop", "checkout"),
            _ => return Err(Status::permission_denied("unknown token")),
        };
        let csr = Csr::parse(&request.csr)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let ca = self.0.authority(DOMAIN);
        let grant = Grant {
            id,
            lifetime: Duration::from_secs(3600),
        };
        let chain = ca.issue(&csr, &grant, SystemTime::now()).unwrap();
        let chain = chain.into_iter().map(|der| der.to_vec().into()).collect();
        let bundle = ca.bundle();
        let roots = bundle.roots.iter().map(|der| der.to_vec().into()).collect();
        let trust_domain = DOMAIN.to_owned();
        let bundle = TrustBundle {
            trust_domain,
            sequence: bundle.sequence,
            roots,
        };
        Ok(Response::new(IssueResponse {
            chain,
            bundle: Some(bundle),
        }))
    }
}

//! What stands at the ends when clients have no sidecar: endpoints that have one, played by the
//! same acceptor that sidecars use, and plain clients.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use linkspan_dataplane::accept::Accept;
use linkspan_dataplane::connect::mtls::{Acceptor, AcceptorLimits, Alpn};
use linkspan_dataplane::discover::{ImportPort, LinkInfo, Snapshot};
use linkspan_dataplane::forward::bytes::Duplex;
use linkspan_dataplane::forward::http::serve::ServeLimits;
use linkspan_dataplane::forward::http::{Incoming, serve};
use linkspan_routing::{
    AppProtocol, ClusterCapacity, Endpoint, FailbackConfig, Locality, Service, ServicePort,
};
use linkspan_runtime::stop::Stop;
use linkspan_trust::testing::{Pki, trust_domain, workload};
use linkspan_trust::{ClientPolicy, MaterialWriter, SpiffeId, TrustPolicy};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::{cluster_id, domain, endpoint, listener};

/// An endpoint of `shop/checkout` that has a sidecar. It answers requests with its name, and opaque
/// bytes with the same.
pub(crate) struct Meshed {
    pub(crate) endpoint: Arc<Endpoint>,
    /// Who has called.
    pub(crate) callers: Arc<Mutex<BTreeSet<SpiffeId>>>,
    pub(crate) stop: Stop,
    _writer: MaterialWriter,
}

impl Drop for Meshed {
    fn drop(&mut self) {
        self.stop.abort();
    }
}

impl Meshed {
    pub(crate) async fn start(pki: &Pki, cluster: &str, name: &'static str) -> Self {
        let identity = workload(&domain(cluster), "shop", "checkout");
        let (writer, material) = pki.material(&identity);
        let domains = ["east", "west", "north"].map(|name| trust_domain(&domain(name)));
        let policy = ClientPolicy::Required(TrustPolicy::Domains(domains.into()));
        let acceptor = Acceptor::new(material, policy, AcceptorLimits::default());
        let (listener, address) = listener().await;
        let (callers, stop) = (Arc::<Mutex<BTreeSet<SpiffeId>>>::default(), Stop::new());
        let (acceptor, seen, serving) = (Arc::new(acceptor), callers.clone(), stop.clone());
        tokio::spawn(
            Accept::default().run(listener, stop.clone(), move |tcp, _| {
                let (acceptor, seen, stop) = (acceptor.clone(), seen.clone(), serving.clone());
                async move {
                    let Ok(accepted) = acceptor.accept(tcp).await else {
                        return;
                    };
                    seen.lock().unwrap().insert(accepted.peer.clone());
                    match accepted.alpn {
                        Alpn::Tcp => echo(accepted.io).await,
                        _ => {
                            let answer = move |_: Request<Incoming>| async move {
                                let body =
                                    Full::new(Bytes::from(name)).map_err(|never| match never {});
                                Ok(Response::new(body))
                            };
                            let _ = serve(accepted.io, ServeLimits::default(), stop, answer).await;
                        }
                    }
                }
            }),
        );
        Self {
            endpoint: endpoint(cluster, name, address),
            callers,
            stop,
            _writer: writer,
        }
    }

    pub(crate) fn callers(&self) -> Vec<SpiffeId> {
        self.callers.lock().unwrap().iter().cloned().collect()
    }
}

async fn echo(mut io: impl Duplex) {
    let mut bytes = [0; 1024];
    while let Ok(count @ 1..) = io.read(&mut bytes).await {
        if io.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
    let _ = io.shutdown().await;
}

/// What cluster `own` is told: `shop/checkout`, port 80, with these endpoints, on port `listen`.
pub(crate) fn import(
    own: &str,
    links: Vec<LinkInfo>,
    endpoints: &[&Meshed],
    (protocol, listen): (AppProtocol, u16),
) -> Snapshot {
    let mut service = Service {
        key: "shop/checkout".parse().unwrap(),
        ports: vec![ServicePort {
            name: None,
            port: 80,
            app_protocol: protocol,
        }],
        clusters: Default::default(),
        endpoints: Vec::new(),
        failback: FailbackConfig::default(),
        policy: None,
        drained: Default::default(),
    };
    for meshed in endpoints {
        let mut told = (*meshed.endpoint).clone();
        let capacity: &mut ClusterCapacity =
            service.clusters.entry(told.cluster.clone()).or_default();
        capacity.ports = vec![80];
        match capacity.localities.first_mut() {
            Some((_, expected)) => *expected += 1,
            None => capacity.localities.push((Locality::unknown(), 1)),
        }
        if told.cluster != cluster_id(own) {
            told.address = None;
        }
        service.endpoints.push(Arc::new(told));
    }
    let import = ImportPort {
        service: service.key.clone(),
        port: 80,
        listen,
    };
    Snapshot {
        services: [(service.key.clone(), Arc::new(service))].into(),
        imports: vec![import],
        links,
        ..Snapshot::default()
    }
}

/// A port that was free a moment ago.
pub(crate) async fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap().port()
}

pub(crate) fn get() -> Request<Empty<Bytes>> {
    let request = Request::get("http://checkout/").header("host", "checkout");
    request.body(Empty::new()).unwrap()
}

/// One request of a plain client over a connection of its own: status and body.
pub(crate) async fn ask(at: SocketAddr) -> (u16, String) {
    let io = TokioIo::new(TcpStream::connect(at).await.unwrap());
    let (mut sender, connection) = http1::handshake(io).await.unwrap();
    tokio::spawn(connection);
    let mut request = get();
    *request.uri_mut() = "/".parse().unwrap();
    read(sender.send_request(request).await.unwrap()).await
}

/// A plain client's connection in HTTP/2.
pub(crate) async fn http2(at: SocketAddr) -> http2::SendRequest<Empty<Bytes>> {
    let io = TokioIo::new(TcpStream::connect(at).await.unwrap());
    let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    sender
}

pub(crate) async fn read(answer: Response<hyper::body::Incoming>) -> (u16, String) {
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

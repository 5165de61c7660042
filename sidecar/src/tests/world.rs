//! The parts that the tests are made of: workloads with sidecars and applications, and a source that
//! calls them. Snapshots are made by hand.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use ::http::{Request, Response, StatusCode, header};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, combinators::UnsyncBoxBody};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use linkspan_dataplane::{
    accept::Accept,
    connect::{
        mtls::{ConnectLimits, Connected, Connector, InnerAlpn, Upstream, Via},
        pool::PoolLimits,
    },
    discover::{GatewayInfo, InboundPort, InboundService, PeerInfo, Snapshot},
    forward::http::{BodyError, Incoming, serve, serve::ServeLimits},
    inbound::{self, Application, Inbound, Rules},
    outbound::{
        Destination, Driver, Listener, Means, Outbound, Services, Source as Calls, SourceCell,
    },
    target::Target,
};
use linkspan_routing::{
    AppProtocol, ClusterCapacity, ClusterId, Endpoint, EndpointId, FailbackConfig, Locality, Place,
    Service, ServiceKey, ServicePort,
};
use linkspan_runtime::{
    stop::Stop,
    telemetry::{Registry, TrafficMetrics},
    trace::Tracer,
};
use linkspan_trust::{MaterialReader, MaterialWriter, SpiffeId, testing};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};

pub(super) const PORT: u16 = 80;
pub(super) const TARGET_PORT: u16 = 8080;
pub(super) type Body = UnsyncBoxBody<Bytes, BodyError>;

/// Which answers a request at an application.
pub(super) type Answer = Result<Response<Body>, linkspan_runtime::BoxError>;

pub(super) fn key() -> ServiceKey {
    "shop/checkout".parse().unwrap()
}

pub(super) fn cluster(id: &str) -> ClusterId {
    id.parse().unwrap()
}

pub(super) fn domain(cluster: &str) -> String {
    format!("{cluster}.test")
}

/// The PKI of all clusters, and what stops everything when the test ends.
pub(super) struct World {
    pub(super) pki: testing::Pki,
    stop: Stop,
    // Material ends with its writer.
    writers: Vec<MaterialWriter>,
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.abort();
    }
}

/// A workload that serves `shop/checkout`.
pub(super) struct Server {
    pub(super) endpoint: Endpoint,
    pub(super) address: SocketAddr,
    pub(super) stop: Stop,
    pub(super) inbound: Inbound,
}

impl Server {
    /// The process is gone, with its connections.
    pub(super) fn kill(&self) {
        self.stop.abort();
    }
}

impl World {
    pub(super) fn new() -> Self {
        let pki = testing::Pki::new(&["east.test", "west.test", "north.test"]);
        Self {
            pki,
            stop: Stop::new(),
            writers: Vec::new(),
        }
    }

    pub(super) fn stop(&self) -> Stop {
        self.stop.child()
    }

    pub(super) fn material(&mut self, id: &SpiffeId) -> MaterialReader {
        let (writer, reader) = self.pki.material(id);
        self.writers.push(writer);
        reader
    }

    /// An application that answers every request by `handler`, in HTTP/1.1 or HTTP/2.
    pub(super) async fn app<H, F>(&self, handler: H) -> SocketAddr
    where
        H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Answer> + Send + 'static,
    {
        let (listener, address) = listener().await;
        let stop = self.stop();
        let serving = stop.clone();
        tokio::spawn(Accept::default().run(listener, stop, move |io, _| {
            let (handler, stop) = (handler.clone(), serving.clone());
            async move {
                let _ = serve(io, ServeLimits::default(), stop, handler).await;
            }
        }));
        address
    }

    /// A workload named `name` in `in_cluster` whose application is at `app`.
    pub(super) async fn server(
        &mut self,
        in_cluster: &str,
        name: &str,
        app: SocketAddr,
        protocol: AppProtocol,
    ) -> Server {
        let identity = testing::workload(&domain(in_cluster), "shop", "checkout");
        let material = self.material(&identity);
        let (listener, address) = listener().await;
        let stop = self.stop();
        let id = EndpointId::from_uid(name);
        let inbound = Inbound::new(inbound::Means {
            material,
            own: inbound::Own {
                endpoint: id.clone(),
                cluster: cluster(in_cluster).label(),
                trust_domain: testing::trust_domain(&domain(in_cluster)),
            },
            cluster: cluster(in_cluster),
            locality: Locality::unknown(),
            application: application(app),
            traffic: TrafficMetrics::register(&Registry::new()).unwrap(),
            tracer: Tracer::off(),
            idle: Duration::from_secs(60),
            access_log: linkspan_runtime::access_log::AccessLog::ALL,
            limits: ServeLimits::default(),
            requests: None,
            stop: stop.clone(),
        });
        inbound.apply(Rules {
            services: vec![served(protocol, &["east", "west"])],
            ..Rules::default()
        });
        tokio::spawn(inbound.clone().run(listener));
        let local = in_cluster == "east";
        let endpoint = Endpoint {
            id,
            cluster: cluster(in_cluster),
            locality: Locality::unknown(),
            identity,
            ready: true,
            weight: 1,
            incarnation: 1,
            address: local.then_some(address),
            labels: Default::default(),
        };
        Server {
            endpoint,
            address,
            stop,
            inbound,
        }
    }

    /// A source in cluster east that may call these, its own snapshot being `known`.
    pub(super) async fn source(&mut self, known: Option<Snapshot>) -> Source {
        let material = self.material(&frontend());
        let means = Means {
            material: material.clone(),
            connector: Arc::new(Connector::new(material.clone(), ConnectLimits::default())),
            traffic: TrafficMetrics::register(&Registry::new()).unwrap(),
            tracer: Tracer::off(),
            place: Place {
                cluster: cluster("east"),
                locality: Locality::unknown(),
            },
            seed: 7,
            limits: PoolLimits::default(),
            nearest_gateway: None,
        };
        let services = Arc::new(Services::new([(key(), PORT)], means));
        let (snapshots, reader) = watch::channel(known.map(Arc::new));
        let stop = self.stop();
        let driver = Driver::new(Arc::clone(&services), reader.clone(), cluster("east"));
        tokio::spawn(driver.run(stop.clone()));
        let cell = SourceCell::default();
        cell.set(Calls::new(material, services.clone()));
        let address = outbound(cell, stop.clone()).await;
        Source {
            address,
            snapshots,
            services,
            stop,
        }
    }

    /// An inner connection made by hand.
    pub(super) async fn connect(
        &mut self,
        caller: &SpiffeId,
        server: &Server,
        target: Target,
        alpn: InnerAlpn,
    ) -> Result<Connected, linkspan_dataplane::connect::mtls::ConnectError> {
        let connector = Connector::new(self.material(caller), ConnectLimits::default());
        let upstream = Upstream {
            via: Via::Direct(server.address),
            target,
            identity: server.endpoint.identity.clone(),
            alpn,
        };
        connector.connect(&upstream).await
    }
}

/// The source's listener for `shop/checkout`.
pub(super) async fn outbound(source: SourceCell, stop: Stop) -> SocketAddr {
    let (listener, address) = listener().await;
    let outbound = Outbound::new(Listener {
        service: key(),
        port: PORT,
        source,
        idle: Duration::from_secs(60),
        access_log: linkspan_runtime::access_log::AccessLog::ALL,
        limits: ServeLimits::default(),
        requests: None,
        stop,
    });
    tokio::spawn(outbound.run(listener));
    address
}

/// A sidecar whose workload calls `shop/checkout`.
pub(super) struct Source {
    pub(super) address: SocketAddr,
    pub(super) snapshots: watch::Sender<Option<Arc<Snapshot>>>,
    pub(super) services: Arc<Services>,
    pub(super) stop: Stop,
}

impl Source {
    pub(super) fn tell(&self, snapshot: Snapshot) {
        self.snapshots.send_replace(Some(Arc::new(snapshot)));
    }

    pub(super) fn destination(&self) -> Arc<Destination> {
        self.services.destination(&key(), PORT).unwrap()
    }

    /// The workload's one HTTP/2 connection to its sidecar.
    pub(super) async fn http2<B>(&self) -> SendRequest<B>
    where
        B: ::http_body::Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<linkspan_runtime::BoxError>,
    {
        http2(TcpStream::connect(self.address).await.unwrap()).await
    }
}

pub(super) async fn http2<IO, B>(io: IO) -> SendRequest<B>
where
    IO: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    B: ::http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<linkspan_runtime::BoxError>,
{
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(io))
            .await
            .unwrap();
    tokio::spawn(connection);
    sender
}

pub(super) fn frontend() -> SpiffeId {
    testing::workload("east.test", "shop", "frontend")
}

pub(super) async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

pub(super) fn served(protocol: AppProtocol, exported_to: &[&str]) -> InboundService {
    let port = InboundPort {
        port: PORT,
        target_port: TARGET_PORT,
        app_protocol: protocol,
    };
    let exported_to: BTreeSet<_> = exported_to
        .iter()
        .map(|cluster| testing::trust_domain(&domain(cluster)))
        .collect();
    InboundService {
        key: key(),
        ports: vec![port],
        exported_to,
        unmeshed_clients: false,
    }
}

fn application(app: SocketAddr) -> Application {
    Application::Here {
        address: app.ip(),
        ports: [(TARGET_PORT, app.port())].into(),
    }
}

/// What discovery tells a source of these endpoints.
pub(super) fn snapshot<'a>(
    endpoints: impl IntoIterator<Item = &'a Endpoint>,
    protocol: AppProtocol,
) -> Snapshot {
    let endpoints: Vec<_> = endpoints.into_iter().cloned().map(Arc::new).collect();
    let mut clusters: BTreeMap<ClusterId, ClusterCapacity> = BTreeMap::new();
    for endpoint in &endpoints {
        let capacity = clusters.entry(endpoint.cluster.clone()).or_default();
        capacity.ports = vec![PORT];
        match capacity.localities.first_mut() {
            Some((_, expected)) => *expected += 1,
            None => capacity.localities.push((Locality::unknown(), 1)),
        }
    }
    let service = Service {
        key: key(),
        ports: vec![ServicePort {
            name: None,
            port: PORT,
            app_protocol: protocol,
        }],
        clusters,
        endpoints,
        failback: FailbackConfig::default(),
        policy: None,
        drained: Default::default(),
    };
    Snapshot {
        services: [(key(), Arc::new(service))].into(),
        ..Snapshot::default()
    }
}

/// A gateway of cluster east that leads to cluster west.
pub(super) fn gateway_info(egress: SocketAddr) -> GatewayInfo {
    GatewayInfo {
        replica: egress.to_string(),
        egress,
        reachable: [cluster("west")].into(),
        draining: false,
    }
}

/// Adds to a snapshot that west is reached by these gateways, or not.
pub(super) fn by_gateways(
    mut snapshot: Snapshot,
    gateways: &[SocketAddr],
    usable: bool,
) -> Snapshot {
    snapshot.gateways = gateways
        .iter()
        .map(|egress| gateway_info(*egress))
        .collect();
    snapshot.peers = vec![PeerInfo {
        cluster: cluster("west"),
        trust_domain: testing::trust_domain("west.test"),
        usable,
        stale: false,
    }];
    snapshot
}

pub(super) fn target(server: &Server) -> Target {
    Target {
        endpoint: Some(server.endpoint.id.clone()),
        port: PORT,
        service: key(),
        cluster: server.endpoint.cluster.label(),
    }
}

pub(super) fn full(text: impl Into<Bytes>) -> Body {
    let body = http_body_util::Full::new(text.into());
    body.map_err(|error| match error {}).boxed_unsync()
}

pub(super) fn answer(text: impl Into<Bytes>) -> Answer {
    Ok(Response::new(full(text)))
}

pub(super) fn get() -> Request<Body> {
    let body = Empty::new().map_err(|error| match error {}).boxed_unsync();
    Request::get("http://checkout.shop/path?query")
        .body(body)
        .unwrap()
}

pub(super) fn post(body: Body) -> Request<Body> {
    Request::post("http://checkout.shop/").body(body).unwrap()
}

/// Sends a request over a client's connection and reads the whole answer.
pub(super) async fn ask(
    client: &SendRequest<Body>,
    request: Request<Body>,
) -> Result<(StatusCode, String), linkspan_runtime::BoxError> {
    let answer = client.clone().send_request(request).await?;
    let status = answer.status();
    let body = answer.into_body().collect().await?.to_bytes();
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

/// A header of a request, as the application sees it.
pub(super) fn seen(request: &Request<Incoming>, name: &str) -> String {
    let values = request.headers().get_all(name).into_iter();
    values
        .map(|value| value.to_str().unwrap())
        .collect::<Vec<_>>()
        .join("|")
}

pub(super) fn host(request: &Request<Incoming>) -> String {
    let authority = request.uri().authority().map(ToString::to_string);
    authority.unwrap_or_else(|| seen(request, header::HOST.as_str()))
}

//! What the tests of this crate have in common: a federation in a directory of its own, and
//! clients that speak to it over real TLS on loopback.

use std::{
    collections::BTreeSet,
    fs, io,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime},
};

use futures_util::future::BoxFuture;
use hyper_util::rt::TokioIo;
use linkspan_api::v1::{self, identity_client::IdentityClient, operator_client::OperatorClient};
use linkspan_core::{ClusterId, OwnCluster, declared::Vips};
use linkspan_runtime::stop::Stop;
use linkspan_trust::{
    Bundle, BundleSet, CertificateAuthority, MaterialReader, MaterialWriter, SpiffeId, Svid,
    TrustDomain, TrustPolicy, first_contact_config, generate_csr, material,
};
use rustls_pki_types::{CertificateDer, ServerName};
use tempfile::TempDir;
use tokio::{
    net::{TcpStream, UnixStream},
    sync::{oneshot, watch},
    task::JoinHandle,
};
use tokio_rustls::TlsConnector;
use tonic::{Status, transport::Channel};
use tower::service_fn;

use crate::{
    bound::{Addresses, bind},
    config::{Config, Timers},
    controller::World,
    sync::{Destination, Dial, Io, peer_config, server_name},
};

/// Nothing in these tests takes this long unless it is broken.
const SOON: Duration = Duration::from_secs(30);

/// Waits for what must come.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, future)
        .await
        .unwrap_or_else(|_| panic!("{what} did not come within {SOON:?}"))
}

pub(crate) fn domain(cluster: &str) -> TrustDomain {
    format!("{cluster}.demo.linkspan.internal").parse().unwrap()
}

pub(crate) fn own_cluster(cluster: &str) -> OwnCluster {
    OwnCluster {
        cluster: cluster.parse().unwrap(),
        clusterset: "demo".into(),
        trust_domain: domain(cluster),
        unmeshed_clients: false,
    }
}

/// A ClusterLink to `cluster` with a root of nobody's.
pub(crate) fn link_yaml(cluster: &str) -> String {
    let authority = CertificateAuthority::create(&domain(cluster), SystemTime::now()).unwrap();
    link_with(cluster, &authority.bundle())
}

pub(crate) fn link_with(cluster: &str, bundle: &Bundle) -> String {
    let pem = bundle.to_pem().replace('\n', "\n    ");
    format!(
        "apiVersion: linkspan.io/v1alpha1\nkind: ClusterLink\nmetadata: {{name: {cluster}}}\n\
         spec:\n  trustDomain: {}\n  bundle: |\n    {pem}\n",
        domain(cluster)
    )
}

pub(crate) fn service_yaml(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec:\n  selector: {{app: {name}}}\n  ports: [{{port: 80, targetPort: 8080}}]\n"
    )
}

pub(crate) fn export_yaml(name: &str) -> String {
    format!(
        "apiVersion: multicluster.x-k8s.io/v1beta1\nkind: ServiceExport\n\
         metadata: {{name: {name}, namespace: shop, creationTimestamp: \"2026-01-01T00:00:00Z\"}}\n"
    )
}

/// The two directories of a federation; they outlive its process.
pub(crate) struct Home {
    directory: TempDir,
    cluster: String,
    pub(crate) timers: Timers,
    pub(crate) vips: Vips,
}

impl Home {
    pub(crate) fn new(cluster: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("resources")).unwrap();
        Self {
            directory,
            cluster: cluster.into(),
            timers: Timers::default(),
            vips: Vips::new(),
        }
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    pub(crate) fn resources(&self) -> PathBuf {
        self.directory.path().join("resources")
    }

    pub(crate) fn declare(&self, file: &str, yaml: &str) {
        let whole = self.directory.path().join("whole");
        fs::write(&whole, yaml).unwrap();
        fs::rename(whole, self.resources().join(file)).unwrap();
    }

    pub(crate) fn config(&self) -> Config {
        let own = own_cluster(&self.cluster);
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        Config {
            cluster: own.cluster,
            clusterset: own.clusterset,
            trust_domain: own.trust_domain,
            locality: Default::default(),
            state_dir: self.state(),
            home: crate::config::Home::Directory {
                resources: self.resources(),
            },
            listen: any,
            admin_listen: any,
            debug_listen: any,
            dns_listen: Some(any),
            failback: Default::default(),
            stale_ttl: Duration::from_secs(300),
            timers: self.timers.clone(),
            vips: self.vips.clone(),
            webhook: None,
            import_ports: 16_000..=16_009,
            unmeshed_clients: false,
        }
    }

    pub(crate) async fn start(&self) -> Federation {
        self.start_reaching(None).await
    }

    /// Starts a federation that reaches its one peer at the address in `peer`.
    pub(crate) async fn start_reaching(
        &self,
        peer: Option<watch::Receiver<Option<SocketAddr>>>,
    ) -> Federation {
        let mut bound = bind(self.config()).await.unwrap();
        let (observer, worlds) = oneshot::channel();
        bound.observer = Some(observer);
        if let Some(peer) = peer {
            let material = bound.material.1.clone();
            bound.dial = Some(Arc::new(Direct { material, peer }));
        }
        let addresses = bound.addresses().clone();
        let stop = Stop::new();
        let task = tokio::spawn(bound.run(stop.clone()));
        let worlds = worlds.await.unwrap();
        Federation {
            domain: domain(&self.cluster),
            addresses,
            stop,
            task,
            worlds,
        }
    }
}

/// A running federation.
pub(crate) struct Federation {
    pub(crate) domain: TrustDomain,
    pub(crate) addresses: Addresses,
    pub(crate) worlds: watch::Receiver<Arc<World>>,
    stop: Stop,
    task: JoinHandle<Result<(), linkspan_runtime::process::Exit>>,
}

impl Federation {
    pub(crate) async fn stop(self) {
        self.stop.drain();
        soon("the end", self.task).await.unwrap().unwrap();
    }

    /// Waits until the world is so.
    pub(crate) async fn until(
        &self,
        what: &str,
        so: impl FnMut(&Arc<World>) -> bool,
    ) -> Arc<World> {
        let mut worlds = self.worlds.clone();
        let world = soon(what, worlds.wait_for(so)).await.unwrap();
        Arc::clone(&world)
    }

    pub(crate) async fn operator(&self) -> OperatorClient<Channel> {
        let path = self.addresses.operator.clone();
        let connector = service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        OperatorClient::new(channel_with(connector).await)
    }

    pub(crate) async fn bundle(&self) -> Bundle {
        let response = self
            .operator()
            .await
            .bundle(v1::BundleRequest {})
            .await
            .unwrap();
        Bundle::from_pem(1, response.into_inner().pem.as_bytes()).unwrap()
    }

    pub(crate) async fn token(&self, namespace: &str, service_account: &str) -> String {
        let request = v1::CreateJoinTokenRequest {
            namespace: namespace.into(),
            service_account: service_account.into(),
            ..v1::CreateJoinTokenRequest::default()
        };
        let response = self
            .operator()
            .await
            .create_join_token(request)
            .await
            .unwrap();
        response.into_inner().token
    }

    /// A connection without a certificate.
    pub(crate) async fn anonymous(&self) -> Channel {
        let server = SpiffeId::federation(&self.domain);
        let config = first_contact_config(&server, &self.bundle().await, &[b"h2"]).unwrap();
        connect(self.addresses.grpc, config).await.unwrap()
    }

    /// A connection with a certificate.
    pub(crate) async fn channel(&self, material: &MaterialReader) -> io::Result<Channel> {
        let server = TrustPolicy::Exactly(BTreeSet::from([SpiffeId::federation(&self.domain)]));
        let config = material.current().client_config(server, &[b"h2"]).unwrap();
        connect(self.addresses.grpc, config).await
    }

    /// A certificate by way of a token, as a process gets its first.
    pub(crate) async fn member(&self, namespace: &str, service_account: &str) -> Material {
        let token = self.token(namespace, service_account).await;
        issue(self.anonymous().await, &token).await.unwrap()
    }

    pub(crate) async fn gateway(&self) -> Material {
        self.member("linkspan-system", "linkspan-gateway").await
    }
}

/// A certificate and its roots.
pub(crate) struct Material(
    #[allow(dead_code)] MaterialWriter,
    pub(crate) MaterialReader,
);

impl Material {
    pub(crate) fn id(&self) -> SpiffeId {
        self.1.current().svid().id().clone()
    }

    /// Of an authority that is not that of the federation, which it trusts nevertheless.
    pub(crate) fn foreign(
        authority: &CertificateAuthority,
        id: SpiffeId,
        server: &Federation,
        roots: Bundle,
    ) -> Self {
        let grant = linkspan_trust::Grant {
            id,
            lifetime: Duration::from_secs(3600),
        };
        let svid = authority.issue_svid(&grant, SystemTime::now()).unwrap();
        let mut bundles = BundleSet::new();
        bundles.insert(server.domain.clone(), roots).unwrap();
        let (writer, reader) = material(svid, bundles);
        Self(writer, reader)
    }
}

/// Asks for a certificate; an empty token asks by the connection's own.
pub(crate) async fn issue(channel: Channel, token: &str) -> Result<Material, Status> {
    issue_for(channel, token, v1::IssuedFor::Unspecified).await
}

/// As [`issue`], for somebody else.
pub(crate) async fn issue_for(
    channel: Channel,
    token: &str,
    whom: v1::IssuedFor,
) -> Result<Material, Status> {
    let (key, csr) = generate_csr().unwrap();
    let request = v1::IssueRequest {
        csr: csr.into(),
        join_token: token.into(),
        issued_for: whom.into(),
    };
    let response = IdentityClient::new(channel)
        .issue(request)
        .await?
        .into_inner();
    let der = |bytes: &bytes::Bytes| CertificateDer::from(bytes.to_vec());
    let svid = Svid::new(response.chain.iter().map(der).collect(), key).unwrap();
    let bundle = response.bundle.unwrap();
    let roots = Bundle::new(
        bundle.sequence,
        None,
        bundle.roots.iter().map(der).collect(),
    )
    .unwrap();
    let mut bundles = BundleSet::new();
    bundles
        .insert(bundle.trust_domain.parse().unwrap(), roots)
        .unwrap();
    let (writer, reader) = material(svid, bundles);
    Ok(Material(writer, reader))
}

async fn connect(address: SocketAddr, config: rustls::ClientConfig) -> io::Result<Channel> {
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from("federation.linkspan.internal").unwrap();
    let stream = TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await?;
    let mut stream = Some(TokioIo::new(stream));
    Ok(channel_with(service_fn(move |_| {
        let taken = stream
            .take()
            .ok_or_else(|| io::Error::other("connected once only"));
        async move { taken }
    }))
    .await)
}

async fn channel_with<C, S>(connector: C) -> Channel
where
    C: tower::Service<http::Uri, Response = TokioIo<S>, Error = io::Error> + Send + 'static,
    C::Future: Send,
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    tonic::transport::Endpoint::from_static("http://federation.linkspan.internal")
        .connect_with_connector(connector)
        .await
        .unwrap()
}

/// Reaches the peer directly; everything else is as through gateways.
struct Direct {
    material: MaterialReader,
    peer: watch::Receiver<Option<SocketAddr>>,
}

impl Dial for Direct {
    fn dial<'a>(&'a self, to: &'a Destination) -> BoxFuture<'a, io::Result<Box<dyn Io>>> {
        Box::pin(async move {
            let address = *self.peer.borrow();
            let address = address.ok_or_else(|| io::Error::other("the peer is not there"))?;
            let stream = TcpStream::connect(address).await?;
            let config = peer_config(&self.material, to)?;
            let connector = TlsConnector::from(Arc::new(config));
            let stream = connector.connect(server_name(to)?, stream).await?;
            Ok(Box::new(stream) as Box<dyn Io>)
        })
    }
}

pub(crate) fn cluster(name: &str) -> ClusterId {
    name.parse().unwrap()
}

/// Logs of the parts, for whoever looks at a failed test.
pub(crate) fn logs() {
    static ONCE: OnceLock<()> = OnceLock::new();
    ONCE.get_or_init(|| {
        let filter = std::env::var("RUST_LOG").unwrap_or_else(|_| "off".into());
        let _ = linkspan_runtime::logging::init(linkspan_runtime::logging::Format::Text, &filter);
    });
}

//! Servers without a sidecar: inner mTLS ends in a real gateway of their cluster, and goes on in
//! plain text to a real server.

mod common;

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use common::{Gateway, PATIENCE, cluster_id, domain, endpoint_id, export, link, patiently, pki};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Full};
use hyper::client::conn::http2::{self, SendRequest};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use linkspan_api::v1::StreamCode;
use linkspan_dataplane::connect::mtls::{
    ConnectError, ConnectLimits, Connected, Connector, InnerAlpn, Upstream, Via,
};
use linkspan_dataplane::discover::{InboundPort, InboundService, Snapshot, UnmeshedServer};
use linkspan_dataplane::target::Target;
use linkspan_routing::AppProtocol;
use linkspan_trust::testing::{Pki, trust_domain, workload};
use linkspan_trust::{MaterialWriter, SpiffeId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const NAME: &str = "old-1";

/// A plain HTTP/1.1 server that answers with who calls, as it is told.
async fn plain_http() -> SocketAddr {
    let (listener, address) = common::listener().await;
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let answer = service_fn(|request: Request<hyper::body::Incoming>| async move {
                let told: Vec<_> = request
                    .headers()
                    .get_all("x-forwarded-client-cert")
                    .iter()
                    .map(|value| value.to_str().unwrap().to_owned())
                    .collect();
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(told.join("|")))))
            });
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(tcp), answer));
        }
    });
    address
}

/// West, which has one server without a sidecar, and east; they are linked.
struct Scene {
    pki: Arc<Pki>,
    east: Gateway,
    west: Gateway,
    server: SocketAddr,
    protocol: AppProtocol,
    writers: Vec<MaterialWriter>,
}

impl Scene {
    async fn start(server: SocketAddr, protocol: AppProtocol) -> Self {
        let pki = pki();
        let (east, west) = tokio::join!(
            Gateway::start(&pki, "east", "east-1"),
            Gateway::start(&pki, "west", "west-1"),
        );
        Self::linked((pki, east, west), server, protocol).await
    }

    async fn linked(
        (pki, east, west): (Arc<Pki>, Gateway, Gateway),
        server: SocketAddr,
        protocol: AppProtocol,
    ) -> Self {
        let mut scene = Self {
            pki,
            east,
            west,
            server,
            protocol,
            writers: Vec::new(),
        };
        scene.tell(|_| {});
        let links = vec![link("west", &[scene.west.addresses.tunnel])];
        scene.east.tell(links, Vec::new());
        scene.east.until_up("west").await;
        scene.west.until_up("east").await;
        scene
    }

    /// What west's gateway is told, changed.
    fn tell(&self, change: impl FnOnce(&mut Snapshot)) {
        let port = InboundPort {
            port: 80,
            target_port: 8080,
            app_protocol: self.protocol,
        };
        let mut snapshot = Snapshot {
            links: vec![link("east", &[]), link("north", &[])],
            exported: vec![export(&["east"], Vec::new())],
            inbound: vec![InboundService {
                key: "shop/checkout".parse().unwrap(),
                ports: vec![port],
                exported_to: BTreeSet::from([trust_domain(&domain("east"))]),
                unmeshed_clients: false,
            }],
            servers: vec![UnmeshedServer {
                service: "shop/checkout".parse().unwrap(),
                id: endpoint_id(NAME),
                ready: true,
                addresses: [(80, self.server)].into(),
            }],
            ..Snapshot::default()
        };
        change(&mut snapshot);
        self.west.snapshot.send_replace(Some(Arc::new(snapshot)));
    }

    /// One try to get an inner connection to the server, by the egress of that gateway.
    async fn try_connect(
        &mut self,
        caller: &SpiffeId,
        via: SocketAddr,
        alpn: InnerAlpn,
    ) -> Result<Connected, ConnectError> {
        let (writer, material) = self.pki.material(caller);
        self.writers.push(writer);
        let connector = Connector::new(material, ConnectLimits::default());
        let upstream = Upstream {
            via: Via::Gateway(via),
            target: Target {
                endpoint: Some(endpoint_id(NAME)),
                port: 80,
                service: "shop/checkout".parse().unwrap(),
                cluster: cluster_id("west").label(),
            },
            identity: server_id(),
            alpn,
        };
        connector.connect(&upstream).await
    }

    /// The same, as soon as there is a place: what a gateway was told a moment ago it may not have
    /// taken over.
    async fn connect(
        &mut self,
        caller: &SpiffeId,
        via: SocketAddr,
        alpn: InnerAlpn,
    ) -> Result<Connected, ConnectError> {
        let settled = async {
            loop {
                match self.try_connect(caller, via, alpn).await {
                    Err(error) if is_busy(&error) => tokio::task::yield_now().await,
                    settled => return settled,
                }
            }
        };
        patiently("a connection or a refusal", settled).await
    }

    async fn http(&mut self, caller: &SpiffeId, via: SocketAddr) -> SendRequest<Empty<Bytes>> {
        let io = self.connect(caller, via, InnerAlpn::Http).await.unwrap();
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(io))
            .await
            .unwrap();
        tokio::spawn(connection);
        sender
    }

    async fn refused(&mut self, via: SocketAddr) -> StreamCode {
        let caller = frontend("east");
        match self.connect(&caller, via, InnerAlpn::Http).await {
            Err(ConnectError::Refused { code, .. }) => code,
            other => panic!("{other:?}"),
        }
    }
}

fn is_busy(error: &ConnectError) -> bool {
    matches!(
        error,
        ConnectError::Refused {
            code: StreamCode::Busy,
            ..
        }
    )
}

fn server_id() -> SpiffeId {
    SpiffeId::unmeshed_server(&trust_domain(&domain("west")))
}

fn frontend(cluster: &str) -> SpiffeId {
    workload(&domain(cluster), "shop", "frontend")
}

async fn ask(sender: &mut SendRequest<Empty<Bytes>>) -> hyper::Result<(StatusCode, String)> {
    let request = Request::get("http://checkout.shop/")
        .header("x-forwarded-client-cert", "URI=forged")
        .body(Empty::new())
        .unwrap();
    let answer = patiently("an answer", sender.send_request(request)).await?;
    let status = answer.status();
    let body = answer.into_body().collect().await?.to_bytes();
    Ok((status, String::from_utf8(body.to_vec()).unwrap()))
}

#[tokio::test]
async fn the_server_is_told_who_calls_from_both_clusters() {
    let mut scene = Scene::start(plain_http().await, AppProtocol::Http).await;
    let (tunnel, home) = (scene.east.addresses.egress, scene.west.addresses.egress);
    for (cluster, via) in [("east", tunnel), ("west", home)] {
        let caller = frontend(cluster);
        let mut sender = scene.http(&caller, via).await;
        let told = format!("By={};URI={caller}", server_id());
        assert_eq!(ask(&mut sender).await.unwrap(), (StatusCode::OK, told));
    }
}

#[tokio::test]
async fn only_those_are_served_whom_a_sidecar_would_serve() {
    let mut scene = Scene::start(plain_http().await, AppProtocol::Http).await;
    let home = scene.west.addresses.egress;
    // Somehow in this cluster's network; what counts is who proves what.
    let (own, client) = (trust_domain(&domain("west")), trust_domain(&domain("east")));
    for caller in [
        SpiffeId::gateway(&own),
        SpiffeId::federation(&own),
        SpiffeId::unmeshed_client(&own),
        SpiffeId::unmeshed_client(&client),
    ] {
        let mut sender = scene.http(&caller, home).await;
        let (status, _) = ask(&mut sender).await.unwrap();
        assert_eq!(status, StatusCode::FORBIDDEN, "{caller}");
    }
    // A domain to which nothing is exported does not even get through the handshake.
    let stranger = frontend("north");
    let io = scene.connect(&stranger, home, InnerAlpn::Http).await;
    let served = match io {
        Ok(io) => {
            let shaken = http2::handshake(TokioExecutor::new(), TokioIo::new(io)).await;
            match shaken {
                Ok((mut sender, connection)) => {
                    tokio::spawn(connection);
                    ask(&mut sender).await.is_ok()
                }
                Err(_) => false,
            }
        }
        Err(_) => false,
    };
    assert!(!served);
}

#[tokio::test]
async fn what_is_no_longer_exported_is_refused_also_on_open_connections() {
    let mut scene = Scene::start(plain_http().await, AppProtocol::Http).await;
    let tunnel = scene.east.addresses.egress;
    let mut sender = scene.http(&frontend("east"), tunnel).await;
    assert_eq!(ask(&mut sender).await.unwrap().0, StatusCode::OK);
    scene.tell(|snapshot| snapshot.inbound[0].exported_to.clear());
    let refused = async { while ask(&mut sender).await.is_ok() {} };
    patiently("the refusal", refused).await;
    // The server is gone, for whoever it was.
    scene.tell(|snapshot| snapshot.servers.clear());
    assert_eq!(scene.refused(tunnel).await, StreamCode::EndpointGone);
    let home = scene.west.addresses.egress;
    assert_eq!(scene.refused(home).await, StreamCode::EndpointGone);
}

#[tokio::test]
async fn the_gateway_checks_before_it_takes_a_call() {
    let mut scene = Scene::start(plain_http().await, AppProtocol::Http).await;
    let both = [scene.east.addresses.egress, scene.west.addresses.egress];
    let part = scene.west.addresses.debug;
    for via in both {
        scene.tell(|snapshot| snapshot.servers[0].ready = false);
        assert_eq!(scene.refused(via).await, StreamCode::EndpointGone);
        scene.tell(|snapshot| snapshot.servers[0].addresses = [(80, part)].into());
        assert_eq!(scene.refused(via).await, StreamCode::Denied);
        scene.tell(|snapshot| snapshot.servers[0].addresses = [(81, part)].into());
        assert_eq!(scene.refused(via).await, StreamCode::NoSuchPort);
    }
    scene.tell(|snapshot| snapshot.exported.clear());
    assert_eq!(scene.refused(both[0]).await, StreamCode::NotExported);
}

#[tokio::test]
async fn opaque_bytes_keep_their_half_close_and_their_resets() {
    let (listener, address) = common::listener().await;
    let mut scene = Scene::start(address, AppProtocol::Tcp).await;
    let (tunnel, home) = (scene.east.addresses.egress, scene.west.addresses.egress);
    for (cluster, via) in [("east", tunnel), ("west", home)] {
        let caller = frontend(cluster);
        let mut io = scene.connect(&caller, via, InnerAlpn::Tcp).await.unwrap();
        let mut there = accepted(&listener).await;
        io.write_all(b"what is asked").await.unwrap();
        io.shutdown().await.unwrap();
        let mut heard = Vec::new();
        let heard_all = there.read_to_end(&mut heard);
        patiently("the question", heard_all).await.unwrap();
        assert_eq!(heard, b"what is asked");
        let answer = vec![7; 3_000_000];
        let mut read = Vec::new();
        let answering = async {
            there.write_all(&answer).await.unwrap();
            there.shutdown().await.unwrap();
        };
        let both = async { tokio::join!(answering, io.read_to_end(&mut read)).1 };
        patiently("the answer", both).await.unwrap();
        assert_eq!(read, answer);

        // An answer that breaks off is no end.
        let mut io = scene.connect(&caller, via, InnerAlpn::Tcp).await.unwrap();
        let mut there = accepted(&listener).await;
        there.write_all(b"half of").await.unwrap();
        let mut part = [0; 7];
        patiently("a part", io.read_exact(&mut part)).await.unwrap();
        there.set_zero_linger().unwrap();
        drop(there);
        let end = patiently("the reset", io.read(&mut part)).await;
        assert!(end.is_err(), "{end:?}");
    }
}

async fn accepted(listener: &TcpListener) -> tokio::net::TcpStream {
    let accepting = patiently("the server is dialled", listener.accept());
    accepting.await.unwrap().0
}

#[tokio::test]
async fn a_server_that_takes_no_connection_is_told_as_not_processed() {
    let (listener, address) = common::listener().await;
    let mut scene = Scene::start(address, AppProtocol::Http).await;
    drop(listener);
    let tunnel = scene.east.addresses.egress;
    let mut sender = scene.http(&frontend("east"), tunnel).await;
    let error = ask(&mut sender).await.unwrap_err();
    let source = std::error::Error::source(&error);
    let h2 = source.and_then(|source| source.downcast_ref::<h2::Error>());
    let reason = h2.and_then(h2::Error::reason);
    assert_eq!(reason, Some(h2::Reason::REFUSED_STREAM), "{error:?}");
}

#[tokio::test]
async fn a_gateway_that_stops_ends_with_its_servers_calls() {
    let mut scene = Scene::start(plain_http().await, AppProtocol::Http).await;
    let tunnel = scene.east.addresses.egress;
    let mut sender = scene.http(&frontend("east"), tunnel).await;
    assert_eq!(ask(&mut sender).await.unwrap().0, StatusCode::OK);
    let began = tokio::time::Instant::now();
    scene.west.stop.drain();
    scene.west.ended().await.unwrap();
    assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
}

#[tokio::test]
async fn one_cluster_takes_no_more_than_half_of_the_places() {
    let pki = pki();
    let mut config = common::config("west", "west-1", &pki);
    config.limits.servers = 4;
    let west = Gateway::with(&pki, config, &common::gateway_id("west")).await;
    let east = Gateway::start(&pki, "east", "east-1").await;
    let server = plain_http().await;
    let mut scene = Scene::linked((pki, east, west), server, AppProtocol::Http).await;
    let (tunnel, home) = (scene.east.addresses.egress, scene.west.addresses.egress);
    let mut held = Vec::new();
    for (cluster, via) in [("east", tunnel), ("west", home)] {
        for _ in 0..2 {
            let mut sender = scene.http(&frontend(cluster), via).await;
            assert_eq!(ask(&mut sender).await.unwrap().0, StatusCode::OK);
            held.push(sender);
        }
        let caller = frontend(cluster);
        let one_more = scene.try_connect(&caller, via, InnerAlpn::Http).await;
        assert!(one_more.is_err_and(|error| is_busy(&error)), "{cluster}");
    }
    held.clear();
    let mut sender = scene.http(&frontend("east"), tunnel).await;
    assert_eq!(ask(&mut sender).await.unwrap().0, StatusCode::OK);
}

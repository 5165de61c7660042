//! Who is who across clusters, from the outside: real processes, real certificates.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use linkspan_api::v1::StreamCode;
use linkspan_dataplane::{
    connect::mtls::{ConnectError, ConnectLimits, Connector, InnerAlpn, Upstream, Via},
    identity::first_contact,
    target::Target,
};
use linkspan_routing::{ClusterId, EndpointId};
use linkspan_tests::clusters::{Cluster, Host, NAMESPACE, PORT, Service, binary};
use linkspan_trust::{BundleSet, SpiffeId};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::timeout,
};

const CHECKOUT: Service = Service {
    name: "checkout",
    app_protocol: "http",
    exported: true,
};
const LEDGER: Service = Service {
    name: "ledger",
    app_protocol: "http",
    exported: false,
};
const PATIENCE: Duration = Duration::from_secs(20);

/// East calls; west serves `checkout`, which it exports, and `ledger`, which it does not.
struct World {
    east: Cluster<Host>,
    west: Cluster<Host>,
}

impl World {
    async fn start(seed: u64) -> Result<Self> {
        let host = Host::new(seed);
        let east = Cluster::start("east", host.clone(), &[], 1).await?;
        let mut west = Cluster::start("west", host, &[CHECKOUT, LEDGER], 1).await?;
        east.link(&west).await?;
        west.link(&east).await?;
        west.endpoint("checkout", "checkout-1", &binary()?, &app("checkout-1"))
            .await?;
        west.endpoint("ledger", "ledger-1", &binary()?, &app("ledger-1"))
            .await?;
        west.wait_for_endpoints("ledger", &[("west", 1)]).await?;
        east.wait_for_endpoints("checkout", &[("west", 1)]).await?;
        east.wait_for_link(true).await?;
        Ok(Self { east, west })
    }

    /// This very process as a workload of east.
    async fn connector(&self) -> Result<Connector> {
        let (mut writer, reader) = first_contact(&self.east.membership("tester").await?).await?;
        let mut bundles = BundleSet::new();
        for cluster in [&self.east, &self.west] {
            let (domain, bundle) = cluster.bundle().await?;
            bundles.insert(domain, bundle)?;
        }
        writer.set_bundles(bundles);
        Ok(Connector::new(reader, ConnectLimits::default()))
    }

    fn checkout(&self) -> Upstream {
        Upstream {
            via: Via::Gateway(self.east.egresses()[0]),
            target: Target {
                endpoint: Some(EndpointId::from_uid("west-checkout-1")),
                port: PORT,
                service: format!("{NAMESPACE}/checkout").parse().expect("a service"),
                cluster: "west".parse::<ClusterId>().expect("a cluster id").label(),
            },
            identity: identity_of("checkout"),
            alpn: InnerAlpn::Http,
        }
    }
}

fn identity_of(account: &str) -> SpiffeId {
    format!("spiffe://west.test.linkspan.internal/ns/{NAMESPACE}/sa/{account}")
        .parse()
        .expect("an id")
}

fn app(name: &str) -> Vec<String> {
    [
        "app",
        "checkout",
        "--listen",
        "{listen}",
        "--cluster",
        "west",
        "--instance",
        name,
        "--name",
        name,
    ]
    .map(str::to_owned)
    .to_vec()
}

#[tokio::test]
async fn the_application_is_told_who_called_from_the_other_cluster() -> Result<()> {
    let mut world = World::start(101).await?;
    let outbound = world.east.caller("frontend", &["checkout"]).await?;
    let forged = "URI=spiffe://east.test.linkspan.internal/ns/shop/sa/admin";
    let answer = get(outbound["checkout"], forged)
        .await
        .with_context(|| world.east.logs())?;
    let caller = answer["caller"].as_str().context("no caller")?;
    assert!(
        caller.contains("URI=spiffe://east.test.linkspan.internal/ns/shop/sa/frontend"),
        "{caller}"
    );
    assert!(
        !caller.contains("admin"),
        "what the client claims is dropped: {caller}"
    );
    Ok(())
}

#[tokio::test]
async fn the_source_sees_the_destination_workload_and_accepts_no_other() -> Result<()> {
    let world = World::start(202).await?;
    let connector = world.connector().await?;
    let connected = connector.connect(&world.checkout()).await?;
    assert_eq!(connected.peer(), &identity_of("checkout"));

    let other = Upstream {
        identity: identity_of("ledger"),
        ..world.checkout()
    };
    let error = connector
        .connect(&other)
        .await
        .expect_err("another workload answers");
    assert!(matches!(error, ConnectError::Handshake { .. }), "{error:?}");
    Ok(())
}

#[tokio::test]
async fn what_is_not_exported_is_refused_each_with_its_code() -> Result<()> {
    let world = World::start(303).await?;
    let connector = world.connector().await?;
    let target = world.checkout().target;
    let anothers = Target {
        endpoint: Some(EndpointId::from_uid("west-ledger-1")),
        ..target.clone()
    };
    let port = Target {
        port: 81,
        ..target.clone()
    };
    let secret = Target {
        service: format!("{NAMESPACE}/ledger").parse()?,
        ..anothers.clone()
    };
    let nowhere = Target {
        cluster: "north".parse::<ClusterId>()?.label(),
        ..target
    };
    for (target, expected) in [
        (anothers, StreamCode::EndpointGone),
        (port, StreamCode::NoSuchPort),
        (secret, StreamCode::NotExported),
        (nowhere, StreamCode::NoTunnel),
    ] {
        let name = target.to_string();
        let error = connector
            .connect(&Upstream {
                target,
                ..world.checkout()
            })
            .await
            .expect_err("refused");
        assert!(
            matches!(error, ConnectError::Refused { code, .. } if code == expected),
            "{name}: expected {expected:?}, found {error:?}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn one_flipped_byte_ends_the_connection_with_an_alert() -> Result<()> {
    let world = World::start(404).await?;
    let connector = world.connector().await?;
    let flip = Arc::new(AtomicBool::new(false));
    let meddler = meddle(world.east.egresses()[0], Arc::clone(&flip)).await?;
    let through = Upstream {
        via: Via::Gateway(meddler),
        ..world.checkout()
    };

    let mut connected = connector.connect(&through).await?;
    flip.store(true, Ordering::SeqCst);
    connected
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .await?;
    connected.flush().await?;
    let error = timeout(PATIENCE, connected.read_to_end(&mut Vec::new()))
        .await?
        .expect_err("not a clean end");
    assert!(
        error.to_string().contains("BadRecordMac"),
        "an alert tells why: {error}"
    );
    Ok(())
}

/// Forwards to the gateway, and flips one bit of the next bytes once told to.
async fn meddle(gateway: SocketAddr, flip: Arc<AtomicBool>) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(gateway).await?;
            let (mut from_client, mut to_client) = client.into_split();
            let (mut from_server, mut to_server) = server.into_split();
            tokio::spawn(async move { tokio::io::copy(&mut from_server, &mut to_client).await });
            let mut buffer = vec![0; 4096];
            loop {
                let read = from_client.read(&mut buffer).await?;
                if read == 0 {
                    break;
                }
                if flip.swap(false, Ordering::SeqCst) {
                    buffer[read - 1] ^= 1;
                }
                to_server.write_all(&buffer[..read]).await?;
            }
        }
        std::io::Result::Ok(())
    });
    Ok(address)
}

/// One HTTP/1.1 request with a forged identity header.
async fn get(target: SocketAddr, forged: &str) -> Result<serde_json::Value> {
    let stream = timeout(PATIENCE, reachable(target)).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = http::Request::get("/")
        .header("host", "checkout.shop")
        .header("x-forwarded-client-cert", forged)
        .body(Empty::<Bytes>::new())?;
    let response = timeout(PATIENCE, sender.send_request(request)).await??;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    serde_json::from_slice(&body)
        .with_context(|| format!("{status}: {}", String::from_utf8_lossy(&body)))
}

/// The listener of a sidecar that is just starting.
async fn reachable(target: SocketAddr) -> TcpStream {
    let mut every = tokio::time::interval(Duration::from_millis(20));
    loop {
        every.tick().await;
        if let Ok(stream) = TcpStream::connect(target).await {
            return stream;
        }
    }
}

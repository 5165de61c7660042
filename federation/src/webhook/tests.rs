//! The port itself: a real handshake, and what is not answered.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use linkspan_core::{Locality, inject::Injection};
use linkspan_runtime::stop::Stop;
use linkspan_trust::CertificateAuthority;
use rustls::{ClientConfig, RootCertStore};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{Webhook, serve};

const NAME: &str = "linkspan-federation.linkspan-system.svc";

struct Bench {
    address: SocketAddr,
    client: TlsConnector,
    stop: Stop,
    serving: JoinHandle<()>,
    // The certificate ends with it.
    _configs: watch::Sender<Option<Arc<rustls::ServerConfig>>>,
}

fn injection() -> Injection {
    Injection {
        cluster: "east".parse().unwrap(),
        trust_domain: "east.test".parse().unwrap(),
        federation: "federation.test:15010".into(),
        roots: "-----BEGIN CERTIFICATE-----\n".into(),
        locality: Locality::unknown(),
        image: "linkspan:dev".into(),
        image_pull_policy: "Never".into(),
    }
}

async fn bench() -> Bench {
    let now = std::time::SystemTime::now();
    let ca = CertificateAuthority::create(&"east.test".parse().unwrap(), now).unwrap();
    let host = ca.issue_host(NAME, Duration::from_secs(3600), now).unwrap();
    let config = Arc::new(host.server_config(&[b"http/1.1"]).unwrap());
    let (sender, configs) = watch::channel(Some(config));
    let mut roots = RootCertStore::empty();
    roots.add(ca.bundle().roots[0].clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = Stop::new();
    let webhook = Webhook::new(configs, Arc::new(injection));
    let serving = tokio::spawn(serve(listener, webhook, stop.clone()));
    Bench {
        address,
        client: TlsConnector::from(Arc::new(client)),
        stop,
        serving,
        _configs: sender,
    }
}

impl Bench {
    async fn connect(&self) -> TlsStream<TcpStream> {
        let socket = TcpStream::connect(self.address).await.unwrap();
        let name = NAME.try_into().unwrap();
        self.client.connect(name, socket).await.unwrap()
    }

    /// Its status, and what it says.
    async fn ask(&self, head: &str, body: &[u8]) -> (u16, String) {
        let mut stream = self.connect().await;
        let head = format!(
            "{head} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        // What is too large is not read to its end.
        let _ = stream.write_all(body).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok());
        (status.unwrap_or(0), answer)
    }
}

#[tokio::test]
async fn what_is_no_review_is_told_so_and_ends() {
    let bench = bench().await;
    assert_eq!(bench.ask("POST /", b"").await.0, 404);
    assert_eq!(bench.ask("GET /inject", b"").await.0, 405);
    let (status, said) = bench.ask("POST /inject?timeout=10s", b"{}").await;
    assert_eq!(status, 400);
    assert!(said.contains("AdmissionReview"), "{said}");
    // Told by its length, before any of it is read.
    let mut stream = bench.connect().await;
    let head = b"POST /inject HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000000\r\n\r\n";
    stream.write_all(head).await.unwrap();
    stream.write_all(&vec![b' '; 3 << 20]).await.ok();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 413");
}

#[tokio::test]
async fn a_review_is_answered_also_while_it_stops() {
    let bench = bench().await;
    let review = br#"{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
        "uid": "7", "operation": "CREATE", "kind": {"group": "", "kind": "Pod"},
        "object": {"metadata": {}, "spec": {"containers": []}}}}"#;
    for (path, captured) in [("/inject", true), ("/inject-without-capture", false)] {
        let (status, said) = bench.ask(&format!("POST {path}"), review).await;
        assert_eq!(status, 200);
        assert!(
            said.contains("\"allowed\":true") && said.contains("JSONPatch"),
            "{said}"
        );
        assert_eq!(!said.contains("warnings"), captured, "{said}");
    }
    let mut stream = bench.connect().await;
    let (first, rest) = review.split_at(20);
    let head = format!(
        "POST /inject HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: {}\r\n\r\n",
        review.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    // It is told so once the review is being read.
    let mut going_on = [0; 25];
    stream.read_exact(&mut going_on).await.unwrap();
    assert_eq!(&going_on, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(first).await.unwrap();
    bench.stop.drain();
    while TcpStream::connect(bench.address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    stream.write_all(rest).await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert!(
        answer.starts_with(b"HTTP/1.1 200"),
        "{}",
        String::from_utf8_lossy(&answer)
    );
    bench.serving.await.unwrap();
}

use std::sync::Arc;

use proptest::prelude::*;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    net::TcpListener,
};

use super::*;

/// A pipe that remembers whether it was reset: then its peer sees an error instead of an end.
struct Pipe {
    io: DuplexStream,
    reset: Arc<std::sync::atomic::AtomicBool>,
}

impl AsyncRead for Pipe {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

impl Duplex for Pipe {
    fn reset(&mut self) {
        self.reset.store(true, Relaxed);
    }
}

struct Bench {
    near: DuplexStream,
    far: DuplexStream,
    first: Pipe,
    second: Pipe,
}

/// Two pipes with a relay's place between them; `size` bytes fit into each.
fn bench(size: usize) -> Bench {
    let ((near, first), (second, far)) = (duplex(size), duplex(size));
    Bench {
        near,
        far,
        first: pipe(first),
        second: pipe(second),
    }
}

fn pipe(io: DuplexStream) -> Pipe {
    Pipe {
        io,
        reset: Arc::default(),
    }
}

const LIMITS: RelayLimits = RelayLimits {
    idle: Duration::from_secs(60),
};

/// Writes `bytes` in pieces, then ends its direction; reads to the end meanwhile.
async fn talk<IO: AsyncRead + AsyncWrite + Unpin>(
    io: IO,
    pieces: Vec<Vec<u8>>,
) -> io::Result<Vec<u8>> {
    let (mut reader, mut writer) = tokio::io::split(io);
    let writing = async move {
        for piece in pieces {
            writer.write_all(&piece).await?;
            tokio::task::yield_now().await;
        }
        writer.shutdown().await?;
        Ok::<_, io::Error>(writer)
    };
    let mut heard = Vec::new();
    let (written, read) = tokio::join!(writing, reader.read_to_end(&mut heard));
    written?;
    read.map(|_| heard)
}

#[tokio::test]
async fn a_half_close_arrives_as_a_half_close() {
    let Bench {
        mut near,
        mut far,
        mut first,
        mut second,
    } = bench(64);
    let relaying = tokio::spawn(async move {
        let counters = Counters::default();
        relay(&mut first, &mut second, LIMITS, &counters).await
    });
    near.write_all(b"question").await.unwrap();
    near.shutdown().await.unwrap();
    let mut question = String::new();
    far.read_to_string(&mut question).await.unwrap();
    far.write_all(b"long answer").await.unwrap();
    far.shutdown().await.unwrap();
    let mut answer = String::new();
    near.read_to_string(&mut answer).await.unwrap();
    assert_eq!(
        (question.as_str(), answer.as_str()),
        ("question", "long answer")
    );
    assert_eq!(
        relaying.await.unwrap().unwrap(),
        Transfer {
            sent: 8,
            received: 11
        }
    );
}

#[tokio::test]
async fn a_dropped_relay_resets_both_sides() {
    let Bench {
        near,
        far: _far,
        mut first,
        mut second,
    } = bench(64);
    let resets = [first.reset.clone(), second.reset.clone()];
    drop(near);
    {
        let counters = Counters::default();
        let relaying = relay(&mut first, &mut second, LIMITS, &counters);
        // One direction ends; the other never does.
        assert!(futures_util::FutureExt::now_or_never(relaying).is_none());
    }
    assert!(resets.iter().all(|reset| reset.load(Relaxed)));
}

#[tokio::test(start_paused = true)]
async fn idle_is_measured_over_both_directions() {
    let Bench {
        near: _near,
        mut far,
        mut first,
        mut second,
    } = bench(64);
    let resets = [first.reset.clone(), second.reset.clone()];
    let begin = Instant::now();
    let relaying = tokio::spawn(async move {
        let counters = Counters::default();
        relay(&mut first, &mut second, LIMITS, &counters).await
    });
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_secs(50)).await;
        far.write_all(b"x").await.unwrap();
    }
    let end = relaying.await.unwrap();
    assert!(matches!(end, Err(RelayError::Idle(_))), "{end:?}");
    assert_eq!(begin.elapsed().as_secs(), 5 * 50 + 60);
    assert!(resets.iter().all(|reset| reset.load(Relaxed)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is said in whatever pieces through however narrow pipes is heard, in order, with its end.
    #[test]
    fn relays_any_conversation(
        size in 1_usize..100,
        question in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..8),
        answer in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..8),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let Bench { near, far, mut first, mut second } = bench(size);
            let counters = Counters::default();
            let (heard_far, heard_near, end) = tokio::join!(
                talk(far, answer.clone()),
                talk(near, question.clone()),
                relay(&mut first, &mut second, LIMITS, &counters),
            );
            assert_eq!(heard_far.unwrap(), question.concat());
            assert_eq!(heard_near.unwrap(), answer.concat());
            let transfer = end.unwrap();
            assert_eq!(transfer.sent as usize, question.concat().len());
            assert_eq!(transfer.received as usize, answer.concat().len());
            assert!(!first.reset.load(Relaxed) && !second.reset.load(Relaxed));
        });
    }
}

/// A connection over loopback, dialled side first.
async fn loopback() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dialled = TcpStream::connect(listener.local_addr().unwrap())
        .await
        .unwrap();
    (dialled, listener.accept().await.unwrap().0)
}

/// How a schedule ends at one side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Fin,
    Reset,
}

/// What the other side of a connection sees of it.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    All(Vec<u8>),
    Cut,
}

/// One side writes, waits until the other has read everything, then ends; what did the other see?
async fn run(mut near: TcpStream, mut far: TcpStream, pieces: Vec<Vec<u8>>, end: End) -> Seen {
    let total = pieces.concat().len();
    let (read_all, all_read) = tokio::sync::oneshot::channel::<()>();
    let writing = async move {
        for piece in &pieces {
            near.write_all(piece).await.unwrap();
        }
        // A reset may drop what is under way, so it waits for that to have arrived.
        all_read.await.unwrap();
        match end {
            End::Fin => near.shutdown().await.unwrap(),
            End::Reset => Duplex::reset(&mut near),
        }
        (end == End::Fin).then_some(near)
    };
    let reading = async move {
        let mut heard = vec![0; total];
        far.read_exact(&mut heard).await.unwrap();
        read_all.send(()).unwrap();
        let rest = far.read(&mut [0; 1]).await;
        (heard, rest, far)
    };
    let (_near, (heard, rest, _far)) = tokio::join!(writing, reading);
    match rest {
        Ok(0) => Seen::All(heard),
        Ok(_) => panic!("more was read than written"),
        Err(_) => Seen::Cut,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Over real sockets, an end through a relay is seen as the same end over a direct connection.
    #[test]
    fn ends_are_as_on_a_direct_connection(
        pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..5000), 0..6),
        reset: bool,
    ) {
        let end = if reset { End::Reset } else { End::Fin };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (near, far) = loopback().await;
            let direct = run(near, far, pieces.clone(), end).await;
            let (near, mut first) = loopback().await;
            let (mut second, far) = loopback().await;
            let relaying = tokio::spawn(async move {
                let counters = Counters::default();
                relay(&mut first, &mut second, LIMITS, &counters).await.is_ok()
            });
            let relayed = run(near, far, pieces, end).await;
            assert_eq!(relayed, direct);
            relaying.abort();
        });
    }
}

/// A TLS pair over the given connection; identities do not matter here.
async fn tls(
    near: TcpStream,
    far: TcpStream,
) -> (
    tokio_rustls::client::TlsStream<TcpStream>,
    tokio_rustls::server::TlsStream<TcpStream>,
) {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["relay.test".to_owned()]).unwrap();
    let certificate: CertificateDer<'static> = certificate.self_signed(&key).unwrap().der().clone();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let client = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let server = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let name = rustls::pki_types::ServerName::try_from("relay.test").unwrap();
    let (near, far) = tokio::join!(
        tokio_rustls::TlsConnector::from(Arc::new(client)).connect(name, near),
        tokio_rustls::TlsAcceptor::from(Arc::new(server)).accept(far),
    );
    (near.unwrap(), far.unwrap())
}

#[tokio::test]
async fn tls_half_close_is_close_notify() {
    let (near, first) = loopback().await;
    let (near, mut first) = tls(near, first).await;
    let (mut second, far) = loopback().await;
    let counters = Counters::default();
    let (heard_near, heard_far, end) = tokio::join!(
        talk(near, vec![b"question".to_vec()]),
        talk(far, vec![b"answer".to_vec()]),
        relay(&mut first, &mut second, LIMITS, &counters),
    );
    assert_eq!(heard_near.unwrap(), b"answer");
    assert_eq!(heard_far.unwrap(), b"question");
    assert_eq!(
        end.unwrap(),
        Transfer {
            sent: 8,
            received: 6
        }
    );
}

#[tokio::test]
async fn tls_without_close_notify_is_truncation() {
    let (near, first) = loopback().await;
    let (mut near, mut first) = tls(near, first).await;
    let (mut second, mut far) = loopback().await;
    let relaying = tokio::spawn(async move {
        let counters = Counters::default();
        relay(&mut first, &mut second, LIMITS, &counters).await
    });
    near.write_all(b"half a").await.unwrap();
    near.flush().await.unwrap();
    let mut heard = [0; 6];
    far.read_exact(&mut heard).await.unwrap();
    // Only the TCP connection ends, as an attacker (or a crash) would end it.
    near.get_mut().0.shutdown().await.unwrap();
    let rest = far.read(&mut heard).await;
    assert!(
        rest.is_err(),
        "a cut connection looked like a clean end: {rest:?}"
    );
    let end = relaying.await.unwrap();
    assert!(
        matches!(
            end,
            Err(RelayError::Read {
                side: Side::First,
                ..
            })
        ),
        "{end:?}"
    );
}

#[tokio::test]
async fn a_reset_reaches_the_other_side_in_the_middle_of_a_transfer() {
    let (mut near, mut first) = loopback().await;
    let (mut second, mut far) = loopback().await;
    let relaying = tokio::spawn(async move {
        let counters = Counters::default();
        relay(&mut first, &mut second, LIMITS, &counters)
            .await
            .is_err()
    });
    near.write_all(&[7; 1000]).await.unwrap();
    let mut heard = [0; 1000];
    far.read_exact(&mut heard).await.unwrap();
    Duplex::reset(&mut far);
    drop(far);
    let mut rest = Vec::new();
    assert!(near.read_to_end(&mut rest).await.is_err());
    assert!(relaying.await.unwrap());
}

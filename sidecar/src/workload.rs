//! The workload's registration: what federation is told of it, and whether it is ready.

use std::{net::SocketAddr, time::Duration};

use http::{Request, StatusCode, header};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use linkspan_api::v1::{Locality, WorkloadRegistration};
use linkspan_dataplane::{connect::tcp, discover::Registration};
use linkspan_runtime::{BoxError, process::chain, stop::Stop};
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval, timeout},
};
use tracing::{info, warn};

use crate::config::{Probe, Readiness, Workload};

/// Probes in a row that must fail before a ready workload counts as not ready.
const FAILURES: u32 = 2;

/// What federation is told at first. A workload that is probed is not ready before its first success.
/// `incarnation` must be greater than that of any earlier process for this workload.
pub(crate) fn registration(
    workload: &Workload,
    address: SocketAddr,
    incarnation: u64,
) -> WorkloadRegistration {
    WorkloadRegistration {
        uid: workload.uid.clone(),
        namespace: workload.namespace.clone(),
        service_account: workload.service_account.clone(),
        labels: workload.labels.clone().into_iter().collect(),
        locality: Some(Locality {
            region: workload.locality.region.to_string(),
            zone: workload.locality.zone.to_string(),
        }),
        address: address.to_string(),
        ready: workload.readiness == Readiness::Fixed(true),
        weight: workload.weight,
        hostname: workload.hostname.clone(),
        incarnation,
    }
}

/// Keeps the registration's readiness true to the workload until the stop aborts; a drain makes it
/// not ready at once.
pub(crate) async fn follow(
    workload: Workload,
    registration: watch::Sender<Registration>,
    stop: Stop,
) {
    let probing = async {
        if let Readiness::Probe(probe) = &workload.readiness {
            watch_probe(&workload, probe, &registration).await;
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = stop.draining() => {}
        () = probing => {}
    }
    set_ready(&registration, false);
    // Federation is told by whoever holds the other end.
    stop.aborted().await;
}

async fn watch_probe(
    workload: &Workload,
    probe: &Probe,
    registration: &watch::Sender<Registration>,
) {
    let app = SocketAddr::new(workload.app_address, probe.port);
    let mut judge = Judge::default();
    let mut ticks = interval(probe.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let asked = timeout(probe.timeout, ask(app, probe)).await;
        let answer =
            asked.unwrap_or_else(|_| Err(format!("no answer in {:?}", probe.timeout).into()));
        let before = judge.ready;
        judge.note(answer.is_ok());
        match (&answer, before, judge.ready) {
            (_, false, true) => info!(%app, "workload is ready"),
            (Err(error), true, false) => {
                warn!(%app, error = %chain(&**error), "workload is no longer ready");
            }
            _ => {}
        }
        set_ready(registration, judge.ready);
    }
}

fn set_ready(registration: &watch::Sender<Registration>, ready: bool) {
    registration.send_if_modified(|registration| match registration {
        Registration::Workload(workload) if workload.ready != ready => {
            workload.ready = ready;
            true
        }
        _ => false,
    });
}

/// Makes readiness of single answers: one success is enough, one failure is not.
#[derive(Debug, Default)]
struct Judge {
    ready: bool,
    failures: u32,
}

impl Judge {
    fn note(&mut self, success: bool) {
        if success {
            *self = Self {
                ready: true,
                failures: 0,
            };
        } else {
            self.failures = self.failures.saturating_add(1);
            self.ready &= self.failures < FAILURES;
        }
    }
}

async fn ask(app: SocketAddr, probe: &Probe) -> Result<(), BoxError> {
    let socket = tcp::connect(app, probe.timeout.max(Duration::from_millis(1))).await?;
    let Some(path) = &probe.path else {
        return Ok(());
    };
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(socket)).await?;
    let request = Request::get(path)
        .header(header::HOST, app.to_string())
        .header(header::USER_AGENT, "linkspan-probe")
        .body(Empty::<bytes::Bytes>::new())?;
    // The connection ends with this future, whatever of the answer's body is left. Its own end
    // says nothing: an application may close right after its answer.
    let driving = async {
        let _ = connection.await;
        std::future::pending::<()>().await;
    };
    let status = tokio::select! {
        answer = sender.send_request(request) => answer?.status(),
        () = driving => return Err("the application gave no answer".into()),
    };
    if (StatusCode::OK..StatusCode::BAD_REQUEST).contains(&status) {
        Ok(())
    } else {
        Err(format!("the application answered {status}").into())
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, net::Ipv4Addr};

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    fn workload(readiness: Readiness) -> Workload {
        Workload {
            uid: "checkout-1".to_owned(),
            namespace: "shop".to_owned(),
            service_account: "checkout".to_owned(),
            labels: BTreeMap::new(),
            locality: linkspan_routing::Locality::unknown(),
            hostname: String::new(),
            weight: 1,
            app_address: Ipv4Addr::LOCALHOST.into(),
            address: None,
            ports: BTreeMap::new(),
            readiness,
        }
    }

    fn probe(port: u16, path: Option<&str>) -> Probe {
        Probe {
            port,
            path: path.map(ToOwned::to_owned),
            interval: Duration::from_millis(5),
            timeout: Duration::from_secs(5),
        }
    }

    fn is_ready(registration: &Registration) -> bool {
        matches!(registration, Registration::Workload(workload) if workload.ready)
    }

    #[test]
    fn two_failures_in_a_row_unready() {
        let mut judge = Judge::default();
        for (success, ready) in [
            (false, false),
            (true, true),
            (false, true),
            (true, true),
            (false, true),
            (false, false),
            (true, true),
        ] {
            judge.note(success);
            assert_eq!(judge.ready, ready);
        }
    }

    #[tokio::test]
    async fn follows_the_application_and_the_drain() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let workload = workload(Readiness::Probe(probe(address.port(), None)));
        let first = Registration::Workload(registration(&workload, address, 7));
        assert!(!is_ready(&first));
        let (writer, mut reader) = watch::channel(first);
        let stop = Stop::new();
        tokio::spawn(follow(workload, writer, stop.clone()));
        reader.wait_for(is_ready).await.unwrap();
        drop(listener);
        reader
            .wait_for(|registration| !is_ready(registration))
            .await
            .unwrap();
        let _again = TcpListener::bind(address).await.unwrap();
        reader.wait_for(is_ready).await.unwrap();
        stop.drain();
        reader
            .wait_for(|registration| !is_ready(registration))
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn http_probes_judge_by_status() {
        for (answer, good) in [("200 OK", true), ("302 Found", true), ("503 Busy", false)] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let app = listener.local_addr().unwrap();
            tokio::spawn(async move {
                let (mut socket, _) = listener.accept().await.unwrap();
                let mut head = [0; 1024];
                let read = socket.read(&mut head).await.unwrap();
                assert!(head[..read].starts_with(b"GET /healthz HTTP/1.1\r\n"));
                let answer = format!("HTTP/1.1 {answer}\r\ncontent-length: 0\r\n\r\n");
                socket.write_all(answer.as_bytes()).await.unwrap();
            });
            assert_eq!(
                ask(app, &probe(app.port(), Some("/healthz"))).await.is_ok(),
                good
            );
        }
    }
}

//! Failover policies from the outside: real processes, real requests. What `linkspan explain`
//! says, what the sidecar says of itself, and what 20,000 requests do must be the same.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use linkspan_api::v1;
use linkspan_tests::clusters::{Cluster, Host, NAMESPACE, Service, binary};
use serde_json::{Value, json};
use tokio::{
    net::TcpStream,
    sync::Mutex,
    task::JoinSet,
    time::{Instant, interval, timeout},
};

const CHECKOUT: Service = Service {
    name: "checkout",
    app_protocol: "http",
    exported: true,
};
const PATIENCE: Duration = Duration::from_secs(30);
/// Requests under each policy.
const REQUESTS: usize = 20_000;
/// Connections that they go over.
const CONNECTIONS: usize = 16;
/// At 20,000 requests more than four standard deviations.
const TOLERANCE: f64 = 0.015;

/// East calls. East has two endpoints in zone a, of which one is not ready, and one in b; west
/// has one in each.
struct World {
    east: Cluster<Host>,
    west: Cluster<Host>,
    checkout: SocketAddr,
}

impl World {
    async fn start(seed: u64) -> Result<Self> {
        let host = Host::new(seed);
        let start = |id| Cluster::start(id, host.clone(), &[CHECKOUT], 1);
        let mut east = start("east").await?.in_region("eu");
        let mut west = start("west").await?.in_region("eu");
        east.link(&west).await?;
        west.link(&east).await?;
        for (name, zone) in [("one", "a"), ("two", "a"), ("three", "b")] {
            serve(&mut east, name, zone).await?;
        }
        for (name, zone) in [("four", "a"), ("five", "b")] {
            serve(&mut west, name, zone).await?;
        }
        east.move_to_zone("a");
        let listeners = east.caller("frontend", &["checkout"]).await?;
        east.wait_for_endpoints("checkout", &[("east", 3), ("west", 2)])
            .await?;
        east.wait_for_link(true).await?;
        east.kill("two-app")?;
        east.wait_for_endpoints("checkout", &[("east", 2), ("west", 2)])
            .await?;
        Ok(Self {
            checkout: listeners["checkout"],
            east,
            west,
        })
    }

    /// Replaces the policy; nothing of the one before is left.
    async fn set(&self, spec: &Value) -> Result<()> {
        let request = v1::SetFailoverRequest {
            key: Some(key()),
            spec: spec.to_string(),
            reset: true,
        };
        let set = self.east.operator().await?.set_failover(request).await;
        let set = set.map_err(|failure| anyhow::anyhow!("{failure:?}"))?;
        ensure!(set.notes.is_empty(), "{:?}", set.notes);
        Ok(())
    }

    async fn explain(&self, without: &[&str]) -> Result<v1::ExplainResponse> {
        let request = v1::ExplainRequest {
            key: Some(key()),
            cluster: "east".into(),
            zone: "a".into(),
            without: without.iter().map(|name| (*name).to_owned()).collect(),
            ..Default::default()
        };
        let explained = self.east.operator().await?.explain(request).await;
        explained.map_err(|failure| anyhow::anyhow!("{failure:?}"))
    }

    /// Waits until the sidecar says of itself what federation explains, and gives that.
    async fn agreed(&self) -> Result<Spread> {
        let face = self.east.debug_face("frontend").context("no debug face")?;
        let deadline = Instant::now() + PATIENCE;
        let mut every = interval(Duration::from_millis(50));
        loop {
            // Its debug face is a question, not a stream: asking is the only way to wait.
            every.tick().await;
            let explained = explained(&self.explain(&[]).await?);
            let own = sidecars_own(&get(face, "/debug").await?);
            if own.as_ref() == Some(&explained) {
                return Ok(explained);
            }
            ensure!(
                Instant::now() < deadline,
                "the sidecar still says {own:?}, federation {explained:?}\n{}",
                self.east.logs()
            );
        }
    }
}

impl World {
    /// Sends requests and checks that they go where it is explained, to three places at least;
    /// gives what is explained.
    async fn as_explained(&self, name: &str) -> Result<Spread> {
        let wanted = self.agreed().await?;
        let places = wanted.values().filter(|share| **share > 0).count();
        assert!(places >= 3, "{name}: {wanted:?}");
        let started = Instant::now();
        let measured = measure(self.checkout, REQUESTS).await?;
        println!(
            "{name}: {measured:?} of {wanted:?} in {:?}",
            started.elapsed()
        );
        assert_close(name, &wanted, &measured);
        Ok(wanted)
    }
}

/// Shares in thousandths of a percent by cluster and zone, and under [`REFUSED`] the rest.
type Spread = BTreeMap<String, i64>;

/// Stands for no place.
const REFUSED: &str = "refused";

fn spread(shares: impl IntoIterator<Item = (String, f64)>) -> Spread {
    let mut spread = Spread::new();
    let mut rest = 1.0;
    for (place, share) in shares {
        *spread.entry(place).or_default() += rounded(share);
        rest -= share;
    }
    spread.insert(REFUSED.to_owned(), rounded(rest));
    spread
}

fn key() -> v1::ServiceKey {
    v1::ServiceKey {
        namespace: NAMESPACE.into(),
        name: "checkout".into(),
    }
}

/// Starts an endpoint whose answers name its cluster and zone.
async fn serve(cluster: &mut Cluster<Host>, name: &str, zone: &'static str) -> Result<()> {
    cluster.move_to_zone(zone);
    let arguments = app(cluster.id(), zone, name);
    let program = binary()?;
    let listening = cluster.endpoint("checkout", name, &program, &arguments);
    listening.await.map(drop)
}

fn app(cluster: &str, zone: &str, name: &str) -> Vec<String> {
    let place = format!("{cluster}/{zone}");
    let words = [
        "app",
        "checkout",
        "--listen",
        "{listen}",
        "--cluster",
        &place,
    ];
    let words = words
        .into_iter()
        .chain(["--instance", name, "--name", name]);
    words.map(str::to_owned).collect()
}

#[expect(clippy::cast_possible_truncation, reason = "shares are from 0 to 1")]
fn rounded(share: f64) -> i64 {
    (share * 100_000.0).round() as i64
}

fn explained(answer: &v1::ExplainResponse) -> Spread {
    let share = |of: &v1::ExplainedShare| {
        let zone = of.locality.clone().unwrap_or_default().zone;
        (format!("{}/{zone}", of.cluster), of.share)
    };
    let explained = spread(answer.shares.iter().map(share));
    assert_eq!(rounded(answer.refused), explained[REFUSED], "{answer:?}");
    explained
}

/// What a sidecar says of its only destination.
fn sidecars_own(debug: &Value) -> Option<Spread> {
    let share = |of: &Value| {
        let zone = of["locality"]["zone"].as_str()?;
        let place = format!("{}/{zone}", of["cluster"].as_str()?);
        Some((place, of["share"].as_f64()?))
    };
    let shares = debug["destinations"][0]["shares"].as_array()?;
    let shares: Option<Vec<_>> = shares.iter().map(share).collect();
    shares.map(spread)
}

async fn get(target: SocketAddr, path: &str) -> Result<Value> {
    let stream = timeout(PATIENCE, TcpStream::connect(target)).await??;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = http::Request::get(path)
        .header("host", "debug")
        .body(Empty::<Bytes>::new())?;
    let answer = timeout(PATIENCE, sender.send_request(request)).await??;
    let body = answer.into_body().collect().await?.to_bytes();
    serde_json::from_slice(&body).with_context(|| String::from_utf8_lossy(&body).into_owned())
}

/// Where `requests` requests are answered; refusals count as such.
async fn measure(target: SocketAddr, requests: usize) -> Result<BTreeMap<String, usize>> {
    let counts = Arc::new(Mutex::new(BTreeMap::<String, usize>::new()));
    let mut connections = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let counts = Arc::clone(&counts);
        connections.spawn(async move {
            let own = over_one_connection(target, requests / CONNECTIONS).await?;
            let mut counts = counts.lock().await;
            for (place, count) in own {
                *counts.entry(place).or_default() += count;
            }
            anyhow::Ok(())
        });
    }
    while let Some(ended) = connections.join_next().await {
        ended??;
    }
    let counts = counts.lock().await.clone();
    Ok(counts)
}

async fn over_one_connection(
    target: SocketAddr,
    requests: usize,
) -> Result<BTreeMap<String, usize>> {
    let stream = TcpStream::connect(target).await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let mut counts = BTreeMap::new();
    for _ in 0..requests {
        sender.ready().await?;
        let request = http::Request::get("/")
            .header("host", "checkout")
            .body(Empty::<Bytes>::new())?;
        let answer = timeout(PATIENCE, sender.send_request(request)).await??;
        let status = answer.status();
        let body = answer.into_body().collect().await?.to_bytes();
        let place = match status.as_u16() {
            200 => serde_json::from_slice::<Value>(&body)?["cluster"]
                .as_str()
                .context("an answer without its cluster")?
                .to_owned(),
            503 => REFUSED.to_owned(),
            other => anyhow::bail!("{other}: {}", String::from_utf8_lossy(&body)),
        };
        *counts.entry(place).or_default() += 1;
    }
    Ok(counts)
}

#[expect(clippy::cast_precision_loss, reason = "counts are small")]
fn assert_close(name: &str, wanted: &Spread, measured: &BTreeMap<String, usize>) {
    let sum: usize = measured.values().sum();
    let places: BTreeSet<_> = wanted.keys().chain(measured.keys()).collect();
    for place in places {
        let share = wanted.get(place).copied().unwrap_or(0) as f64 / 100_000.0;
        let got = measured.get(place).copied().unwrap_or(0) as f64 / sum as f64;
        assert!(
            (got - share).abs() < TOLERANCE,
            "{name}: {place} got {got:.4}, not {share:.4}; all: {measured:?} of {wanted:?}"
        );
    }
}

/// Each gives requests to three places or four.
fn policies() -> Vec<(&'static str, Value)> {
    let everywhere = json!([{"clusters": ["Own", "west"]}]);
    vec![
        ("all alike", json!({"order": everywhere})),
        (
            "weights",
            json!({"order": everywhere, "localityWeights": [
                {"clusters": ["Own"], "zones": ["Own"], "weight": 60},
                {"clusters": ["west"], "weight": 10},
                {"zones": ["b"], "weight": 25},
            ]}),
        ),
        ("a cap", json!({"order": everywhere, "maxRemoteShare": 25})),
        (
            "spill-over without overprovisioning",
            json!({"overprovisioningFactor": 100, "order": [
                {"clusters": ["Own"], "zones": ["Own"]},
                {"clusters": ["west"]},
            ]}),
        ),
        (
            "by zone, stale peers excluded",
            json!({"overprovisioningFactor": 100, "stalePeers": "exclude", "order": [
                {"zones": ["Own"]},
                {"zones": ["b"]},
            ]}),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_thousand_requests_go_where_explain_says() -> Result<()> {
    let mut world = World::start(505).await?;
    for (name, spec) in policies() {
        world.set(&spec).await?;
        let wanted = world.as_explained(name).await?;
        assert_eq!(wanted[REFUSED], 0, "{name}: {wanted:?}");
    }
    // With home dead, what may not leave is refused; and not a request more leaves.
    let cap = json!({"order": [{"clusters": ["Own", "west"]}], "maxRemoteShare": 10});
    world.set(&cap).await?;
    for app in ["one-app", "three-app"] {
        world.east.kill(app)?;
    }
    let alive = [("east", 0), ("west", 2)];
    world.east.wait_for_endpoints("checkout", &alive).await?;
    let wanted = world.as_explained("a cap, and home is dead").await?;
    assert_eq!(wanted[REFUSED], 90_000, "{wanted:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_cluster_gets_nothing_and_a_lost_one_is_rehearsed() -> Result<()> {
    let mut world = World::start(606).await?;
    let drain = |undo| v1::DrainRequest {
        cluster: "east".into(),
        key: Some(key()),
        undo,
    };
    let failed = |failure| anyhow::anyhow!("{failure:?}");
    let mut operator = world.east.operator().await?;
    assert!(operator.drain(drain(false)).await.map_err(failed)?.changed);
    let wanted = world.agreed().await?;
    assert_eq!(
        (wanted["east/a"], wanted["west/a"]),
        (0, 100_000),
        "{wanted:?}"
    );
    let measured = measure(world.checkout, 800).await?;
    assert_eq!(measured.keys().collect::<Vec<_>>(), ["west/a"]);

    // Without west the drained cluster is better than nothing.
    let without = world.explain(&["west"]).await?;
    let home: Vec<_> = without
        .shares
        .iter()
        .filter(|of| of.cluster == "east")
        .collect();
    assert!(home.iter().any(|of| of.why == "lastResort"), "{home:#?}");
    assert!(without.refused.abs() < 1e-9);

    assert!(operator.drain(drain(true)).await.map_err(failed)?.changed);
    let shown = operator.failover(Some(key())).await.map_err(failed)?;
    assert!(shown.services[0].drained.is_empty(), "{shown:?}");
    // Hold and ramp are a second each here; both sides tell of them alike.
    let deadline = Instant::now() + PATIENCE;
    while world.agreed().await?["east/a"] < 70_000 {
        ensure!(Instant::now() < deadline, "traffic does not return");
    }

    // The rehearsal of a loss is what the loss then does.
    let rehearsed = explained(&world.explain(&["west"]).await?);
    world.killwest()?;
    let deadline = Instant::now() + PATIENCE;
    while world.agreed().await? != rehearsed {
        ensure!(Instant::now() < deadline, "not as rehearsed: {rehearsed:?}");
    }
    Ok(())
}

impl World {
    /// West's only gateway goes; so does the link.
    fn killwest(&mut self) -> Result<()> {
        self.west.kill("gateway-1")
    }
}

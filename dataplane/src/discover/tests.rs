use linkspan_api::v1::{
    DiscoverComplete, DiscoverRecord, discover_record::Body, discover_request::Message as Said,
    discover_response::Message as Answer,
};
use linkspan_runtime::{stop::Stop, telemetry::ControlMetrics};
use linkspan_trust::testing::{Pki, workload};
use tokio::sync::watch;

use super::*;
use crate::fake_federation::{DOMAIN, FakeFederation, Played, client_of};

const ID: &str = "abcdefghijklmnopqrstuvwxyz";

struct World {
    pki: Arc<Pki>,
    federation: FakeFederation,
    snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    registration: watch::Sender<Registration>,
    subscription: watch::Sender<BTreeSet<ServiceKey>>,
    health: watch::Sender<v1::LinkHealth>,
    metrics: ControlMetrics,
    stop: Stop,
    _directory: tempfile::TempDir,
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.abort();
    }
}

async fn world(registration: Registration) -> World {
    let pki = Arc::new(Pki::new(&[DOMAIN]));
    let id = SpiffeId::federation(&DOMAIN.parse().unwrap());
    let federation = FakeFederation::start(&pki, &id, None).await;
    let directory = tempfile::tempdir().unwrap();
    let config = client_of(&pki, federation.address, &directory);
    let (_writer, material) = pki.material(&workload(DOMAIN, "shop", "checkout"));
    let (registration, registered) = watch::channel(registration);
    let (subscription, subscribed) = watch::channel(BTreeSet::new());
    let (health, healthy) = watch::channel(v1::LinkHealth::default());
    let (task, snapshots) = client(config, material, registered, subscribed, healthy);
    let (metrics, stop) = (ControlMetrics::detached(), Stop::new());
    tokio::spawn(task.with_metrics(metrics.clone()).run(stop.clone()));
    let _directory = directory;
    World {
        pki,
        federation,
        snapshots,
        registration,
        subscription,
        health,
        metrics,
        stop,
        _directory,
    }
}

fn sidecar() -> v1::WorkloadRegistration {
    v1::WorkloadRegistration {
        uid: "checkout-1".to_owned(),
        ready: true,
        ..Default::default()
    }
}

fn key(name: &str) -> v1::ServiceKey {
    v1::ServiceKey {
        namespace: "shop".to_owned(),
        name: name.to_owned(),
    }
}

fn upsert(key: &str, body: Body) -> Answer {
    Answer::Upsert(DiscoverRecord {
        key: key.to_owned(),
        body: Some(body),
    })
}

fn service(name: &str, port: u32) -> Answer {
    let ports = vec![v1::ServicePort {
        port,
        ..Default::default()
    }];
    let service = v1::Service {
        key: Some(key(name)),
        ports,
        ..Default::default()
    };
    upsert(&format!("service/shop/{name}"), Body::Service(service))
}

fn endpoint(name: &str, id: &str, ready: bool) -> Answer {
    let endpoint = v1::Endpoint {
        service: Some(key(name)),
        id: id.to_owned(),
        cluster: "east".to_owned(),
        spiffe_id: workload(DOMAIN, "shop", name).to_string(),
        ready,
        address: "127.0.0.1:9001".to_owned(),
        ..Default::default()
    };
    upsert(
        &format!("endpoint/shop/{name}/{id}"),
        Body::Endpoint(endpoint),
    )
}

fn complete() -> Answer {
    Answer::Complete(DiscoverComplete {})
}

/// Plays the first words of a sidecar.
async fn greeted(played: &mut Played) -> Said {
    assert!(matches!(played.said().await, Said::Hello(_)));
    let heartbeat = played.said().await;
    assert!(matches!(played.said().await, Said::Subscription(_)));
    heartbeat
}

async fn published(
    snapshots: &mut watch::Receiver<Option<Arc<Snapshot>>>,
    wanted: impl Fn(&Snapshot) -> bool,
) -> Arc<Snapshot> {
    let snapshot = snapshots
        .wait_for(|now| now.as_ref().is_some_and(|now| wanted(now)))
        .await;
    snapshot.unwrap().clone().unwrap()
}

#[tokio::test]
async fn publishes_when_complete_and_then_with_each_change() {
    let mut world = world(Registration::Workload(sidecar())).await;
    let mut stream = world.federation.stream().await;
    let heartbeat = greeted(&mut stream).await;
    stream.answer(service("checkout", 80)).await;
    stream.answer(endpoint("checkout", ID, true)).await;
    // The second heartbeat shows that the client had time to see the answers.
    assert_eq!(stream.said().await, heartbeat);
    assert!(world.snapshots.borrow().is_none());
    stream.answer(complete()).await;
    assert!(matches!(stream.said_new(&heartbeat).await, Said::Ack(ack) if ack.revision == 3));
    let first = published(&mut world.snapshots, |_| true).await;
    let checkout = &first.services[&"shop/checkout".parse().unwrap()];
    assert_eq!((checkout.ports[0].port, checkout.endpoints.len()), (80, 1));
    assert_eq!(
        (first.revision, world.metrics.discovery_connected.get()),
        (3, 1)
    );

    stream.answer(service("payment", 90)).await;
    let second = published(&mut world.snapshots, |now| now.services.len() == 2).await;
    let same = &second.services[&"shop/checkout".parse().unwrap()];
    assert!(
        Arc::ptr_eq(checkout, same),
        "an unchanged service is the same allocation"
    );
    stream.answer(endpoint("checkout", ID, false)).await;
    let gone = |now: &Snapshot| !now.services[&"shop/checkout".parse().unwrap()].endpoints[0].ready;
    published(&mut world.snapshots, gone).await;
    stream
        .answer(Answer::Remove("service/shop/payment".to_owned()))
        .await;
    published(&mut world.snapshots, |now| now.services.len() == 1).await;
}

#[tokio::test]
async fn keeps_the_last_snapshot_over_a_reconnect_until_the_next_is_complete() {
    let mut world = world(Registration::Workload(sidecar())).await;
    let mut stream = world.federation.stream().await;
    greeted(&mut stream).await;
    stream.answer(service("checkout", 80)).await;
    stream.answer(service("payment", 90)).await;
    stream.answer(complete()).await;
    published(&mut world.snapshots, |_| true).await;
    let (pki, address) = (world.pki.clone(), world.federation.address);
    drop(stream);
    let id = SpiffeId::federation(&DOMAIN.parse().unwrap());
    world.federation.close().await;
    world.federation = FakeFederation::start(&pki, &id, Some(address)).await;

    let mut stream = world.federation.stream().await;
    let heartbeat = greeted(&mut stream).await;
    stream.answer(service("checkout", 81)).await;
    assert_eq!(stream.said().await, heartbeat);
    assert_eq!(world.snapshots.borrow().as_ref().unwrap().services.len(), 2);
    stream.answer(complete()).await;
    let next = published(&mut world.snapshots, |now| now.services.len() == 1).await;
    assert_eq!(
        next.services[&"shop/checkout".parse().unwrap()].ports[0].port,
        81
    );
    assert!(world.metrics.disconnects.get() >= 1);
}

#[tokio::test]
async fn a_bad_record_is_skipped_and_counted() {
    let mut world = world(Registration::Workload(sidecar())).await;
    let mut stream = world.federation.stream().await;
    greeted(&mut stream).await;
    stream.answer(service("checkout", 80)).await;
    stream.answer(service("checkout", 65_536)).await;
    stream.answer(endpoint("checkout", "no id", true)).await;
    let bundle = v1::TrustBundle {
        trust_domain: "west.test".to_owned(),
        sequence: 1,
        roots: vec![b"no certificate".to_vec().into()],
    };
    stream
        .answer(upsert("bundle/west.test", Body::Bundle(bundle)))
        .await;
    stream.answer(complete()).await;
    let snapshot = published(&mut world.snapshots, |_| true).await;
    let checkout = &snapshot.services[&"shop/checkout".parse().unwrap()];
    assert_eq!((checkout.ports[0].port, checkout.endpoints.len()), (80, 0));
    assert_eq!(snapshot.bundles.iter().count(), 0);
    assert_eq!(world.metrics.rejected.get(), 3);
}

#[tokio::test]
async fn a_gap_ends_the_stream() {
    let mut world = world(Registration::Workload(sidecar())).await;
    let mut stream = world.federation.stream().await;
    greeted(&mut stream).await;
    stream.answer(service("checkout", 80)).await;
    stream.skip();
    stream.answer(complete()).await;
    world.federation.stream().await;
    assert!(world.snapshots.borrow().is_none());
}

#[tokio::test]
async fn says_what_changes_when_it_changes() {
    let mut world = world(Registration::Workload(sidecar())).await;
    let mut stream = world.federation.stream().await;
    let heartbeat = greeted(&mut stream).await;
    let draining = v1::WorkloadRegistration {
        ready: false,
        ..sidecar()
    };
    world
        .subscription
        .send_replace(["shop/checkout".parse().unwrap()].into());
    let Said::Subscription(subscription) = stream.said_new(&heartbeat).await else {
        panic!()
    };
    assert_eq!(subscription.services, [key("checkout")]);
    world
        .registration
        .send_replace(Registration::Workload(draining.clone()));
    assert_eq!(stream.said_new(&heartbeat).await, Said::Workload(draining));
}

#[tokio::test]
async fn a_gateway_reports_its_links() {
    let registration = v1::GatewayRegistration {
        replica: "gateway-1".to_owned(),
        ..Default::default()
    };
    let mut world = world(Registration::Gateway(registration)).await;
    let mut stream = world.federation.stream().await;
    assert!(matches!(stream.said().await, Said::Hello(_)));
    let heartbeat = stream.said().await;
    // No subscription: that is a sidecar's to say, and federation would refuse it.
    assert_eq!(
        stream.said().await,
        Said::LinkHealth(v1::LinkHealth::default())
    );
    let peer = v1::PeerHealth {
        cluster: "west".to_owned(),
        up: true,
        ..Default::default()
    };
    let health = v1::LinkHealth { peers: vec![peer] };
    world.health.send_replace(health.clone());
    assert_eq!(stream.said_new(&heartbeat).await, Said::LinkHealth(health));
}

#[tokio::test]
async fn only_federation_itself_is_believed() {
    let pki = Arc::new(Pki::new(&[DOMAIN]));
    let impostor = SpiffeId::gateway(&DOMAIN.parse().unwrap());
    let federation = FakeFederation::start(&pki, &impostor, None).await;
    let directory = tempfile::tempdir().unwrap();
    let config = client_of(&pki, federation.address, &directory);
    let (_writer, material) = pki.material(&workload(DOMAIN, "shop", "checkout"));
    let tls = config.mutual_tls(&material).unwrap();
    let error = crate::connect::grpc::channel(&config.address, tls)
        .await
        .unwrap_err();
    assert!(
        linkspan_runtime::process::chain(&error).contains("linkspan-gateway"),
        "{error:?}"
    );
}

#[test]
fn typed_records_make_a_gateways_snapshot() {
    let pki = Pki::new(&[DOMAIN, "west.test"]);
    let mut records = records::Records::default();
    let mut add = |answer| {
        let Answer::Upsert(record) = answer else {
            panic!()
        };
        records.upsert(record).unwrap();
    };
    let roots = pki.authority("west.test").bundle();
    let bundle = v1::TrustBundle {
        trust_domain: "west.test".to_owned(),
        sequence: roots.sequence,
        roots: roots.roots.iter().map(|der| der.to_vec().into()).collect(),
    };
    add(upsert("bundle/west.test", Body::Bundle(bundle)));
    let exported = v1::ExportedService {
        key: Some(key("checkout")),
        ports: vec![80],
        peers: vec!["west".to_owned()],
    };
    add(upsert("exported/shop/checkout", Body::Exported(exported)));
    add(endpoint("checkout", ID, true));
    let domain = "west.test".parse().unwrap();
    let link = v1::Link {
        cluster: "west".to_owned(),
        trust_domain: "west.test".to_owned(),
        gateway_spiffe_id: SpiffeId::gateway(&domain).to_string(),
        federation_spiffe_id: SpiffeId::federation(&domain).to_string(),
        addresses: vec![v1::GatewayAddress {
            host: "127.0.0.1".to_owned(),
            port: 15_443,
        }],
        allow_loopback: true,
    };
    add(upsert("link/west", Body::Link(link)));
    let snapshot = records.snapshot(5, None);
    assert_eq!(snapshot.exported[0].endpoints[0].id, ID.parse().unwrap());
    assert_eq!(snapshot.links[0].gateway, SpiffeId::gateway(&domain));
    assert_eq!(snapshot.bundles.get(&domain), Some(&roots));
    records.remove("bundle/west.test");
    assert!(records.snapshot(6, None).bundles.get(&domain).is_none());
}

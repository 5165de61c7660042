//! What proxies are told, and what they may tell.

use linkspan_api::v1::{discover_record::Body, discover_request::Message as Said};
use linkspan_core::ServiceKey;
use tonic::Code;

use super::proxy::{Proxy, gateway, workload};
use crate::testing::{Home, export_yaml, link_yaml, service_yaml};

async fn shop() -> (Home, crate::testing::Federation) {
    crate::testing::logs();
    let home = Home::new("east");
    home.declare("checkout.yaml", &service_yaml("checkout"));
    let federation = home.start().await;
    (home, federation)
}

#[tokio::test]
async fn a_complete_set_then_changes_only() {
    let (_home, federation) = shop().await;
    let client = federation.member("shop", "client").await;
    let mut proxy = Proxy::open(&federation, &client).await.unwrap();
    proxy
        .say(Said::Workload(workload("client-1", "client")))
        .await;
    proxy.subscribe(&["checkout"]).await;
    proxy.until(|proxy| proxy.complete).await;
    let keys: Vec<_> = proxy.records.keys().cloned().collect();
    assert_eq!(
        keys,
        [
            "bundle/east.demo.linkspan.internal",
            "service/shop/checkout"
        ]
    );

    let server = federation.member("shop", "checkout").await;
    let serving = Proxy::open(&federation, &server).await.unwrap();
    let serving = serving.live(Said::Workload(workload("checkout-1", "checkout")), vec![]);
    proxy
        .until(|proxy| proxy.endpoints().any(|endpoint| endpoint.ready))
        .await;
    let endpoint = proxy.endpoints().next().unwrap();
    assert_eq!(endpoint.cluster, "east");
    assert_eq!(endpoint.spiffe_id, server.id().to_string());
    assert_eq!(endpoint.address, "127.0.0.1:15008");
    assert_eq!(endpoint.weight, 1);

    // A clean drain counts at once.
    let drained = crate::tests::proxy::workload("checkout-1", "checkout");
    let drained = linkspan_api::v1::WorkloadRegistration {
        ready: false,
        ..drained
    };
    serving.say(Said::Workload(drained)).await;
    proxy
        .until(|proxy| proxy.endpoints().all(|endpoint| !endpoint.ready))
        .await;
    federation.stop().await;
}

#[tokio::test]
async fn a_workload_learns_what_it_serves_and_only_asked_for_services() {
    let (_home, federation) = shop().await;
    let server = federation.member("shop", "checkout").await;
    let mut proxy = Proxy::open(&federation, &server).await.unwrap();
    proxy
        .say(Said::Workload(workload("checkout-1", "checkout")))
        .await;
    // It never subscribes: its first heartbeat says that it follows nothing.
    proxy
        .say(Said::Workload(workload("checkout-1", "checkout")))
        .await;
    proxy
        .until(|proxy| proxy.complete && proxy.records.len() == 2)
        .await;
    let Some(Body::Inbound(inbound)) = proxy.records.get("inbound/shop/checkout") else {
        panic!("{:?}", proxy.records);
    };
    assert_eq!(
        (inbound.ports[0].port, inbound.ports[0].target_port),
        (80, 8080)
    );
    federation.stop().await;
}

#[tokio::test]
async fn who_captures_learns_all_addresses_that_stand_for_services() {
    let mut home = Home::new("east");
    for (service, address) in [("checkout", "10.99.0.1"), ("nobodys", "fd99::1")] {
        let key = ServiceKey::new("shop", service).unwrap();
        home.vips.insert(key, vec![address.parse().unwrap()]);
    }
    home.declare("checkout.yaml", &service_yaml("checkout"));
    home.declare("export.yaml", &export_yaml("checkout"));
    let federation = home.start().await;
    let client = federation.member("shop", "client").await;
    let mut proxy = Proxy::open(&federation, &client).await.unwrap();
    proxy
        .say(Said::Workload(workload("client-1", "client")))
        .await;
    proxy.subscribe(&[]).await;
    let ports = |proxy: &Proxy, key: &str| match proxy.records.get(key) {
        Some(Body::Vip(vip)) => vip.ports.clone(),
        _ => vec![0],
    };
    proxy
        .until(|proxy| proxy.complete && ports(proxy, "vip/10.99.0.1") == [80])
        .await;
    assert!(ports(&proxy, "vip/fd99::1").is_empty(), "nobody exports it");
    federation.stop().await;
}

#[tokio::test]
async fn gateways_learn_links_and_exports() {
    let (home, federation) = shop().await;
    home.declare("export.yaml", &export_yaml("checkout"));
    home.declare("west.yaml", &link_yaml("west"));
    let server = federation.member("shop", "checkout").await;
    let serving = Proxy::open(&federation, &server).await.unwrap();
    let _serving = serving.live(Said::Workload(workload("checkout-1", "checkout")), vec![]);

    let material = federation.gateway().await;
    let mut proxy = Proxy::open(&federation, &material).await.unwrap();
    proxy.say(Said::Gateway(gateway("gateway-1"))).await;
    proxy
        .until(|proxy| {
            let keys = [
                "link/west",
                "bundle/west.demo.linkspan.internal",
                "gateway/gateway-1",
            ];
            let exported = match proxy.records.get("exported/shop/checkout") {
                Some(Body::Exported(of)) => of.ports == [80] && of.peers == ["west"],
                _ => false,
            };
            let reached = proxy
                .endpoints()
                .any(|endpoint| !endpoint.address.is_empty());
            proxy.complete
                && exported
                && reached
                && keys.iter().all(|key| proxy.records.contains_key(*key))
        })
        .await;
    federation.stop().await;
}

#[tokio::test]
async fn the_certificate_decides_what_a_proxy_may_be() {
    let (_home, federation) = shop().await;
    let client = federation.member("shop", "client").await;
    let gateway_material = federation.gateway().await;
    for (material, said) in [
        (&client, Said::Workload(workload("w", "checkout"))),
        (&client, Said::Gateway(gateway("g"))),
        (
            &gateway_material,
            Said::Workload(workload("w", "linkspan-gateway")),
        ),
    ] {
        let mut proxy = Proxy::open(&federation, material).await.unwrap();
        proxy.say(said).await;
        let status = proxy.refusal().await;
        assert_eq!(status.code(), Code::PermissionDenied, "{status}");
    }
    federation.stop().await;
}

#[tokio::test]
async fn a_proxy_whose_configuration_names_another_cluster_is_told() {
    let (_home, federation) = shop().await;
    let material = federation.gateway().await;
    let opened = Proxy::of_cluster("west", &federation, &material).await;
    let status = match opened {
        Ok(mut proxy) => proxy.refusal().await,
        Err(status) => status,
    };
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    let said = status.message();
    assert!(
        said.contains("cluster `east`") && said.contains("`cluster: west`"),
        "{said}"
    );
    let mut proxy = Proxy::of_cluster("east", &federation, &material)
        .await
        .unwrap();
    proxy.say(Said::Gateway(gateway("g"))).await;
    proxy.until(|proxy| proxy.complete).await;
    federation.stop().await;
}

#[tokio::test]
async fn a_workload_cannot_take_anothers_uid() {
    let (_home, federation) = shop().await;
    let server = federation.member("shop", "checkout").await;
    let serving = Proxy::open(&federation, &server).await.unwrap();
    let _serving = serving.live(Said::Workload(workload("one", "checkout")), vec![]);
    federation
        .until("the endpoint", |world| {
            world.desired.inbound.contains_key("one")
        })
        .await;
    let thief = federation.member("shop", "client").await;
    let mut proxy = Proxy::open(&federation, &thief).await.unwrap();
    proxy.say(Said::Workload(workload("one", "client"))).await;
    let status = proxy.refusal().await;
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    federation.stop().await;
}

#[tokio::test]
async fn nobody_without_a_certificate() {
    use linkspan_api::v1::discovery_client::DiscoveryClient;
    let (_home, federation) = shop().await;
    let mut client = DiscoveryClient::new(federation.anonymous().await);
    let status = client.discover(tokio_stream::empty()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated, "{status}");
    federation.stop().await;
}

#[tokio::test]
async fn after_a_restart_nothing_is_removed_before_all_are_back() {
    let (home, federation) = shop().await;
    let server = federation.member("shop", "checkout").await;
    let client = federation.member("shop", "client").await;
    let serving = Proxy::open(&federation, &server).await.unwrap();
    let serving = serving.live(Said::Workload(workload("checkout-1", "checkout")), vec![]);
    federation
        .until("the endpoint", |world| {
            world.desired.inbound.contains_key("checkout-1")
        })
        .await;
    drop(serving);
    federation.stop().await;

    let federation = home.start().await;
    let mut proxy = Proxy::open(&federation, &client).await.unwrap();
    proxy
        .say(Said::Workload(workload("client-1", "client")))
        .await;
    proxy.subscribe(&["checkout"]).await;
    // The endpoint counts as before, and the set stays open.
    proxy
        .until(|proxy| proxy.endpoints().any(|endpoint| endpoint.ready))
        .await;
    assert!(!proxy.complete);
    assert!(!federation.worlds.borrow().settled);
    // With the workload back, it is closed.
    let serving = Proxy::open(&federation, &server).await.unwrap();
    let _serving = serving.live(Said::Workload(workload("checkout-1", "checkout")), vec![]);
    proxy.until(|proxy| proxy.complete).await;
    assert!(proxy.endpoints().any(|endpoint| endpoint.ready));
    federation.stop().await;
}

#[tokio::test]
async fn after_a_restart_what_was_lost_before_it_is_still_missed() {
    let (home, federation) = shop().await;
    let server = federation.member("shop", "checkout").await;
    let serving = |uid: &'static str| {
        let (federation, server) = (&federation, &server);
        async move {
            let proxy = Proxy::open(federation, server).await.unwrap();
            proxy.live(Said::Workload(workload(uid, "checkout")), vec![])
        }
    };
    let _one = serving("checkout-1").await;
    let two = serving("checkout-2").await;
    // Listed and expected.
    let counts = |world: &crate::controller::World| {
        let service = world.desired.services.values().next()?;
        let expected = service.clusters.values().flat_map(|of| &of.localities);
        let expected: u32 = expected.map(|(_, count)| count).sum();
        Some((service.endpoints.len(), expected))
    };
    federation
        .until("both", |world| counts(world) == Some((2, 2)))
        .await;
    drop(two);
    federation
        .until("one lapsed", |world| counts(world) == Some((1, 2)))
        .await;
    federation.stop().await;
    let federation = home.start().await;
    federation
        .until("it is missed", |world| counts(world) == Some((1, 2)))
        .await;
    federation.stop().await;
}

/// Peers are heard through gateways: one that starts together with federation gets its set while
/// the links are still being waited for.
#[tokio::test]
async fn after_a_restart_gateways_do_not_wait_for_the_peers_behind_them() {
    let (home, federation) = shop().await;
    home.declare("west.yaml", &link_yaml("west"));
    let told = |world: &std::sync::Arc<crate::controller::World>| !world.desired.links.is_empty();
    federation.until("the link", told).await;
    federation.stop().await;

    let federation = home.start().await;
    let material = federation.gateway().await;
    let mut proxy = Proxy::open(&federation, &material).await.unwrap();
    proxy.say(Said::Gateway(gateway("gateway-1"))).await;
    proxy
        .until(|proxy| proxy.complete && proxy.records.contains_key("link/west"))
        .await;
    assert!(
        !federation.worlds.borrow().settled,
        "sidecars still wait for west"
    );
    federation.stop().await;
}

//! Servers without a sidecar: who is told what of them, and who gets their certificate.

use linkspan_api::v1::{self, IssuedFor, discover_record::Body, discover_request::Message as Said};
use linkspan_trust::SpiffeId;
use tonic::Code;

use super::proxy::{Proxy, gateway, workload};
use crate::testing::{Federation, Home, domain, export_yaml, issue_for, service_yaml};

fn slice_yaml(ready: bool) -> String {
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  namespace: shop\n  \
         name: old\n  labels: {{kubernetes.io/service-name: checkout}}\naddressType: IPv4\n\
         endpoints: [{{addresses: [192.0.2.21], conditions: {{ready: {ready}}}}}]\n"
    )
}

async fn shop() -> (Home, Federation) {
    let home = Home::new("east");
    home.declare("checkout.yaml", &service_yaml("checkout"));
    home.declare("export.yaml", &export_yaml("checkout"));
    home.declare("old.yaml", &slice_yaml(true));
    let federation = home.start().await;
    (home, federation)
}

impl Proxy {
    fn servers(&self) -> Vec<&v1::UnmeshedServer> {
        let servers = self.records.values().filter_map(|body| match body {
            Body::UnmeshedServer(server) => Some(server),
            _ => None,
        });
        servers.collect()
    }
}

#[tokio::test]
async fn gateways_learn_where_a_server_is_and_whom_it_admits() {
    let (home, federation) = shop().await;
    let material = federation.gateway().await;
    let mut proxy = Proxy::open(&federation, &material).await.unwrap();
    proxy.say(Said::Gateway(gateway("gateway-1"))).await;
    proxy.until(|proxy| proxy.complete).await;
    let [server] = proxy.servers()[..] else {
        panic!("{:?}", proxy.records);
    };
    assert!(server.ready);
    let ports = [v1::ServerPort {
        port: 80,
        address: "192.0.2.21:8080".into(),
    }];
    assert_eq!(server.ports, ports);
    assert!(proxy.records.contains_key("inbound/shop/checkout"));
    assert!(proxy.records.contains_key("exported/shop/checkout"));
    home.declare("old.yaml", &slice_yaml(false));
    proxy.until(|proxy| !proxy.servers()[0].ready).await;
    std::fs::remove_file(home.resources().join("old.yaml")).unwrap();
    let gone = |proxy: &Proxy| {
        proxy.servers().is_empty() && !proxy.records.contains_key("inbound/shop/checkout")
    };
    proxy.until(gone).await;
    federation.stop().await;
}

#[tokio::test]
async fn sidecars_are_led_to_it_by_gateways_of_their_own_cluster() {
    let (_home, federation) = shop().await;
    let material = federation.gateway().await;
    let mut leads = Proxy::open(&federation, &material).await.unwrap();
    leads.say(Said::Gateway(gateway("gateway-1"))).await;
    leads.until(|proxy| proxy.complete).await;
    let member = federation.member("shop", "frontend").await;
    let mut proxy = Proxy::open(&federation, &member).await.unwrap();
    proxy.say(Said::Workload(workload("one", "frontend"))).await;
    proxy.subscribe(&["checkout"]).await;
    proxy.until(|proxy| proxy.endpoints().count() == 1).await;
    let endpoint = proxy.endpoints().next().unwrap();
    assert_eq!(endpoint.address, "", "never dialled by them");
    let identity = SpiffeId::unmeshed_server(&domain("east"));
    assert_eq!(endpoint.spiffe_id, identity.to_string());
    let led = |proxy: &Proxy| match proxy.records.get("gateway/gateway-1") {
        Some(Body::Gateway(gateway)) => gateway.reachable == ["east"],
        _ => false,
    };
    proxy.until(led).await;
    assert!(proxy.servers().is_empty());
    federation.stop().await;
}

#[tokio::test]
async fn only_gateways_get_the_certificate_for_unmeshed_servers() {
    let home = Home::new("east");
    let federation = home.start().await;
    let gateway = federation.gateway().await;
    let channel = federation.channel(&gateway.1).await.unwrap();
    let server = issue_for(channel, "", IssuedFor::UnmeshedServers).await;
    let server = server.unwrap();
    assert_eq!(server.id(), SpiffeId::unmeshed_server(&domain("east")));
    let member = federation.member("shop", "checkout").await;
    for material in [&member, &server] {
        let channel = federation.channel(&material.1).await.unwrap();
        let refused = issue_for(channel, "", IssuedFor::UnmeshedServers).await;
        assert_eq!(refused.err().unwrap().code(), Code::PermissionDenied);
    }
    federation.stop().await;
}

//! Gateways that serve clients without a sidecar: their certificate, and the ports of imports.

use linkspan_api::v1::{self, IssuedFor, discover_record::Body, discover_request::Message as Said};
use linkspan_trust::SpiffeId;
use tonic::Code;

use super::proxy::{Proxy, gateway, workload};
use crate::testing::{Federation, Home, domain, issue, issue_for, service_yaml};

fn export_yaml(name: &str, unmeshed_clients: &str) -> String {
    format!(
        "apiVersion: multicluster.x-k8s.io/v1beta1\nkind: ServiceExport\nmetadata:\n  \
         namespace: shop\n  name: {name}\n  annotations:\n    \
         linkspan.io/unmeshed-clients: {unmeshed_clients}\n"
    )
}

/// A gateway that has these ports open.
fn serving(open: &[u32]) -> v1::GatewayRegistration {
    v1::GatewayRegistration {
        imports: Some(v1::ImportListeners {
            address: "127.0.0.9".into(),
            open: open.to_vec(),
            failed: Vec::new(),
        }),
        ..gateway("gateway-1")
    }
}

impl Proxy {
    /// The ports that it is told to open, with the services behind.
    fn imports(&self) -> Vec<(u32, String)> {
        let imports = self.records.values().filter_map(|body| match body {
            Body::ImportPort(port) => Some(port),
            _ => None,
        });
        let name = |port: &v1::ImportPort| port.service.clone().unwrap().name;
        imports.map(|port| (port.listen, name(port))).collect()
    }
}

async fn shop(unmeshed_clients: &str) -> (Home, Federation) {
    let home = Home::new("east");
    home.declare("checkout.yaml", &service_yaml("checkout"));
    home.declare("export.yaml", &export_yaml("checkout", unmeshed_clients));
    let federation = home.start().await;
    (home, federation)
}

async fn listens(federation: &Federation, open: &[u32]) -> Proxy {
    let material = federation.gateway().await;
    let proxy = Proxy::open(federation, &material).await.unwrap();
    proxy.say(Said::Gateway(serving(open))).await;
    proxy
}

#[tokio::test]
async fn only_gateways_get_the_certificate_for_unmeshed_clients() {
    let home = Home::new("east");
    let federation = home.start().await;
    let own = domain("east");
    let gateway = federation.gateway().await;
    let channel = federation.channel(&gateway.1).await.unwrap();
    let unmeshed = issue_for(channel, "", IssuedFor::UnmeshedClients).await;
    let unmeshed = unmeshed.unwrap();
    assert_eq!(unmeshed.id(), SpiffeId::unmeshed_client(&own));

    let member = federation.member("shop", "checkout").await;
    let channel = federation.channel(&member.1).await.unwrap();
    let refused = issue_for(channel, "", IssuedFor::UnmeshedClients).await;
    assert_eq!(refused.err().unwrap().code(), Code::PermissionDenied);

    // It is good for calls, and for nothing here: neither for more of it, nor for discovery.
    let channel = federation.channel(&unmeshed.1).await.unwrap();
    for whom in [IssuedFor::Unspecified, IssuedFor::UnmeshedClients] {
        let refused = issue_for(channel.clone(), "", whom).await.err().unwrap();
        assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    }
    for said in [
        Said::Gateway(serving(&[])),
        Said::Workload(workload("one", "checkout")),
    ] {
        let mut proxy = Proxy::open(&federation, &unmeshed).await.unwrap();
        proxy.say(said).await;
        assert_eq!(proxy.refusal().await.code(), Code::PermissionDenied);
    }
    // Nor can it be had by a token.
    let mut operator = federation.operator().await;
    let token = operator.create_join_token(v1::CreateJoinTokenRequest {
        namespace: "linkspan-system".into(),
        service_account: "linkspan-unmeshed-client".into(),
        ..Default::default()
    });
    assert!(token.await.is_err());
    assert!(issue(federation.anonymous().await, "").await.is_err());
    federation.stop().await;
}

#[tokio::test]
async fn a_port_stands_for_an_import_over_restarts() {
    let (home, federation) = shop("allow").await;
    let mut proxy = listens(&federation, &[]).await;
    let told = |proxy: &Proxy| proxy.records.contains_key("service/shop/checkout");
    proxy
        .until(|proxy| told(proxy) && !proxy.imports().is_empty())
        .await;
    assert_eq!(proxy.imports(), [(16_000, "checkout".to_owned())]);
    proxy.say(Said::Gateway(serving(&[16_000]))).await;
    let listener = loop {
        let mut operator = federation.operator().await;
        let reply = operator.services(v1::ServicesRequest {}).await.unwrap();
        let import = reply.into_inner().services.remove(0).import.unwrap();
        let listener = import.listeners.into_iter().next();
        match listener {
            Some(listener) if !listener.open.is_empty() => break listener,
            _ => {
                proxy.say(Said::Gateway(serving(&[16_000]))).await;
            }
        }
    };
    assert_eq!((listener.port, listener.listen), (80, 16_000));
    assert_eq!(listener.open, ["127.0.0.9:16000"]);
    federation.stop().await;

    // A service that would come first now does not take it over.
    home.declare("a.yaml", &service_yaml("a"));
    home.declare("export-a.yaml", &export_yaml("a", "allow"));
    let federation = home.start().await;
    let mut proxy = listens(&federation, &[16_000]).await;
    proxy.until(|proxy| proxy.imports().len() == 2).await;
    let both = [(16_001, "a".to_owned()), (16_000, "checkout".to_owned())];
    assert_eq!(proxy.imports(), both);

    // What is exported no more, or to nobody without a sidecar, is taken away.
    home.declare("export.yaml", &export_yaml("checkout", "deny"));
    let left = [(16_001, "a".to_owned())];
    proxy
        .until(|proxy| !told(proxy) && proxy.imports() == left)
        .await;
    federation.stop().await;
}

#[tokio::test]
async fn nothing_is_offered_unless_export_and_gateway_say_so() {
    for (unmeshed_clients, serves) in [("deny", true), ("allow", false)] {
        let (_home, federation) = shop(unmeshed_clients).await;
        let material = federation.gateway().await;
        let mut proxy = Proxy::open(&federation, &material).await.unwrap();
        let imports = serving(&[]).imports.filter(|_| serves);
        let registration = v1::GatewayRegistration {
            imports,
            ..gateway("gateway-1")
        };
        proxy.say(Said::Gateway(registration)).await;
        // Planned with what would be offered.
        let registered = |proxy: &Proxy| proxy.records.contains_key("gateway/gateway-1");
        proxy.until(registered).await;
        proxy.until(|proxy| proxy.complete).await;
        assert!(proxy.imports().is_empty());
        assert!(proxy.records.contains_key("exported/shop/checkout"));
        federation.stop().await;
    }
}

#[tokio::test]
async fn a_word_that_means_nothing_is_a_problem() {
    let (_home, federation) = shop("perhaps").await;
    let world = federation.until("the problem", |world| !world.desired.problems.is_empty());
    let world = world.await;
    let problem = world.desired.problems.join("\n");
    assert!(problem.contains("write `allow` or `deny`"), "{problem}");
    assert!(world.declared.exports.is_empty());
    federation.stop().await;
}

//! The API server as a source: the contract, and what only it has.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::{Api, DeleteParams, PostParams};
use kube::{Client, Config};
use linkspan_core::backend::{Source as _, SourceError};
use linkspan_core::testing::{SourceBench, own, source_contract};
use linkspan_kube::{KubernetesSource, Mirrors};
use serde_json::{Value, json};

use crate::server::{Server, api_of, declare, export, within};

struct Bench {
    client: Client,
    /// What each name stands for.
    declared: BTreeMap<String, Value>,
}

impl SourceBench for Bench {
    type Source = KubernetesSource;

    async fn source(&mut self) -> KubernetesSource {
        KubernetesSource::new(own(), Default::default(), Mirrors::watch(&self.client))
    }

    async fn put(&mut self, name: &str, document: &str) -> Result<(), String> {
        let object: Value = serde_saphyr::from_str(document).expect("YAML");
        match declare(&self.client, &object, false).await {
            Ok(_) => {
                self.declared.insert(name.to_owned(), object);
                Ok(())
            }
            Err(status) => Err(status.message.clone()),
        }
    }

    async fn remove(&mut self, name: &str) {
        let object = self.declared.remove(name).expect("it was declared");
        let name = object["metadata"]["name"].as_str().expect("a name");
        let deleted = api_of(&self.client, &object)
            .delete(name, &DeleteParams::default())
            .await;
        deleted.expect("it is deleted");
    }
}

#[tokio::test]
#[ignore = "needs the Kubernetes programs"]
async fn the_api_server_is_a_source() {
    // Of its own: the contract counts what is there.
    let server = Server::own().await;
    server.namespace("shop").await;
    let mut bench = Bench {
        client: server.client().await,
        declared: BTreeMap::new(),
    };
    within("the contract", source_contract(&mut bench)).await;
    what_cannot_be_carried_is_told(&mut bench).await;
    a_denied_kind_is_told(&server).await;
}

async fn what_cannot_be_carried_is_told(bench: &mut Bench) {
    let dns = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "dns", "namespace": "shop"},
        "spec": {"ports": [
            {"name": "tcp", "port": 53, "targetPort": "named"},
            {"name": "udp", "port": 53, "protocol": "UDP"},
        ]},
    });
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "dns-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "dns"}},
        "addressType": "IPv4", "endpoints": [],
        "ports": [{"name": "tcp", "port": 5353}],
    });
    for object in [dns, slice, export("shop", "dns")] {
        declare(&bench.client, &object, false)
            .await
            .expect("it is good");
    }
    let mut source = bench.source().await;
    let declared = within("a snapshot", source.next())
        .await
        .expect("a snapshot");
    let ports = &declared.services[&"shop/dns".parse().expect("a key")].ports;
    assert_eq!(ports.len(), 1);
    assert_eq!(
        (ports[0].service_port.port, ports[0].target_port),
        (53, 5353)
    );
    assert_eq!(
        declared.problems,
        ["Service shop/dns: port 53: UDP is not carried yet"]
    );
}

/// Without rights there is no snapshot, and it is said which right is missing.
async fn a_denied_kind_is_told(server: &Arc<Server>) {
    let client = server.client().await;
    let accounts = Api::<ServiceAccount>::namespaced(client.clone(), "shop");
    let mut account = ServiceAccount::default();
    account.metadata.name = Some("nobody".into());
    accounts
        .create(&PostParams::default(), &account)
        .await
        .expect("an account");
    let request = serde_json::from_value(json!({"spec": {"audiences": []}})).expect("a request");
    let token = accounts
        .create_token_request("nobody", &PostParams::default(), &request)
        .await;
    let token = token.expect("a token").status.expect("a token").token;
    let mut config = Config::new(server.url());
    config.root_cert = Some(server.roots());
    config.auth_info.token = Some(token.into());
    let nobody = Client::try_from(config).expect("a client");
    let mut source = KubernetesSource::new(own(), Default::default(), Mirrors::watch(&nobody));
    let told = loop {
        match within("an answer", source.next()).await {
            Err(SourceError::Unavailable { source, .. }) => {
                let told = source.to_string();
                // One kind after the other is refused.
                if told.contains("serviceexports") {
                    break told;
                }
            }
            other => panic!("{other:?}"),
        }
    };
    assert!(
        told.contains("forbidden") && told.contains("`list` and `watch`"),
        "{told}"
    );
}

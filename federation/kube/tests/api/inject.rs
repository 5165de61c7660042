//! What injection makes is taken by an API server, strictly, in a restricted namespace.

use linkspan_core::Locality;
use linkspan_core::inject::{Capture, Injection, inject};
use serde_json::{Value, json};

use crate::server::{Server, api_of, declare};

const NAMESPACE: &str = "injected";

fn injection() -> Injection {
    Injection {
        cluster: "east".parse().expect("an id"),
        trust_domain: "east.test".parse().expect("a domain"),
        federation: "federation.test:15010".into(),
        roots: "-----BEGIN CERTIFICATE-----\n".into(),
        locality: Locality::new("eu", "a"),
        image: "localhost/linkspan:dev".into(),
        image_pull_policy: "Never".into(),
    }
}

fn pod(user: Value) -> Value {
    let closed = json!({
        "allowPrivilegeEscalation": false, "runAsNonRoot": true, "runAsUser": user,
        "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"},
    });
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "web", "namespace": NAMESPACE, "labels": {"app": "web"},
            "annotations": {"linkspan.io/outbound": "7001=shop/checkout:80"}},
        "spec": {"containers": [{"name": "app", "image": "app", "securityContext": closed,
            "readinessProbe": {"httpGet": {"port": 8080}}}]},
    })
}

#[tokio::test]
#[ignore = "needs the Kubernetes programs"]
async fn an_injected_pod_is_taken_where_pods_are_restricted() {
    let server = Server::shared().await;
    server.namespace(NAMESPACE).await;
    let client = server.client().await;
    let restricted = json!({"apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": NAMESPACE,
            "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}});
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": {"name": "default", "namespace": NAMESPACE}});
    for object in [restricted, account] {
        declare(&client, &object, false).await.expect("it is good");
    }
    let root = declare(&client, &pod(json!(0)), true).await;
    let said = root.expect_err("root is refused").message;
    assert!(said.contains("restricted"), "{said}");
    let mut injected = pod(json!(1_000));
    assert_eq!(inject(&mut injected, &injection(), Capture::No), Ok(1));
    let made = declare(&client, &injected, false).await;
    let made = made.unwrap_or_else(|refused| panic!("{}", refused.message));
    // What it has become there is still what injection would make of it.
    let mut again = serde_json::to_value(&made).expect("JSON");
    let before = again["spec"]["initContainers"].clone();
    inject(&mut again, &injection(), Capture::No).expect("it has one already");
    let sidecar = &again["spec"]["initContainers"][0];
    assert_eq!(before.as_array().map(Vec::len), Some(1));
    assert_eq!(sidecar["args"], before[0]["args"]);
    let pods = api_of(&client, &injected);
    pods.delete("web", &Default::default())
        .await
        .expect("it is deleted");
}

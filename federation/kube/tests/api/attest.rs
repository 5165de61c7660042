//! Tokens of service accounts: the one that is meant for us proves who holds it, no other.

use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::Client;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use linkspan_core::WorkloadId;
use linkspan_core::backend::{AttestError, Attested, Attestor as _};
use linkspan_kube::KubernetesAttestor;
use serde_json::{Value, json};

use crate::server::Server;

const NAMESPACE: &str = "attest";

async fn make<K>(client: &Client, object: Value) -> K
where
    K: kube::Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + serde::Serialize
        + serde::de::DeserializeOwned,
{
    let object = serde_json::from_value(object).expect("an object");
    let api = Api::<K>::namespaced(client.clone(), NAMESPACE);
    api.create(&PostParams::default(), &object)
        .await
        .expect("it is made")
}

fn pod(name: &str, account: &str) -> Value {
    json!({
        "metadata": {"name": name},
        "spec": {"serviceAccountName": account, "automountServiceAccountToken": false,
            "containers": [{"name": "app", "image": "app"}]},
    })
}

async fn token(client: &Client, account: &str, audience: &str, pod: Option<&Pod>) -> String {
    let bound = pod.map(|pod| {
        json!({"apiVersion": "v1", "kind": "Pod", "name": pod.metadata.name, "uid": pod.metadata.uid})
    });
    let request = json!({"spec": {"audiences": [audience], "boundObjectRef": bound}});
    let request = serde_json::from_value(request).expect("a request");
    let accounts = Api::<ServiceAccount>::namespaced(client.clone(), NAMESPACE);
    let answer = accounts
        .create_token_request(account, &PostParams::default(), &request)
        .await;
    answer.expect("a token").status.expect("a token").token
}

#[tokio::test]
#[ignore = "needs the Kubernetes programs"]
async fn only_a_token_for_us_of_a_living_pod_counts() {
    let server = Server::shared().await;
    server.namespace(NAMESPACE).await;
    let client = server.client().await;
    make::<ServiceAccount>(&client, json!({"metadata": {"name": "web"}})).await;
    let web: Pod = make(&client, pod("web-1", "web")).await;
    let attestor = KubernetesAttestor::new(client.clone(), &"east".parse().expect("an id"));

    let good = token(&client, "web", "linkspan:east", Some(&web)).await;
    let expected = Attested {
        workload: WorkloadId::new(NAMESPACE, "web").expect("names"),
        uid: web.metadata.uid.clone(),
    };
    assert_eq!(attestor.attest(&good).await.expect("it is good"), expected);

    let mut torn = good.clone();
    torn.pop();
    let refused = [
        ("no token", String::new()),
        ("no token at all", "x".repeat(100_000)),
        ("torn", torn),
        (
            "for another cluster",
            token(&client, "web", "linkspan:west", Some(&web)).await,
        ),
        (
            "for the API server",
            token(
                &client,
                "web",
                "https://kubernetes.default.svc.cluster.local",
                Some(&web),
            )
            .await,
        ),
        (
            "bound to no Pod",
            token(&client, "web", "linkspan:east", None).await,
        ),
    ];
    for (what, token) in refused {
        let refused = attestor.attest(&token).await;
        assert!(
            matches!(refused, Err(AttestError::Refused)),
            "{what}: {refused:?}"
        );
    }

    // A Pod that has finished stays for a while, and so does what it was given.
    let done: Pod = make(&client, pod("job-1", "web")).await;
    let held = token(&client, "web", "linkspan:east", Some(&done)).await;
    attestor.attest(&held).await.expect("it lives");
    let pods = Api::<Pod>::namespaced(client.clone(), NAMESPACE);
    let finished = Patch::Merge(json!({"status": {"phase": "Succeeded"}}));
    pods.patch_status("job-1", &PatchParams::default(), &finished)
        .await
        .expect("it finishes");
    let refused = attestor.attest(&held).await;
    assert!(matches!(refused, Err(AttestError::Refused)), "{refused:?}");

    // A Pod of the same name is another one.
    pods.delete("web-1", &DeleteParams::default().grace_period(0))
        .await
        .expect("it goes");
    make::<Pod>(&client, pod("web-1", "web")).await;
    let refused = attestor.attest(&good).await;
    assert!(matches!(refused, Err(AttestError::Refused)), "{refused:?}");
}

//! A Secret with one writer, the published roots, and where gateways are.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Client;
use kube::api::{Api, ObjectMeta, Patch, PatchParams, PostParams};
use linkspan_kube::{
    KubernetesSecret, MAX_SECRET, OWNER, ROOTS_CONFIG_MAP, SecretError, publish_roots,
};
use serde_json::json;

use crate::server::{Server, within};

const NAME: &str = "kept";

/// An empty Secret, as `linkspan install` makes it, on a server that runs for as long as it is held.
async fn empty(namespace: &str) -> (Arc<Server>, Client, Api<Secret>) {
    let server = Server::shared().await;
    server.namespace(namespace).await;
    let client = server.client().await;
    let api = Api::<Secret>::namespaced(client.clone(), namespace);
    let secret = Secret {
        metadata: ObjectMeta {
            name: Some(NAME.into()),
            ..ObjectMeta::default()
        },
        ..Secret::default()
    };
    api.create(&PostParams::default(), &secret)
        .await
        .expect("a Secret");
    (server, client, api)
}

async fn open(client: &Client, namespace: &str) -> KubernetesSecret {
    let opening = KubernetesSecret::open(client.clone(), namespace, NAME);
    within("it is read", opening).await.expect("a Secret")
}

#[tokio::test]
#[ignore = "needs the Kubernetes programs"]
async fn what_was_put_is_there_for_the_next_one() {
    let (_server, client, _) = empty("secret-kept").await;
    let mut first = open(&client, "secret-kept").await;
    assert_eq!(first.get("a"), None);
    first
        .put(&[("a", b"1"), ("b", b"\0\xff")])
        .await
        .expect("put");
    first.put(&[("a", b"2")]).await.expect("put");
    let second = open(&client, "secret-kept").await;
    for secret in [&first, &second] {
        assert_eq!(secret.get("a"), Some(&b"2"[..]));
        assert_eq!(secret.get("b"), Some(&b"\0\xff"[..]));
    }
    assert!(!format!("{second:?}").contains("255"), "{second:?}");
}

#[tokio::test]
#[ignore = "needs the Kubernetes programs"]
async fn the_last_to_own_it_writes_alone() {
    let (_server, client, _) = empty("secret-owner").await;
    let mut first = open(&client, "secret-owner").await;
    first.put(&[(OWNER, b"1")]).await.expect("owned");
    let mut second = open(&client, "secret-owner").await;
    // It began and does not own it yet: the first one writes, and so it is not the last.
    first.put(&[("a", b"1")]).await.expect("put");
    let early = second.put(&[("a", b"2")]).await;
    assert!(matches!(early, Err(SecretError::TakenOver(_))), "{early:?}");
    let mut third = open(&client, "secret-owner").await;
    third.put(&[(OWNER, b"3")]).await.expect("owned");
    for _ in 0..2 {
        let late = first.put(&[("a", b"4")]).await;
        assert!(matches!(late, Err(SecretError::TakenOver(_))), "{late:?}");
    }
    third.put(&[("a", b"5")]).await.expect("put");
    let last = open(&client, "secret-owner").await;
    assert_eq!(last.get("a"), Some(&b"5"[..]));
}

#[tokio::test]
#[ignore = "needs the Kubernetes programs"]
async fn of_two_that_begin_at_once_one_goes_on() {
    let (_server, client, _) = empty("secret-race").await;
    let mut both = [
        open(&client, "secret-race").await,
        open(&client, "secret-race").await,
    ];
    let [first, second] = &mut both;
    let entry: &[(&str, &[u8])] = &[("ca.root.key", b"made")];
    let (one, other) = tokio::join!(first.put(entry), second.put(entry));
    assert!(one.is_ok() != other.is_ok(), "{one:?} {other:?}");
}

#[tokio::test]
#[ignore = "needs the Kubernetes programs"]
async fn what_others_change_beside_it_is_no_hindrance() {
    let (_server, client, api) = empty("secret-beside").await;
    let mut secret = open(&client, "secret-beside").await;
    secret.put(&[(OWNER, b"1")]).await.expect("owned");
    let label =
        json!({ "metadata": { "labels": { "backup": "yes" } }, "stringData": { "theirs": "x" } });
    api.patch(NAME, &PatchParams::default(), &Patch::Merge(&label))
        .await
        .expect("patched");
    secret.put(&[("a", b"1")]).await.expect("put");
    let found = api.get(NAME).await.expect("a Secret");
    assert_eq!(found.metadata.labels.expect("labels")["backup"], "yes");
    assert!(found.data.expect("data").contains_key("theirs"));
}

#[tokio::test]
#[ignore = "needs the Kubernetes programs"]
async fn too_much_is_refused_and_a_missing_one_says_what_to_do() {
    let (_server, client, api) = empty("secret-bounds").await;
    let mut secret = open(&client, "secret-bounds").await;
    let refused = secret.put(&[("a", &vec![0; MAX_SECRET])]).await;
    assert!(matches!(refused, Err(SecretError::TooLarge { .. })));
    // As much as is taken here is taken there.
    let most = vec![0; MAX_SECRET - 1];
    secret.put(&[("a", &most)]).await.expect("it fits");
    api.delete(NAME, &kube::api::DeleteParams::default())
        .await
        .expect("deleted");
    let gone = secret.put(&[("a", b"1")]).await.expect_err("it is gone");
    assert!(gone.to_string().contains("linkspan install"), "{gone}");
    let missing = KubernetesSecret::open(client, "secret-bounds", NAME).await;
    assert!(matches!(missing, Err(SecretError::Missing(_))));
}

#[tokio::test]
#[ignore = "needs the Kubernetes programs"]
async fn roots_are_published_and_put_right() {
    let server = Server::shared().await;
    server.namespace("roots").await;
    let client = server.client().await;
    let api = Api::<ConfigMap>::namespaced(client.clone(), "roots");
    let publish = |pem: &'static str| publish_roots(client.clone(), "roots", pem);
    assert!(publish("one").await.expect("published"));
    assert!(!publish("one").await.expect("published"));
    assert!(publish("two").await.expect("published"));
    let found = api.get(ROOTS_CONFIG_MAP).await.expect("a ConfigMap");
    assert_eq!(found.data.expect("data")["roots.pem"], "two");
}

//! A Secret with one writer, the published roots, and where gateways are.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Client;
use kube::api::{Api, ObjectMeta, Patch, PatchParams, PostParams};
use linkspan_kube::{
    KubernetesSecret, MAX_SECRET, OWNER, ROOTS_CONFIG_MAP, SecretError, publish_roots,
    published_roots,
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
    create_empty(&api).await;
    (server, client, api)
}

async fn open(client: &Client, namespace: &str, owner: &str) -> KubernetesSecret {
    let opening = KubernetesSecret::open(client.clone(), namespace, NAME, owner);
    within("it is read", opening).await.expect("a Secret")
}

/// Deletes the Secret; whoever has it is not told.
async fn delete(api: &Api<Secret>) {
    api.delete(NAME, &kube::api::DeleteParams::default())
        .await
        .expect("deleted");
}

async fn create_empty(api: &Api<Secret>) {
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
}

#[tokio::test]
#[ignore = "needs the Kubernetes programs"]
async fn what_was_put_is_there_for_the_next_one() {
    let (_server, client, _) = empty("secret-kept").await;
    let mut first = open(&client, "secret-kept", "1").await;
    assert_eq!(first.get("a"), None);
    first
        .put(&[("a", b"1"), ("b", b"\0\xff")])
        .await
        .expect("put");
    first.put(&[("a", b"2")]).await.expect("put");
    let second = open(&client, "secret-kept", "2").await;
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
    let mut first = open(&client, "secret-owner", "1").await;
    first.put(&[("a", b"1")]).await.expect("put");
    let mut second = open(&client, "secret-owner", "2").await;
    assert_eq!(second.get("a"), Some(&b"1"[..]));
    for _ in 0..2 {
        let late = first.put(&[("a", b"2")]).await;
        assert!(matches!(late, Err(SecretError::TakenOver(_))), "{late:?}");
    }
    let idle = first.look().await;
    assert!(matches!(idle, Err(SecretError::TakenOver(_))), "{idle:?}");
    second.put(&[("a", b"3")]).await.expect("put");
    second.look().await.expect("it is the second one's");
    let last = open(&client, "secret-owner", "3").await;
    assert_eq!(last.get("a"), Some(&b"3"[..]));
}

#[tokio::test]
#[ignore = "needs the Kubernetes programs"]
async fn of_two_that_begin_at_once_one_goes_on() {
    let (_server, client, _) = empty("secret-race").await;
    let (mut first, mut second) = tokio::join!(
        open(&client, "secret-race", "1"),
        open(&client, "secret-race", "2"),
    );
    let entry: &[(&str, &[u8])] = &[("ca.root.key", b"made")];
    let (one, other) = tokio::join!(first.put(entry), second.put(entry));
    assert!(one.is_ok() != other.is_ok(), "{one:?} {other:?}");
}

#[tokio::test]
#[ignore = "needs the Kubernetes programs"]
async fn what_was_deleted_and_made_anew_gets_back_what_its_owner_holds() {
    let (_server, client, api) = empty("secret-lost").await;
    let mut secret = open(&client, "secret-lost", "1").await;
    secret
        .put(&[("ca.root.key", b"key"), ("links.json", b"{}")])
        .await
        .expect("put");
    delete(&api).await;
    for _ in 0..2 {
        let gone = secret.look().await.expect_err("it is gone");
        assert!(matches!(gone, SecretError::Deleted(_)), "{gone}");
        assert!(gone.to_string().contains("linkspan install"), "{gone}");
    }
    let gone = secret.put(&[("links.json", b"[]")]).await;
    assert!(matches!(gone, Err(SecretError::Deleted(_))), "{gone:?}");
    create_empty(&api).await;
    secret.look().await.expect("it is there again");
    let held = |found: &Secret, key: &str| {
        let data = found.data.as_ref().and_then(|data| data.get(key));
        data.map(|bytes| bytes.0.clone())
    };
    let found = api.get(NAME).await.expect("a Secret");
    assert_eq!(held(&found, "ca.root.key").expect("the key"), b"key");
    assert_eq!(held(&found, OWNER).expect("the owner"), b"1");
    // Also by a write, and where it was only emptied.
    let emptied = Secret {
        data: None,
        ..found
    };
    api.replace(NAME, &PostParams::default(), &emptied)
        .await
        .expect("emptied");
    secret.put(&[("links.json", b"[1]")]).await.expect("put");
    let found = api.get(NAME).await.expect("a Secret");
    assert_eq!(held(&found, "ca.root.key").expect("the key"), b"key");
    assert_eq!(held(&found, "links.json").expect("links"), b"[1]");
}

#[tokio::test]
#[ignore = "needs the Kubernetes programs"]
async fn what_somebody_else_has_begun_anew_is_not_overwritten() {
    let (_server, client, api) = empty("secret-anew").await;
    let mut secret = open(&client, "secret-anew", "1").await;
    secret.put(&[("ca.root.key", b"old")]).await.expect("put");
    delete(&api).await;
    create_empty(&api).await;
    let theirs = json!({ "stringData": { "ca.root.key": "new" } });
    api.patch(NAME, &PatchParams::default(), &Patch::Merge(&theirs))
        .await
        .expect("patched");
    let looked = secret.look().await;
    assert!(
        matches!(looked, Err(SecretError::TakenOver(_))),
        "{looked:?}"
    );
}

#[tokio::test]
#[ignore = "needs the Kubernetes programs"]
async fn what_others_change_beside_it_is_no_hindrance() {
    let (_server, client, api) = empty("secret-beside").await;
    let mut secret = open(&client, "secret-beside", "1").await;
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
    let mut secret = open(&client, "secret-bounds", "1").await;
    let refused = secret.put(&[("a", &vec![0; MAX_SECRET])]).await;
    assert!(matches!(refused, Err(SecretError::TooLarge { .. })));
    // As much as is taken here is taken there.
    let most = vec![0; MAX_SECRET - 1 - OWNER.len() - 1];
    secret.put(&[("a", &most)]).await.expect("it fits");
    delete(&api).await;
    let missing = KubernetesSecret::open(client, "secret-bounds", NAME, "2").await;
    let missing = missing.expect_err("it is gone");
    assert!(matches!(missing, SecretError::Missing(_)), "{missing}");
    assert!(
        missing.to_string().contains("linkspan install"),
        "{missing}"
    );
}

#[tokio::test]
#[ignore = "needs the Kubernetes programs"]
async fn roots_are_published_and_put_right() {
    let server = Server::shared().await;
    server.namespace("roots").await;
    let client = server.client().await;
    let api = Api::<ConfigMap>::namespaced(client.clone(), "roots");
    let publish = |pem: &'static str| publish_roots(client.clone(), "roots", pem);
    let published = || published_roots(client.clone(), "roots");
    assert_eq!(published().await.expect("asked"), None);
    assert!(publish("one").await.expect("published"));
    assert_eq!(published().await.expect("asked").as_deref(), Some("one"));
    assert!(!publish("one").await.expect("published"));
    assert!(publish("two").await.expect("published"));
    let found = api.get(ROOTS_CONFIG_MAP).await.expect("a ConfigMap");
    assert_eq!(found.data.expect("data")["roots.pem"], "two");
}

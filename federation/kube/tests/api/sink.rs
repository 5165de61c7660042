//! The API server as a sink: the contract, and what is ours there.

use std::sync::Arc;

use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams};
use kube::{Client, ResourceExt};
use linkspan_core::backend::{Removals, Sink as _};
use linkspan_core::plan::Desired;
use linkspan_core::testing::{SinkBench, own, port, sink_contract};
use linkspan_core::{Condition, ConditionStatus, Import, ImportType, ServiceKey, SessionAffinity};
use linkspan_kube::{KubernetesSink, KubernetesSource, Lead, Mirrors};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::server::{Server, api_of, declare, export, leading, within};

struct Bench {
    client: Client,
}

impl SinkBench for Bench {
    type Sink = KubernetesSink;

    async fn sink(&mut self) -> KubernetesSink {
        ready_sink(&self.client).await
    }

    async fn export_conditions(&mut self, service: &ServiceKey) -> Vec<Condition> {
        let object = export(service.namespace.as_str(), service.name.as_str());
        let found = get(&self.client, &object).await;
        let conditions = found.data["status"]["conditions"].as_array().cloned();
        conditions
            .unwrap_or_default()
            .iter()
            .filter_map(condition)
            .collect()
    }
}

/// A sink whose mirrors are complete: a first snapshot tells.
async fn ready_sink(client: &Client) -> KubernetesSink {
    sink_led(client, leading()).await
}

async fn sink_led(client: &Client, lead: watch::Receiver<Lead>) -> KubernetesSink {
    use linkspan_core::backend::Source as _;
    let mirrors = Mirrors::watch(client);
    let mut source = KubernetesSource::new(own(), Default::default(), mirrors.clone());
    within("a first snapshot", source.next())
        .await
        .expect("a snapshot");
    KubernetesSink::new(client.clone(), mirrors, lead)
}

async fn get(client: &Client, object: &Value) -> DynamicObject {
    let name = object["metadata"]["name"].as_str().expect("a name");
    api_of(client, object).get(name).await.expect("it is there")
}

/// Those of others are none of ours.
fn condition(json: &Value) -> Option<Condition> {
    let kind = ["Valid", "Ready", "Conflict"]
        .into_iter()
        .find(|kind| json["type"] == *kind)?;
    let status = match json["status"].as_str().expect("a status") {
        "True" => ConditionStatus::True,
        "False" => ConditionStatus::False,
        _ => ConditionStatus::Unknown,
    };
    let text = |field: &str| json[field].as_str().expect("a text").to_owned();
    Some(Condition::new(
        kind,
        status,
        text("reason"),
        text("message"),
    ))
}

#[tokio::test]
#[ignore = "needs the Kubernetes programs"]
async fn the_api_server_is_a_sink() {
    // Of its own: the contract names the namespace.
    let server = Server::own().await;
    server.namespace("shop").await;
    let client = server.client().await;
    declare(&client, &export("shop", "checkout"), false)
        .await
        .expect("an export");
    // Somebody else's condition, which is to stay.
    let theirs = json!([{"type": "Theirs", "status": "True", "reason": "R", "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z"}]);
    let mut status = export("shop", "checkout");
    status["status"] = json!({"conditions": theirs});
    let exports = api_of(&client, &status);
    let patch = Patch::Apply(&status);
    exports
        .patch_status("checkout", &PatchParams::apply("them"), &patch)
        .await
        .expect("their status");
    let mut bench = Bench {
        client: client.clone(),
    };
    within("the contract", sink_contract(&mut bench)).await;
    let left = get(&client, &status).await;
    assert_eq!(left.data["status"]["conditions"], theirs);
    imports(&server, &client).await;
}

fn import(key: &str, clusters: &[&str]) -> Import {
    let clusters = clusters
        .iter()
        .map(|id| (id.parse().expect("an id"), Default::default()));
    Import {
        service: key.parse().expect("a key"),
        ports: vec![port(80)],
        import_type: ImportType::ClusterSetIP,
        session_affinity: SessionAffinity::None,
        clusters: clusters.collect(),
        unmeshed_clients: Default::default(),
    }
}

fn desired(imports: &[Import]) -> Desired {
    let ready = Condition::new("Ready", ConditionStatus::True, "Ready", "exported by west");
    Desired {
        imports: imports
            .iter()
            .map(|of| (of.service.clone(), of.clone()))
            .collect(),
        import_conditions: imports
            .iter()
            .map(|of| (of.service.clone(), vec![ready.clone()]))
            .collect(),
        ..Desired::default()
    }
}

fn import_object(name: &str) -> Value {
    json!({
        "apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceImport",
        "metadata": {"name": name, "namespace": "shop"},
    })
}

async fn names(client: &Client) -> Vec<String> {
    let api: Api<DynamicObject> = api_of(client, &import_object("any"));
    let list = api.list(&Default::default()).await.expect("a list");
    list.items.iter().map(ResourceExt::name_any).collect()
}

async fn imports(server: &Arc<Server>, client: &Client) {
    let mut sink = ready_sink(client).await;
    let both = desired(&[
        import("shop/cart", &["west"]),
        import("shop/mail", &["west", "north"]),
    ]);

    // Two objects and their statuses.
    assert_eq!(apply(&mut sink, &both).await, 4);
    let cart = get(client, &import_object("cart")).await;
    assert_eq!(cart.data["spec"]["type"], "ClusterSetIP");
    assert_eq!(
        cart.data["spec"]["ports"],
        json!([{"port": 80, "protocol": "TCP"}])
    );
    assert_eq!(
        cart.data["status"]["clusters"],
        json!([{"cluster": "west"}])
    );
    assert_eq!(cart.data["status"]["endpointSliceObjects"], "Absent");
    assert_eq!(cart.data["status"]["conditions"][0]["reason"], "Ready");

    // The same again, also by a federation that has just started, writes nothing.
    assert_eq!(apply(&mut sink, &both).await, 0);
    assert_eq!(apply(&mut ready_sink(client).await, &both).await, 0);
    let again = get(client, &import_object("cart")).await;
    assert_eq!(again.resource_version(), cart.resource_version());

    // What somebody else changed is mended.
    let spec = json!({"apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceImport",
        "spec": {"type": "Headless", "ports": []}});
    let api = api_of(client, &import_object("cart"));
    let params = PatchParams::apply("meddler").force();
    api.patch("cart", &params, &Patch::Apply(&spec))
        .await
        .expect("meddles");
    within("the news", sink.disturbed()).await;
    until_written(&mut sink, &both).await;
    let mended = get(client, &import_object("cart")).await;
    assert_eq!(mended.data["spec"]["type"], "ClusterSetIP");

    // What is somebody else's stays so, and it is told.
    let foreign = json!({"apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceImport",
        "metadata": {"name": "foreign", "namespace": "shop"}, "spec": {"type": "Headless", "ports": []}});
    declare(client, &foreign, false)
        .await
        .expect("an import of theirs");
    let mut fresh = ready_sink(client).await;
    let with_foreign = desired(&[
        import("shop/cart", &["west"]),
        import("shop/foreign", &["west"]),
    ]);
    let applied = fresh
        .apply(&with_foreign, Removals::Held)
        .await
        .expect("applies");
    assert_eq!(applied.refused.len(), 1);
    assert_eq!(applied.refused[0].0, "ServiceImport shop/foreign");
    assert_eq!(
        names(client).await,
        ["cart", "foreign", "mail"],
        "removals are held"
    );

    // What is not desired goes, if it is ours; a namespace that does not exist is nobody's fault.
    let rest = desired(&[
        import("shop/cart", &["west"]),
        import("nowhere/cart", &["west"]),
    ]);
    assert_eq!(apply(&mut fresh, &rest).await, 1);
    assert_eq!(names(client).await, ["cart", "foreign"]);
    server.namespace("nowhere").await;
    within("the namespace", fresh.disturbed()).await;
    until_written(&mut fresh, &rest).await;

    // What somebody deleted comes back.
    api.delete("cart", &DeleteParams::default())
        .await
        .expect("deletes");
    within("the news", fresh.disturbed()).await;
    until_written(&mut fresh, &rest).await;
    assert_eq!(names(client).await, ["cart", "foreign"]);
    what_one_object_meets_stops_no_other(client).await;
    who_does_not_lead_writes_nothing(client).await;
}

/// A webhook that does not answer refuses what is in its namespace.
async fn what_one_object_meets_stops_no_other(client: &Client) {
    let webhook = json!({"apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration", "metadata": {"name": "silent"},
        "webhooks": [{"name": "silent.example.com", "admissionReviewVersions": ["v1"],
            "sideEffects": "None", "clientConfig": {"url": "https://127.0.0.1:1/"},
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "nowhere"}},
            "rules": [{"apiGroups": ["multicluster.x-k8s.io"], "apiVersions": ["*"],
                "resources": ["serviceimports"], "operations": ["CREATE"]}]}]});
    declare(client, &webhook, false).await.expect("a webhook");
    let probe = json!({"apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceImport",
        "metadata": {"name": "probe", "namespace": "nowhere"},
        "spec": {"type": "Headless", "ports": []}});
    let heard = async { while declare(client, &probe, true).await.is_ok() {} };
    within("the API server hears of the webhook", heard).await;
    let mut sink = ready_sink(client).await;
    let wanted = desired(&[
        import("nowhere/cart", &["west"]),
        import("nowhere/mail", &["west"]),
        import("shop/cart", &["west"]),
        import("shop/mail", &["west"]),
    ]);
    let applied = sink.apply(&wanted, Removals::Made).await.expect("applies");
    assert_eq!(applied.refused.len(), 1, "{:?}", applied.refused);
    let (what, why) = &applied.refused[0];
    assert_eq!(what, "ServiceImport nowhere/mail");
    assert!(why.contains("silent.example.com"), "{why}");
    assert_eq!(applied.written, 2, "an object and its status");
    let mail = get(client, &import_object("mail")).await;
    assert_eq!(mail.data["status"]["conditions"][0]["reason"], "Ready");
}

async fn who_does_not_lead_writes_nothing(client: &Client) {
    let not_leading = watch::channel(Lead::default()).1;
    let mut sink = sink_led(client, not_leading).await;
    let before = get(client, &import_object("cart")).await;
    let none = Desired::default();
    sink.apply(&none, Removals::Made)
        .await
        .expect_err("not ours");
    let after = get(client, &import_object("cart")).await;
    assert_eq!(after.resource_version(), before.resource_version());
    assert_eq!(names(client).await, ["cart", "foreign", "mail"]);
}

async fn apply(sink: &mut KubernetesSink, desired: &Desired) -> usize {
    let applied = sink.apply(desired, Removals::Made).await.expect("applies");
    assert_eq!(applied.refused, []);
    applied.written
}

/// Changes of our own disturb, too, before the one that is waited for.
async fn until_written(sink: &mut KubernetesSink, desired: &Desired) {
    while apply(sink, desired).await == 0 {
        within("the change", sink.disturbed()).await;
    }
}

//! The API server refuses what our own validation refuses, and names the same field.

use linkspan_core::testing;
use linkspan_resources::read_object;
use serde_json::{Value, json};

use crate::server::{Server, declare, export};

fn link() -> Value {
    let bundle = testing::link("west").bundle.to_pem();
    json!({
        "apiVersion": "linkspan.io/v1alpha1", "kind": "ClusterLink",
        "metadata": {"name": "west"},
        "spec": {
            "trustDomain": "west.test",
            "addresses": [{"host": "gateway.west.example", "port": 15443}],
            "bundle": bundle,
            "gatewayID": "spiffe://west.test/ns/linkspan-system/sa/linkspan-gateway",
            "imports": [{"namespace": "shop", "name": "*"}],
        },
    })
}

fn policy() -> Value {
    json!({
        "apiVersion": "linkspan.io/v1alpha1", "kind": "FailoverPolicy",
        "metadata": {"name": "checkout", "namespace": "default"},
        "spec": {
            "targetRefs": [{"kind": "Service", "name": "checkout"}],
            "order": [
                {"clusters": ["Own"], "zones": ["Own"]},
                {"clusters": ["Own", "west.example"], "regions": ["Europe (north)", "eu-1"]},
                {"labels": {"version": "v2"}},
            ],
            "unlisted": "exclude",
            "localityWeights": [{"zones": ["a"], "weight": 80}],
            "overprovisioningFactor": 140,
            "maxRemoteShare": 50,
            "failback": {"hold": "1m30s", "ramp": "500ms"},
            "stalePeers": "avoid",
            "drain": ["west.example"],
        },
    })
}

/// The policy with the value at `pointer` replaced, or taken out.
fn policy_with(pointer: &str, value: impl Into<Option<Value>>) -> Value {
    let mut object = policy();
    set(&mut object, pointer, value.into());
    object
}

/// The link with the value at `pointer` replaced, or taken out.
fn with(pointer: &str, value: impl Into<Option<Value>>) -> Value {
    let mut object = link();
    set(&mut object, pointer, value.into());
    object
}

fn set(object: &mut Value, pointer: &str, value: Option<Value>) {
    let (parent, name) = pointer.rsplit_once('/').expect("a pointer");
    let parent = object
        .pointer_mut(parent)
        .unwrap_or_else(|| panic!("no {parent}"));
    match (parent, value) {
        (Value::Object(fields), Some(value)) => {
            fields.insert(name.into(), value);
        }
        (Value::Object(fields), None) => {
            fields.remove(name);
        }
        (Value::Array(items), Some(value)) => {
            items[name.parse::<usize>().expect("an index")] = value;
        }
        (parent, _) => panic!("{parent} has no fields"),
    }
}

fn address(host: &str) -> Value {
    with("/spec/addresses/0/host", json!(host))
}

fn many(count: usize, one: Value) -> Value {
    Value::Array(vec![one; count])
}

fn good() -> Vec<Value> {
    let mut all = vec![
        link(),
        with("/spec/addresses", None),
        with("/spec/imports", json!([])),
        with("/spec/imports/0", json!({})),
        with("/spec/allowLoopback", json!(true)),
        with("/metadata/name", json!("west.example.com")),
        with("/spec/gatewayID", json!("spiffe://west.test/.a/..b/...")),
        with("/spec/addresses", many(64, json!({"host": "a", "port": 1}))),
        export("default", "checkout"),
        policy(),
        policy_with("/spec", json!({})),
        policy_with("/spec/targetRefs", None),
        policy_with(
            "/spec/targetRefs/0",
            json!({"group": "multicluster.x-k8s.io", "kind": "ServiceImport", "name": "a"}),
        ),
        policy_with("/spec/targetRefs/0/group", json!("")),
        policy_with("/spec/order", many(10, json!({}))),
        policy_with("/spec/maxRemoteShare", json!(0)),
        policy_with("/spec/failback/hold", json!("24h")),
        policy_with("/spec/failback/hold", json!("0s")),
    ];
    all.extend(
        [
            "10.0.0.1",
            "fd00::1",
            "a",
            "a-1.example",
            "1a.2b",
            "x".repeat(63).as_str(),
        ]
        .map(address),
    );
    let mut labelled = export("default", "checkout");
    labelled["spec"] = json!({
        "exportedLabels": {"a": "", "example.com/Tier_1": "b.C-d"},
        "exportedAnnotations": {"a": "any text at all"},
    });
    all.push(labelled);
    all
}

/// Each with the field that is wrong.
fn bad() -> Vec<(Value, String)> {
    let long = "x".repeat(64);
    let mut all: Vec<(Value, &str)> = vec![
        (with("/spec/trustDomain", None), "spec.trustDomain"),
        (
            with("/spec/trustDomain", json!("West.test")),
            "spec.trustDomain",
        ),
        (with("/spec/trustDomain", json!("")), "spec.trustDomain"),
        (
            with("/spec/trustDomain", json!("x".repeat(256))),
            "spec.trustDomain",
        ),
        (
            with("/spec/trustDomain", json!("spiffe://west.test")),
            "spec.trustDomain",
        ),
        (with("/spec/bundle", None), "spec.bundle"),
        (with("/spec/bundle", json!("roots")), "spec.bundle"),
        (
            with("/spec/bundle", json!("-----BEGIN CERTIFICATE-----")),
            "spec.bundle",
        ),
        (
            with(
                "/spec/bundle",
                json!("-----BEGIN CERTIFICATE----- -----END CERTIFICATE----- PRIVATE KEY"),
            ),
            "spec.bundle",
        ),
        (
            with(
                "/spec/bundle",
                json!("-----BEGIN CERTIFICATE----- -----END CERTIFICATE-----".repeat(2000)),
            ),
            "spec.bundle",
        ),
        (
            with("/spec/gatewayID", json!("spiffe://other.test/a")),
            "spec.gatewayID",
        ),
        (
            with("/spec/gatewayID", json!("spiffe://west.test")),
            "spec.gatewayID",
        ),
        (
            with("/spec/gatewayID", json!("spiffe://west.test/a//b")),
            "spec.gatewayID",
        ),
        (
            with("/spec/gatewayID", json!("spiffe://west.test/a/../b")),
            "spec.gatewayID",
        ),
        (
            with("/spec/federationID", json!("west.test/a")),
            "spec.federationID",
        ),
        (
            with("/spec/federationID", json!("spiffe://west.test.evil/a")),
            "spec.federationID",
        ),
        (
            with("/spec/allowLoopback", json!("yes")),
            "spec.allowLoopback",
        ),
        (
            with("/spec/allowloopback", json!(true)),
            "spec.allowloopback",
        ),
        (
            with("/spec/addresses/0/port", json!(0)),
            "spec.addresses[0].port",
        ),
        (
            with("/spec/addresses/0/port", json!(65536)),
            "spec.addresses[0].port",
        ),
        (
            with("/spec/addresses/0/port", json!("15443")),
            "spec.addresses[0].port",
        ),
        (
            with("/spec/addresses/0/port", None),
            "spec.addresses[0].port",
        ),
        (
            with("/spec/addresses", many(65, json!({"host": "a", "port": 1}))),
            "spec.addresses",
        ),
        (
            with("/spec/addresses", json!("gateway:15443")),
            "spec.addresses",
        ),
        (with("/spec/imports", many(257, json!({}))), "spec.imports"),
        (
            with("/spec/imports/0/namespace", json!("Shop")),
            "spec.imports[0].namespace",
        ),
        (
            with("/spec/imports/0/name", json!("")),
            "spec.imports[0].name",
        ),
        (
            with("/spec/imports/0/name", json!(long)),
            "spec.imports[0].name",
        ),
        (with("/spec", None), "spec"),
        (
            with("/metadata/name", json!(format!("{long}.example"))),
            "metadata.name",
        ),
        (
            with("/metadata/name", json!(["a"; 65].join("."))),
            "metadata.name",
        ),
    ];
    let hosts = [
        "",
        "10.0.0.256",
        "[fd00::1]",
        "::ffff:10.0.0.1",
        "a_b",
        "a..b",
        "-a",
        "Gateway",
        "a b",
        "1.2.3",
        "fe80::1%eth0",
        "a:15443",
        long.as_str(),
    ];
    all.extend(hosts.map(|host| (address(host), "spec.addresses[0].host")));
    let texts = |field: &str, texts: Value| {
        let mut object = export("default", "checkout");
        object["spec"] = json!({ field: texts });
        object
    };
    let keys = (0..65).map(|n| (format!("k{n}"), json!("")));
    all.extend([
        (export("default", "x.y"), "metadata.name"),
        (export("default", &long), "metadata.name"),
        (
            texts("exportedLabels", json!({"a b": "c"})),
            "spec.exportedLabels",
        ),
        (
            texts("exportedLabels", json!({"a": "b c"})),
            "spec.exportedLabels",
        ),
        (
            texts("exportedLabels", json!({"a": long})),
            "spec.exportedLabels",
        ),
        (
            texts("exportedLabels", Value::Object(keys.collect())),
            "spec.exportedLabels",
        ),
        (
            texts("exportedAnnotations", json!({"-a/b": "c"})),
            "spec.exportedAnnotations",
        ),
        (
            texts("exportedLables", json!({"a": "b"})),
            "spec.exportedLables",
        ),
    ]);
    all.extend(bad_policies());
    all.into_iter()
        .map(|(object, field)| (object, field.to_owned()))
        .collect()
}

fn bad_policies() -> Vec<(Value, &'static str)> {
    let labels = (0..65).map(|n| (format!("k{n}"), json!("")));
    let spans = ["", "5", "1.5s", "1d", "25h", "-1s", "1h1m1s1ms1ms"];
    let spans = spans.map(|span| ("/spec/failback/hold", json!(span), "spec.failback.hold"));
    let mut all = vec![
        ("/metadata/name", json!("a.b"), "metadata.name"),
        (
            "/spec/targetRefs/0/kind",
            json!("Pod"),
            "spec.targetRefs[0].kind",
        ),
        (
            "/spec/targetRefs/0/name",
            json!("A"),
            "spec.targetRefs[0].name",
        ),
        (
            "/spec/targetRefs/0/group",
            json!("apps"),
            "spec.targetRefs[0].group",
        ),
        (
            "/spec/targetRefs/0/group",
            json!("multicluster.x-k8s.io"),
            "spec.targetRefs[0].group",
        ),
        (
            "/spec/targetRefs",
            many(101, json!({"kind": "Service", "name": "a"})),
            "spec.targetRefs",
        ),
        ("/spec/order", many(11, json!({})), "spec.order"),
        (
            "/spec/order/0/clusters/0",
            json!("West"),
            "spec.order[0].clusters[0]",
        ),
        (
            "/spec/order/0/clusters",
            many(101, json!("a")),
            "spec.order[0].clusters",
        ),
        (
            "/spec/order/0/zones/0",
            json!("a/b"),
            "spec.order[0].zones[0]",
        ),
        (
            "/spec/order/0/zones/0",
            json!("a\tb"),
            "spec.order[0].zones[0]",
        ),
        ("/spec/order/0/zones/0", json!(""), "spec.order[0].zones[0]"),
        (
            "/spec/order/1/regions/0",
            json!("x".repeat(64)),
            "spec.order[1].regions[0]",
        ),
        (
            "/spec/order/2/labels",
            json!({"a b": "c"}),
            "spec.order[2].labels",
        ),
        (
            "/spec/order/2/labels",
            json!({"a": "b c"}),
            "spec.order[2].labels",
        ),
        (
            "/spec/order/2/labels",
            Value::Object(labels.collect()),
            "spec.order[2].labels",
        ),
        ("/spec/unlisted", json!("Exclude"), "spec.unlisted"),
        (
            "/spec/localityWeights/0/weight",
            json!(0),
            "spec.localityWeights[0].weight",
        ),
        (
            "/spec/localityWeights/0/weight",
            json!(1001),
            "spec.localityWeights[0].weight",
        ),
        (
            "/spec/overprovisioningFactor",
            json!(99),
            "spec.overprovisioningFactor",
        ),
        ("/spec/maxRemoteShare", json!(101), "spec.maxRemoteShare"),
        ("/spec/maxRemoteShare", json!(-1), "spec.maxRemoteShare"),
        ("/spec/failback/hodl", json!("1s"), "spec.failback.hodl"),
        ("/spec/stalePeers", json!("drop"), "spec.stalePeers"),
        ("/spec/drain/0", json!("Own"), "spec.drain[0]"),
        ("/spec/drain", many(101, json!("a")), "spec.drain"),
    ];
    all.extend(spans);
    let mut bad: Vec<_> = all
        .into_iter()
        .map(|(pointer, value, field)| (policy_with(pointer, value), field))
        .collect();
    for (pointer, field) in [
        ("/spec", "spec"),
        ("/spec/targetRefs/0/kind", "spec.targetRefs[0].kind"),
        (
            "/spec/localityWeights/0/weight",
            "spec.localityWeights[0].weight",
        ),
    ] {
        bad.push((policy_with(pointer, None), field));
    }
    bad
}

#[tokio::test]
#[ignore = "needs the Kubernetes programs"]
async fn our_verdict_is_the_servers() {
    let server = Server::shared().await;
    let client = server.client().await;
    let mut wrong = Vec::new();
    for object in good() {
        if let Err(problems) = read_object("ours", &object) {
            wrong.push(format!("ours refuses {object}: {problems:?}"));
        }
        if let Err(status) = declare(&client, &object, true).await {
            wrong.push(format!("the server refuses {object}: {}", status.message));
        }
    }
    for (object, field) in bad() {
        let problems = read_object("ours", &object).err().unwrap_or_default();
        if !problems
            .iter()
            .any(|problem| problem.field.starts_with(&field))
        {
            wrong.push(format!(
                "ours does not find {field} wrong in {object}: {problems:?}"
            ));
        }
        match declare(&client, &object, true).await {
            Ok(_) => wrong.push(format!("the server takes {object}, whose {field} is wrong")),
            Err(status) if status.message.contains(&field) => {}
            Err(status) => wrong.push(format!(
                "the server does not name {field}: {}",
                status.message
            )),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
#[ignore = "needs the Kubernetes programs"]
async fn a_property_that_names_the_cluster_is_a_cluster_id() {
    let server = Server::shared().await;
    let client = server.client().await;
    let property = |name: &str, value: &str| {
        json!({
            "apiVersion": "about.k8s.io/v1beta1", "kind": "ClusterProperty",
            "metadata": {"name": name}, "spec": {"value": value},
        })
    };
    for (name, value) in [
        ("cluster.clusterset.k8s.io", "east.example"),
        ("clusterset.k8s.io", "demo"),
        ("fleet.example.com", "Any Text"),
    ] {
        declare(&client, &property(name, value), true)
            .await
            .expect(name);
    }
    let long = "a".repeat(128);
    for (name, value) in [
        ("cluster.clusterset.k8s.io", "East"),
        ("cluster.clusterset.k8s.io", &long),
        ("clusterset.k8s.io", ""),
    ] {
        let refused = declare(&client, &property(name, value), true)
            .await
            .expect_err(value);
        assert!(
            refused.message.contains("spec.value"),
            "{}",
            refused.message
        );
    }
}

//! Which pods serve without a sidecar, as a real API server says it.

use std::net::IpAddr;
use std::sync::Arc;

use kube::Client;
use kube::api::{DeleteParams, Patch, PatchParams};
use linkspan_core::backend::Source as _;
use linkspan_core::declared::Declared;
use linkspan_core::testing::own;
use linkspan_core::{EndpointId, Locality, ServiceKey};
use linkspan_kube::{KubernetesSource, Mirrors};
use serde_json::{Value, json};

use crate::server::{Server, api_of, declare, export, service, within};

const NAMESPACE: &str = "plain";

fn key() -> ServiceKey {
    "plain/web".parse().expect("a key")
}

fn node() -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1", "labels": {
        "topology.kubernetes.io/region": "eu", "topology.kubernetes.io/zone": "eu-a"}}})
}

/// A pod, which nothing runs.
fn pod(name: &str, labels: &Value, host: bool) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": labels},
        "spec": {"hostNetwork": host, "automountServiceAccountToken": false,
            "containers": [{"name": "web", "image": "web"}]}})
}

/// What Kubernetes' own controller would write.
fn slice(writer: &str, endpoints: &[Value]) -> Value {
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "web-1", "namespace": NAMESPACE, "labels": {
            "kubernetes.io/service-name": "web",
            "endpointslice.kubernetes.io/managed-by": writer}},
        "addressType": "IPv4", "endpoints": endpoints, "ports": [{"name": "", "port": 8080}]})
}

fn endpoint(ip: &str, name: &str, uid: &str, ready: bool) -> Value {
    json!({"addresses": [ip], "nodeName": "n1",
        "conditions": {"ready": ready, "serving": ready, "terminating": false},
        "targetRef": {"kind": "Pod", "name": name, "namespace": NAMESPACE, "uid": uid}})
}

/// Writes what a kubelet would.
async fn has_status(client: &Client, object: &Value, status: Value) {
    let name = object["metadata"]["name"].as_str().expect("a name");
    let status = json!({ "status": status });
    api_of(client, object)
        .patch_status(name, &PatchParams::default(), &Patch::Merge(&status))
        .await
        .expect("a status");
}

/// Makes the pod, with an address.
async fn runs(client: &Client, pod: &Value, ip: &str) -> String {
    let uid = made(client, pod).await;
    has_status(client, pod, json!({"podIP": ip, "podIPs": [{"ip": ip}]})).await;
    uid
}

async fn made(client: &Client, object: &Value) -> String {
    let made = declare(client, object, false).await.expect("it is good");
    made.metadata.uid.expect("a uid")
}

async fn until(
    source: &mut KubernetesSource,
    what: &str,
    seen: impl Fn(&Declared) -> bool,
) -> Arc<Declared> {
    loop {
        let declared = within(what, source.next()).await.expect("a snapshot");
        if seen(&declared) {
            return declared;
        }
    }
}

fn ready(declared: &Declared) -> Vec<IpAddr> {
    let servers = declared.servers_of(&key()).iter();
    let mut ready: Vec<_> = servers.filter(|of| of.ready).map(|of| of.ip).collect();
    ready.sort();
    ready
}

fn ips(of: &[&str]) -> Vec<IpAddr> {
    of.iter().map(|ip| ip.parse().expect("an IP")).collect()
}

#[tokio::test]
#[ignore = "needs the Kubernetes programs"]
async fn pods_without_a_sidecar_serve_what_is_exported() {
    let server = Server::shared().await;
    server.namespace(NAMESPACE).await;
    let client = server.client().await;
    let accounts = json!({"apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": {"name": "default", "namespace": NAMESPACE}});
    made(&client, &accounts).await;
    made(&client, &node()).await;
    let addresses = json!([{"type": "InternalIP", "address": "10.2.0.1"}]);
    has_status(&client, &node(), json!({"addresses": addresses})).await;
    made(&client, &service(NAMESPACE, "web")).await;
    let app = json!({"app": "web"});
    let meshed = json!({"app": "web", "linkspan.io/meshed": "true"});
    let plain = runs(&client, &pod("plain", &app, false), "10.1.0.1").await;
    let sidecar = runs(&client, &pod("sidecar", &meshed, false), "10.1.0.2").await;
    let host = made(&client, &pod("host", &app, true)).await;
    let all = [
        endpoint("10.1.0.1", "plain", &plain, true),
        endpoint("10.1.0.2", "sidecar", &sidecar, true),
        endpoint("10.1.0.3", "host", &host, true),
    ];
    let kubernetes = "endpointslice-controller.k8s.io";
    made(&client, &slice(kubernetes, &all)).await;

    let mut source = KubernetesSource::new(own(), Locality::default(), Mirrors::watch(&client));
    let declared = until(&mut source, "a first snapshot", |_| true).await;
    assert!(declared.servers.is_empty(), "nothing is exported");

    made(&client, &export(NAMESPACE, "web")).await;
    let declared = until(&mut source, "a server", |of| !of.servers.is_empty()).await;
    let [server] = declared.servers_of(&key()) else {
        panic!("{:?}", declared.servers);
    };
    assert_eq!(server.id, EndpointId::from_uid(&plain));
    assert_eq!(ready(&declared), ips(&["10.1.0.1"]));
    assert_eq!(server.locality, Locality::new("eu", "eu-a"));
    assert_eq!(declared.direct[&key()].len(), 3);
    let told = declared.problems.iter();
    let told: Vec<_> = told.filter(|of| of.contains("plain/web")).collect();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains("networks of their nodes"), "{told:?}");

    // It is not ready any more.
    let unready = endpoint("10.1.0.1", "plain", &plain, false);
    made(&client, &slice(kubernetes, &[unready])).await;
    until(&mut source, "the news", |of| {
        !of.servers_of(&key()).is_empty() && ready(of).is_empty()
    })
    .await;

    // What we write ourselves, and what others do, is none of Kubernetes' own.
    for writer in ["linkspan-federation", "somebody"] {
        let forged = endpoint("10.1.0.9", "forged", &host, true);
        made(&client, &slice(writer, &[forged])).await;
        let seen = until(&mut source, "that it is gone", |of| {
            of.servers_of(&key()).is_empty()
        })
        .await;
        assert_eq!(
            seen.direct.contains_key(&key()),
            writer == "somebody",
            "only our own are not read at all"
        );
        let plain = endpoint("10.1.0.1", "plain", &plain, true);
        made(&client, &slice(kubernetes, &[plain])).await;
        until(&mut source, "it is back", |of| {
            ready(of) == ips(&["10.1.0.1"])
        })
        .await;
    }

    // Nor is what says that it is, and that stays while it is being deleted.
    let mut forged = [
        endpoint("10.2.0.1", "plain", "made-up", true),
        endpoint("192.0.2.1", "plain", &plain, true),
    ];
    forged[0]["nodeName"] = Value::Null;
    let mut forged = slice(kubernetes, &forged);
    forged["metadata"]["name"] = json!("forged");
    forged["metadata"]["finalizers"] = json!(["example.com/stay"]);
    made(&client, &forged).await;
    let told = |of: &Declared| {
        let mut all = of.problems.iter();
        all.any(|of| of.contains("10.2.0.1 is a node's address"))
    };
    let declared = until(&mut source, "that it is refused", told).await;
    assert_eq!(ready(&declared), ips(&["10.1.0.1"]));
    let slices = api_of(&client, &forged);
    let deleted = slices.delete("forged", &DeleteParams::default()).await;
    assert!(
        deleted.expect("it goes").is_left(),
        "its finalizer holds it"
    );
    let declared = until(&mut source, "that nobody listens to it", |of| !told(of)).await;
    assert_eq!(ready(&declared), ips(&["10.1.0.1"]));
    assert_eq!(declared.direct[&key()].len(), 1);
    let gone = json!({"metadata": {"finalizers": null}});
    slices
        .patch("forged", &PatchParams::default(), &Patch::Merge(&gone))
        .await
        .expect("it goes");

    // A pod that gets the label has a sidecar.
    let api = api_of(&client, &pod("plain", &app, false));
    let label = json!({"metadata": {"labels": {"linkspan.io/meshed": "true"}}});
    api.patch("plain", &PatchParams::default(), &Patch::Merge(&label))
        .await
        .expect("a label");
    until(&mut source, "that it has a sidecar", |of| {
        of.servers_of(&key()).is_empty()
    })
    .await;

    let exports = api_of(&client, &export(NAMESPACE, "web"));
    exports
        .delete("web", &DeleteParams::default())
        .await
        .expect("it goes");
    until(&mut source, "that nothing is exported", |of| {
        !of.direct.contains_key(&key())
    })
    .await;
}

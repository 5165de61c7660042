//! A real API server asks the webhook of a real federation.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
};

use linkspan_clusters::BareServer;
use serde_json::{Value, json};

use super::{Federation, as_its_account, install, until};

/// Port in the manifests.
const PORT: u16 = 15_017;

struct Bench {
    server: BareServer,
    folder: tempfile::TempDir,
    /// Where federation listens for the API server.
    listen: SocketAddr,
}

impl Bench {
    /// All is installed, and federation does not run.
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let server = BareServer::start(&folder.path().join("k8s")).expect("an API server");
        install(&server);
        as_its_account(folder.path(), &server);
        let address =
            "get service/linkspan-federation -n linkspan-system -o jsonpath={.spec.clusterIP}";
        let address = server.kubectl(&address.split(' ').collect::<Vec<_>>());
        // There is no network of pods, but such addresses are of loopback.
        let address: IpAddr = address.expect("a Service").trim().parse().expect("an IP");
        let listen = SocketAddr::new(address, PORT);
        let bench = Self {
            server,
            folder,
            listen,
        };
        for (namespace, labels) in [
            ("shop", json!({})),
            ("mesh", json!({ "linkspan.io/inject": "true" })),
            (
                "strict",
                json!({
                    "linkspan.io/inject": "true",
                    "pod-security.kubernetes.io/enforce": "restricted",
                }),
            ),
            ("kube-system", json!({})),
        ] {
            bench.make_namespace(namespace, &labels);
        }
        bench
    }

    fn configuration(&self) -> Value {
        let name = "mutatingwebhookconfigurations/linkspan-federation";
        let text = self.server.kubectl(&["get", name, "-o", "json"]);
        serde_json::from_str(&text.expect("a configuration")).expect("JSON")
    }

    fn make_namespace(&self, name: &str, labels: &Value) {
        let namespace = json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": { "name": name, "labels": labels },
        });
        // Nobody makes the account that pods have by default.
        let account = json!({
            "apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": { "name": "default", "namespace": name },
        });
        for object in [namespace, account] {
            self.server.apply(&object.to_string()).expect("applied");
        }
    }

    /// Makes a pod and shows it as the API server keeps it.
    fn pod(
        &self,
        namespace: &str,
        name: &str,
        labels: Value,
        spec: Value,
    ) -> Result<Value, String> {
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": name, "namespace": namespace, "labels": labels },
            "spec": {
                "automountServiceAccountToken": false,
                "securityContext": {
                    "runAsNonRoot": true, "runAsUser": 1000,
                    "seccompProfile": { "type": "RuntimeDefault" },
                },
                "containers": [{
                    "name": "app", "image": "app",
                    "securityContext": {
                        "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] },
                    },
                }],
            },
        });
        for (key, value) in spec.as_object().into_iter().flatten() {
            pod["spec"][key] = value.clone();
        }
        let made = self.server.apply(&pod.to_string());
        made.map_err(|error| format!("{error:#}"))?;
        let name = format!("pod/{name}");
        let kept = self
            .server
            .kubectl(&["get", &name, "-n", namespace, "-o", "json"]);
        Ok(serde_json::from_str(&kept.expect("a pod")).expect("JSON"))
    }

    fn federation(&self, folder: &Path) -> Federation {
        let mut federation = Federation::start_with(
            folder,
            json!({
                "listen": self.listen,
                "federation": "linkspan-federation.linkspan-system.svc:15010",
                "image": "linkspan:test",
            }),
        );
        federation.wait_ready();
        federation
    }
}

fn init_containers(pod: &Value) -> Vec<&str> {
    let containers = pod["spec"]["initContainers"].as_array();
    let names = containers.into_iter().flatten().map(|of| &of["name"]);
    names.filter_map(Value::as_str).collect()
}

#[test]
#[ignore = "needs the Kubernetes programs"]
fn pods_that_are_labelled_get_a_sidecar_or_are_refused() {
    let bench = Bench::new();
    let (yes, no) = (
        json!({ "linkspan.io/inject": "true" }),
        json!({ "linkspan.io/inject": "false" }),
    );

    // Nobody answers: who is to have a sidecar waits, and nobody else.
    let refused = bench
        .pod("shop", "early", yes.clone(), json!({}))
        .unwrap_err();
    assert!(refused.contains("pods.capture.linkspan.io"), "{refused}");
    bench
        .pod("mesh", "early", json!({}), json!({}))
        .unwrap_err();
    for (namespace, labels) in [
        ("shop", json!({})),
        ("mesh", no.clone()),
        ("kube-system", yes.clone()),
    ] {
        let pod = bench
            .pod(namespace, "free", labels, json!({}))
            .expect(namespace);
        assert_eq!(init_containers(&pod), [] as [&str; 0], "{namespace}");
    }

    let federation = bench.federation(bench.folder.path());
    let (mut number, mut said) = (0, String::new());
    until("the API server trusts the webhook", || {
        number += 1;
        let made = bench.pod("shop", &format!("web-{number}"), yes.clone(), json!({}));
        if let Err(error) = &made
            && *error != said
        {
            said.clone_from(error);
            eprintln!("{error}");
        }
        made.is_ok()
    });
    let pod = bench
        .pod("shop", "web", yes.clone(), json!({}))
        .expect("a pod");
    assert_eq!(
        init_containers(&pod),
        ["linkspan-capture", "linkspan-sidecar"]
    );
    assert_eq!(pod["spec"]["initContainers"][1]["image"], "linkspan:test");
    let roots = pod["metadata"]["annotations"]["linkspan.io/roots"].as_str();
    assert!(roots.is_some_and(|roots| roots.contains("BEGIN CERTIFICATE")));
    let pod = bench
        .pod("mesh", "web", json!({}), json!({}))
        .expect("a pod");
    assert_eq!(
        init_containers(&pod),
        ["linkspan-capture", "linkspan-sidecar"]
    );
    // The restricted profile holds: what is put in is checked with the rest.
    let pod = bench
        .pod("strict", "web", json!({}), json!({}))
        .expect("a pod");
    assert_eq!(init_containers(&pod), ["linkspan-sidecar"]);
    let refused = bench
        .pod("shop", "node", yes.clone(), json!({ "hostNetwork": true }))
        .unwrap_err();
    assert!(refused.contains("hostNetwork"), "{refused}");

    // Installing again takes the roots from nobody.
    let before = bench.configuration();
    assert!(before["webhooks"][0]["clientConfig"]["caBundle"].is_string());
    install(&bench.server);
    let mut after = bench.configuration();
    for (index, webhook) in after["webhooks"]
        .as_array_mut()
        .expect("a list")
        .iter_mut()
        .enumerate()
    {
        let ca = "/clientConfig/caBundle";
        assert_eq!(webhook.pointer(ca), before["webhooks"][index].pointer(ca));
    }

    // It goes first, so that nobody waits for what is going.
    assert!(federation.stop().success());
    bench
        .pod("shop", "late", yes.clone(), json!({}))
        .unwrap_err();
    let name = "mutatingwebhookconfigurations/linkspan-federation";
    bench.server.kubectl(&["delete", name]).expect("deleted");
    let pod = bench.pod("shop", "late", yes, json!({})).expect("a pod");
    assert_eq!(init_containers(&pod), [] as [&str; 0]);
}

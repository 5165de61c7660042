//! Manifests before and after.

use super::*;

fn injection() -> Injection {
    Injection {
        cluster: "east".parse().unwrap(),
        trust_domain: "east.test".parse().unwrap(),
        federation: "federation.test:15010".into(),
        roots: "-----BEGIN CERTIFICATE-----\n".into(),
        locality: Locality::new("eu", "a"),
        image: "linkspan:dev".into(),
        image_pull_policy: "Never".into(),
    }
}

fn pod() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": "web", "labels": { "app": "web" } },
        "spec": {
            "initContainers": [{ "name": "migrate", "image": "app" }],
            "containers": [{ "name": "app", "image": "app",
                "ports": [{ "name": "http", "containerPort": 8080 }] }],
        },
    })
}

fn wrapped(kind: &str, place: &str) -> Value {
    let mut template = pod();
    let object = template.as_object_mut().unwrap();
    object.remove("apiVersion");
    object.remove("kind");
    let mut whole = json!({ "kind": kind });
    let mut at = &mut whole;
    for part in place.split('/') {
        at = &mut at[part];
    }
    *at = template;
    whole
}

fn injected(mut object: Value) -> Value {
    assert_eq!(inject(&mut object, &injection()), Ok(1));
    object
}

#[track_caller]
fn refused(mut object: Value, word: &str) -> NotInjected {
    let before = object.clone();
    let error = inject(&mut object, &injection()).unwrap_err();
    assert!(error.to_string().contains(word), "{error}");
    assert_eq!(object, before, "nothing is half done");
    error
}

fn configuration_of(pod: &Value) -> Value {
    let text = pod["metadata"]["annotations"][CONFIGURATION]
        .as_str()
        .unwrap();
    serde_json::from_str(text).unwrap()
}

#[test]
fn a_pod_gets_a_sidecar_and_keeps_what_it_had() {
    let pod = injected(pod());
    let containers = &pod["spec"]["initContainers"];
    assert_eq!(containers[0]["name"], CONTAINER);
    assert_eq!(containers[0]["restartPolicy"], "Always");
    assert_eq!(containers[0]["image"], "linkspan:dev");
    assert_eq!(containers[1]["name"], "migrate");
    assert_eq!(pod["spec"]["containers"], self::pod()["spec"]["containers"]);
    let labels = json!({ "app": "web", MESHED: "true" });
    assert_eq!(pod["metadata"]["labels"], labels);
    let configuration = configuration_of(&pod);
    assert_eq!(configuration["cluster"], "east");
    assert_eq!(configuration["workload"]["locality"]["zone"], "a");
    assert_eq!(configuration["outbound"], json!([]));
    let sources = &pod["spec"]["volumes"][0]["projected"]["sources"];
    assert_eq!(
        sources[0]["serviceAccountToken"]["audience"],
        "linkspan:east"
    );
    // Each file that the sidecar is told of is in the volume.
    let text = pod.to_string();
    for file in ["token", "sidecar.yaml", "roots.pem", "labels"] {
        assert!(text.contains(&format!("{FOLDER}/{file}")), "{file}");
        assert!(text.contains(&format!("\"path\":\"{file}\"")), "{file}");
    }
}

#[test]
fn every_kind_that_makes_pods_is_known_and_no_other() {
    for kind in [
        "Deployment",
        "StatefulSet",
        "DaemonSet",
        "ReplicaSet",
        "ReplicationController",
        "Job",
    ] {
        let object = injected(wrapped(kind, "spec/template"));
        let first = &object["spec"]["template"]["spec"]["initContainers"][0];
        assert_eq!(first["name"], CONTAINER, "{kind}");
    }
    let cron = injected(wrapped("CronJob", "spec/jobTemplate/spec/template"));
    assert!(cron.to_string().contains(CONTAINER));
    let service = json!({ "kind": "Service", "metadata": { "name": "web" }, "spec": {} });
    let mut list = json!({ "kind": "List", "items": [pod(), service, pod()] });
    assert_eq!(inject(&mut list, &injection()), Ok(2));
    assert_eq!(list["items"][1], service);
}

#[test]
fn doing_it_again_changes_nothing_but_the_version() {
    let once = injected(pod());
    assert_eq!(injected(once.clone()), once);
    let mut newer = injection();
    newer.image = "linkspan:next".into();
    let mut again = once.clone();
    inject(&mut again, &newer).unwrap();
    let containers = &again["spec"]["initContainers"];
    assert_eq!(containers.as_array().unwrap().len(), 2);
    assert_eq!(containers[0]["image"], "linkspan:next");
}

#[test]
fn who_says_no_gets_none() {
    let mut pod = pod();
    pod["metadata"]["labels"][INJECT] = json!("false");
    let before = pod.clone();
    assert_eq!(inject(&mut pod, &injection()), Ok(0));
    assert_eq!(pod, before);
}

#[test]
fn what_cannot_have_one_is_told_why() {
    let mut host = pod();
    host["spec"]["hostNetwork"] = json!(true);
    assert_eq!(refused(host, "hostNetwork"), NotInjected::HostNetwork);
    let mut taken = pod();
    taken["spec"]["containers"][0]["ports"][0]["containerPort"] = json!(ADMIN);
    refused(taken, "container `app` has port 15020");
    refused(json!({ "kind": "Pod" }), "`spec` is missing");
    refused(json!({ "kind": "Pod", "spec": {} }), "spec.containers");
    refused(
        json!({ "kind": "List", "items": [pod(), { "kind": "Pod" }] }),
        "`spec`",
    );
    let mut called = pod();
    called["metadata"]["annotations"] = json!({ OUTBOUND: "8080=shop/checkout:80" });
    refused(called, "port 8080");
}

#[test]
fn services_that_are_called_have_ports_of_loopback() {
    let mut pod = pod();
    let called = " 7001=shop/checkout:80,7002 = pay/api:443,";
    pod["metadata"]["annotations"] = json!({ OUTBOUND: called, "mine": "stays" });
    let pod = injected(pod);
    assert_eq!(pod["metadata"]["annotations"]["mine"], "stays");
    assert_eq!(
        configuration_of(&pod)["outbound"],
        json!([
            { "listen": "127.0.0.1:7001", "service": "shop/checkout", "port": 80 },
            { "listen": "127.0.0.1:7002", "service": "pay/api", "port": 443 },
        ])
    );
    for (bad, word) in [
        ("shop/checkout:80", "no `=`"),
        ("7001=shop/checkout", "no port"),
        ("80=shop/checkout:80", "1024"),
        ("7001=shop/checkout:0", "no port from 1"),
        ("7001=checkout:80", "`7001=checkout:80`"),
        ("7001=a/b:80,7001=a/c:80", "twice"),
    ] {
        let mut pod = self::pod();
        pod["metadata"]["annotations"] = json!({ OUTBOUND: bad });
        refused(pod, word);
    }
}

#[test]
fn readiness_is_asked_for_as_the_kubelet_does() {
    let asked = |probe: Value| {
        let mut pod = pod();
        pod["spec"]["containers"][0]["readinessProbe"] = probe;
        configuration_of(&injected(pod))["workload"]["probe"].clone()
    };
    let http = json!({ "http": { "port": 8080, "path": "/ready" } });
    assert_eq!(
        asked(json!({ "httpGet": { "port": "http", "path": "/ready" } })),
        http
    );
    assert_eq!(
        asked(json!({ "httpGet": { "port": 8080, "path": "/ready" } })),
        http
    );
    let tcp = json!({ "tcp": { "port": 8080 } });
    assert_eq!(
        asked(json!({ "httpGet": { "port": 8080, "scheme": "HTTPS" } })),
        tcp
    );
    assert_eq!(asked(json!({ "tcpSocket": { "port": "8080" } })), tcp);
    for nothing in [
        json!({ "exec": { "command": ["true"] } }),
        json!({ "grpc": { "port": 8080 } }),
        json!({ "httpGet": { "port": "unknown" } }),
        json!({ "httpGet": { "port": 8080, "host": "192.0.2.1" } }),
    ] {
        assert_eq!(asked(nothing), Value::Null);
    }
}

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
    assert_eq!(inject(&mut object, &injection(), Capture::No), Ok(1));
    object
}

#[track_caller]
fn refused(mut object: Value, word: &str) -> NotInjected {
    let before = object.clone();
    let error = inject(&mut object, &injection(), Capture::No).unwrap_err();
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
    assert_eq!(inject(&mut list, &injection(), Capture::No), Ok(2));
    assert_eq!(list["items"][1], service);
}

#[test]
fn doing_it_again_changes_nothing_but_the_version() {
    let once = injected(pod());
    assert_eq!(injected(once.clone()), once);
    let mut newer = injection();
    newer.image = "linkspan:next".into();
    let mut again = once.clone();
    inject(&mut again, &newer, Capture::No).unwrap();
    let containers = &again["spec"]["initContainers"];
    assert_eq!(containers.as_array().unwrap().len(), 2);
    assert_eq!(containers[0]["image"], "linkspan:next");
}

#[test]
fn who_says_no_gets_none() {
    let mut pod = pod();
    pod["metadata"]["labels"][INJECT] = json!("false");
    let before = pod.clone();
    assert_eq!(inject(&mut pod, &injection(), Capture::No), Ok(0));
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

fn captured(mut pod: Value) -> Value {
    let done = inject_pod(&mut pod, &injection(), Capture::Yes);
    assert_eq!(done, Ok(Done::Captured));
    pod
}

fn annotated(annotations: Value) -> Value {
    let mut pod = pod();
    pod["metadata"]["annotations"] = annotations;
    pod
}

#[test]
fn calls_are_captured_before_the_sidecar_starts() {
    let excepted = captured(annotated(json!({ EXCEPT: "5432, 10.0.0.0/8,fd00::1" })));
    let containers = &excepted["spec"]["initContainers"];
    let names: Vec<_> = containers
        .as_array()
        .unwrap()
        .iter()
        .map(|of| &of["name"])
        .collect();
    assert_eq!(names, [CAPTURE_CONTAINER, CONTAINER, "migrate"]);
    let arguments = [
        "capture",
        "up",
        "--uid",
        "15000",
        "--except",
        "5432",
        "--except",
        "10.0.0.0/8",
        "--except",
        "fd00::1",
    ];
    assert_eq!(containers[0]["args"], json!(arguments));
    let allowed = &containers[0]["securityContext"]["capabilities"];
    assert_eq!(allowed, &json!({ "drop": ["ALL"], "add": ["NET_ADMIN"] }));
    assert_eq!(containers[0]["restartPolicy"], Value::Null, "it ends");
    assert_eq!(containers[1]["securityContext"]["runAsUser"], USER);
    assert_eq!(configuration_of(&excepted)["capture"], json!({}));
    assert_eq!(
        captured(excepted.clone()),
        excepted,
        "again, it is the same"
    );
    let mut not = excepted;
    inject(&mut not, &injection(), Capture::No).unwrap();
    assert!(!not.to_string().contains(CAPTURE_CONTAINER));
    assert_eq!(configuration_of(&not)["capture"], Value::Null);
}

#[test]
fn a_pod_may_say_whether_its_calls_are_captured() {
    let done = |said: Value, capture| inject_pod(&mut annotated(said), &injection(), capture);
    let (yes, no) = (json!({ CAPTURE: "true" }), json!({ CAPTURE: "false" }));
    assert_eq!(done(yes.clone(), Capture::No), Ok(Done::Captured));
    assert_eq!(done(no.clone(), Capture::Yes), Ok(Done::Listeners));
    assert_eq!(done(no, Capture::Forbidden), Ok(Done::Listeners));
    assert_eq!(done(json!({}), Capture::Forbidden), Ok(Done::Listeners));
    assert_eq!(done(yes, Capture::Forbidden), Err(NotInjected::Forbidden));
    let maybe = done(json!({ CAPTURE: "maybe" }), Capture::No);
    assert_eq!(maybe, Err(NotInjected::Capture("maybe".into())));
    for wrong in [
        "0",
        "70000",
        "host",
        "10.0.0.0/33",
        "fd00::/129",
        "10.0.0.0/",
    ] {
        let refused = done(json!({ EXCEPT: wrong }), Capture::Yes);
        assert_eq!(refused, Err(NotInjected::Except(wrong.into())));
    }
}

#[test]
fn what_would_not_be_captured_is_refused() {
    let refused = |pod: &Value| inject_pod(&mut pod.clone(), &injection(), Capture::Yes);
    let mut whole = pod();
    whole["spec"]["securityContext"] = json!({ "runAsUser": USER });
    assert_eq!(refused(&whole), Err(NotInjected::User("app".into())));
    whole["spec"]["containers"][0]["securityContext"] = json!({ "runAsUser": 1 });
    assert_eq!(refused(&whole), Err(NotInjected::User("migrate".into())));
    assert_eq!(inject(&mut whole, &injection(), Capture::No), Ok(1));
    let mut taken = pod();
    taken["spec"]["containers"][0]["ports"][0]["containerPort"] = json!(15_001);
    assert!(matches!(
        refused(&taken),
        Err(NotInjected::Port { port: 15_001, .. })
    ));
}

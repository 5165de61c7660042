//! The manifests are what they promise; `deploy/kustomize` is held to them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde_json::Value;

use super::{
    Crds,
    manifest::{Form, name, print},
    manifests, references,
    rights::{EVERYWHERE, Right, SYSTEM},
    settings::Settings,
};

/// Set it to write the files anew.
const REGENERATE: &str = "LINKSPAN_REGENERATE";

const EAST: &str = "--cluster east --clusterset demo";

fn of(more: &str) -> Vec<Value> {
    manifests(&Settings::parse(&format!("{EAST} {more}")).unwrap())
}

fn find<'a>(objects: &'a [Value], kind: &str, wanted: &str) -> &'a Value {
    objects
        .iter()
        .find(|object| object["kind"] == kind && name(object) == wanted)
        .unwrap_or_else(|| panic!("no {kind} {wanted}"))
}

fn config(objects: &[Value], of: &str, file: &str) -> Value {
    let text = &find(objects, "ConfigMap", of)["data"][file];
    serde_json::from_str(text.as_str().unwrap()).unwrap()
}

fn pods(objects: &[Value]) -> Vec<&Value> {
    let deployments = objects
        .iter()
        .filter(|object| object["kind"] == "Deployment");
    let pods: Vec<_> = deployments
        .map(|object| &object["spec"]["template"]["spec"])
        .collect();
    assert_eq!(pods.len(), 2);
    pods
}

#[test]
fn the_same_flags_give_the_same_bytes_in_any_order() {
    let text = |line: &str| print(Form::Yaml, &manifests(&Settings::parse(line).unwrap())).unwrap();
    let one =
        "--cluster east --clusterset demo --region eu --gateway-address b --gateway-address a";
    let other =
        "--gateway-address a --region eu --gateway-address b --clusterset demo --cluster east";
    assert_eq!(text(one), text(other));
    assert_ne!(text(one), text(EAST));
}

#[test]
fn the_annotation_says_the_flags_and_these_say_the_same() {
    let line = "--cluster east --clusterset demo --region eu --zone eu-1 --expose NodePort \
                --node-port 30443 --gateways 3 --image here/linkspan:v1 --image-pull-policy Never \
                --gateway-address gw.example.org --gateway-address [2001:db8::7]:443 --without-crds";
    let settings = Settings::parse(line).unwrap();
    let objects = manifests(&settings);
    let namespace = find(&objects, "Namespace", "linkspan-system");
    let flags = namespace["metadata"]["annotations"]["linkspan.io/install"]
        .as_str()
        .unwrap();
    let again = Settings::parse(flags).unwrap();
    assert_eq!(again.flags(), flags);
    assert_eq!(manifests(&again), objects);
}

#[test]
fn yaml_and_json_say_the_same() {
    let objects = of("");
    let list: Value = serde_json::from_str(&print(Form::Json, &objects).unwrap()).unwrap();
    assert_eq!(list["items"].as_array().unwrap(), &objects);
    let yaml = print(Form::Yaml, &objects).unwrap();
    let documents: Vec<Value> = yaml
        .split("---\n")
        .map(|document| serde_saphyr::from_str(document).unwrap())
        .collect();
    assert_eq!(documents, objects);
}

#[test]
fn what_others_need_comes_first_and_what_writes_goes_first() {
    let kinds = |objects: &[Value]| -> Vec<String> {
        objects
            .iter()
            .map(|object| object["kind"].as_str().unwrap().to_owned())
            .collect()
    };
    let made = kinds(&of(""));
    assert_eq!(made[0], "Namespace");
    assert_eq!(made.last().unwrap(), "Deployment");
    let deleted = kinds(&references(Crds::All));
    let first = ["MutatingWebhookConfiguration", "Deployment", "Deployment"];
    assert_eq!(deleted[..3], first);
    assert_eq!(deleted.last().unwrap(), "Namespace");
    assert_eq!(made.len(), deleted.len());
}

#[test]
fn whatever_is_installed_is_uninstalled() {
    let id = |object: &Value| {
        let of = |pointer| {
            object
                .pointer(pointer)
                .cloned()
                .unwrap_or_default()
                .to_string()
        };
        [
            "/apiVersion",
            "/kind",
            "/metadata/namespace",
            "/metadata/name",
        ]
        .map(of)
    };
    let deleted: BTreeSet<_> = references(Crds::All).iter().map(id).collect();
    for flags in ["", "--expose NodePort", "--expose None"] {
        for object in of(flags) {
            assert!(deleted.contains(&id(&object)), "{object}");
        }
    }
    let definitions = |crds| -> Vec<String> {
        let all = references(crds);
        let definitions = all
            .iter()
            .filter(|object| object["kind"] == "CustomResourceDefinition");
        definitions
            .map(|object| object["metadata"]["name"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(definitions(Crds::Kept), [] as [&str; 0]);
    // Those of standard APIs may be somebody else's.
    let own = definitions(Crds::Own);
    assert_eq!(
        own,
        ["failoverpolicies.linkspan.io", "clusterlinks.linkspan.io"]
    );
    assert_eq!(definitions(Crds::All).len(), 5);
}

#[test]
fn pods_run_under_the_restricted_profile() {
    let objects = of("");
    let namespace = find(&objects, "Namespace", "linkspan-system");
    let label = &namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"];
    assert_eq!(label, "restricted");
    for pod in pods(&objects) {
        let of_pod = &pod["securityContext"];
        assert_eq!(of_pod["runAsNonRoot"], true);
        assert_eq!(of_pod["seccompProfile"]["type"], "RuntimeDefault");
        for container in pod["containers"].as_array().unwrap() {
            let context = &container["securityContext"];
            assert_eq!(context["allowPrivilegeEscalation"], false);
            assert_eq!(context["readOnlyRootFilesystem"], true);
            assert_eq!(context["capabilities"]["drop"][0], "ALL");
            assert!(container["livenessProbe"].is_object());
            assert!(container["readinessProbe"].is_object());
        }
    }
}

#[test]
fn only_federation_can_talk_to_the_api_server() {
    let objects = of("");
    let [federation, gateway] = pods(&objects)[..] else {
        panic!()
    };
    assert_eq!(federation["automountServiceAccountToken"], true);
    assert_eq!(gateway["automountServiceAccountToken"], false);
    let token = &gateway["volumes"][2]["projected"]["sources"][0]["serviceAccountToken"];
    assert_eq!(token["audience"], "linkspan:east");
    let subjects = objects
        .iter()
        .filter_map(|object| object["subjects"].as_array());
    for subject in subjects.flatten() {
        assert_eq!(subject["name"], "linkspan-federation");
    }
}

#[test]
fn no_right_is_wider_than_its_use() {
    for right in EVERYWHERE.iter().chain(SYSTEM) {
        let Right {
            group,
            resources,
            verbs,
            why,
            ..
        } = right;
        assert!(!why.is_empty(), "{resources:?}");
        let all = resources.iter().chain(*verbs).chain([group]);
        assert!(all.into_iter().all(|word| *word != "*"), "{resources:?}");
    }
    let secrets: Vec<_> = EVERYWHERE
        .iter()
        .chain(SYSTEM)
        .filter(|right| right.resources.contains(&"secrets"))
        .collect();
    assert_eq!(secrets.len(), 1);
    assert_eq!(secrets[0].verbs, ["get", "update"]);
    assert_eq!(secrets[0].names, linkspan_federation::SECRETS);
    let objects = of("");
    for name in linkspan_federation::SECRETS {
        // What federation writes there is not taken away when this is applied again.
        assert!(find(&objects, "Secret", name).get("data").is_none());
    }
    // What is others' own is never written, nor what is in their pods changed.
    for right in EVERYWHERE.iter().filter(|right| right.group.is_empty()) {
        let of_others = ["nodes", "pods", "namespaces"];
        if right.resources.iter().any(|of| of_others.contains(of)) {
            let reads = |verb: &&str| ["get", "list", "watch"].contains(verb);
            assert!(right.verbs.iter().all(reads), "{:?}", right.resources);
        }
    }
}

/// Who may edit a namespace may export, and whoever sees it sees that; nobody may link by it.
#[test]
fn people_of_a_namespace_may_export_and_not_link() {
    let objects = of("");
    for (to, writes) in [("edit", true), ("view", false)] {
        let role = find(&objects, "ClusterRole", &format!("linkspan-{to}"));
        let label = format!("rbac.authorization.k8s.io/aggregate-to-{to}");
        assert_eq!(role["metadata"]["labels"][label], "true");
        let rules = role["rules"].to_string();
        assert_eq!(rules.contains("create"), writes, "{rules}");
        assert!(rules.contains("serviceexports") && rules.contains("failoverpolicies"));
        for none in ["clusterlinks", "*", "secrets", "/status"] {
            assert!(!rules.contains(none), "{none}: {rules}");
        }
        assert_eq!(
            rules.contains("serviceimports"),
            !writes,
            "federation writes those"
        );
    }
}

/// The page has a row for each right, in the same order, with its reason.
#[test]
fn the_page_names_every_right_and_why() {
    let page = include_str!("../../../../docs/kubernetes.md");
    let code = |words: &[&str], group: &str| {
        let word = |word: &&str| match group {
            "" => format!("`{word}`"),
            group => format!("`{word}` ({group})"),
        };
        words.iter().map(word).collect::<Vec<_>>().join(", ")
    };
    let mut missing = Vec::new();
    for right in EVERYWHERE.iter().chain(SYSTEM) {
        let names = match right.names {
            [] => String::new(),
            names => format!(": {} only", code(names, "")),
        };
        let what = code(right.resources, right.group);
        let row = format!(
            "| {what}{names} | {} | {} |",
            code(right.verbs, ""),
            right.why
        );
        if !page.contains(&row) {
            missing.push(row);
        }
    }
    assert!(
        missing.is_empty(),
        "docs/kubernetes.md lacks:\n{}",
        missing.join("\n")
    );
}

/// By the labels of a namespace and of a pod in it.
#[test]
fn at_most_one_webhook_looks_at_a_pod_and_never_at_our_own() {
    let objects = of("");
    let configuration = find(
        &objects,
        "MutatingWebhookConfiguration",
        "linkspan-federation",
    );
    let webhooks = configuration["webhooks"].as_array().unwrap();
    let matches = |selector: &Value, labels: &[(&str, &str)]| {
        let of = |key: &Value| {
            labels
                .iter()
                .find(|(name, _)| key == name)
                .map(|(_, value)| *value)
        };
        let expressions = selector["matchExpressions"].as_array().unwrap();
        expressions.iter().all(|of_one| {
            let values = of_one["values"].as_array().unwrap();
            let found =
                of(&of_one["key"]).is_some_and(|value| values.iter().any(|one| one == value));
            found == (of_one["operator"] == "In")
        })
    };
    let asked = |namespace: &[(&str, &str)], pod: &[(&str, &str)]| -> Vec<String> {
        let looks = webhooks.iter().filter(|webhook| {
            matches(&webhook["namespaceSelector"], namespace)
                && matches(&webhook["objectSelector"], pod)
        });
        looks
            .map(|webhook| {
                webhook["clientConfig"]["service"]["path"]
                    .as_str()
                    .unwrap()
                    .to_owned()
            })
            .collect()
    };
    let name = |name| ("kubernetes.io/metadata.name", name);
    let (yes, no) = (
        ("linkspan.io/inject", "true"),
        ("linkspan.io/inject", "false"),
    );
    let strict = ("pod-security.kubernetes.io/enforce", "restricted");
    let none: [String; 0] = [];
    assert_eq!(asked(&[name("shop")], &[]), none);
    assert_eq!(asked(&[name("shop")], &[yes]), ["/inject"]);
    assert_eq!(asked(&[name("shop"), yes], &[]), ["/inject"]);
    assert_eq!(asked(&[name("shop"), yes], &[yes]), ["/inject"]);
    assert_eq!(asked(&[name("shop"), yes], &[no]), none);
    assert_eq!(asked(&[name("shop"), no], &[yes]), ["/inject"]);
    assert_eq!(
        asked(&[name("shop"), strict], &[yes]),
        ["/inject-without-capture"]
    );
    assert_eq!(
        asked(&[name("shop"), strict, yes], &[]),
        ["/inject-without-capture"]
    );
    for own in ["kube-system", "linkspan-system"] {
        assert_eq!(asked(&[name(own), yes], &[yes]), none);
    }
    for webhook in webhooks {
        assert_eq!(webhook["failurePolicy"], "Fail");
        assert_eq!(webhook["clientConfig"]["caBundle"], Value::Null);
    }
}

#[test]
fn the_parts_can_read_their_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let objects = of("--region eu --zone eu-1 --gateway-address gw.example.org");
    let path = folder.path().join("federation.yaml");
    let text = config(&objects, "linkspan-federation", "federation.yaml");
    std::fs::write(&path, text.to_string()).unwrap();
    let federation = linkspan_federation::Config::load(&path).unwrap();
    assert_eq!(federation.cluster.as_str(), "east");
    assert_eq!(&*federation.locality.zone, "eu-1");
    let roots = folder.path().join("roots.pem");
    let now = std::time::SystemTime::now();
    let domain = federation.trust_domain.clone();
    let authority = linkspan_trust::CertificateAuthority::create(&domain, now).unwrap();
    std::fs::write(&roots, authority.bundle().to_pem()).unwrap();
    let mut text = config(&objects, "linkspan-gateway", "gateway.yaml");
    text["federation"]["roots"] = serde_json::json!(roots);
    let path = folder.path().join("gateway.yaml");
    std::fs::write(&path, text.to_string()).unwrap();
    let own_address = std::net::IpAddr::from([10, 244, 0, 7]);
    let own = linkspan_gateway::Own {
        replica: Some("gateway-1".into()),
        egress_address: Some(own_address),
    };
    let gateway = linkspan_gateway::Config::load_with(&path, own).unwrap();
    assert_eq!(
        gateway.tunnel_addresses,
        [("gw.example.org".to_owned(), 15443)]
    );
    assert_eq!(&*gateway.replica, "gateway-1");
    let imports = gateway.imports.expect("pods without a sidecar are served");
    assert_eq!(imports.address, own_address);
    assert!(!federation.unmeshed_clients);
    let objects = of("--unmeshed-clients allow");
    let text = config(&objects, "linkspan-federation", "federation.yaml");
    assert_eq!(text["unmeshedClients"], "allow");
}

#[test]
fn a_gateway_has_its_grace_to_drain() {
    let objects = of("--gateways 5");
    let deployment = find(&objects, "Deployment", "linkspan-gateway");
    assert_eq!(deployment["spec"]["replicas"], 5);
    let pod = &deployment["spec"]["template"]["spec"];
    let before = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"].as_u64();
    let grace = pod["terminationGracePeriodSeconds"].as_u64().unwrap();
    let text = config(&objects, "linkspan-gateway", "gateway.yaml");
    let drain = text["drainGrace"].as_str().unwrap().trim_end_matches('s');
    assert!(grace > before.unwrap() + drain.parse::<u64>().unwrap());
}

#[test]
fn a_changed_configuration_replaces_the_pods() {
    let annotation = |flags: &str| {
        let objects = of(flags);
        let deployment = find(&objects, "Deployment", "linkspan-federation");
        deployment["spec"]["template"]["metadata"]["annotations"].clone()
    };
    assert_eq!(annotation(""), annotation("--gateways 3"));
    assert_ne!(annotation(""), annotation("--region eu"));
}

#[test]
fn gateways_are_exposed_as_asked() {
    let service = |flags: &str| {
        let objects = of(flags);
        let found = objects
            .iter()
            .find(|object| name(object) == "linkspan-tunnel");
        found.map(|service| service["spec"].clone())
    };
    let balanced = service("").unwrap();
    assert_eq!(balanced["type"], "LoadBalancer");
    let ports = service("--expose NodePort --node-port 30443").unwrap();
    assert_eq!(
        (&ports["type"], &ports["ports"][0]["nodePort"]),
        (&"NodePort".into(), &30443.into())
    );
    // Applied over one that was exposed, it closes that.
    let closed = service("--expose None").unwrap();
    assert_eq!(closed["type"], "ClusterIP");
    assert!(closed.get("externalTrafficPolicy").is_none());
}

#[test]
fn bad_flags_say_the_fix() {
    for (flags, fix) in [
        ("--cluster East --clusterset demo", "lower-case DNS name"),
        (
            "--cluster east --clusterset de.mo",
            "one lower-case DNS label",
        ),
        ("--cluster east", "--clusterset"),
        (&format!("{EAST} --trust-domain a/b"), "use a name such as"),
        (&format!("{EAST} --zone eu-1"), "--region"),
        (
            &format!("{EAST} --region eu/1"),
            "topology.kubernetes.io/region",
        ),
        (&format!("{EAST} --image linkspan"), "NAME:TAG"),
        (&format!("{EAST} --image host:5000/linkspan"), "NAME:TAG"),
        (&format!("{EAST} --gateways 0"), "1..=100"),
        (&format!("{EAST} --expose Ingress"), "NodePort"),
        (&format!("{EAST} --node-port 30443"), "--expose NodePort"),
        (&format!("{EAST} --gateway-address a:0"), "1 to 65535"),
        (&format!("{EAST} --gateway-address a_b"), "HOST:PORT"),
        (
            &format!("{EAST} --gateway-address 2001:db8::7:99999"),
            "HOST:PORT",
        ),
    ] {
        let said = Settings::parse(flags).expect_err(flags);
        assert!(said.contains(fix), "{flags}: {said}");
    }
    let many: String = (0..9).map(|n| format!(" --gateway-address h{n}")).collect();
    let said = Settings::parse(&format!("{EAST}{many}")).unwrap_err();
    assert!(said.contains("8 addresses at most"), "{said}");
    let long = "a".repeat(63);
    let id = [long.as_str(); 3].join(".");
    let said = Settings::parse(&format!("--cluster {id} --clusterset {long}")).unwrap_err();
    assert!(
        said.contains("--cluster") || said.contains("--trust-domain"),
        "{said}"
    );
}

#[test]
fn the_kustomize_base_is_what_the_flags_say() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../deploy/kustomize");
    let made: BTreeMap<_, _> = super::kustomize::files(&of(""))
        .unwrap()
        .into_iter()
        .collect();
    if std::env::var_os(REGENERATE).is_some() {
        super::kustomize::write(&folder, &of("")).unwrap();
    }
    let found: BTreeMap<_, _> = std::fs::read_dir(&folder)
        .expect("deploy/kustomize")
        .map(|entry| entry.unwrap())
        .map(|entry| {
            let name = entry.file_name().into_string().unwrap();
            (name, std::fs::read_to_string(entry.path()).unwrap())
        })
        .collect();
    let names = |of: &BTreeMap<String, String>| of.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&found), names(&made), "files in deploy/kustomize");
    for (name, text) in &made {
        assert_eq!(
            &found[name], text,
            "deploy/kustomize/{name} is stale: {REGENERATE}=1 cargo test -p linkspan kustomize"
        );
    }
}

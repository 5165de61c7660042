//! What an operator declares through federation, links included, and what is said of policies.

use kube::api::{DeleteParams, Patch, PatchParams};
use kube::{Client, ResourceExt as _};
use linkspan_core::backend::{
    Declarations as _, DeclareError, LinkHome as _, Removals, Sink as _, Source as _,
};
use linkspan_core::declared::MADE_BY;
use linkspan_core::plan::Desired;
use linkspan_core::testing::{self, own};
use linkspan_core::{Condition, ConditionStatus, ServiceKey};
use linkspan_kube::{
    KubernetesDeclarations, KubernetesLinks, KubernetesSink, KubernetesSource, Lead, Mirrors,
};
use linkspan_resources::{
    ClusterLink, ClusterLinkSpec, FailoverPolicy, FailoverPolicySpec, Metadata, Object,
    ServiceExport,
};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::server::{Server, api_of, declare, leading, within};

const NAMESPACE: &str = "declare";

fn key(name: &str) -> ServiceKey {
    ServiceKey::new(NAMESPACE, name).expect("a key")
}

fn policy(name: &str, drained: &[&str]) -> Object {
    Object::FailoverPolicy(FailoverPolicy {
        metadata: Metadata::named(NAMESPACE, name),
        spec: FailoverPolicySpec {
            drain: drained.iter().map(ToString::to_string).collect(),
            ..FailoverPolicySpec::default()
        },
    })
}

fn policy_object(name: &str) -> Value {
    json!({
        "apiVersion": "linkspan.io/v1alpha1", "kind": "FailoverPolicy",
        "metadata": {"name": name, "namespace": NAMESPACE}, "spec": {"drain": ["west"]},
    })
}

/// The spec of an object that is there.
async fn spec(client: &Client, object: &Value) -> Option<Value> {
    let name = object["metadata"]["name"].as_str().expect("a name");
    let found = api_of(client, object).get_opt(name).await.expect("asks");
    found.map(|found| found.data["spec"].clone())
}

#[tokio::test]
#[ignore = "needs the Kubernetes programs"]
async fn an_operators_policies_and_exports_are_objects() {
    let server = Server::shared().await;
    server.namespace(NAMESPACE).await;
    let client = server.client().await;
    let declarations = KubernetesDeclarations::new(client.clone(), leading());
    let put = async |object| {
        declarations
            .declare(object)
            .await
            .expect("declares")
            .changed
    };
    let withdraw = async |kind, name| {
        let withdrawn = declarations.withdraw(kind, &key(name)).await;
        withdrawn.expect("withdraws").changed
    };

    assert!(put(policy("ours", &["west"])).await);
    assert!(!put(policy("ours", &["west"])).await);
    assert!(put(policy("ours", &["west", "north"])).await);
    let drain = json!({"drain": ["west", "north"]});
    assert_eq!(spec(&client, &policy_object("ours")).await, Some(drain));
    // At once, none is lost: the second to write reads what the first wrote.
    let (one, two) = tokio::join!(
        declarations.declare(policy("ours", &["a"])),
        declarations.declare(policy("ours", &["b"])),
    );
    assert!(one.expect("declares").changed && two.expect("declares").changed);
    the_policy_is_read_and_told_of(&client).await;
    assert!(withdraw("FailoverPolicy", "ours").await);
    assert!(!withdraw("FailoverPolicy", "ours").await);

    // Somebody else's stays as it is, and it is said whose it is.
    declare(&client, &policy_object("theirs"), false)
        .await
        .expect("a policy");
    let theirs = [
        declarations.declare(policy("theirs", &["north"])).await,
        declarations
            .withdraw("FailoverPolicy", &key("theirs"))
            .await,
    ];
    for refused in theirs {
        let error = refused.expect_err("it is theirs");
        assert!(matches!(error, DeclareError::Elsewhere { .. }), "{error}");
        assert!(error.to_string().contains("somebody"), "{error}");
    }
    let drain = json!({"drain": ["west"]});
    assert_eq!(spec(&client, &policy_object("theirs")).await, Some(drain));

    let export = || Object::ServiceExport(ServiceExport::of(NAMESPACE, "checkout"));
    assert!(put(export()).await);
    assert!(!put(export()).await);
    assert!(withdraw("ServiceExport", "checkout").await);
    assert!(!withdraw("ServiceExport", "checkout").await);

    let nowhere = ServiceExport::of("no-such-namespace", "checkout");
    let error = declarations
        .declare(Object::ServiceExport(nowhere))
        .await
        .expect_err("there is no such namespace");
    assert!(matches!(error, DeclareError::Failed { .. }), "{error}");
}

async fn the_policy_is_read_and_told_of(client: &Client) {
    let mirrors = Mirrors::watch(client);
    let mut source = KubernetesSource::new(own(), Default::default(), mirrors.clone());
    let declared = within("a snapshot", source.next())
        .await
        .expect("a snapshot");
    let read = &declared.policies[&key("ours")];
    assert_eq!(read.drain.len(), 1);
    assert!(read.created > std::time::SystemTime::UNIX_EPOCH);

    let mut sink = KubernetesSink::new(client.clone(), mirrors, leading());
    let condition = |kind, status| Condition::new(kind, status, "Reason", "text");
    let accepted = vec![
        condition("Accepted", ConditionStatus::True),
        condition("ResolvedRefs", ConditionStatus::False),
    ];
    let desired = Desired {
        policy_conditions: [(key("ours"), accepted)].into(),
        ..Desired::default()
    };
    let applied = sink.apply(&desired, Removals::Held).await.expect("applies");
    assert_eq!((applied.written, applied.refused), (1, Vec::new()));
    let again = sink.apply(&desired, Removals::Held).await.expect("applies");
    assert_eq!(again.written, 0);
    let found = api_of(client, &policy_object("ours")).get("ours").await;
    let status = &found.expect("it is there").data["status"]["conditions"];
    assert_eq!(status[0]["type"], "Accepted");
    assert_eq!(status[1]["status"], "False");
    sink.apply(&Desired::default(), Removals::Held)
        .await
        .expect("applies");
    let found = api_of(client, &policy_object("ours")).get("ours").await;
    let status = &found.expect("it is there").data["status"]["conditions"];
    assert!(status.as_array().is_none_or(Vec::is_empty), "{status}");
}

fn link(roots: &str) -> ClusterLink {
    ClusterLink {
        metadata: Metadata {
            name: "declared".into(),
            ..Metadata::default()
        },
        spec: ClusterLinkSpec {
            trust_domain: "declared.test".into(),
            bundle: roots.to_owned(),
            ..ClusterLinkSpec::default()
        },
    }
}

#[tokio::test]
#[ignore = "needs the Kubernetes programs"]
async fn a_link_is_replaced_by_one_to_the_same_peer_only() {
    let server = Server::shared().await;
    let client = server.client().await;
    let links = KubernetesLinks::new(client.clone(), leading());
    let roots = testing::bundle("declared.test", 1).to_pem();
    let others = testing::bundle("declared.test", 2).to_pem();
    assert_ne!(roots, others);
    let object = json!({
        "apiVersion": "linkspan.io/v1alpha1", "kind": "ClusterLink", "metadata": {"name": "declared"},
    });
    links.declare(&link(&roots)).await.expect("declares");
    let mut wider = link(&roots);
    wider.spec.allow_loopback = true;
    links.declare(&wider).await.expect("declares again");
    // Of another invitation, and otherwise the same.
    let noted = [(MADE_BY.to_owned(), "of another".to_owned())];
    wider.metadata.annotations = noted.into();
    links.declare(&wider).await.expect("notes it");
    let found = api_of(&client, &object).get("declared").await;
    assert_eq!(
        found.expect("it is there").annotations()[MADE_BY],
        "of another"
    );
    let mut other_domain = link(&roots);
    other_domain.spec.trust_domain = "other.test".into();
    for other in [link(&others), other_domain] {
        let error = links.declare(&other).await.expect_err("another peer");
        let source = std::error::Error::source(&error)
            .expect("a reason")
            .to_string();
        assert!(source.contains("another peer"), "{source}");
    }
    let held = spec(&client, &object).await.expect("it is there");
    assert_eq!(held["trustDomain"], "declared.test");
    assert_eq!(held["bundle"], roots);
    assert_eq!(held["allowLoopback"], true);

    let peer = "declared".parse().expect("an id");
    let domain = |name: &str| name.parse().expect("a domain");
    let (theirs, other) = (domain("declared.test"), domain("other.test"));
    links.remove(&peer, &other).await.expect("it is another");
    assert!(spec(&client, &object).await.is_some());
    links.remove(&peer, &theirs).await.expect("removes");
    links.remove(&peer, &theirs).await.expect("nothing is left");
    assert_eq!(spec(&client, &object).await, None);
    let deleted = api_of(&client, &object)
        .delete("declared", &DeleteParams::default())
        .await;
    deleted.expect_err("it is gone");
}

/// Whatever it decided while it did: another replica may have made it untrue.
#[tokio::test]
#[ignore = "needs the Kubernetes programs"]
async fn who_does_not_lead_declares_and_removes_nothing() {
    let server = Server::shared().await;
    let client = server.client().await;
    let mut other = Lead::default();
    other.holder = Some("east-2".into());
    let lead = watch::channel(other).1;
    let declarations = KubernetesDeclarations::new(client.clone(), lead.clone());
    let links = KubernetesLinks::new(client.clone(), lead);
    let mut wanted = link(&testing::bundle("declared.test", 1).to_pem());
    wanted.metadata.name = "led".into();
    let object = json!({
        "apiVersion": "linkspan.io/v1alpha1", "kind": "ClusterLink", "metadata": {"name": "led"},
    });
    let says_who = |error: &dyn std::error::Error| {
        let why = error
            .source()
            .map_or_else(|| error.to_string(), ToString::to_string);
        assert!(why.contains("`east-2` does"), "{why}");
    };
    says_who(&links.declare(&wanted).await.expect_err("no link is made"));
    assert_eq!(spec(&client, &object).await, None);
    let made = KubernetesLinks::new(client.clone(), leading());
    made.declare(&wanted).await.expect("declares");
    let mut wider = wanted.clone();
    wider.spec.allow_loopback = true;
    says_who(&links.declare(&wider).await.expect_err("none is changed"));
    let (peer, domain) = ("led".parse(), "declared.test".parse());
    let (peer, domain) = (peer.expect("an id"), domain.expect("a domain"));
    says_who(
        &links
            .remove(&peer, &domain)
            .await
            .expect_err("none is removed"),
    );
    let held = spec(&client, &object).await.expect("it is there");
    assert_ne!(held["allowLoopback"], true);
    made.remove(&peer, &domain).await.expect("removes");

    says_who(
        &declarations
            .declare(policy("led", &[]))
            .await
            .expect_err("no policy"),
    );
    let led = KubernetesDeclarations::new(client.clone(), leading());
    led.declare(policy("led", &[])).await.expect("declares");
    let withdrawn = declarations.withdraw("FailoverPolicy", &key("led")).await;
    says_who(&withdrawn.expect_err("it stays"));
    let withdrawn = led.withdraw("FailoverPolicy", &key("led")).await;
    assert!(withdrawn.expect("withdraws").changed, "it was there");
}

/// An edit that cannot be taken: what was good stays in force, and the object says what is wrong with it.
#[tokio::test]
#[ignore = "needs the Kubernetes programs"]
async fn a_link_that_is_refused_says_why_and_of_which_generation() {
    let server = Server::own().await;
    let client = server.client().await;
    let mut good = link(&testing::bundle("declared.test", 1).to_pem());
    good.metadata.name = "edited".into();
    let links = KubernetesLinks::new(client.clone(), leading());
    links.declare(&good).await.expect("declares");
    let mirrors = Mirrors::watch(&client);
    let mut source = KubernetesSource::new(own(), Default::default(), mirrors.clone());
    let mut sink = KubernetesSink::new(client.clone(), mirrors, leading());
    let declared = within("a snapshot", source.next()).await.expect("one");
    let name = ("ClusterLink", String::new(), "edited".to_owned());
    assert_eq!(declared.generations.get(&name), Some(&1));
    assert!(declared.refused.is_empty());

    // One character of the certificate.
    let object = json!({
        "apiVersion": "linkspan.io/v1alpha1", "kind": "ClusterLink", "metadata": {"name": "edited"},
    });
    let torn = good.spec.bundle.replacen("MII", "NII", 1);
    let patch = Patch::Merge(json!({"spec": {"bundle": torn}}));
    let api = api_of(&client, &object);
    let edited = api.patch("edited", &PatchParams::default(), &patch).await;
    edited.expect("the API server takes it");
    let declared = within("the edit", source.next()).await.expect("one");
    assert_eq!(declared.generations.get(&name), Some(&2));
    assert!(
        declared.refused[&name].contains("spec.bundle"),
        "{declared:?}"
    );
    assert_eq!(declared.links.len(), 1, "it stays in force");

    let why = Condition::new("Accepted", ConditionStatus::False, "Invalid", "spec.bundle");
    let desired = Desired {
        link_conditions: [("edited".parse().expect("an id"), vec![why])].into(),
        generations: declared.generations.clone(),
        ..Desired::default()
    };
    sink.apply(&desired, Removals::Held).await.expect("applies");
    let found = api.get("edited").await.expect("it is there");
    let told = &found.data["status"]["conditions"][0];
    assert_eq!(
        (&told["type"], &told["status"]),
        (&json!("Accepted"), &json!("False"))
    );
    assert_eq!(told["observedGeneration"], 2);
}

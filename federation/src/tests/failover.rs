//! Services, failover policies and their explanation, as the operator asks for them.

use std::fs;

use linkspan_api::v1::{self, discover_request::Message as Said};
use tonic::Code;

use super::proxy::{Living, Proxy, workload};
use crate::testing::{Federation, Home, link_yaml, service_yaml};

fn key(name: &str) -> Option<v1::ServiceKey> {
    Some(v1::ServiceKey {
        namespace: "shop".into(),
        name: name.into(),
    })
}

const API_VERSION: &str = "linkspan.io/v1alpha1";

fn set(spec: &str, reset: bool) -> v1::SetFailoverRequest {
    v1::SetFailoverRequest {
        key: key("checkout"),
        spec: spec.into(),
        reset,
    }
}

fn from_here(without: &[&str]) -> v1::ExplainRequest {
    v1::ExplainRequest {
        key: key("checkout"),
        without: without.iter().map(|name| (*name).into()).collect(),
        ..Default::default()
    }
}

/// East with a service, one workload of it, and a link to west.
async fn with_checkout(home: &Home) -> (Federation, Living) {
    home.declare("checkout.yaml", &service_yaml("checkout"));
    home.declare("west.yaml", &link_yaml("west"));
    let federation = home.start().await;
    let member = federation.member("shop", "checkout").await;
    let proxy = Proxy::open(&federation, &member).await.unwrap();
    let workload = proxy.live(
        Said::Workload(workload("checkout-1", "checkout")),
        Vec::new(),
    );
    federation
        .until("the endpoint and the link", |world| {
            let mut services = world.desired.services.values();
            let ready = services.any(|service| service.endpoints.iter().any(|of| of.ready));
            ready && !world.desired.links.is_empty()
        })
        .await;
    (federation, workload)
}

#[tokio::test]
async fn an_export_is_taken_back_and_services_say_so() {
    let home = Home::new("east");
    let (federation, _proxy) = with_checkout(&home).await;
    let mut operator = federation.operator().await;
    let export = v1::ExportRequest {
        key: key("checkout"),
        unmeshed_clients: None,
    };
    operator.export(export).await.unwrap();
    federation
        .until("the export", |world| world.declared.exports.len() == 1)
        .await;
    let listed = operator
        .services(v1::ServicesRequest {})
        .await
        .unwrap()
        .into_inner();
    let service = &listed.services[0];
    assert_eq!(service.import.as_ref().unwrap().r#type, "ClusterSetIP");
    let cluster = &service.clusters[0];
    assert!(
        cluster.exports && cluster.usable && cluster.age_millis.is_none(),
        "{cluster:?}"
    );
    assert_eq!(
        (cluster.localities[0].ready, cluster.localities[0].total),
        (1, 1)
    );

    let unexport = || v1::UnexportRequest {
        key: key("checkout"),
    };
    let gone = operator.unexport(unexport()).await.unwrap().into_inner();
    assert!(gone.changed && gone.notes.is_empty(), "{gone:?}");
    let listed = operator
        .services(v1::ServicesRequest {})
        .await
        .unwrap()
        .into_inner();
    assert!(listed.services[0].export.is_none() && listed.services[0].import.is_none());
    assert!(
        !operator
            .unexport(unexport())
            .await
            .unwrap()
            .into_inner()
            .changed
    );
    federation.stop().await;
}

#[tokio::test]
async fn a_policy_is_set_field_by_field_and_what_is_wrong_is_refused() {
    let home = Home::new("east");
    let (federation, _proxy) = with_checkout(&home).await;
    let mut operator = federation.operator().await;
    for (spec, part) in [
        (r#"{"maxRemoteShare": 130}"#, "spec.maxRemoteShare"),
        (
            r#"{"order": [{"clusters": ["wset"]}]}"#,
            "`wset` is not linked",
        ),
        (r#"{"ordre": []}"#, "did you mean `order`"),
        ("[]", "not a JSON object"),
    ] {
        let status = operator.set_failover(set(spec, false)).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains(part), "{status}");
    }
    let order = r#"{"order": [{"clusters": ["Own"]}, {"clusters": ["west"]}]}"#;
    let made = operator
        .set_failover(set(order, false))
        .await
        .unwrap()
        .into_inner();
    assert!(made.changed && made.notes.is_empty(), "{made:?}");
    let text = fs::read_to_string(&made.place).unwrap();
    assert!(text.contains(API_VERSION), "{text}");
    let cap = operator
        .set_failover(set(r#"{"maxRemoteShare": 20}"#, false))
        .await;
    assert!(cap.unwrap().into_inner().changed);
    let shown = operator
        .failover(v1::FailoverRequest { key: None })
        .await
        .unwrap()
        .into_inner();
    let policy = &shown.policies[0];
    assert!(
        policy.spec.contains("order") && policy.spec.contains("maxRemoteShare"),
        "{policy:?}"
    );
    assert_eq!(shown.services[0].policy, "shop/checkout");

    let explained = operator.explain(from_here(&[])).await.unwrap().into_inner();
    assert_eq!(explained.policy, "shop/checkout");
    assert_eq!(
        (explained.shares[0].listed, explained.shares[0].share),
        (1, 1.0)
    );
    let without = operator
        .explain(from_here(&["east"]))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (without.refused, without.refused_reason.is_empty()),
        (1.0, false)
    );
    let status = operator.explain(from_here(&["wset"])).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);

    let removed = operator
        .set_failover(set("", true))
        .await
        .unwrap()
        .into_inner();
    assert!(removed.changed && !std::path::Path::new(&made.place).exists());
    let explained = operator.explain(from_here(&[])).await.unwrap().into_inner();
    assert_eq!(explained.policy, "");
    federation.stop().await;
}

#[tokio::test]
async fn a_policy_of_that_name_for_something_else_is_left_alone() {
    let home = Home::new("east");
    let (federation, _proxy) = with_checkout(&home).await;
    let mut operator = federation.operator().await;
    home.declare(
        "namespace-default.yaml",
        &format!(
            "apiVersion: {API_VERSION}\nkind: FailoverPolicy\nmetadata: {{namespace: shop, name: checkout}}\nspec: {{maxRemoteShare: 5}}\n"
        ),
    );
    federation
        .until("the policy", |world| !world.declared.policies.is_empty())
        .await;
    for asked in [set("", true), set(r#"{"maxRemoteShare": 20}"#, false)] {
        let status = operator.set_failover(asked).await.unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
        assert!(status.message().contains("something else"), "{status}");
    }
    let shown = operator.failover(v1::FailoverRequest { key: None }).await;
    assert_eq!(shown.unwrap().into_inner().policies.len(), 1);
    federation.stop().await;
}

#[tokio::test]
async fn drains_add_up_and_end() {
    let home = Home::new("east");
    let (federation, _proxy) = with_checkout(&home).await;
    let mut operator = federation.operator().await;
    let drain = |cluster: &str, for_one: bool, undo| v1::DrainRequest {
        cluster: cluster.into(),
        key: for_one.then(|| key("checkout")).flatten(),
        undo,
    };
    let status = operator
        .drain(drain("wset", false, false))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(
        operator
            .drain(drain("west", false, false))
            .await
            .unwrap()
            .into_inner()
            .changed
    );
    assert!(
        operator
            .drain(drain("east", true, false))
            .await
            .unwrap()
            .into_inner()
            .changed
    );
    let shown = operator
        .failover(v1::FailoverRequest {
            key: key("checkout"),
        })
        .await
        .unwrap();
    let drained = &shown.into_inner().services[0].drained;
    let by: Vec<_> = drained
        .iter()
        .map(|of| (&*of.cluster, &*of.policies[0]))
        .collect();
    assert_eq!(
        by,
        [
            ("east", "shop/drain-checkout"),
            ("west", "linkspan-system/drain")
        ]
    );
    let explained = operator.explain(from_here(&[])).await.unwrap().into_inner();
    assert_eq!(explained.shares[0].why, "lastResort");
    for (cluster, for_one) in [("east", true), ("west", false)] {
        let ended = operator
            .drain(drain(cluster, for_one, true))
            .await
            .unwrap()
            .into_inner();
        assert!(ended.changed, "{cluster}");
    }
    let again = operator
        .drain(drain("west", false, true))
        .await
        .unwrap()
        .into_inner();
    assert!(!again.changed);
    federation.stop().await;
}

#[tokio::test]
async fn explain_finds_the_callers_place_or_says_which_there_are() {
    let home = Home::new("east");
    let (federation, _proxy) = with_checkout(&home).await;
    let mut operator = federation.operator().await;
    let from = |cluster: &str, region: &str, zone: &str| v1::ExplainRequest {
        cluster: cluster.into(),
        region: region.into(),
        zone: zone.into(),
        ..from_here(&[])
    };
    let here = operator
        .explain(from("", "", ""))
        .await
        .unwrap()
        .into_inner();
    assert_eq!((here.cluster.as_str(), here.port), ("east", 80));
    let status = operator
        .explain(from("east", "", "nowhere"))
        .await
        .unwrap_err();
    assert!(
        status.message().contains("--from CLUSTER/REGION/ZONE"),
        "{status}"
    );
    let there = operator
        .explain(from("east", "us", "x"))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(there.shares[0].nearness, "own cluster");
    let status = operator.explain(from("west", "", "")).await.unwrap_err();
    assert!(status.message().contains("exported by nobody"), "{status}");
    let status = operator
        .explain(v1::ExplainRequest {
            port: 81,
            ..from_here(&[])
        })
        .await;
    assert!(status.unwrap_err().message().contains("no port 81"));
    federation.stop().await;
}

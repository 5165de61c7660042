use super::*;
use crate::testing::service;

pub(crate) fn policy(key: &str, age: u64, spec: serde_json::Value) -> (ServiceKey, DeclaredPolicy) {
    let key = service(key);
    let resource = resources::FailoverPolicy {
        metadata: resources::Metadata::named(key.namespace.as_str(), key.name.as_str()),
        spec: serde_json::from_value(spec).unwrap(),
    };
    let created = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 - age);
    (key, DeclaredPolicy::new(resource, created).unwrap())
}

fn target(name: &str) -> serde_json::Value {
    serde_json::json!([{"kind": "Service", "name": name}])
}

fn named(policies: &Policies, key: &str) -> Option<String> {
    let stands = in_force(
        policies,
        &service(key),
        FailbackConfig::default(),
        &BTreeSet::new(),
    );
    stands.policy.map(|policy| policy.name.to_string())
}

fn condition(policies: &Policies, services: &[&str], key: &str, kind: &str) -> (String, String) {
    let services: Vec<_> = services.iter().map(|key| service(key)).collect();
    let clusters: Vec<ClusterId> = ["east", "west"]
        .iter()
        .map(|id| id.parse().unwrap())
        .collect();
    let all = conditions(
        policies,
        &services.iter().collect(),
        &clusters.iter().collect(),
    );
    let condition = all[&service(key)]
        .iter()
        .find(|of| of.kind == kind)
        .unwrap();
    (
        format!("{}/{}", condition.status, condition.reason),
        condition.message.clone(),
    )
}

#[test]
fn the_precise_one_stands_then_the_namespaces_then_the_clusters() {
    let policies = Policies::from([
        policy("linkspan-system/all", 9, serde_json::json!({})),
        policy("shop/default", 8, serde_json::json!({})),
        policy(
            "shop/checkout",
            1,
            serde_json::json!({"targetRefs": target("checkout")}),
        ),
    ]);
    assert_eq!(named(&policies, "shop/checkout").unwrap(), "shop/checkout");
    assert_eq!(named(&policies, "shop/cart").unwrap(), "shop/default");
    assert_eq!(
        named(&policies, "bank/ledger").unwrap(),
        "linkspan-system/all"
    );
    // Being overridden by a precise one is what a default is for.
    let services = ["shop/checkout", "shop/cart"];
    let (conflict, _) = condition(&policies, &services, "shop/default", "Conflict");
    assert_eq!(conflict, "False/NoConflicts");
}

#[test]
fn of_equals_the_oldest_stands_then_the_first_by_name_and_the_loser_says_so() {
    let spec = || serde_json::json!({"targetRefs": target("checkout")});
    let mut policies = Policies::from([policy("shop/a", 1, spec()), policy("shop/b", 2, spec())]);
    assert_eq!(named(&policies, "shop/checkout").unwrap(), "shop/b");
    let services = ["shop/checkout"];
    let (accepted, _) = condition(&policies, &services, "shop/a", "Accepted");
    assert_eq!(accepted, "False/Conflicted");
    let (conflict, message) = condition(&policies, &services, "shop/a", "Conflict");
    assert_eq!(conflict, "True/Conflicted");
    assert_eq!(message, "for `shop/checkout` the older `shop/b` stands");
    let (accepted, message) = condition(&policies, &services, "shop/b", "Accepted");
    assert_eq!(
        (accepted.as_str(), message.as_str()),
        ("True/Accepted", "in force for 1 service")
    );

    policies.extend([policy("shop/a", 2, spec())]);
    assert_eq!(named(&policies, "shop/checkout").unwrap(), "shop/a");
}

#[test]
fn drains_add_up_and_contest_nothing() {
    let policies = Policies::from([
        policy("shop/order", 9, serde_json::json!({"maxRemoteShare": 10})),
        policy(
            "shop/drain",
            1,
            serde_json::json!({"targetRefs": target("checkout"), "drain": ["west"]}),
        ),
        policy(
            "linkspan-system/drain",
            1,
            serde_json::json!({"drain": ["north"]}),
        ),
    ]);
    let default = FailbackConfig::default();
    let stands = in_force(
        &policies,
        &service("shop/checkout"),
        default,
        &BTreeSet::new(),
    );
    assert_eq!(stands.policy.unwrap().max_remote_share, Some(10));
    let drained: Vec<_> = stands.drained.iter().map(ToString::to_string).collect();
    assert_eq!(drained, ["north", "west"]);
    let other = in_force(
        &policies,
        &service("bank/ledger"),
        default,
        &BTreeSet::new(),
    );
    assert_eq!((other.policy, other.drained.len()), (None, 1));
    let (resolved, message) = condition(
        &policies,
        &["shop/checkout"],
        "linkspan-system/drain",
        "ResolvedRefs",
    );
    assert_eq!(resolved, "False/ClusterNotFound");
    assert!(message.contains("not linked: north"), "{message}");
    let (accepted, message) = condition(&policies, &["shop/checkout"], "shop/drain", "Accepted");
    assert_eq!(
        (accepted.as_str(), message.as_str()),
        ("True/Accepted", "drains west")
    );
}

#[test]
fn a_target_that_is_not_there_is_named() {
    let policies = Policies::from([policy(
        "shop/a",
        1,
        serde_json::json!({"targetRefs": target("chekout")}),
    )]);
    let (accepted, message) = condition(&policies, &["shop/checkout"], "shop/a", "Accepted");
    assert_eq!(accepted, "False/TargetNotFound");
    assert!(message.contains("`shop/chekout`"), "{message}");
}

#[test]
fn stale_peers_are_treated_as_the_policy_says() {
    let stale = BTreeSet::from(["west".parse().unwrap()]);
    for (say, avoided, excluded) in [("keep", 0, 0), ("avoid", 1, 0), ("exclude", 0, 1)] {
        let policies =
            Policies::from([policy("shop/a", 1, serde_json::json!({"stalePeers": say}))]);
        let default = FailbackConfig::default();
        let stands = in_force(&policies, &service("shop/checkout"), default, &stale);
        let policy = stands.policy.unwrap();
        assert_eq!(
            (policy.avoided.len(), policy.excluded.len()),
            (avoided, excluded),
            "{say}"
        );
    }
}

#[test]
fn what_failback_leaves_out_is_the_default() {
    let spec = serde_json::json!({"failback": {"hold": "5s"}});
    let policies = Policies::from([policy("shop/a", 1, spec)]);
    let default = FailbackConfig::default();
    let stands = in_force(&policies, &service("shop/x"), default, &BTreeSet::new());
    assert_eq!(
        (stands.failback.hold, stands.failback.ramp),
        (Duration::from_secs(5), default.ramp)
    );
}

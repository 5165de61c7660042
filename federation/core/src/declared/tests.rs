//! Resources of a file, put together.

use super::*;
use crate::testing::{bundle, own, service};

const CREATED: Duration = Duration::from_secs(1_700_000_000);

fn assembled(files: &[(&str, String)]) -> Declared {
    assembled_upon(&Links::new(), files)
}

fn assembled_upon(in_force: &Links, files: &[(&str, String)]) -> Declared {
    let objects = files.iter().flat_map(|(file, text)| {
        let objects =
            linkspan_resources::parse_documents(file, text).expect("the sample is well-formed");
        objects.into_iter().map(|object| Sourced {
            object,
            origin: (*file).to_owned(),
            created: SystemTime::UNIX_EPOCH + CREATED + Duration::from_millis(700),
        })
    });
    assemble(&own(), in_force, objects)
}

fn service_text(name: &str, rest: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{{rest}}}\n"
    )
}

fn export_text(metadata: &str) -> String {
    format!(
        "apiVersion: multicluster.x-k8s.io/v1beta1\nkind: ServiceExport\nmetadata: {{name: a, namespace: shop{metadata}}}\n"
    )
}

fn link_text(name: &str, domain: &str) -> String {
    let pem = bundle(domain, 1).to_pem().replace('\n', "\n    ");
    format!(
        "apiVersion: linkspan.io/v1alpha1\nkind: ClusterLink\nmetadata: {{name: {name}}}\n\
         spec:\n  trustDomain: {domain}\n  bundle: |\n    {pem}\n"
    )
}

#[track_caller]
fn problem(declared: &Declared, words: &[&str]) {
    assert_eq!(declared.problems.len(), 1, "{:?}", declared.problems);
    for word in words {
        assert!(
            declared.problems[0].contains(word),
            "`{word}` is not in: {}",
            declared.problems[0]
        );
    }
}

#[test]
fn services_become_the_model() {
    let ports =
        "selector: {app: a}, ports: [{name: web, port: 80, targetPort: 9001, appProtocol: grpc}]";
    let declared = assembled(&[("a.yaml", service_text("a", ports))]);
    let a = &declared.services[&service("shop/a")];
    assert_eq!(a.import_type, Some(ImportType::ClusterSetIP));
    assert_eq!(
        (a.ports[0].target_port, a.ports[0].service_port.port),
        (9001, 80)
    );
    assert_eq!(a.ports[0].service_port.app_protocol, AppProtocol::Http2);
    let labels =
        |app: &str| BTreeMap::from([("app".to_owned(), app.to_owned()), ("x".into(), "y".into())]);
    assert!(a.selects("shop", &labels("a")));
    assert!(!a.selects("shop", &labels("b")) && !a.selects("other", &labels("a")));
}

#[test]
fn a_service_without_a_selector_selects_nothing() {
    let declared = assembled(&[("a.yaml", service_text("a", "ports: [{port: 80}]"))]);
    assert!(!declared.services[&service("shop/a")].selects("shop", &BTreeMap::new()));
}

#[test]
fn types_decide_how_a_service_is_imported() {
    let import_type = |rest: &str| {
        assembled(&[("a", service_text("a", rest))]).services[&service("shop/a")].import_type
    };
    assert_eq!(import_type("clusterIP: None"), Some(ImportType::Headless));
    assert_eq!(
        import_type("type: NodePort, ports: [{port: 1}]"),
        Some(ImportType::ClusterSetIP)
    );
    assert_eq!(import_type("type: ExternalName, externalName: a.b"), None);
}

#[test]
fn an_export_is_as_old_as_it_says_or_as_its_file_in_whole_seconds() {
    let created = |metadata: &str| {
        assembled(&[("a", export_text(metadata))]).exports[&service("shop/a")].created
    };
    assert_eq!(created(""), SystemTime::UNIX_EPOCH + CREATED);
    let written = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
    assert_eq!(
        created(", creationTimestamp: '1970-01-01T00:00:01.9Z'"),
        written
    );
}

#[test]
fn of_two_with_one_name_the_first_stands() {
    let declared = assembled(&[
        ("a.yaml", service_text("a", "ports: [{port: 80}]")),
        ("b.yaml", service_text("a", "ports: [{port: 81}]")),
    ]);
    assert_eq!(
        declared.services[&service("shop/a")].ports[0]
            .service_port
            .port,
        80
    );
    problem(&declared, &["b.yaml", "`shop/a`", "a.yaml", "remove one"]);
}

#[test]
fn links_pin_the_parts_of_their_trust_domain() {
    let declared = assembled(&[("l.yaml", link_text("west", "west.test"))]);
    assert_eq!(declared.problems, Vec::<String>::new());
    let link = declared.links.values().next().expect("one link");
    assert_eq!(
        link.gateway_id.as_str(),
        "spiffe://west.test/ns/linkspan-system/sa/linkspan-gateway"
    );
    assert_eq!(
        link.federation_id.as_str(),
        "spiffe://west.test/ns/linkspan-system/sa/linkspan-federation"
    );
    assert_eq!(
        (link.bundle.roots.len(), link.bundle.sequence),
        (1, DECLARED_SEQUENCE)
    );
}

#[test]
fn links_must_not_contradict_each_other_or_us() {
    problem(
        &assembled(&[("l", link_text("east", "x.test"))]),
        &["names this cluster itself"],
    );
    problem(
        &assembled(&[("l", link_text("west", "east.test"))]),
        &["this cluster's own"],
    );
    let twice = assembled(&[
        ("l", link_text("west", "west.test")),
        ("m", link_text("north", "west.test")),
    ]);
    problem(
        &twice,
        &["m: ClusterLink `north`", "link to `west`", "exactly one"],
    );
    assert_eq!(twice.links.len(), 1);
}

#[test]
fn a_bundle_that_holds_no_certificate_is_told() {
    let text = link_text("west", "west.test");
    let (head, _) = text.split_once("-----BEGIN").expect("has a bundle");
    let broken =
        format!("{head}-----BEGIN CERTIFICATE-----\n    AAAA\n    -----END CERTIFICATE-----\n");
    problem(
        &assembled(&[("l.yaml", broken)]),
        &["l.yaml: ClusterLink `west`", "spec.bundle"],
    );
}

fn links(declared: &Declared) -> Vec<(&str, &str)> {
    let links = declared.links.values();
    links
        .map(|link| (link.cluster.as_str(), link.trust_domain.as_str()))
        .collect()
}

#[test]
fn a_link_in_force_outlives_a_bad_edit() {
    let before = assembled(&[("west.yaml", link_text("west", "west.test"))]);
    let bad = link_text("west", "west.test").replace("MII", "MIX");
    let after = assembled_upon(&before.links, &[("west.yaml", bad.clone())]);
    assert_eq!(after.links, before.links);
    assert!(after.links_in_doubt);
    problem(&after, &["west.yaml", "spec.bundle", "stays as it was"]);
    let never_good = assembled(&[("west.yaml", bad)]);
    assert!(never_good.links.is_empty() && never_good.links_in_doubt);
    let removed = assembled_upon(&before.links, &[]);
    assert!(removed.links.is_empty() && !removed.links_in_doubt);
}

#[test]
fn a_pinned_part_is_no_workload() {
    let pinned = |id: &str| {
        let line = format!("spec:\n  gatewayID: spiffe://{id}\n");
        let text = link_text("west", "west.test").replacen("spec:\n", &line, 1);
        assembled(&[("west.yaml", text)])
    };
    assert_eq!(links(&pinned("west.test/gateway")), [("west", "west.test")]);
    let workload = pinned("west.test/ns/shop/sa/cart");
    assert!(workload.links.is_empty());
    problem(&workload, &["spec.gatewayID", "identity of a workload"]);
}

#[test]
fn nobody_takes_the_trust_domain_of_a_link_in_force() {
    let west = ("z.yaml", link_text("west", "west.test"));
    let before = assembled(std::slice::from_ref(&west));
    let claims = [("a.yaml", link_text("alpha", "west.test")), west];
    let after = assembled_upon(&before.links, &claims);
    assert_eq!(links(&after), [("west", "west.test")]);
    problem(
        &after,
        &["a.yaml", "`alpha`", "belongs to the link to `west`"],
    );
    // Nor by an edit of another link that is in force, wherever it is written.
    for (name, other) in [("a.yaml", "alpha"), ("zz.yaml", "zulu")] {
        let two = [claims[1].clone(), (name, link_text(other, "other.test"))];
        let before = assembled(&two);
        let edited = [claims[1].clone(), (name, link_text(other, "west.test"))];
        let after = assembled_upon(&before.links, &edited);
        assert_eq!(links(&after), links(&before));
        problem(&after, &[name, "stays as it was"]);
    }
    // What was given up is free.
    let moved = [
        ("a.yaml", link_text("alpha", "west.test")),
        ("z.yaml", link_text("west", "new.test")),
    ];
    let after = assembled_upon(&before.links, &moved);
    assert_eq!(after.problems, [] as [&str; 0]);
    assert_eq!(
        links(&after),
        [("alpha", "west.test"), ("west", "new.test")]
    );
}

#[test]
fn a_link_says_of_which_invitation_it_came() {
    let noted = |id: &str| {
        let named = format!("{{name: west, annotations: {{{MADE_BY}: \"{id}\"}}}}");
        link_text("west", "west.test").replacen("{name: west}", &named, 1)
    };
    let id = "00112233445566778899aabbccddeeff";
    let declared = assembled(&[("west.yaml", noted(id))]);
    let made_by = |of: &Declared| of.links.values().next().unwrap().made_by;
    assert_eq!(made_by(&declared), Some(id.parse().unwrap()));
    let wrong = assembled(&[("west.yaml", noted("west-1"))]);
    problem(&wrong, &["west.yaml", MADE_BY, "west-1", "32 hexadecimal"]);
    assert!(wrong.links.is_empty());
    // A bad note takes no good link away.
    let kept = assembled_upon(&declared.links, &[("west.yaml", noted("west-1"))]);
    assert_eq!(made_by(&kept), Some(id.parse().unwrap()));
}

#[test]
fn an_export_says_itself_whom_it_admits_or_the_cluster_does() {
    let admits = |annotation: &str, by_default: bool| {
        let text = match annotation {
            "" => export_text(""),
            word => export_text(&format!(", annotations: {{{UNMESHED_CLIENTS}: {word}}}")),
        };
        let objects = linkspan_resources::parse_documents("a.yaml", &text).expect("well-formed");
        let sourced = objects.into_iter().map(|object| Sourced {
            object,
            origin: "a.yaml".to_owned(),
            created: SystemTime::UNIX_EPOCH,
        });
        let own = OwnCluster {
            unmeshed_clients: by_default,
            ..own()
        };
        let declared = assemble(&own, &Links::new(), sourced);
        declared.exports[&service("shop/a")].unmeshed_clients
    };
    for (annotation, by_default, admitted) in [
        ("", false, false),
        ("", true, true),
        ("allow", false, true),
        ("deny", true, false),
    ] {
        assert_eq!(admits(annotation, by_default), admitted, "{annotation}");
    }
}

#[test]
fn what_is_refused_is_known_by_its_name() {
    let wrong = link_text("west", own().trust_domain.as_str());
    let declared = assembled(&[
        ("west.yaml", wrong),
        ("north.yaml", link_text("north", "north.test")),
    ]);
    let refused: Vec<_> = declared.refused.iter().collect();
    let name = ("ClusterLink", String::new(), "west".to_owned());
    assert_eq!(refused.len(), 1);
    assert_eq!(*refused[0].0, name);
    assert!(
        refused[0].1.contains("this cluster's own"),
        "{}",
        refused[0].1
    );
}

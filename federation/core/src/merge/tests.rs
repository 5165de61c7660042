//! The rules of KEP-1645, and what must hold for any exports.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::model::{AppProtocol, ImportType, SessionAffinity};
use crate::testing::{export, named_port, port, service};

fn from(cluster: &str, export: Export) -> Contribution {
    Contribution {
        cluster: cluster.parse().expect("valid"),
        export: Arc::new(export),
    }
}

fn merged(contributions: &[Contribution]) -> Merged {
    seen_from("north", contributions)
}

fn seen_from(own: &str, contributions: &[Contribution]) -> Merged {
    let own = own.parse().expect("valid");
    merge(&own, &service("shop/checkout"), contributions).expect("there are exports")
}

fn checkout(ports: Vec<ServicePort>, age: u64) -> Export {
    export("shop/checkout", ports, age)
}

fn ports_of(merged: &Merged, cluster: &str) -> Vec<u16> {
    merged.import.clusters[&cluster.parse::<ClusterId>().expect("valid")]
        .ports
        .clone()
}

#[test]
fn nothing_is_imported_without_an_export() {
    let own = "east".parse().expect("valid");
    assert_eq!(merge(&own, &service("shop/checkout"), &[]), None);
    let other = from("east", export("shop/mail", vec![port(80)], 1));
    assert_eq!(merge(&own, &service("shop/checkout"), &[other]), None);
}

#[test]
fn equal_exports_have_no_conflict() {
    let merged = merged(&[
        from("east", checkout(vec![port(80)], 2)),
        from("west", checkout(vec![port(80)], 1)),
    ]);
    assert_eq!(merged.import.ports, [port(80)]);
    assert_eq!(merged.conflicts, []);
    assert_eq!(
        merged.condition().to_string(),
        "Conflict=False: NoConflicts"
    );
}

#[test]
fn ports_are_a_union_and_traffic_goes_where_they_are() {
    let merged = merged(&[
        from("east", checkout(vec![named_port("http", 80)], 2)),
        from(
            "west",
            checkout(vec![named_port("http", 80), named_port("admin", 81)], 1),
        ),
    ]);
    assert_eq!(
        merged.import.ports,
        [named_port("http", 80), named_port("admin", 81)]
    );
    assert_eq!(ports_of(&merged, "east"), [80]);
    assert_eq!(ports_of(&merged, "west"), [80, 81]);
    assert_eq!(merged.conflicts, []);
}

#[test]
fn of_one_name_with_two_numbers_the_oldest_stands() {
    let merged = merged(&[
        from("west", checkout(vec![named_port("http", 8080)], 1)),
        from("east", checkout(vec![named_port("http", 80)], 2)),
    ]);
    assert_eq!(merged.import.ports, [named_port("http", 80)]);
    assert_eq!(
        ports_of(&merged, "west"),
        Vec::<u16>::new(),
        "west does not expose 80"
    );
    assert_eq!(
        merged.condition().to_string(),
        "Conflict=True: PortConflict (port http 80 Detect of cluster `east` (oldest) stands; \
         1 of 2 clusters differ: `west` has http 8080 Detect)"
    );
}

#[test]
fn a_cluster_that_disagrees_twice_is_one_cluster() {
    let merged = merged(&[
        from("west", checkout(vec![named_port("http", 8080)], 2)),
        from(
            "east",
            checkout(vec![named_port("http", 80), named_port("web", 8080)], 1),
        ),
    ]);
    assert_eq!(
        merged.condition().to_string(),
        "Conflict=True: PortConflict (port http 8080 Detect of cluster `west` (oldest) stands; \
         1 of 2 clusters differ: `east` has http 80 Detect, `east` has web 8080 Detect)"
    );
}

#[test]
fn of_many_the_message_says_who_won_and_how_many_of_those_that_have_the_port_disagree() {
    let merged = merged(&[
        from("west", checkout(vec![named_port("http", 8080)], 1)),
        from("north", checkout(vec![named_port("web", 80)], 2)),
        from("south", checkout(vec![named_port("events", 9092)], 3)),
        from("east", checkout(vec![named_port("http", 80)], 4)),
    ]);
    let condition = merged.condition().to_string();
    assert_eq!(
        condition,
        "Conflict=True: PortConflict (port http 80 Detect of cluster `east` (oldest) stands; \
         2 of 3 clusters differ: `north` has web 80 Detect, `west` has http 8080 Detect)"
    );
    let numbers: Vec<_> = merged.import.ports.iter().map(|port| port.port).collect();
    assert_eq!(numbers, [80, 9092], "neither names nor numbers repeat");
}

#[test]
fn of_one_number_with_two_names_the_oldest_stands_and_the_other_is_not_meant() {
    let merged = merged(&[
        from("east", checkout(vec![named_port("http", 80)], 2)),
        from("west", checkout(vec![named_port("web", 80)], 1)),
    ]);
    assert_eq!(merged.import.ports, [named_port("http", 80)]);
    assert_eq!(ports_of(&merged, "west"), Vec::<u16>::new());
    assert_eq!(merged.conflicts[0].reason, ConflictReason::PortConflict);
}

#[test]
fn a_port_without_a_name_is_the_one_of_its_number() {
    let merged = merged(&[
        from("east", checkout(vec![named_port("http", 80)], 2)),
        from("west", checkout(vec![port(80)], 1)),
    ]);
    assert_eq!(ports_of(&merged, "west"), [80]);
    assert_eq!(merged.conflicts[0].reason, ConflictReason::PortConflict);
}

#[test]
fn an_older_peer_takes_no_port_from_the_callers_of_an_exporting_cluster() {
    let merged = seen_from(
        "east",
        &[
            from("east", checkout(vec![named_port("http", 80)], 1)),
            from(
                "west",
                checkout(vec![named_port("http", 8080), named_port("admin", 81)], 2),
            ),
        ],
    );
    assert_eq!(
        merged.import.ports,
        [named_port("admin", 81), named_port("http", 8080)]
    );
    assert_eq!(merged.conflicts[0].reason, ConflictReason::PortConflict);
    assert_eq!(
        merged.seen.ports,
        [named_port("http", 80), named_port("admin", 81)]
    );
    let exposed = |cluster: &str| {
        let cluster: ClusterId = cluster.parse().expect("valid");
        merged.seen.clusters[&cluster].ports.clone()
    };
    assert_eq!(exposed("east"), [80]);
    assert_eq!(exposed("west"), [81]);
}

#[test]
fn another_app_protocol_is_a_conflict() {
    let http = ServicePort {
        app_protocol: AppProtocol::Http,
        ..port(80)
    };
    let merged = merged(&[
        from("east", checkout(vec![http.clone()], 2)),
        from("west", checkout(vec![port(80)], 1)),
    ]);
    assert_eq!(merged.import.ports, [http]);
    assert_eq!(merged.condition().reason, "PortConflict");
}

#[test]
fn the_oldest_decides_type_and_affinity() {
    let odd = Export {
        import_type: ImportType::Headless,
        session_affinity: SessionAffinity::ClientIP,
        ..checkout(vec![port(80)], 1)
    };
    let merged = merged(&[
        from("a", odd),
        from("b", checkout(vec![port(80)], 3)),
        from("c", checkout(vec![port(80)], 2)),
    ]);
    assert_eq!(merged.import.import_type, ImportType::ClusterSetIP);
    assert_eq!(merged.import.session_affinity, SessionAffinity::None);
    let condition = merged.condition();
    assert_eq!(condition.reason, "TypeConflict,SessionAffinityConflict");
    assert!(
        condition.message.contains(
            "type ClusterSetIP of cluster `b` (oldest) stands; 1 of 3 clusters differ: `a` has Headless"
        ),
        "{}",
        condition.message
    );
}

#[test]
fn equal_ages_are_decided_by_cluster_id() {
    let merged = merged(&[
        from("west", checkout(vec![named_port("http", 81)], 1)),
        from("east", checkout(vec![named_port("http", 80)], 1)),
    ]);
    assert_eq!(merged.import.ports, [named_port("http", 80)]);
}

fn any_port() -> impl Strategy<Value = ServicePort> {
    let name = prop::option::of(prop::sample::select(vec!["a", "b", "c"]));
    let protocol = prop::sample::select(vec![AppProtocol::Detect, AppProtocol::Http]);
    (name, 1u16..4, protocol).prop_map(|(name, port, app_protocol)| ServicePort {
        name: name.map(Arc::from),
        port,
        app_protocol,
    })
}

fn any_contribution() -> impl Strategy<Value = Contribution> {
    let cluster = prop::sample::select(vec!["east", "west", "north", "south"]);
    let ports = prop::collection::vec(any_port(), 0..4);
    (cluster, ports, 0u64..3, any::<bool>(), any::<bool>()).prop_map(
        |(cluster, ports, age, headless, sticky)| {
            let import_type = if headless {
                ImportType::Headless
            } else {
                ImportType::ClusterSetIP
            };
            let session_affinity = if sticky {
                SessionAffinity::ClientIP
            } else {
                SessionAffinity::None
            };
            from(
                cluster,
                Export {
                    import_type,
                    session_affinity,
                    ..checkout(ports, age)
                },
            )
        },
    )
}

fn shuffled() -> impl Strategy<Value = (Vec<Contribution>, Vec<Contribution>)> {
    let contributions = prop::collection::vec(any_contribution(), 1..6);
    contributions.prop_flat_map(|of| (Just(of.clone()), Just(of).prop_shuffle()))
}

proptest! {
    #[test]
    fn order_means_nothing((one, other) in shuffled()) {
        prop_assert_eq!(merged(&one), merged(&other));
    }

    #[test]
    fn saying_it_twice_means_nothing((one, _) in shuffled()) {
        let twice: Vec<_> = one.iter().chain(&one).cloned().collect();
        prop_assert_eq!(merged(&twice), merged(&one));
    }

    #[test]
    fn merging_the_result_changes_nothing((one, _) in shuffled()) {
        let first = merged(&one);
        let export = Export {
            import_type: first.import.import_type,
            session_affinity: first.import.session_affinity,
            ..checkout(first.import.ports.clone(), 9)
        };
        let again = merged(&[from("east", export)]);
        prop_assert_eq!(again.import.ports, first.import.ports);
        prop_assert_eq!(again.conflicts, vec![]);
    }

    #[test]
    fn names_and_numbers_are_distinct((one, _) in shuffled()) {
        let merged = merged(&one);
        let ports = &merged.import.ports;
        let numbers: BTreeSet<_> = ports.iter().map(|p| p.port).collect();
        let names: BTreeSet<_> = ports.iter().map(|p| &p.name).collect();
        prop_assert_eq!((numbers.len(), names.len()), (ports.len(), ports.len()));
    }

    #[test]
    fn own_ports_are_reached_whatever_others_say((one, _) in shuffled(), number in 1u16..4) {
        let own = from("own", checkout(vec![named_port("a", number)], 0));
        let all: Vec<_> = one.iter().cloned().chain([own.clone()]).collect();
        let merged = seen_from("own", &all);
        prop_assert!(merged.seen.ports.contains(&own.export.ports[0]));
        prop_assert_eq!(&merged.seen.clusters[&own.cluster].ports, &[number]);
        if !merged.import.ports.contains(&own.export.ports[0]) {
            prop_assert!(!merged.conflicts.is_empty());
        }
    }

    #[test]
    fn traffic_goes_only_where_a_port_is_exposed((one, _) in shuffled()) {
        let merged = merged(&one);
        for (cluster, capacity) in &merged.import.clusters {
            let exposes = |number: &u16| one.iter().any(|c| c.cluster == *cluster && c.export.ports.iter().any(|p| p.port == *number));
            prop_assert!(capacity.ports.iter().all(exposes));
        }
        // And every port of the import is exposed by someone.
        for port in &merged.import.ports {
            prop_assert!(merged.import.clusters.values().any(|capacity| capacity.ports.contains(&port.port)));
        }
    }
}

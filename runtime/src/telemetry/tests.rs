//! The catalogue is what is registered, and what the page says.

use std::collections::BTreeSet;

use super::{
    catalogue::{ALL, Part, table},
    *,
};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/metrics.md");

#[test]
fn each_part_registers_once() {
    let registry = Registry::new();
    assert!(SidecarMetrics::register(&registry).is_ok());
    assert!(SidecarMetrics::register(&registry).is_err());
}

#[test]
fn each_part_registers_what_the_catalogue_says() {
    for part in [Part::Sidecar, Part::Gateway, Part::Federation] {
        let theirs = ALL.iter().filter(|metric| metric.parts.contains(&part));
        for metric in theirs {
            let registry = Registry::new();
            match part {
                Part::Sidecar => drop(SidecarMetrics::register(&registry).unwrap()),
                Part::Gateway => drop(GatewayMetrics::register(&registry).unwrap()),
                Part::Federation => drop(FederationMetrics::register(&registry).unwrap()),
            }
            // What is there already cannot be added.
            let twice = prometheus::IntCounterVec::new(
                prometheus::Opts::new(metric.name, metric.help),
                metric.labels,
            );
            let twice = registry.register(Box::new(twice.unwrap()));
            assert!(twice.is_err(), "{part:?} has no {}", metric.name);
        }
    }
}

#[test]
fn names_follow_the_rules() {
    let names: BTreeSet<_> = ALL.iter().map(|metric| metric.name).collect();
    assert_eq!(names.len(), ALL.len(), "a name stands for one metric");
    for metric in ALL {
        let counts = metric.kind == catalogue::Kind::Counter;
        assert_eq!(metric.name.ends_with("_total"), counts, "{}", metric.name);
        assert!(metric.name.starts_with("linkspan_"), "{}", metric.name);
        assert!(
            metric.help.ends_with('.') && !metric.help.contains('|'),
            "{}",
            metric.name
        );
        let labels: BTreeSet<_> = metric.labels.iter().collect();
        assert_eq!(labels.len(), metric.labels.len(), "{}", metric.name);
    }
}

#[test]
fn the_page_is_the_catalogue() {
    let page = std::fs::read_to_string(PAGE).unwrap();
    let (before, rest) = page.split_once("<!-- catalogue -->\n").unwrap();
    let (_, after) = rest.split_once("<!-- end -->\n").unwrap();
    let right = format!(
        "{before}<!-- catalogue -->\n{}<!-- end -->\n{after}",
        table()
    );
    if std::env::var_os("LINKSPAN_REGENERATE").is_some() {
        std::fs::write(PAGE, &right).unwrap();
    } else if page != right {
        panic!("{PAGE} is old; run this test with LINKSPAN_REGENERATE=1 and commit what it writes");
    }
}

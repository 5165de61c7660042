use k8s_openapi::api::core::v1::Namespace;

use super::*;

fn namespace(name: &str, version: &str) -> Namespace {
    let mut namespace = Namespace::default();
    namespace.metadata.name = Some(name.into());
    namespace.metadata.resource_version = Some(version.into());
    namespace
}

fn names(mirrored: &Mirrored<Namespace>) -> Vec<&str> {
    mirrored
        .objects
        .keys()
        .map(|(_, name)| name.as_str())
        .collect()
}

fn listed(of: &[&str]) -> Mirrored<Namespace> {
    let mut mirrored = Mirrored::default();
    let objects = of.iter().map(|name| namespace(name, "5")).collect();
    assert!(mirrored.take(Heard::List(objects), "namespaces"));
    mirrored
}

#[test]
fn what_was_not_listed_yet_is_not_complete() {
    let mirrored = Mirrored::<Namespace>::default();
    assert!(!mirrored.complete);
    assert!(listed(&[]).complete);
}

#[test]
fn a_new_list_replaces_the_last() {
    let mut mirrored = listed(&["a", "b"]);
    mirrored.take(Heard::List(vec![namespace("c", "9")]), "namespaces");
    assert_eq!(names(&mirrored), ["c"]);
}

#[test]
fn what_is_older_changes_nothing() {
    let mut mirrored = listed(&["a"]);
    assert!(!mirrored.take(Heard::Put(namespace("a", "4")), "namespaces"));
    let mut newer = namespace("a", "6");
    newer.metadata.uid = Some("another".into());
    assert!(mirrored.take(Heard::Put(newer), "namespaces"));
    assert!(mirrored.take(Heard::Deleted(namespace("a", "7")), "namespaces"));
}

#[test]
fn what_is_newer_and_the_same_is_known_and_no_news() {
    let mut mirrored = listed(&["a"]);
    assert!(!mirrored.take(Heard::Put(namespace("a", "6")), "namespaces"));
    let known = mirrored.objects.values().next().expect("it is there");
    assert_eq!(known.metadata.resource_version.as_deref(), Some("6"));
}

#[test]
fn trouble_is_told_once_with_its_fix_and_ends() {
    let mut mirrored = listed(&["a"]);
    let denied = || {
        let status =
            kube::core::Status::failure("namespaces is forbidden", "Forbidden").with_code(403);
        kube::Error::Api(Box::new(status))
    };
    assert!(mirrored.fail("namespaces", &denied()));
    assert!(!mirrored.fail("namespaces", &denied()));
    let told = mirrored.trouble.as_ref().expect("trouble").to_string();
    assert!(
        told.contains("is forbidden") && told.contains("grant"),
        "{told}"
    );
    assert_eq!(names(&mirrored), ["a"]);
    // The watch is there again, though nothing has changed.
    assert!(mirrored.take(Heard::Watching, "namespaces"));
    assert_eq!(mirrored.trouble, None);
    assert!(!mirrored.take(Heard::Watching, "namespaces"));
}

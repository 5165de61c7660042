//! The reference in `docs/` is held to the code: its examples are read, its fields counted.

use std::collections::BTreeSet;

use crate::shape::{ObjectShape, Shape};
use crate::{
    Object, cluster_link, endpoint_slice, failover_policy, parse_documents, service, service_export,
};

const REFERENCE: &str = include_str!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../docs/reference/resources.md"
));

/// The YAML examples, each with the line before it.
fn examples() -> Vec<String> {
    let blocks = REFERENCE.split("```yaml\n").skip(1);
    blocks
        .map(|rest| rest.split("```").next().unwrap_or_default().to_owned())
        .collect()
}

/// The text of the section with this title.
fn section(title: &str) -> &'static str {
    let start = format!("\n## {title}\n");
    let (_, rest) = REFERENCE
        .split_once(&start)
        .unwrap_or_else(|| panic!("no section {title}"));
    rest.split("\n## ").next().unwrap_or_default()
}

fn fields(shape: &ObjectShape, path: &str, all: &mut BTreeSet<String>) {
    for field in shape.fields {
        let path = if path.is_empty() {
            field.name.into()
        } else {
            format!("{path}.{}", field.name)
        };
        match &field.shape {
            Shape::Object(inner) => fields(inner, &path, all),
            Shape::List(Shape::Object(inner)) => fields(inner, &format!("{path}[]"), all),
            _ => {}
        }
        all.insert(path);
    }
}

/// The first column of a section's tables of fields, of which these are at the top.
fn documented(section: &str, top: &[&str]) -> BTreeSet<String> {
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
    let names = rows
        .filter_map(|row| row.split_once("` |"))
        .map(|(name, _)| name.to_owned());
    let of_top = |name: &String| top.contains(&name.split(['.', '[']).next().unwrap_or_default());
    names.filter(of_top).collect()
}

#[test]
fn every_example_is_good() {
    let kinds: Vec<_> = examples()
        .iter()
        .map(|text| parse_documents("docs/reference/resources.md", text))
        .map(|objects| objects.unwrap_or_else(|problems| panic!("{problems:#?}")))
        .flat_map(|objects| objects.into_iter().map(|object| object.kind()))
        .collect();
    assert_eq!(
        kinds,
        [
            "Service",
            "EndpointSlice",
            "ServiceExport",
            "ClusterLink",
            "FailoverPolicy"
        ]
    );
}

#[test]
fn every_example_has_the_version_that_is_written() {
    for text in examples() {
        let objects = parse_documents("example", &text).expect("checked above");
        let version = objects
            .first()
            .map(Object::api_version)
            .expect("one object");
        assert!(
            text.starts_with(&format!("apiVersion: {version}\n")),
            "{text}"
        );
    }
}

#[test]
fn every_field_is_documented_and_no_other() {
    let kinds = [
        ("Service", &service::SHAPE),
        ("EndpointSlice", &endpoint_slice::SHAPE),
        ("ServiceExport", &service_export::SHAPE),
        ("ClusterLink", &cluster_link::SHAPE),
        ("FailoverPolicy", &failover_policy::SHAPE),
    ];
    let mut metadata = BTreeSet::new();
    for (kind, shape) in kinds {
        let mut all = BTreeSet::new();
        fields(shape, "", &mut all);
        let (of_metadata, of_kind): (BTreeSet<_>, BTreeSet<_>) = all
            .into_iter()
            .filter(|f| f != "status")
            .partition(|f| f.starts_with("metadata"));
        metadata.extend(of_metadata);
        let top: Vec<_> = shape.fields.iter().map(|field| field.name).collect();
        let mut documented = documented(section(kind), &top);
        // Whether the object itself may be left out is said where it may.
        documented.insert("spec".into());
        let of_kind: BTreeSet<_> = of_kind.into_iter().chain(["spec".into()]).collect();
        assert_eq!(documented, of_kind, "{kind}");
    }
    metadata.remove("metadata");
    assert_eq!(documented(section("Metadata"), &["metadata"]), metadata);
}

#[test]
fn messages_look_as_documented() {
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\n\n\n\n\n\n\n\nspec:\n  ports: [{port: 70000}]\n";
    let problem = parse_documents("shop.yaml", service)
        .expect_err("the port is wrong")
        .remove(0);
    assert!(REFERENCE.contains(&format!("    {problem}\n")), "{problem}");
    let link = "apiVersion: linkspan.io/v1alpha1\nkind: ClusterLink\nmetadata: {name: west}\nspec:\n  \
                trustDomain: west.test\n  bundle: '-----BEGIN CERTIFICATE----- -----END CERTIFICATE-----'\n  \
                allowloopback: true\n";
    let problem = parse_documents("west.yaml", link)
        .expect_err("the field is wrong")
        .remove(0);
    assert!(REFERENCE.contains(&format!("    {problem}\n")), "{problem}");
}

//! Who may import whom. The tree is a promise; this keeps it.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
};

/// Crate → the crates of ours that it may depend on directly. `*` means all.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("linkspan-trust", &[]),
    ("linkspan-runtime", &[]),
    ("linkspan-api", &[]),
    ("linkspan-resources", &[]),
    ("linkspan-routing", &["linkspan-trust"]),
    (
        "linkspan-core",
        &["linkspan-trust", "linkspan-routing", "linkspan-resources"],
    ),
    ("linkspan-dataplane", DATA_PATH),
    ("linkspan-gateway", PROXIES),
    ("linkspan-sidecar", PROXIES),
    (
        "linkspan-federation",
        &[
            "linkspan-trust",
            "linkspan-routing",
            "linkspan-runtime",
            "linkspan-dataplane",
            "linkspan-api",
            "linkspan-resources",
            "linkspan-core",
            "linkspan-kube",
        ],
    ),
    ("linkspan-kube", &["linkspan-core", "linkspan-resources"]),
    ("linkspan", &["*"]),
    ("linkspan-tests", &["*"]),
    ("linkspan-bench", &["*"]),
    ("linkspan-clusters", &[]),
];
const DATA_PATH: &[&str] = &[
    "linkspan-trust",
    "linkspan-routing",
    "linkspan-runtime",
    "linkspan-api",
];
const PROXIES: &[&str] = &[
    "linkspan-trust",
    "linkspan-routing",
    "linkspan-runtime",
    "linkspan-api",
    "linkspan-dataplane",
];

/// Foreign crates that only the named ones of ours may use directly (tests aside).
const RESERVED: &[(&str, &[&str])] = &[
    ("quinn", &["linkspan-gateway", "linkspan-tests"]),
    ("quinn-proto", &["linkspan-gateway"]),
    ("x509-parser", &["linkspan-trust"]),
    (
        "rcgen",
        &["linkspan-trust", "linkspan-tests", "linkspan-clusters"],
    ),
    ("kube", &["linkspan-kube"]),
    ("k8s-openapi", &["linkspan-kube"]),
];

/// Never anywhere in the tree: a second TLS provider, or what is unmaintained.
const BANNED: &[&str] = &[
    "ring",
    "openssl",
    "native-tls",
    "rustls-pemfile",
    "serde_yaml",
    "serde_yml",
];

#[test]
fn crates_import_only_what_the_plan_allows() {
    let direct = direct_dependencies();
    let mut wrong = Vec::new();
    for (name, dependencies) in &direct {
        let allowed = MAY_IMPORT
            .iter()
            .find(|(ours, _)| ours == name)
            .unwrap_or_else(|| panic!("{name} is new: say in MAY_IMPORT what it may import"))
            .1;
        for dependency in dependencies {
            let ours = direct.contains_key(dependency);
            if ours && !allowed.contains(&"*") && !allowed.contains(&dependency.as_str()) {
                wrong.push(format!("{name} imports {dependency}"));
            }
            if let Some((_, users)) = RESERVED.iter().find(|(foreign, _)| foreign == dependency)
                && !users.contains(&name.as_str())
            {
                wrong.push(format!(
                    "{name} imports {dependency}, which is reserved to {users:?}"
                ));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "borders crossed:\n  {}",
        wrong.join("\n  ")
    );
}

#[test]
fn nothing_banned_is_built() {
    let tree = cargo(&[
        "tree",
        "--workspace",
        "--edges",
        "normal,build",
        "--prefix",
        "none",
        "--format",
        "{p}",
    ]);
    let built: BTreeSet<_> = tree
        .lines()
        .filter_map(|line| line.split(' ').next())
        .collect();
    let present: Vec<_> = BANNED
        .iter()
        .filter(|name| built.contains(**name))
        .collect();
    assert!(
        present.is_empty(),
        "in the tree: {present:?}; `cargo tree -i NAME` tells why"
    );
}

/// Direct dependencies of each crate of ours, without those for tests only.
fn direct_dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let metadata: serde_json::Value =
        serde_json::from_str(&cargo(&["metadata", "--format-version", "1", "--no-deps"]))
            .expect("JSON");
    metadata["packages"]
        .as_array()
        .expect("a list of packages")
        .iter()
        .map(|package| (text(&package["name"]), dependencies_of(package)))
        .collect()
}

fn cargo(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO"))
        .args(arguments)
        .args(["--offline", "--manifest-path"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml"))
        .output()
        .expect("cargo runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn dependencies_of(package: &serde_json::Value) -> BTreeSet<String> {
    package["dependencies"]
        .as_array()
        .expect("a list of dependencies")
        .iter()
        .filter(|dependency| dependency["kind"] != "dev")
        .map(|dependency| text(&dependency["name"]))
        .collect()
}

fn text(value: &serde_json::Value) -> String {
    value.as_str().expect("a string").to_owned()
}

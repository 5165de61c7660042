//! `deploy/crds` is held to the types.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::definitions;

/// Set it to write the files anew.
const REGENERATE: &str = "LINKSPAN_REGENERATE";

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../deploy/crds")
}

#[test]
fn the_files_are_what_the_types_say() {
    let folder = folder();
    let made: BTreeMap<_, _> = definitions().expect("YAML").into_iter().collect();
    if std::env::var_os(REGENERATE).is_some() {
        std::fs::create_dir_all(&folder).expect("the folder");
        for (name, text) in &made {
            std::fs::write(folder.join(name), text).expect("the file");
        }
    }
    let found: BTreeMap<_, _> = std::fs::read_dir(&folder)
        .expect("deploy/crds")
        .map(|entry| entry.expect("an entry"))
        .map(|entry| {
            let name = entry.file_name().into_string().expect("UTF-8");
            (name, std::fs::read_to_string(entry.path()).expect("text"))
        })
        .collect();
    let names = |of: &BTreeMap<String, String>| of.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&found), names(&made), "files in deploy/crds");
    for (name, text) in &made {
        assert_eq!(
            &found[name], text,
            "deploy/crds/{name} is stale: {REGENERATE}=1 cargo test -p linkspan-resources crd"
        );
    }
}

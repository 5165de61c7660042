//! The same objects as a kustomize base: a file for each, and one that lists them.

use std::{fs, path::Path};

use anyhow::Context as _;
use serde_json::{Value, json};

use super::manifest::{name, yaml};
use crate::exit::Failure;

const INDEX: &str = "kustomization.yaml";

/// Every file of the base: name and content.
pub(super) fn files(manifests: &[Value]) -> Result<Vec<(String, String)>, Failure> {
    let mut files = Vec::new();
    for object in manifests {
        let kind = object["kind"].as_str().unwrap_or_default();
        let file = format!("{}-{}.yaml", kind.to_ascii_lowercase(), name(object));
        files.push((file, yaml(object)?));
    }
    let names: Vec<_> = files.iter().map(|(name, _)| name.clone()).collect();
    let index = json!({
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": names,
    });
    files.push((INDEX.to_owned(), yaml(&index)?));
    Ok(files)
}

/// Writes them into a directory, which is made. Files of others stay.
pub(super) fn write(folder: &Path, manifests: &[Value]) -> Result<(), Failure> {
    let files = files(manifests)?;
    fs::create_dir_all(folder)
        .with_context(|| format!("cannot make directory {}", folder.display()))?;
    for (name, text) in files {
        let path = folder.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

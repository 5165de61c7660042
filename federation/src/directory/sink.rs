//! Statuses beside the resources: one JSON file per object, for people and for tools.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use linkspan_core::{
    Condition, ServiceKey,
    backend::{Applied, Removals, Sink, SinkError},
    plan::Desired,
};
use serde_json::{Value, json};

use crate::state::files::{PRIVATE_FILE, write_atomic};

/// What is wrong with the files themselves.
const PROBLEMS: &str = "problems.json";

/// File name → content.
type Files = BTreeMap<String, Vec<u8>>;

/// The status directory.
pub(crate) struct DirectorySink {
    directory: PathBuf,
    /// What is on disk; `None` until it was looked at.
    on_disk: Option<Files>,
}

impl DirectorySink {
    pub(crate) fn new(directory: PathBuf) -> Self {
        Self {
            directory,
            on_disk: None,
        }
    }
}

impl Sink for DirectorySink {
    async fn apply(&mut self, desired: &Desired, removals: Removals) -> Result<Applied, SinkError> {
        let mut wanted = statuses(desired);
        if removals == Removals::Held {
            self.hold_imports(&mut wanted).await?;
        }
        if self.on_disk.as_ref() == Some(&wanted) {
            return Ok(Applied::default());
        }
        let directory = self.directory.clone();
        let known = self.on_disk.take();
        let written = tokio::task::spawn_blocking(move || update(&directory, known, wanted));
        let result = written
            .await
            .map_err(|error| self.failed(io::Error::other(error)))?;
        let (written, files) = result.map_err(|error| self.failed(error))?;
        self.on_disk = Some(files);
        Ok(Applied {
            written,
            refused: Vec::new(),
        })
    }
}

impl DirectorySink {
    /// Statuses of imports that are not known now stay as they are.
    async fn hold_imports(&mut self, wanted: &mut Files) -> Result<(), SinkError> {
        if self.on_disk.is_none() {
            let directory = self.directory.clone();
            let read = tokio::task::spawn_blocking(move || read_all(&directory)).await;
            let read = read.map_err(io::Error::other).and_then(|read| read);
            self.on_disk = Some(read.map_err(|error| self.failed(error))?);
        }
        let imports = self.on_disk.iter().flatten();
        for (name, content) in imports.filter(|(name, _)| name.starts_with("serviceimport.")) {
            wanted
                .entry(name.clone())
                .or_insert_with(|| content.clone());
        }
        Ok(())
    }

    fn failed(&self, source: io::Error) -> SinkError {
        SinkError {
            what: self.directory.display().to_string(),
            source: source.into(),
        }
    }
}

/// Makes the directory hold `wanted` and nothing else; returns how many files it wrote.
fn update(directory: &Path, known: Option<Files>, wanted: Files) -> io::Result<(usize, Files)> {
    let known = match known {
        Some(known) => known,
        None => read_all(directory)?,
    };
    let mut written = 0;
    for (name, content) in &wanted {
        if known.get(name) != Some(content) {
            write_atomic(&directory.join(name), content, PRIVATE_FILE)?;
            written += 1;
        }
    }
    for name in known.keys().filter(|name| !wanted.contains_key(*name)) {
        match fs::remove_file(directory.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok((written, wanted))
}

fn read_all(directory: &Path) -> io::Result<Files> {
    let mut files = Files::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type()?.is_file() {
            files.insert(name, fs::read(entry.path())?);
        }
    }
    Ok(files)
}

fn statuses(desired: &Desired) -> Files {
    let mut files = Files::new();
    let exports = desired
        .export_conditions
        .iter()
        .map(|of| ("serviceexport", of));
    let imports = desired
        .import_conditions
        .iter()
        .map(|of| ("serviceimport", of));
    let policies = desired
        .policy_conditions
        .iter()
        .map(|of| ("failoverpolicy", of));
    for (kind, (key, conditions)) in exports.chain(imports).chain(policies) {
        files.insert(
            file_name(kind, key),
            object_status(desired, kind, key, conditions),
        );
    }
    if !desired.problems.is_empty() {
        files.insert(
            PROBLEMS.into(),
            pretty(&json!({ "problems": desired.problems })),
        );
    }
    files
}

/// Dots cannot occur in either name, so no two objects share a file.
fn file_name(kind: &str, key: &ServiceKey) -> String {
    format!("{kind}.{}.{}.json", key.namespace, key.name)
}

fn object_status(
    desired: &Desired,
    kind: &str,
    key: &ServiceKey,
    conditions: &[Condition],
) -> Vec<u8> {
    let conditions: Vec<_> = conditions.iter().map(condition).collect();
    let mut status = json!({
        "namespace": key.namespace.to_string(),
        "name": key.name.to_string(),
        "status": { "conditions": conditions },
    });
    if kind == "serviceimport"
        && let Some(import) = desired.imports.get(key)
    {
        let clusters = import
            .clusters
            .keys()
            .map(|id| json!({ "cluster": id.to_string() }));
        status["status"]["clusters"] = clusters.collect();
    }
    pretty(&status)
}

fn condition(condition: &Condition) -> Value {
    json!({
        "type": condition.kind,
        "status": condition.status.to_string(),
        "reason": condition.reason,
        "message": condition.message,
    })
}

fn pretty(value: &Value) -> Vec<u8> {
    format!("{value:#}\n").into_bytes()
}

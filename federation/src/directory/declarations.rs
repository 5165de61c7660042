//! What the operator declares through federation: one more file in the resources directory.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use linkspan_core::{
    ServiceKey,
    backend::{Declarations, DeclareError, Written},
};
use linkspan_resources::{Object, parse_documents};

use super::scan::resource_files;
use crate::state::files::{SHARED_FILE, write_atomic};

/// A directory of YAML files to which declarations are added.
#[derive(Clone, Debug)]
pub(crate) struct DirectoryDeclarations {
    directory: PathBuf,
}

impl DirectoryDeclarations {
    pub(crate) fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    async fn on_disk<T: Send + 'static>(
        &self,
        what: String,
        work: impl FnOnce(&Path) -> Result<T, DeclareError> + Send + 'static,
    ) -> Result<T, DeclareError> {
        let directory = self.directory.clone();
        tokio::task::spawn_blocking(move || work(&directory))
            .await
            .unwrap_or_else(|error| Err(DeclareError::failed(what, io::Error::other(error))))
    }
}

impl Declarations for DirectoryDeclarations {
    async fn declare(&self, object: Object) -> Result<Written, DeclareError> {
        let what = self.directory.display().to_string();
        self.on_disk(what, move |directory| write(directory, &object))
            .await
    }

    async fn withdraw(
        &self,
        kind: &'static str,
        key: &ServiceKey,
    ) -> Result<Written, DeclareError> {
        let (what, key) = (self.directory.display().to_string(), key.clone());
        self.on_disk(what, move |directory| remove(directory, kind, &key))
            .await
    }
}

/// Where an object is declared.
enum Found {
    /// In a file that holds nothing else.
    Alone(PathBuf),
    /// In a file with other objects.
    Among(PathBuf),
}

fn write(directory: &Path, object: &Object) -> Result<Written, DeclareError> {
    let failed = |error| DeclareError::failed(directory.display(), error);
    let metadata = object.metadata();
    let (namespace, name) = (metadata.namespace(), metadata.name.as_str());
    let path = free_path(directory, object.kind(), namespace, name);
    match find(directory, object.kind(), namespace, name).map_err(failed)? {
        None => {}
        Some(Found::Alone(found)) if found == path => {}
        Some(Found::Alone(found) | Found::Among(found)) => {
            return Err(DeclareError::elsewhere(
                object.kind(),
                namespace,
                name,
                found.display(),
            ));
        }
    }
    let yaml = object
        .to_yaml()
        .map_err(|error| failed(io::Error::other(error)))?;
    let changed = fs::read_to_string(&path).ok().as_deref() != Some(yaml.as_str());
    if changed {
        write_atomic(&path, yaml.as_bytes(), SHARED_FILE).map_err(failed)?;
    }
    Ok(Written {
        changed,
        place: path.display().to_string(),
    })
}

fn remove(directory: &Path, kind: &'static str, key: &ServiceKey) -> Result<Written, DeclareError> {
    let failed = |error| DeclareError::failed(directory.display(), error);
    let (namespace, name) = (key.namespace.as_str(), key.name.as_str());
    match find(directory, kind, namespace, name).map_err(failed)? {
        None => Ok(Written {
            changed: false,
            place: directory.display().to_string(),
        }),
        Some(Found::Alone(path)) => {
            fs::remove_file(&path).map_err(failed)?;
            Ok(Written {
                changed: true,
                place: path.display().to_string(),
            })
        }
        Some(Found::Among(path)) => Err(DeclareError::elsewhere(
            kind,
            namespace,
            name,
            path.display(),
        )),
    }
}

/// The file that declares an object; files that cannot be read declare nothing.
fn find(directory: &Path, kind: &str, namespace: &str, name: &str) -> io::Result<Option<Found>> {
    for path in resource_files(directory)? {
        let Ok(text) = fs::read_to_string(&path) else {
            continue;
        };
        let objects = parse_documents("", &text).unwrap_or_default();
        if objects
            .iter()
            .any(|object| is(object, kind, namespace, name))
        {
            let alone = objects.len() == 1;
            return Ok(Some(if alone {
                Found::Alone(path)
            } else {
                Found::Among(path)
            }));
        }
    }
    Ok(None)
}

fn is(object: &Object, kind: &str, namespace: &str, name: &str) -> bool {
    let metadata = object.metadata();
    object.kind() == kind && metadata.namespace() == namespace && metadata.name == name
}

/// Joined by dashes, the names of two objects can be the same: then dots tell them apart.
fn free_path(directory: &Path, kind: &str, namespace: &str, name: &str) -> PathBuf {
    let kind = kind.to_ascii_lowercase();
    let usual = directory.join(format!("{kind}-{namespace}-{name}.yaml"));
    let taken = fs::read_to_string(&usual).is_ok_and(|text| {
        let objects = parse_documents("", &text).unwrap_or_default();
        let ours = |of: &Object| is(of, of.kind(), namespace, name);
        !matches!(objects.as_slice(), [only] if ours(only))
    });
    if taken {
        return directory.join(format!("{kind}.{namespace}.{name}.yaml"));
    }
    usual
}

#[cfg(test)]
mod tests {
    use linkspan_resources::ServiceExport;

    use super::*;

    fn export(namespace: &str, name: &str) -> Object {
        Object::ServiceExport(ServiceExport::of(namespace, name))
    }

    #[test]
    fn two_services_never_share_a_file() {
        let directory = tempfile::tempdir().unwrap();
        let first = write(directory.path(), &export("a-b", "c")).unwrap();
        let second = write(directory.path(), &export("a", "b-c")).unwrap();
        assert!(
            first.place.ends_with("/serviceexport-a-b-c.yaml"),
            "{first:?}"
        );
        assert_ne!(first.place, second.place);
        let again = write(directory.path(), &export("a-b", "c")).unwrap();
        assert_eq!((again.changed, again.place), (false, first.place));
    }

    #[test]
    fn what_others_wrote_is_replaced_by_nobody_and_removed_only_alone() {
        let directory = tempfile::tempdir().unwrap();
        let mine = directory.path().join("mine.yaml");
        let one = export("shop", "checkout").to_yaml().unwrap();
        let two = export("shop", "cart").to_yaml().unwrap();
        fs::write(&mine, format!("{one}\n---\n{two}")).unwrap();
        let key = ServiceKey::new("shop", "checkout").unwrap();
        for refused in [
            write(directory.path(), &export("shop", "checkout")),
            remove(directory.path(), "ServiceExport", &key),
        ] {
            let error = refused.unwrap_err().to_string();
            assert!(error.contains("mine.yaml"), "{error}");
        }
        fs::write(&mine, one).unwrap();
        let removed = remove(directory.path(), "ServiceExport", &key).unwrap();
        assert!(removed.changed && !mine.exists());
        assert!(
            !remove(directory.path(), "ServiceExport", &key)
                .unwrap()
                .changed
        );
    }
}

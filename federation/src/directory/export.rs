//! Declares an export on behalf of the operator: one more file in the resources directory.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use linkspan_core::ServiceKey;
use linkspan_resources::{Object, ServiceExport, Timestamp, parse_documents};

use crate::state::files::{SHARED_FILE, write_atomic};

/// Writes the declaration and returns where it is. Blocks on the disk.
pub(crate) fn write(directory: &Path, key: &ServiceKey, now: SystemTime) -> io::Result<PathBuf> {
    let path = free_path(directory, key);
    let yaml = declaration(key, now).to_yaml().map_err(io::Error::other)?;
    write_atomic(&path, yaml.as_bytes(), SHARED_FILE)?;
    Ok(path)
}

/// Where an export is declared, if that is in the place where [`write`] puts it.
pub(crate) fn existing(directory: &Path, key: &ServiceKey) -> Option<PathBuf> {
    let path = free_path(directory, key);
    declares(&path, key).then_some(path)
}

fn declaration(key: &ServiceKey, now: SystemTime) -> Object {
    let mut export = ServiceExport::of(key.namespace.as_str(), key.name.as_str());
    export.metadata.creation_timestamp = Some(Timestamp::from(now));
    Object::ServiceExport(export)
}

/// Joined by dashes, the names of two services can be the same: then dots tell them apart.
fn free_path(directory: &Path, key: &ServiceKey) -> PathBuf {
    let usual = directory.join(format!("serviceexport-{}-{}.yaml", key.namespace, key.name));
    if usual.exists() && !declares(&usual, key) {
        return directory.join(format!("serviceexport.{}.{}.yaml", key.namespace, key.name));
    }
    usual
}

/// Whether a file is nothing but this export, so that it may be replaced.
fn declares(path: &Path, key: &ServiceKey) -> bool {
    let Ok(text) = fs::read_to_string(path) else {
        return false;
    };
    match parse_documents("", &text).as_deref() {
        Ok([Object::ServiceExport(export)]) => {
            export.metadata.namespace() == key.namespace.as_str()
                && export.metadata.name == key.name.as_str()
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_services_never_share_a_file() {
        let directory = tempfile::tempdir().unwrap();
        let one = ServiceKey::new("a-b", "c").unwrap();
        let other = ServiceKey::new("a", "b-c").unwrap();
        let first = write(directory.path(), &one, SystemTime::now()).unwrap();
        let second = write(directory.path(), &other, SystemTime::now()).unwrap();
        assert_eq!(first.file_name().unwrap(), "serviceexport-a-b-c.yaml");
        assert_ne!(first, second);
        assert!(declares(&first, &one) && declares(&second, &other));
        assert_eq!(
            write(directory.path(), &one, SystemTime::now()).unwrap(),
            first
        );
    }
}

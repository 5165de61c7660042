//! ClusterLinks that we write and remove ourselves, as files among the others.

use std::{
    fs, io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
};

use linkspan_core::{
    ClusterId, TrustDomain,
    backend::{LinkHome, SinkError},
};
use linkspan_resources::{ClusterLink, Object, parse_documents};
use linkspan_trust::Bundle;
use tokio::sync::Notify;

use super::scan::resource_files;
use crate::state::files::{SHARED_FILE, write_atomic};

type Written<'a, T> = Pin<Box<dyn Future<Output = Result<T, SinkError>> + Send + 'a>>;

/// Which link: another one may have the peer's name.
type Name = (ClusterId, TrustDomain);

/// The resources directory, as the home of links.
pub(crate) struct DirectoryLinks {
    directory: PathBuf,
    /// Makes the directory be read at once.
    nudge: Arc<Notify>,
}

impl DirectoryLinks {
    pub(crate) fn new(directory: PathBuf, nudge: Arc<Notify>) -> Self {
        Self { directory, nudge }
    }

    /// Blocking work on the directory, then a look at what came of it.
    async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
    ) -> Result<T, SinkError> {
        let directory = self.directory.clone();
        let done = tokio::task::spawn_blocking(move || work(&directory)).await;
        self.nudge.notify_one();
        done.map_err(io::Error::other)
            .and_then(|done| done)
            .map_err(|source| SinkError {
                what: self.directory.display().to_string(),
                source: source.into(),
            })
    }
}

impl LinkHome for DirectoryLinks {
    fn declare<'a>(&'a self, link: &'a ClusterLink) -> Written<'a, String> {
        let link = link.clone();
        Box::pin(self.work(move |directory| declare(directory, link)))
    }

    fn remove<'a>(&'a self, peer: &'a ClusterId, domain: &'a TrustDomain) -> Written<'a, ()> {
        let link = (peer.clone(), domain.clone());
        Box::pin(self.work(move |directory| remove(directory, &link)))
    }
}

fn declare(directory: &Path, link: ClusterLink) -> io::Result<String> {
    let path = directory.join(format!("clusterlink-{}.yaml", link.metadata.name));
    if let Ok(text) = fs::read_to_string(&path)
        && !matches!(objects(&text).as_deref(), Some([object]) if is_same_peer(object, &link))
    {
        return Err(io::Error::other(format!(
            "`{}` is there and holds something else, or a link to another peer; rename it, or \
             remove that link first",
            path.display()
        )));
    }
    let yaml = Object::ClusterLink(link)
        .to_yaml()
        .map_err(io::Error::other)?;
    write_atomic(&path, yaml.as_bytes(), SHARED_FILE)?;
    Ok(path.display().to_string())
}

/// Takes the link out of each file that declares it. If none does, one that cannot be read may be
/// the one whose last good state declares it.
fn remove(directory: &Path, link: &Name) -> io::Result<()> {
    let (mut found, mut unreadable) = (false, None);
    for path in resource_files(directory)? {
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let Some(all) = objects(&text) else {
            unreadable = Some(path);
            continue;
        };
        let rest: Vec<_> = all.iter().filter(|object| !is_link(object, link)).collect();
        found |= rest.len() < all.len();
        match rest.len() {
            left if left == all.len() => {}
            0 => fs::remove_file(&path)?,
            _ => write_atomic(
                &path,
                without(&path, &text, link, &rest)?.as_bytes(),
                SHARED_FILE,
            )?,
        }
    }
    match unreadable {
        Some(path) if !found => Err(io::Error::other(format!(
            "no file declares it, but `{}` cannot be read as resources; mend it",
            path.display()
        ))),
        _ => Ok(()),
    }
}

/// The file's text without that document, everything else as its author wrote it.
fn without(path: &Path, text: &str, link: &Name, rest: &[&Object]) -> io::Result<String> {
    let mut documents = vec![String::new()];
    for line in text.split_inclusive('\n') {
        if line.starts_with("---") {
            documents.push(String::new());
        }
        if let Some(last) = documents.last_mut() {
            last.push_str(line);
        }
    }
    let declares = |document: &String| {
        objects(document).is_some_and(|of| of.iter().any(|object| is_link(object, link)))
    };
    documents.retain(|document| !declares(document));
    let kept = documents.concat();
    if objects(&kept).is_some_and(|kept| kept.iter().eq(rest.iter().copied())) {
        return Ok(kept);
    }
    Err(io::Error::other(format!(
        "the ClusterLink `{}` cannot be taken out of `{}` safely; remove it there by hand",
        link.0,
        path.display()
    )))
}

fn objects(text: &str) -> Option<Vec<Object>> {
    parse_documents("", text).ok()
}

fn is_link(object: &Object, (peer, domain): &Name) -> bool {
    matches!(object, Object::ClusterLink(link)
        if link.metadata.name == peer.as_str() && link.spec.trust_domain == domain.as_str())
}

/// Whether it declares a link to the very peer: another with its name must not take its place.
fn is_same_peer(object: &Object, link: &ClusterLink) -> bool {
    let roots = |of: &ClusterLink| Bundle::from_pem(0, of.spec.bundle.as_bytes()).ok();
    matches!(object, Object::ClusterLink(held)
        if held.metadata.name == link.metadata.name
            && held.spec.trust_domain == link.spec.trust_domain
            && roots(held).is_some_and(|held| roots(link) == Some(held)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{domain, link_yaml, service_yaml};

    fn west() -> Name {
        ("west".parse().unwrap(), domain("west"))
    }

    fn link() -> ClusterLink {
        match objects(&link_yaml("west")).unwrap().remove(0) {
            Object::ClusterLink(link) => link,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_was_declared_is_removed_whole() {
        let directory = tempfile::tempdir().unwrap();
        let link = link();
        let path = declare(directory.path(), link.clone()).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(objects(&text).unwrap(), [Object::ClusterLink(link.clone())]);
        declare(directory.path(), link).unwrap();
        remove(directory.path(), &(west().0, domain("other"))).unwrap();
        assert!(
            Path::new(&path).exists(),
            "a link of the same name is another"
        );
        remove(directory.path(), &west()).unwrap();
        remove(directory.path(), &west()).unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn other_documents_of_the_file_stay_as_they_were_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("all.yaml");
        let (one, two) = (service_yaml("cart"), service_yaml("checkout"));
        let whole = format!("# ours\n{one}---\n{}--- # more\n{two}", link_yaml("west"));
        fs::write(&path, whole).unwrap();
        fs::write(directory.path().join("north.yaml"), link_yaml("north")).unwrap();
        remove(directory.path(), &west()).unwrap();
        let left = fs::read_to_string(&path).unwrap();
        assert_eq!(left, format!("# ours\n{one}--- # more\n{two}"));
        assert!(directory.path().join("north.yaml").exists());
    }

    #[test]
    fn a_link_to_another_peer_of_that_name_is_not_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let mut link = link();
        declare(directory.path(), link.clone()).unwrap();
        let path = directory.path().join("clusterlink-west.yaml");
        let before = fs::read_to_string(&path).unwrap();
        link.spec.trust_domain = "other.test".into();
        declare(directory.path(), link).unwrap_err();
        let other_roots = self::link();
        declare(directory.path(), other_roots).unwrap_err();
        assert_eq!(fs::read_to_string(&path).unwrap(), before);
    }

    #[test]
    fn a_file_that_cannot_be_read_may_hold_the_link() {
        let directory = tempfile::tempdir().unwrap();
        let broken = directory.path().join("broken.yaml");
        fs::write(&broken, format!("{}  - : [", link_yaml("west"))).unwrap();
        let error = remove(directory.path(), &west()).unwrap_err();
        assert!(error.to_string().contains("broken.yaml"), "{error}");
        // One that is found elsewhere is removed nevertheless.
        let path = declare(directory.path(), link()).unwrap();
        remove(directory.path(), &west()).unwrap();
        assert!(!Path::new(&path).exists() && broken.exists());
    }

    #[test]
    fn somebody_elses_file_is_not_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("clusterlink-west.yaml");
        fs::write(&path, service_yaml("cart")).unwrap();
        declare(directory.path(), link()).unwrap_err();
        assert_eq!(fs::read_to_string(&path).unwrap(), service_yaml("cart"));
    }
}

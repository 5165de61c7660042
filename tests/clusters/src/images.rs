//! Images: there is no registry, so every image is an archive that is loaded.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use rustix::process::Pid;

use crate::{Programs, home::fnv, node::enter, programs::run};

/// The image of `kubernetes/pod`: it holds pods' namespaces open, and serves and calls in tests.
/// Pods that use it need `imagePullPolicy: Never`.
pub const POD: &str = "localhost/linkspan-clusters/pod:v1";
/// CoreDNS.
pub(crate) const DNS: &str = "localhost/linkspan-clusters/coredns:v1";

/// What every node needs: the image's name, the program in it and its default arguments.
const OWN: &[(&str, &str, &[&str])] = &[(POD, "pod", &["pause"]), (DNS, "coredns", &[])];

/// What makes images. Not a part of what names the programs: building those takes far longer.
const SCRIPT: &str = include_str!("../../../deploy/image");

/// The archives of the images that every node needs.
pub(crate) fn archives(programs: &Programs) -> impl Iterator<Item = PathBuf> {
    let archive = |(_, program, _): &(&str, &str, &[&str])| archive(programs.folder(), program);
    OWN.iter().map(archive)
}

fn archive(folder: &Path, program: &str) -> PathBuf {
    let version = fnv([SCRIPT.as_bytes()]);
    folder.join(format!("{program}-{version:016x}.tar"))
}

/// Makes those archives that are not there yet, beside the programs.
pub(crate) fn pack(folder: &Path) -> Result<()> {
    for (image, program, arguments) in OWN {
        let archive = archive(folder, program);
        if archive.exists() {
            continue;
        }
        // Renamed when whole, as others may want the same.
        let unfinished = archive.with_extension(std::process::id().to_string());
        run(Command::new("bash")
            .args(["-c", SCRIPT, "deploy/image"])
            .arg(&unfinished)
            .arg(image)
            .arg(folder.join(program))
            .args(*arguments))?;
        fs::rename(&unfinished, &archive)
            .with_context(|| format!("naming {}", archive.display()))?;
    }
    Ok(())
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

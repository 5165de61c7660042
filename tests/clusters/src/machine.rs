//! What the machine must have, and what a set of clusters has on it outside of its folder: a
//! bridge and cgroups.

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    Home,
    programs::{found, run},
};

/// What nodes are made with, and the Debian packages that have it.
const TOOLS: &[(&str, &str)] = &[
    ("containerd", "containerd"),
    ("ctr", "containerd"),
    ("runc", "runc"),
    ("nft", "nftables"),
    ("ip", "iproute2"),
    ("iptables", "iptables"),
    ("conntrack", "conntrack"),
    ("nsenter", "util-linux"),
    ("unshare", "util-linux"),
];

/// Where distributions put the CNI plugins.
const PLUGINS: &[&str] = &["/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni"];

/// What a node replaces by folders of its own.
const HIDDEN: &[&str] = &["/run", "/var/lib", "/var/log"];

/// The kernel takes a moment to notice that a cgroup has become empty.
const EMPTYING: Duration = Duration::from_secs(20);

/// What this machine lacks for clusters with nodes, in one line that says how to get it.
#[must_use]
pub fn missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("root's rights are missing: run this as root".to_owned());
    }
    let mut tools: Vec<_> = TOOLS
        .iter()
        .filter(|(tool, _)| !found(tool))
        .copied()
        .collect();
    if cni_plugins().is_none() {
        tools.push(("the CNI plugins", "containernetworking-plugins"));
    }
    let mut packages: Vec<_> = tools.iter().map(|(_, package)| *package).collect();
    packages.sort_unstable();
    packages.dedup();
    let tools: Vec<_> = tools.iter().map(|(tool, _)| *tool).collect();
    if !tools.is_empty() {
        return Some(format!(
            "missing on this machine: {}; on Debian or Ubuntu: apt-get install --no-install-recommends {}",
            tools.join(", "),
            packages.join(" ")
        ));
    }
    crate::programs::missing()
}

/// The folder of the CNI plugins.
pub(crate) fn cni_plugins() -> Option<&'static Path> {
    let folders = PLUGINS.iter().map(Path::new);
    folders
        .into_iter()
        .find(|folder| folder.join("ptp").is_file())
}

/// Refuses folders that a node could not see.
///
/// # Errors
/// If the clusters' folder or the cache of programs is such a one.
pub fn visible(home: &Home) -> Result<()> {
    for path in [home.path(), &crate::programs::cache()?] {
        if let Some(hidden) = HIDDEN.iter().find(|hidden| path.starts_with(hidden)) {
            bail!(
                "{} is below {hidden}, which nodes replace by their own; choose another folder (--dir for the clusters, XDG_CACHE_HOME for the programs)",
                path.display()
            );
        }
    }
    Ok(())
}

/// The network that the nodes share; this machine has its first address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Network {
    third: u8,
}

impl Network {
    /// One that nothing here routes to yet.
    pub(crate) fn choose(home: &Home) -> Result<Self> {
        let routes = run(Command::new("ip").args(["-4", "route", "show", "table", "all"]))?;
        let first = home.loopback().octets()[3];
        let network = (0..=255)
            .map(|step: u8| Self {
                third: first.wrapping_add(step),
            })
            .find(|network| {
                !routes.contains(&format!(" 172.30.{}.", network.third))
                    && !routes.contains(&format!("172.30.{}.0/", network.third))
            });
        network.context("every network of 172.30.0.0/16 is in use on this machine")
    }

    /// The address of this machine on the bridge.
    pub(crate) fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::new(172, 30, self.third, 1)
    }

    /// The address of the cluster with this number.
    pub(crate) fn node(self, number: u8) -> Ipv4Addr {
        Ipv4Addr::new(172, 30, self.third, 2 + number)
    }

    /// Makes the bridge.
    pub(crate) fn build(self, home: &Home) -> Result<()> {
        let bridge = bridge(home);
        ip(&["link", "add", &bridge, "type", "bridge"])?;
        let address = format!("{}/24", self.gateway());
        ip(&["address", "add", &address, "dev", &bridge])?;
        ip(&["link", "set", &bridge, "up"])
    }
}

/// The bridge's name, with which the names of its ports begin.
pub(crate) fn bridge(home: &Home) -> String {
    format!("ls-{}", home.tag())
}

pub(crate) fn ip(arguments: &[&str]) -> Result<()> {
    run(Command::new("ip").args(arguments)).map(|_| ())
}

/// The cgroup below which a node's pods are, in every hierarchy.
pub(crate) fn cgroup(home: &Home, cluster: &str) -> String {
    format!("linkspan-{}-{cluster}", home.tag())
}

/// Makes a node's cgroup in every hierarchy: the kubelet wants it to be there.
pub(crate) fn make_cgroups(home: &Home, cluster: &str) -> Result<()> {
    for hierarchy in hierarchies()? {
        let folder = hierarchy.join(cgroup(home, cluster));
        if let Err(error) = fs::create_dir(&folder)
            && error.kind() != std::io::ErrorKind::AlreadyExists
        {
            return Err(error).with_context(|| format!("making the cgroup {}", folder.display()));
        }
        // In version 1 a new cpuset is empty, and no process can be in it.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if let Ok(all) = fs::read(hierarchy.join(file)) {
                fs::write(folder.join(file), all)
                    .with_context(|| format!("filling {file} of {}", folder.display()))?;
            }
        }
    }
    Ok(())
}

/// The folders below which this machine has cgroups, of either version.
fn hierarchies() -> Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("reading the mounts")?;
    let mut found: Vec<_> = mounts
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ').skip(1);
            let folder = words.next()?;
            matches!(words.next()?, "cgroup" | "cgroup2").then(|| PathBuf::from(folder))
        })
        .collect();
    found.sort();
    found.dedup();
    Ok(found)
}

/// What this set of clusters still has on the machine outside of its folder: interfaces, cgroups.
///
/// # Errors
/// If the machine cannot be asked.
pub fn remains(home: &Home) -> Result<Vec<PathBuf>> {
    let mut all = beginning("/sys/class/net".as_ref(), &bridge(home))?;
    all.extend(cgroups(home)?);
    Ok(all)
}

/// Removes the bridge, its ports and the cgroups; fine if there are none.
pub(crate) fn clean(home: &Home) -> Result<()> {
    for link in beginning("/sys/class/net".as_ref(), &bridge(home))? {
        let name = link
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        // A port may have gone with its node's namespace in this very moment.
        if let Err(error) = ip(&["link", "delete", &name])
            && link.exists()
        {
            return Err(error);
        }
    }
    cgroups(home)?
        .iter()
        .try_for_each(|folder| remove_cgroup(folder))
}

fn cgroups(home: &Home) -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for hierarchy in hierarchies()? {
        all.extend(beginning(&hierarchy, &cgroup(home, ""))?);
    }
    Ok(all)
}

fn beginning(folder: &Path, prefix: &str) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    let mut all = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            all.push(entry.path());
        }
    }
    Ok(all)
}

/// The innermost first; the files in them cannot be removed, and need not be.
fn remove_cgroup(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_cgroup(&entry.path())?;
        }
    }
    let deadline = Instant::now() + EMPTYING;
    while let Err(error) = fs::remove_dir(folder) {
        if error.kind() == std::io::ErrorKind::NotFound {
            break;
        }
        if Instant::now() > deadline {
            bail!("the cgroup {} cannot be removed: {error}", folder.display());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

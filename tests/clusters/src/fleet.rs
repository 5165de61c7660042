//! Clusters with nodes: bringing them up together, and what can be done with them then.

use std::{fs, thread};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use rustix::process::Pid;

use crate::{
    Cluster, Home, Place, Programs,
    control_plane::{self, Kind},
    images,
    kubectl::Kubectl,
    machine::{self, Network},
    node,
    process::Program,
};

/// More do not fit into one machine's memory, and nothing needs them.
const MOST: usize = 8;

/// How long Kubernetes may take for what it does by itself, on a busy machine.
const PATIENCE: &str = "--timeout=300s";

/// A set of clusters that is up.
#[derive(Debug)]
pub struct Fleet<'a> {
    home: &'a Home,
    programs: &'a Programs,
}

/// Brings clusters up, all at once, and waits until each has a ready node and DNS.
///
/// # Errors
/// If the machine lacks something, clusters run in that folder already, or one does not come up;
/// what was made then stays to be looked at, until [`crate::down`].
pub fn up<'a>(home: &'a Home, programs: &'a Programs, places: &[Place]) -> Result<Fleet<'a>> {
    if let Some(missing) = machine::missing() {
        bail!(missing);
    }
    check_names(places)?;
    machine::visible(home)?;
    ensure!(
        home.running()?.is_empty() && machine::remains(home)?.is_empty(),
        "clusters, or the remains of some, are in {} already; remove them with `clusters down --dir {0}`",
        home.path().display()
    );
    home.create()?;
    let network = Network::choose(home)?;
    network.build(home)?;
    let fleet = Fleet { home, programs };
    let fleet_ref = &fleet;
    thread::scope(|scope| {
        let starts: Vec<_> = (0..)
            .zip(places)
            .map(|(number, place)| {
                let cluster = Cluster {
                    name: place.name.clone(),
                    region: place.region.clone(),
                    zone: place.zone.clone(),
                    address: network.node(number),
                    port: 6443,
                };
                scope.spawn(move || {
                    fleet_ref
                        .create(&cluster, network)
                        .with_context(|| fleet_ref.failure(&cluster))
                })
            })
            .collect();
        starts
            .into_iter()
            .try_for_each(|start| start.join().map_err(|_| anyhow!("a thread panicked"))?)
    })?;
    Ok(fleet)
}

fn check_names(places: &[Place]) -> Result<()> {
    ensure!(
        (1..=MOST).contains(&places.len()),
        "between one and {MOST} clusters can be brought up, not {}",
        places.len()
    );
    for (number, place) in places.iter().enumerate() {
        let again = places[..number]
            .iter()
            .any(|other| other.name == place.name);
        ensure!(!again, "two clusters are named `{}`", place.name);
    }
    Ok(())
}

impl<'a> Fleet<'a> {
    /// The clusters that are up in this folder.
    ///
    /// # Errors
    /// If none are.
    pub fn open(home: &'a Home, programs: &'a Programs) -> Result<Self> {
        let fleet = Self { home, programs };
        ensure!(
            !fleet.clusters()?.is_empty(),
            "no clusters are in {}; bring some up with `clusters up --dir {0}`",
            home.path().display()
        );
        Ok(fleet)
    }

    fn create(&self, cluster: &Cluster, network: Network) -> Result<()> {
        let home = self.home;
        control_plane::prepare(home, cluster)?;
        let record = home.cluster(&cluster.name).join("cluster.json");
        fs::write(&record, serde_json::to_vec_pretty(cluster)?)
            .with_context(|| format!("writing {}", record.display()))?;
        let node = node::create(home, cluster, network, self.programs)?;
        control_plane::launch(home, cluster, self.programs, Kind::Full, Some(node))?;
        node::start_containerd(home, cluster, self.programs, node)?;
        control_plane::wait_ready(home, cluster, self.programs)?;
        let controllers = control_plane::controllers(&home.cluster(&cluster.name), self.programs);
        let agents = node::agents(home, cluster, self.programs);
        for program in controllers.iter().chain(&agents) {
            home.start(&cluster.name, program, Some(node))?;
        }
        self.settle(&cluster.name)
    }

    /// What could not be brought up, and which of its programs have ended.
    fn failure(&self, cluster: &Cluster) -> String {
        let programs = self.programs(cluster).unwrap_or_default().into_iter();
        let ended = programs.filter(|(_, pid)| pid.is_none());
        let ended: Vec<_> = ended.map(|(program, _)| program.name).collect();
        let name = &cluster.name;
        match &*ended {
            [] => format!("bringing up cluster `{name}`"),
            ended => format!(
                "bringing up cluster `{name}`, in which these do not run: {}",
                ended.join(", ")
            ),
        }
    }

    /// Waits for the node and for DNS.
    fn settle(&self, cluster: &str) -> Result<()> {
        let kubectl = self.kubectl(cluster);
        kubectl.apply(include_str!("coredns.yaml"))?;
        let node = format!("node/{cluster}");
        kubectl.run(&["wait", "--for=create", &node, PATIENCE])?;
        kubectl.run(&["wait", "--for=condition=Ready", &node, PATIENCE])?;
        let dns = [
            "rollout",
            "status",
            "deployment/coredns",
            "--namespace=kube-system",
        ];
        kubectl.run(&[&dns[..], &[PATIENCE]].concat())?;
        Ok(())
    }

    /// What is up, by name.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn clusters(&self) -> Result<Vec<Cluster>> {
        let folder = self.home.path();
        let entries = match fs::read_dir(folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.with_context(|| format!("reading {}", folder.display()))?,
        };
        let mut all = Vec::new();
        for entry in entries {
            let record = entry?.path().join("cluster.json");
            if let Ok(bytes) = fs::read(&record) {
                let cluster: Cluster = serde_json::from_slice(&bytes)
                    .with_context(|| format!("reading {}", record.display()))?;
                all.push(cluster);
            }
        }
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }

    /// The cluster of this name.
    ///
    /// # Errors
    /// If there is none.
    pub fn cluster(&self, name: &str) -> Result<Cluster> {
        let clusters = self.clusters()?;
        let names: Vec<_> = clusters
            .iter()
            .map(|cluster| cluster.name.clone())
            .collect();
        let found = clusters.into_iter().find(|cluster| cluster.name == name);
        found.with_context(|| {
            format!(
                "no cluster is named `{name}`; there are: {}",
                names.join(", ")
            )
        })
    }

    /// The programs of a cluster, and the process of each that runs.
    ///
    /// # Errors
    /// If the processes cannot be read.
    pub fn programs(&self, cluster: &Cluster) -> Result<Vec<(Program, Option<Pid>)>> {
        let folder = self.home.cluster(&cluster.name);
        let mut all = control_plane::api(&folder, cluster, self.programs, Kind::Full).to_vec();
        all.extend(control_plane::controllers(&folder, self.programs));
        all.push(node::containerd(self.home, cluster));
        all.extend(node::agents(self.home, cluster, self.programs));
        let running = self.home.running()?;
        let pid = |name| {
            let mut mine = running
                .iter()
                .filter(|process| process.cluster == cluster.name);
            mine.find(|process| process.main && process.program == name)
                .map(|process| process.pid)
        };
        Ok(all
            .into_iter()
            .map(|program| (pid(program.name), program))
            .map(|(pid, program)| (program, pid))
            .collect())
    }

    /// Gives a cluster's node the images of an archive.
    ///
    /// # Errors
    /// If there is no such cluster, or containerd refuses the archive.
    pub fn load(&self, cluster: &str, archive: &std::path::Path) -> Result<()> {
        images::import(self.node(cluster)?, archive)
    }

    /// Kills one program of a cluster, as `kill -9` does, and waits until it is gone.
    ///
    /// # Errors
    /// If it does not run.
    pub fn kill(&self, cluster: &str, program: &str) -> Result<()> {
        let running = self.home.find(cluster, program)?;
        running
            .with_context(|| format!("no {program} runs in cluster `{cluster}`"))?
            .kill()
    }

    /// Starts a program that was killed. If etcd and the API server then both run, waits until the
    /// API server is ready.
    ///
    /// # Errors
    /// If there is no such program, it runs, or the API server does not get ready.
    pub fn start(&self, cluster: &str, program: &str) -> Result<()> {
        let cluster = self.cluster(cluster)?;
        let mut all = self.programs(&cluster)?.into_iter();
        let (program, pid) = all.find(|(one, _)| one.name == program).with_context(|| {
            format!("no program of a cluster is named {program}; `clusters status` lists them")
        })?;
        ensure!(pid.is_none(), "{} runs already", program.name);
        let node = self.node(&cluster.name)?;
        self.home.start(&cluster.name, &program, Some(node))?;
        for needed in ["etcd", "kube-apiserver"] {
            if self.home.find(&cluster.name, needed)?.is_none() {
                return Ok(());
            }
        }
        control_plane::wait_ready(self.home, &cluster, self.programs)
    }

    fn node(&self, cluster: &str) -> Result<Pid> {
        let cluster = self.cluster(cluster)?.name;
        let holder = self.home.find(&cluster, node::HOLDER)?;
        Ok(holder
            .with_context(|| {
                format!("the node of cluster `{cluster}` does not run; `clusters down`, then `up`")
            })?
            .pid)
    }

    pub(crate) fn kubectl(&self, cluster: &str) -> Kubectl {
        Kubectl::new(self.home, cluster, self.programs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_must_differ() {
        let places = |names: &[&str]| -> Vec<Place> {
            names.iter().map(|name| name.parse().unwrap()).collect()
        };
        assert!(check_names(&places(&["east", "west"])).is_ok());
        assert!(check_names(&places(&["east", "east=other"])).is_err());
        assert!(check_names(&[]).is_err());
    }
}

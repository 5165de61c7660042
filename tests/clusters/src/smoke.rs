//! Proves on this machine that the tool does what it promises.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{Fleet, Home, POD, Place, Programs, down, machine::remains, up};

const PAIR: [&str; 2] = ["east", "west"];
const NODE_PORT: u16 = 30080;

/// Two clusters from nothing to nothing, each step checked and timed on standard output.
///
/// # Errors
/// If a promise is not kept; the clusters then stay to be looked at.
pub fn smoke(home: &Home, programs: &Programs) -> Result<()> {
    let mut steps = Steps {
        last: Instant::now(),
    };
    let mounts = count_mounts()?;
    let places = PAIR
        .map(|name| name.parse())
        .into_iter()
        .collect::<Result<Vec<Place>>>()?;
    let fleet = up(home, programs, &places)?;
    steps.done("two clusters are up, each with a ready node and DNS");
    for name in PAIR {
        fleet.kubectl(name).apply(&manifests(name))?;
    }
    for name in PAIR {
        let kubectl = fleet.kubectl(name);
        kubectl.run(&["rollout", "status", "deployment/web", "--timeout=300s"])?;
        kubectl.run(&[
            "wait",
            "--for=condition=Ready",
            "pod/caller",
            "--timeout=300s",
        ])?;
    }
    steps.done("pods run in both");
    for name in PAIR {
        let url = "http://web.default.svc.cluster.local";
        answers(&fleet, name, "await", url, name)?;
    }
    steps.done("a pod in each calls a Service by name");
    for (caller, server) in [("east", "west"), ("west", "east")] {
        let url = format!("http://{}:{NODE_PORT}", fleet.cluster(server)?.address);
        answers(&fleet, caller, "await", &url, server)?;
    }
    steps.done("a pod in each calls the other's node port");
    outage(&fleet)?;
    steps.done("pods answer while an API server is dead, and after its return");
    let namespaces = Namespaces::of(home)?;
    down(home)?;
    steps.done("everything is stopped and removed");
    nothing_left(home, mounts)?;
    namespaces.are_gone()?;
    down(home)?;
    steps.done("nothing is left: processes, namespaces, mounts, interfaces, cgroups, files");
    Ok(())
}

struct Steps {
    last: Instant,
}

impl Steps {
    fn done(&mut self, what: &str) {
        println!("{:6.1} s  {what}", self.last.elapsed().as_secs_f64());
        self.last = Instant::now();
    }
}

/// West's pods are called from east, because what runs in west cannot be asked to without its API.
fn outage(fleet: &Fleet<'_>) -> Result<()> {
    let url = format!("http://{}:{NODE_PORT}", fleet.cluster("west")?.address);
    fleet.kill("west", "kube-apiserver")?;
    let dead = fleet.kubectl("west").run(&["get", "--raw", "/readyz"]);
    ensure!(dead.is_err(), "the killed API server of west answers");
    answers(fleet, "east", "fetch", &url, "west")?;
    fleet.start("west", "kube-apiserver")?;
    answers(fleet, "west", "fetch", "http://web", "west")?;
    answers(fleet, "east", "fetch", &url, "west")
}

/// Whether a pod in the caller's cluster reaches, at `url`, one of the cluster `server`: at once
/// (`fetch`), or in a few seconds (`await`).
fn answers(fleet: &Fleet<'_>, caller: &str, verb: &str, url: &str, server: &str) -> Result<()> {
    let call = ["exec", "caller", "--", "/pod", verb, url];
    let said = fleet.kubectl(caller).run(&call)?;
    ensure!(
        said.starts_with(&format!("{server}-web-")),
        "from {caller}, {url} was answered by `{}`, not by {server}",
        said.trim()
    );
    Ok(())
}

fn manifests(cluster: &str) -> String {
    let container = format!(
        "image: {POD}
      imagePullPolicy: Never
      securityContext: {{ allowPrivilegeEscalation: false, capabilities: {{ drop: [ALL] }} }}"
    );
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{ name: caller }}
spec:
  terminationGracePeriodSeconds: 1
  containers:
    - name: caller
      {container}
---
apiVersion: v1
kind: Service
metadata: {{ name: web }}
spec:
  type: NodePort
  selector: {{ app: web }}
  ports: [{{ port: 80, targetPort: 8080, nodePort: {NODE_PORT} }}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {{ name: web }}
spec:
  selector: {{ matchLabels: {{ app: web }} }}
  template:
    metadata: {{ labels: {{ app: web }} }}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
        - name: web
          {}
          args: [serve, '8080', {cluster}]
          readinessProbe: {{ httpGet: {{ port: 8080 }}, periodSeconds: 1 }}
",
        container.replace("\n      ", "\n          ")
    )
}

fn nothing_left(home: &Home, mounts: usize) -> Result<()> {
    let running = home.running()?;
    ensure!(running.is_empty(), "processes are left: {running:?}");
    let remains = remains(home)?;
    ensure!(remains.is_empty(), "these are left: {remains:?}");
    ensure!(!home.path().exists(), "{} is left", home.path().display());
    ensure!(
        count_mounts()? == mounts,
        "mounts are left; see /proc/self/mounts"
    );
    let pods = processes_of_pods(home)?;
    ensure!(pods.is_empty(), "processes of pods are left: {pods:?}");
    Ok(())
}

fn count_mounts() -> Result<usize> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("reading the mounts")?;
    Ok(mounts.lines().count())
}

/// The namespaces that our processes have and this one has not.
struct Namespaces(BTreeSet<PathBuf>);

impl Namespaces {
    fn of(home: &Home) -> Result<Self> {
        let mut processes = processes_of_pods(home)?;
        for process in home.running()? {
            processes.push(PathBuf::from(format!(
                "/proc/{}",
                process.pid.as_raw_nonzero()
            )));
        }
        let own: BTreeSet<_> = namespaces("/proc/self".as_ref()).collect();
        let all = processes.iter().flat_map(|process| namespaces(process));
        let all: BTreeSet<_> = all.filter(|namespace| !own.contains(namespace)).collect();
        ensure!(
            !all.is_empty(),
            "no process of ours has a namespace of its own"
        );
        Ok(Self(all))
    }

    /// What the kernel may keep without a process, a mount, went with the mounts' namespace.
    fn are_gone(&self) -> Result<()> {
        for process in processes()? {
            let mut held = namespaces(&process).filter(|namespace| self.0.contains(namespace));
            if let Some(namespace) = held.next() {
                bail!("{} still has {}", process.display(), namespace.display());
            }
        }
        Ok(())
    }
}

/// As the kernel names them: a kind and a number. Not that of processes: one that has ended keeps
/// it until the machine's first process takes notice.
fn namespaces(process: &Path) -> impl Iterator<Item = PathBuf> {
    let links = ["net", "mnt", "uts", "ipc"].map(|kind| process.join("ns").join(kind));
    links
        .into_iter()
        .filter_map(|link| fs::read_link(link).ok())
}

/// The processes in cgroups of ours.
fn processes_of_pods(home: &Home) -> Result<Vec<PathBuf>> {
    let ours = format!("/linkspan-{}-", home.tag());
    let in_ours = |process: &PathBuf| {
        let groups = fs::read_to_string(process.join("cgroup")).unwrap_or_default();
        let mut groups = groups.lines().filter_map(|line| line.splitn(3, ':').nth(2));
        groups.any(|group| group.starts_with(&ours))
    };
    Ok(processes()?.into_iter().filter(in_ours).collect())
}

/// The folder of every process in `/proc`.
fn processes() -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for entry in fs::read_dir("/proc").context("reading /proc")? {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_string_lossy().parse::<u32>().is_ok() {
            all.push(entry.path());
        }
    }
    Ok(all)
}

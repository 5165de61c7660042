//! The quick start of README.md in two real clusters, command by command: everything gets ready, the
//! link is there on both sides, new pods of federation are the old federation, and nothing is left
//! in the end.
//!
//! It knows a kubeconfig with the contexts `east` and `west`, and an image that the nodes have, and
//! nothing of where the clusters come from (docs/clusters.md):
//!
//! ```text
//! LINKSPAN_KUBECONFIG=FILE[:FILE] LINKSPAN_IMAGE=localhost/linkspan:dev \
//!     cargo test -p linkspan-tests --test install -- --ignored --nocapture
//! ```
//! `kubectl` has to be in the path. Where the clusters can lose their API servers, `LINKSPAN_KILL_API`
//! and `LINKSPAN_START_API` are the commands for that; `$CLUSTER` in them is the cluster's name.

use std::{
    ffi::OsString,
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result, bail, ensure};
use linkspan_tests::clusters::binary;
use serde_json::Value;

mod calls;
mod captured;
mod plain;

const README: &str = include_str!("../../../README.md");
const QUICK_START: &str = "## Quick start on clusters that you have\n";
/// For what a busy machine may take minutes.
const TIMEOUT: &str = "--timeout=300s";
const SYSTEM: &str = "linkspan-system";
const FEDERATION: &str = "deployment/linkspan-federation";
const GATEWAY: &str = "deployment/linkspan-gateway";
const CLUSTERS: [&str; 2] = ["east", "west"];

/// The blocks of commands of the quick start: making an image, linking two clusters, leaving.
fn quick_start() -> [Vec<&'static str>; 3] {
    let section = README.split_once(QUICK_START).expect("the section").1;
    let section = section.split("\n## ").next().unwrap_or_default();
    let mut blocks = vec![Vec::new()];
    for line in section.lines() {
        match line.strip_prefix("    ") {
            Some(command) => blocks.last_mut().expect("never empty").push(command),
            None => blocks.push(Vec::new()),
        }
    }
    blocks.retain(|block| !block.is_empty());
    blocks.try_into().expect("three blocks")
}

#[test]
fn the_quick_start_takes_five_commands_for_each_cluster() {
    let [_, link, leave] = quick_start();
    for block in [&link, &leave] {
        let all = CLUSTERS.map(|cluster| {
            let context = format!("--context {cluster}");
            block.iter().filter(|line| line.contains(&context)).count()
        });
        assert!(all.iter().all(|count| (1..=5).contains(count)), "{block:?}");
        assert_eq!(all.iter().sum::<usize>(), block.len(), "{block:?}");
    }
}

/// How commands are run.
struct Shell {
    kubeconfig: OsString,
    image: OsString,
    path: OsString,
    /// Where they leave their files.
    folder: tempfile::TempDir,
}

impl Shell {
    /// As the environment says; `Err` is why there is nothing to run on.
    fn of_environment() -> Result<Self, String> {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let (Some(kubeconfig), Some(image)) = (set("LINKSPAN_KUBECONFIG"), set("LINKSPAN_IMAGE"))
        else {
            return Err("LINKSPAN_KUBECONFIG and LINKSPAN_IMAGE name no clusters".to_owned());
        };
        let binary = binary().map_err(|error| format!("{error:#}"))?;
        let mut path: Vec<_> = binary.parent().map(Path::to_owned).into_iter().collect();
        path.extend(std::env::split_paths(&set("PATH").unwrap_or_default()));
        Ok(Self {
            kubeconfig,
            image,
            path: std::env::join_paths(path).map_err(|error| error.to_string())?,
            folder: tempfile::tempdir().map_err(|error| error.to_string())?,
        })
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new("bash");
        command
            .args(["-euo", "pipefail", "-c", line])
            .current_dir(self.folder.path())
            .env("KUBECONFIG", &self.kubeconfig)
            .env("IMAGE", &self.image)
            .env("PATH", &self.path)
            .stdin(Stdio::null());
        command
    }

    /// A command that the environment gives, to be run on a cluster.
    fn hook(&self, name: &str, cluster: &str) -> Option<String> {
        let line = std::env::var(name).ok().filter(|line| !line.is_empty())?;
        Some(format!("export CLUSTER={cluster}; {line}"))
    }

    /// What it printed; an error if it failed, or if the API server warned.
    fn run(&self, line: &str) -> Result<String> {
        let said = self.command(line).output();
        let said = said.with_context(|| format!("starting {line}"))?;
        let errors = String::from_utf8_lossy(&said.stderr);
        if !said.status.success() || errors.contains("Warning:") {
            let printed = String::from_utf8_lossy(&said.stdout);
            bail!("{line}\n{}: {errors}{printed}", said.status);
        }
        Ok(String::from_utf8(said.stdout)?)
    }
}

/// One of the clusters.
#[derive(Clone, Copy)]
struct Cluster<'a> {
    name: &'static str,
    shell: &'a Shell,
}

impl Cluster<'_> {
    fn kubectl(&self, line: &str) -> Result<String> {
        self.shell
            .run(&format!("kubectl --context {} {line}", self.name))
    }

    fn apply(&self, manifest: &str) -> Result<String> {
        self.kubectl(&format!("apply -f - <<END\n{manifest}\nEND"))
    }

    /// With a sidecar in each pod.
    fn apply_injected(&self, manifest: &str) -> Result<String> {
        let inject = format!("linkspan inject - --context {}", self.name);
        let apply = format!("kubectl --context {} apply -f -", self.name);
        self.shell
            .run(&format!("{inject} <<END | {apply}\n{manifest}\nEND"))
    }

    /// As a user asks its federation.
    fn linkspan(&self, line: &str) -> Result<String> {
        self.shell
            .run(&format!("linkspan {line} --context {}", self.name))
    }

    /// For whoever reads why it failed.
    fn describe(&self) -> String {
        let lines = [
            format!("get pods,services,events -n {SYSTEM} -o wide"),
            format!("logs -n {SYSTEM} {FEDERATION} --tail=40"),
            format!("logs -n {SYSTEM} -l app.kubernetes.io/name=linkspan-gateway --tail=20"),
        ];
        let said = lines.map(|line| {
            self.kubectl(&line)
                .unwrap_or_else(|error| format!("{error:#}"))
        });
        format!("{}\n{}", self.name, said.join("\n"))
    }

    fn root(&self) -> Result<String> {
        let root = self.kubectl(&format!(
            r"get secret -n {SYSTEM} linkspan-authority -o jsonpath='{{.data.ca\.root\.pem}}'"
        ))?;
        ensure!(!root.is_empty(), "{}: no root is kept", self.name);
        Ok(root)
    }

    fn active(&self, peer: &str) -> Result<()> {
        self.linkspan(&format!("link wait {peer} --for up --timeout 120s"))?;
        let list: Value = serde_json::from_str(&self.linkspan("link list -o json")?)?;
        let links = list["links"].as_array().context("no links")?;
        let link = links.iter().find(|link| link["cluster"] == peer);
        let state = link.map(|link| &link["state"]);
        ensure!(state == Some(&"Active".into()), "{}: {list}", self.name);
        Ok(())
    }

    /// Its pods are other ones afterwards.
    fn replace_federation(&self) -> Result<()> {
        let federation = "app.kubernetes.io/name=linkspan-federation";
        self.kubectl(&format!("delete pod -n {SYSTEM} -l {federation} {TIMEOUT}"))?;
        self.kubectl(&format!(
            "rollout status -n {SYSTEM} {FEDERATION} {TIMEOUT}"
        ))?;
        Ok(())
    }

    /// Its gateways are other ones afterwards.
    fn replace_gateways(&self) -> Result<()> {
        self.kubectl(&format!("rollout restart -n {SYSTEM} {GATEWAY}"))?;
        self.kubectl(&format!("rollout status -n {SYSTEM} {GATEWAY} {TIMEOUT}"))?;
        Ok(())
    }

    /// What federation was not allowed to do since its pod started.
    fn forbidden(&self) -> Result<Vec<String>> {
        let log = self.kubectl(&format!("logs -n {SYSTEM} {FEDERATION}"))?;
        let lines = log.lines().filter(|line| line.contains("orbidden"));
        Ok(lines.map(str::to_owned).collect())
    }

    /// Whatever of Linkspan is there, in any namespace and of any kind.
    fn remains(&self) -> Result<Vec<String>> {
        let kinds = self.kubectl("api-resources --verbs=list -o name")?;
        let kinds = kinds.split_whitespace();
        // Events outlive what they tell of; the others are of old, and the API server warns of them.
        let passed_over = |kind: &str| {
            kind.starts_with("events") || ["endpoints", "componentstatuses"].contains(&kind)
        };
        let kinds: Vec<_> = kinds.filter(|kind| !passed_over(kind)).collect();
        let all = kinds.join(",");
        let mut found = self.kubectl(&format!(
            "get namespace {SYSTEM} -o name --ignore-not-found"
        ))?;
        for label in [
            "app.kubernetes.io/part-of=linkspan",
            "app.kubernetes.io/managed-by=linkspan-federation",
        ] {
            found += &self.kubectl(&format!(
                "get {all} -A -l {label} -o name --ignore-not-found"
            ))?;
        }
        let own = |kind: &&&str| {
            kind.ends_with(".linkspan.io") || kind.ends_with(".multicluster.x-k8s.io")
        };
        let lines = found.lines().chain(kinds.iter().filter(own).copied());
        Ok(lines.map(str::to_owned).collect())
    }
}

const SHOP: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {pod-security.kubernetes.io/enforce: restricted}}
";
const EXPORT: &str = "
apiVersion: v1
kind: Service
metadata: {name: checkout, namespace: shop}
spec: {selector: {app: checkout}, ports: [{port: 80, targetPort: 8080, appProtocol: http}]}
---
apiVersion: multicluster.x-k8s.io/v1beta1
kind: ServiceExport
metadata: {name: checkout, namespace: shop}
";
const IMPORT: &str = "-n shop serviceimport/checkout";
/// A Deployment of one of the demo's applications, with a service account of the same name.
fn app(name: &str, annotations: &str, arguments: &str) -> String {
    format!(
        "
apiVersion: v1
kind: ServiceAccount
metadata: {{name: {name}, namespace: shop}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}, namespace: shop}}
spec:
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}, annotations: {{{annotations}}}}}
    spec:
      serviceAccountName: {name}
      automountServiceAccountToken: false
      securityContext: {{runAsNonRoot: true, seccompProfile: {{type: RuntimeDefault}}}}
      containers:
      - name: app
        image: $IMAGE
        args: [app, {arguments}]
        securityContext: {{allowPrivilegeEscalation: false, capabilities: {{drop: [ALL]}}}}
        # What is on its way to a pod that ends still arrives.
        lifecycle: {{preStop: {{sleep: {{seconds: 5}}}}}}
"
    )
}

/// Whoever names a context that is not there is told what `kubectl` said.
fn no_such_cluster(shell: &Shell) -> Result<()> {
    let said = shell
        .command("linkspan status --context nowhere")
        .output()?;
    let errors = String::from_utf8_lossy(&said.stderr);
    ensure!(said.status.code() == Some(3), "{}: {errors}", said.status);
    let names_it = errors.matches("nowhere").count() >= 2 && errors.contains("does not exist");
    ensure!(names_it, "{errors}");
    Ok(())
}

struct Steps(Instant);

impl Steps {
    fn done(&mut self, what: &str) {
        println!("{:6.1} s  {what}", self.0.elapsed().as_secs_f64());
        self.0 = Instant::now();
    }
}

fn story([east, west]: [Cluster<'_>; 2], shell: &Shell) -> Result<()> {
    let mut steps = Steps(Instant::now());
    let both = [east, west];
    for cluster in both {
        let remains = cluster.remains()?;
        ensure!(remains.is_empty(), "{}: {remains:?}", cluster.name);
    }
    steps.done("nothing of Linkspan is there");
    let [_, link, leave] = quick_start();
    for line in &link {
        shell.run(line)?;
        steps.done(line);
    }
    for line in link.iter().filter(|line| line.contains(" apply ")) {
        shell.run(&line.replace(" apply ", " diff "))?;
    }
    steps.done("applying it again would change nothing");
    no_such_cluster(shell)?;
    east.active("west")?;
    west.active("east")?;
    for cluster in both {
        cluster.kubectl(&format!(
            "wait --for=condition=Ready clusterlink --all {TIMEOUT}"
        ))?;
    }
    steps.done("both sides say Active, and their ClusterLinks say Ready");
    for cluster in both {
        cluster.apply(SHOP)?;
    }
    east.apply(EXPORT)?;
    west.kubectl(&format!("wait --for=create {IMPORT} {TIMEOUT}"))?;
    west.kubectl(&format!("wait --for=condition=Ready {IMPORT} {TIMEOUT}"))?;
    steps.done("what east exports is imported in west");
    survives_new_pods(both)?;
    steps.done("new pods of both federations: the same roots, link and import");
    calls::calls(both, &mut steps)?;
    plain::plain(both, &mut steps)?;
    for cluster in both {
        let forbidden = cluster.forbidden()?;
        ensure!(forbidden.is_empty(), "{}: {forbidden:#?}", cluster.name);
    }
    shell.run(leave[0])?;
    west.kubectl(&format!("wait --for=delete {IMPORT} {TIMEOUT}"))?;
    for cluster in both {
        let links = cluster.kubectl("get clusterlinks -o name")?;
        ensure!(links.is_empty(), "{}: {links}", cluster.name);
    }
    steps.done(leave[0]);
    for line in &leave[1..] {
        shell.run(line)?;
        steps.done(line);
    }
    for cluster in both {
        cluster.kubectl(&format!("delete namespace shop {TIMEOUT}"))?;
        let remains = cluster.remains()?;
        ensure!(remains.is_empty(), "{}: {remains:?}", cluster.name);
    }
    steps.done("nothing is left in either");
    Ok(())
}

fn survives_new_pods(both: [Cluster<'_>; 2]) -> Result<()> {
    let [east, west] = both;
    let uid = || west.kubectl(&format!("get {IMPORT} -o jsonpath='{{.metadata.uid}}'"));
    let before = (east.root()?, west.root()?, uid()?);
    for cluster in both {
        cluster.replace_federation()?;
    }
    east.active("west")?;
    west.active("east")?;
    let after = (east.root()?, west.root()?, uid()?);
    ensure!(before == after, "a new pod has new roots, or imports anew");
    Ok(())
}

#[test]
#[ignore = "needs two clusters; see the top of this file"]
fn two_clusters_are_installed_linked_and_left() {
    let shell = match Shell::of_environment() {
        Ok(shell) => shell,
        Err(why) => {
            let ci = std::env::var("CI").is_ok_and(|value| value == "true");
            assert!(!ci, "{why}");
            println!("not run: {why}");
            return;
        }
    };
    let both = CLUSTERS.map(|name| Cluster {
        name,
        shell: &shell,
    });
    if let Err(error) = story(both, &shell) {
        let said = both.map(|cluster| cluster.describe());
        panic!("{error:#}\n{}", said.join("\n"));
    }
}

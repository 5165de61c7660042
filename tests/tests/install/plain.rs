//! Pods without a sidecar, on both sides: one calls another cluster's by the address of the import.

use std::time::Instant;

use anyhow::{Result, ensure};

use super::{
    Cluster, Steps, TIMEOUT, app,
    calls::{Answers, PATIENCE, server},
};

/// As any team would write it, but for the last two lines.
const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: stock, namespace: shop}
spec: {selector: {app: stock}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: multicluster.x-k8s.io/v1beta1
kind: ServiceExport
metadata: {name: stock, namespace: shop, annotations: {linkspan.io/unmeshed-clients: allow}}
";
/// The same without leave for callers without a sidecar.
const DENIED: &str = "
apiVersion: v1
kind: Service
metadata: {name: vault, namespace: shop}
spec: {selector: {app: stock}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: multicluster.x-k8s.io/v1beta1
kind: ServiceExport
metadata: {name: vault, namespace: shop}
";
const IMPORT: &str = "-n shop serviceimport/stock";
/// What federation derives from it.
const DERIVED: &str =
    "services,endpointslices -n shop -l multicluster.kubernetes.io/service-name=stock";
/// Glances while an API server is away: longer than the Lease that federation then loses.
const OUTAGE: usize = 10;

/// Who calls; its own server only keeps the pod alive.
fn visitor() -> String {
    let arguments = "checkout, --listen, '127.0.0.1:8080', --cluster, none, --name, visitor, \
                     --instance, none";
    app("visitor", "", arguments)
}

impl Cluster<'_> {
    /// Runs a workload as it is.
    fn run_plain(&self, manifest: &str, name: &str) -> Result<()> {
        self.apply(manifest)?;
        self.rolled_out(name)
    }

    fn rolled_out(&self, name: &str) -> Result<()> {
        self.kubectl(&format!(
            "rollout status -n shop deployment/{name} {TIMEOUT}"
        ))
        .map(drop)
    }

    fn scale_stock(&self, replicas: u8) -> Result<()> {
        self.kubectl(&format!(
            "scale -n shop deployment/stock --replicas={replicas}"
        ))?;
        self.rolled_out("stock")
    }

    /// The clusterset IP of `stock`.
    fn address(&self) -> Result<String> {
        self.kubectl(&format!("wait --for=create {IMPORT} {TIMEOUT}"))?;
        self.kubectl(&format!("wait --for=condition=Ready {IMPORT} {TIMEOUT}"))?;
        let ip = self.kubectl(&format!("get {IMPORT} -o jsonpath='{{.spec.ips[0]}}'"))?;
        ensure!(
            !ip.is_empty(),
            "{}: it is Ready without an address",
            self.name
        );
        Ok(ip)
    }

    fn visit(&self, ip: &str, glances: usize) -> Result<Answers> {
        let mut load = self.load_of("shop", "visitor", &format!("--target {ip}:80"))?;
        for _ in 0..glances {
            load.more()?;
        }
        load.end()
    }

    /// Calls until everything is answered, and by this cluster alone.
    fn await_visits_to(&self, ip: &str, cluster: &str) -> Result<()> {
        let begun = Instant::now();
        loop {
            let answers = self.visit(ip, 1)?;
            if answers.all_by().is_ok_and(|by| by == [cluster]) {
                return Ok(());
            }
            ensure!(
                begun.elapsed() < PATIENCE,
                "{}: {answers:?}, not all by {cluster}",
                self.name
            );
        }
    }
}

/// West calls what east exports; has its own, loses it, and has it again.
pub(super) fn plain([east, west]: [Cluster<'_>; 2], steps: &mut Steps) -> Result<()> {
    east.run_plain(&server("stock", "east"), "stock")?;
    east.apply(SERVICE)?;
    west.run_plain(&visitor(), "visitor")?;
    let ip = west.address()?;
    west.await_visits_to(&ip, "east")?;
    steps.done("no sidecar anywhere: a pod of west calls one of east by the clusterset IP");
    denied(east, west)?;
    steps.done("who denies such callers has no slice, and the import says so");
    api_server_is_killed(east, west, &ip, steps)?;

    west.run_plain(&server("stock", "west"), "stock")?;
    west.apply(SERVICE)?;
    west.await_visits_to(&ip, "west")?;
    steps.done("west has its own: that is nearer, and is called directly");
    west.scale_stock(0)?;
    west.await_visits_to(&ip, "east")?;
    steps.done("west's own is gone: east answers");
    west.scale_stock(1)?;
    west.await_visits_to(&ip, "west")?;
    steps.done("west's own is back, and after a while takes all again");
    ensure!(west.address()? == ip, "the address has changed");

    for cluster in [east, west] {
        let all = "serviceexport/stock service/stock deployment/stock";
        cluster.kubectl(&format!("delete -n shop {all} {TIMEOUT}"))?;
    }
    west.kubectl(&format!("delete -n shop deployment/visitor {TIMEOUT}"))?;
    for cluster in [east, west] {
        for what in [IMPORT, DERIVED] {
            cluster.kubectl(&format!("wait --for=delete {what} {TIMEOUT}"))?;
        }
    }
    steps.done("nobody exports it: the address and its slices are gone from both");
    Ok(())
}

fn denied(east: Cluster<'_>, west: Cluster<'_>) -> Result<()> {
    east.apply(DENIED)?;
    let import = "-n shop serviceimport/vault";
    west.kubectl(&format!("wait --for=create {import} {TIMEOUT}"))?;
    west.kubectl(&format!("wait --for=condition=Ready {import} {TIMEOUT}"))?;
    let said = west.kubectl(&format!(
        "get {import} -o jsonpath='{{.status.conditions[?(@.type==\"Ready\")].message}}'"
    ))?;
    ensure!(said.contains("are denied"), "{said}");
    let slices = west.kubectl(
        "get endpointslices -n shop -l multicluster.kubernetes.io/service-name=vault -o name",
    )?;
    ensure!(slices.is_empty(), "{slices}");
    east.kubectl(&format!(
        "delete -n shop serviceexport/vault service/vault {TIMEOUT}"
    ))?;
    west.kubectl(&format!("wait --for=delete {import} {TIMEOUT}"))
        .map(drop)
}

/// The exporter's API server is gone for longer than its federation may lead; pods answer all the same.
fn api_server_is_killed(
    east: Cluster<'_>,
    west: Cluster<'_>,
    ip: &str,
    steps: &mut Steps,
) -> Result<()> {
    let hook = |name| east.shell.hook(name, east.name);
    let (Some(kill), Some(start)) = (hook("LINKSPAN_KILL_API"), hook("LINKSPAN_START_API")) else {
        steps.done(
            "not run: LINKSPAN_KILL_API and LINKSPAN_START_API say not how to kill an API server",
        );
        return Ok(());
    };
    east.shell.run(&kill)?;
    let answers = west.visit(ip, OUTAGE);
    east.shell.run(&start)?;
    let answers = answers?;
    ensure!(answers.all_by()? == ["east"], "{answers:?}");
    steps.done("east's API server was killed: every call was answered meanwhile");
    let begun = Instant::now();
    while let Err(error) = east.kubectl("get --raw /readyz") {
        ensure!(begun.elapsed() < PATIENCE, "{error:#}");
    }
    east.linkspan("link wait west --for up --timeout 120s")?;
    west.await_visits_to(ip, "east")?;
    steps.done("it is back: nothing has changed");
    Ok(())
}

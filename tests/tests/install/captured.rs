//! A pod that knows nothing of the mesh: its namespace is labelled, and it calls the address that
//! stands for a service of another cluster.

use std::time::Instant;

use anyhow::{Result, ensure};

use super::{Cluster, IMPORT, TIMEOUT, app, calls::PATIENCE};

/// Not of the restricted profile, which forbids capture.
const NAMESPACE: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: unaware, labels: {linkspan.io/inject: 'true'}}
";

/// The API server has the sidecar put in; calls to the address go through it, with the pod's own
/// identity, which both ends check.
pub(super) fn captured(west: Cluster<'_>) -> Result<()> {
    west.apply(NAMESPACE)?;
    let arguments = "checkout, --listen, '127.0.0.1:8080', --cluster, none, --name, client, \
                     --instance, none";
    let client = app("client", "", arguments).replace("namespace: shop", "namespace: unaware");
    west.apply(&client)?;
    west.kubectl(&format!(
        "rollout status -n unaware deployment/client {TIMEOUT}"
    ))?;
    let first = "jsonpath='{.items[0].spec.initContainers[*].name}'";
    let put_in = west.kubectl(&format!("get pods -n unaware -l app=client -o {first}"))?;
    ensure!(put_in == "linkspan-capture linkspan-sidecar", "{put_in}");
    let address = west.kubectl(&format!("get {IMPORT} -o jsonpath='{{.spec.ips[0]}}'"))?;
    ensure!(!address.is_empty(), "the import has no address");
    let identity = format!(
        "spiffe://{}.demo.linkspan.internal/ns/unaware/sa/client",
        west.name
    );
    let arguments = format!("--target {address}:80 --identity {identity}");
    let begun = Instant::now();
    loop {
        let mut load = west.load_of("unaware", "client", &arguments)?;
        load.more()?;
        let answers = load.end()?;
        if answers.all_by().is_ok_and(|by| by == ["east"]) {
            break;
        }
        ensure!(begun.elapsed() < PATIENCE, "{answers:?}");
    }
    west.kubectl(&format!("delete namespace unaware {TIMEOUT}"))
        .map(drop)
}

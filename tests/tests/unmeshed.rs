//! Clients without a sidecar, from the outside: real processes, a plain HTTP client.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use linkspan_api::v1;
use linkspan_tests::client::get;
use linkspan_tests::clusters::{Cluster, Host, NAMESPACE, Service, binary};
use serde_json::Value;
use tokio::{
    net::TcpStream,
    time::{Instant, interval},
};

/// Exported by the command line, with what that says of unmeshed clients.
const CHECKOUT: Service = Service {
    name: "checkout",
    app_protocol: "http",
    exported: false,
};
const PATIENCE: Duration = Duration::from_secs(60);
/// Of its own, so that no other test has these ports.
const ENTRANCE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 116, 0, 1));

/// West has one endpoint; east has none, and one gateway of two that serves unmeshed clients.
async fn clusters(seed: u64) -> Result<(Cluster<Host>, Cluster<Host>)> {
    let host = Host::new(seed);
    let mut east = Cluster::start("east", host.clone(), &[], 1).await?;
    let mut west = Cluster::start("west", host, &[CHECKOUT], 1).await?;
    east.serve_unmeshed(2, ENTRANCE).await?;
    east.link(&west).await?;
    west.link(&east).await?;
    let arguments = [
        "app",
        "checkout",
        "--listen",
        "{listen}",
        "--cluster",
        "west",
    ];
    let names = ["--instance", "one", "--name", "one"];
    let arguments: Vec<_> = arguments
        .into_iter()
        .chain(names)
        .map(str::to_owned)
        .collect();
    west.endpoint("checkout", "one", &binary()?, &arguments)
        .await?;
    Ok((east, west))
}

/// Has west admit unmeshed clients, or not.
fn admit(west: &Cluster<Host>, word: &str) -> Result<()> {
    let name = format!("{NAMESPACE}/checkout");
    let said = west.cli(&["export", &name, "--unmeshed-clients", word], "")?;
    said.success().map(drop)
}

async fn listeners(east: &Cluster<Host>) -> Result<Vec<v1::ImportPortInfo>> {
    let reply = east.operator().await?.services().await;
    let reply = reply.map_err(|failure| anyhow::anyhow!("{failure:?}"))?;
    let imports = reply.services.into_iter().filter_map(|of| of.import);
    Ok(imports.flat_map(|import| import.listeners).collect())
}

/// Waits until federation says of its import ports what `holds` accepts.
async fn until(
    east: &Cluster<Host>,
    holds: impl Fn(&[v1::ImportPortInfo]) -> bool,
) -> Result<Vec<v1::ImportPortInfo>> {
    let deadline = Instant::now() + PATIENCE;
    let mut every = interval(Duration::from_millis(50));
    loop {
        // The operator API answers questions; it has no stream to wait on.
        every.tick().await;
        let found = listeners(east).await?;
        if holds(&found) {
            return Ok(found);
        }
        ensure!(
            Instant::now() < deadline,
            "still {found:?}\n{}",
            east.logs()
        );
    }
}

#[tokio::test]
async fn a_plain_client_calls_another_cluster_once_both_sides_say_so() -> Result<()> {
    let (mut east, west) = clusters(401).await?;
    admit(&west, "allow")?;
    let open = |found: &[v1::ImportPortInfo]| found.iter().any(|at| !at.open.is_empty());
    let found = until(&east, open).await?;
    ensure!(found.len() == 1 && found[0].gateways == 1, "{found:?}");
    let entrance: SocketAddr = found[0].open[0].parse()?;
    ensure!(entrance.ip() == ENTRANCE, "{entrance}");

    let (status, body) = get(entrance).await?;
    ensure!(status == 200, "{status} {body:?}\n{}", east.logs());
    let answer: Value = serde_json::from_slice(&body)?;
    let caller = answer["caller"].as_str().context("a caller")?;
    let expected = "/ns/linkspan-system/sa/linkspan-unmeshed-client";
    ensure!(
        caller.contains("URI=spiffe://east.") && caller.ends_with(expected),
        "the application saw {caller}"
    );

    // The same port over a restart of federation, which serves meanwhile.
    east.kill("federation")?;
    ensure!(get(entrance).await?.0 == 200, "without a control plane");
    east.restart_federation().await?;
    let again = until(&east, open).await?;
    ensure!(again == found, "{again:?} after {found:?}");
    ensure!(get(entrance).await?.0 == 200, "after a restart");

    let said = east.cli(&["services"], "")?.success()?;
    let line = format!(
        "port 80 is {} for clients without a sidecar",
        entrance.port()
    );
    ensure!(said.contains(&line), "{said}");

    admit(&west, "deny")?;
    until(&east, <[_]>::is_empty).await?;
    // Federation has said so; the gateway hears it a moment later.
    let (deadline, mut every) = (
        Instant::now() + PATIENCE,
        interval(Duration::from_millis(50)),
    );
    while TcpStream::connect(entrance).await.is_ok() {
        ensure!(Instant::now() < deadline, "still open\n{}", east.logs());
        every.tick().await;
    }
    Ok(())
}

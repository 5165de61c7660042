//! Servers without a sidecar, from the outside: real processes, plain HTTP servers that are declared.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use linkspan_tests::client::get;
use linkspan_tests::clusters::{Cluster, Host, Service, binary};
use serde_json::Value;
use tokio::time::{Instant, interval};

const CHECKOUT: Service = Service {
    name: "checkout",
    app_protocol: "http",
    exported: false,
};
const PATIENCE: Duration = Duration::from_secs(60);

/// West has servers without a sidecar only; both have a caller with one.
struct Shop {
    east: Cluster<Host>,
    west: Cluster<Host>,
    /// Where the callers' sidecars take calls to checkout.
    from_east: SocketAddr,
    from_west: SocketAddr,
}

async fn shop(seed: u64, servers: &[&str]) -> Result<Shop> {
    let host = Host::new(seed);
    let mut east = Cluster::start("east", host.clone(), &[], 2).await?;
    let mut west = Cluster::start("west", host, &[CHECKOUT], 2).await?;
    west.cli(&["export", "shop/checkout"], "")?.success()?;
    east.link(&west).await?;
    west.link(&east).await?;
    for name in servers {
        let names = ["--cluster", "west", "--instance", name, "--name", name];
        let arguments = ["app", "checkout", "--listen", "{listen}"];
        let arguments = arguments.into_iter().chain(names).map(str::to_owned);
        let arguments: Vec<_> = arguments.collect();
        west.server("checkout", name, &binary()?, &arguments)?;
    }
    let from_east = east.caller("frontend", &["checkout"]).await?["checkout"];
    let from_west = west.caller("till", &["checkout"]).await?["checkout"];
    Ok(Shop {
        east,
        west,
        from_east,
        from_west,
    })
}

impl Shop {
    /// Asks until the answer is as wanted: discovery reaches the callers' sidecars in its own time,
    /// and nothing tells a client when.
    async fn until(
        &self,
        target: SocketAddr,
        wanted: impl Fn(u16, &Value) -> bool,
    ) -> Result<Value> {
        let deadline = Instant::now() + PATIENCE;
        let mut every = interval(Duration::from_millis(50));
        loop {
            every.tick().await;
            // The caller's sidecar may not have opened its port yet.
            let (status, body) = get(target).await.unwrap_or_default();
            let answer = serde_json::from_slice(&body).unwrap_or_default();
            if wanted(status, &answer) {
                return Ok(answer);
            }
            ensure!(
                Instant::now() < deadline,
                "still {status} {body:?}\n{}\n{}",
                self.east.logs(),
                self.west.logs()
            );
        }
    }
}

#[tokio::test]
async fn a_server_without_a_sidecar_is_called_from_both_clusters() -> Result<()> {
    let shop = shop(411, &["one"]).await?;
    let by =
        "By=spiffe://west.test.linkspan.internal/ns/linkspan-system/sa/linkspan-unmeshed-server";
    for (target, uri) in [
        (
            shop.from_east,
            "spiffe://east.test.linkspan.internal/ns/shop/sa/frontend",
        ),
        (
            shop.from_west,
            "spiffe://west.test.linkspan.internal/ns/shop/sa/till",
        ),
    ] {
        let answer = shop.until(target, |status, _| status == 200).await?;
        let caller = answer["caller"].as_str().context("a caller")?;
        ensure!(caller == format!("{by};URI={uri}"), "it saw {caller}");
    }
    for cluster in [&shop.east, &shop.west] {
        let said = cluster.cli(&["services"], "")?.success()?;
        ensure!(said.contains("1 in west without a sidecar"), "{said}");
    }
    // It stays so: over connections that are kept, with bodies that are whole.
    for _ in 0..50 {
        let (status, _) = get(shop.from_east).await?;
        ensure!(status == 200, "{status}\n{}", shop.west.logs());
    }
    // What is no longer exported is refused to the other cluster, and goes on at home.
    let said = shop.west.cli(&["unexport", "shop/checkout"], "")?;
    said.success()?;
    shop.until(shop.from_east, |status, _| status == 503)
        .await?;
    let (status, _) = get(shop.from_west).await?;
    ensure!(status == 200, "at home: {status}\n{}", shop.west.logs());
    Ok(())
}

#[tokio::test]
async fn of_two_servers_the_one_that_is_there_and_ready_answers() -> Result<()> {
    let mut shop = shop(412, &["one", "two"]).await?;
    let from =
        |name: &'static str| move |status, answer: &Value| status == 200 && answer["name"] == name;
    for name in ["one", "two"] {
        shop.until(shop.from_east, from(name)).await?;
    }
    // One dies without anybody saying so: no request is lost by it.
    shop.west.kill("one-app")?;
    for _ in 0..40 {
        let (status, body) = get(shop.from_east).await?;
        let answer: Value = serde_json::from_slice(&body).unwrap_or_default();
        let served = status == 200 && answer["name"] == "two";
        ensure!(served, "{status} {body:?}\n{}", shop.west.logs());
    }
    // The other one is taken out by its declaration.
    let two = shop.west.server_address("two").context("declared")?;
    shop.west.declare_server("checkout", "two", two, false)?;
    shop.until(shop.from_east, |status, _| status == 503)
        .await?;
    shop.west.declare_server("checkout", "two", two, true)?;
    shop.until(shop.from_east, from("two")).await?;
    Ok(())
}

#[tokio::test]
async fn gateways_alone_carry_a_client_and_a_server_without_sidecars() -> Result<()> {
    let mut shop = shop(413, &["one"]).await?;
    let entrance = std::net::Ipv4Addr::new(127, 116, 0, 2).into();
    shop.east.serve_unmeshed(3, entrance).await?;
    // Denied unless the export says otherwise.
    shop.until(shop.from_east, |status, _| status == 200)
        .await?;
    let listeners = shop.east.import_listeners().await?;
    ensure!(listeners.is_empty(), "{listeners:?}");
    let allow = ["export", "shop/checkout", "--unmeshed-clients", "allow"];
    shop.west.cli(&allow, "")?.success()?;
    let deadline = Instant::now() + PATIENCE;
    let mut every = interval(Duration::from_millis(50));
    let open = loop {
        // The operator API answers questions; it has no stream to wait on.
        every.tick().await;
        if let Some(open) = shop.east.import_listeners().await?.into_iter().next() {
            break open;
        }
        ensure!(Instant::now() < deadline, "{}", shop.east.logs());
    };
    let answer = shop.until(open, |status, _| status == 200).await?;
    let caller = answer["caller"].as_str().context("a caller")?;
    let ends = ["linkspan-unmeshed-server", "linkspan-unmeshed-client"];
    ensure!(
        ends.iter().all(|end| caller.contains(end)),
        "it saw {caller}"
    );
    Ok(())
}

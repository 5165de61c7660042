//! The system in network namespaces, with faults in the router between them.
//! Needs root, `ip` and `nft`; `./test` runs these with `--ignored` where it can.

use std::{
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    process::{Child, ChildStdout, Stdio},
    sync::Arc,
};

use anyhow::{Context as _, Result, ensure};
use linkspan::apps::report::{Batch, Outcome};
use linkspan_tests::{
    clusters::{Cluster, Service, binary},
    lab::{Fault, Lab, LabMachine, Side},
};

fn reaches(lab: &Lab, from: Side, to: Side) -> bool {
    lab.command(from, "bash")
        .args(["-c", &format!("echo >/dev/tcp/{}/9", to.address())])
        .stderr(Stdio::piped())
        .output()
        .is_ok_and(|output| String::from_utf8_lossy(&output.stderr).contains("refused"))
}

#[test]
#[ignore = "needs root and network namespaces"]
fn the_router_swallows_what_it_is_told_to() {
    let lab = Lab::new().expect("a lab");
    assert!(
        reaches(&lab, Side::East, Side::West),
        "refused by the other machine: the path works"
    );
    lab.inject(Fault::Cut).expect("a fault");
    let mut blocked = lab
        .command(Side::East, "timeout")
        .args([
            "0.3",
            "bash",
            "-c",
            &format!("echo >/dev/tcp/{}/9", Side::West.address()),
        ])
        .stderr(Stdio::null())
        .spawn()
        .expect("bash");
    assert!(!blocked.wait().expect("it ends").success());
    assert!(
        lab.swallowed().expect("a counter") > 0,
        "the fault was seen to strike"
    );
    lab.heal().expect("healed");
    assert!(reaches(&lab, Side::West, Side::East));
}

const CHECKOUT: Service = Service {
    name: "checkout",
    app_protocol: "http",
    exported: true,
};

/// Two clusters on two machines; `checkout` answers in both, once per cluster. The only local
/// endpoint of two that east once had is left, so that a part of the load spills to west.
struct World {
    lab: Arc<Lab>,
    east: Cluster<LabMachine>,
    west: Cluster<LabMachine>,
    outbound: SocketAddr,
}

impl World {
    async fn start() -> Result<Self> {
        let lab = Arc::new(Lab::new()?);
        let machine = |side| LabMachine::new(Arc::clone(&lab), side);
        let mut east = Cluster::start("east", machine(Side::East), &[CHECKOUT], 2).await?;
        let mut west = Cluster::start("west", machine(Side::West), &[CHECKOUT], 2).await?;
        east.link(&west).await?;
        west.link(&east).await?;
        for name in ["checkout-1", "checkout-2"] {
            east.endpoint("checkout", name, &binary()?, &app("east", name))
                .await?;
        }
        west.endpoint(
            "checkout",
            "checkout-3",
            &binary()?,
            &app("west", "checkout-3"),
        )
        .await?;
        let outbound = east.caller("frontend", &["checkout"]).await?["checkout"];
        east.wait_for_endpoints("checkout", &[("east", 2), ("west", 1)])
            .await?;
        east.wait_for_link(true).await?;
        west.wait_for_link(true).await?;
        Ok(Self {
            lab,
            east,
            west,
            outbound,
        })
    }

    fn logs(&self) -> String {
        format!("{}\n{}", self.east.logs(), self.west.logs())
    }

    /// From now on about a third of the load is answered by west.
    async fn lose_one_endpoint(&mut self) -> Result<()> {
        self.east.kill("checkout-2-app")?;
        self.east
            .wait_for_endpoints("checkout", &[("east", 1), ("west", 1)])
            .await
    }
}

fn app(cluster: &str, name: &str) -> Vec<String> {
    [
        "app",
        "checkout",
        "--listen",
        "{listen}",
        "--cluster",
        cluster,
        "--instance",
        name,
        "--name",
        name,
    ]
    .map(str::to_owned)
    .to_vec()
}

/// The sample caller: two hundred requests a second, each answer checked.
struct Load {
    child: Child,
    outcomes: BufReader<ChildStdout>,
}

impl Load {
    fn start(lab: &Lab, target: SocketAddr) -> Result<Self> {
        let mut child = lab
            .command(Side::East, "env")
            .arg(binary()?)
            .args(["app", "frontend", "--target", &target.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let outcomes = BufReader::new(child.stdout.take().context("no output")?);
        Ok(Self { child, outcomes })
    }

    /// Reads until `count` more requests were answered by an instance that `by` accepts.
    fn wait_for_answers(&mut self, by: &str, count: usize) -> Result<Vec<Outcome>> {
        let (mut seen, mut matching) = (Vec::new(), 0);
        while matching < count {
            let batch = self.batch()?;
            matching += batch
                .outcomes
                .iter()
                .filter(|outcome| outcome.answer.as_deref() == Ok(by))
                .count();
            seen.extend(batch.outcomes);
            ensure!(
                seen.len() < 20_000,
                "{by} answered {matching} of {} requests",
                seen.len()
            );
        }
        Ok(seen)
    }

    fn batch(&mut self) -> Result<Batch> {
        let mut line = String::new();
        ensure!(self.outcomes.read_line(&mut line)? > 0, "the load ended");
        Ok(serde_json::from_str(&line)?)
    }

    /// Stops, and gives back everything that was not yet read.
    fn finish(mut self) -> Result<Vec<Outcome>> {
        drop(self.child.stdin.take());
        let mut rest = Vec::new();
        loop {
            let batch = self.batch()?;
            rest.extend(batch.outcomes);
            if batch.last {
                return Ok(rest);
            }
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn failures(outcomes: &[Outcome]) -> Vec<&Outcome> {
    outcomes
        .iter()
        .filter(|outcome| outcome.answer.is_err())
        .collect()
}

/// One fault after the other, under load, in one world.
#[tokio::test]
#[ignore = "needs root and network namespaces"]
async fn no_request_fails_while_the_link_is_cut_lossy_lopsided_or_narrow() -> Result<()> {
    let mut world = World::start().await?;
    let mut load = Load::start(&world.lab, world.outbound)?;
    let mut outcomes = load.wait_for_answers("checkout-1", 50)?;
    world.lose_one_endpoint().await?;
    outcomes.extend(load.wait_for_answers("checkout-3", 50)?);

    for fault in [
        Fault::Cut,
        Fault::CutFrom(Side::West),
        Fault::CutFrom(Side::East),
    ] {
        world.lab.inject(fault)?;
        world
            .east
            .wait_for_link(false)
            .await
            .with_context(|| format!("{fault:?}"))?;
        world
            .west
            .wait_for_link(false)
            .await
            .with_context(|| format!("{fault:?}"))?;
        outcomes.extend(load.wait_for_answers("checkout-1", 100)?);
        ensure!(
            world.lab.swallowed()? > 0,
            "{fault:?} was not seen to strike"
        );
        world.lab.heal()?;
        world
            .east
            .wait_for_link(true)
            .await
            .with_context(|| format!("after {fault:?}"))?;
        world
            .west
            .wait_for_link(true)
            .await
            .with_context(|| format!("after {fault:?}"))?;
        outcomes.extend(
            load.wait_for_answers("checkout-3", 50)
                .with_context(|| format!("after {fault:?}\n{}", world.logs()))?,
        );
    }

    world.lab.inject(Fault::Loss(2))?;
    outcomes.extend(
        load.wait_for_answers("checkout-3", 300)
            .with_context(|| format!("2 % loss\n{}", world.logs()))?,
    );
    ensure!(world.lab.swallowed()? > 0, "nothing was lost");

    world.lab.limit_packets(1280)?;
    outcomes.extend(
        load.wait_for_answers("checkout-3", 300)
            .with_context(|| format!("a 1,280-byte path\n{}", world.logs()))?,
    );
    ensure!(
        world.lab.swallowed()? > 0,
        "nothing was too large: path MTU discovery did not probe"
    );
    world.lab.heal()?;

    outcomes.extend(load.finish()?);
    let failed = failures(&outcomes);
    ensure!(
        failed.is_empty(),
        "{} of {} failed: {:?}\n{}",
        failed.len(),
        outcomes.len(),
        failed.first(),
        world.east.logs()
    );
    Ok(())
}

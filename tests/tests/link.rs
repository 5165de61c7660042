//! Linking by invitation and unlinking, from the outside: real processes and the command line.

use std::{
    collections::BTreeSet,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use linkspan_api::v1;
use linkspan_core::testing::secret::traces;
use linkspan_tests::clusters::{Cluster, Host, Machine, Service, binary};
use prost::Message as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, sleep},
};

/// How long a process may take to let go of a peer: a restarted one waits 15 s for all to return.
const PATIENCE: Duration = Duration::from_secs(60);

const CHECKOUT: Service = Service {
    name: "checkout",
    app_protocol: "http",
    exported: true,
};

async fn cluster(id: &'static str, host: &Host) -> Result<Cluster<Host>> {
    Cluster::start(id, host.clone(), &[CHECKOUT], 1).await
}

async fn serve(cluster: &mut Cluster<Host>, id: &str) -> Result<()> {
    let arguments = [
        "app",
        "checkout",
        "--listen",
        "{listen}",
        "--cluster",
        id,
        "--instance",
        id,
        "--name",
        id,
    ];
    let arguments = arguments.map(str::to_owned).to_vec();
    let program = binary()?;
    cluster
        .endpoint("checkout", "checkout-1", &program, &arguments)
        .await?;
    Ok(())
}

fn resource_files(cluster: &Cluster<Host>) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(cluster.resources())? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// What a loopback face shows.
async fn dump<M: Machine>(cluster: &Cluster<M>, part: &str, what: &str) -> Result<String> {
    let mut stream = TcpStream::connect(cluster.debug_address(part)?).await?;
    let request = format!("GET /{what} HTTP/1.1\r\nhost: local\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    Ok(text)
}

/// Nothing that a cluster holds or shows names the peer any more.
async fn clean(cluster: &Cluster<Host>, peer: &str) -> Result<()> {
    cluster
        .wait_until("clean", |status| {
            let of_peer = |of: &v1::ClusterEndpoints| of.cluster == peer;
            status.links.is_empty()
                && !status
                    .services
                    .iter()
                    .any(|of| of.clusters.iter().any(of_peer))
                && !status
                    .gateways
                    .iter()
                    .any(|of| of.up.iter().any(|up| up == peer))
        })
        .await?;
    ensure!(resource_files(cluster)? == ["checkout.yaml", "export-checkout.yaml"]);
    let domain = format!("{peer}.test.linkspan.internal");
    for (part, what) in [("federation", "snapshot"), ("gateway-1", "debug")] {
        // Another process's dump is a question, not a stream: asking is the only way to wait.
        let deadline = Instant::now() + PATIENCE;
        loop {
            let text = dump(cluster, part, what).await?;
            if !text.contains(&domain) {
                break;
            }
            ensure!(Instant::now() < deadline, "{part}/{what}: {text}");
            sleep(Duration::from_millis(50)).await;
        }
    }
    Ok(())
}

#[tokio::test]
async fn an_invitation_links_and_remove_leaves_nothing() -> Result<()> {
    let host = Host::new(301);
    let (mut east, mut west) = (cluster("east", &host).await?, cluster("west", &host).await?);
    serve(&mut east, "east").await?;
    serve(&mut west, "west").await?;
    east.accept_from(&west).await?;
    east.wait_for_endpoints("checkout", &[("east", 1), ("west", 1)])
        .await?;
    west.wait_for_endpoints("checkout", &[("east", 1), ("west", 1)])
        .await?;
    east.cli(&["link", "wait", "west", "--for", "up"], "")?
        .success()?;

    let listed = east.cli(&["link", "list"], "")?.success()?;
    ensure!(
        listed.contains("west") && listed.contains("Active"),
        "{listed}"
    );
    let shown = west
        .cli(&["link", "show", "east", "-o", "json"], "")?
        .success()?;
    let shown: serde_json::Value = serde_json::from_str(&shown)?;
    ensure!(
        shown["state"] == "Active" && shown["imports"][0] == "*/*",
        "{shown}"
    );
    ensure!(shown["since"].is_string() && shown["up"] == true, "{shown}");

    let removed = east.cli(&["link", "remove", "west"], "")?.success()?;
    ensure!(removed.contains("removed on both sides"), "{removed}");
    clean(&east, "west").await?;
    clean(&west, "east").await?;
    for cluster in [&east, &west] {
        let list = cluster
            .cli(&["link", "list", "-o", "json"], "")?
            .success()?;
        let list: serde_json::Value = serde_json::from_str(&list)?;
        let nothing = serde_json::json!({"links": [], "removed": [], "invitations": []});
        ensure!(list == nothing, "{list}");
    }
    // And again, the other way round.
    west.accept_from(&east).await?;
    west.wait_for_endpoints("checkout", &[("east", 1), ("west", 1)])
        .await
}

#[tokio::test]
async fn a_dead_peer_is_told_when_it_returns() -> Result<()> {
    let host = Host::new(302);
    let (east, mut west) = (cluster("east", &host).await?, cluster("west", &host).await?);
    east.accept_from(&west).await?;
    west.cli(&["link", "wait", "east", "--for", "up"], "")?
        .success()?;
    west.kill("gateway-1")?;
    west.kill("federation")?;
    east.wait_for_link(false).await?;

    let removed = east.cli(&["unlink", "west", "--yes"], "")?.success()?;
    ensure!(removed.contains("could not be told"), "{removed}");
    let status = east.cli(&["link", "list"], "")?.success()?;
    ensure!(status.contains("removed: west"), "{status}");
    ensure!(resource_files(&east)? == ["checkout.yaml", "export-checkout.yaml"]);

    // West dials east, whose gateway knows it and says so.
    west.restart_federation().await?;
    west.restart("gateway-1", None)?;
    clean(&west, "east").await?;
    Ok(())
}

#[tokio::test]
async fn each_mistake_has_its_own_answer_and_exit_code() -> Result<()> {
    let host = Host::new(303);
    let (east, west) = (cluster("east", &host).await?, cluster("west", &host).await?);
    east.wait_for_gateways().await?;
    west.wait_for_gateways().await?;
    let invite = |more: &[&str]| -> Result<String> {
        let arguments = [&["link", "invite", "--allow-loopback"], more].concat();
        west.cli(&arguments, "")?.success()
    };
    let refused = |text: &str, code: i32, part: &str| -> Result<()> {
        let said = east.cli(&["link", "accept", "-", "--allow-loopback"], text)?;
        ensure!(
            said.code == Some(code) && said.err.contains(part),
            "{said:?}"
        );
        ensure!(!said.err.contains("lsp1.A"), "{said:?}");
        Ok(())
    };
    let good = invite(&[])?;
    refused("good morning", 10, "begins with `lsp1.`")?;
    refused(&good[..good.len() - 20], 10, "cut short")?;
    refused(&invite(&["north"])?, 13, "meant for cluster `north`")?;
    let own = west.cli(&["link", "accept", "-", "--allow-loopback"], &good)?;
    ensure!(
        own.code == Some(13) && own.err.contains("itself"),
        "{own:?}"
    );

    // Without --allow-loopback nothing on this machine may be dialled: unreachable, and why.
    let local = east.cli(&["link", "accept", "-"], &good)?;
    ensure!(
        local.code == Some(14) && local.err.contains("open UDP port"),
        "{local:?}"
    );
    ensure!(local.err.contains("--allow-loopback"), "{local:?}");

    // The invitation is still good after all that; but only once.
    east.cli(&["link", "accept", "-", "--allow-loopback"], &good)?
        .success()?;
    east.cli(
        &["link", "wait", "west", "--for", "up", "--timeout", "30s"],
        "",
    )?
    .success()?;
    refused(&invite(&[])?, 15, "linkspan link remove west")?;
    let north = cluster("north", &host).await?;
    north.wait_for_gateways().await?;
    let used = north.cli(&["link", "accept", "-", "--allow-loopback"], &good)?;
    ensure!(
        used.code == Some(12) && used.err.contains("used already"),
        "{used:?}"
    );

    // One that was taken back is good for nobody, and one that was used is undone otherwise.
    let open = || -> Result<BTreeSet<String>> {
        let list = west.cli(&["link", "list", "-o", "json"], "")?.success()?;
        let list: serde_json::Value = serde_json::from_str(&list)?;
        let open = list["invitations"].as_array().context("invitations")?;
        Ok(open
            .iter()
            .filter_map(|of| of["id"].as_str().map(str::to_owned))
            .collect())
    };
    // The first one for north is still open, too.
    let before = open()?;
    let taken_back = invite(&["north"])?;
    let after = open()?;
    let id = after.difference(&before).next().context("its id")?;
    west.cli(&["link", "revoke", id], "")?.success()?;
    let gone = north.cli(&["link", "accept", "-", "--allow-loopback"], &taken_back)?;
    ensure!(
        gone.code == Some(11) && gone.err.contains("taken back"),
        "{gone:?}"
    );
    let again = west.cli(&["link", "revoke", id], "")?;
    ensure!(
        again.code == Some(11) && again.err.contains("link list"),
        "{again:?}"
    );
    let wrong = west.cli(&["link", "revoke", "everything"], "")?;
    ensure!(wrong.code == Some(2), "{wrong:?}");

    let late = north.cli(&["link", "wait", "west", "--timeout", "0s"], "")?;
    ensure!(late.code == Some(4), "{late:?}");
    Ok(())
}

#[tokio::test]
async fn no_gateway_and_no_answer_are_told_apart() -> Result<()> {
    let host = Host::new(304);
    let (mut east, mut west) = (cluster("east", &host).await?, cluster("west", &host).await?);
    west.wait_for_gateways().await?;
    east.wait_for_gateways().await?;
    let good = west
        .cli(&["link", "invite", "--allow-loopback"], "")?
        .success()?;
    let accept =
        |east: &Cluster<Host>| east.cli(&["link", "accept", "-", "--allow-loopback"], &good);

    west.kill("federation")?;
    let dumb = accept(&east)?;
    ensure!(
        dumb.code == Some(19) && dumb.err.contains("is it running"),
        "{dumb:?}"
    );
    west.kill("gateway-1")?;
    let silent = accept(&east)?;
    ensure!(
        silent.code == Some(14) && silent.err.contains("open UDP port"),
        "{silent:?}"
    );

    east.kill("gateway-1")?;
    east.wait_until("without gateways", |status| {
        !status.gateways.iter().any(|of| of.ready)
    })
    .await?;
    let none = accept(&east)?;
    ensure!(
        none.code == Some(14) && none.err.contains("no gateway of this cluster"),
        "{none:?}"
    );

    // The very same invitation, once all are back: also the inviter's state survived.
    west.restart_federation().await?;
    west.restart("gateway-1", None)?;
    east.restart("gateway-1", None)?;
    east.wait_for_gateways().await?;
    west.wait_for_gateways().await?;
    accept(&east)?.success()?;
    let waited = east.cli(&["link", "wait", "west", "--for", "up"], "")?;
    waited.success().context("linked after all").map(drop)
}

/// A machine whose processes log all that they can.
#[derive(Clone)]
struct Talkative(Host);

impl Machine for Talkative {
    fn address(&self) -> IpAddr {
        self.0.address()
    }

    fn port(&self) -> Result<u16> {
        self.0.port()
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = self.0.command(program);
        command.env("LINKSPAN_LOG", "trace");
        command
    }
}

/// The secret of an invitation.
fn seed(invitation: &str) -> Result<Vec<u8>> {
    let encoded = invitation.strip_prefix("lsp1.").context("its prefix")?;
    let bytes = URL_SAFE_NO_PAD.decode(encoded)?;
    // A checksum follows.
    let message = v1::Invitation::decode(&bytes[..bytes.len() - 4])?;
    ensure!(message.seed.len() == 32);
    Ok(message.seed.to_vec())
}

/// All files below `directory`.
fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let kind = fs::symlink_metadata(&path)?.file_type();
        if kind.is_dir() {
            found.extend(files(&path)?);
        } else if kind.is_file() {
            found.push(path);
        }
    }
    Ok(found)
}

/// Nothing that is kept, logged or shown holds the secret, whatever the log level.
#[tokio::test]
async fn the_seed_is_nowhere_but_in_the_invitation() -> Result<()> {
    let host = Talkative(Host::new(305));
    let east = Cluster::start("east", host.clone(), &[CHECKOUT], 1).await?;
    let west = Cluster::start("west", host.clone(), &[CHECKOUT], 1).await?;
    east.wait_for_gateways().await?;
    west.wait_for_gateways().await?;
    let invitation = west
        .cli(&["link", "invite", "--allow-loopback"], "")?
        .success()?;
    let invitation = invitation.trim();
    let seed = seed(invitation)?;
    // Refused first, since mistakes are told in detail.
    east.cli(
        &["link", "accept", "-", "--allow-loopback"],
        &invitation[..invitation.len() - 6],
    )?;
    east.cli(&["link", "accept", "-"], invitation)?;
    east.cli(&["link", "accept", "-", "--allow-loopback"], invitation)?
        .success()?;
    tokio::time::timeout(Duration::from_secs(30), east.wait_for_link(true)).await??;
    let mut looked = 0;
    for cluster in [&east, &west] {
        for path in files(cluster.directory())? {
            let bytes = fs::read(&path)?;
            ensure!(traces(&seed, &bytes).is_empty(), "{}", path.display());
            looked += bytes.len();
        }
        for (part, what) in [
            ("federation", "config"),
            ("federation", "snapshot"),
            ("gateway-1", "config"),
            ("gateway-1", "debug"),
        ] {
            let text = dump(cluster, part, what).await?;
            ensure!(text.contains("200 OK"), "{part}/{what}: {text}");
            ensure!(traces(&seed, text.as_bytes()).is_empty(), "{part}/{what}");
        }
        for verb in [&["link", "list"][..], &["status"]] {
            let said = cluster.cli(&[verb, &["-o", "json"]].concat(), "")?;
            let shown = said.success()?;
            ensure!(traces(&seed, shown.as_bytes()).is_empty(), "{verb:?}");
        }
    }
    ensure!(looked > 100_000, "the logs were read: {looked}");
    // And it would have been found.
    ensure!(traces(&seed, invitation.as_bytes()).contains(&"base64url"));
    Ok(())
}

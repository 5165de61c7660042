//! Removing links: what the peer hears, who is waited for, and what is tried again.

use std::{
    fs,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    time::{Duration, Instant, SystemTime},
};

use linkspan_api::v1::{
    self, discover_request::Message as Said, discovery_client::DiscoveryClient,
    sync_client::SyncClient,
};
use linkspan_core::declared::MADE_BY;
use linkspan_trust::{CertificateAuthority, SpiffeId};
use tonic::{Code, transport::Channel};

use super::proxy::{Proxy, gateway};
use crate::{
    controller::World,
    testing::{Federation, Home, Material, cluster, domain, link_with, link_yaml, soon},
};

const INVITATION: &str = "00112233445566778899aabbccddeeff";

fn linked(world: &World, peer: &str) -> bool {
    world.declared.links.contains_key(&cluster(peer))
}

fn carries_data(world: &World, peer: &str) -> bool {
    let link = world.declared.links.get(&cluster(peer));
    link.is_some_and(|link| !link.pending)
}

/// East with a declared link to west, whom the test plays.
async fn east_and_west(home: &Home) -> (Federation, Material) {
    let authority = CertificateAuthority::create(&domain("west"), SystemTime::now()).unwrap();
    home.declare("west.yaml", &link_with("west", &authority.bundle()));
    let east = home.start().await;
    east.until("the link", |world| linked(world, "west")).await;
    let (id, roots) = (SpiffeId::federation(&domain("west")), east.bundle().await);
    let west = Material::foreign(&authority, id, &east, roots);
    (east, west)
}

/// West's federation at east's port.
async fn client(east: &Federation, west: &Material) -> SyncClient<Channel> {
    let admitted = async {
        loop {
            if let Ok(channel) = east.channel(&west.1).await {
                let mut client = DiscoveryClient::new(channel.clone());
                match client.discover(tokio_stream::empty()).await {
                    Err(status) if status.code() == Code::PermissionDenied => {
                        return SyncClient::new(channel);
                    }
                    _ => {}
                }
            }
            // The handshake's policy follows the links a moment later than the world.
            tokio::task::yield_now().await;
        }
    };
    soon("the admission", Box::pin(admitted)).await
}

/// The book of links, as an earlier life left it.
fn leave_book(home: &Home, west: &str) {
    let mut builder = fs::DirBuilder::new();
    builder.mode(0o700).create(home.state()).unwrap();
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let file = options.open(home.state().join("links.json")).unwrap();
    let text = format!(
        r#"{{"links": {{"west": {{"trustDomain": "{}", "invitation": "{INVITATION}",
            "sinceUnix": 1800000000{west}}}}}}}"#,
        domain("west")
    );
    std::io::Write::write_all(&mut &file, text.as_bytes()).unwrap();
}

/// Whether the book has a link to `peer`.
fn noted(home: &Home, peer: &str) -> bool {
    let book: serde_json::Value = serde_json::from_str(&book(home)).unwrap();
    !book["links"][peer].is_null()
}

fn book(home: &Home) -> String {
    fs::read_to_string(home.state().join("links.json")).unwrap()
}

async fn remove(east: &Federation, peer: &str) -> v1::RemoveLinkResponse {
    let request = v1::RemoveLinkRequest {
        cluster: peer.into(),
    };
    let mut operator = east.operator().await;
    let removed = soon("the removal", operator.remove_link(request)).await;
    removed.unwrap().into_inner()
}

/// A gateway of east's that was told so by each of these peers.
fn told_removed(peers: &[&str]) -> Said {
    let told = |peer: &&str| v1::PeerHealth {
        cluster: (*peer).into(),
        removed: true,
        ..Default::default()
    };
    Said::LinkHealth(v1::LinkHealth {
        peers: peers.iter().map(told).collect(),
    })
}

#[tokio::test]
async fn the_answer_comes_before_that_is_cut_which_carries_it() {
    let home = Home::new("east");
    let (east, west) = east_and_west(&home).await;
    let mut client = client(&east, &west).await;
    let asked = client.unlink(v1::UnlinkRequest::default());
    soon("the answer", asked).await.unwrap();
    let answered = Instant::now();
    let still = linked(&east.worlds.borrow(), "west");
    assert!(still || answered.elapsed() > Duration::from_secs(1));
    // It is certain already, and kept.
    let kept = book(&home).contains("removing");
    assert!(kept || answered.elapsed() > Duration::from_secs(1));
    drop(client);
    east.until("no link", |world| !linked(world, "west")).await;
    assert_eq!(fs::read_dir(home.resources()).unwrap().count(), 0);
    east.stop().await;
}

#[tokio::test]
async fn a_caller_that_keeps_its_connection_does_not_keep_the_link() {
    let home = Home::new("east");
    let (east, west) = east_and_west(&home).await;
    let mut client = client(&east, &west).await;
    let asked = client.unlink(v1::UnlinkRequest::default());
    soon("the answer", asked).await.unwrap();
    east.until("no link", |world| !linked(world, "west")).await;
    east.stop().await;
}

#[tokio::test]
async fn a_caller_that_hangs_up_in_the_middle_changes_nothing() {
    let home = Home::new("east");
    let (east, west) = east_and_west(&home).await;
    let mut client = client(&east, &west).await;
    let asking = tokio::spawn(async move { client.unlink(v1::UnlinkRequest::default()).await });
    east.until("the mark", |world| !carries_data(world, "west"))
        .await;
    asking.abort();
    east.until("no link", |world| !linked(world, "west")).await;
    assert_eq!(fs::read_dir(home.resources()).unwrap().count(), 0);
    east.stop().await;
}

#[tokio::test]
async fn who_means_a_former_link_removes_nothing() {
    let home = Home::new("east");
    leave_book(&home, "");
    let (east, west) = east_and_west(&home).await;
    let mut client = client(&east, &west).await;
    let unlink = |invitation: String| v1::UnlinkRequest { invitation };
    let former = client.unlink(unlink(INVITATION.replace("00", "99"))).await;
    assert_eq!(former.unwrap_err().code(), Code::FailedPrecondition);
    assert!(carries_data(&east.worlds.borrow(), "west"));
    client.unlink(unlink(INVITATION.to_owned())).await.unwrap();
    east.until("no link", |world| !linked(world, "west")).await;
    east.stop().await;
}

#[tokio::test]
async fn after_a_crash_between_the_steps_the_removal_goes_on() {
    let home = Home::new("east");
    leave_book(&home, r#", "removing": true"#);
    home.declare("west.yaml", &link_yaml("west"));
    let east = home.start().await;
    east.until("no link", |world| {
        assert!(!carries_data(world, "west"));
        world.generation > 0 && !linked(world, "west")
    })
    .await;
    assert_eq!(fs::read_dir(home.resources()).unwrap().count(), 0);
    // The book forgets the link once no world has it, and a file tells nobody that it changed.
    let forgotten = async {
        while noted(&home, "west") {
            tokio::task::yield_now().await;
        }
    };
    soon("the book forgets", forgotten).await;
    east.stop().await;
}

/// As where the directory cannot be written: root may write everywhere.
#[tokio::test]
async fn what_cannot_be_removed_is_tried_again_until_it_can() {
    let home = Home::new("east");
    leave_book(&home, r#", "removing": true"#);
    home.declare("west.yaml", &link_yaml("west"));
    let whole = fs::read(home.resources().join("west.yaml")).unwrap();
    // Not text: before any removal that must be mended.
    fs::write(home.resources().join("a.yaml"), [0xff, 0xfe]).unwrap();
    let east = home.start().await;
    east.until("the link", |world| linked(world, "west")).await;
    // Removed by hand, the operator is told what is in the way.
    let request = v1::RemoveLinkRequest {
        cluster: "west".into(),
    };
    let refused = east.operator().await.remove_link(request).await;
    let refused = refused.unwrap_err();
    assert!(refused.message().contains("cannot be removed"), "{refused}");
    assert!(!carries_data(&east.worlds.borrow(), "west"));
    assert_eq!(fs::read(home.resources().join("west.yaml")).unwrap(), whole);
    fs::remove_file(home.resources().join("a.yaml")).unwrap();
    east.until("no link", |world| {
        assert!(!carries_data(world, "west"));
        !linked(world, "west")
    })
    .await;
    east.stop().await;
}

#[tokio::test]
async fn a_link_that_cannot_be_removed_does_not_stop_the_others() {
    let home = Home::new("east");
    for peer in ["north", "west"] {
        home.declare(&format!("{peer}.yaml"), &link_yaml(peer));
    }
    let east = home.start().await;
    east.until("the links", |world| world.declared.links.len() == 2)
        .await;
    // North's last good state stays in force, and its file cannot be read.
    let good = fs::read_to_string(home.resources().join("north.yaml")).unwrap();
    home.declare("north.yaml", &format!("{good}  - : ["));
    east.until("the problem", |world| !world.declared.problems.is_empty())
        .await;
    let material = east.gateway().await;
    let proxy = Proxy::open(&east, &material).await.unwrap();
    let told = told_removed(&["north", "west"]);
    let _living = proxy.live(Said::Gateway(gateway("gateway-1")), vec![told]);
    let world = east.until("no west", |world| !linked(world, "west")).await;
    assert!(linked(&world, "north"));
    east.until("north is marked", |world| !carries_data(world, "north"))
        .await;
    home.declare("north.yaml", &good);
    east.until("no north", |world| !linked(world, "north"))
        .await;
    east.stop().await;
}

/// Whose book was lost, or whose declaration was away for a while: it is still that link.
#[tokio::test]
async fn a_link_is_known_by_its_declaration_where_the_book_is_lost() {
    let home = Home::new("east");
    for (peer, invitation) in [
        ("west", INVITATION),
        ("north", &INVITATION.replace("00", "99")),
    ] {
        let noted = format!("{{name: {peer}, annotations: {{{MADE_BY}: \"{invitation}\"}}}}");
        let yaml = link_yaml(peer).replacen(&format!("{{name: {peer}}}"), &noted, 1);
        home.declare(&format!("{peer}.yaml"), &yaml);
    }
    let east = home.start().await;
    east.until("the links", |world| world.declared.links.len() == 2)
        .await;
    let material = east.gateway().await;
    let proxy = Proxy::open(&east, &material).await.unwrap();
    let mut told = told_removed(&["north", "west"]);
    if let Said::LinkHealth(health) = &mut told {
        for peer in &mut health.peers {
            peer.removed_invitation = INVITATION.into();
        }
    }
    let _living = proxy.live(Said::Gateway(gateway("gateway-1")), vec![told]);
    let world = east.until("no west", |world| !linked(world, "west")).await;
    // That was not about north, which says so.
    assert!(linked(&world, "north"));
    let status = east.operator().await.status(v1::StatusRequest {}).await;
    let links = status.unwrap().into_inner().links;
    let north = links.iter().find(|of| of.cluster == "north").unwrap();
    assert!(
        north
            .problems
            .iter()
            .any(|of| of.contains("linkspan link remove north")),
        "{:?}",
        north.problems
    );
    east.stop().await;
}

#[tokio::test]
async fn removing_waits_for_the_gateways_and_names_those_that_are_late() {
    let home = Home::new("east");
    for peer in ["north", "west"] {
        home.declare(&format!("{peer}.yaml"), &link_yaml(peer));
    }
    let east = home.start().await;
    let material = east.gateway().await;
    let proxy = Proxy::open(&east, &material).await.unwrap();
    let _living = proxy.live(Said::Gateway(gateway("gateway-1")), vec![]);
    east.until("its gateway", |world| world.gateways.len() == 1)
        .await;
    let removed = remove(&east, "north").await;
    assert!(removed.late_gateways.is_empty(), "{removed:?}");
    assert!(!removed.told && removed.tombstone_until_unix > 0);
    // One that registers, and takes nothing in.
    let deaf = Proxy::open(&east, &material).await.unwrap();
    deaf.say(Said::Gateway(gateway("gateway-2"))).await;
    east.until("both gateways", |world| world.gateways.len() == 2)
        .await;
    let removed = remove(&east, "west").await;
    assert_eq!(removed.late_gateways, ["gateway-2"]);
    assert!(!linked(&east.worlds.borrow(), "west"));
    east.stop().await;
}

#[tokio::test]
async fn a_link_that_only_the_book_knows_is_shown_and_can_be_removed() {
    let home = Home::new("east");
    leave_book(&home, r#", "pendingUntilUnix": 253402300799"#);
    let east = home.start().await;
    east.until("the world", |world| world.generation > 0).await;
    let status = east.operator().await.status(v1::StatusRequest {}).await;
    let problems = status.unwrap().into_inner().problems;
    assert!(
        problems
            .iter()
            .any(|of| of.contains("linkspan link remove west")),
        "{problems:?}"
    );
    let removed = remove(&east, "west").await;
    assert!(!removed.told && removed.problem.contains("not declared"));
    assert_eq!(removed.tombstone_until_unix, 0);
    assert!(!noted(&home, "west"));
    let request = v1::RemoveLinkRequest {
        cluster: "west".into(),
    };
    let again = east.operator().await.remove_link(request).await;
    assert!(again.unwrap_err().message().contains("no link to `west`"));
    east.stop().await;
}

/// The side that accepted counts by its own clock, from what it wrote down.
#[tokio::test]
async fn a_pending_link_ends_at_the_accepter_too() {
    let home = Home::new("east");
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let until = since.unwrap().as_secs() + 3;
    leave_book(&home, &format!(r#", "pendingUntilUnix": {until}"#));
    home.declare("west.yaml", &link_yaml("west"));
    let east = home.start().await;
    east.until("no link", |world| {
        assert!(!carries_data(world, "west"));
        world.generation > 0 && !linked(world, "west")
    })
    .await;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    assert!(now.unwrap().as_secs() >= until, "not before its time");
    assert_eq!(fs::read_dir(home.resources()).unwrap().count(), 0);
    // West may have seen a tunnel at the last moment: it is told, and which link is meant.
    let book: serde_json::Value = serde_json::from_str(&book(&home)).unwrap();
    let stone = &book["tombstones"][domain("west").as_str()];
    assert_eq!(stone["invitation"], INVITATION, "{book}");
    east.stop().await;
}

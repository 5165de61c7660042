//! ConfigMaps as a journal.

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, DeleteParams, ListParams};
use kube::{Client, ResourceExt};
use linkspan_core::backend::Journal as _;
use linkspan_core::testing::{JournalBench, journal_contract};
use linkspan_kube::KubernetesJournal;

use serde_json::json;

use crate::server::{Server, leading, within};

const NAMESPACE: &str = "journal";

struct Bench {
    client: Client,
}

impl Bench {
    async fn names(&self) -> Vec<String> {
        let api = Api::<ConfigMap>::namespaced(self.client.clone(), NAMESPACE);
        let list = api
            .list_metadata(&ListParams::default())
            .await
            .expect("a list");
        list.items.iter().map(ResourceExt::name_any).collect()
    }

    async fn delete(&self, name: &str) {
        let api = Api::<ConfigMap>::namespaced(self.client.clone(), NAMESPACE);
        api.delete(name, &DeleteParams::default())
            .await
            .expect("it is deleted");
    }
}

impl JournalBench for Bench {
    type Journal = KubernetesJournal;

    async fn journal(&mut self) -> KubernetesJournal {
        KubernetesJournal::new(self.client.clone(), NAMESPACE, leading())
    }

    async fn damage(&mut self, peer: &str) {
        let names = self.names().await;
        let part = names
            .iter()
            .find(|name| name.contains(peer) && name.ends_with(".1"));
        self.delete(part.expect("a second part")).await;
    }
}

#[tokio::test]
#[ignore = "needs the Kubernetes programs"]
async fn configmaps_are_a_journal() {
    let server = Server::shared().await;
    server.namespace(NAMESPACE).await;
    let mut bench = Bench {
        client: server.client().await,
    };
    within("the contract", journal_contract(&mut bench)).await;
    nothing_is_left_of_former_generations(&mut bench).await;
    peers_whose_names_resemble_parts_are_kept_apart(&mut bench).await;
    who_does_not_lead_writes_nothing(&mut bench).await;
    what_cannot_be_read_now_is_not_damaged(&server, &mut bench).await;
}

async fn peers_whose_names_resemble_parts_are_kept_apart(bench: &mut Bench) {
    let mut journal = bench.journal().await;
    let peers = ["west", "west-1-0", "west.part.0"].map(|id| id.parse().expect("an id"));
    for round in 0..3 {
        for peer in &peers {
            journal.save(peer, &[round; 10]).await.expect("saves");
        }
        let entries = journal.load().await.expect("loads");
        assert_eq!(entries.len(), peers.len());
        for entry in entries {
            assert_eq!(entry.content, Ok(vec![round; 10]), "{}", entry.peer);
        }
    }
}

async fn versions(bench: &Bench) -> Vec<Option<String>> {
    let api = Api::<ConfigMap>::namespaced(bench.client.clone(), NAMESPACE);
    let list = api.list(&ListParams::default()).await.expect("a list");
    list.items
        .iter()
        .map(ResourceExt::resource_version)
        .collect()
}

async fn who_does_not_lead_writes_nothing(bench: &mut Bench) {
    let before = versions(bench).await;
    let not_leading = tokio::sync::watch::channel(linkspan_kube::Lead::default()).1;
    let mut journal = KubernetesJournal::new(bench.client.clone(), NAMESPACE, not_leading);
    let west = "west".parse().expect("an id");
    let refused = journal.save(&west, &[1; 10]).await.expect_err("not ours");
    let why = std::error::Error::source(&refused).map(ToString::to_string);
    assert!(why.is_some_and(|why| why.contains("does not lead")));
    journal.forget(&west).await.expect_err("not ours");
    assert_eq!(versions(bench).await, before);
}

/// A right to read that is missing for a while stands for all that passes by itself.
async fn what_cannot_be_read_now_is_not_damaged(server: &Server, bench: &mut Bench) {
    let rules = json!([{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["list"]}]);
    let half = server.client_with("half", NAMESPACE, &rules).await;
    let mut journal = KubernetesJournal::new(half, NAMESPACE, leading());
    let failed = journal.load().await.expect_err("parts cannot be read");
    let why = std::error::Error::source(&failed).map(ToString::to_string);
    assert!(why.is_some_and(|why| why.contains("forbidden")));
    let entries = bench.journal().await.load().await.expect("loads");
    assert!(entries.iter().all(|entry| entry.content.is_ok()));
}

async fn nothing_is_left_of_former_generations(bench: &mut Bench) {
    let mut journal = bench.journal().await;
    for peer in ["west", "north.example"] {
        let peer = peer.parse().expect("an id");
        journal.forget(&peer).await.expect("forgets");
    }
    assert_eq!(bench.names().await, [] as [&str; 0]);
    let west = "west".parse().expect("an id");
    for size in [2_000_000, 1_000, 0] {
        journal.save(&west, &vec![7; size]).await.expect("saves");
    }
    assert_eq!(bench.names().await, ["linkspan-journal.head.west"]);
}

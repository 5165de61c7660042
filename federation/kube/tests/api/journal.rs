//! ConfigMaps as a journal.

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, DeleteParams, ListParams};
use kube::{Client, ResourceExt};
use linkspan_core::backend::Journal as _;
use linkspan_core::testing::{JournalBench, journal_contract};
use linkspan_kube::KubernetesJournal;

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
            .find(|name| name.contains(peer) && name.ends_with("-1"));
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
    assert_eq!(bench.names().await, ["linkspan-journal-west"]);
}

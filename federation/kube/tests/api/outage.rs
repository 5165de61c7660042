//! What becomes of the watches when the API server is killed, and comes back with other things.

use std::sync::Arc;

use kube::api::DeleteParams;
use linkspan_core::backend::{Removals, Sink as _, Source as _};
use linkspan_core::declared::Declared;
use linkspan_core::plan::Desired;
use linkspan_core::testing::own;
use linkspan_kube::{KubernetesSink, KubernetesSource, Mirrors};

use crate::server::{Server, api_of, declare, export, leading, service, within};

async fn until(
    source: &mut KubernetesSource,
    what: &str,
    seen: impl Fn(&Declared) -> bool,
) -> Arc<Declared> {
    loop {
        let declared = within(what, source.next())
            .await
            .expect("the source goes on");
        let known = declared
            .services
            .contains_key(&"shop/checkout".parse().expect("a key"));
        assert!(known, "what was declared before stays in every snapshot");
        if seen(&declared) {
            return declared;
        }
    }
}

#[tokio::test]
#[ignore = "needs the Kubernetes programs"]
async fn an_api_server_that_was_killed_is_watched_again() {
    let server = Server::own().await;
    server.namespace("shop").await;
    let client = server.client().await;
    for object in [
        service("shop", "checkout"),
        service("shop", "cart"),
        export("shop", "cart"),
    ] {
        declare(&client, &object, false).await.expect("it is good");
    }
    let mirrors = Mirrors::watch(&client);
    let mut source = KubernetesSource::new(own(), Default::default(), mirrors.clone());
    let mut sink = KubernetesSink::new(client.clone(), mirrors, leading());
    until(&mut source, "a first snapshot", |declared| {
        declared.services.len() >= 3
    })
    .await;

    server.kill().await;
    let cut = until(&mut source, "the problem", |declared| {
        !declared.problems.is_empty()
    })
    .await;
    assert!(
        cut.problems[0].contains("stays in force"),
        "{:?}",
        cut.problems
    );
    assert!(
        cut.exports
            .contains_key(&"shop/cart".parse().expect("a key"))
    );
    // Nothing is to be written, so nothing fails; what is to be written fails and says so.
    sink.apply(&Desired::default(), Removals::Made)
        .await
        .expect("there is nothing to do");

    server.restart().await;
    let cart = service("shop", "cart");
    api_of(&client, &cart)
        .delete("cart", &DeleteParams::default())
        .await
        .expect("it goes");
    declare(&client, &service("shop", "mail"), false)
        .await
        .expect("it is good");
    until(&mut source, "what has changed", |declared| {
        declared.problems.is_empty()
            && declared
                .services
                .contains_key(&"shop/mail".parse().expect("a key"))
            && !declared
                .services
                .contains_key(&"shop/cart".parse().expect("a key"))
    })
    .await;
}

//! Candidates for one lease on a real server.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use kube::api::Api;
use linkspan_kube::{Elector, Lead, Terms, lead};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::server::{Server, within};

/// Short, so that a test is; long enough for a machine that is busy with something else.
const TERMS: Terms = Terms {
    duration: Duration::from_secs(9),
    deadline: Duration::from_secs(6),
    retry: Duration::from_millis(300),
};

struct Candidate {
    lead: watch::Receiver<Lead>,
    task: JoinHandle<()>,
}

async fn candidate(server: &Server, name: &str) -> Candidate {
    let (sender, receiver) = watch::channel(Lead::default());
    let elector = Elector::new(name, TERMS);
    let client = server.client().await;
    let task = lead(
        client,
        "default".into(),
        "leader-test".into(),
        elector,
        sender,
    );
    Candidate {
        lead: receiver,
        task: tokio::spawn(task),
    }
}

impl Candidate {
    async fn until(&mut self, what: &str, is: impl FnMut(&Lead) -> bool) -> Lead {
        let seen = within(what, self.lead.wait_for(is)).await;
        seen.expect("the candidate lives").clone()
    }
}

#[tokio::test]
#[ignore = "needs the Kubernetes programs"]
async fn one_leads_and_another_follows_it() {
    let server = Server::own().await;
    let mut a = candidate(&server, "a").await;
    a.until("the first leads", |lead| lead.leading).await;
    let mut b = candidate(&server, "b").await;
    let seen = b
        .until("the second sees the first", |lead| lead.holder.is_some())
        .await;
    assert_eq!((seen.leading, seen.holder.as_deref()), (false, Some("a")));

    // It dies without a word.
    a.task.abort();
    b.until("the second takes over", |lead| lead.leading).await;
    let lease = Api::<Lease>::namespaced(server.client().await, "default")
        .get("leader-test")
        .await;
    let spec = lease.expect("the lease").spec.expect("a spec");
    assert_eq!(spec.holder_identity.as_deref(), Some("b"));
    assert_eq!(spec.lease_transitions, Some(1));

    // Cut off from the API server it stops, and goes on when that is back.
    server.kill().await;
    b.until("the end of leading", |lead| !lead.leading).await;
    server.restart().await;
    b.until("leading again", |lead| lead.leading).await;

    // Once nobody here writes any more, it gives way at once.
    let mut c = candidate(&server, "c").await;
    c.until("the third sees the second", |lead| lead.holder.is_some())
        .await;
    drop(b.lead);
    within("the end of the second", b.task)
        .await
        .expect("it ends by itself");
    let given_up = within("the next holder", async {
        let lead = c
            .lead
            .wait_for(|lead| lead.holder.as_deref() != Some("b"))
            .await;
        lead.expect("the candidate lives").clone()
    });
    assert_eq!(given_up.await.holder.as_deref(), Some("c"));
    c.task.abort();
}

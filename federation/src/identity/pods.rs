//! Pods as callers: a projected service account token proves the pod that it was given to.
//!
//! Such a token is asked about anew each time, so that no certificate follows the pod's end; none
//! is ever renewed by another certificate.

use std::{net::IpAddr, time::Duration};

use linkspan_core::backend::{AttestError, Attested, Attestor as _};
use linkspan_runtime::{
    places::{Places, source},
    process::chain,
};
use tokio::{sync::Semaphore, time::timeout};
use tonic::Status;

use super::tokens::TokenId;
use crate::home::AnyAttestor;

/// Questions to the API server at a time: what strangers ask must not drown what it is for.
const AT_ONCE: usize = 16;
/// Of one source, those that wait for their turn included: a pod asks one, and the pods of a node
/// that hides their addresses start one after the other.
const EACH: usize = 8;
/// No answer takes longer; a proxy waits for its certificate for twice as long.
const PATIENCE: Duration = Duration::from_secs(5);
/// A certificate of a pod says that it was issued for this and the pod's UID.
const PREFIX: &str = "pod:";
/// Longest UID that is taken: they are UUIDs.
const MAX_UID: usize = 64;

/// Asks whose tokens are.
pub(crate) struct Pods {
    attestor: AnyAttestor,
    turns: Semaphore,
    askers: Places<IpAddr>,
}

impl Pods {
    pub(crate) fn new(attestor: AnyAttestor) -> Self {
        Self {
            attestor,
            turns: Semaphore::new(AT_ONCE),
            askers: Places::new(usize::MAX, EACH),
        }
    }

    /// The pod that holds this token, which somebody at that address shows.
    pub(super) async fn attest(
        &self,
        token: &str,
        from: IpAddr,
    ) -> Result<(TokenId, Attested), Status> {
        let Ok(_share) = self.askers.take(&source(from)) else {
            return Err(Status::resource_exhausted(format!(
                "tokens that came from {from} are being checked already; try again"
            )));
        };
        let asked = async {
            // Never closed.
            let _turn = self.turns.acquire().await;
            self.attestor.attest(token).await
        };
        let answer = timeout(PATIENCE, asked).await;
        match answer {
            Err(_) => Err(unavailable()),
            Ok(Err(AttestError::Unavailable(source))) => {
                tracing::warn!(
                    error = chain(&*source),
                    "tokens of pods cannot be checked now"
                );
                Err(unavailable())
            }
            Ok(Err(AttestError::Refused)) => Err(refused()),
            Ok(Ok(attested)) => {
                let id = attested.uid.as_deref().and_then(id_of);
                Ok((id.ok_or_else(refused)?, attested))
            }
        }
    }
}

/// The UID of the pod for whose token a certificate was issued.
pub(super) fn uid(token: &TokenId) -> Option<&str> {
    token.strip_prefix(PREFIX)
}

fn id_of(uid: &str) -> Option<TokenId> {
    let plain = uid.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    (plain && (1..=MAX_UID).contains(&uid.len())).then(|| format!("{PREFIX}{uid}"))
}

fn refused() -> Status {
    Status::unauthenticated(
        "the token is neither a join token nor that of a living pod of this cluster for the \
         audience `linkspan:<cluster-id>`, or is not valid any more",
    )
}

fn unavailable() -> Status {
    Status::unavailable("whose token this is cannot be asked now; try again")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use linkspan_kube::KubernetesAttestor;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::testing::soon;

    /// {"aud":"linkspan:east","exp":9999999999,"kubernetes.io":{"pod":{"name":"a","uid":"b"}}}
    const FORGED: &str = "e30.eyJhdWQiOiJsaW5rc3BhbjplYXN0IiwiZXhwIjo5OTk5OTk5OTk5LCJrdWJlcm5ldGVzLmlv\
                          Ijp7InBvZCI6eyJuYW1lIjoiYSIsInVpZCI6ImIifX19.c2ln";

    /// Asks an API server that takes every question, and answers none.
    async fn pods(server: &TcpListener) -> Pods {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kubeconfig");
        let server = server.local_addr().unwrap();
        let config = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: a\n\
             clusters: [{{name: a, cluster: {{server: 'http://{server}'}}}}]\n\
             users: [{{name: a, user: {{}}}}]\n\
             contexts: [{{name: a, context: {{cluster: a, user: a}}}}]\n"
        );
        std::fs::write(&path, config).unwrap();
        let client = linkspan_kube::connect(Some(&path)).await.unwrap();
        let attestor = KubernetesAttestor::new(client, &"east".parse().unwrap());
        Pods::new(AnyAttestor::Kubernetes(attestor))
    }

    async fn asked(server: &TcpListener) -> TcpStream {
        soon("a question", server.accept()).await.unwrap().0
    }

    #[tokio::test]
    async fn one_source_leaves_turns_to_the_others() {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let pods = Arc::new(pods(&server).await);
        let ask = |host: u8| {
            let pods = Arc::clone(&pods);
            tokio::spawn(async move { pods.attest(FORGED, [10, 0, 0, host].into()).await })
        };
        let (mut asking, mut questions) = (Vec::new(), Vec::new());
        for _ in 0..EACH {
            asking.push(ask(1));
            questions.push(asked(&server).await);
        }
        let more = soon("the refusal", ask(1)).await.unwrap();
        assert_eq!(more.unwrap_err().code(), tonic::Code::ResourceExhausted);
        asking.push(ask(2));
        questions.push(asked(&server).await);
        // Who hangs up gives the turn back.
        let hung_up = asking.swap_remove(0);
        hung_up.abort();
        assert!(hung_up.await.unwrap_err().is_cancelled());
        asking.push(ask(1));
        questions.push(asked(&server).await);
        asking.iter().for_each(tokio::task::JoinHandle::abort);
    }

    #[test]
    fn a_uid_is_noted_only_where_it_can_be_read_back() {
        let id = id_of("2f1c-AB").unwrap();
        assert_eq!(uid(&id), Some("2f1c-AB"));
        for odd in ["", "a b", "a\nb", "a:b", &"x".repeat(65)] {
            assert_eq!(id_of(odd), None, "{odd}");
        }
        // Join tokens are named by hexadecimal digits.
        assert_eq!(uid(&"0123456789ab".to_owned()), None);
    }
}

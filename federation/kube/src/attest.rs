//! Who holds a projected service account token: TokenReview, and the Pod it is bound to.

use std::time::{Duration, SystemTime};

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use kube::api::{Api, PostParams};
use linkspan_core::backend::{AttestError, Attested, Attestor};
use linkspan_core::{ClusterId, WorkloadId};

use crate::claims::is_plausible;

/// Longest token that is shown to the API server: those of service accounts have about a
/// kilobyte.
const MAX_TOKEN: usize = 16 * 1024;
/// How long a Pod whose grace is over may still ask: its node may not have told the API server yet
/// that it is gone, and our clock be ahead.
const LINGERS: Duration = Duration::from_secs(60);

/// The API server as an [`Attestor`].
#[derive(Clone)]
pub struct KubernetesAttestor {
    client: Client,
    audience: String,
}

impl KubernetesAttestor {
    /// Tokens must have been made for `linkspan:<cluster-id>`, so that none that is meant for the
    /// API server itself, or for another cluster, ever counts here.
    #[must_use]
    pub fn new(client: Client, cluster: &ClusterId) -> Self {
        Self {
            client,
            audience: format!("linkspan:{cluster}"),
        }
    }

    async fn review(&self, token: &str) -> Result<Bound, AttestError> {
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: Some(token.to_owned()),
                audiences: Some(vec![self.audience.clone()]),
            },
            ..TokenReview::default()
        };
        let reviews = Api::<TokenReview>::all(self.client.clone());
        let reviewed = reviews.create(&PostParams::default(), &review).await;
        let status = reviewed
            .map_err(unavailable)?
            .status
            .ok_or(AttestError::Refused)?;
        // A server that does not know of audiences would not repeat ours.
        let ours = status
            .audiences
            .iter()
            .flatten()
            .any(|audience| *audience == self.audience);
        if status.authenticated != Some(true) || !ours {
            return Err(AttestError::Refused);
        }
        Bound::of(status.user.unwrap_or_default()).ok_or(AttestError::Refused)
    }

    /// The Pod must live, be this one, and run under that service account.
    async fn confirm(&self, bound: &Bound) -> Result<(), AttestError> {
        let pods = Api::<Pod>::namespaced(self.client.clone(), bound.workload.namespace());
        let pod = pods.get_opt(&bound.pod).await.map_err(unavailable)?;
        let pod = pod.ok_or(AttestError::Refused)?;
        if is_over(&pod, SystemTime::now()) {
            return Err(AttestError::Refused);
        }
        let account = pod.spec.and_then(|spec| spec.service_account_name);
        let same = pod.metadata.uid.as_deref() == Some(bound.uid.as_str())
            && account.as_deref() == Some(bound.workload.service_account());
        same.then_some(()).ok_or(AttestError::Refused)
    }
}

impl Attestor for KubernetesAttestor {
    async fn attest(&self, token: &str) -> Result<Attested, AttestError> {
        // What anybody may say costs the API server no question.
        if token.len() > MAX_TOKEN || !is_plausible(token, &self.audience, SystemTime::now()) {
            return Err(AttestError::Refused);
        }
        let bound = self.review(token).await?;
        self.confirm(&bound).await?;
        Ok(Attested {
            workload: bound.workload,
            uid: Some(bound.uid),
        })
    }
}

/// Whether nothing of the Pod runs any more: it has finished, and its tokens are good for up to an
/// hour; or it should have ended by now, and its node does not say that it has.
fn is_over(pod: &Pod, now: SystemTime) -> bool {
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    if matches!(phase, Some("Succeeded" | "Failed")) {
        return true;
    }
    // That is when its grace ends.
    let end = pod.metadata.deletion_timestamp.as_ref();
    end.is_some_and(|end| SystemTime::from(end.0) + LINGERS <= now)
}

/// What a token is bound to.
#[derive(Debug, PartialEq, Eq)]
struct Bound {
    workload: WorkloadId,
    pod: String,
    uid: String,
}

impl Bound {
    /// `None` for users that are no service accounts, and for tokens that are bound to no Pod.
    fn of(user: UserInfo) -> Option<Self> {
        let name = user.username?;
        let account = name.strip_prefix("system:serviceaccount:")?;
        let (namespace, account) = account.split_once(':')?;
        let extra = user.extra?;
        let one = |key: &str| match extra.get(key)?.as_slice() {
            [one] if !one.is_empty() => Some(one.clone()),
            _ => None,
        };
        Some(Self {
            workload: WorkloadId::new(namespace, account).ok()?,
            pod: one("authentication.kubernetes.io/pod-name")?,
            uid: one("authentication.kubernetes.io/pod-uid")?,
        })
    }
}

fn unavailable(error: kube::Error) -> AttestError {
    AttestError::Unavailable(error.into())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn user(name: &str, extra: serde_json::Value) -> UserInfo {
        serde_json::from_value(json!({"username": name, "extra": extra})).expect("a user")
    }

    fn pod() -> serde_json::Value {
        json!({
            "authentication.kubernetes.io/pod-name": ["web-1"],
            "authentication.kubernetes.io/pod-uid": ["u-1"],
        })
    }

    #[test]
    fn a_bound_token_names_account_and_pod() {
        let bound = Bound::of(user("system:serviceaccount:shop:web", pod())).expect("bound");
        let workload = WorkloadId::new("shop", "web").expect("names");
        assert_eq!(
            bound,
            Bound {
                workload,
                pod: "web-1".into(),
                uid: "u-1".into()
            }
        );
    }

    #[test]
    fn a_pod_that_has_finished_or_should_have_ended_is_over() {
        let now = SystemTime::now();
        let is_over =
            |pod: serde_json::Value| is_over(&serde_json::from_value(pod).expect("a pod"), now);
        let phase = |phase: &str| json!({"metadata": {}, "status": {"phase": phase}});
        assert!(!is_over(json!({"metadata": {}})));
        assert!(!is_over(phase("Pending")) && !is_over(phase("Running")));
        assert!(is_over(phase("Succeeded")) && is_over(phase("Failed")));
        let ends = |at: &str| json!({"metadata": {"deletionTimestamp": at}});
        assert!(!is_over(ends("2126-01-01T00:00:00Z")), "in its grace");
        assert!(is_over(ends("2026-01-01T00:00:00Z")));
    }

    /// There is no API server to ask.
    #[tokio::test]
    async fn only_what_could_be_a_token_for_us_is_asked_about() {
        let nowhere = kube::Config::new("http://127.0.0.1:1".parse().expect("an address"));
        let client = Client::try_from(nowhere).expect("a client");
        let attestor = KubernetesAttestor::new(client, &"east".parse().expect("an id"));
        for odd in ["", "x", "a.b.c", &"x".repeat(100_000)] {
            let refused = attestor.attest(odd).await;
            assert!(matches!(refused, Err(AttestError::Refused)), "{refused:?}");
        }
        // {"aud":"linkspan:east","exp":9999999999,"kubernetes.io":{"pod":{"name":"a","uid":"b"}}}
        let forged = "e30.eyJhdWQiOiJsaW5rc3BhbjplYXN0IiwiZXhwIjo5OTk5OTk5OTk5LCJrdWJlcm5ldGVzLmlvIjp7\
                      InBvZCI6eyJuYW1lIjoiYSIsInVpZCI6ImIifX19.c2ln";
        let asked = attestor.attest(forged).await;
        assert!(
            matches!(asked, Err(AttestError::Unavailable(_))),
            "{asked:?}"
        );
    }

    #[test]
    fn everybody_else_is_refused() {
        for other in [
            user("admin", pod()),
            user("system:node:east", pod()),
            user("system:serviceaccount:shop", pod()),
            user("system:serviceaccount:shop:web:more", pod()),
            user("system:serviceaccount:shop:web", json!({})),
            user(
                "system:serviceaccount:shop:web",
                json!({"authentication.kubernetes.io/pod-name": ["a", "b"], "authentication.kubernetes.io/pod-uid": ["u"]}),
            ),
        ] {
            assert_eq!(Bound::of(other), None);
        }
    }
}

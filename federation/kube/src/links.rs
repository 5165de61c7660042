//! ClusterLinks that we make and end ourselves, after an invitation or by `link remove`.

use std::pin::Pin;

use kube::Client;
use kube::api::{Api, DynamicObject};
use linkspan_core::backend::{LinkHome, SinkError};
use linkspan_core::{Bundle, ClusterId, TrustDomain};
use linkspan_resources::{ClusterLink, ClusterLinkSpec};
use serde::Deserialize as _;
use serde_json::json;
use tokio::sync::watch;

use crate::declare::{TRIES, Unwritten, as_seen, document, put};
use crate::kinds::cluster_link;
use crate::leader::{Lead, may_write};

type Written<'a, T> = Pin<Box<dyn Future<Output = Result<T, SinkError>> + Send + 'a>>;

/// The API server as the home of links.
pub struct KubernetesLinks {
    api: Api<DynamicObject>,
    lead: watch::Receiver<Lead>,
}

impl KubernetesLinks {
    /// Writes with this client while `lead` says so: what was decided before another replica took
    /// over may be wrong by now.
    #[must_use]
    pub fn new(client: Client, lead: watch::Receiver<Lead>) -> Self {
        Self {
            api: Api::all_with(client, &cluster_link()),
            lead,
        }
    }
}

impl LinkHome for KubernetesLinks {
    fn declare<'a>(&'a self, link: &'a ClusterLink) -> Written<'a, String> {
        Box::pin(async move {
            let name = link.metadata.name.as_str();
            let fail = |source: Box<dyn std::error::Error + Send + Sync>| SinkError {
                what: what(name),
                source,
            };
            let mut wanted = document(&cluster_link(), "", name, json!(link.spec))
                .map_err(|error| fail(error.into()))?;
            wanted.metadata.annotations = Some(link.metadata.annotations.clone());
            // An operator has just said so: what was declared of this very peer before gives way.
            let check = |found: &DynamicObject| match is_same_peer(found, &link.spec) {
                true => Ok(true),
                false => Err(Refused::OtherPeer),
            };
            match put(&self.api, &self.lead, &wanted, check).await {
                Ok(_) => Ok(what(name)),
                Err(Refused::OtherPeer) => Err(fail(
                    "it is there and holds a link to another peer; remove that link first".into(),
                )),
                Err(Refused::Unwritten(error)) => Err(fail(error.into())),
            }
        })
    }

    fn remove<'a>(&'a self, peer: &'a ClusterId, domain: &'a TrustDomain) -> Written<'a, ()> {
        Box::pin(async move {
            let removed = self.remove_as_seen(peer.as_str(), domain.as_str()).await;
            removed.map_err(|error| SinkError {
                what: what(peer.as_str()),
                source: error.into(),
            })
        })
    }
}

impl KubernetesLinks {
    /// Deletes the link as it was read; another one that has taken its name meanwhile stays.
    async fn remove_as_seen(&self, name: &str, domain: &str) -> Result<(), Unwritten> {
        let mut left = TRIES;
        loop {
            left -= 1;
            let found = self.api.get_opt(name).await?;
            let is_meant = |found: &DynamicObject| found.data["spec"]["trustDomain"] == domain;
            let Some(found) = found.filter(is_meant) else {
                return Ok(());
            };
            may_write(&self.lead)?;
            match self.api.delete(name, &as_seen(&found)).await {
                Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
                // Its status changes as long as it is there.
                Err(kube::Error::Api(status)) if status.code == 409 && left > 0 => {}
                other => return Ok(other.map(drop)?),
            }
        }
    }
}

enum Refused {
    OtherPeer,
    Unwritten(Unwritten),
}

impl From<Unwritten> for Refused {
    fn from(unwritten: Unwritten) -> Self {
        Self::Unwritten(unwritten)
    }
}

/// Whether it declares a link to the very peer: another with its name must not take its place.
fn is_same_peer(found: &DynamicObject, link: &ClusterLinkSpec) -> bool {
    let roots = |of: &ClusterLinkSpec| Bundle::from_pem(0, of.bundle.as_bytes()).ok();
    ClusterLinkSpec::deserialize(&found.data["spec"]).is_ok_and(|held| {
        held.trust_domain == link.trust_domain
            && roots(&held).is_some_and(|held| roots(link) == Some(held))
    })
}

fn what(name: &str) -> String {
    format!("ClusterLink {name}")
}

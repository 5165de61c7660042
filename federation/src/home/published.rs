//! What federation tells its own cluster beside the resources, and asks of it: the roots for first
//! contact, and where peers reach the gateways.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use linkspan_core::Address;
use linkspan_kube::{
    CaBundle, Client, Lead, ROOTS_CONFIG_MAP, publish_roots, published_roots, reach, trust_webhook,
};
use linkspan_runtime::process::chain;
use tokio::{sync::watch, time::sleep};

use crate::{bound::BindError, identity::Authority};

/// How often it is looked whether the roots are there as they should be.
const LOOK: Duration = Duration::from_secs(60);
/// How often it is asked where the gateways are; sooner while nobody knows.
const ASK: Duration = Duration::from_secs(30);
/// How often it is asked whether the webhook is wanted while it is not.
const UNWANTED: Duration = Duration::from_secs(10);
/// Pause after a failure, and while there is nothing yet.
const RETRY: Duration = Duration::from_secs(3);

/// The API of the cluster, for both.
#[derive(Clone)]
pub(crate) struct Surroundings {
    pub(super) client: Client,
    pub(super) namespace: String,
}

impl Surroundings {
    /// Where roots are published, if any are.
    pub(super) async fn published(&self) -> Result<Option<String>, BindError> {
        let asking = published_roots(self.client.clone(), &self.namespace);
        let found = asking.await.map_err(BindError::Roots)?;
        let place = format!("ConfigMap `{}/{ROOTS_CONFIG_MAP}`", self.namespace);
        Ok(found.map(|_| place))
    }

    /// Keeps the roots published while this replica leads; never ends.
    pub(crate) async fn publish(self, authority: Arc<Authority>, mut lead: watch::Receiver<Lead>) {
        let mut failing = false;
        loop {
            let leading = |lead: &Lead| lead.may_write(Instant::now());
            if lead.wait_for(leading).await.map(drop).is_err() {
                return;
            }
            let pem = authority.bundle().to_pem();
            let pause = match publish_roots(self.client.clone(), &self.namespace, &pem).await {
                Ok(written) => {
                    if written {
                        tracing::info!("the roots are published");
                    }
                    failing = false;
                    LOOK
                }
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        let error = chain(&error);
                        tracing::error!(error, "what starts anew waits for the roots");
                    }
                    RETRY
                }
            };
            sleep(pause).await;
        }
    }

    /// Has the API server trust the webhook, while this replica leads; never ends.
    pub(crate) async fn trust_webhook(
        self,
        authority: Arc<Authority>,
        mut lead: watch::Receiver<Lead>,
    ) {
        let mut failing = false;
        loop {
            let leading = |lead: &Lead| lead.may_write(Instant::now());
            if lead.wait_for(leading).await.map(drop).is_err() {
                return;
            }
            let pem = authority.bundle().to_pem();
            let pause = match trust_webhook(self.client.clone(), &pem).await {
                Ok(CaBundle::Missing) => UNWANTED,
                Ok(done) => {
                    if done == CaBundle::Written {
                        tracing::info!("the API server trusts the webhook");
                    }
                    failing = false;
                    LOOK
                }
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        let error = chain(&error);
                        tracing::error!(error, "pods that are to have a sidecar may be refused");
                    }
                    RETRY
                }
            };
            sleep(pause).await;
        }
    }

    /// Tells where peers reach the gateways, whenever that is another place; ends with the listener.
    pub(crate) async fn follow_reach(self, told: watch::Sender<Vec<Address>>) {
        let mut failing = false;
        while !told.is_closed() {
            let pause = match reach(&self.client, &self.namespace).await {
                Ok(addresses) => {
                    failing = false;
                    let pause = if addresses.is_empty() { RETRY } else { ASK };
                    told.send_if_modified(|last| {
                        let news = *last != addresses;
                        *last = addresses;
                        news
                    });
                    pause
                }
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(error = chain(&error), "peers are told what was known last");
                    }
                    RETRY
                }
            };
            sleep(pause).await;
        }
    }
}

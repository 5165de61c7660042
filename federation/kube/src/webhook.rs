//! What the API server is to know of federation's webhook: by which roots its certificate is proved.

use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;

use crate::kinds::FIELD_MANAGER;

/// Name of the MutatingWebhookConfiguration, which `linkspan install` makes.
pub const WEBHOOK: &str = "linkspan-federation";

/// What became of the roots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CaBundle {
    /// They were there already.
    Kept,
    /// They were written.
    Written,
    /// There is no such configuration: nobody wants the webhook.
    Missing,
}

/// Makes every webhook of [`WEBHOOK`] trust these roots, and changes nothing else of it.
///
/// # Errors
/// What the API server answered.
pub async fn trust_webhook(client: Client, pem: &str) -> Result<CaBundle, WebhookError> {
    let api = Api::<MutatingWebhookConfiguration>::all(client);
    let Some(found) = api.get_opt(WEBHOOK).await? else {
        return Ok(CaBundle::Missing);
    };
    let wanted = Some(ByteString(pem.as_bytes().to_vec()));
    let webhooks = found.webhooks.unwrap_or_default();
    let stale = webhooks
        .iter()
        .filter(|webhook| webhook.client_config.ca_bundle != wanted);
    let stale: Vec<_> = stale
        .map(|webhook| json!({ "name": webhook.name, "clientConfig": { "caBundle": &wanted } }))
        .collect();
    if stale.is_empty() {
        return Ok(CaBundle::Kept);
    }
    // Merged by name; on condition that nobody else has changed it since.
    let patch = json!({
        "metadata": { "resourceVersion": found.metadata.resource_version },
        "webhooks": stale,
    });
    let params = PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    api.patch(WEBHOOK, &params, &Patch::Strategic(patch))
        .await?;
    Ok(CaBundle::Written)
}

/// The API server cannot be told the roots.
#[derive(Debug, thiserror::Error)]
#[error("the roots cannot be written into MutatingWebhookConfiguration `{WEBHOOK}`")]
pub struct WebhookError(#[source] Box<kube::Error>);

impl From<kube::Error> for WebhookError {
    fn from(error: kube::Error) -> Self {
        Self(Box::new(error))
    }
}

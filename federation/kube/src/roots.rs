//! The cluster's roots, published for those that have no certificate yet.

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Client;
use kube::api::{Api, ObjectMeta, PostParams};

use crate::kinds::{FIELD_MANAGER, MANAGED_BY, MANAGED_BY_LABEL, ROOTS_CONFIG_MAP};

/// The key of the PEM.
const KEY: &str = "roots.pem";

/// Makes [`ROOTS_CONFIG_MAP`] say these roots; whether it had to be written.
///
/// # Errors
/// What the API server answered.
pub async fn publish_roots(
    client: Client,
    namespace: &str,
    pem: &str,
) -> Result<bool, PublishError> {
    let api = Api::<ConfigMap>::namespaced(client, namespace);
    let found = api.get_opt(ROOTS_CONFIG_MAP).await?;
    let says = found
        .as_ref()
        .and_then(|found| found.data.as_ref()?.get(KEY));
    if says.is_some_and(|says| says == pem) {
        return Ok(false);
    }
    let params = PostParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PostParams::default()
    };
    let mut next = found.unwrap_or_else(empty);
    let replaces = next.metadata.resource_version.is_some();
    next.data = Some([(KEY.to_owned(), pem.to_owned())].into());
    match replaces {
        true => api.replace(ROOTS_CONFIG_MAP, &params, &next).await?,
        false => api.create(&params, &next).await?,
    };
    Ok(true)
}

/// The roots that were published last; `None` if none ever were.
///
/// # Errors
/// What the API server answered.
pub async fn published_roots(
    client: Client,
    namespace: &str,
) -> Result<Option<String>, PublishError> {
    let api = Api::<ConfigMap>::namespaced(client, namespace);
    let found = api.get_opt(ROOTS_CONFIG_MAP).await?;
    let says = found.and_then(|found| found.data?.remove(KEY));
    Ok(says.filter(|says| !says.trim().is_empty()))
}

/// The roots could not be published.
#[derive(Debug, thiserror::Error)]
#[error("the roots cannot be published in, or read from, ConfigMap `{ROOTS_CONFIG_MAP}`")]
pub struct PublishError(#[source] Box<kube::Error>);

impl From<kube::Error> for PublishError {
    fn from(error: kube::Error) -> Self {
        Self(Box::new(error))
    }
}

fn empty() -> ConfigMap {
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(ROOTS_CONFIG_MAP.to_owned()),
            labels: Some([(MANAGED_BY_LABEL.to_owned(), MANAGED_BY.to_owned())].into()),
            ..ObjectMeta::default()
        },
        ..ConfigMap::default()
    }
}

//! What is read of a kind: which of its objects, and how much of each.

use std::fmt::Debug;

use futures_util::stream::{BoxStream, StreamExt as _};
use kube::api::{Api, ListParams, WatchEvent, WatchParams};
use kube::core::{ObjectList, PartialObjectMeta};
use kube::{Error, Resource};
use serde::de::DeserializeOwned;

type Events<K> = BoxStream<'static, Result<WatchEvent<K>, Error>>;

/// One way to list and watch a kind.
pub(crate) trait Reads: Send + Sync + 'static {
    /// What comes of each object.
    type Object: Resource + Clone + Debug + Send + Sync + 'static;

    /// One page of those that are wanted.
    fn list(
        &self,
        params: ListParams,
    ) -> impl Future<Output = Result<ObjectList<Self::Object>, Error>> + Send;

    /// What becomes of them.
    fn watch(
        &self,
        params: WatchParams,
        version: &str,
    ) -> impl Future<Output = Result<Events<Self::Object>, Error>> + Send;
}

/// Whole objects: those with these labels, or all.
pub(crate) struct Whole<K> {
    api: Api<K>,
    labels: Option<&'static str>,
}

impl<K> Whole<K> {
    /// All of them.
    pub(crate) fn all(api: Api<K>) -> Self {
        Self { api, labels: None }
    }

    /// Those that a label selector selects.
    pub(crate) fn labelled(api: Api<K>, labels: &'static str) -> Self {
        let labels = Some(labels);
        Self { api, labels }
    }
}

impl<K> Reads for Whole<K>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    type Object = K;

    async fn list(&self, mut params: ListParams) -> Result<ObjectList<K>, Error> {
        params.label_selector = self.labels.map(str::to_owned);
        self.api.list(&params).await
    }

    async fn watch(&self, mut params: WatchParams, version: &str) -> Result<Events<K>, Error> {
        params.label_selector = self.labels.map(str::to_owned);
        Ok(self.api.watch(&params, version).await?.boxed())
    }
}

/// Names, labels and uids only: the rest never comes over the wire.
pub(crate) struct MetadataOnly<K> {
    pub(crate) api: Api<K>,
    pub(crate) labels: Option<&'static str>,
    pub(crate) fields: Option<&'static str>,
}

impl<K> Reads for MetadataOnly<K>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    type Object = PartialObjectMeta<K>;

    async fn list(&self, mut params: ListParams) -> Result<ObjectList<Self::Object>, Error> {
        params.label_selector = self.labels.map(str::to_owned);
        params.field_selector = self.fields.map(str::to_owned);
        self.api.list_metadata(&params).await
    }

    async fn watch(
        &self,
        mut params: WatchParams,
        version: &str,
    ) -> Result<Events<Self::Object>, Error> {
        params.label_selector = self.labels.map(str::to_owned);
        params.field_selector = self.fields.map(str::to_owned);
        Ok(self.api.watch_metadata(&params, version).await?.boxed())
    }
}

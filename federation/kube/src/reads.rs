//! What is read of a kind: which of its objects, and how much of each.

use std::fmt::Debug;

use futures_util::stream::{BoxStream, StreamExt as _};
use kube::api::{Api, ListParams, WatchEvent, WatchParams};
use kube::core::ObjectList;
use kube::{Error, Resource};
use serde::de::DeserializeOwned;

type Events<K> = BoxStream<'static, Result<WatchEvent<K>, Error>>;

/// One way to list and watch a kind.
pub(crate) trait Reads: Send + Sync + 'static {
    /// What comes of each object.
    type Object: Resource + Clone + PartialEq + Debug + Send + Sync + 'static;

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

/// Objects, as much of each as `K` takes in: those with these labels or fields, or all.
pub(crate) struct Whole<K> {
    api: Api<K>,
    labels: Option<&'static str>,
    fields: Option<&'static str>,
}

impl<K> Whole<K> {
    /// All of them.
    pub(crate) fn all(api: Api<K>) -> Self {
        Self {
            api,
            labels: None,
            fields: None,
        }
    }

    /// Those that a label selector selects.
    pub(crate) fn labelled(api: Api<K>, labels: &'static str) -> Self {
        Self {
            labels: Some(labels),
            ..Self::all(api)
        }
    }

    /// Those that a field selector selects.
    pub(crate) fn with_fields(api: Api<K>, fields: &'static str) -> Self {
        Self {
            fields: Some(fields),
            ..Self::all(api)
        }
    }
}

impl<K> Reads for Whole<K>
where
    K: Resource + Clone + PartialEq + DeserializeOwned + Debug + Send + Sync + 'static,
{
    type Object = K;

    async fn list(&self, mut params: ListParams) -> Result<ObjectList<K>, Error> {
        params.label_selector = self.labels.map(str::to_owned);
        params.field_selector = self.fields.map(str::to_owned);
        self.api.list(&params).await
    }

    async fn watch(&self, mut params: WatchParams, version: &str) -> Result<Events<K>, Error> {
        params.label_selector = self.labels.map(str::to_owned);
        params.field_selector = self.fields.map(str::to_owned);
        Ok(self.api.watch(&params, version).await?.boxed())
    }
}

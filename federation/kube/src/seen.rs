//! Pods and nodes, as little of them as is read: the rest is dropped while it comes in, so that
//! what is kept of a cluster's pods is a few hundred bytes for each.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::net::IpAddr;

use k8s_openapi::api::core::v1;
use kube::Resource;
use kube::api::ObjectMeta;
use kube::core::{ApiResource, DynamicResourceScope};
use serde::Deserialize;

/// Label of pods that have a sidecar: `linkspan inject` sets it.
const MESHED: &str = "linkspan.io/meshed";

/// A part of an object.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub(crate) struct Part<P, U> {
    pub(crate) metadata: ObjectMeta,
    #[serde(default)]
    spec: P,
    #[serde(default)]
    status: U,
}

/// Which labels it has, and where it is.
pub(crate) type SeenPod = Part<PodSpec, PodStatus>;
/// Where it is.
pub(crate) type SeenNode = Part<Nothing, NodeStatus>;

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub(crate) struct Nothing {}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub(crate) struct PodSpec {
    #[serde(default, rename = "hostNetwork")]
    host_network: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub(crate) struct PodStatus {
    #[serde(default, rename = "podIPs")]
    ips: Vec<PodIp>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
struct PodIp {
    ip: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub(crate) struct NodeStatus {
    #[serde(default)]
    addresses: Vec<NodeAddress>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
struct NodeAddress {
    address: String,
}

impl SeenPod {
    /// How to ask for them.
    pub(crate) fn resource() -> ApiResource {
        ApiResource::erase::<v1::Pod>(&())
    }

    /// Whether it has a sidecar.
    pub(crate) fn is_meshed(&self) -> bool {
        let labels = self.metadata.labels.as_ref();
        labels.is_some_and(|of| of.get(MESHED).is_some_and(|is| is == "true"))
    }

    /// Whether its addresses are its node's.
    pub(crate) fn is_on_host(&self) -> bool {
        self.spec.host_network
    }

    /// Whether the kubelet says that it has this address.
    pub(crate) fn has(&self, ip: IpAddr) -> bool {
        let mut ips = self.status.ips.iter();
        ips.any(|of| of.ip.parse() == Ok(ip))
    }
}

impl SeenNode {
    /// How to ask for them.
    pub(crate) fn resource() -> ApiResource {
        ApiResource::erase::<v1::Node>(&())
    }

    /// All its addresses, of whatever type; names are none.
    pub(crate) fn ips(&self) -> BTreeSet<IpAddr> {
        let addresses = self.status.addresses.iter();
        let ips = addresses.filter_map(|of| of.address.parse::<IpAddr>().ok());
        ips.map(|ip| ip.to_canonical()).collect()
    }
}

impl<P, U> Resource for Part<P, U> {
    type DynamicType = ApiResource;
    type Scope = DynamicResourceScope;

    fn kind(of: &ApiResource) -> Cow<'_, str> {
        of.kind.as_str().into()
    }

    fn group(of: &ApiResource) -> Cow<'_, str> {
        of.group.as_str().into()
    }

    fn version(of: &ApiResource) -> Cow<'_, str> {
        of.version.as_str().into()
    }

    fn plural(of: &ApiResource) -> Cow<'_, str> {
        of.plural.as_str().into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

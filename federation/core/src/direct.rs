//! Where callers without a sidecar reach endpoints by themselves: where the cluster's own proxies
//! lead them.

use std::collections::BTreeMap;
use std::net::IpAddr;

/// One endpoint of an exported Service of this cluster, with or without a sidecar.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DirectEndpoint {
    /// Where it is, and what it is worth.
    pub entry: Entry,
    /// Where it listens, by the name of the Service's port (empty for one without).
    pub ports: BTreeMap<String, u16>,
}

/// One place at which connections are taken, as EndpointSlices show it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// Its address.
    pub ip: IpAddr,
    /// Whether new connections are to go there.
    pub ready: bool,
    /// Whether it answers, though it may be terminating.
    pub serving: bool,
    /// Whether it is going away.
    pub terminating: bool,
    /// Its host name.
    pub hostname: Option<String>,
    /// The node that it runs on.
    pub node: Option<String>,
    /// The zone of that node.
    pub zone: Option<String>,
    /// Which pod it is, where it is one of the Service's own namespace.
    pub pod: Option<PodName>,
}

/// A pod of the Service's own namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodName {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
}

//! Brings real Kubernetes clusters up on one Linux machine, without containers to start them from
//! and without a registry: for tests, which know nothing of it but kubeconfigs.
//!
//! A cluster is a folder, and one *node*: a set of namespaces (mounts, network, processes, host
//! name) in which etcd, the API server, the controllers, the scheduler, containerd, the kubelet and
//! kube-proxy run. Its first process holds them all: when that is killed, the kernel ends every
//! other process, every pod, every mount and every interface of that node.

mod bare;
mod bare_server;
mod cluster;
mod control_plane;
mod down;
mod fleet;
mod home;
mod images;
mod kubectl;
mod machine;
mod node;
mod pki;
mod process;
mod programs;
mod smoke;

pub mod command;

pub use self::{
    bare::{NAME as BARE, up as bare_up},
    bare_server::BareServer,
    cluster::{Cluster, DNS_SERVICE, POD_CIDR, Place, SERVICE_CIDR},
    down::down,
    fleet::{Fleet, up},
    home::Home,
    images::POD,
    machine::{missing, remains, visible},
    process::{Program, Running},
    programs::{KUBERNETES, Programs},
    smoke::smoke,
};

//! The resource kinds that Linkspan reads, as plain data.
//!
//! ```text
//! text ─ yaml (documents, positions) ─ shape (every rule of a kind) ─ Object (typed)
//!                                         └─► ResourceProblem: file, line, field, found, fix
//! ```
//!
//! One file per kind: its types, and the *shape* that says what is allowed where.
//! Shapes are checked on the document tree, before it becomes typed, so that one
//! reading reports everything that is wrong and where it stands. Nothing of the
//! YAML library is visible outside the module `yaml`.

mod cluster_link;
mod cluster_property;
mod condition;
pub mod crd;
mod document;
mod endpoint_slice;
mod failover_policy;
mod metadata;
mod problem;
#[cfg(test)]
mod reference;
mod rules;
mod service;
mod service_export;
mod service_import;
mod shape;
mod span;
mod timestamp;
mod yaml;

pub use cluster_link::{Address, ClusterLink, ClusterLinkSpec, ImportPattern, SYSTEM_NAMESPACE};
pub use cluster_property::{CLUSTER_PROPERTY, CLUSTERSET_PROPERTY, ClusterPropertySpec};
pub use condition::StatusCondition;
pub use document::{Object, parse_documents, read_object};
pub use endpoint_slice::{
    AddressType, EndpointSlice, SERVICE_NAME, SliceConditions, SliceEndpoint, SlicePort,
};
pub use failover_policy::{
    Failback, FailoverPolicy, FailoverPolicySpec, LocalityWeight, MAX_TIERS, OWN, StalePeers,
    TargetKind, TargetRef, Tier, Unlisted,
};
pub use metadata::{DEFAULT_NAMESPACE, Metadata};
pub use problem::ResourceProblem;
pub use service::SessionAffinity;
pub use service::{AppProtocol, Protocol, Service, ServicePort, ServiceSpec, ServiceType};
pub use service_export::{ServiceExport, ServiceExportSpec};
pub use service_import::{
    ClientIpConfig, ConditionsStatus, ImportedCluster, ImportedPort, ServiceImportSpec,
    ServiceImportStatus, ServiceImportType, SessionAffinityConfig,
};
pub use span::Span;
pub use timestamp::Timestamp;

//! The Kubernetes home of a federation: what `federation/core` asks of a backend, kept by an
//! API server. The only crate that names a Kubernetes client.
//!
//! ```text
//! API server ─watches─► Mirror (one per kind, complete lists only) ─┬─► KubernetesSource ─► Declared
//!      ▲                                                            └─► KubernetesSink ◄── Desired
//!      ├── server-side apply, own field manager ◄───────────────────────┘
//!      ├── Lease ◄─► leader: one replica writes
//!      ├── TokenReview, Pods ◄── KubernetesAttestor
//!      ├── ConfigMaps ◄─► KubernetesJournal: what peers told last
//!      ├── Secrets ◄─► KubernetesSecret: what must outlive the pod, one writer
//!      └── Service, Nodes ─► reach: where peers dial; ConfigMap ◄─ publish_roots
//! ```

mod attest;
mod claims;
mod connect;
mod declare;
mod follow;
mod journal;
mod kinds;
mod leader;
mod lease;
mod links;
mod mirror;
mod mirrors;
mod reach;
mod reads;
mod roots;
mod secrets;
mod seen;
mod servers;
mod service;
mod sink;
mod source;
mod webhook;

pub use attest::KubernetesAttestor;
pub use connect::{ConnectError, connect};
pub use declare::KubernetesDeclarations;
pub use journal::KubernetesJournal;
pub use kinds::{FIELD_MANAGER, MANAGED_BY, ROOTS_CONFIG_MAP, SECRETS, TUNNEL_SERVICE};
pub use kube::Client;
pub use leader::{Lead, lead};
pub use lease::{Elector, Seen, Step, Terms};
pub use links::KubernetesLinks;
pub use mirrors::Mirrors;
pub use reach::{ReachError, reach};
pub use roots::{PublishError, publish_roots, published_roots};
pub use secrets::{KubernetesSecret, MAX_SECRET, OWNER, SecretError};
pub use sink::KubernetesSink;
pub use source::KubernetesSource;
pub use webhook::{CaBundle, WEBHOOK, WebhookError, trust_webhook};

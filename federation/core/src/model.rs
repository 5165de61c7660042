//! The nouns of the control plane. Names of clusters, services and endpoints are those
//! of `routing` and `trust`; what only a federation knows is added here.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

pub use linkspan_resources::{Address, SYSTEM_NAMESPACE, SessionAffinity};
pub use linkspan_routing::{
    AppProtocol, Area, ClusterCapacity, ClusterId, ClusterLabel, DEFAULT_OVERPROVISIONING,
    Endpoint, EndpointId, FailbackConfig, FailoverPolicy, Locality, LocalityWeight, Named, Service,
    ServiceKey, ServicePort, TierMatch, Unlisted,
};
pub use linkspan_trust::{Bundle, SpiffeId, TrustDomain, WorkloadId};

use crate::join::InvitationId;

/// Who this federation is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnCluster {
    /// The own cluster's id.
    pub cluster: ClusterId,
    /// The set of clusters in which names mean the same.
    pub clusterset: String,
    /// The own trust domain.
    pub trust_domain: TrustDomain,
    /// Whether exports that do not say it themselves admit callers without a sidecar.
    pub unmeshed_clients: bool,
}

/// Whether an exported service has one virtual address or one per endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ImportType {
    /// One virtual address.
    #[default]
    ClusterSetIP,
    /// No virtual address.
    Headless,
}

impl fmt::Display for ImportType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ClusterSetIP => "ClusterSetIP",
            Self::Headless => "Headless",
        })
    }
}

impl std::str::FromStr for ImportType {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<Self, UnknownWord> {
        match text {
            "ClusterSetIP" => Ok(Self::ClusterSetIP),
            "Headless" => Ok(Self::Headless),
            other => Err(UnknownWord::new("an import type", other)),
        }
    }
}

/// `None` or `ClientIP`, as the MCS API writes them.
pub fn affinity_text(affinity: SessionAffinity) -> &'static str {
    match affinity {
        SessionAffinity::None => "None",
        SessionAffinity::ClientIP => "ClientIP",
    }
}

/// Reads what [`affinity_text`] writes.
///
/// # Errors
/// For any other text.
pub fn affinity_from_text(text: &str) -> Result<SessionAffinity, UnknownWord> {
    match text {
        "None" => Ok(SessionAffinity::None),
        "ClientIP" => Ok(SessionAffinity::ClientIP),
        other => Err(UnknownWord::new("a session affinity", other)),
    }
}

/// A word that is none of those known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{found:?} is not {kind}")]
pub struct UnknownWord {
    kind: &'static str,
    found: String,
}

impl UnknownWord {
    fn new(kind: &'static str, found: &str) -> Self {
        Self {
            kind,
            found: found.chars().take(40).collect(),
        }
    }
}

/// A service as one cluster exports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// Which service.
    pub service: ServiceKey,
    /// Its ports in that cluster.
    pub ports: Vec<ServicePort>,
    /// How it is reached.
    pub import_type: ImportType,
    /// Whether a client stays with one endpoint.
    pub session_affinity: SessionAffinity,
    /// When the ServiceExport was made; never later than its receipt.
    pub created: SystemTime,
    /// Endpoints expected per locality; the denominator of health.
    pub capacity: Vec<(Locality, u32)>,
    /// Whether callers without a sidecar may use it, for whom gateways call.
    pub unmeshed_clients: bool,
}

/// One endpoint of an exported service.
#[derive(Clone, Debug, PartialEq)]
pub struct ExportedEndpoint {
    /// Which service.
    pub service: ServiceKey,
    /// The endpoint; its address is set in its own cluster only.
    pub endpoint: Arc<Endpoint>,
    /// Host name of the workload; may be empty.
    pub hostname: String,
}

/// What many exports of one service add up to.
#[derive(Clone, Debug, PartialEq)]
pub struct Import {
    /// Which service.
    pub service: ServiceKey,
    /// The union of the ports.
    pub ports: Vec<ServicePort>,
    /// How it is reached; the oldest export's.
    pub import_type: ImportType,
    /// Whether a client stays with one endpoint; the oldest export's.
    pub session_affinity: SessionAffinity,
    /// What each exporting cluster contributes.
    pub clusters: BTreeMap<ClusterId, ClusterCapacity>,
    /// Those of them that admit callers without a sidecar.
    pub unmeshed_clients: BTreeSet<ClusterId>,
}

/// A link as it is declared on this side.
#[derive(Clone, Debug, PartialEq)]
pub struct Link {
    /// The peer's cluster id.
    pub cluster: ClusterId,
    /// The peer's trust domain, the link's alone.
    pub trust_domain: TrustDomain,
    /// The peer's gateways.
    pub gateway_id: SpiffeId,
    /// The peer's federation.
    pub federation_id: SpiffeId,
    /// Where the peer's gateways can be dialled.
    pub addresses: Vec<Address>,
    /// The peer's roots as declared.
    pub bundle: Bundle,
    /// Whether loopback and link-local addresses may be dialled.
    pub allow_loopback: bool,
    /// What the peer may contribute.
    pub imports: ImportFilter,
    /// The invitation of which the link came, as its declaration says; `None` where somebody wrote it.
    pub made_by: Option<InvitationId>,
    /// Made by invitation, and no tunnel has been up yet: gateways and federations may meet, but
    /// no data passes. Never declared; the book of links says so.
    pub pending: bool,
}

/// What a peer may contribute.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ImportFilter {
    /// `None`: everything outside reserved namespaces.
    pub patterns: Option<Vec<linkspan_resources::ImportPattern>>,
}

impl ImportFilter {
    /// Whether the peer may contribute to `service`.
    pub fn allows(&self, service: &ServiceKey) -> bool {
        let (namespace, name) = (service.namespace.as_str(), service.name.as_str());
        match &self.patterns {
            None => linkspan_resources::ImportPattern::default().matches(namespace, name),
            Some(patterns) => patterns
                .iter()
                .any(|pattern| pattern.matches(namespace, name)),
        }
    }
}

/// Status of a [`Condition`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ConditionStatus {
    /// It holds.
    True,
    /// It does not hold.
    False,
    /// Not known yet.
    Unknown,
}

impl fmt::Display for ConditionStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        })
    }
}

/// What is said about a resource (`metav1.Condition` without its times).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Such as `Valid`.
    pub kind: &'static str,
    /// Whether it holds.
    pub status: ConditionStatus,
    /// One word, or several joined by commas, for machines.
    pub reason: String,
    /// For people.
    pub message: String,
}

impl Condition {
    /// A condition.
    pub fn new(
        kind: &'static str,
        status: ConditionStatus,
        reason: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        Self {
            kind,
            status,
            reason: reason.into(),
            message: message.into(),
        }
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}: {}", self.kind, self.status, self.reason)?;
        if !self.message.is_empty() {
            write!(f, " ({})", self.message)?;
        }
        Ok(())
    }
}

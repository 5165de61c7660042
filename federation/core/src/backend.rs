//! The border to where resources live: a Kubernetes API, or a directory of files.
//!
//! Snapshots cross it, not events: each backend hides its own protocol of lists and
//! watches, and what is above it is level-triggered by construction.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use linkspan_resources::{ClusterLink, Object};

use crate::declared::Declared;
use crate::model::{ClusterId, ServiceKey, TrustDomain, WorkloadId};
use crate::plan::Desired;

/// Why there is no next snapshot.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The backend cannot be read now; the caller may ask again, and what was declared last
    /// stays in force.
    #[error("{what} cannot be read; it will be tried again")]
    Unavailable {
        /// Which place.
        what: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The backend is gone for good.
    #[error("the source of resources has ended")]
    Ended,
}

/// Why nothing could be written.
#[derive(Debug, thiserror::Error)]
#[error("{what} cannot be written; it will be tried again")]
pub struct SinkError {
    /// Which place.
    pub what: String,
    /// Why.
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// What came of an [`Sink::apply`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Objects written because they differed.
    pub written: usize,
    /// Objects that the backend refused, each with its reason.
    pub refused: Vec<(String, String)>,
}

/// Where resources are declared.
pub trait Source: Send + 'static {
    /// Waits for the next *complete* snapshot; the first comes as soon as there is one.
    /// Cancel-safe. A part that is malformed is left as it last was (or out, if it never
    /// was), with a problem in the snapshot.
    fn next(&mut self) -> impl Future<Output = Result<Arc<Declared>, SourceError>> + Send;
}

/// Where imports and statuses are written.
pub trait Sink: Send + 'static {
    /// Makes the world match; applying the same again writes nothing. With removals held,
    /// imports that are not desired stay as they are.
    fn apply(
        &mut self,
        desired: &Desired,
        removals: Removals,
    ) -> impl Future<Output = Result<Applied, SinkError>> + Send;

    /// Waits until somebody else may have changed what was written, so that it should be
    /// applied again. Cancel-safe. A backend that is ours alone waits for ever.
    fn disturbed(&mut self) -> impl Future<Output = ()> + Send {
        std::future::pending()
    }
}

/// Whether what is not desired is to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removals {
    /// It goes.
    Made,
    /// It stays: what is not known yet after a restart is not gone; see [`crate::hold`].
    Held,
}

/// What became of a declaration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// False where it was so already.
    pub changed: bool,
    /// Where it is or was, for people (such as a file).
    pub place: String,
}

/// Why something cannot be declared, or taken back.
#[derive(Debug, thiserror::Error)]
pub enum DeclareError {
    /// Somebody declares it otherwise; that is for them to change.
    #[error("{kind} `{name}` is declared in {place}; change it there")]
    Elsewhere {
        /// Which kind.
        kind: &'static str,
        /// Namespace and name.
        name: String,
        /// Where.
        place: String,
    },
    /// The place cannot be written to.
    #[error("nothing can be written to {place}; check free space, ownership and rights")]
    Failed {
        /// Which place.
        place: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl DeclareError {
    /// That somebody else declares it there.
    pub fn elsewhere(
        kind: &'static str,
        namespace: &str,
        name: &str,
        place: impl std::fmt::Display,
    ) -> Self {
        Self::Elsewhere {
            kind,
            name: format!("{namespace}/{name}"),
            place: place.to_string(),
        }
    }

    /// That the place failed.
    pub fn failed(
        place: impl std::fmt::Display,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Failed {
            place: place.to_string(),
            source: source.into(),
        }
    }
}

/// Where the operator's own declarations are written; the [`Source`] then reads them like
/// anybody's.
pub trait Declarations: Send + Sync + 'static {
    /// Writes an object, replacing one that was written here.
    fn declare(&self, object: Object)
    -> impl Future<Output = Result<Written, DeclareError>> + Send;

    /// Takes an object back, if it is declared by itself.
    fn withdraw(
        &self,
        kind: &'static str,
        key: &ServiceKey,
    ) -> impl Future<Output = Result<Written, DeclareError>> + Send;
}

/// Why a token proves nothing.
#[derive(Debug, thiserror::Error)]
pub enum AttestError {
    /// Malformed, unknown, expired or used up: the holder's fault. Deliberately says no more.
    #[error("the token is not valid; ask for a new one with `linkspan token create`")]
    Refused,
    /// The judge cannot be asked now.
    #[error("tokens cannot be checked now; try again")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Who holds a token, as far as it tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attested {
    /// The workload's namespace and service account.
    pub workload: WorkloadId,
    /// The UID of the one workload to which the token was given; `None` where it was given to
    /// whoever runs under that service account.
    pub uid: Option<String>,
}

/// Who holds a token.
pub trait Attestor: Send + Sync + 'static {
    /// The workload that this token was given to.
    fn attest(&self, token: &str) -> impl Future<Output = Result<Attested, AttestError>> + Send;
}

/// Why a journal could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The place cannot be used now.
    #[error("{what} cannot be used; it will be tried again")]
    Unavailable {
        /// Which place.
        what: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// More than a journal holds.
    #[error(
        "the journal of {peer} would have {bytes} bytes, more than the {MAX_JOURNAL} that are kept; \
         after a restart its records are missing until it is heard"
    )]
    TooLarge {
        /// Whose.
        peer: ClusterId,
        /// How many bytes.
        bytes: usize,
    },
}

/// Most bytes of one peer's journal: a full quota of records (16 MiB) even if it could not be
/// compressed at all.
pub const MAX_JOURNAL: usize = 24 * 1024 * 1024;

/// One peer's journal as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalEntry {
    /// Whose.
    pub peer: ClusterId,
    /// What was saved last, or why it cannot be had. Whether it is whole,
    /// [`crate::journal::decode`] tells: a backend need not notice.
    pub content: Result<Vec<u8>, String>,
}

/// Where the last records of each peer outlive a restart; see [`crate::journal`].
pub trait Journal: Send + 'static {
    /// All that was saved.
    fn load(&mut self) -> impl Future<Output = Result<Vec<JournalEntry>, JournalError>> + Send;

    /// Replaces a peer's journal as a whole: after a crash the old one or the new one is found.
    fn save(
        &mut self,
        peer: &ClusterId,
        content: &[u8],
    ) -> impl Future<Output = Result<(), JournalError>> + Send;

    /// Removes a peer's journal; one that does not exist is no error.
    fn forget(&mut self, peer: &ClusterId)
    -> impl Future<Output = Result<(), JournalError>> + Send;
}

/// Where links are declared by us: an invitation that was accepted, a link that is removed.
pub trait LinkHome: Send + Sync + 'static {
    /// Declares a link as if an operator had; one of that name is replaced. Tells where.
    fn declare<'a>(
        &'a self,
        link: &'a ClusterLink,
    ) -> Pin<Box<dyn Future<Output = Result<String, SinkError>> + Send + 'a>>;

    /// Removes the declaration of the link to `peer` with that trust domain, whoever made it; there
    /// may be none.
    fn remove<'a>(
        &'a self,
        peer: &'a ClusterId,
        domain: &'a TrustDomain,
    ) -> Pin<Box<dyn Future<Output = Result<(), SinkError>> + Send + 'a>>;
}

//! The registry of this cluster's own workloads.
//!
//! A sidecar registers its workload on its discovery stream and repeats itself once a
//! second. A workload counts while it has a stream that is heard, and for one lease after
//! that; a workload known from before a restart counts as before for one full lease.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::model::{EndpointId, Locality, SYSTEM_NAMESPACE, SpiffeId};
use crate::presence::{Heard, Presence, Registry, Session, Terms};

mod owners;
#[cfg(test)]
mod tests;

pub use owners::Owned;

use owners::Owners;

/// How long a workload counts after it was last heard.
pub const LEASE: Duration = Duration::from_secs(10);
/// How long a lapsed workload is still shown, so that its operator sees what happened.
const KEEP_LAPSED: Duration = Duration::from_secs(600);
/// Most workloads kept, lapsed ones included: bounds memory where something registers
/// under ever new UIDs. Twice what one cluster is meant to have.
const MAX_WORKLOADS: usize = 20_000;
/// Most workloads of one identity that count at a time: more replicas than anybody runs of one
/// thing, and few enough that nobody's join token locks all others out.
const MAX_PER_IDENTITY: usize = 2_000;
/// Most bytes of all labels of one workload: bounds memory, and the file that keeps them.
const MAX_LABELS: usize = 2_048;
/// Greatest weight of an endpoint.
const MAX_WEIGHT: u32 = 128;

/// What a sidecar says of its workload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// Stable for the life of the workload.
    pub uid: String,
    /// Who it is: from its certificate, never from what it says.
    pub identity: SpiffeId,
    /// Its namespace: that of its identity.
    pub namespace: String,
    /// Labels, by which Services select it.
    pub labels: BTreeMap<String, String>,
    /// Where it runs.
    pub locality: Locality,
    /// Where its sidecar accepts inner mTLS.
    pub address: SocketAddr,
    /// Whether it wants traffic.
    pub ready: bool,
    /// Relative weight, 1 to 128.
    pub weight: u32,
    /// Host name; may be empty.
    pub hostname: String,
    /// Greater after each start of the sidecar; 0 if unknown.
    #[serde(default)]
    pub incarnation: u64,
}

/// Why a registration is refused. The sidecar's operator is to blame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegistrationError {
    /// A field breaks its rule.
    #[error("workload {field} is {found:?}; {fix}")]
    Field {
        /// Which field.
        field: &'static str,
        /// What it says.
        found: String,
        /// What it should say.
        fix: &'static str,
    },
    /// The UID belongs to another identity.
    #[error("workload uid {uid:?} belongs to {holder}; give each workload a uid of its own")]
    Taken {
        /// The UID.
        uid: String,
        /// Who has it.
        holder: SpiffeId,
    },
    /// The workload has a newer stream.
    #[error(
        "workload uid {uid:?} has connected again; where that was another process, \
         give each a `uid` of its own"
    )]
    Superseded {
        /// The UID.
        uid: String,
    },
    /// Too many workloads have this identity.
    #[error(
        "{MAX_PER_IDENTITY} workloads of {identity} are registered already; \
         run the others under another service account"
    )]
    TooMany {
        /// The identity.
        identity: SpiffeId,
    },
    /// There are too many workloads.
    #[error(
        "this cluster has {MAX_WORKLOADS} workloads already; remove some, or wait until lapsed ones are forgotten"
    )]
    Full,
}

impl Registration {
    /// Checks every field, and that the namespace is the identity's.
    ///
    /// # Errors
    /// The first field that breaks its rule.
    pub fn check(&self) -> Result<(), RegistrationError> {
        let field = |field, found: &str, fix| {
            let found = found.chars().take(80).collect();
            Err(RegistrationError::Field { field, found, fix })
        };
        let Some(id) = self.identity.workload_id() else {
            return field(
                "identity",
                self.identity.as_str(),
                "register with a workload's certificate",
            );
        };
        if id.namespace() == SYSTEM_NAMESPACE {
            return field(
                "identity",
                self.identity.as_str(),
                "run workloads outside the system namespace",
            );
        }
        if id.namespace() != self.namespace {
            return field(
                "namespace",
                &self.namespace,
                "use the namespace of the workload's identity",
            );
        }
        if self.uid.is_empty() || self.uid.len() > 253 || self.uid.chars().any(char::is_control) {
            return field("uid", &self.uid, "use 1 to 253 printable characters");
        }
        let lower = self.uid.to_ascii_lowercase();
        if lower != self.uid && EndpointId::from_uid(&lower) == self.endpoint_id() {
            // Else two workloads could be one endpoint under different names.
            return field("uid", &self.uid, "write a UUID in lower case");
        }
        if self.labels.len() > 64
            || self
                .labels
                .iter()
                .any(|(k, v)| !is_plain(k, 317) || !is_plain(v, 63))
            || self
                .labels
                .iter()
                .map(|(k, v)| k.len() + v.len())
                .sum::<usize>()
                > MAX_LABELS
        {
            return field(
                "labels",
                "",
                "use at most 64 labels of at most 2048 bytes together, with printable values of \
                 at most 63 characters",
            );
        }
        for text in [&self.locality.region, &self.locality.zone] {
            if !is_plain(text, 63) {
                return field(
                    "locality",
                    text,
                    "use at most 63 printable characters for region and zone",
                );
            }
        }
        if !is_plain(&self.hostname, 253) {
            return field(
                "hostname",
                &self.hostname,
                "use at most 253 printable characters",
            );
        }
        if self.address.port() == 0 || self.address.ip().is_unspecified() {
            return field(
                "address",
                &self.address.to_string(),
                "give the address at which gateways reach the sidecar",
            );
        }
        if !(1..=MAX_WEIGHT).contains(&self.weight) {
            return field(
                "weight",
                &self.weight.to_string(),
                "use a weight from 1 to 128",
            );
        }
        Ok(())
    }

    /// The id by which routing knows the workload.
    pub fn endpoint_id(&self) -> EndpointId {
        EndpointId::from_uid(&self.uid)
    }
}

/// Short, and nothing that would grow in a file or play tricks on a terminal.
fn is_plain(text: &str, most: usize) -> bool {
    text.len() <= most && !text.chars().any(char::is_control)
}

/// A workload and whether it counts.
#[derive(Clone, Copy, Debug)]
pub struct Workload<'a> {
    /// What it said last.
    pub registration: &'a Registration,
    /// Whether it counts.
    pub presence: Presence,
}

/// The registry.
#[derive(Clone, Debug)]
pub struct Workloads {
    registry: Registry<Registration>,
    owners: Owners,
}

impl Default for Workloads {
    fn default() -> Self {
        Self::new(LEASE)
    }
}

impl Workloads {
    /// An empty registry with this lease ([`LEASE`] unless a test wants another).
    pub fn new(lease: Duration) -> Self {
        Self {
            registry: Registry::new(Terms {
                lease,
                parted: lease,
                keep_lapsed: KEEP_LAPSED,
            }),
            owners: Owners::default(),
        }
    }

    /// After a restart: whose uids were, lapsed ones included; oldest first.
    pub fn restore_owners(&mut self, owned: impl IntoIterator<Item = Owned>) {
        for owned in owned {
            self.owners.restore(owned);
        }
    }

    /// Whose those uids are that do not count, to be kept; oldest first. Of the others that which is
    /// [registered](Self::counting) tells it.
    pub fn owned(&self) -> Vec<Owned> {
        let mut all = self.owners.all();
        all.retain(|of| !self.counts(&of.uid));
        all
    }

    fn counts(&self, uid: &str) -> bool {
        let held = self.registry.get(uid);
        held.is_some_and(|held| held.presence.counts())
    }

    /// Grows with each uid that is claimed or forgotten.
    pub fn owners_changes(&self) -> u64 {
        self.owners.changes()
    }

    /// Forgets whose uids were that have not counted for `keep`, which is to be longer than their
    /// certificates live. Looks at each one: to be called now and then.
    pub fn forget_owners(&mut self, wall: SystemTime, keep: Duration) {
        let registry = &self.registry;
        let counts = |uid: &str| {
            let held = registry.get(uid);
            held.is_some_and(|held| held.presence.counts())
        };
        let since = wall.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.owners.forget_gone(since.as_secs(), keep, counts);
    }

    fn claim(&mut self, uid: &str, identity: &SpiffeId) {
        let counts = |uid: &str| {
            let held = self.registry.get(uid);
            held.is_some_and(|held| held.presence.counts())
        };
        self.owners.claim(uid, identity, counts);
    }

    /// After a restart: each counts as before for one full lease. Those that no longer pass
    /// [`Registration::check`] are left out.
    pub fn restored(
        persisted: impl IntoIterator<Item = Registration>,
        lease: Duration,
        now: Instant,
    ) -> Self {
        let mut this = Self::new(lease);
        this.restore(persisted, now);
        this
    }

    /// As [`Workloads::restored`], into this one. A uid that belongs to another identity is left
    /// out.
    pub fn restore(&mut self, persisted: impl IntoIterator<Item = Registration>, now: Instant) {
        for registration in persisted.into_iter().take(MAX_WORKLOADS) {
            self.claim(&registration.uid, &registration.identity);
            let own = self.owners.owner(&registration.uid) == Some(&registration.identity);
            if own && registration.check().is_ok() {
                self.registry
                    .restore(registration.uid.clone(), registration, now);
            }
        }
    }

    /// A registration or heartbeat on a stream. True where it changes what should be planned.
    ///
    /// # Errors
    /// See [`RegistrationError`]; the registry is as it was.
    pub fn register(
        &mut self,
        registration: Registration,
        session: Session,
        now: Instant,
    ) -> Result<bool, RegistrationError> {
        registration.check()?;
        let uid = registration.uid.clone();
        if let Some(holder) = self.owners.owner(&uid)
            && *holder != registration.identity
        {
            let holder = holder.clone();
            return Err(RegistrationError::Taken { uid, holder });
        }
        match self.registry.get(&uid) {
            Some(held) if held.presence.counts() => {}
            held => {
                let is_new = held.is_none();
                self.admit(&registration.identity, is_new)?;
            }
        }
        self.claim(&uid, &registration.identity);
        match self.registry.hear(&uid, registration, session, now) {
            Heard::Changed => Ok(true),
            Heard::Same => Ok(false),
            Heard::Superseded => Err(RegistrationError::Superseded { uid }),
        }
    }

    /// Whether one more of this identity may count, and be kept if it is new here.
    fn admit(&mut self, identity: &SpiffeId, is_new: bool) -> Result<(), RegistrationError> {
        let of_it = self.counting().filter(|held| held.identity == *identity);
        if of_it.count() >= MAX_PER_IDENTITY {
            let identity = identity.clone();
            return Err(RegistrationError::TooMany { identity });
        }
        if is_new && self.registry.len() >= MAX_WORKLOADS {
            self.registry.forget_lapsed();
            if self.registry.len() >= MAX_WORKLOADS {
                return Err(RegistrationError::Full);
            }
        }
        Ok(())
    }

    /// The stream ended; the workload keeps what is left of its lease. An older stream's end means nothing.
    pub fn disconnect(&mut self, uid: &str, session: Session, now: Instant) {
        self.registry.disconnect(uid, session, now);
    }

    /// Lets leases lapse. True where that changes what should be planned.
    pub fn tick(&mut self, now: Instant) -> bool {
        self.registry.tick(now)
    }

    /// When [`Workloads::tick`] next has something to do, unless a workload is heard before.
    pub fn next_lapse(&self) -> Option<Instant> {
        self.registry.next_lapse()
    }

    /// Whether every workload known from before a restart has reconnected or lapsed.
    pub fn settled(&self) -> bool {
        self.registry.settled()
    }

    /// All of them, lapsed ones included, by UID.
    pub fn iter(&self) -> impl Iterator<Item = Workload<'_>> {
        self.registry.iter().map(|(_, member)| Workload {
            registration: &member.said,
            presence: member.presence,
        })
    }

    /// One of them.
    pub fn get(&self, uid: &str) -> Option<Workload<'_>> {
        let member = self.registry.get(uid)?;
        Some(Workload {
            registration: &member.said,
            presence: member.presence,
        })
    }

    /// Those that count, by UID: what is planned with and what is kept on disk.
    pub fn counting(&self) -> impl Iterator<Item = &Registration> {
        self.iter()
            .filter(|workload| workload.presence.counts())
            .map(|workload| workload.registration)
    }
}

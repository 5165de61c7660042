//! Who is there: streams that hold a lease, and leases that outlive their stream.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Names one stream of one client; a later stream has a greater number. Only the newest
/// stream of a client speaks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Session(pub u64);

/// Whether a client counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// It has a stream, on which it was last heard one lease before `until`.
    Connected {
        /// Its newest stream.
        session: Session,
        /// When it lapses unless it is heard again.
        until: Instant,
    },
    /// Its stream ended, or we restarted; it counts as before until the lease is over.
    Lease {
        /// When it lapses unless it comes back.
        until: Instant,
    },
    /// It does not count any more.
    Lapsed {
        /// Since when.
        since: Instant,
    },
}

impl Presence {
    /// Whether the client counts.
    pub fn counts(&self) -> bool {
        !matches!(self, Self::Lapsed { .. })
    }

    /// `connected`, `lease` or `lapsed`.
    pub fn text(&self) -> &'static str {
        match self {
            Self::Connected { .. } => "connected",
            Self::Lease { .. } => "lease",
            Self::Lapsed { .. } => "lapsed",
        }
    }
}

/// Clients by name, each with what it said last and whether it counts.
#[derive(Clone, Debug)]
pub(crate) struct Registry<T> {
    members: BTreeMap<String, Member<T>>,
    terms: Terms,
}

/// How long clients count.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    /// After they were last heard on a stream that is still open, and after a restart.
    pub(crate) lease: Duration,
    /// After their stream ended, at most; the lease goes on meanwhile.
    pub(crate) parted: Duration,
    /// How long they are still shown after that.
    pub(crate) keep_lapsed: Duration,
}

/// One client.
#[derive(Clone, Debug)]
pub(crate) struct Member<T> {
    pub(crate) said: T,
    pub(crate) presence: Presence,
    /// Known from before a restart and not heard since.
    unsettled: bool,
}

impl<T: PartialEq> Registry<T> {
    pub(crate) fn new(terms: Terms) -> Self {
        Self {
            members: BTreeMap::new(),
            terms,
        }
    }

    /// Adds a client known from before a restart: it counts as before for one full lease.
    pub(crate) fn restore(&mut self, name: String, said: T, now: Instant) {
        let presence = Presence::Lease {
            until: now + self.terms.lease,
        };
        self.members.insert(
            name,
            Member {
                said,
                presence,
                unsettled: true,
            },
        );
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Member<T>> {
        self.members.get(name)
    }

    pub(crate) fn get_mut(&mut self, name: &str) -> Option<&mut T> {
        self.members.get_mut(name).map(|member| &mut member.said)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Member<T>)> {
        self.members
            .iter()
            .map(|(name, member)| (name.as_str(), member))
    }

    pub(crate) fn len(&self) -> usize {
        self.members.len()
    }

    /// What a client says on its stream; also renews its lease. False where an older stream
    /// than its newest speaks, which changes nothing.
    pub(crate) fn hear(&mut self, name: &str, said: T, session: Session, now: Instant) -> Heard {
        let presence = Presence::Connected {
            session,
            until: now + self.terms.lease,
        };
        let Some(member) = self.members.get_mut(name) else {
            self.members.insert(
                name.to_owned(),
                Member {
                    said,
                    presence,
                    unsettled: false,
                },
            );
            return Heard::Changed;
        };
        if superseded(&member.presence, session) {
            return Heard::Superseded;
        }
        let changed = member.said != said || !member.presence.counts();
        *member = Member {
            said,
            presence,
            unsettled: false,
        };
        if changed { Heard::Changed } else { Heard::Same }
    }

    /// The stream ended: the client keeps what is left of its lease, and `parted` at most. One
    /// whose stream was given up for its silence has been waited for already.
    pub(crate) fn disconnect(&mut self, name: &str, session: Session, now: Instant) -> bool {
        let parted = self.terms.parted;
        let Some(member) = self.members.get_mut(name) else {
            return false;
        };
        match member.presence {
            Presence::Connected {
                session: newest,
                until,
            } if newest == session => {
                member.presence = Presence::Lease {
                    until: until.min(now + parted),
                };
                true
            }
            _ => false,
        }
    }

    /// Lets leases lapse, and forgets those lapsed long ago. True where anything changed.
    pub(crate) fn tick(&mut self, now: Instant) -> bool {
        let mut changed = false;
        for member in self.members.values_mut() {
            if let Presence::Connected { until, .. } | Presence::Lease { until } = member.presence
                && now >= until
            {
                member.presence = Presence::Lapsed { since: until };
                member.unsettled = false;
                changed = true;
            }
        }
        let keep = self.terms.keep_lapsed;
        let before = self.members.len();
        self.members.retain(|_, member| match member.presence {
            Presence::Lapsed { since } => now.saturating_duration_since(since) < keep,
            _ => true,
        });
        changed || self.members.len() != before
    }

    /// Forgets those that do not count, to make room for one that does.
    pub(crate) fn forget_lapsed(&mut self) {
        self.members.retain(|_, member| member.presence.counts());
    }

    /// When the next lease lapses, unless its client is heard before.
    pub(crate) fn next_lapse(&self) -> Option<Instant> {
        let until = |member: &Member<T>| match member.presence {
            Presence::Connected { until, .. } | Presence::Lease { until } => Some(until),
            Presence::Lapsed { .. } => None,
        };
        self.members.values().filter_map(until).min()
    }

    /// Whether every client known from before a restart has come back or lapsed.
    pub(crate) fn settled(&self) -> bool {
        self.members.values().all(|member| !member.unsettled)
    }
}

/// What came of a client's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// It said something new, or counts again.
    Changed,
    /// A heartbeat.
    Same,
    /// It has a newer stream.
    Superseded,
}

fn superseded(presence: &Presence, session: Session) -> bool {
    matches!(presence, Presence::Connected { session: newest, .. } if *newest > session)
}

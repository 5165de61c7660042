//! What one stream has been sent and must still be sent: records in, numbered changes out.
//!
//! Level-triggered: each newer set of records replaces what was still waiting, so that a slow
//! proxy costs one set of records and no more, however often the world changes meanwhile.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    hash::{BuildHasher as _, RandomState},
};

use linkspan_api::v1::{self, discover_response::Message};
use prost::Message as _;

/// Marks kept for acknowledgements to come; a proxy further behind skips some.
const MAX_MARKS: usize = 64;

/// Joins that wait for a proxy to read: an operator asks for one at a time.
const MAX_JOINS: usize = 4;

/// Whether records may leave a proxy's set now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Removals {
    /// What is missing is really gone.
    Apply,
    /// We have just restarted: what is missing may only not have come back yet.
    Hold,
}

enum Change {
    Upsert(Box<v1::DiscoverRecord>),
    Remove(String),
    Complete,
}

/// The sending side of one discovery stream.
pub(crate) struct Outbox {
    hasher: RandomState,
    /// Key → hash of the record's bytes, as sent.
    sent: HashMap<String, u64>,
    pending: VecDeque<Change>,
    /// Joins to dial; they go before all records and belong to no generation.
    joins: VecDeque<v1::JoinDial>,
    revision: u64,
    completed: bool,
    /// The generation that `pending` leads to.
    generation: u64,
    /// (revision, generation): who acknowledged that revision holds that generation.
    marks: VecDeque<(u64, u64)>,
    acknowledged: u64,
    applied_generation: Option<u64>,
}

impl Outbox {
    pub(crate) fn new() -> Self {
        Self {
            hasher: RandomState::new(),
            sent: HashMap::new(),
            pending: VecDeque::new(),
            joins: VecDeque::new(),
            revision: 0,
            completed: false,
            generation: 0,
            marks: VecDeque::new(),
            acknowledged: 0,
            applied_generation: None,
        }
    }

    /// Aims at `records`, which are those of `generation`; what was waiting is forgotten.
    /// The first full set is closed with `Complete` once removals apply: until then it may
    /// lack something, and a proxy that reconnected goes on with the set it has.
    pub(crate) fn aim(
        &mut self,
        records: Vec<v1::DiscoverRecord>,
        generation: u64,
        removals: Removals,
    ) {
        self.pending.clear();
        self.generation = generation;
        let mut wanted = HashSet::with_capacity(records.len());
        for record in records {
            if self.sent.get(&record.key) != Some(&self.hash(&record)) {
                self.pending
                    .push_back(Change::Upsert(Box::new(record.clone())));
            }
            wanted.insert(record.key);
        }
        if removals == Removals::Apply {
            let mut gone: Vec<_> = self
                .sent
                .keys()
                .filter(|key| !wanted.contains(*key))
                .cloned()
                .collect();
            gone.sort();
            self.pending.extend(gone.into_iter().map(Change::Remove));
            if !self.completed {
                self.pending.push_back(Change::Complete);
            }
        }
        self.mark_if_idle();
    }

    fn hash(&self, record: &v1::DiscoverRecord) -> u64 {
        self.hasher.hash_one(record.encode_to_vec())
    }

    /// Whether [`Self::next`] has something.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.pending.is_empty() || !self.joins.is_empty()
    }

    /// Has a peer dialled; of more than a few that wait the oldest is forgotten.
    pub(crate) fn join(&mut self, dial: v1::JoinDial) {
        if self.joins.len() == MAX_JOINS {
            self.joins.pop_front();
        }
        self.joins.push_back(dial);
    }

    /// The next response; it counts as sent.
    pub(crate) fn next(&mut self) -> Option<v1::DiscoverResponse> {
        if let Some(dial) = self.joins.pop_front() {
            self.revision += 1;
            self.mark_if_idle();
            return Some(v1::DiscoverResponse {
                revision: self.revision,
                message: Some(Message::Join(dial)),
            });
        }
        let message = match self.pending.pop_front()? {
            Change::Upsert(record) => {
                self.sent.insert(record.key.clone(), self.hash(&record));
                Message::Upsert(*record)
            }
            Change::Remove(key) => {
                self.sent.remove(&key);
                Message::Remove(key)
            }
            Change::Complete => {
                self.completed = true;
                Message::Complete(v1::DiscoverComplete {})
            }
        };
        self.revision += 1;
        self.mark_if_idle();
        Some(v1::DiscoverResponse {
            revision: self.revision,
            message: Some(message),
        })
    }

    fn mark_if_idle(&mut self) {
        if !self.pending.is_empty() || !self.completed {
            return;
        }
        if self.marks.len() == MAX_MARKS {
            // The oldest stays, or a proxy that is always behind would never reach any.
            self.marks.pop_back();
        }
        self.marks.push_back((self.revision, self.generation));
        self.settle_marks();
    }

    /// The proxy has applied everything up to `revision`.
    pub(crate) fn acknowledge(&mut self, revision: u64) {
        // A proxy can only have applied what was sent.
        self.acknowledged = self.acknowledged.max(revision.min(self.revision));
        self.settle_marks();
    }

    fn settle_marks(&mut self) {
        while let Some(&(revision, generation)) = self.marks.front() {
            if revision > self.acknowledged {
                break;
            }
            self.applied_generation = Some(generation);
            self.marks.pop_front();
        }
    }

    /// The newest generation that the proxy has applied whole.
    pub(crate) fn applied_generation(&self) -> Option<u64> {
        self.applied_generation
    }
}

#[cfg(test)]
mod tests {
    use linkspan_api::v1::discover_record::Body;

    use super::*;

    fn peer(name: &str, usable: bool) -> v1::DiscoverRecord {
        let body = v1::Peer {
            cluster: name.into(),
            usable,
            ..Default::default()
        };
        v1::DiscoverRecord {
            key: format!("peer/{name}"),
            body: Some(Body::Peer(body)),
        }
    }

    fn drain(outbox: &mut Outbox) -> Vec<String> {
        std::iter::from_fn(|| outbox.next())
            .map(|response| match response.message {
                Some(Message::Upsert(record)) => format!("{} +{}", response.revision, record.key),
                Some(Message::Remove(key)) => format!("{} -{key}", response.revision),
                Some(Message::Complete(_)) => format!("{} complete", response.revision),
                Some(Message::Join(dial)) => format!("{} join {}", response.revision, dial.id),
                None => "nothing".into(),
            })
            .collect()
    }

    #[test]
    fn joins_go_first_are_bounded_and_belong_to_no_generation() {
        let mut outbox = Outbox::new();
        outbox.aim(vec![peer("a", true)], 1, Removals::Apply);
        for id in 1..=MAX_JOINS as u64 + 1 {
            outbox.join(v1::JoinDial {
                id,
                ..Default::default()
            });
        }
        let sent = drain(&mut outbox);
        assert_eq!(sent[..2], ["1 join 2", "2 join 3"]);
        assert_eq!(sent[4..], ["5 +peer/a", "6 complete"]);
        outbox.acknowledge(6);
        assert_eq!(outbox.applied_generation(), Some(1));
        outbox.join(v1::JoinDial::default());
        assert_eq!(drain(&mut outbox), ["7 join 0"]);
        outbox.acknowledge(7);
        assert_eq!(outbox.applied_generation(), Some(1));
    }

    #[test]
    fn complete_follows_the_first_set_then_only_changes() {
        let mut outbox = Outbox::new();
        outbox.aim(
            vec![peer("west", true), peer("north", true)],
            1,
            Removals::Apply,
        );
        assert_eq!(
            drain(&mut outbox),
            ["1 +peer/west", "2 +peer/north", "3 complete"]
        );
        outbox.aim(vec![peer("west", false)], 2, Removals::Apply);
        assert_eq!(drain(&mut outbox), ["4 +peer/west", "5 -peer/north"]);
        outbox.aim(vec![peer("west", false)], 3, Removals::Apply);
        assert!(drain(&mut outbox).is_empty());
    }

    #[test]
    fn the_newest_set_replaces_what_was_waiting() {
        let mut outbox = Outbox::new();
        outbox.aim(
            vec![peer("west", true), peer("north", true)],
            1,
            Removals::Apply,
        );
        outbox.next().unwrap();
        outbox.aim(
            vec![peer("west", true), peer("south", true)],
            2,
            Removals::Apply,
        );
        assert_eq!(drain(&mut outbox), ["2 +peer/south", "3 complete"]);
    }

    #[test]
    fn holds_removals_and_complete_until_settled() {
        let mut outbox = Outbox::new();
        outbox.aim(
            vec![peer("west", true), peer("north", true)],
            1,
            Removals::Hold,
        );
        assert_eq!(drain(&mut outbox), ["1 +peer/west", "2 +peer/north"]);
        outbox.aim(vec![peer("west", true)], 2, Removals::Hold);
        assert!(drain(&mut outbox).is_empty());
        outbox.aim(vec![peer("west", true)], 3, Removals::Apply);
        assert_eq!(drain(&mut outbox), ["3 -peer/north", "4 complete"]);
    }

    #[test]
    fn a_generation_is_applied_when_its_last_revision_is_acknowledged() {
        let mut outbox = Outbox::new();
        outbox.aim(vec![peer("west", true)], 7, Removals::Apply);
        drain(&mut outbox);
        outbox.acknowledge(1);
        assert_eq!(outbox.applied_generation(), None);
        outbox.acknowledge(2);
        assert_eq!(outbox.applied_generation(), Some(7));
        // Nothing to send: applied at once.
        outbox.aim(vec![peer("west", true)], 8, Removals::Apply);
        assert_eq!(outbox.applied_generation(), Some(8));
        outbox.aim(vec![peer("west", false)], 9, Removals::Apply);
        drain(&mut outbox);
        assert_eq!(outbox.applied_generation(), Some(8));
        outbox.acknowledge(3);
        assert_eq!(outbox.applied_generation(), Some(9));
    }

    #[test]
    fn acknowledging_what_was_never_sent_proves_nothing() {
        let mut outbox = Outbox::new();
        outbox.acknowledge(u64::MAX);
        outbox.aim(vec![peer("west", true)], 1, Removals::Apply);
        drain(&mut outbox);
        assert_eq!(outbox.applied_generation(), None);
    }
}

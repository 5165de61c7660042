//! What one subscriber holds and must still be sent.
//!
//! Like the outbox of discovery, but between clusters: the subscriber may hold records from
//! an earlier stream (`known`), which are confirmed by key and hash instead of being sent
//! again, and only a window of messages may be under way without acknowledgement.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use bytes::Bytes;
use linkspan_api::v1::{self, sync_response::Message};

use crate::discovery::Removals;

/// Messages under way without acknowledgement: enough to fill a slow link with small
/// records, little enough that a subscriber that applies nothing is soon noticed.
pub(crate) const WINDOW: u64 = 1_024;

enum Change {
    Upsert(Box<v1::SyncRecord>),
    Remove(String),
    Complete,
}

/// The sending side of one subscription.
pub(crate) struct Outbox {
    /// What the subscriber said it holds; each is confirmed, replaced, or ended by `Complete`.
    known: HashMap<String, Bytes>,
    /// Key → hash, as sent on this stream.
    sent: BTreeMap<String, Bytes>,
    pending: VecDeque<Change>,
    seq: u64,
    acknowledged: u64,
    completed: bool,
}

impl Outbox {
    pub(crate) fn new(known: Vec<v1::KnownRecord>) -> Self {
        Self {
            known: known
                .into_iter()
                .map(|record| (record.key, record.hash))
                .collect(),
            sent: BTreeMap::new(),
            pending: VecDeque::new(),
            seq: 0,
            acknowledged: 0,
            completed: false,
        }
    }

    /// Aims at `records`; what was waiting is forgotten.
    pub(crate) fn aim(&mut self, records: &[v1::SyncRecord], removals: Removals) {
        self.pending.clear();
        let mut wanted = BTreeSet::new();
        for record in records {
            wanted.insert(record.key.as_str());
            if self.sent.get(&record.key) != Some(&record.hash) {
                self.pending
                    .push_back(Change::Upsert(Box::new(self.without_known_body(record))));
            }
        }
        if removals == Removals::Apply {
            // Endpoints before the services that they belong to: `endpoint/` sorts first.
            let gone = self
                .sent
                .keys()
                .filter(|key| !wanted.contains(key.as_str()));
            self.pending.extend(gone.cloned().map(Change::Remove));
            if !self.completed {
                self.pending.push_back(Change::Complete);
            }
        }
    }

    /// The record itself, or only its key and hash where the subscriber has the body.
    fn without_known_body(&self, record: &v1::SyncRecord) -> v1::SyncRecord {
        let mut record = record.clone();
        if self.known.get(&record.key) == Some(&record.hash) {
            record.body = None;
        }
        record
    }

    /// The first message.
    pub(crate) fn begin(&mut self, begin: v1::SyncBegin) -> v1::SyncResponse {
        self.numbered(Message::Begin(begin))
    }

    /// A sign of life; sent also when the window is closed.
    pub(crate) fn heartbeat(&mut self, now_unix_millis: i64) -> v1::SyncResponse {
        self.numbered(Message::Heartbeat(v1::SyncHeartbeat { now_unix_millis }))
    }

    /// Whether [`Self::next`] has something now.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.pending.is_empty() && self.is_open()
    }

    /// Whether the window allows another record.
    fn is_open(&self) -> bool {
        self.seq.saturating_sub(self.acknowledged) < WINDOW
    }

    /// The next message, if the window allows one.
    pub(crate) fn next(&mut self) -> Option<v1::SyncResponse> {
        if !self.is_open() {
            return None;
        }
        let message = match self.pending.pop_front()? {
            Change::Upsert(record) => {
                // From here on the subscriber holds this, not what it held before.
                self.known.remove(&record.key);
                self.sent.insert(record.key.clone(), record.hash.clone());
                Message::Upsert(*record)
            }
            Change::Remove(key) => {
                self.sent.remove(&key);
                Message::Remove(key)
            }
            Change::Complete => {
                self.completed = true;
                self.known = HashMap::new();
                Message::Complete(v1::SyncComplete {})
            }
        };
        Some(self.numbered(message))
    }

    fn numbered(&mut self, message: Message) -> v1::SyncResponse {
        self.seq += 1;
        v1::SyncResponse {
            seq: self.seq,
            message: Some(message),
        }
    }

    /// The subscriber has applied everything up to `seq`.
    pub(crate) fn acknowledge(&mut self, seq: u64) {
        self.acknowledged = self.acknowledged.max(seq.min(self.seq));
    }
}

#[cfg(test)]
mod tests {
    use linkspan_api::v1::sync_record::Body;

    use super::*;

    fn record(key: &str, hash: &'static str) -> v1::SyncRecord {
        let body = Body::Gateways(v1::GatewaysRecord::default());
        v1::SyncRecord {
            key: key.into(),
            hash: Bytes::from(hash),
            body: Some(body),
        }
    }

    fn known(key: &str, hash: &'static str) -> v1::KnownRecord {
        v1::KnownRecord {
            key: key.into(),
            hash: Bytes::from(hash),
        }
    }

    fn drain(outbox: &mut Outbox) -> Vec<String> {
        std::iter::from_fn(|| outbox.next())
            .map(|response| match response.message {
                Some(Message::Upsert(r)) if r.body.is_none() => format!("={}", r.key),
                Some(Message::Upsert(r)) => format!("+{}", r.key),
                Some(Message::Remove(key)) => format!("-{key}"),
                Some(Message::Complete(_)) => "complete".into(),
                _ => "?".into(),
            })
            .collect()
    }

    #[test]
    fn known_bodies_are_confirmed_not_sent() {
        let mut outbox = Outbox::new(vec![known("a", "1"), known("b", "1"), known("gone", "1")]);
        outbox.aim(
            &[record("a", "1"), record("b", "2"), record("c", "1")],
            Removals::Apply,
        );
        assert_eq!(drain(&mut outbox), ["=a", "+b", "+c", "complete"]);
        outbox.aim(&[record("a", "2"), record("c", "1")], Removals::Apply);
        assert_eq!(drain(&mut outbox), ["+a", "-b"]);
        // The first body is not what the subscriber holds any more.
        outbox.aim(&[record("a", "1"), record("c", "1")], Removals::Apply);
        assert_eq!(drain(&mut outbox), ["+a"]);
    }

    #[test]
    fn holds_removals_and_complete() {
        let mut outbox = Outbox::new(Vec::new());
        outbox.aim(&[record("a", "1"), record("b", "1")], Removals::Hold);
        assert_eq!(drain(&mut outbox), ["+a", "+b"]);
        outbox.aim(&[record("a", "1")], Removals::Hold);
        assert!(drain(&mut outbox).is_empty());
        outbox.aim(&[record("a", "1")], Removals::Apply);
        assert_eq!(drain(&mut outbox), ["-b", "complete"]);
    }

    #[test]
    fn acknowledgements_bound_what_is_under_way() {
        let mut outbox = Outbox::new(Vec::new());
        let records: Vec<_> = (0..WINDOW + 10)
            .map(|n| record(&format!("{n:05}"), "1"))
            .collect();
        outbox.aim(&records, Removals::Apply);
        assert_eq!(drain(&mut outbox).len() as u64, WINDOW);
        assert!(!outbox.is_waiting());
        let beat = outbox.heartbeat(0);
        assert_eq!(beat.seq, WINDOW + 1);
        outbox.acknowledge(beat.seq);
        assert_eq!(drain(&mut outbox).len(), 11);
    }
}

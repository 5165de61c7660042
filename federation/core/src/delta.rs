//! Sets of records that can be compared without looking at their bodies.
//!
//! Each record has a key and the hash of its encoded body. Two sets differ where keys or
//! hashes differ; a subscriber that says which hashes it holds is sent no body twice. The
//! same code serves sync (bodies are sync records) and discovery (bodies are what proxies
//! are told): the caller encodes, this module compares.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};

#[cfg(test)]
mod tests;

/// The first 16 bytes of the SHA-256 of a record's encoded body.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordHash(pub [u8; 16]);

impl RecordHash {
    /// The hash of an encoded body.
    pub fn of(encoded: &[u8]) -> Self {
        let mut hash = [0; 16];
        hash.copy_from_slice(&digest(&SHA256, encoded).as_ref()[..16]);
        Self(hash)
    }

    /// A hash as the wire has it; `None` unless it has 16 bytes.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for RecordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A record without its key.
#[derive(Debug)]
pub struct Entry<V> {
    /// The hash of the encoded body.
    pub hash: RecordHash,
    /// The body.
    pub body: Arc<V>,
}

impl<V> Clone for Entry<V> {
    fn clone(&self) -> Self {
        Self {
            hash: self.hash,
            body: Arc::clone(&self.body),
        }
    }
}

/// Entries are equal where their hashes are.
impl<V> PartialEq for Entry<V> {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash
    }
}

impl<V> Eq for Entry<V> {}

/// Records by key.
#[derive(Debug, PartialEq, Eq)]
pub struct RecordSet<K: Ord, V> {
    records: BTreeMap<K, Entry<V>>,
}

impl<K: Ord, V> Default for RecordSet<K, V> {
    fn default() -> Self {
        Self {
            records: BTreeMap::new(),
        }
    }
}

impl<K: Ord + Clone, V> Clone for RecordSet<K, V> {
    fn clone(&self) -> Self {
        Self {
            records: self.records.clone(),
        }
    }
}

impl<K: Ord + Clone, V> RecordSet<K, V> {
    /// An empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts a record in; `encoded` is its body as it will be sent.
    pub fn insert(&mut self, key: K, body: Arc<V>, encoded: &[u8]) {
        self.insert_entry(
            key,
            Entry {
                hash: RecordHash::of(encoded),
                body,
            },
        );
    }

    /// Puts a record in whose hash is known.
    pub fn insert_entry(&mut self, key: K, entry: Entry<V>) {
        self.records.insert(key, entry);
    }

    /// Takes a record out.
    pub fn remove(&mut self, key: &K) -> Option<Entry<V>> {
        self.records.remove(key)
    }

    /// A record.
    pub fn get(&self, key: &K) -> Option<&Entry<V>> {
        self.records.get(key)
    }

    /// All records, by key.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &Entry<V>)> {
        self.records.iter()
    }

    /// How many records there are.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// What a holder of this set says it knows.
    pub fn known(&self) -> Known<K> {
        self.records
            .iter()
            .map(|(key, entry)| (key.clone(), entry.hash))
            .collect()
    }

    /// Makes the changes.
    pub fn apply(&mut self, changes: ChangeSet<K, V>) {
        for key in &changes.removals {
            self.records.remove(key);
        }
        self.records.extend(changes.upserts);
    }

    /// What a subscriber that holds `known` must be told so that it holds this set.
    pub fn resume(&self, known: &Known<K>) -> Resumption<K, V> {
        let mut resumption = Resumption {
            upserts: Vec::new(),
            unchanged: Vec::new(),
            gone: Vec::new(),
        };
        for (key, entry) in &self.records {
            if known.get(key) == Some(&entry.hash) {
                resumption.unchanged.push((key.clone(), entry.hash));
            } else {
                resumption.upserts.push((key.clone(), entry.clone()));
            }
        }
        resumption.gone = known
            .keys()
            .filter(|key| !self.records.contains_key(*key))
            .cloned()
            .collect();
        resumption
    }
}

/// The hashes that a subscriber holds.
pub type Known<K> = BTreeMap<K, RecordHash>;

/// What turns one set into another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangeSet<K, V> {
    /// Records that are new or have changed, by key.
    pub upserts: Vec<(K, Entry<V>)>,
    /// Keys of records that are no more, in order.
    pub removals: Vec<K>,
}

impl<K, V> ChangeSet<K, V> {
    /// Whether the sets are equal.
    pub fn is_empty(&self) -> bool {
        self.upserts.is_empty() && self.removals.is_empty()
    }
}

/// What a subscriber must be told that holds some records already.
///
/// Every record of the set is named, by `upserts` or by `unchanged`; so a subscriber that
/// drops at `Complete` what was not named ends up with the set, even if it held less than
/// it said, since it can tell an `unchanged` record that it does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resumption<K, V> {
    /// Sent whole, by key.
    pub upserts: Vec<(K, Entry<V>)>,
    /// Named with their hash, without a body.
    pub unchanged: Vec<(K, RecordHash)>,
    /// Known to the subscriber, but no more; need not be sent where `Complete` drops the rest.
    pub gone: Vec<K>,
}

/// What turns `old` into `new`.
pub fn diff<K: Ord + Clone, V>(old: &RecordSet<K, V>, new: &RecordSet<K, V>) -> ChangeSet<K, V> {
    let upserts = new
        .records
        .iter()
        .filter(|(key, entry)| old.records.get(*key) != Some(*entry))
        .map(|(key, entry)| (key.clone(), entry.clone()))
        .collect();
    let removals = old
        .records
        .keys()
        .filter(|key| !new.records.contains_key(*key))
        .cloned()
        .collect();
    ChangeSet { upserts, removals }
}

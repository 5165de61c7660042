//! Whatever two sets hold, the changes between them lead from one to the other.

use proptest::prelude::*;

use super::*;

type Set = RecordSet<u8, String>;

fn set_of(records: &BTreeMap<u8, String>) -> Set {
    let mut set = Set::new();
    for (key, body) in records {
        set.insert(*key, Arc::new(body.clone()), body.as_bytes());
    }
    set
}

fn any_set() -> impl Strategy<Value = Set> {
    prop::collection::btree_map(0u8..12, "[ab]{0,2}", 0..12).prop_map(|records| set_of(&records))
}

fn bodies(set: &Set) -> Vec<(u8, String)> {
    set.iter()
        .map(|(key, entry)| (*key, (*entry.body).clone()))
        .collect()
}

/// What a subscriber that really holds `held` ends up with.
fn resumed(set: &Set, held: &Set) -> Set {
    let resumption = set.resume(&held.known());
    let mut result = Set::new();
    for (key, entry) in resumption.upserts {
        result.insert_entry(key, entry);
    }
    for (key, hash) in resumption.unchanged {
        let entry = held.get(&key).expect("only what is known is left out");
        assert_eq!(entry.hash, hash);
        result.insert_entry(key, entry.clone());
    }
    result
}

#[test]
fn hashes_are_the_beginning_of_sha_256() {
    let hash = RecordHash::of(b"abc");
    assert_eq!(format!("{hash:?}"), "ba7816bf8f01cfea414140de5dae2223");
    assert_eq!(RecordHash::from_bytes(hash.as_bytes()), Some(hash));
    assert_eq!(RecordHash::from_bytes(&[0; 15]), None);
}

#[test]
fn nothing_is_sent_twice() {
    let set = set_of(&BTreeMap::from([(1, "a".into()), (2, "b".into())]));
    let resumption = set.resume(&set.known());
    assert!(resumption.upserts.is_empty() && resumption.gone.is_empty());
    assert_eq!(resumption.unchanged.len(), 2);
}

proptest! {
    #[test]
    fn applying_the_difference_gives_the_new_set(old in any_set(), new in any_set()) {
        let changes = diff(&old, &new);
        prop_assert_eq!(changes.is_empty(), bodies(&old) == bodies(&new));
        let mut result = old.clone();
        result.apply(changes.clone());
        prop_assert_eq!(bodies(&result), bodies(&new));
        result.apply(changes);
        prop_assert_eq!(bodies(&result), bodies(&new), "applying again changes nothing");
        prop_assert!(diff(&result, &new).is_empty());
    }

    #[test]
    fn differences_name_only_what_differs(old in any_set(), new in any_set()) {
        let changes = diff(&old, &new);
        for (key, entry) in &changes.upserts {
            prop_assert!(old.get(key) != Some(entry));
        }
        for key in &changes.removals {
            prop_assert!(old.get(key).is_some() && new.get(key).is_none());
        }
    }

    #[test]
    fn resuming_from_any_knowledge_gives_the_same_set(held in any_set(), set in any_set()) {
        prop_assert_eq!(bodies(&resumed(&set, &held)), bodies(&set));
        let gone = set.resume(&held.known()).gone;
        for (key, _) in held.iter() {
            prop_assert_eq!(gone.contains(key), set.get(key).is_none());
        }
    }
}

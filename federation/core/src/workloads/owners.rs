//! Whose each uid is: that of the identity which registered it first, also after it has lapsed and
//! after a restart. What is known of a workload by its uid (routes, caches, certificates' names)
//! thus never comes to mean somebody else's. Once it has been gone for longer than a certificate
//! lives, nothing is known of it any more, and the uid is nobody's again.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{MAX_PER_IDENTITY, MAX_WORKLOADS};
use crate::model::SpiffeId;

/// Most uids that are remembered: as many as workloads, twice over. Then those claimed longest ago
/// are forgotten.
const MAX_OWNED: usize = 2 * MAX_WORKLOADS;
/// Most of one identity, so that who registers under ever new uids forgets his own.
const MAX_OWNED_PER_IDENTITY: usize = 2 * MAX_PER_IDENTITY;

/// Uids that are looked at to find one that may be forgotten.
const LOOKS: usize = 8;

/// One uid and whose it is, as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owned {
    /// The uid.
    pub uid: String,
    /// Who registered it.
    pub identity: SpiffeId,
    /// Since when it has not counted, as far as was seen; seconds of Unix time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gone_unix: Option<u64>,
}

/// Uids by when they were claimed, or last seen to count when room was made: numbers grow.
type Order = BTreeMap<u64, String>;

#[derive(Clone, Debug, Default)]
pub(super) struct Owners {
    by_uid: BTreeMap<String, (SpiffeId, u64)>,
    order: Order,
    of_identity: BTreeMap<SpiffeId, Order>,
    /// Since when those that do not count have not, in seconds of Unix time.
    gone: BTreeMap<String, u64>,
    numbers: u64,
    changes: u64,
}

impl Owners {
    pub(super) fn owner(&self, uid: &str) -> Option<&SpiffeId> {
        self.by_uid.get(uid).map(|(identity, _)| identity)
    }

    /// Gives a uid that is nobody's to `identity`. Uids for which `counts` holds are not forgotten
    /// to make room.
    pub(super) fn claim(&mut self, uid: &str, identity: &SpiffeId, counts: impl Fn(&str) -> bool) {
        self.gone.remove(uid);
        if self.by_uid.contains_key(uid) {
            return;
        }
        let of_it = self.of_identity.get(identity).map_or(0, Order::len);
        if of_it >= MAX_OWNED_PER_IDENTITY {
            self.forget_oldest(Some(identity), counts);
        } else if self.by_uid.len() >= MAX_OWNED {
            self.forget_oldest(None, counts);
        }
        self.changes += 1;
        self.insert(uid.to_owned(), identity.clone());
    }

    /// As it was kept.
    pub(super) fn restore(&mut self, owned: Owned) {
        self.claim(&owned.uid, &owned.identity, |_| false);
        if let Some(gone) = owned.gone_unix
            && self.by_uid.contains_key(&owned.uid)
        {
            self.gone.insert(owned.uid, gone);
        }
    }

    /// Forgets whose uids were that have not counted for `keep`, as far as looks like this one saw.
    pub(super) fn forget_gone(
        &mut self,
        now_unix: u64,
        keep: Duration,
        counts: impl Fn(&str) -> bool,
    ) {
        let mut over = Vec::new();
        for uid in self.by_uid.keys() {
            if counts(uid) {
                self.gone.remove(uid);
                continue;
            }
            let since = *self.gone.entry(uid.clone()).or_insert(now_unix);
            if now_unix.saturating_sub(since) > keep.as_secs() {
                over.push(uid.clone());
            }
        }
        for uid in over {
            self.changes += 1;
            self.remove(&uid);
        }
    }

    /// Forgets the oldest, of `identity` if one is given. Those that count are younger afterwards,
    /// so that they are not passed over again each time. Few are looked at: where all of them
    /// count there is no more than there are workloads, and the next claim looks on.
    fn forget_oldest(&mut self, identity: Option<&SpiffeId>, counts: impl Fn(&str) -> bool) {
        for _ in 0..LOOKS {
            let order = match identity {
                Some(identity) => self.of_identity.get(identity),
                None => Some(&self.order),
            };
            let Some((_, uid)) = order.and_then(Order::first_key_value) else {
                return;
            };
            let uid = uid.clone();
            let counts = counts(&uid);
            let Some(owner) = self.remove(&uid) else {
                return;
            };
            if !counts {
                return;
            }
            self.insert(uid, owner);
        }
    }

    fn insert(&mut self, uid: String, identity: SpiffeId) {
        self.numbers += 1;
        let number = self.numbers;
        self.order.insert(number, uid.clone());
        let of_it = self.of_identity.entry(identity.clone()).or_default();
        of_it.insert(number, uid.clone());
        self.by_uid.insert(uid, (identity, number));
    }

    fn remove(&mut self, uid: &str) -> Option<SpiffeId> {
        let (identity, number) = self.by_uid.remove(uid)?;
        self.gone.remove(uid);
        self.order.remove(&number);
        if let Some(of_it) = self.of_identity.get_mut(&identity) {
            of_it.remove(&number);
            if of_it.is_empty() {
                self.of_identity.remove(&identity);
            }
        }
        Some(identity)
    }

    /// Grows with each uid that is claimed or forgotten.
    pub(super) fn changes(&self) -> u64 {
        self.changes
    }

    /// All, oldest first.
    pub(super) fn all(&self) -> Vec<Owned> {
        let owned = |uid: &String| {
            Some(Owned {
                uid: uid.clone(),
                identity: self.owner(uid)?.clone(),
                gone_unix: self.gone.get(uid).copied(),
            })
        };
        self.order.values().filter_map(owned).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::identity;

    #[test]
    fn a_uid_is_nobodys_again_once_no_certificate_of_it_can_live() {
        const DAY: Duration = Duration::from_secs(86_400);
        let alice = identity("east", "shop", "checkout");
        let mut owners = Owners::default();
        owners.claim("here", &alice, |_| false);
        owners.claim("gone", &alice, |_| false);
        owners.claim("back", &alice, |_| false);
        let kept = owners.changes();
        let here = |uid: &str| uid == "here";
        owners.forget_gone(1_000, DAY, here);
        // Over a restart it goes on.
        let mut again = Owners::default();
        owners.all().into_iter().for_each(|of| again.restore(of));
        assert_eq!(again.all(), owners.all());
        again.claim("back", &alice, |_| false);
        let before = again.changes();
        again.forget_gone(1_000 + DAY.as_secs(), DAY, here);
        assert_eq!(again.all().len(), 3, "not longer than that");
        again.forget_gone(1_001 + DAY.as_secs(), DAY, here);
        let left: Vec<_> = again.all().into_iter().map(|of| of.uid).collect();
        assert_eq!(left, ["here", "back"]);
        assert_eq!(again.owner("gone"), None);
        assert_eq!((owners.changes(), again.changes()), (kept, before + 1));
        // A clock that was set back forgets nothing.
        again.forget_gone(5, DAY, |_| false);
        assert_eq!(again.all().len(), 2);
    }

    #[test]
    fn who_claims_ever_new_uids_forgets_his_own() {
        let mut owners = Owners::default();
        let (honest, greedy) = (
            identity("east", "shop", "checkout"),
            identity("east", "shop", "greedy"),
        );
        owners.claim("checkout-1", &honest, |_| false);
        for uid in 0..MAX_OWNED_PER_IDENTITY + 10 {
            owners.claim(&format!("g{uid}"), &greedy, |uid| uid == "g0");
        }
        assert_eq!(owners.owner("checkout-1"), Some(&honest));
        assert_eq!(owners.owner("g0"), Some(&greedy), "it counts");
        assert_eq!(owners.owner("g1"), None);
        assert_eq!(owners.all().len(), MAX_OWNED_PER_IDENTITY + 1);
        assert_eq!(owners.of_identity[&greedy].len(), MAX_OWNED_PER_IDENTITY);
        assert_eq!(owners.order.len(), owners.by_uid.len());
    }
}

//! Whose each uid is: that of the identity which registered it first, also after it has lapsed and
//! after a restart. What is known of a workload by its uid (routes, caches, certificates' names)
//! thus never comes to mean somebody else's.

use std::collections::BTreeMap;

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
}

/// Uids by when they were claimed, or last seen to count when room was made: numbers grow.
type Order = BTreeMap<u64, String>;

#[derive(Clone, Debug, Default)]
pub(super) struct Owners {
    by_uid: BTreeMap<String, (SpiffeId, u64)>,
    order: Order,
    of_identity: BTreeMap<SpiffeId, Order>,
    numbers: u64,
    claims: u64,
}

impl Owners {
    pub(super) fn owner(&self, uid: &str) -> Option<&SpiffeId> {
        self.by_uid.get(uid).map(|(identity, _)| identity)
    }

    /// Gives a uid that is nobody's to `identity`. Uids for which `counts` holds are not forgotten
    /// to make room.
    pub(super) fn claim(&mut self, uid: &str, identity: &SpiffeId, counts: impl Fn(&str) -> bool) {
        if self.by_uid.contains_key(uid) {
            return;
        }
        let of_it = self.of_identity.get(identity).map_or(0, Order::len);
        if of_it >= MAX_OWNED_PER_IDENTITY {
            self.forget_oldest(Some(identity), counts);
        } else if self.by_uid.len() >= MAX_OWNED {
            self.forget_oldest(None, counts);
        }
        self.claims += 1;
        self.insert(uid.to_owned(), identity.clone());
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
            let Some(owner) = self.remove(&uid) else {
                return;
            };
            if !counts(&uid) {
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
        self.order.remove(&number);
        if let Some(of_it) = self.of_identity.get_mut(&identity) {
            of_it.remove(&number);
            if of_it.is_empty() {
                self.of_identity.remove(&identity);
            }
        }
        Some(identity)
    }

    /// Grows with each claim.
    pub(super) fn claims(&self) -> u64 {
        self.claims
    }

    /// All, oldest first.
    pub(super) fn all(&self) -> Vec<Owned> {
        let owned = |uid: &String| {
            Some(Owned {
                uid: uid.clone(),
                identity: self.owner(uid)?.clone(),
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

//! Places for what others want of us: so many in all, and half of them for one holder at most, so
//! that none of them shuts out the others.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The places, shared by all who hand them out to holders that `K` tells apart.
#[derive(Clone, Debug)]
pub(crate) struct Places<K> {
    most: usize,
    taken: Arc<Mutex<Taken<K>>>,
}

#[derive(Debug)]
struct Taken<K> {
    total: usize,
    /// Those that hold none are not in it.
    by_holder: BTreeMap<K, usize>,
}

/// One place; free again when it is dropped.
#[derive(Debug)]
pub(crate) struct Place<K: Ord> {
    of: K,
    taken: Arc<Mutex<Taken<K>>>,
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Full {
    #[error("there is no room for more of anybody")]
    All,
    #[error("this one has its half of all that there is room for")]
    Share,
}

impl<K: Ord + Clone> Places<K> {
    pub(crate) fn new(most: usize) -> Self {
        let taken = Taken {
            total: 0,
            by_holder: BTreeMap::new(),
        };
        Self {
            most,
            taken: Arc::new(Mutex::new(taken)),
        }
    }

    /// One place for `holder`.
    pub(crate) fn take(&self, holder: &K) -> Result<Place<K>, Full> {
        let mut taken = lock(&self.taken);
        if taken.total >= self.most {
            return Err(Full::All);
        }
        let held = taken.by_holder.get(holder).copied().unwrap_or(0);
        if held >= (self.most / 2).max(1) {
            return Err(Full::Share);
        }
        taken.total += 1;
        taken.by_holder.insert(holder.clone(), held + 1);
        Ok(Place {
            of: holder.clone(),
            taken: Arc::clone(&self.taken),
        })
    }
}

impl<K: Ord> Drop for Place<K> {
    fn drop(&mut self) {
        let mut taken = lock(&self.taken);
        taken.total -= 1;
        if let Some(held) = taken.by_holder.get_mut(&self.of) {
            *held -= 1;
            if *held == 0 {
                taken.by_holder.remove(&self.of);
            }
        }
    }
}

fn lock<K>(taken: &Mutex<Taken<K>>) -> MutexGuard<'_, Taken<K>> {
    taken.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_peer_has_half_and_gets_back_what_it_gave_back() {
        let places = Places::new(4);
        let [east, north, south] = ["east", "north", "south"];
        let mut of_east = vec![places.take(&east).unwrap(), places.take(&east).unwrap()];
        assert_eq!(places.take(&east).unwrap_err(), Full::Share);
        let of_north = places.take(&north).unwrap();
        of_east.pop();
        of_east.push(places.take(&east).unwrap());
        let _of_south = places.take(&south).unwrap();
        assert_eq!(places.take(&north).unwrap_err(), Full::All);
        drop((of_east, of_north));
        let left = lock(&places.taken);
        assert_eq!((left.total, left.by_holder.len()), (1, 1));
    }
}

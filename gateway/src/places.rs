//! Places for the streams of peers: so many in all, and half of them for one peer at most, so that
//! none of them shuts out the others.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use linkspan_routing::ClusterId;

/// The places, shared by all connections.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    most: usize,
    taken: Arc<Mutex<Taken>>,
}

#[derive(Debug, Default)]
struct Taken {
    total: usize,
    /// Those that hold none are not in it.
    by_peer: BTreeMap<ClusterId, usize>,
}

/// One place; free again when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    of: ClusterId,
    taken: Arc<Mutex<Taken>>,
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Full {
    #[error("the most streams that all peers together may have are open already")]
    All,
    #[error("this peer has its half of the streams that all peers together may have")]
    Share,
}

impl Places {
    pub(crate) fn new(most: usize) -> Self {
        Self {
            most,
            taken: Arc::default(),
        }
    }

    /// One place for a stream of `peer`.
    pub(crate) fn take(&self, peer: &ClusterId) -> Result<Place, Full> {
        let mut taken = lock(&self.taken);
        if taken.total >= self.most {
            return Err(Full::All);
        }
        let held = taken.by_peer.get(peer).copied().unwrap_or(0);
        if held >= (self.most / 2).max(1) {
            return Err(Full::Share);
        }
        taken.total += 1;
        taken.by_peer.insert(peer.clone(), held + 1);
        Ok(Place {
            of: peer.clone(),
            taken: Arc::clone(&self.taken),
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = lock(&self.taken);
        taken.total -= 1;
        if let Some(held) = taken.by_peer.get_mut(&self.of) {
            *held -= 1;
            if *held == 0 {
                taken.by_peer.remove(&self.of);
            }
        }
    }
}

fn lock(taken: &Mutex<Taken>) -> MutexGuard<'_, Taken> {
    taken.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_peer_has_half_and_gets_back_what_it_gave_back() {
        let places = Places::new(4);
        let [east, north, south] = ["east", "north", "south"].map(|id| id.parse().unwrap());
        let mut of_east = vec![places.take(&east).unwrap(), places.take(&east).unwrap()];
        assert_eq!(places.take(&east).unwrap_err(), Full::Share);
        let of_north = places.take(&north).unwrap();
        of_east.pop();
        of_east.push(places.take(&east).unwrap());
        let _of_south = places.take(&south).unwrap();
        assert_eq!(places.take(&north).unwrap_err(), Full::All);
        drop((of_east, of_north));
        let left = lock(&places.taken);
        assert_eq!((left.total, left.by_peer.len()), (1, 1));
    }
}

//! The peers that subscribe at us: how many streams each has, and how much it says on them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use linkspan_core::{ClusterId, SpiffeId};
use tonic::Status;

use super::{
    metered::{Account, Metering},
    quota::Rates,
};

/// Streams of one peer: it keeps one, and others may not have ended yet while it reconnects.
/// Each costs what the peer says that it knows, and what waits for it.
const MAX_STREAMS: usize = 8;

struct Entry {
    streams: usize,
    account: Account,
}

type Entries = HashMap<SpiffeId, Entry>;

/// All subscribers.
#[derive(Clone, Default)]
pub(crate) struct Subscribers(Arc<Mutex<Entries>>);

/// One stream of a peer; counts until it is dropped.
pub(super) struct Subscriber {
    identity: SpiffeId,
    pub(super) account: Account,
    subscribers: Subscribers,
}

impl Subscribers {
    /// One more stream of the federation `identity` of `peer`.
    pub(super) fn take(&self, identity: &SpiffeId, peer: &ClusterId) -> Result<Subscriber, Status> {
        let mut entries = self.lock();
        let entry = entry_of(&mut entries, identity);
        if entry.streams >= MAX_STREAMS {
            return Err(Status::resource_exhausted(format!(
                "cluster `{peer}` has {MAX_STREAMS} sync streams here already; wait until some end"
            )));
        }
        let debt = entry.account.debt();
        if !debt.is_zero() {
            return Err(Status::resource_exhausted(format!(
                "cluster `{peer}` has said more than its quota allows; try again in {} s",
                debt.as_secs() + 1
            )));
        }
        entry.streams += 1;
        Ok(Subscriber {
            identity: identity.clone(),
            account: entry.account.clone(),
            subscribers: self.clone(),
        })
    }

    /// For one more connection of the federation `identity`: all its bytes are charged, whatever
    /// becomes of them.
    pub(crate) fn metering(&self, identity: &SpiffeId) -> Metering {
        Metering::new(entry_of(&mut self.lock(), identity).account.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Without streams and connections an entry is kept for as long as it is worse than a new one:
/// else a peer could begin again and again, each time with a full bucket.
fn entry_of<'a>(entries: &'a mut Entries, identity: &SpiffeId) -> &'a mut Entry {
    entries.retain(|_, entry| {
        entry.streams > 0 || entry.account.is_in_use() || !entry.account.is_full()
    });
    entries.entry(identity.clone()).or_insert_with(|| Entry {
        streams: 0,
        account: Account::new(Rates::SUBSCRIBER),
    })
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        if let Some(entry) = self.subscribers.lock().get_mut(&self.identity) {
            entry.streams -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tonic::Code;

    use super::*;
    use crate::sync::quota::Pace;

    fn west() -> (SpiffeId, ClusterId) {
        let id = SpiffeId::federation(&"west.test".parse().unwrap());
        (id, "west".parse().unwrap())
    }

    #[test]
    fn a_peer_has_so_many_streams_and_takes_none_from_others() {
        let subscribers = Subscribers::default();
        let (id, west) = west();
        let mut held: Vec<_> = (0..MAX_STREAMS)
            .map(|_| subscribers.take(&id, &west).unwrap())
            .collect();
        let refused = subscribers.take(&id, &west).err().unwrap();
        assert_eq!(refused.code(), Code::ResourceExhausted);
        let north = SpiffeId::federation(&"north.test".parse().unwrap());
        drop(subscribers.take(&north, &"north".parse().unwrap()).unwrap());
        held.pop();
        subscribers.take(&id, &west).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn what_it_owes_outlives_its_stream() {
        let subscribers = Subscribers::default();
        let (id, west) = west();
        let first = subscribers.take(&id, &west).unwrap();
        assert_eq!(
            first.account.charge(45 << 20, 1),
            Pace::Wait(Duration::from_secs(5))
        );
        drop(first);
        assert!(subscribers.take(&id, &west).is_err());
        tokio::time::advance(Duration::from_secs(5)).await;
        drop(subscribers.take(&id, &west).unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_stream_brings_no_new_burst() {
        let subscribers = Subscribers::default();
        let (id, west) = west();
        let first = subscribers.take(&id, &west).unwrap();
        assert_eq!(first.account.charge(40 << 20, 1), Pace::Go);
        drop(first);
        let second = subscribers.take(&id, &west).unwrap();
        assert_eq!(
            second.account.charge(1 << 20, 1),
            Pace::Wait(Duration::from_secs(1))
        );
        drop(second);
        // Once the bucket is full again there is nothing to remember.
        tokio::time::advance(Duration::from_secs(41)).await;
        let north = SpiffeId::federation(&"north.test".parse().unwrap());
        let _other = subscribers.take(&north, &"north".parse().unwrap()).unwrap();
        assert_eq!(subscribers.lock().len(), 1);
    }
}

//! The peers that subscribe at us: how many streams each has, and how much it says on them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use linkspan_core::{ClusterId, SpiffeId};
use tonic::Status;

use super::{metered::Account, quota::Rates};

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
pub(super) struct Subscribers(Arc<Mutex<Entries>>);

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
        // Without streams an entry is kept for its debt only.
        entries.retain(|_, entry| entry.streams > 0 || !entry.account.debt().is_zero());
        let entry = entries.entry(identity.clone()).or_insert_with(|| Entry {
            streams: 0,
            account: Account::new(Rates::SUBSCRIBER),
        });
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

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
        let again = subscribers.take(&id, &west).unwrap();
        drop(again);
        assert_eq!(subscribers.lock().len(), 1);
    }
}

//! The book of links, in memory and where it is kept. Each change is there before anybody acts on it,
//! and one lock orders them: two accepters of one invitation cannot both win.

use std::sync::{Arc, Mutex, PoisonError};

use linkspan_core::join::{LinkBook, Problem, Refusal};
use tokio::sync::watch;

use linkspan_runtime::process::chain;

use crate::state::{StateError, store::Slot};

/// The only writer of the book.
pub(crate) struct LinkStore {
    slot: Slot,
    book: Mutex<LinkBook>,
    published: watch::Sender<Arc<LinkBook>>,
}

impl LinkStore {
    /// Reads what is kept; without that the book is empty.
    pub(crate) fn open(slot: impl Into<Slot>) -> Result<Self, StateError> {
        let slot = slot.into();
        let book: LinkBook = match slot.read()? {
            None => LinkBook::default(),
            Some(bytes) => {
                serde_json::from_slice(&bytes).map_err(|error| slot.damaged(error.to_string()))?
            }
        };
        Ok(Self {
            slot,
            published: watch::Sender::new(Arc::new(book.clone())),
            book: Mutex::new(book),
        })
    }

    /// What is written, to follow.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Arc<LinkBook>> {
        self.published.subscribe()
    }

    /// What is written now.
    pub(crate) fn current(&self) -> Arc<LinkBook> {
        Arc::clone(&self.published.borrow())
    }

    /// Changes the book. If the change is refused or cannot be written, it is as it was. Blocks on
    /// the disk.
    pub(crate) fn change<T>(
        &self,
        change: impl FnOnce(&mut LinkBook) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = book.clone();
        let done = change(&mut next)?;
        if next != *book {
            let bytes = serde_json::to_vec_pretty(&next).expect("plain values serialize");
            self.slot.write(&bytes).map_err(|error| {
                let error = chain(&error);
                tracing::error!(error, "links cannot be written down");
                Refusal::new(Problem::Failed, error)
            })?;
            *book = next.clone();
            self.published.send_replace(Arc::new(next));
        }
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        path::Path,
        time::{Duration, SystemTime},
    };

    use linkspan_core::join::{Accepter, InvitationId, Offer, RootsDigest};

    use super::*;

    fn open(path: &Path) -> LinkStore {
        LinkStore::open(path).unwrap()
    }

    const ID: InvitationId = InvitationId([1; 16]);

    fn offer(store: &LinkStore) {
        let until = SystemTime::now() + Duration::from_secs(900);
        store
            .change(|book| book.offer(ID, [2; 32], until, Offer::default()))
            .unwrap();
    }

    #[test]
    fn what_was_changed_is_there_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("links.json");
        let store = open(&path);
        offer(&store);
        assert_eq!(open(&path).current(), store.current());
    }

    #[test]
    fn what_cannot_be_written_has_not_happened() {
        let directory = tempfile::tempdir().unwrap();
        let store = open(&directory.path().join("missing/links.json"));
        let until = SystemTime::now() + Duration::from_secs(900);
        let refused = store.change(|book| book.offer(ID, [2; 32], until, Offer::default()));
        assert_eq!(refused.unwrap_err().problem, Problem::Failed);
        assert_eq!(*store.current(), LinkBook::default());
    }

    #[test]
    fn of_many_accepters_exactly_one_wins() {
        let directory = tempfile::tempdir().unwrap();
        let store = open(&directory.path().join("links.json"));
        offer(&store);
        let take = |number: u8| {
            let accepter = Accepter {
                cluster: format!("c{number}").parse().unwrap(),
                roots: RootsDigest([number; 32]),
            };
            let domain = format!("c{number}.test").parse().unwrap();
            let take = |book: &mut LinkBook| book.consume(&ID, accepter, domain, SystemTime::now());
            store.change(take).is_ok()
        };
        let winners = std::thread::scope(|scope| {
            let all: Vec<_> = (0..8).map(|n| scope.spawn(move || take(n))).collect();
            all.into_iter()
                .map(|one| one.join().unwrap())
                .filter(|won| *won)
                .count()
        });
        assert_eq!(winners, 1);
    }
}

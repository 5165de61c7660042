//! Links that are being made or ended: one hand at a time for each.
//!
//! Both are several steps (the book, then the declaration, or the other way round) with waiting in
//! between. A removal in the midst of a link's making would leave a declaration that no book
//! knows, and two removals would forget each other's.

use std::collections::BTreeSet;

use linkspan_core::ClusterId;
use tokio::sync::watch;

/// The links that are in hand.
#[derive(Clone)]
pub(crate) struct InHand(watch::Sender<BTreeSet<ClusterId>>);

/// The link to a cluster is in hand until this is dropped.
pub(crate) struct Hold {
    cluster: ClusterId,
    all: InHand,
}

impl Default for InHand {
    fn default() -> Self {
        Self(watch::Sender::new(BTreeSet::new()))
    }
}

impl InHand {
    /// Takes the link to `cluster` in hand as soon as nobody else has it. Cancel-safe.
    pub(crate) async fn take(&self, cluster: &ClusterId) -> Hold {
        let mut held = self.0.subscribe();
        loop {
            if let Some(hold) = self.try_take(cluster) {
                return hold;
            }
            // It never ends: we hold the sender.
            let _ = held.wait_for(|held| !held.contains(cluster)).await;
        }
    }

    /// Takes it in hand now; `None` where somebody has it.
    pub(crate) fn try_take(&self, cluster: &ClusterId) -> Option<Hold> {
        let taken = self.0.send_if_modified(|held| held.insert(cluster.clone()));
        taken.then(|| Hold {
            cluster: cluster.clone(),
            all: self.clone(),
        })
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.all.0.send_modify(|held| {
            held.remove(&self.cluster);
        });
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt as _, poll};

    use super::*;

    #[tokio::test]
    async fn a_link_is_in_one_hand_at_a_time() {
        let (all, west) = (InHand::default(), "west".parse().unwrap());
        let first = all.take(&west).await;
        assert!(all.try_take(&west).is_none());
        assert!(all.try_take(&"north".parse().unwrap()).is_some());
        let (mut second, mut third) = (Box::pin(all.take(&west)), Box::pin(all.take(&west)));
        assert!(poll!(second.as_mut()).is_pending() && poll!(third.as_mut()).is_pending());
        drop(first);
        let second = second.await;
        assert!(poll!(third.as_mut()).is_pending());
        drop(second);
        assert!(third.now_or_never().is_some());
        assert!(all.try_take(&west).is_some());
    }
}

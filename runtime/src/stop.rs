//! The two words that end a process: *drain* (finish what you have) and *abort* (now).
//!
//! A [`Stop`] is cloned into every task. Whoever accepts work stops accepting on
//! [`Stop::draining`]; whoever still works ends at the latest on [`Stop::aborted`].

use tokio_util::sync::CancellationToken;

/// A shared request to stop, first politely, then at once. Clones are one and the same.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    drain: CancellationToken,
    abort: CancellationToken,
}

impl Stop {
    /// A stop that nobody has asked for yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A stop that follows this one, and can also be asked for on its own.
    #[must_use]
    pub fn child(&self) -> Self {
        Self {
            drain: self.drain.child_token(),
            abort: self.abort.child_token(),
        }
    }

    /// Asks everybody to take nothing new and to finish what they have.
    pub fn drain(&self) {
        self.drain.cancel();
    }

    /// Asks everybody to end now; implies [`drain`](Self::drain).
    pub fn abort(&self) {
        self.drain.cancel();
        self.abort.cancel();
    }

    /// Waits until draining (or more) was asked for. Cancel-safe.
    pub async fn draining(&self) {
        self.drain.cancelled().await;
    }

    /// Waits until the end was asked for. Cancel-safe.
    pub async fn aborted(&self) {
        self.abort.cancelled().await;
    }

    /// Whether draining (or more) was asked for.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.drain.is_cancelled()
    }

    /// Whether the end was asked for.
    #[must_use]
    pub fn is_aborted(&self) -> bool {
        self.abort.is_cancelled()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn abort_implies_drain() {
        let stop = Stop::new();
        let other = stop.clone();
        stop.abort();
        other.draining().await;
        other.aborted().await;
    }

    #[test]
    fn a_child_follows_but_does_not_lead() {
        let parent = Stop::new();
        let child = parent.child();
        child.drain();
        assert!(child.is_draining() && !parent.is_draining());
        parent.abort();
        assert!(child.is_aborted());
    }
}

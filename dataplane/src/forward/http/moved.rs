//! When an exchange, that is a request and its answer, last moved in either direction.
//!
//! An upload of hours is as alive as a download of hours: only an exchange in which nothing moves
//! either way, whoever holds it up, is to be ended.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

/// The clock of one exchange; clones are the same. Noting a movement costs one relaxed store.
#[derive(Clone, Debug)]
pub struct Moved(Arc<Clock>);

#[derive(Debug)]
struct Clock {
    began: Instant,
    /// Milliseconds after `began`.
    last: AtomicU64,
}

impl Default for Moved {
    fn default() -> Self {
        Self(Arc::new(Clock {
            began: Instant::now(),
            last: AtomicU64::new(0),
        }))
    }
}

impl Moved {
    /// Something moves now.
    pub fn note(&self) {
        let millis = self.0.began.elapsed().as_millis();
        let millis = u64::try_from(millis).unwrap_or(u64::MAX);
        self.0.last.store(millis, Relaxed);
    }

    /// Whether nothing has moved for `limit`.
    #[must_use]
    pub fn is_still(&self, limit: Duration) -> bool {
        Instant::now() >= self.end(limit)
    }

    /// When nothing will have moved for `limit`, unless something does.
    fn end(&self, limit: Duration) -> Instant {
        self.0.began + Duration::from_millis(self.0.last.load(Relaxed)) + limit
    }

    /// Waits until nothing has moved for `limit`. Cancel-safe. The timer is set anew only when it
    /// rings, however much moves meanwhile.
    pub async fn idle(&self, limit: Duration) {
        while !self.is_still(limit) {
            sleep_until(self.end(limit)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{advance, timeout};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    #[tokio::test(start_paused = true)]
    async fn movement_puts_the_end_off() {
        let (moved, began) = (Moved::default(), Instant::now());
        let moving = async {
            for _ in 0..10 {
                tokio::time::sleep(LIMIT - Duration::from_secs(1)).await;
                moved.note();
            }
        };
        let ((), ()) = tokio::join!(moving, moved.idle(LIMIT));
        assert_eq!(began.elapsed(), Duration::from_secs(45));
        // And at once when it has been still for long.
        advance(LIMIT).await;
        timeout(Duration::ZERO, moved.idle(LIMIT)).await.unwrap();
    }
}

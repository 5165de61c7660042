//! Series that go when nobody needs them any more, and of which there are never too many.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// How long series stay after their last holder is gone: so that whoever collects them (every minute
/// or oftener) has seen their last values.
pub(super) const LINGER: Duration = Duration::from_secs(600);
/// Between two looks for what has gone.
const LOOK: Duration = Duration::from_secs(60);

/// What counts under label sets `K`; `H` holds the handles of one.
#[derive(Debug)]
pub(super) struct Series<K, H> {
    most: usize,
    inner: Mutex<Inner<K, H>>,
}

#[derive(Debug)]
struct Inner<K, H> {
    sets: BTreeMap<K, Set<H>>,
    looked: Option<Instant>,
}

#[derive(Debug)]
struct Set<H> {
    handles: Arc<H>,
    /// Since when nobody else holds them, as far as it was looked.
    idle: Option<Instant>,
}

impl<K: Ord + Clone, H> Series<K, H> {
    pub(super) fn new(most: usize) -> Self {
        let inner = Inner {
            sets: BTreeMap::new(),
            looked: None,
        };
        Self {
            most,
            inner: Mutex::new(inner),
        }
    }

    /// The handles of `labels`. Where there is no room for more, those of `instead`, which are made
    /// beyond it.
    pub(super) fn get(
        &self,
        labels: K,
        instead: impl FnOnce() -> K,
        make: impl Fn(&K) -> H,
    ) -> Arc<H> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let full = inner.sets.len() >= self.most && !inner.sets.contains_key(&labels);
        let labels = if full { instead() } else { labels };
        let set = inner.sets.entry(labels);
        let set = set.or_insert_with_key(|labels| Set {
            handles: Arc::new(make(labels)),
            idle: None,
        });
        set.idle = None;
        Arc::clone(&set.handles)
    }

    /// Lets go of what nobody has held for [`LINGER`], as `remove` is told. May be called often.
    pub(super) fn sweep(&self, now: Instant, remove: impl Fn(&K)) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let recent = |at: Instant| now.saturating_duration_since(at) < LOOK;
        if inner.looked.is_some_and(recent) {
            return;
        }
        inner.looked = Some(now);
        inner.sets.retain(|labels, set| {
            // Only `get` makes holders, and it waits.
            if Arc::strong_count(&set.handles) > 1 {
                set.idle = None;
                return true;
            }
            let since = *set.idle.get_or_insert(now);
            let stays = now.saturating_duration_since(since) < LINGER;
            if !stays {
                remove(labels);
            }
            stays
        });
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    fn swept(series: &Series<u8, u8>, now: Instant) -> Vec<u8> {
        let gone = RefCell::new(Vec::new());
        series.sweep(now, |labels| gone.borrow_mut().push(*labels));
        gone.into_inner()
    }

    #[test]
    fn what_nobody_holds_goes_after_a_while() {
        let series = Series::new(10);
        let get = |labels| series.get(labels, || 0, |labels| *labels);
        let start = Instant::now();
        let (held, other) = (get(1), get(2));
        assert_eq!(swept(&series, start), [0u8; 0]);
        drop(other);
        let noticed = start + LOOK;
        assert_eq!(swept(&series, noticed), [0u8; 0]);
        assert_eq!(swept(&series, noticed + LINGER - LOOK), [0u8; 0]);
        assert_eq!(swept(&series, noticed + LINGER), [2]);
        drop(held);
        let late = noticed + LINGER + LOOK;
        assert_eq!(swept(&series, late), [0u8; 0]);
        // Whoever takes it up again keeps it.
        drop(get(1));
        assert_eq!(swept(&series, late + LINGER), [0u8; 0]);
        assert_eq!(swept(&series, late + LINGER * 2), [1]);
    }

    #[test]
    fn one_set_more_counts_with_the_others() {
        let series = Series::new(2);
        let get = |labels| *series.get(labels, || 0, |labels| *labels);
        assert_eq!([get(1), get(2), get(3), get(4), get(1)], [1, 2, 0, 0, 1]);
        assert_eq!(series.inner.lock().unwrap().sets.len(), 3);
    }
}

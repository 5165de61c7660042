//! Which generation of the world each connected gateway has applied, and the gate behind it:
//! peers hear of an endpoint only after our gateways can reach it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::{sync::watch, time::timeout};

/// Something with a number that grows with each change.
pub(crate) trait Generation {
    fn generation(&self) -> u64;
}

/// Connected gateways, by session.
type Applied = BTreeMap<u64, Progress>;

struct Progress {
    replica: String,
    /// The newest generation that it has applied whole; zero for none.
    generation: u64,
}

/// Shared by the sessions of gateways.
#[derive(Clone)]
pub(crate) struct AppliedWriter(Arc<watch::Sender<Applied>>);

/// Read by the gate.
#[derive(Clone)]
pub(crate) struct AppliedReader(watch::Receiver<Applied>);

pub(crate) fn applied() -> (AppliedWriter, AppliedReader) {
    let (sender, receiver) = watch::channel(Applied::new());
    (AppliedWriter(Arc::new(sender)), AppliedReader(receiver))
}

impl AppliedWriter {
    /// A gateway has connected. It counts until the guard is dropped.
    pub(crate) fn connected(&self, session: u64, replica: &str) -> AppliedGuard {
        self.0.send_modify(|applied| {
            let progress = Progress {
                replica: replica.to_owned(),
                generation: 0,
            };
            applied.insert(session, progress);
        });
        AppliedGuard {
            writer: self.clone(),
            session,
        }
    }
}

/// One connected gateway.
pub(crate) struct AppliedGuard {
    writer: AppliedWriter,
    session: u64,
}

impl AppliedGuard {
    /// The gateway has applied `generation` whole.
    pub(crate) fn reached(&self, generation: u64) {
        self.writer.0.send_if_modified(|applied| {
            let Some(progress) = applied.get_mut(&self.session) else {
                return false;
            };
            let news = progress.generation < generation;
            progress.generation = generation.max(progress.generation);
            news
        });
    }
}

impl Drop for AppliedGuard {
    fn drop(&mut self) {
        self.writer.0.send_modify(|applied| {
            applied.remove(&self.session);
        });
    }
}

impl AppliedReader {
    async fn all_reached(&mut self, generation: u64) {
        let reached = |applied: &Applied| applied.values().all(|of| of.generation >= generation);
        // Without a writer there are no gateways to wait for.
        let _ = self.0.wait_for(reached).await;
    }

    /// Waits until each of `replicas` has applied `generation`. After `wait`, those that have not.
    pub(crate) async fn late(
        &self,
        replicas: Vec<String>,
        generation: u64,
        wait: Duration,
    ) -> Vec<String> {
        let late = |applied: &Applied| -> Vec<String> {
            let done = |replica: &&String| {
                let mut all = applied.values();
                all.any(|of| of.replica == **replica && of.generation >= generation)
            };
            replicas.iter().filter(|of| !done(of)).cloned().collect()
        };
        let mut reader = self.0.clone();
        let all = timeout(wait, reader.wait_for(|applied| late(applied).is_empty())).await;
        match all {
            Ok(Ok(_)) => Vec::new(),
            _ => late(&self.0.borrow()),
        }
    }
}

/// Passes on what every connected gateway has applied, or what is older than `wait`. One
/// snapshot is followed to its end before the newest is taken, so a busy cluster still advances.
/// Ends when either side does.
pub(crate) async fn gate<W: Generation>(
    mut worlds: watch::Receiver<Arc<W>>,
    mut applied: AppliedReader,
    wait: Duration,
    cleared: watch::Sender<Arc<W>>,
) {
    while worlds.changed().await.is_ok() {
        let world = Arc::clone(&worlds.borrow_and_update());
        let _ = timeout(wait, applied.all_reached(world.generation())).await;
        if cleared.send(world).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    impl Generation for u64 {
        fn generation(&self) -> u64 {
            *self
        }
    }

    struct Fixture {
        worlds: watch::Sender<Arc<u64>>,
        writer: AppliedWriter,
        cleared: watch::Receiver<Arc<u64>>,
    }

    fn start() -> Fixture {
        let (worlds, seen) = watch::channel(Arc::new(0));
        let (writer, reader) = applied();
        let (sender, cleared) = watch::channel(Arc::new(0));
        tokio::spawn(gate(seen, reader, Duration::from_secs(1), sender));
        Fixture {
            worlds,
            writer,
            cleared,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn waits_for_every_gateway() {
        let mut f = start();
        let (a, b) = (f.writer.connected(1, "a"), f.writer.connected(2, "b"));
        let begun = Instant::now();
        f.worlds.send_replace(Arc::new(5));
        a.reached(5);
        tokio::time::advance(Duration::from_millis(300)).await;
        assert_eq!(**f.cleared.borrow(), 0);
        b.reached(6);
        f.cleared.wait_for(|world| **world == 5).await.unwrap();
        assert!(begun.elapsed() < Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn waits_no_longer_than_a_second() {
        let mut f = start();
        let _silent = f.writer.connected(1, "a");
        let begun = Instant::now();
        f.worlds.send_replace(Arc::new(5));
        f.cleared.wait_for(|world| **world == 5).await.unwrap();
        assert!(begun.elapsed() >= Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn those_that_are_late_are_named_also_where_they_have_no_stream() {
        let (writer, reader) = applied();
        let (a, _b) = (writer.connected(1, "a"), writer.connected(2, "b"));
        a.reached(5);
        let replicas = || ["a", "b", "c"].map(str::to_owned).to_vec();
        let wait = Duration::from_secs(3);
        assert_eq!(reader.late(replicas(), 5, wait).await, ["b", "c"]);
        assert!(reader.late(vec!["a".into()], 5, wait).await.is_empty());
        // A newer stream of the same replica is it.
        let waiting = tokio::spawn({
            let reader = reader.clone();
            async move { reader.late(replicas(), 5, wait).await }
        });
        writer.connected(3, "b").reached(4);
        let (b, c) = (writer.connected(4, "b"), writer.connected(5, "c"));
        b.reached(6);
        c.reached(5);
        assert!(waiting.await.unwrap().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_gateway_that_left_is_not_waited_for() {
        let mut f = start();
        let gateway = f.writer.connected(1, "a");
        let begun = Instant::now();
        f.worlds.send_replace(Arc::new(5));
        drop(gateway);
        f.cleared.wait_for(|world| **world == 5).await.unwrap();
        assert!(begun.elapsed() < Duration::from_secs(1));
    }
}

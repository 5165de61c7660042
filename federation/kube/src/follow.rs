//! One kind followed by list and watch, for ever.
//!
//! ```text
//!            ┌──────── 410 Gone ────────┐
//!            ▼                          │
//! start ─► list, page by page ─► watch from there ─► (a minute) ─► watch from what was heard last
//!            ▲ error: pause             ▲ │ error: pause
//!            └──────────────┘           └─┘
//! ```
//! A list is handed over when its last page has come. A watch that breaks is taken up where it
//! was, so that nothing is read twice; only where the server has forgotten that place, the kind is
//! listed anew.

use std::time::Duration;

use futures_util::StreamExt as _;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::{Resource, ResourceExt as _};
use tokio::time::{Instant, sleep};

use crate::reads::Reads;

/// Objects in one page: as many as kubectl asks for.
const PAGE: u32 = 500;
/// The server ends a watch after so many seconds; then a new one shows that it is still there.
const WATCH: u32 = 60;
/// First pause after a failure.
const PAUSE: Duration = Duration::from_millis(500);
/// Longest pause.
const MAX_PAUSE: Duration = Duration::from_secs(15);

/// What is heard of a kind.
#[derive(Debug)]
pub(crate) enum Heard<K> {
    /// All there are.
    List(Vec<K>),
    /// The server answers.
    Watching,
    /// One was made, or has changed.
    Put(K),
    /// One has gone.
    Deleted(K),
    /// The server does not answer, or refuses to.
    Failed(kube::Error),
}

/// Follows one kind.
pub(crate) struct Follower<R, F> {
    reads: R,
    slim: F,
    /// From where to watch; `None`: a list is needed.
    version: Option<String>,
}

impl<K, R, F> Follower<R, F>
where
    K: Resource + Clone,
    R: Reads<Object = K>,
    F: Fn(&mut K),
{
    /// `slim` takes out of each object what need not be kept.
    pub(crate) fn new(reads: R, slim: F) -> Self {
        Self {
            reads,
            slim,
            version: None,
        }
    }

    /// Never ends.
    pub(crate) async fn run(mut self, tell: impl Fn(Heard<K>)) {
        let mut pause = PAUSE;
        loop {
            let watching = self.version.is_some();
            let begun = Instant::now();
            match self.step(&tell).await {
                Ok(()) => {
                    pause = PAUSE;
                    // A server that ends each watch at once is not asked in a tight loop.
                    if watching && begun.elapsed() < PAUSE {
                        sleep(jittered(PAUSE)).await;
                    }
                }
                Err(error) if is_gone(&error) && watching => {
                    self.version = None;
                    // Nor one that has forgotten what it said a moment ago.
                    sleep(jittered(PAUSE)).await;
                }
                Err(error) => {
                    tell(Heard::Failed(error));
                    sleep(jittered(pause)).await;
                    pause = (pause * 2).min(MAX_PAUSE);
                }
            }
        }
    }

    /// One list, or one watch.
    async fn step(&mut self, tell: &impl Fn(Heard<K>)) -> Result<(), kube::Error> {
        match self.version.clone() {
            None => self.list(tell).await,
            Some(version) => self.watch(&version, tell).await,
        }
    }

    async fn list(&mut self, tell: &impl Fn(Heard<K>)) -> Result<(), kube::Error> {
        let mut objects = Vec::new();
        let mut params = ListParams::default().limit(PAGE);
        loop {
            let page = self.reads.list(params.clone()).await?;
            objects.extend(page.items.into_iter().map(|mut object| {
                (self.slim)(&mut object);
                object
            }));
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => {
                    self.version = page.metadata.resource_version;
                    tell(Heard::List(objects));
                    return Ok(());
                }
            }
        }
    }

    async fn watch(&mut self, from: &str, tell: &impl Fn(Heard<K>)) -> Result<(), kube::Error> {
        let params = WatchParams::default().timeout(WATCH);
        let mut events = self.reads.watch(params, from).await?;
        tell(Heard::Watching);
        while let Some(event) = events.next().await {
            match event? {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                    self.note(object, Heard::Put, tell);
                }
                WatchEvent::Deleted(object) => self.note(object, Heard::Deleted, tell),
                WatchEvent::Bookmark(mark) => self.version = Some(mark.metadata.resource_version),
                WatchEvent::Error(status) => return Err(kube::Error::Api(status)),
            }
        }
        Ok(())
    }

    fn note(&mut self, mut object: K, heard: fn(K) -> Heard<K>, tell: &impl Fn(Heard<K>)) {
        self.version = object.resource_version();
        (self.slim)(&mut object);
        tell(heard(object));
    }
}

/// Whether the server no longer knows the place from which to go on.
fn is_gone(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 410)
}

/// Half to all of a pause, so that many do not come back at once.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(0.5 + rand::random::<f64>() / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_server_has_forgotten_is_listed_anew() {
        let of = |code| {
            let status = kube::core::Status::failure("too old resource version", "Expired");
            kube::Error::Api(Box::new(status.with_code(code)))
        };
        assert!(is_gone(&of(410)));
        assert!(!is_gone(&of(403)));
        assert!(!is_gone(&of(500)));
    }

    #[test]
    fn pauses_are_cut_by_half_at_most() {
        for _ in 0..1000 {
            let pause = jittered(PAUSE);
            assert!(pause >= PAUSE / 2 && pause <= PAUSE, "{pause:?}");
        }
    }
}

//! The tasks of a process, who owns them, and the order in which they end.
//!
//! 1. Somebody asks to drain, or an *essential* task ends by itself, which asks for it, too.
//! 2. Essential tasks get the grace period to finish; *background* tasks (admin faces, discovery,
//!    certificates) keep working meanwhile, because draining needs them.
//! 3. Abort: everybody ends; who does not within [`CUT_AFTER`] is cancelled. All are joined.

use std::{collections::HashMap, future::Future, time::Duration};

use tokio::{
    task::{Id, JoinError, JoinSet},
    time::timeout,
};
use tracing::{error, info, warn};

use crate::{BoxError, stop::Stop};

/// How long tasks may take to notice an abort before they are cancelled.
pub const CUT_AFTER: Duration = Duration::from_secs(3);

/// Why a process ended otherwise than asked.
#[derive(Debug, thiserror::Error)]
pub enum Exit {
    /// An essential task returned although nobody asked it to stop.
    #[error("`{name}` ended unexpectedly; without it nothing can be served")]
    Ended {
        /// The task.
        name: &'static str,
    },
    /// An essential task failed.
    #[error("`{name}` failed")]
    Failed {
        /// The task.
        name: &'static str,
        /// What it returned.
        source: BoxError,
    },
    /// An essential task panicked: a bug.
    #[error("`{name}` panicked: {message}; please report this bug")]
    Panicked {
        /// The task.
        name: &'static str,
        /// The panic's message.
        message: String,
    },
}

/// The tasks of a process. Dropping it cancels them all.
#[derive(Debug)]
pub struct Tasks {
    stop: Stop,
    essential: Named<Result<(), BoxError>>,
    background: Named<()>,
}

impl Tasks {
    /// No tasks yet. `stop` is what they all listen to.
    #[must_use]
    pub fn new(stop: Stop) -> Self {
        Self {
            stop,
            essential: Named::default(),
            background: Named::default(),
        }
    }

    /// Starts a task without which the process is useless: when it ends, the process does.
    /// It should return when the stop drains and its work is done.
    pub fn essential<F>(&mut self, name: &'static str, task: F)
    where
        F: Future<Output = Result<(), BoxError>> + Send + 'static,
    {
        self.essential.spawn(name, task);
    }

    /// Starts a task that serves the others. It may end early (a panic is logged), and should
    /// return when the stop *aborts*; the grace period does not wait for it.
    pub fn background<F>(&mut self, name: &'static str, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.background.spawn(name, task);
    }

    /// Runs until asked to drain or until an essential task ends, then stops in order.
    ///
    /// # Errors
    /// The first essential task that failed, panicked, or ended unasked.
    pub async fn run(mut self, grace: Duration) -> Result<(), Exit> {
        let mut exit = self.until_drain().await;
        self.stop.drain();
        if timeout(grace, self.finish_essential(&mut exit))
            .await
            .is_err()
        {
            warn!(left = ?self.essential.names(), ?grace, "grace period over; cutting what is left");
        }
        self.stop.abort();
        if timeout(CUT_AFTER, self.finish_all(&mut exit))
            .await
            .is_err()
        {
            warn!(left = ?self.names(), "cancelling tasks that did not stop when asked");
            self.essential.tasks.shutdown().await;
            self.background.tasks.shutdown().await;
        }
        exit.map_or(Ok(()), Err)
    }

    async fn until_drain(&mut self) -> Option<Exit> {
        loop {
            tokio::select! {
                // First, or a task that has ended because of the drain would be taken for one
                // that ended unasked.
                biased;
                () = self.stop.draining() => return None,
                Some((name, end)) = self.essential.next() => {
                    let exit = exit_of(name, end).unwrap_or(Exit::Ended { name });
                    error!(task = name, error = %chain(&exit), "an essential task ended; stopping");
                    return Some(exit);
                }
                Some((name, end)) = self.background.next() => background_ended(name, end),
            }
        }
    }

    async fn finish_essential(&mut self, exit: &mut Option<Exit>) {
        loop {
            tokio::select! {
                end = self.essential.next() => match end {
                    Some((name, end)) => note(exit, name, end),
                    None => return,
                },
                Some((name, end)) = self.background.next() => background_ended(name, end),
            }
        }
    }

    async fn finish_all(&mut self, exit: &mut Option<Exit>) {
        while let Some((name, end)) = self.essential.next().await {
            note(exit, name, end);
        }
        while let Some((name, end)) = self.background.next().await {
            background_ended(name, end);
        }
    }

    fn names(&self) -> Vec<&'static str> {
        let mut names = self.essential.names();
        names.extend(self.background.names());
        names
    }
}

fn note(exit: &mut Option<Exit>, name: &'static str, end: Result<Result<(), BoxError>, JoinError>) {
    if let Some(failure) = exit_of(name, end) {
        error!(task = name, error = %chain(&failure), "failed while stopping");
        exit.get_or_insert(failure);
    }
}

fn exit_of(name: &'static str, end: Result<Result<(), BoxError>, JoinError>) -> Option<Exit> {
    match end {
        Ok(Ok(())) => None,
        Ok(Err(source)) => Some(Exit::Failed { name, source }),
        Err(error) if error.is_panic() => Some(Exit::Panicked {
            name,
            message: panic_of(error),
        }),
        Err(_) => None,
    }
}

fn background_ended(name: &'static str, end: Result<(), JoinError>) {
    if let Err(error) = end
        && error.is_panic()
    {
        error!(
            task = name,
            message = panic_of(error),
            "a background task panicked"
        );
    }
}

fn panic_of(error: JoinError) -> String {
    match error.try_into_panic() {
        Ok(panic) => panic
            .downcast_ref::<&str>()
            .map(ToString::to_string)
            .or_else(|| panic.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "(no message)".to_owned()),
        Err(error) => error.to_string(),
    }
}

/// An error with all its sources on one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[derive(Debug)]
struct Named<T> {
    tasks: JoinSet<T>,
    names: HashMap<Id, &'static str>,
}

impl<T> Default for Named<T> {
    fn default() -> Self {
        Self {
            tasks: JoinSet::new(),
            names: HashMap::new(),
        }
    }
}

impl<T: Send + 'static> Named<T> {
    fn spawn<F: Future<Output = T> + Send + 'static>(&mut self, name: &'static str, task: F) {
        let id = self.tasks.spawn(task).id();
        self.names.insert(id, name);
    }

    /// The next task that ended; `None` when none is left. Cancel-safe.
    async fn next(&mut self) -> Option<(&'static str, Result<T, JoinError>)> {
        let (id, end) = match self.tasks.join_next_with_id().await? {
            Ok((id, value)) => (id, Ok(value)),
            Err(error) => (error.id(), Err(error)),
        };
        Some((self.names.remove(&id).unwrap_or("?"), end))
    }

    fn names(&self) -> Vec<&'static str> {
        self.names.values().copied().collect()
    }
}

/// Turns signals into stopping: the first SIGTERM or SIGINT drains, the second aborts.
/// Returns when the stop aborts; meant as a background task.
pub async fn signals(stop: Stop) {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut term, mut int) = match (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    ) {
        (Ok(term), Ok(int)) => (term, int),
        (Err(error), _) | (_, Err(error)) => {
            error!(%error, "cannot listen for signals; only SIGKILL will end this process");
            return stop.aborted().await;
        }
    };
    loop {
        tokio::select! {
            () = stop.aborted() => return,
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        if stop.is_draining() {
            warn!("second signal; stopping at once");
            stop.abort();
        } else {
            info!("signal received; draining (once more to stop at once)");
            stop.drain();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    #[tokio::test]
    async fn waits_for_essential_work_then_ends_background() {
        let stop = Stop::new();
        let mut tasks = Tasks::new(stop.clone());
        let (drain, abort) = (stop.clone(), stop.clone());
        tasks.essential("server", async move {
            drain.draining().await;
            Ok(())
        });
        tasks.background("admin", async move { abort.aborted().await });
        stop.drain();
        assert!(tasks.run(Duration::from_secs(30)).await.is_ok());
        assert!(stop.is_aborted());
    }

    #[tokio::test(start_paused = true)]
    async fn grace_ends_and_the_deaf_are_cancelled() {
        let stop = Stop::new();
        let mut tasks = Tasks::new(stop.clone());
        tasks.essential("deaf", pending());
        tasks.background("deaf too", pending());
        stop.drain();
        assert!(tasks.run(Duration::from_secs(30)).await.is_ok());
    }

    #[tokio::test]
    async fn an_essential_task_that_ends_ends_the_process() {
        let stop = Stop::new();
        let mut tasks = Tasks::new(stop.clone());
        tasks.essential("server", async { Ok(()) });
        let end = tasks.run(Duration::from_secs(1)).await;
        assert!(
            matches!(end, Err(Exit::Ended { name: "server" })),
            "{end:?}"
        );
        assert!(stop.is_draining());
    }

    #[tokio::test]
    async fn failures_and_panics_are_named() {
        for (panics, text) in [
            (false, "`x` failed: broken"),
            (true, "`x` panicked: broken"),
        ] {
            let mut tasks = Tasks::new(Stop::new());
            tasks.essential("x", async move {
                assert!(!panics, "broken");
                Err("broken".into())
            });
            let exit = tasks
                .run(Duration::from_secs(1))
                .await
                .expect_err("an essential task ended");
            assert!(chain(&exit).starts_with(text), "{exit:?}");
        }
    }
}
